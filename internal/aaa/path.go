package aaa

import (
	"bytes"
	"encoding/json"
	"math"
	"math/big"
	"strconv"
	"strings"

	"github.com/musterfleet/muster"
)

// MaxPath is the longest dotted path in bytes.
const MaxPath = 256

// A path leads to values within a JSON document: "argv.0", "env.PATH",
// "argv.*". A '*' is every element of an array or object. A backslash takes the
// meaning from a dot, a star or a backslash: "labels.a\.b".
type path []segment

type segment struct {
	key string
	all bool // '*'
}

func parsePath(text string) (path, error) {
	if text == "" || len(text) > MaxPath {
		return nil, muster.Errorf(muster.Invalid, "path %q has %d bytes; expected 1 to %d", clip(text, 80), len(text), MaxPath)
	}
	var p path
	var key strings.Builder
	escaped := false // whether the segment contains an escape
	end := func() error {
		if key.Len() == 0 {
			return muster.Errorf(muster.Invalid, "path %q has an empty part between dots", text)
		}
		p = append(p, segment{key: key.String(), all: key.String() == "*" && !escaped})
		key.Reset()
		escaped = false
		return nil
	}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && i+1 < len(text) && strings.IndexByte(`.*\`, text[i+1]) >= 0:
			i++
			escaped = true
			key.WriteByte(text[i])
		case c == '\\':
			return nil, muster.Errorf(muster.Invalid, `path %q: a backslash stands before '.', '*' or '\' only`, text)
		case c == '.':
			if err := end(); err != nil {
				return nil, err
			}
		default:
			key.WriteByte(c)
		}
	}
	return p, end()
}

// decodeAny decodes a document with numbers as they are written. The zero
// value of ok means that it is not a document whose values all readers agree on.
func decodeAny(data []byte) (value any, ok bool) {
	if len(data) == 0 || checkJSON(data, nil) != nil {
		return nil, false
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	return value, dec.Decode(&value) == nil
}

// A finding is what a path leads to in one document.
type finding struct {
	texts []string // the scalar values
	// missing: some branch ended before the path did.
	// empty: a '*' met an array or object without elements.
	// unclear: a value is no scalar, or a key occurs in another case too, which
	// some JSON readers take for the same key.
	missing, empty, unclear bool
}

func (p path) find(value any, f *finding) {
	if len(p) == 0 {
		if text, ok := scalarText(value); ok {
			f.texts = append(f.texts, text)
		} else {
			f.unclear = true
		}
		return
	}
	switch v := value.(type) {
	case map[string]any:
		p.findInObject(v, f)
	case []any:
		p.findInArray(v, f)
	default:
		f.missing = true
	}
}

func (p path) findInObject(object map[string]any, f *finding) {
	if p[0].all {
		f.empty = f.empty || len(object) == 0
		for _, inner := range object {
			p[1:].find(inner, f)
		}
		return
	}
	for key := range object {
		if key != p[0].key && strings.EqualFold(key, p[0].key) {
			f.unclear = true
		}
	}
	inner, ok := object[p[0].key]
	if !ok {
		f.missing = true
		return
	}
	p[1:].find(inner, f)
}

func (p path) findInArray(array []any, f *finding) {
	if p[0].all {
		f.empty = f.empty || len(array) == 0
		for _, inner := range array {
			p[1:].find(inner, f)
		}
		return
	}
	i, err := strconv.Atoi(p[0].key)
	if err != nil || i < 0 || i >= len(array) {
		f.missing = true
		return
	}
	p[1:].find(array[i], f)
}

// scalarText returns the text that patterns are compared with: a string's
// content, true, false, null, or a number in its shortest usual form.
func scalarText(value any) (string, bool) {
	switch v := value.(type) {
	case string:
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case nil:
		return "null", true
	case json.Number:
		return canonicalNumber(string(v)), true
	}
	return "", false
}

// canonicalNumber gives equal numbers one spelling, so that 1e3 does not slip
// by a rule about 1000. Integers are kept to the last digit.
func canonicalNumber(text string) string {
	if !strings.ContainsAny(text, ".eE") {
		if text == "-0" {
			return "0"
		}
		return text
	}
	n, err := strconv.ParseFloat(text, 64)
	switch {
	case err != nil:
		return text // beyond any float
	case n == 0:
		return "0" // also -0.0
	case n == math.Trunc(n) && math.Abs(n) < 1<<53:
		return strconv.FormatInt(int64(n), 10)
	case len(text) <= 64 && math.Abs(n) < 1e30: // limits, since this is exact and therefore slow
		if exact, ok := new(big.Rat).SetString(text); ok && exact.IsInt() {
			return exact.Num().String()
		}
	}
	return strconv.FormatFloat(n, 'g', -1, 64)
}

// Redact returns the document with the values that the paths lead to replaced
// by "REDACTED". Paths are dotted as in a policy's input ('*' is every
// element); keys are compared without regard to case, since some readers of
// JSON do so. A document that cannot be read becomes null: what is secret in
// it is not known. Paths that lead nowhere are ignored.
func Redact(document json.RawMessage, paths []string) (json.RawMessage, error) {
	value, ok := decodeAny(document)
	if !ok {
		return json.RawMessage("null"), nil
	}
	for _, text := range paths {
		p, err := parsePath(text)
		if err != nil {
			return nil, err
		}
		value = p.redact(value)
	}
	data, err := marshalPlain(value)
	if err != nil {
		return nil, muster.Errorf(muster.Internal, "encode redacted input: %w", err)
	}
	return data, nil
}

func (p path) redact(value any) any {
	if len(p) == 0 {
		return redacted
	}
	switch v := value.(type) {
	case map[string]any:
		for key, inner := range v {
			if p[0].all || strings.EqualFold(key, p[0].key) {
				v[key] = p[1:].redact(inner)
			}
		}
	case []any:
		for i, inner := range v {
			if p[0].all || p[0].key == strconv.Itoa(i) {
				v[i] = p[1:].redact(inner)
			}
		}
	}
	return value
}
