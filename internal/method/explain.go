package method

import (
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"

	"github.com/musterfleet/muster"
)

// maxProblems is how many wrong places one message names.
const maxProblems = 4

// explain turns a failed validation into words. Values are never shown, since
// an input may hold a secret and a message is logged.
func (s *schema) explain(value any, bad *jsonschema.ValidationError) error {
	e := explainer{schema: s, value: value}
	problems := e.problems(bad)
	// The library walks maps; one input should always give one message.
	slices.Sort(problems)
	problems = slices.Compact(problems)
	text := strings.Join(problems[:min(maxProblems, len(problems))], "; ")
	if more := len(problems) - maxProblems; more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return muster.Errorf(muster.Invalid, "method %s: %s", s.method, text)
}

// An explainer puts the errors of one value into words.
type explainer struct {
	*schema
	value  any
	places places // of value; nil until they are needed
}

// problems returns one sentence for each wrong place below bad.
func (s *explainer) problems(bad *jsonschema.ValidationError) []string {
	at := s.side + path(bad.InstanceLocation)
	switch k := bad.ErrorKind.(type) {
	case *kind.OneOf, *kind.AnyOf:
		return []string{at + ": " + s.alternatives(bad)}
	case *kind.PropertyNames:
		return []string{fmt.Sprintf("%s: %q is not allowed as a name", s.holder(k.Property, len(bad.InstanceLocation)), clip(k.Property))}
	case *kind.Required:
		return each(k.Missing, func(p string) string { return at + path([]string{p}) + ": missing, but required" })
	case *kind.AdditionalProperties:
		return s.unknown(at, bad, k.Properties)
	case *kind.Not, *kind.Contains: // their causes say what was right, not what was wrong
		return []string{at + ": " + words(bad.ErrorKind)}
	}
	if len(bad.Causes) == 0 {
		return []string{at + ": " + words(bad.ErrorKind)}
	}
	var all []string
	for _, cause := range bad.Causes {
		all = append(all, s.problems(cause)...)
	}
	return all
}

// holder names the object at the depth that has the property, or all of the
// value when there are several.
func (s *explainer) holder(property string, depth int) string {
	if s.places == nil {
		s.places = locate(s.value)
	}
	if p := s.places[placeKey{property, depth}]; p != nil {
		return s.side + path(p.tokens())
	}
	return s.side
}

// unknown says what is wrong with properties that the schema does not have.
func (s *explainer) unknown(at string, bad *jsonschema.ValidationError, names []string) []string {
	slices.Sort(names)
	return each(names, func(name string) string {
		problem := at + path([]string{clip(name)}) + ": unknown property"
		if i, _ := slices.BinarySearch(names, name); i < maxProblems { // the others are only counted
			problem += s.expected(bad, name)
		}
		return problem
	})
}

// words says what was expected by one keyword of the schema.
func words(k jsonschema.ErrorKind) string {
	switch k := k.(type) {
	case *kind.Type:
		return fmt.Sprintf("expected %s, got %s", orList(each(k.Want, article)), article(k.Got))
	case *kind.Enum:
		return "expected " + orList(each(k.Want, display))
	case *kind.Const:
		return "expected " + display(k.Want)
	case *kind.MinItems:
		return fmt.Sprintf("expected at least %d items, got %d", k.Want, k.Got)
	case *kind.MaxItems:
		return fmt.Sprintf("expected at most %d items, got %d", k.Want, k.Got)
	case *kind.MinLength:
		return fmt.Sprintf("expected at least %d characters, got %d", k.Want, k.Got)
	case *kind.MaxLength:
		return fmt.Sprintf("expected at most %d characters, got %d", k.Want, k.Got)
	case *kind.MinProperties:
		return fmt.Sprintf("expected at least %d properties, got %d", k.Want, k.Got)
	case *kind.MaxProperties:
		return fmt.Sprintf("expected at most %d properties, got %d", k.Want, k.Got)
	case *kind.Minimum:
		return "expected at least " + number(k.Want)
	case *kind.Maximum:
		return "expected at most " + number(k.Want)
	case *kind.ExclusiveMinimum:
		return "expected more than " + number(k.Want)
	case *kind.ExclusiveMaximum:
		return "expected less than " + number(k.Want)
	case *kind.MultipleOf:
		return "expected a multiple of " + number(k.Want)
	case *kind.Pattern:
		return "expected text that matches " + k.Want
	case *kind.Format:
		return "expected a valid " + k.Want
	case *kind.UniqueItems:
		return fmt.Sprintf("expected different items, but those at %d and %d are equal", k.Duplicates[0], k.Duplicates[1])
	case *kind.FalseSchema:
		return "not allowed here"
	}
	return fmt.Sprintf("does not satisfy %q of the schema", strings.Join(k.KeywordPath(), "."))
}

