package cli

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/method"
	"github.com/musterfleet/muster/internal/methods"
)

// described is a method that can be checked but not run.
type described struct{ spec method.Spec }

func (d described) Spec() method.Spec { return d.spec }

func (d described) Invoke(context.Context, method.Invocation) (method.Outcome, error) {
	return method.Outcome{}, muster.Errorf(muster.Unsupported, "method %s runs on nodes only", d.spec.Name)
}

// builtinMethods are those that every node has, to be described, not invoked.
func builtinMethods() []method.Method {
	return methods.Builtin(methods.Options{
		Hello: func() methods.Hello { return methods.Hello{} },
		Facts: func(context.Context) (map[string]any, error) { return nil, nil },
	})
}

// A catalogue is the methods of some nodes.
type catalogue struct {
	registry *method.Registry
	nodes    map[muster.Method][]muster.NodeName // that have a third-party method
}

// catalogueOf collects the built-in methods and those of the nodes. Where
// nodes describe one method differently the first counts: each node checks the
// input again by its own description.
func catalogueOf(nodes []client.Node) (*catalogue, error) {
	builtin := builtinMethods()
	known := map[muster.Method]bool{}
	for _, m := range builtin {
		known[m.Spec().Name] = true
	}
	c := &catalogue{nodes: map[muster.Method][]muster.NodeName{}}
	all := builtin
	for _, n := range nodes {
		for _, raw := range n.Methods {
			var spec method.Spec
			if json.Unmarshal(raw, &spec) != nil || spec.Name.Validate() != nil {
				continue // one node's mistake must not keep others from being used
			}
			if !slices.Contains(c.nodes[spec.Name], n.Name) {
				c.nodes[spec.Name] = append(c.nodes[spec.Name], n.Name)
			}
			if known[spec.Name] {
				continue
			}
			if _, err := method.NewRegistry(described{spec}); err != nil {
				continue
			}
			known[spec.Name] = true
			all = append(all, described{spec})
		}
	}
	var err error
	c.registry, err = method.NewRegistry(all...)
	return c, err
}

func (c *catalogue) spec(name muster.Method) (method.Spec, error) {
	m, ok := c.registry.Lookup(name)
	if !ok {
		e := c.registry.NotFound(name)
		if e.Hint == "" {
			e = e.WithHint("'muster method ls' lists the methods of all nodes")
		}
		return method.Spec{}, e
	}
	return m.Spec(), nil
}

// input makes and checks the input of a method.
func (c *catalogue) input(name muster.Method, words []string) (json.RawMessage, error) {
	spec, err := c.spec(name)
	if err != nil {
		return nil, err
	}
	input, err := method.Args(spec, words)
	if err == nil {
		err = c.registry.ValidateInput(name, input)
	}
	if err != nil {
		e := &usageError{err: err, hint: "'muster method show " + string(name) + "' shows what it takes"}
		if h := muster.AsError(muster.Invalid, err).Hint; h != "" {
			e.hint = h
		}
		return nil, e
	}
	return input, nil
}
