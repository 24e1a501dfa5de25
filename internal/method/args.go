package method

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/musterfleet/muster"
)

// Args turns the words of a command line into the input of a method:
//
//   - no words are {};
//   - one word that begins with { is the input itself;
//   - key=value sets a property. The value is read by the type in the schema:
//     text, an integer, a number, true or false, a list separated by commas
//     (or as JSON, or by repeating the key), an object as JSON. Where the
//     schema states no type, JSON is taken as such and all else as text;
//   - other words fill the properties that the schema names in x-positional,
//     in order, passing over those set before. When it is the turn of a list,
//     it takes all words that are left, whatever they look like;
//   - after the word -- nothing is read as key=value.
//
// The result is not validated otherwise: that takes a Registry. Errors are of
// kind Invalid and name the word, and what was expected in its place.
func Args(spec Spec, words []string) (json.RawMessage, error) {
	if len(words) == 1 && strings.HasPrefix(words[0], "{") {
		return argsJSON(words[0])
	}
	p, err := newArgs(spec)
	if err != nil {
		return nil, err
	}
	for _, w := range words {
		if !utf8.ValidString(w) {
			return nil, muster.Errorf(muster.Invalid, "word %q is not valid UTF-8", clip(w))
		}
		if err := p.word(w); err != nil {
			return nil, err
		}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // people read inputs, and "a > b" is common in them
	if err := e.Encode(p.input); err != nil {
		return nil, muster.Errorf(muster.Invalid, "input: %w", err)
	}
	return bytes.TrimSpace(b.Bytes()), nil
}

func argsJSON(word string) (json.RawMessage, error) {
	if !utf8.ValidString(word) {
		return nil, muster.Errorf(muster.Invalid, "word %q is not valid UTF-8", clip(word))
	}
	if _, err := decode([]byte(word)); err != nil {
		return nil, muster.Errorf(muster.Invalid, "word %q begins like a JSON object: %w", clip(word), err)
	}
	return json.RawMessage(word), nil
}

// A property is what Args knows of one property of a schema.
type property struct {
	Type  types     `json:"type"`
	Items *property `json:"items"`
}

// UnmarshalJSON passes over the schemas true and false, which say nothing of
// the type.
func (p *property) UnmarshalJSON(b []byte) error {
	if !isObject(b) {
		return nil
	}
	type plain property // without this method
	return json.Unmarshal(b, (*plain)(p))
}

func isObject(b []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) }

// types are the JSON types that a schema allows; none allows any.
type types []string

// UnmarshalJSON takes one name or a list of them.
func (t *types) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*t = types{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(t))
}

func (p property) list() bool { return slices.Contains(p.Type, "array") }

// args is the reader of one command line.
type args struct {
	method     muster.Method
	properties map[string]property
	open       bool     // other properties are allowed, too
	positional []string // that no word has filled so far
	verbatim   bool     // no word is key=value any more
	input      map[string]any
}

func newArgs(spec Spec) (*args, error) {
	a := &args{method: spec.Name, open: true, properties: map[string]property{}, input: map[string]any{}}
	if !isObject(spec.Input) {
		return a, nil // no schema, or true
	}
	var s struct {
		Properties map[string]property `json:"properties"`
		Additional json.RawMessage     `json:"additionalProperties"`
		Positional []string            `json:"x-positional"`
	}
	if err := json.Unmarshal(spec.Input, &s); err != nil {
		return nil, muster.Errorf(muster.Invalid, "method %s: input schema: %w", spec.Name, err)
	}
	a.open = string(s.Additional) != "false"
	a.positional = s.Positional
	if s.Properties != nil {
		a.properties = s.Properties
	}
	return a, nil
}

// word takes one word of the command line.
func (a *args) word(w string) error {
	if a.verbatim {
		return a.fill(w)
	}
	if w == "--" {
		a.verbatim = true
		return nil
	}
	key, value, assigns := strings.Cut(w, "=")
	if !assigns {
		return a.fill(w)
	}
	if _, known := a.properties[key]; known || isName(key) && a.open {
		return a.assign(w, key, value)
	}
	if isName(key) {
		return a.unknown(w, key)
	}
	return a.fill(w) // an address or a path that happens to contain '='
}

func (a *args) unknown(word, key string) error {
	names := slices.Sorted(maps.Keys(a.properties))
	err := muster.Errorf(muster.Invalid, "word %q: %s has no property %q; expected %s", clip(word), a.method, clip(key), expectedOr(names, "none"))
	if near := Similar(key, names); len(near) > 0 {
		return err.WithHint("did you mean %s=...?", orList(near))
	}
	return err.WithHint("write -- in front of words that are not key=value")
}

