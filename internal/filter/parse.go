package filter

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/musterfleet/muster"
)

// Parse reads an expression. An error is a *SyntaxError and of kind Invalid.
// An empty expression is an error too, lest everything or nothing be selected
// by accident: "all" selects every node.
func Parse(expr string) (*Filter, error) {
	p := &parser{src: expr, budget: MaxRegexp}
	if err := p.checkText(); err != nil {
		return nil, err
	}
	p.skipSpace()
	if p.atEnd() {
		return nil, &SyntaxError{expr, 1, `the expression is empty; "all" selects every node`}
	}
	root, err := p.or()
	if err != nil {
		return nil, err
	}
	if !p.atEnd() { // or stops at the end or at a parenthesis
		return nil, p.errorf(p.pos, `")" closes nothing`)
	}
	f := &Filter{root}
	// A filter is handed on in canonical form, which may be the longer one.
	if n := len(f.String()); n > MaxExpression {
		return nil, p.errorf(0, "the expression has %d bytes in canonical form; at most %d are allowed", n, MaxExpression)
	}
	return f, nil
}

// A parser descends recursively through the text; there is no separate lexer
// because what a character means depends on where it stands: a slash begins a
// regular expression in "/a/" and is part of the value in "mount=/srv".
type parser struct {
	src    string
	pos    int // of the next byte
	depth  int // of parentheses and nots around pos
	budget int // left for regular expressions
}

func (p *parser) errorf(pos int, format string, args ...any) error {
	column := utf8.RuneCountInString(p.src[:pos]) + 1
	return &SyntaxError{p.src, column, fmt.Sprintf(format, args...)}
}

// checkText refuses what no part of the language allows.
func (p *parser) checkText() error {
	if len(p.src) > MaxExpression {
		return p.errorf(MaxExpression, "the expression has %d bytes; at most %d are allowed", len(p.src), MaxExpression)
	}
	for i, r := range p.src {
		if r == utf8.RuneError && !strings.HasPrefix(p.src[i:], string(utf8.RuneError)) {
			return p.errorf(i, "the expression is not valid UTF-8: byte %#02x", p.src[i])
		}
		if unicode.IsControl(r) && !unicode.IsSpace(r) {
			return p.errorf(i, "control character %q is not allowed", r)
		}
	}
	return nil
}

func (p *parser) or() (node, error) {
	var terms disjunction
	for {
		n, err := p.and()
		if err != nil {
			return nil, err
		}
		if inner, ok := n.(disjunction); ok {
			terms = append(terms, inner...)
		} else {
			terms = append(terms, n)
		}
		if operator := p.orOperator(); operator != "" {
			p.pos += len(operator)
			continue
		}
		if len(terms) == 1 {
			return terms[0], nil
		}
		return terms, nil
	}
}

// and returns with the parser at the end, at a ")" or at an or-operator.
func (p *parser) and() (node, error) {
	var terms conjunction
	for {
		n, err := p.factor()
		if err != nil {
			return nil, err
		}
		if inner, ok := n.(conjunction); ok {
			terms = append(terms, inner...)
		} else {
			terms = append(terms, n)
		}
		end := p.pos
		p.skipSpace()
		if operator := p.andOperator(); operator != "" {
			p.pos += len(operator)
			continue
		}
		if p.atEnd() || p.peek() == ')' || p.orOperator() != "" {
			break
		}
		// Terms may stand side by side, but a missing operator or quote should
		// not silently split one: web(1), "a"b.
		if p.pos == end && p.src[end-1] != ')' {
			return nil, p.errorf(p.pos, "expected a space or an operator before %s", p.found())
		}
	}
	if len(terms) == 1 {
		return terms[0], nil
	}
	return terms, nil
}

func (p *parser) orOperator() string {
	if word := p.keyword(); strings.EqualFold(word, "or") {
		return word
	}
	return p.prefix(",", "||")
}

func (p *parser) andOperator() string {
	if word := p.keyword(); strings.EqualFold(word, "and") {
		return word
	}
	return p.prefix("&&")
}

// factor reads a term, a negation or a group.
func (p *parser) factor() (node, error) {
	p.skipSpace()
	start := p.pos
	switch word := p.keyword(); {
	case strings.EqualFold(word, "not"):
		p.pos += len(word)
		return p.negation(start)
	case word != "":
		return nil, p.errorf(p.pos, "expected a node or KEY=VALUE, found %q; quote it if a node has that name", word)
	case p.atEnd():
		return nil, p.errorf(p.pos, "expected a node or KEY=VALUE, found the end")
	}
	switch c := p.peek(); {
	case c == '!':
		p.pos++
		return p.negation(start)
	case c == '(':
		return p.group()
	case c == '/':
		return p.identityRegexp()
	case c == '"', c == '\'', isWord(p.peekRune()):
		return p.term()
	}
	return nil, p.errorf(p.pos, "expected a node or KEY=VALUE, found %s", p.found())
}

func (p *parser) negation(start int) (node, error) {
	if err := p.enter(start); err != nil {
		return nil, err
	}
	n, err := p.factor()
	p.depth--
	return negation{n}, err
}

func (p *parser) group() (node, error) {
	open := p.pos
	if err := p.enter(open); err != nil {
		return nil, err
	}
	p.pos++
	n, err := p.or()
	if err != nil {
		return nil, err
	}
	if p.atEnd() {
		opened := utf8.RuneCountInString(p.src[:open]) + 1
		return nil, p.errorf(p.pos, `expected ")" for the "(" in column %d`, opened)
	}
	p.pos++ // or stops at the end or at a parenthesis
	p.depth--
	return n, nil
}

