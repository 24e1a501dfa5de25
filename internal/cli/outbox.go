package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

func (p *program) outboxCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "outbox",
		Short: "See and send what was sent while the broker was away",
		Long: `What is sent while the broker is away is kept in the outbox of this machine. It
is sent, in order, before whatever is sent next from the same context, or by
'muster outbox flush'.`,
		Example: `  muster outbox ls
  muster outbox flush`,
	})
	cmd.AddCommand(p.outboxList(), p.outboxFlush())
	return cmd
}

func (p *program) outboxList() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List what waits in the outbox",
		Long: `List the sends that wait in the outbox of this machine, in the order in which
they will be sent. The broker is not asked.`,
		Example: `  muster outbox ls
  muster outbox ls -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.ask(cmd.Context(), func(_ context.Context, c SDK) error {
				all, err := c.Outbox()
				if err != nil {
					return err
				}
				if len(all) == 0 && p.format == "table" {
					p.say("the outbox is empty")
					return nil
				}
				return list(p, all, func() *table { return p.outboxTable(all) })
			})
		},
	}
}

func (p *program) outboxTable(all []client.Waiting) *table {
	t := newTable("ID", "METHOD", "NODES", "SINCE", "DEADLINE")
	t.whole = "ID"
	for _, w := range all {
		if w.Unreadable != "" {
			t.row("", "", cell{"cannot be read", red}, "", "")
			t.note(w.Unreadable)
			continue
		}
		t.row(w.ID, w.Method, nodesText(w.Nodes), ago(p.now(), w.Since), ago(p.now(), w.Deadline))
	}
	return t
}

func (p *program) outboxFlush() *cobra.Command {
	return &cobra.Command{
		Use:   "flush",
		Short: "Send what waits in the outbox",
		Long:  `Send what waits in the outbox of this machine. Nothing is sent twice.`,
		Example: `  muster outbox flush
  muster outbox flush --context production`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.with(cmd.Context(), func(ctx context.Context, c SDK) error {
				ctx, cancel := context.WithTimeout(ctx, sendTimeout)
				defer cancel()
				n, err := c.FlushOutbox(ctx)
				if n == 0 && err != nil {
					return err
				}
				return errors.Join(err, p.deed(map[string]any{"published": n}, "published %s", plural(n, "send")))
			})
		},
	}
}

// nodesText names a few nodes and counts the others.
func nodesText(nodes []muster.NodeName) string {
	const most = 3
	text := ""
	for i, n := range nodes {
		if i == most && len(nodes) > most+1 {
			return text + fmt.Sprintf(" and %d more", len(nodes)-most)
		}
		if i > 0 {
			text += " "
		}
		text += string(n)
	}
	return text
}
