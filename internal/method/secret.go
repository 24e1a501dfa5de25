package method

import (
	"maps"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/musterfleet/muster"
)

// Secrets returns where in an input of the method values are that must not
// show in records: those that are writeOnly in its schema. A place is a dotted
// path, in which '*' is every element. Nothing is known of methods that are not
// here.
func (r *Registry) Secrets(name muster.Method) []string { return r.entries[name].secrets }

// secrets collects the places of writeOnly values. Where that cannot be told
// exactly, more is taken: what is beside a property whose name cannot stand in a
// path, and what lies deep in a schema that refers to itself.
func secrets(s *jsonschema.Schema) []string {
	w := secretWalk{found: make(map[string]bool)}
	w.walk(s, nil)
	switch {
	case len(w.found) == 0 && w.steps <= maxSecretSteps:
		return nil
	case w.steps > maxSecretSteps:
		return []string{"*"}
	}
	maps.Copy(w.found, w.deep)
	return slices.Sorted(maps.Keys(w.found))
}

// Limits of the search: a schema may refer to itself.
const (
	maxSecretDepth = 8
	maxSecretSteps = 10_000
)

type secretWalk struct {
	steps       int
	found, deep map[string]bool
}

func (w *secretWalk) walk(s *jsonschema.Schema, path []string) {
	if w.steps++; s == nil || w.steps > maxSecretSteps {
		return
	}
	text := strings.Join(path, ".")
	switch {
	case s.WriteOnly && len(path) > 0:
		w.found[text] = true
		return
	case len(path) > maxSecretDepth:
		if w.deep == nil {
			w.deep = make(map[string]bool)
		}
		w.deep[text] = true
		return
	}
	for _, same := range slices.Concat([]*jsonschema.Schema{s.Ref, s.If, s.Then, s.Else}, s.AllOf, s.AnyOf, s.OneOf) {
		w.walk(same, path)
	}
	under := func(name string, inner *jsonschema.Schema) { w.walk(inner, append(slices.Clone(path), name)) }
	for name, inner := range s.Properties {
		if name == "" || strings.ContainsAny(name, ".*") {
			name = "*"
		}
		under(name, inner)
	}
	for _, inner := range s.PatternProperties {
		under("*", inner)
	}
	for _, inner := range append([]*jsonschema.Schema{s.Items2020}, s.PrefixItems...) {
		under("*", inner)
	}
	if inner, ok := s.AdditionalProperties.(*jsonschema.Schema); ok {
		under("*", inner)
	}
}
