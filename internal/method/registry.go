package method

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/musterfleet/muster"
)

// A Registry holds the methods of one agent, with their schemas compiled. It
// does not change after NewRegistry, so that any number of goroutines may use
// it.
type Registry struct {
	entries map[muster.Method]entry
	specs   []Spec // sorted by name
}

type entry struct {
	method        Method
	input, output *schema
	secrets       []string
}

// NewRegistry makes a registry of the given methods. It fails with kind
// Conflict when two have one name, and with kind Invalid when a name or a
// default timeout is not allowed or a schema cannot be compiled. A schema
// cannot refer to files or addresses outside of itself. A method without a
// schema for input or output allows anything there.
func NewRegistry(methods ...Method) (*Registry, error) {
	r := &Registry{entries: make(map[muster.Method]entry, len(methods))}
	for _, m := range methods {
		if err := r.add(m); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(r.specs, func(a, b Spec) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return r, nil
}

func (r *Registry) add(m Method) error {
	spec := m.Spec()
	if err := spec.Name.Validate(); err != nil {
		return err
	}
	if spec.TimeoutMS < -1 {
		return muster.Errorf(muster.Invalid, "method %s: timeout %d ms is out of range; expected -1 (none), 0 (default) or more", spec.Name, spec.TimeoutMS)
	}
	if old, ok := r.entries[spec.Name]; ok {
		return muster.Errorf(muster.Conflict, "method %s is defined twice: %s and %s", spec.Name, origin(old.method.Spec()), origin(spec)).
			WithHint("rename or remove one of them")
	}
	input, err := compile(spec.Name, "input", spec.Input)
	if err != nil {
		return err
	}
	output, err := compile(spec.Name, "output", spec.Output)
	if err != nil {
		return err
	}
	r.entries[spec.Name] = entry{m, input, output, secrets(input.compiled)}
	r.specs = append(r.specs, spec)
	return nil
}

func origin(s Spec) string {
	if s.Origin == "" {
		return "unknown origin"
	}
	return s.Origin
}

// Lookup returns the method with the given name.
func (r *Registry) Lookup(name muster.Method) (Method, bool) {
	e, ok := r.entries[name]
	return e.method, ok
}

// Specs returns the descriptions of all methods, sorted by name. The slice is
// the caller's.
func (r *Registry) Specs() []Spec { return slices.Clone(r.specs) }

// ValidateInput checks input against the method's schema. Empty input counts
// as {}. The error is of kind NotFound when there is no such method (see
// NotFound), and of kind Invalid when the input is wrong; then the message
// names each wrong place and what was expected there, but never the value,
// which may be a secret.
func (r *Registry) ValidateInput(name muster.Method, input json.RawMessage) error {
	e, ok := r.entries[name]
	if !ok {
		return r.NotFound(name)
	}
	return e.input.validate(input)
}

// ValidateOutput checks what a run returned against the method's schema, as
// ValidateInput does. The output of a failed run need not be complete: do not
// check it.
func (r *Registry) ValidateOutput(name muster.Method, output json.RawMessage) error {
	e, ok := r.entries[name]
	if !ok {
		return r.NotFound(name)
	}
	return e.output.validate(output)
}

// NotFound returns the error of kind NotFound for a name that is not in the
// registry. Its hint lists the names that come close.
func (r *Registry) NotFound(name muster.Method) *muster.Error {
	names := make([]string, len(r.specs))
	for i, s := range r.specs {
		names[i] = string(s.Name)
	}
	err := muster.Errorf(muster.NotFound, "method %q does not exist here", clip(string(name)))
	if near := Similar(string(name), names); len(near) > 0 {
		return err.WithHint("did you mean %s?", orList(near))
	}
	return err
}
