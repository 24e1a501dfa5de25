package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/method"
)

func (p *program) methodCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "method",
		Short: "See what nodes can do",
		Long: `A method is something that a node can do. Some are built in, others are
programs on nodes that speak JSON. Each says by a schema what it takes.`,
		Example: `  muster method ls
  muster method show shell.run`,
	})
	cmd.AddCommand(p.methodList(), p.methodShow())
	return cmd
}

func (p *program) methodList() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List methods",
		Long: `List the built-in methods and those of the nodes. Without a broker the built-in
ones are listed.`,
		Example: `  muster method ls
  muster method ls -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cat, err := p.methods(cmd.Context())
			if err != nil {
				return err
			}
			specs := cat.registry.Specs()
			return list(p, specs, func() *table {
				t := newTable("METHOD", "NODES", "DESCRIPTION")
				t.wraps = true
				for _, s := range specs {
					where := "all"
					if n := len(cat.nodes[s.Name]); n > 0 {
						where = fmt.Sprint(n)
					}
					t.row(s.Name, where, s.Description)
				}
				return t
			})
		},
	}
}

func (p *program) methodShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Show what a method takes and returns",
		Long:  `Show what a method takes and returns, with examples.`,
		Example: `  muster method show shell.run
  muster method show file.write -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeMethods,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := muster.Method(args[0])
			if err := name.Validate(); err != nil {
				return usage(err)
			}
			cat, err := catalogueOf(nil)
			if err != nil {
				return err
			}
			spec, err := cat.spec(name)
			if err != nil { // not built in: only the nodes can know
				if cat, err = p.methods(cmd.Context()); err != nil {
					return err
				}
				if spec, err = cat.spec(name); err != nil {
					return err
				}
			}
			return show(p, spec, func(w io.Writer) error { return methodText(w, p.outTerm.width, spec, cat.nodes[name]) })
		},
	}
}

// methods returns the methods of all nodes, or the built-in ones when the
// broker cannot be reached.
func (p *program) methods(ctx context.Context) (*catalogue, error) {
	var nodes []client.Node
	err := p.ask(ctx, func(ctx context.Context, c SDK) error {
		var err error
		nodes, err = c.Nodes(ctx)
		return err
	})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		p.say("%s only the built-in methods are known: %s", p.errTerm.paint(yellow, "warning:"), clean(err.Error()))
	}
	return catalogueOf(nodes)
}

func methodText(w io.Writer, width int, s method.Spec, nodes []muster.NodeName) error {
	fmt.Fprintf(w, "%s\n\n", wrap(fmt.Sprintf("%s: %s", s.Name, clean(s.Description)), width, 0))
	if len(nodes) > 0 {
		var list []string
		for _, n := range nodes {
			list = append(list, string(n))
		}
		fmt.Fprintln(w, wrap("nodes       "+strings.Join(list, " "), width, 12))
	}
	if s.Origin != "" {
		fmt.Fprintf(w, "origin      %s\n", clean(s.Origin))
	}
	timeout := method.DefaultTimeout
	if s.TimeoutMS > 0 {
		timeout = time.Duration(s.TimeoutMS) * time.Millisecond
	}
	if s.TimeoutMS < 0 {
		fmt.Fprintln(w, "timeout     none")
	} else {
		fmt.Fprintf(w, "timeout     %s\n", short(timeout))
	}
	fmt.Fprintf(w, "idempotent  %v\n", s.Idempotent)
	schema(w, width, "input", s.Input)
	schema(w, width, "output", s.Output)
	if len(s.Examples) > 0 {
		fmt.Fprint(w, "\nexamples\n")
		for _, e := range s.Examples {
			fmt.Fprintf(w, "  # %s\n  muster send %s -t SELECTOR '%s'\n", clean(e.Description), s.Name, strings.ReplaceAll(clean(string(e.Input)), "'", `'\''`))
		}
	}
	return nil
}

// schema prints the properties of an object in the order written, which is
// that of whoever wrote the schema for people, and any other schema as it is.
func schema(w io.Writer, width int, what string, raw json.RawMessage) {
	if len(raw) == 0 {
		return
	}
	var s struct {
		Properties map[string]struct {
			Type        any    `json:"type"`
			Description string `json:"description"`
			Default     any    `json:"default"`
		} `json:"properties"`
		Required   []string `json:"required"`
		Positional []string `json:"x-positional"`
	}
	if json.Unmarshal(raw, &s) != nil || len(s.Properties) == 0 {
		var b bytes.Buffer
		if json.Compact(&b, raw) == nil {
			fmt.Fprintf(w, "\n%s\n  %s\n", what, clean(b.String()))
		}
		return
	}
	required := map[string]bool{}
	for _, r := range s.Required {
		required[r] = true
	}
	fmt.Fprintf(w, "\n%s\n", what)
	pad := 12
	for name := range s.Properties {
		pad = max(pad, visibleWidth(clean(name)))
	}
	for _, name := range properties(raw) {
		prop := s.Properties[name]
		text := typeText(prop.Type)
		if required[name] {
			text += ", required"
		}
		if prop.Default != nil {
			text += fmt.Sprintf(", default %v", prop.Default)
		}
		fmt.Fprintf(w, "  %-*s %s\n", pad, clean(name), clean(strings.TrimPrefix(text, ", ")))
		if prop.Description != "" {
			fmt.Fprintln(w, wrap(fmt.Sprintf("  %-*s %s", pad, "", clean(prop.Description)), width, pad+3))
		}
	}
	if len(s.Positional) > 0 {
		fmt.Fprintf(w, "  words without a key are, in this order: %s\n", clean(strings.Join(s.Positional, ", ")))
	}
}

func typeText(t any) string {
	switch t := t.(type) {
	case string:
		return t
	case []any:
		var list []string
		for _, e := range t {
			list = append(list, fmt.Sprint(e))
		}
		return strings.Join(list, " or ")
	}
	return ""
}

// keys returns the keys of a JSON object in the order written.
func keys(object json.RawMessage) []string {
	d := json.NewDecoder(bytes.NewReader(object))
	if _, err := d.Token(); err != nil {
		return nil
	}
	var list []string
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return list
		}
		if k, ok := t.(string); ok {
			list = append(list, k)
		}
		var skip json.RawMessage
		if d.Decode(&skip) != nil {
			return list
		}
	}
	return list
}

// properties returns the names of the properties of a schema, as written.
func properties(raw json.RawMessage) []string {
	var written struct {
		Properties json.RawMessage `json:"properties"`
	}
	if json.Unmarshal(raw, &written) != nil {
		return nil
	}
	return keys(written.Properties)
}
