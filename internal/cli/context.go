package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/config"
)

// A fleetContext is a context without its secrets.
type fleetContext struct {
	Name    string   `json:"name"`
	Current bool     `json:"current"`
	Fleet   string   `json:"fleet,omitempty"`
	URLs    []string `json:"urls,omitempty"`
	Problem string   `json:"problem,omitempty"` // it cannot be read
}

func (p *program) contextCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "context",
		Short: "Choose between fleets",
		Long: `A context is a way to one fleet: the addresses of its broker, the credentials
for it, and the identity that signs your commands. 'muster init' and
'muster dev' make one, 'muster context make' makes more. --context or
MUSTER_CONTEXT chooses another one for a single command.`,
		Example: `  muster context ls
  muster context use production
  muster --context dev node ls`,
	})
	cmd.AddCommand(p.contextList(), p.contextUse(), p.contextShow(), p.contextMake())
	return cmd
}

func (p *program) contextList() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List contexts",
		Long:    `List the contexts of this user. The current one has a star.`,
		Example: `  muster context ls
  muster context ls -o json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			all, err := p.contexts()
			if err != nil {
				return err
			}
			if len(all) == 0 && p.format == "table" {
				p.say("there are no contexts; 'muster dev' or 'muster init' makes one")
				return nil
			}
			return list(p, all, func() *table {
				t := newTable("", "CONTEXT", "FLEET", "BROKER", "PROBLEM")
				for _, c := range all {
					star := cell{text: " "}
					if c.Current {
						star = cell{"*", green}
					}
					t.row(star, c.Name, c.Fleet, strings.Join(c.URLs, " "), c.Problem)
				}
				return t
			})
		},
	}
}

func (p *program) contextUse() *cobra.Command {
	return &cobra.Command{
		Use:               "use NAME",
		Short:             "Choose the context of the commands that follow",
		Long:              `Choose the context that is used when neither --context nor MUSTER_CONTEXT does.`,
		Example:           `  muster context use production`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			if _, err := p.oneContext(args[0]); err != nil {
				return err
			}
			if err := config.SetCurrent(args[0]); err != nil {
				return err
			}
			chosen, err := p.oneContext(args[0])
			if err != nil {
				return err
			}
			return p.deed(chosen, "the context is %s now", args[0])
		},
	}
}

func (p *program) contextShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show [NAME]",
		Short: "Show a context, the current one by default",
		Long:  `Show a context without its secrets; the current one when no name is given.`,
		Example: `  muster context show
  muster context show production -o json`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: p.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			name := p.context
			if len(args) == 1 {
				name = args[0]
			} else if name == "" {
				current, _, err := p.contextName()
				if err != nil {
					return err
				}
				name = current
			}
			c, err := p.oneContext(name)
			if err != nil {
				return err
			}
			return show(p, c, func(w io.Writer) error {
				fmt.Fprintf(w, "name     %s\ncurrent  %v\nfleet    %s\nbroker   %s\n", c.Name, c.Current, clean(c.Fleet), clean(strings.Join(c.URLs, " ")))
				if c.Problem != "" {
					fmt.Fprintf(w, "problem  %s\n", clean(c.Problem))
				}
				return nil
			})
		},
	}
}

func (p *program) contextMake() *cobra.Command {
	var o app.OperatorOptions
	expires := durationFlag(app.OperatorTTL)
	right := aaa.Right{Methods: []string{"*"}, Nodes: []string{"*"}}
	cmd := &cobra.Command{
		Use:   "make CALLER",
		Short: "Make a context for a caller, to be handed over",
		Long: `Make a context for a caller, new or known, and write it into the folder --out:
credentials for the broker, and an identity that signs commands under the name
of the caller. Run it where the fleet was made, with 'muster init'.

The folder holds secrets. It belongs to ~/.config/muster/contexts/NAME of
whoever is to use it. What is in the folder already is replaced, which is how a
context that expires is renewed. The one before stays valid until it expires, or
until 'muster caller revoke' revokes its key.

Policies on nodes decide what the caller may do there. --method and --node bound
it before they are asked.

A caller that may use every method on every node, which is the default, is an
administrator: it may also change labels, remove nodes, deal with dead letters
and use Orders over the broker. With --method or --node the credentials are for
sending, cancelling, following and reading alone.`,
		Example: `  muster context make alice --group admin --out ./alice
  muster context make backup --method backup.run --node 'db*' --out ./backup`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.Out == "" {
				return usagef(cmd, "--out is missing: the folder to write the context into")
			}
			o.Name, o.TTL, o.Rights = args[0], time.Duration(expires), []aaa.Right{right}
			if err := p.back.AddOperator(o); err != nil {
				return err
			}
			return p.deed(map[string]any{"caller": o.Name, "folder": o.Out, "ttl_ns": o.TTL},
				"the context of %s is in %s, for %s; it belongs to ~/.config/muster/contexts/NAME where it is used", o.Name, o.Out, short(o.TTL))
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&o.Out, "out", "", "folder to write the context into")
	fs.StringSliceVar(&o.Groups, "group", nil, "group of the caller, for policies; can be repeated")
	fs.StringSliceVar(&right.Methods, "method", right.Methods, "glob of methods that the caller may use; can be repeated")
	fs.StringSliceVar(&right.Nodes, "node", right.Nodes, "glob of nodes that it may use them on; can be repeated")
	fs.Var(&expires, "expires", "how long the context is valid")
	fs.StringVar(&o.Dir, "state", p.stateDir("fleet"), "folder of the fleet, as given to 'muster init'")
	setting(fs, "state", "broker.state")
	return cmd
}

func (p *program) contexts() ([]fleetContext, error) {
	names, err := config.Contexts()
	if err != nil {
		return nil, err
	}
	current, _, err := p.contextName()
	if err != nil {
		current = "" // a list without a star still helps to choose
	}
	var all []fleetContext
	for _, name := range names {
		item := fleetContext{Name: name, Current: name == current}
		// One context that is broken must not hide the others.
		if c, err := config.OpenContext(name); err != nil {
			item.Problem = err.Error()
		} else {
			item.Fleet, item.URLs = c.Fleet, c.URLs
		}
		all = append(all, item)
	}
	return all, nil
}

func (p *program) oneContext(name string) (fleetContext, error) {
	all, err := p.contexts()
	if err != nil {
		return fleetContext{}, err
	}
	if i := slices.IndexFunc(all, func(c fleetContext) bool { return c.Name == name }); i >= 0 {
		return all[i], nil
	}
	e := muster.Errorf(muster.NotFound, "there is no context %q", clean(name))
	if near := nearest(name, p.contextNames()); near != "" {
		return fleetContext{}, e.WithHint("did you mean %s?", near)
	}
	return fleetContext{}, e.WithHint("'muster context ls' lists them; 'muster dev' or 'muster init' makes one")
}

func (p *program) contextNames() []string {
	names, _ := config.Contexts() // for completion and hints: none is fine
	return names
}

func (p *program) completeContexts(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return p.contextNames(), cobra.ShellCompDirectiveNoFileComp
}
