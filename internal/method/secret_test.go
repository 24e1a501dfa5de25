package method

import (
	"encoding/json"
	"slices"
	"testing"
)

func TestSecrets(t *testing.T) {
	for schema, want := range map[string][]string{
		`true`:                nil,
		`{"writeOnly": true}`: nil, // an input as a whole: then it is of no use as a record
		`{"properties": {"a": {"type": "string"}, "b": {"writeOnly": true}}}`:                                 {"b"},
		`{"properties": {"a": {"properties": {"b": {"writeOnly": true}, "c": {}}}}}`:                          {"a.b"},
		`{"properties": {"env": {"additionalProperties": {"writeOnly": true}}}}`:                              {"env.*"},
		`{"properties": {"l": {"items": {"properties": {"p": {"writeOnly": true}}}}}}`:                        {"l.*.p"},
		`{"properties": {"l": {"prefixItems": [{}, {"writeOnly": true}]}}}`:                                   {"l.*"},
		`{"patternProperties": {"^x": {"writeOnly": true}}}`:                                                  {"*"},
		`{"properties": {"a.b": {"writeOnly": true}, "c": {}}}`:                                               {"*"},
		`{"oneOf": [{"properties": {"a": {"writeOnly": true}}}, {"properties": {"b": {"writeOnly": true}}}]}`: {"a", "b"},
		`{"if": {}, "then": {"properties": {"a": {"writeOnly": true}}}}`:                                      {"a"},
		`{"properties": {"a": {"$ref": "#/$defs/s"}}, "$defs": {"s": {"writeOnly": true}}}`:                   {"a"},
	} {
		r, err := NewRegistry(fake{Name: "m", Input: json.RawMessage(schema)})
		if err != nil {
			t.Fatalf("%s: %v", schema, err)
		}
		if got := r.Secrets("m"); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", schema, got, want)
		}
		if got := r.Secrets("other"); got != nil {
			t.Errorf("of an unknown method: %q", got)
		}
	}
}

// A schema that refers to itself has secrets at any depth.
func TestSecretsOfATree(t *testing.T) {
	for schema, want := range map[string]string{
		`{"properties": {"next": {"$ref": "#"}, "key": {"writeOnly": true}}}`:                                                          "next.next.next.key",
		`{"properties": {"next": {"$ref": "#"}, "key": {"type": "string"}}}`:                                                           "",
		`{"properties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}, "c": {"$ref": "#"}, "d": {"$ref": "#"}, "key": {"writeOnly": true}}}`: "*",
	} {
		r, err := NewRegistry(fake{Name: "m", Input: json.RawMessage(schema)})
		if err != nil {
			t.Fatalf("%s: %v", schema, err)
		}
		got := r.Secrets("m")
		if want == "" && got != nil || want != "" && !slices.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", schema, got, want)
		}
	}
}
