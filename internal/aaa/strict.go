package aaa

import (
	"bytes"
	"encoding"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/musterfleet/muster"
)

// maxDepth is how deep arrays and objects may be nested.
const maxDepth = 64

// A shape says which fields the objects of a JSON document may have. A nil
// shape allows any.
//
// encoding/json takes "ID" for "id", keeps the last of two equal keys and
// ignores keys that it does not know. Each of these lets two readers of one
// signed document see two different commands.
type shape struct {
	fields map[string]*shape // of an object
	names  string            // of the fields, for people
	elem   *shape            // of an array
}

func shapeOf[T any]() *shape { return shapeOfType(reflect.TypeFor[T]()) }

func shapeOfType(t reflect.Type) *shape {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	p := reflect.PointerTo(t)
	if p.Implements(reflect.TypeFor[json.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return nil
	}
	switch t.Kind() {
	case reflect.Slice, reflect.Array:
		return &shape{elem: shapeOfType(t.Elem())}
	case reflect.Struct:
		s := &shape{fields: map[string]*shape{}}
		s.addFields(t)
		names := make([]string, 0, len(s.fields))
		for name := range s.fields {
			names = append(names, name)
		}
		slices.Sort(names)
		s.names = strings.Join(names, ", ")
		return s
	}
	return nil
}

func (s *shape) addFields(t reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			s.addFields(f.Type)
		case f.IsExported() && name != "-" && name != "":
			s.fields[name] = shapeOfType(f.Type)
		}
	}
}

// decodeStrict decodes one JSON document that has the shape and nothing else.
func decodeStrict(data []byte, s *shape, into any) error {
	if err := checkJSON(data, s); err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return muster.Errorf(muster.Invalid, "%w", err)
	}
	return nil
}

// checkJSON reports what is wrong with a JSON document: syntax, trailing data,
// invalid UTF-8, repeated keys at any depth, keys that the shape does not have,
// nesting beyond maxDepth. It takes time in proportion to the data.
func checkJSON(data []byte, s *shape) error { return checkNested(data, s, 0) }

// checkNested is checkJSON for a document that will stand at some depth within
// another one.
func checkNested(data []byte, s *shape, depth int) error {
	if !utf8.Valid(data) {
		return muster.Errorf(muster.Invalid, "JSON is not valid UTF-8")
	}
	var whole json.RawMessage // the cheapest target: it is the syntax error that is wanted
	if err := json.Unmarshal(data, &whole); err != nil {
		return muster.Errorf(muster.Invalid, "JSON: %w", err)
	}
	w := walker{data: data}
	return w.value(s, depth)
}

// A walker goes through a document that is known to be valid JSON.
type walker struct {
	data []byte
	pos  int
}

// next returns the next byte that is not a space.
func (w *walker) next() byte {
	for w.pos < len(w.data) && strings.IndexByte(" \t\r\n", w.data[w.pos]) >= 0 {
		w.pos++
	}
	if w.pos == len(w.data) {
		return 0
	}
	return w.data[w.pos]
}

func (w *walker) value(s *shape, depth int) error {
	c := w.next()
	if (c == '{' || c == '[') && depth == maxDepth {
		return muster.Errorf(muster.Invalid, "JSON is nested deeper than %d", maxDepth)
	}
	switch c {
	case '{':
		return w.object(s, depth)
	case '[':
		return w.array(s, depth)
	case '"':
		w.text()
	default:
		for w.pos < len(w.data) && strings.IndexByte(" \t\r\n,]}", w.data[w.pos]) < 0 {
			w.pos++
		}
	}
	return nil
}

func (w *walker) object(s *shape, depth int) error {
	seen := map[string]struct{}{}
	w.pos++
	for w.next() != '}' {
		if w.data[w.pos] == ',' {
			w.pos++
			continue
		}
		at := w.pos + 1
		key := w.key()
		if _, twice := seen[key]; twice {
			return muster.Errorf(muster.Invalid, "JSON key %q at byte %d is there twice", clip(key, 80), at)
		}
		seen[key] = struct{}{}
		var inner *shape
		if s != nil && s.fields != nil {
			var known bool
			if inner, known = s.fields[key]; !known {
				return muster.Errorf(muster.Invalid, "JSON key %q at byte %d is unknown; expected one of %s", clip(key, 80), at, s.names)
			}
		}
		w.next()
		w.pos++ // the colon
		if err := w.value(inner, depth+1); err != nil {
			return err
		}
	}
	w.pos++
	return nil
}

func (w *walker) array(s *shape, depth int) error {
	var inner *shape
	if s != nil {
		inner = s.elem
	}
	w.pos++
	for w.next() != ']' {
		if w.data[w.pos] == ',' {
			w.pos++
			continue
		}
		if err := w.value(inner, depth+1); err != nil {
			return err
		}
	}
	w.pos++
	return nil
}

// text passes a string and returns it as it is written, with its quotes.
func (w *walker) text() []byte {
	start := w.pos
	for w.pos++; w.data[w.pos] != '"'; w.pos++ {
		if w.data[w.pos] == '\\' {
			w.pos++
		}
	}
	w.pos++
	return w.data[start:w.pos]
}

func (w *walker) key() string {
	quoted := w.text()
	if bytes.IndexByte(quoted, '\\') < 0 {
		return string(quoted[1 : len(quoted)-1])
	}
	var key string
	json.Unmarshal(quoted, &key) // valid, since the document is
	return key
}