// assign sets a property by name.
func (a *args) assign(word, key, value string) error {
	p := a.properties[key]
	old, given := a.input[key]
	list, _ := old.([]any)
	if given && (list == nil || !p.list()) {
		return muster.Errorf(muster.Invalid, "word %q: %s was given before; expected it once", clip(word), key)
	}
	v, err := p.parse(value)
	if err != nil {
		return muster.Errorf(muster.Invalid, "word %q: %w for %s", clip(word), err, key)
	}
	if more, ok := v.([]any); ok && given {
		v = append(list, more...)
	}
	a.input[key] = v
	return nil
}

// fill sets the next positional property.
func (a *args) fill(w string) error {
	for len(a.positional) > 0 {
		name := a.positional[0]
		p := a.properties[name]
		if p.list() {
			return a.extend(name, p, w)
		}
		a.positional = a.positional[1:]
		if _, given := a.input[name]; given {
			continue
		}
		v, err := p.parse(w)
		if err != nil {
			return muster.Errorf(muster.Invalid, "word %q: %w for %s", clip(w), err, name)
		}
		a.input[name] = v
		return nil
	}
	err := muster.Errorf(muster.Invalid, "word %q: expected key=value, or nothing more", clip(w))
	if names := slices.Sorted(maps.Keys(a.properties)); len(names) > 0 {
		return err.WithHint("%s takes %s; quote text that contains spaces", a.method, strings.Join(names, ", "))
	}
	return err
}

// extend adds one word to a list, which takes all words from here on: the
// words of another command must not be read as properties of this one.
func (a *args) extend(name string, p property, w string) error {
	v, err := p.item(w)
	if err != nil {
		return muster.Errorf(muster.Invalid, "word %q: %w in %s", clip(w), err, name)
	}
	list, _ := a.input[name].([]any)
	a.input[name] = append(list, v)
	a.verbatim = true
	return nil
}

// parse reads text as a value of the property.
func (p property) parse(text string) (any, error) {
	if len(p.Type) == 0 {
		return parseAny(text), nil
	}
	// Text fits everything, so that it is tried last.
	for _, t := range []string{"null", "boolean", "integer", "number", "array", "object", "string"} {
		if !slices.Contains(p.Type, t) {
			continue
		}
		if v, ok := p.parseAs(t, text); ok {
			return v, nil
		}
	}
	return nil, fmt.Errorf("expected %s", orList(each(p.Type, inWords)))
}

func (p property) parseAs(jsonType, text string) (any, bool) {
	switch jsonType {
	case "string":
		return text, true
	case "array":
		return p.parseList(text)
	}
	v, err := decode([]byte(text))
	if err != nil || strings.TrimSpace(text) != text {
		return nil, false
	}
	switch n := v.(type) {
	case nil:
		return nil, jsonType == "null"
	case bool:
		return n, jsonType == "boolean"
	case json.Number:
		return n, jsonType == "number" || jsonType == "integer" && !strings.ContainsAny(string(n), ".eE")
	case map[string]any:
		return n, jsonType == "object"
	}
	return nil, false
}

// parseList reads a JSON array, or items between commas. Empty text is the
// empty list.
func (p property) parseList(text string) (any, bool) {
	if strings.HasPrefix(text, "[") {
		v, err := decode([]byte(text))
		list, ok := v.([]any)
		return list, ok && err == nil
	}
	list := []any{}
	if text == "" {
		return list, true
	}
	for part := range strings.SplitSeq(text, ",") {
		v, err := p.item(part)
		if err != nil {
			return nil, false
		}
		list = append(list, v)
	}
	return list, true
}

// item reads one element of a list.
func (p property) item(text string) (any, error) {
	if p.Items == nil {
		return text, nil
	}
	return p.Items.parse(text)
}

// parseAny reads text for a property that may be anything.
func parseAny(text string) any {
	if v, err := decode([]byte(text)); err == nil {
		return v
	}
	return text
}

func inWords(jsonType string) string {
	switch jsonType {
	case "object":
		return "an object as JSON"
	case "array":
		return "a list, separated by commas or as JSON"
	}
	return article(jsonType)
}

func expectedOr(names []string, none string) string {
	if len(names) == 0 {
		return none
	}
	return orList(names)
}