// expected names the properties that the object at fault may have.
func (s *schema) expected(bad *jsonschema.ValidationError, got string) string {
	object, _ := s.at(bad.SchemaURL).(map[string]any)
	properties, _ := object["properties"].(map[string]any)
	known := slices.Sorted(maps.Keys(properties))
	if near := Similar(got, known); len(near) > 0 {
		return "; did you mean " + orList(near) + "?"
	}
	if len(known) == 0 {
		return ""
	}
	return "; expected " + orList(known)
}

// alternatives says what oneOf or anyOf wanted: the names when each branch
// just requires some, which is how a schema says "either this or that".
func (s *schema) alternatives(bad *jsonschema.ValidationError) string {
	keyword, words := "oneOf", "exactly one"
	if _, ok := bad.ErrorKind.(*kind.AnyOf); ok {
		keyword, words = "anyOf", "at least one"
	}
	object, _ := s.at(bad.SchemaURL).(map[string]any)
	branches, _ := object[keyword].([]any)
	names := make([]string, 0, len(branches))
	for _, b := range branches {
		branch, _ := b.(map[string]any)
		if title, ok := branch["title"].(string); ok {
			names = append(names, title)
		} else if required, ok := branch["required"].([]any); ok {
			names = append(names, strings.Join(each(required, func(v any) string { return fmt.Sprint(v) }), " with "))
		}
	}
	if len(names) == 0 || len(names) != len(branches) {
		return "expected " + words + " of the alternatives in the schema"
	}
	return "expected " + words + " of " + orList(names)
}

// at returns the part of the schema document that a schema URL points to.
func (s *schema) at(url string) any {
	_, pointer, _ := strings.Cut(url, "#")
	part := s.doc
	for token := range strings.SplitSeq(strings.TrimPrefix(pointer, "/"), "/") {
		if token == "" {
			continue
		}
		token = strings.NewReplacer("~1", "/", "~0", "~").Replace(token)
		switch p := part.(type) {
		case map[string]any:
			part = p[token]
		case []any:
			i, err := strconv.Atoi(token)
			if err != nil || i < 0 || i >= len(p) {
				return nil
			}
			part = p[i]
		}
	}
	return part
}

// path writes a location as a person would: .argv[0], ["odd name"].
func path(tokens []string) string {
	var b strings.Builder
	for _, t := range tokens {
		switch _, err := strconv.ParseUint(t, 10, 31); {
		case err == nil:
			fmt.Fprintf(&b, "[%s]", t)
		case isName(t):
			b.WriteString("." + t)
		default:
			fmt.Fprintf(&b, "[%q]", clip(t))
		}
	}
	return b.String()
}

// isName reports whether s can be a key in front of '=' and in a path: a
// letter or '_', then letters, digits, '_' and '-'.
func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_'
		if !letter && (i == 0 || (c < '0' || c > '9') && c != '-') {
			return false
		}
	}
	return s != ""
}

// article gives a JSON type the word that a person uses.
func article(jsonType string) string {
	switch jsonType {
	case "null":
		return "null"
	case "integer", "object":
		return "an " + jsonType
	case "array":
		return "a list"
	case "boolean":
		return "true or false"
	}
	return "a " + jsonType
}

func display(v any) string {
	switch v := v.(type) {
	case string:
		return strconv.Quote(v)
	case map[string]any, []any:
		return "a value listed in the schema"
	}
	return fmt.Sprint(v)
}

func number(r *big.Rat) string {
	f, _ := r.Float64()
	return strconv.FormatFloat(f, 'g', -1, 64)
}

func each[T any](in []T, f func(T) string) []string {
	out := make([]string, len(in))
	for i, v := range in {
		out[i] = f(v)
	}
	return out
}
