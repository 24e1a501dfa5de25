package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

func (p *program) eventCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "event",
		Short: "See what happened on nodes",
		Long: `An event is something that happened on a node, besides the states of commands:
journal-unreadable (the node lost what it knew of its commands) or orphans
(processes of an interrupted command could not be ended).

Each decision of a node is an event, too, of the type audit. These are many, and
only shown with --type audit; 'muster audit' knows more of them.`,
		Example: `  muster event ls --since 1h
  muster event ls --node web1 --since 7d -o jsonl
  muster event follow`,
	})
	cmd.AddCommand(p.eventList(), p.eventFollow())
	return cmd
}

func (p *program) eventList() *cobra.Command {
	since := durationFlag(24 * time.Hour)
	var kind, node string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List events",
		Long:    `List events, the latest last.`,
		Example: `  muster event ls
  muster event ls --since 7d -o jsonl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.ask(cmd.Context(), func(ctx context.Context, c SDK) error {
				var all []client.Event
				err := events(ctx, c, client.EventQuery{Type: kind, Node: muster.NodeName(node), Since: p.since(since)}, func(e client.Event) error {
					all = append(all, e)
					return nil
				})
				if err != nil {
					return err
				}
				if len(all) == 0 && p.format == "table" {
					p.say("no events; --since looks back further, and 'muster audit ls' lists decisions")
					return nil
				}
				return list(p, all, func() *table {
					t := newTable("TIME", "NODE", "TYPE", "MESSAGE")
					for _, e := range all {
						t.row(ago(p.now(), e.Time), e.Node, e.Type, e.Message)
					}
					return t
				})
			})
		},
	}
	cmd.Flags().Var(&since, "since", "only those of the last `duration`, such as 90m or 7d; 0 is all that is kept")
	cmd.Flags().StringVar(&kind, "type", "", "only of this `type`, such as orphans")
	p.nodeFlag(cmd, &node)
	return cmd
}

// nodeFlag adds the flag that chooses one node.
func (p *program) nodeFlag(cmd *cobra.Command, node *string) {
	cmd.Flags().StringVar(node, "node", "", "only of the node of this `name`")
	_ = cmd.RegisterFlagCompletionFunc("node", p.completeNodes) // fails only for a flag that is not there
}

// events leaves out decisions unless they are asked for: they would hide the
// rest.
func events(ctx context.Context, c SDK, q client.EventQuery, handle func(client.Event) error) error {
	return c.Events(ctx, q, func(e client.Event) error {
		if q.Type == "" && e.Type == muster.EventAudit {
			return nil
		}
		return handle(e)
	})
}

func (p *program) eventFollow() *cobra.Command {
	var since durationFlag
	var kind, node string
	cmd := &cobra.Command{
		Use:   "follow",
		Short: "Print events when they happen",
		Long: `Print events when they happen, until Ctrl-C. With -o json and jsonl each is one
line of JSON. When the broker goes away, lines on stderr say so and when it is
back; events are printed once, and none is left out.`,
		Example: `  muster event follow
  muster event follow --since 1h -o jsonl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.with(cmd.Context(), func(ctx context.Context, c SDK) error {
				q := client.EventQuery{Type: kind, Node: muster.NodeName(node), Since: p.now(), Follow: true, Link: p.eventLink()}
				if since > 0 {
					q.Since = p.since(since)
				}
				// Asked first, so that a broker that is away is an error at once.
				now := client.EventQuery{Type: kind, Since: p.now()}
				if err := c.Events(ctx, now, func(client.Event) error { return nil }); err != nil {
					return err
				}
				return events(ctx, c, q, p.printEvent)
			})
		},
	}
	cmd.Flags().Var(&since, "since", "begin with those of the last `duration`")
	cmd.Flags().StringVar(&kind, "type", "", "only of this `type`, such as orphans")
	p.nodeFlag(cmd, &node)
	return cmd
}

func (p *program) printEvent(e client.Event) error {
	switch p.format {
	case "json", "jsonl":
		return p.line(e)
	case "yaml":
		return p.data([]client.Event{e}) // the parts together are one list
	}
	name := p.outTerm.paint(nodeColor(string(e.Node)), string(e.Node))
	_, err := fmt.Fprintf(p.stdout, "%s  %s  %s  %s\n", e.Time.Local().Format("15:04:05"), name, clean(e.Type), clean(e.Message))
	return err
}

// eventLink says that the broker went away, and that it is back.
func (p *program) eventLink() func(client.Link) error {
	var away time.Time
	return func(l client.Link) error {
		if l.Lost {
			away = l.Since
			p.say("broker away since %s; events wait at their nodes, and come when it is back", away.Local().Format("15:04:05"))
		} else {
			p.say("broker back after %s; nothing was missed", short(l.Since.Sub(away)))
		}
		return nil
	}
}

func (p *program) since(d durationFlag) time.Time {
	if d == 0 {
		return time.Time{}
	}
	return p.now().Add(-time.Duration(d))
}