func (p *parser) enter(start int) error {
	if p.depth++; p.depth > MaxNesting {
		return p.errorf(start, `"(" and "not" are nested more than %d deep`, MaxNesting)
	}
	return nil
}

func (p *parser) identityRegexp() (node, error) {
	start := p.pos
	source, err := p.slashed()
	if err != nil {
		return nil, err
	}
	pattern, err := p.regexp(start, source)
	return identities{pattern}, err
}

// term reads an identity, or a key with operator and value.
func (p *parser) term() (node, error) {
	w, err := p.word()
	if err != nil {
		return nil, err
	}
	end := p.pos
	p.skipSpace()
	operator := p.prefix("!=", "!~", "=~", "<=", ">=", "=", "<", ">")
	if operator == "" {
		p.pos = end
		return p.identity(w)
	}
	c, ok := newComparison(w.text)
	switch {
	case !ok:
		return nil, p.errorf(w.start, "expected a key after %q", w.text)
	case w.glob():
		return nil, p.errorf(w.start, "key %q holds a wildcard; quote it if it is meant literally", clip(w.text))
	}
	p.pos += len(operator)
	return p.comparison(c, operator)
}

func (p *parser) identity(w word) (node, error) {
	switch {
	case !w.quoted && (w.text == "all" || w.text == "*"):
		return everyone{}, nil
	case w.glob():
		return p.identityGlob(w)
	}
	if !w.quoted {
		if err := p.checkName(w.start, w.text); err != nil {
			return nil, err
		}
	}
	if err := muster.NodeName(w.text).Validate(); err != nil {
		return nil, p.errorf(w.start, "%s", err)
	}
	return identity(w.text), nil
}

func (p *parser) identityGlob(w word) (node, error) {
	pattern, err := p.glob(w)
	if err != nil {
		return nil, err
	}
	inClass := false
	for i, r := range w.text {
		switch {
		case r == '[', r == ']':
			inClass = r == '['
		case !inClass && r != '*' && r != '?':
			if err := p.checkName(w.start+i, string(r)); err != nil {
				return nil, err
			}
		}
	}
	return identities{pattern}, nil
}

// checkName points at the first character that no node name holds: such a
// term would never match, and is most likely a slip.
func (p *parser) checkName(pos int, text string) error {
	for i, r := range text {
		if r != '.' && muster.NodeName(string(r)).Validate() != nil {
			return p.errorf(pos+i, "character %q is not allowed in a node name; expected letters, digits, '-', '_' and '.', or KEY=VALUE", r)
		}
	}
	return nil
}

// comparison reads the value after the operator.
func (p *parser) comparison(c comparison, operator string) (node, error) {
	p.skipSpace()
	start := p.pos
	if word := p.keyword(); word != "" {
		return nil, p.errorf(start, "expected a value after %q, found %q; quote it if it is the value", operator, word)
	}
	if p.atEnd() {
		return nil, p.errorf(start, "expected a value after %q", operator)
	}
	var err error
	switch operator {
	case "=~", "!~":
		c.op, c.negated = matches, operator == "!~"
		c.pattern, err = p.regexpValue(operator)
	case "=", "!=":
		c.negated = operator == "!="
		err = p.equalValue(&c, operator)
	default:
		c.op = operatorOf(operator)
		c.value, err = p.orderedValue(operator)
	}
	return &c, err
}

func operatorOf(s string) operator {
	return map[string]operator{"<": less, "<=": lessEqual, ">": greater, ">=": greaterEqual}[s]
}

// equalValue reads what follows = or !=: a literal, a glob, or a regular
// expression between slashes.
func (p *parser) equalValue(c *comparison, operator string) error {
	start := p.pos
	if source, ok := p.slashedWord(); ok {
		c.op = matches
		pattern, err := p.regexp(start, source)
		c.pattern = pattern
		return err
	}
	w, err := p.value(operator)
	if err != nil {
		return err
	}
	switch {
	case !w.quoted && w.text == "*":
		c.op = exists
	case w.glob():
		c.op = matches
		c.pattern, err = p.glob(w)
	default:
		c.op, c.value = equal, w.text
	}
	return err
}

func (p *parser) orderedValue(operator string) (string, error) {
	w, err := p.value(operator)
	if err == nil && w.glob() {
		err = p.errorf(w.start, "a wildcard has no order; expected a number or text after %q", operator)
	}
	return w.text, err
}

func (p *parser) regexpValue(operator string) (pattern, error) {
	start := p.pos
	var source string
	var err error
	switch p.peek() {
	case '/':
		source, err = p.slashed()
	case '"', '\'':
		source, err = p.quoted()
	default:
		source = p.bareRegexp()
		if source == "" {
			err = p.errorf(start, "expected a regular expression after %q, found %s", operator, p.found())
		}
	}
	if err != nil {
		return pattern{}, err
	}
	return p.regexp(start, source)
}

func (p *parser) regexp(start int, source string) (pattern, error) {
	if source == "" {
		return pattern{}, p.errorf(start, "the regular expression is empty")
	}
	return p.compile(start, pattern{text: source}, source)
}

func (p *parser) glob(w word) (pattern, error) {
	expression, err := globExpression(w.text)
	if err != nil {
		return pattern{}, p.errorf(w.start, "glob %q: %s", clip(w.text), err)
	}
	return p.compile(w.start, pattern{text: w.text, glob: true}, expression)
}

func (p *parser) compile(start int, pt pattern, expression string) (pattern, error) {
	re, cost, err := compile(expression, p.budget)
	if err != nil {
		what := "regular expression"
		if pt.glob {
			what = "glob"
		}
		return pt, p.errorf(start, "%s %q: %s", what, clip(pt.text), err)
	}
	p.budget -= cost
	pt.re = re
	return pt, nil
}
