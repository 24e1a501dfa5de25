package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

func (p *program) deadLetterCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "deadletter",
		Short: "Look after messages that nodes could not take for commands",
		Long: `A dead letter is a message that a node could not take for a command. It is set
aside so that it does not hold up what comes after it, and kept so that it can
be queued again when the cause is mended.`,
		Example: `  muster deadletter ls
  muster deadletter show 17
  muster deadletter requeue 17`,
	})
	cmd.AddCommand(p.deadLetterList(), p.deadLetterShow(),
		p.deadLetterChange("requeue SEQ...", "Queue dead letters again", "Queue dead letters again for their nodes, after the cause was mended.", "queued again", "requeued", SDK.Requeue),
		p.deadLetterChange("rm SEQ...", "Remove dead letters for good", "Remove dead letters. There is no way back.", "removed", "removed", SDK.DropDeadLetter),
	)
	return cmd
}

func (p *program) deadLetterList() *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List dead letters",
		Long:    `List dead letters, with why each was set aside.`,
		Example: `  muster deadletter ls
  muster deadletter ls --node web1 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.ask(cmd.Context(), func(ctx context.Context, c SDK) error {
				all, err := c.DeadLetters(ctx, muster.NodeName(node))
				if err != nil {
					return err
				}
				if len(all) == 0 && p.format == "table" {
					p.say("there are no dead letters")
					return nil
				}
				return list(p, all, func() *table {
					t := newTable("SEQ", "NODE", "TIME", "SIZE", "REASON")
					for _, d := range all {
						t.row(d.Seq, d.Node, ago(p.now(), d.Time), d.Size, d.Reason)
					}
					return t
				})
			})
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "only of this node")
	_ = cmd.RegisterFlagCompletionFunc("node", p.completeNodes)
	return cmd
}

func (p *program) deadLetterShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show SEQ",
		Short: "Show a dead letter with its content",
		Long: `Show a dead letter with its content. SEQ is its number in 'muster deadletter
ls'.`,
		Example: `  muster deadletter show 17
  muster deadletter show 17 -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.namedDeadLetters(cmd.Context(), args, func(_ context.Context, _ SDK, named []client.DeadLetter) error {
				d := named[0]
				return show(p, d, func(w io.Writer) error {
					fmt.Fprintf(w, "seq     %d\nnode    %s\ntime    %s\nreason  %s\nsize    %s\n", d.Seq, d.Node, stamp(d.Time), clean(d.Reason), plural(d.Size, "byte"))
					_, err := fmt.Fprintf(w, "data    %s\n", strconv.QuoteToGraphic(string(d.Data)))
					return err
				})
			})
		},
	}
}

func (p *program) deadLetterChange(use, short, long, done, key string, change func(SDK, context.Context, uint64) error) *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Long:  long,
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.namedDeadLetters(cmd.Context(), args, func(ctx context.Context, c SDK, named []client.DeadLetter) error {
				var seqs []uint64
				for _, d := range named {
					seqs = append(seqs, d.Seq)
				}
				if dry {
					return p.deed(map[string]any{"would_be_" + key: seqs}, "dry run: %s would be %s", plural(len(seqs), "dead letter"), done)
				}
				told := deeds{p: p}
				for _, seq := range seqs {
					if err := change(c, ctx, seq); err != nil {
						return errors.Join(fmt.Errorf("dead letter %d: %w", seq, err), told.tell())
					}
					told.add(map[string]any{"seq": seq, key: true}, "%s dead letter %d", done, seq)
				}
				return told.tell()
			})
		},
	}
	cmd.Example = fmt.Sprintf("  muster deadletter %s 17\n  muster deadletter %[1]s 17 18 19 --dry-run", cmd.Name())
	cmd.Flags().BoolVar(&dry, "dry-run", false, "change nothing")
	return cmd
}

// namedDeadLetters calls do with those whose numbers are in args, if all are there.
func (p *program) namedDeadLetters(ctx context.Context, args []string, do func(ctx context.Context, c SDK, named []client.DeadLetter) error) error {
	seqs, err := sequences(args)
	if err != nil {
		return err
	}
	return p.ask(ctx, func(ctx context.Context, c SDK) error {
		all, err := c.DeadLetters(ctx, "")
		if err != nil {
			return err
		}
		var named []client.DeadLetter
		for _, seq := range seqs {
			i := slices.IndexFunc(all, func(d client.DeadLetter) bool { return d.Seq == seq })
			if i < 0 {
				return muster.Errorf(muster.NotFound, "there is no dead letter %d", seq).WithHint("'muster deadletter ls' lists them")
			}
			named = append(named, all[i])
		}
		return do(ctx, c, named)
	})
}

func sequences(args []string) ([]uint64, error) {
	var list []uint64
	for _, a := range args {
		n, err := strconv.ParseUint(a, 10, 64)
		if err != nil {
			e := usagef(nil, "%q is not the number of a dead letter", a)
			e.hint = "'muster deadletter ls' lists them"
			return nil, e
		}
		list = append(list, n)
	}
	return list, nil
}
