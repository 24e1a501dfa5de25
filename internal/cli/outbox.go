package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
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
	cmd.AddCommand(
		&cobra.Command{
			Use:     "ls",
			Aliases: []string{"list"},
			Short:   "Say how much waits in the outbox",
			Long:    `Say how many sends wait in the outbox of this machine.`,
			Example: `  muster outbox ls
  muster outbox ls -o json`,
			Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return p.ask(cmd.Context(), func(_ context.Context, c SDK) error {
					n, err := c.OutboxLen()
					if err != nil {
						return err
					}
					return show(p, map[string]int{"waiting": n}, func(w io.Writer) error {
						_, err := fmt.Fprintf(w, "%s in the outbox\n", verb(n, "send waits", "sends wait"))
						return err
					})
				})
			},
		},
		&cobra.Command{
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
					if n > 0 || err == nil {
						p.say("published %s", plural(n, "send"))
					}
					return err
				})
			},
		},
	)
	return cmd
}
