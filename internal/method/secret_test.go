package method

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

const draft7 = `{"$schema": "http://json-schema.org/draft-07/schema#", `

// deep puts a schema n properties deep.
func deep(n int, schema string) string {
	return strings.Repeat(`{"properties": {"p": `, n) + schema + strings.Repeat(`}}`, n)
}

func TestSecrets(t *testing.T) {
	for schema, want := range map[string][]string{
		`true`:                nil,
		`{"writeOnly": true}`: {"*"},
		`{"properties": {"a": {"type": "string"}, "b": {"writeOnly": true}}}`:                                      {"b"},
		`{"properties": {"a": {"properties": {"b": {"writeOnly": true}, "c": {}}}}}`:                               {"a.b"},
		`{"properties": {"env": {"additionalProperties": {"writeOnly": true}}}}`:                                   {"env.*"},
		`{"properties": {"l": {"items": {"properties": {"p": {"writeOnly": true}}}}}}`:                             {"l.*.p"},
		`{"properties": {"l": {"prefixItems": [{}, {"writeOnly": true}]}}}`:                                        {"l.*"},
		`{"patternProperties": {"^x": {"writeOnly": true}}}`:                                                       {"*"},
		`{"properties": {"a.b": {"writeOnly": true}, "c": {}}}`:                                                    {"*"},
		`{"oneOf": [{"properties": {"a": {"writeOnly": true}}}, {"properties": {"b": {"writeOnly": true}}}]}`:      {"a", "b"},
		`{"if": {}, "then": {"properties": {"a": {"writeOnly": true}}}}`:                                           {"a"},
		`{"properties": {"a": {"$ref": "#/$defs/s"}}, "$defs": {"s": {"writeOnly": true}}}`:                        {"a"},
		`{"dependentSchemas": {"a": {"properties": {"b": {"writeOnly": true}}}}}`:                                  {"b"},
		`{"properties": {"l": {"contains": {"writeOnly": true}}}}`:                                                 {"l.*"},
		`{"properties": {"l": {"unevaluatedItems": {"writeOnly": true}}}}`:                                         {"l.*"},
		`{"unevaluatedProperties": {"writeOnly": true}}`:                                                           {"*"},
		`{"$dynamicRef": "#n", "$defs": {"s": {"$dynamicAnchor": "n", "properties": {"a": {"writeOnly": true}}}}}`: {"a"},
		draft7 + `"properties": {"l": {"items": {"writeOnly": true}}}}`:                                            {"l.*"},
		draft7 + `"properties": {"l": {"items": [{}, {"properties": {"a": {"writeOnly": true}}}]}}}`:               {"l.*.a"},
		draft7 + `"properties": {"l": {"items": [{}], "additionalItems": {"writeOnly": true}}}}`:                   {"l.*"},
		draft7 + `"dependencies": {"a": {"properties": {"b": {"writeOnly": true}}}}}`:                              {"b"},
		deep(12, `{"writeOnly": true}`):                                                                            {"p.p.p.p.p.p.p.p.p"},
		deep(12, `{}`):                                                                                             nil,
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
