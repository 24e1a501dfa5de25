package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

func (p *program) commandCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "command",
		Short: "See what became of commands; follow, cancel and retry them",
		Long: `A send makes one command for each of its nodes, called ID@NODE. ID alone means
all commands of the send.

It is queued (stored by the broker), accepted (the node has it on disk),
running, and then one of: done, failed (after all retries), expired (its
deadline passed before it ran), cancelled, refused (by policy, validation or a
full queue), unknown (the node was interrupted during the run, and a command
that is not idempotent must not run twice).`,
		Example: `  muster command ls --since 1h
  muster command show 01JD3Z5K8QX0V9M4T7RC2HNWBE@web1
  muster command cancel 01JD3Z5K8QX0V9M4T7RC2HNWBE`,
	})
	cmd.AddCommand(p.commandList(), p.commandShow(), p.commandFollow(), p.commandCancel(), p.commandRetry())
	return cmd
}

func stateNames() []string {
	var list []string
	for _, s := range muster.States() {
		list = append(list, string(s))
	}
	return list
}

func (p *program) commandList() *cobra.Command {
	f := historyFlags{since: durationFlag(24 * time.Hour)}
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List commands",
		Long:    `List the commands that were sent, the latest last.`,
		Example: `  muster command ls
  muster command ls --node web1 --since 7d
  muster command ls --state failed,unknown -n 0 -o jsonl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			return p.ask(cmd.Context(), func(ctx context.Context, c SDK) error { return p.listHistory(ctx, c, f) })
		},
	}
	cmd.Flags().StringVar(&f.node, "node", "", "only of this node")
	cmd.Flags().Var(&f.since, "since", "only those of the last `duration`, such as 90m or 7d; 0 is all that is kept")
	cmd.Flags().StringSliceVar(&f.states, "state", nil, "only in these states")
	cmd.Flags().IntVarP(&f.limit, "limit", "n", 50, "at most this many, the latest; 0 is all")
	_ = cmd.RegisterFlagCompletionFunc("node", p.completeNodes)
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(stateNames(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// historyFlags choose commands that were sent.
type historyFlags struct {
	node   string
	states []string
	limit  int
	since  durationFlag
}

func (f historyFlags) check(cmd *cobra.Command) error {
	for _, s := range f.states {
		if !slices.Contains(stateNames(), s) {
			e := usagef(cmd, "state %q is unknown; expected %s", s, strings.Join(stateNames(), ", "))
			if near := nearest(s, stateNames()); near != "" {
				e.hint = "did you mean " + near + "?"
			}
			return e
		}
	}
	if f.limit < 0 {
		return usagef(cmd, "-n %d is negative", f.limit)
	}
	return nil
}

func (p *program) listHistory(ctx context.Context, c SDK, f historyFlags) error {
	q := client.HistoryQuery{Node: muster.NodeName(f.node)}
	if f.since > 0 {
		q.Since = p.now().Add(-time.Duration(f.since))
	}
	all, err := c.History(ctx, q)
	if err != nil {
		return err
	}
	if len(f.states) > 0 {
		all = slices.DeleteFunc(all, func(s client.Status) bool { return !slices.Contains(f.states, string(s.State)) })
	}
	hidden := 0
	if f.limit > 0 && len(all) > f.limit {
		hidden = len(all) - f.limit
		all = all[hidden:]
	}
	if len(all) == 0 && p.format == "table" {
		p.say("no such commands; --since looks back further")
		return nil
	}
	var items []outcome
	for _, s := range all {
		o := outcomeOf(s)
		o.History = nil
		items = append(items, o)
	}
	err = list(p, items, func() *table { return p.commandTable(all) })
	if hidden > 0 {
		p.say("%s left out; -n 0 shows all", verb(hidden, "earlier command was", "earlier commands were"))
	}
	return err
}

// commandsOf returns the commands of a key, at least one: a key that nobody knows
// matches nothing, as a selector can.
func commandsOf(ctx context.Context, c SDK, key muster.Key) ([]client.Status, error) {
	all, err := c.Command(ctx, key)
	if e, ok := errors.AsType[*muster.Error](err); ok && e.Kind == muster.NotFound {
		return nil, muster.Errorf(muster.NothingFound, "%w", err).WithHint("%s", e.Hint)
	}
	return all, err
}

// keyed makes a command about ID or ID@NODE.
func keyed(f func(cmd *cobra.Command, key muster.Key) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		key, err := muster.ParseKey(args[0])
		if err != nil {
			return usage(err)
		}
		return f(cmd, key)
	}
}

func (p *program) commandFollow() *cobra.Command {
	var waitFor durationFlag
	cmd := &cobra.Command{
		Use:   "follow ID",
		Short: "Follow a send until all of its commands have ended",
		Long: `Follow a send until all of its commands have ended, those for nodes that are
away included, and show the output of the runs. Ctrl-C ends the following only.`,
		Example: `  muster command follow 01JD3Z5K8QX0V9M4T7RC2HNWBE
  muster command follow 01JD3Z5K8QX0V9M4T7RC2HNWBE --wait-for 10m -o jsonl`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeSends,
		RunE: keyed(func(cmd *cobra.Command, key muster.Key) error {
			if key.Node != "" {
				return usagef(cmd, "expected an ID alone: a send is followed as a whole")
			}
			return p.with(cmd.Context(), func(ctx context.Context, c SDK) error {
				// Asked first, so that a wrong id is an error instead of a wait.
				quick, cancel := context.WithTimeout(ctx, patience)
				all, err := commandsOf(quick, c, key)
				cancel()
				if err != nil {
					return err
				}
				s := &sending{p: p, c: c, f: &sendFlags{waitAll: true, waitFor: waitFor}, wait: true, live: true}
				w := p.watch(c, p.format == "table")
				w.id, w.total = key.ID, len(all)
				for _, status := range all {
					w.pad = max(w.pad, len(status.Node))
					if !status.State.Final() {
						w.status[status.Node] = status // the others come with their output
					}
				}
				s.streamLines(ctx, w)
				return s.end(ctx, w, s.await(ctx, w, nil), nil, ExitOK)
			})
		}),
	}
	cmd.Flags().Var(&waitFor, "wait-for", "longest wait, then exit with 5")
	return cmd
}

func (p *program) commandCancel() *cobra.Command {
	var reason string
	var dry bool
	cmd := &cobra.Command{
		Use:   "cancel ID[@NODE]",
		Short: "Cancel commands that have not ended",
		Long: `Cancel the commands of a send, or one of them. What waits does not run any
more; what runs is ended. The outcome is in 'muster command show' when the node
has heard of it: a node that is away hears of it when it comes back, before it
runs anything.`,
		Example: `  muster command cancel 01JD3Z5K8QX0V9M4T7RC2HNWBE
  muster command cancel 01JD3Z5K8QX0V9M4T7RC2HNWBE@web1 --reason "wrong branch"`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeCommands,
		RunE: keyed(func(cmd *cobra.Command, key muster.Key) error {
			return p.ask(cmd.Context(), func(ctx context.Context, c SDK) error {
				all, err := commandsOf(ctx, c, key)
				if err != nil {
					return err
				}
				var nodes []muster.NodeName
				for _, s := range all {
					// What is expired by inference alone may still be there.
					if !s.State.Final() || s.Inferred {
						nodes = append(nodes, s.Node)
					}
				}
				if len(nodes) == 0 {
					return muster.Errorf(muster.Conflict, "nothing to cancel: %s", ended(all)).WithHint("'muster command show %s' shows the outcome", key.ID)
				}
				if dry {
					return p.deed(map[string]any{"id": key.ID, "would_cancel": nodes}, "dry run: %s would be cancelled", plural(len(nodes), "command"))
				}
				n, err := c.Cancel(ctx, key.ID, nodes, reason)
				if n == 0 && err == nil {
					err = muster.Errorf(muster.Conflict, "nothing to cancel: the nodes were removed")
				}
				if n == 0 {
					return err
				}
				return errors.Join(err, p.deed(map[string]any{"id": key.ID, "asked": n},
					"asked to cancel %s; the outcome: muster command show %s", plural(n, "command"), key.ID))
			})
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "cancel nothing")
	return cmd
}

func ended(all []client.Status) string {
	if len(all) == 1 {
		return "the command is " + string(all[0].State) + " already"
	}
	return fmt.Sprintf("all %d commands have ended", len(all))
}
