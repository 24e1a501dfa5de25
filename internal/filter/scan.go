package filter

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A word is a run of ordinary characters, or a quoted text.
type word struct {
	text   string
	start  int // its first byte in the expression
	quoted bool
}

func (w word) glob() bool { return !w.quoted && isGlob(w.text) }

// value reads the word after an operator.
func (p *parser) value(operator string) (word, error) {
	switch c := p.peek(); {
	case c == '~':
		return word{}, p.errorf(p.pos, "a value that begins with '~' must be quoted")
	case c != '"' && c != '\'' && !isWord(p.peekRune()):
		return word{}, p.errorf(p.pos, "expected a value after %q, found %s", operator, p.found())
	}
	return p.word()
}

func (p *parser) word() (word, error) {
	start := p.pos
	if c := p.peek(); c == '"' || c == '\'' {
		text, err := p.quoted()
		return word{text, start, true}, err
	}
	for !p.atEnd() && isWord(p.peekRune()) {
		if p.peek() == '[' {
			// Within a class of a glob other characters are ordinary too.
			n := strings.IndexFunc(p.src[p.pos:], func(r rune) bool { return r == ']' || unicode.IsSpace(r) })
			if n < 0 || p.src[p.pos+n] != ']' {
				return word{}, p.errorf(p.pos, `"[" has no closing "]"; quote the text if it is meant literally`)
			}
			p.pos += n
		}
		p.pos += utf8.RuneLen(p.peekRune())
	}
	return word{p.src[start:p.pos], start, false}, nil
}

// quoted reads a text in quotes of either kind.
func (p *parser) quoted() (string, error) {
	start, mark := p.pos, p.peek()
	var b strings.Builder
	for i := start + 1; i < len(p.src); i++ {
		switch c := p.src[i]; {
		case c == mark:
			p.pos = i + 1
			return b.String(), nil
		case c == '\\' && i+1 < len(p.src) && (p.src[i+1] == mark || p.src[i+1] == '\\'):
			i++
		}
		b.WriteByte(p.src[i])
	}
	return "", p.errorf(start, "the quote %c is not closed", mark)
}

// slashed reads a regular expression between slashes. It is kept as written:
// regular expressions understand \/ themselves.
func (p *parser) slashed() (string, error) {
	start := p.pos
	end := closingSlash(p.src, start)
	if end < 0 {
		return "", p.errorf(start, `the regular expression has no closing "/"`)
	}
	p.pos = end + 1
	if !p.atEnd() && isWord(p.peekRune()) {
		return "", p.errorf(p.pos, `expected a space or an operator after the regular expression, found %s; write \/ for a slash within it`, p.found())
	}
	return p.src[start+1 : end], nil
}

// slashedWord reads a regular expression between slashes where a path such as
// /srv is just as likely: it must be closed before the next space, and
// nothing of the same word may follow. Otherwise nothing is read.
func (p *parser) slashedWord() (string, bool) {
	if p.peek() != '/' {
		return "", false
	}
	start, end := p.pos, closingSlash(p.src, p.pos)
	if end < 0 || strings.ContainsFunc(p.src[start:end], unicode.IsSpace) {
		return "", false
	}
	if rest := p.src[end+1:]; rest != "" {
		if r, _ := utf8.DecodeRuneInString(rest); isWord(r) {
			return "", false
		}
	}
	if end == start+1 { // "//" is a path at best
		return "", false
	}
	p.pos = end + 1
	return p.src[start+1 : end], true
}

// closingSlash returns the place of the slash that closes the one at start,
// or -1.
func closingSlash(src string, start int) int {
	for i := start + 1; i < len(src); i++ {
		switch src[i] {
		case '\\':
			i++
		case '/':
			return i
		}
	}
	return -1
}

// bareRegexp reads a regular expression without quotes up to a space, a comma,
// || or && or a closing parenthesis, unless they stand within its own
// parentheses, brackets or braces (of which a space still ends it).
func (p *parser) bareRegexp() string {
	start, depth := p.pos, 0
	for !p.atEnd() {
		r := p.peekRune()
		switch {
		case unicode.IsSpace(r),
			depth == 0 && (r == ')' || p.prefix(",", "||", "&&") != ""):
			return p.src[start:p.pos]
		case strings.ContainsRune("([{", r):
			depth++
		case strings.ContainsRune(")]}", r):
			depth = max(depth-1, 0)
		case r == '\\' && p.pos+1 < len(p.src) && !unicode.IsSpace(rune(p.src[p.pos+1])):
			p.pos++ // what is escaped neither groups nor ends
		}
		p.pos += utf8.RuneLen(p.peekRune())
	}
	return p.src[start:p.pos]
}

// keyword returns the operator word at the parser's place as it is written,
// or "". The parser stays where it is.
func (p *parser) keyword() string {
	rest := p.src[p.pos:]
	end := strings.IndexFunc(rest, func(r rune) bool { return !isWord(r) })
	if end < 0 {
		end = len(rest)
	}
	if isKeyword(rest[:end]) {
		return rest[:end]
	}
	return ""
}

func isKeyword(s string) bool {
	return slices.ContainsFunc([]string{"or", "and", "not"}, func(k string) bool { return strings.EqualFold(s, k) })
}

// isWord reports whether an unquoted word may hold the character.
func isWord(r rune) bool { return !unicode.IsSpace(r) && !strings.ContainsRune(`(),!=<>&|'"`, r) }

// prefix returns the first of the operators that stands at the parser's place,
// or "". The parser stays where it is.
func (p *parser) prefix(operators ...string) string {
	for _, o := range operators {
		if strings.HasPrefix(p.src[p.pos:], o) {
			return o
		}
	}
	return ""
}

func (p *parser) skipSpace() {
	for !p.atEnd() && unicode.IsSpace(p.peekRune()) {
		p.pos += utf8.RuneLen(p.peekRune())
	}
}

func (p *parser) atEnd() bool { return p.pos >= len(p.src) }

// peek returns the next byte. The parser must not be at the end.
func (p *parser) peek() byte { return p.src[p.pos] }

func (p *parser) peekRune() rune {
	r, _ := utf8.DecodeRuneInString(p.src[p.pos:])
	return r
}

// found describes what stands at the parser's place, for error messages.
func (p *parser) found() string {
	if p.atEnd() {
		return "the end"
	}
	if operator := p.prefix("!=", "!~", "=~", "<=", ">=", "||", "&&"); operator != "" {
		return fmt.Sprintf("%q", operator)
	}
	return fmt.Sprintf("%q", string(p.peekRune()))
}
