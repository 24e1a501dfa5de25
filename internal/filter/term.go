package filter

import (
	"cmp"
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
)

// A scope says where the value of a key is looked for.
type scope int

const (
	anywhere scope = iota // labels first, then facts
	labels
	facts
)

// An operator compares a value with what the expression says. The negative
// ones of the language are a flag of the comparison: it makes them true
// exactly when the positive ones are false, also for missing keys and lists.
type operator string

const (
	exists       operator = "=*"
	equal        operator = "="
	matches      operator = "=~"
	less         operator = "<"
	lessEqual    operator = "<="
	greater      operator = ">"
	greaterEqual operator = ">="
)

// A comparison is a term about a label or fact.
type comparison struct {
	key     string // as written
	scope   scope
	path    string // the key without its scope
	op      operator
	negated bool
	value   string  // for equal and the orderings
	pattern pattern // for matches
}

// newComparison splits the key into scope and path. It returns false when
// nothing is left of it.
func newComparison(key string) (comparison, bool) {
	c := comparison{key: key, path: key}
	if path, ok := strings.CutPrefix(key, "label."); ok {
		c.scope, c.path = labels, path
	} else if path, ok := strings.CutPrefix(key, "fact."); ok {
		c.scope, c.path = facts, path
	}
	return c, c.path != ""
}

func (c *comparison) match(s *Subject) bool {
	value, found := c.lookup(s)
	return (found && c.holds(value)) != c.negated
}

func (c *comparison) lookup(s *Subject) (any, bool) {
	if c.scope != facts {
		if v, ok := s.Labels[c.path]; ok {
			return v, true
		}
	}
	if c.scope == labels {
		return nil, false
	}
	v, ok := walk(s.Facts, c.path)
	return v, ok && v != nil
}

// walk follows a dotted path through maps and lists. Keys may hold dots
// themselves ("net.ipv4.ip_forward"), so every split is tried, the longest
// key first. A part of the tree is visited once at most.
func walk(tree any, path string) (any, bool) {
	switch t := tree.(type) {
	case map[string]any:
		if v, ok := t[path]; ok {
			return v, true
		}
		for dot := strings.LastIndexByte(path, '.'); dot >= 0; dot = strings.LastIndexByte(path[:dot], '.') {
			if inner, ok := t[path[:dot]]; ok {
				if v, ok := walk(inner, path[dot+1:]); ok {
					return v, true
				}
			}
		}
	case []any:
		index, rest, more := strings.Cut(path, ".")
		i, err := strconv.Atoi(index)
		if err != nil || i < 0 || i >= len(t) {
			return nil, false
		}
		if more {
			return walk(t[i], rest)
		}
		return t[i], true
	}
	return nil, false
}

// holds reports whether the value, or one element of a list, fulfils the
// comparison before negation.
func (c *comparison) holds(value any) bool {
	if c.op == exists {
		return true
	}
	list, ok := value.([]any)
	if !ok {
		return c.holdsScalar(value)
	}
	for _, element := range list {
		if c.holdsScalar(element) {
			return true
		}
	}
	return false
}

func (c *comparison) holdsScalar(value any) bool {
	text, isNumber, ok := scalar(value)
	if !ok {
		return false
	}
	switch c.op {
	case matches:
		return c.pattern.re.MatchString(text)
	case equal:
		if text == c.value {
			return true
		}
		return isNumber && number.MatchString(c.value) && compareNumbers(text, c.value) == 0
	}
	if _, isBool := value.(bool); isBool {
		return false // truth has no order
	}
	order := compare(text, c.value, isNumber)
	switch c.op {
	case less:
		return order < 0
	case lessEqual:
		return order <= 0
	case greater:
		return order > 0
	default:
		return order >= 0
	}
}

// scalar returns a string, boolean or number as text, and whether it is a
// number. It returns false for everything else.
func scalar(value any) (text string, isNumber, ok bool) {
	switch v := value.(type) {
	case string:
		return v, false, true
	case bool:
		return strconv.FormatBool(v), false, true
	case float64:
		// Without an exponent, as people write sizes in an expression.
		return strconv.FormatFloat(v, 'f', -1, 64), true, true
	case int64:
		return strconv.FormatInt(v, 10), true, true
	case int:
		return strconv.Itoa(v), true, true
	case uint64:
		return strconv.FormatUint(v, 10), true, true
	case json.Number:
		return v.String(), true, true
	}
	return "", false, false
}

// number is narrower than strconv.ParseFloat, which also takes "inf", "nan"
// and hexadecimal: those are more likely to be words.
var number = regexp.MustCompile(`\A[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?\z`)

// compareNumbers orders texts that number matches: integers exactly, others as
// floating point, where what is out of range counts as infinite.
func compareNumbers(a, b string) int {
	i, errA := strconv.ParseInt(a, 10, 64)
	j, errB := strconv.ParseInt(b, 10, 64)
	if errA == nil && errB == nil {
		return cmp.Compare(i, j)
	}
	x, _ := strconv.ParseFloat(a, 64)
	y, _ := strconv.ParseFloat(b, 64)
	return cmp.Compare(x, y)
}

// compare orders a value of a node and a value of the expression, below, at
// or above 0. Numbers are compared by value. Text with dots on both sides is
// more likely a pair of versions than of decimal fractions, so 1.10 is above
// 1.9 unless the fact itself is a number.
func compare(got, want string, gotNumber bool) int {
	if number.MatchString(got) && number.MatchString(want) {
		versions := strings.Contains(got, ".") && strings.Contains(want, ".")
		if gotNumber || !versions {
			return compareNumbers(got, want)
		}
	}
	return natural(got, want)
}

// natural orders texts byte by byte, but runs of digits by their value, of any
// length. A text that continues another is above it.
func natural(a, b string) int {
	for a != "" && b != "" {
		if isDigit(a[0]) && isDigit(b[0]) {
			var x, y string
			x, a = cutDigits(a)
			y, b = cutDigits(b)
			if len(x) != len(y) {
				return len(x) - len(y)
			}
			if order := strings.Compare(x, y); order != 0 {
				return order
			}
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

// cutDigits splits the leading digits off and drops their leading zeros.
func cutDigits(s string) (digits, rest string) {
	n := 0
	for n < len(s) && isDigit(s[n]) {
		n++
	}
	return strings.TrimLeft(s[:n], "0"), s[n:]
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func (c *comparison) write(b *strings.Builder, _ binding) {
	b.WriteString(bareOrQuoted(c.key))
	if c.negated {
		b.WriteByte('!')
	}
	switch {
	case c.op == exists:
		b.WriteString("=*")
	case c.op == matches && c.pattern.glob:
		b.WriteString("=" + c.pattern.text)
	case c.op == matches && c.negated:
		b.WriteString("~" + regexpText(c.pattern.text))
	case c.op == matches:
		b.WriteString("=~" + regexpText(c.pattern.text))
	default:
		b.WriteString(string(c.op) + bareOrQuoted(c.value))
	}
}

// regexpText writes a regular expression between slashes, or quoted when it
// holds what would end that form early.
func regexpText(source string) string {
	if strings.Contains(source, "/") || strings.HasSuffix(source, `\`) {
		return quote(source)
	}
	return "/" + source + "/"
}

// bareOrQuoted writes a key or value such that it is read back literally.
func bareOrQuoted(s string) string {
	bare := s != "" && !isKeyword(s) && !isGlob(s) && s[0] != '/' && s[0] != '~'
	for _, r := range s {
		bare = bare && isWord(r)
	}
	if bare {
		return s
	}
	return quote(s)
}

func quote(s string) string {
	return `"` + strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), `"`, `\"`) + `"`
}
