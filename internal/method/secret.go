package method

import (
	"cmp"
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
// path, what lies deep, and all of an input that is writeOnly as a whole.
func secrets(s *jsonschema.Schema) []string {
	if !hasSecrets(s, make(map[*jsonschema.Schema]bool)) {
		return nil
	}
	w := secretWalk{found: make(map[string]bool)}
	w.walk(s, nil)
	if w.steps > maxSecretSteps {
		return []string{"*"}
	}
	return slices.Sorted(maps.Keys(w.found))
}

// hasSecrets reports whether anything in a schema is writeOnly.
func hasSecrets(s *jsonschema.Schema, seen map[*jsonschema.Schema]bool) bool {
	if s == nil || seen[s] {
		return false
	}
	seen[s] = true
	has := func(inner *jsonschema.Schema) bool { return hasSecrets(inner, seen) }
	return s.WriteOnly || slices.ContainsFunc(sameValue(s), has) || slices.ContainsFunc(anyElement(s), has) ||
		slices.ContainsFunc(slices.Collect(maps.Values(s.Properties)), has)
}

// Limits of the search: a schema may refer to itself.
const (
	maxSecretDepth = 8
	maxSecretSteps = 10_000
)

type secretWalk struct {
	steps int
	found map[string]bool
}

func (w *secretWalk) walk(s *jsonschema.Schema, path []string) {
	if w.steps++; s == nil || w.steps > maxSecretSteps {
		return
	}
	deep := len(path) > maxSecretDepth && hasSecrets(s, make(map[*jsonschema.Schema]bool))
	if s.WriteOnly || deep {
		w.found[cmp.Or(strings.Join(path, "."), "*")] = true
		return
	}
	if len(path) > maxSecretDepth {
		return
	}
	for _, same := range sameValue(s) {
		w.walk(same, path)
	}
	under := func(name string, inner *jsonschema.Schema) { w.walk(inner, append(slices.Clone(path), name)) }
	for name, inner := range s.Properties {
		if name == "" || strings.ContainsAny(name, ".*") {
			name = "*"
		}
		under(name, inner)
	}
	for _, inner := range anyElement(s) {
		under("*", inner)
	}
}

// sameValue returns the schemas within a schema that are about the same value.
func sameValue(s *jsonschema.Schema) []*jsonschema.Schema {
	all := slices.Concat([]*jsonschema.Schema{s.Ref, s.RecursiveRef, s.Not, s.If, s.Then, s.Else}, s.AllOf, s.AnyOf, s.OneOf,
		slices.Collect(maps.Values(s.DependentSchemas)))
	if s.DynamicRef != nil {
		all = append(all, s.DynamicRef.Ref)
	}
	for _, d := range s.Dependencies { // before 2019-09
		all = append(all, schemasIn(d)...)
	}
	return all
}

// anyElement returns the schemas within a schema that are about elements of the
// value which have no name of their own.
func anyElement(s *jsonschema.Schema) []*jsonschema.Schema {
	return slices.Concat([]*jsonschema.Schema{s.Items2020, s.Contains, s.UnevaluatedItems, s.UnevaluatedProperties}, s.PrefixItems,
		schemasIn(s.Items), schemasIn(s.AdditionalItems), // before 2020-12
		schemasIn(s.AdditionalProperties), slices.Collect(maps.Values(s.PatternProperties)))
}

// schemasIn returns the schemas of a keyword that may also have something else.
func schemasIn(v any) []*jsonschema.Schema {
	switch v := v.(type) {
	case *jsonschema.Schema:
		return []*jsonschema.Schema{v}
	case []*jsonschema.Schema:
		return v
	}
	return nil
}
