package filter

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
)

// A pattern is a compiled glob or regular expression with its source.
type pattern struct {
	text string
	glob bool
	re   *regexp.Regexp
}

// isGlob reports whether an unquoted word is a glob.
func isGlob(word string) bool { return strings.ContainsAny(word, "*?[") }

// globExpression translates a glob into a regular expression that matches
// whole texts. Unlike in path.Match, * also matches slashes: values such as
// mount points and URLs hold them, and names do not.
func globExpression(glob string) (string, error) {
	var b strings.Builder
	b.WriteString(`(?s)\A`)
	for rest := glob; rest != ""; {
		switch rest[0] {
		case '*':
			b.WriteString(".*")
			rest = rest[1:]
		case '?':
			b.WriteByte('.')
			rest = rest[1:]
		case '[':
			class, after, found := strings.Cut(rest[1:], "]")
			if !found {
				return "", errors.New(`"[" has no closing "]"`)
			}
			expression, err := classExpression(class)
			if err != nil {
				return "", err
			}
			b.WriteString(expression)
			rest = after
		default:
			n := strings.IndexAny(rest, "*?[")
			if n < 0 {
				n = len(rest)
			}
			b.WriteString(regexp.QuoteMeta(rest[:n]))
			rest = rest[n:]
		}
	}
	b.WriteString(`\z`)
	return b.String(), nil
}

// classExpression translates what stands between the brackets of a glob.
func classExpression(class string) (string, error) {
	body, negated := strings.CutPrefix(class, "!")
	if !negated {
		body, negated = strings.CutPrefix(class, "^")
	}
	if body == "" {
		return "", fmt.Errorf("%q holds no characters", "["+class+"]")
	}
	var b strings.Builder
	b.WriteByte('[')
	if negated {
		b.WriteByte('^')
	}
	for _, r := range body {
		// Ranges keep their meaning; whatever else regular expressions give
		// one to does not.
		if strings.ContainsRune(`\[^&:`, r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	b.WriteByte(']')
	return b.String(), nil
}

// regexpCost estimates the number of instructions that a regular expression
// compiles to. Repetitions multiply: a few bytes can ask for megabytes.
func regexpCost(re *syntax.Regexp) int {
	cost := 1 + len(re.Rune)/8
	if re.Op == syntax.OpLiteral {
		cost = len(re.Rune)
	}
	for _, sub := range re.Sub {
		cost += regexpCost(sub)
	}
	if re.Op == syntax.OpRepeat {
		cost *= max(re.Min, re.Max, 1)
	}
	return min(cost, MaxRegexp+1)
}

// compile compiles an expression within a budget of instructions and returns
// what it cost. The error does not repeat the expression.
func compile(expression string, budget int) (*regexp.Regexp, int, error) {
	tree, err := syntax.Parse(expression, syntax.Perl)
	if err != nil {
		if e, ok := errors.AsType[*syntax.Error](err); ok {
			return nil, 0, fmt.Errorf("%s: %q", e.Code, clip(e.Expr))
		}
		return nil, 0, err
	}
	cost := regexpCost(tree)
	if cost > budget {
		return nil, 0, fmt.Errorf("too large; all regular expressions together may have about %d instructions", MaxRegexp)
	}
	re, err := regexp.Compile(expression)
	return re, cost, err
}

// clip keeps long input from filling an error message.
func clip(s string) string {
	if r := []rune(s); len(r) > 40 {
		return string(r[:40]) + "..."
	}
	return s
}
