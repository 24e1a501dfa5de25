package constellation

import (
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/musterfleet/muster"
)

// The files are JSON, but of two forms only: an object of texts, and arrays of
// texts. What reads and writes just them is a fraction of package encoding/json,
// which the small agent has no room for, and is stricter: no key may be repeated
// or spelt otherwise.

// A value is a text, or an array of texts.
type value struct {
	texts []string
	array bool
}

// text returns the one text that a value has to be.
func (v value) text(name string) (string, error) {
	if v.array {
		return "", muster.Errorf(muster.Invalid, "%s: want a text", name)
	}
	return v.texts[0], nil
}

// object returns the values of a JSON object that has exactly the named keys, of
// which one may be missing.
func object(data []byte, optional string, names ...string) (map[string]value, error) {
	if len(data) > MaxFile {
		return nil, muster.Errorf(muster.Invalid, "more than %d bytes", MaxFile)
	}
	s := &scanner{rest: string(data)}
	if !s.take('{') {
		return nil, muster.Errorf(muster.Invalid, "not a JSON object")
	}
	fields := map[string]value{}
	for more := !s.take('}'); more && !s.bad; more = s.more('}') {
		name := s.text()
		s.want(':')
		v := s.value(name)
		if _, again := fields[name]; !s.bad && (again || !contains(names, name)) {
			return nil, muster.Errorf(muster.Invalid, "unknown or repeated key %q", name).WithHint("the keys are %q", names)
		}
		fields[name] = v
	}
	switch {
	case s.bad && s.odd != "":
		return nil, muster.Errorf(muster.Invalid, "%s: want a text", s.odd)
	case s.bad:
		return nil, muster.Errorf(muster.Invalid, "not JSON, near byte %d", len(data)-len(s.rest))
	case !s.end():
		return nil, muster.Errorf(muster.Invalid, "something stands after the JSON object")
	}
	for _, name := range names {
		if _, there := fields[name]; !there && name != optional {
			return nil, muster.Errorf(muster.Invalid, "the key %q is missing", name)
		}
	}
	return fields, nil
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// A scanner takes JSON apart. After the first mistake it is bad.
type scanner struct {
	rest string
	bad  bool
	odd  string // the key of a value that is neither text nor array
}

func (s *scanner) space() { s.rest = strings.TrimLeft(s.rest, " \t\r\n") }

func (s *scanner) end() bool { s.space(); return s.rest == "" }

// take takes a character if it comes next.
func (s *scanner) take(c byte) bool {
	s.space()
	if s.rest == "" || s.rest[0] != c {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

func (s *scanner) want(c byte) { s.bad = !s.take(c) || s.bad }

// more reports whether another element follows, and takes what is between.
func (s *scanner) more(end byte) bool {
	if s.take(end) {
		return false
	}
	s.want(',')
	return !s.bad
}

func (s *scanner) value(name string) value {
	if !s.take('[') {
		s.space()
		if !s.bad && s.rest != "" && s.rest[0] != '"' {
			s.odd = name
		}
		return value{texts: []string{s.text()}}
	}
	v := value{array: true}
	for more := !s.take(']'); more && !s.bad; more = s.more(']') {
		v.texts = append(v.texts, s.text())
	}
	return v
}

// text reads a text. What is not UTF-8 in it is a mistake.
func (s *scanner) text() string {
	s.want('"')
	var b strings.Builder
	for !s.bad {
		r, size := utf8.DecodeRuneInString(s.rest)
		switch {
		case s.rest == "" || r < ' ' || r == utf8.RuneError && size == 1:
			s.bad = true
		case r == '"':
			s.rest = s.rest[1:]
			return b.String()
		case r == '\\':
			b.WriteRune(s.escape())
		default:
			b.WriteString(s.rest[:size])
			s.rest = s.rest[size:]
		}
	}
	return ""
}

// escape reads what a backslash begins.
func (s *scanner) escape() rune {
	if len(s.rest) < 2 {
		s.bad = true
		return 0
	}
	c := s.rest[1]
	if c == 'u' {
		r := s.unit()
		if utf16.IsSurrogate(r) {
			r = utf16.DecodeRune(r, s.unit())
			s.bad = s.bad || r == utf8.RuneError
		}
		return r
	}
	s.rest = s.rest[2:]
	i := strings.IndexByte(`"\/bfnrt`, c)
	if i < 0 {
		s.bad = true
		return 0
	}
	return rune("\"\\/\b\f\n\r\t"[i])
}

// unit reads \uXXXX.
func (s *scanner) unit() rune {
	if len(s.rest) < 6 || s.rest[0] != '\\' || s.rest[1] != 'u' {
		s.bad = true
		return 0
	}
	n, err := strconv.ParseUint(s.rest[2:6], 16, 16)
	s.bad = s.bad || err != nil
	s.rest = s.rest[6:]
	return rune(n)
}

// quote writes a text.
func quote(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ':
			b.WriteString(`\u00` + string("0123456789abcdef"[r>>4]) + string("0123456789abcdef"[r&15]))
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
