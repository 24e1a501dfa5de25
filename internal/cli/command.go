package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

func (p *program) commandCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "command",
		Short: "See what became of commands; follow, cancel and retry them",
		Long: `A send makes one command for each of its nodes, called ID@NODE. ID alone means all
commands of the send.

It is queued (stored by the broker), accepted (the node has it on disk),
running, and then one of: done, failed (after all retries), expired (its
deadline passed before it ran), cancelled, refused (by policy, validation or a
full queue), unknown (the node was interrupted during the run, and a command
that is not idempotent must not run twice).`,
		Example: `  muster command ls --since 1h
  muster command show 01JD3Z@web1
  muster command cancel 01JD3Z`,
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
	var node string
	var states []string
	var limit int
	since := durationFlag(24 * time.Hour)
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
			for _, s := range states {
				if !slices.Contains(stateNames(), s) {
					e := usagef(cmd, "state %q is unknown; expected %s", s, strings.Join(stateNames(), ", "))
					if near := nearest(s, stateNames()); near != "" {
						e.hint = "did you mean " + near + "?"
					}
					return e
				}
			}
			if limit < 0 {
				return usagef(cmd, "-n %d is negative", limit)
			}
			q := client.HistoryQuery{Node: muster.NodeName(node)}
			if since > 0 {
				q.Since = p.now().Add(-time.Duration(since))
			}
			return p.ask(cmd.Context(), func(ctx context.Context, c SDK) error {
				all, err := c.History(ctx, q)
				if err != nil {
					return err
				}
				if len(states) > 0 {
					all = slices.DeleteFunc(all, func(s client.Status) bool { return !slices.Contains(states, string(s.State)) })
				}
				hidden := 0
				if limit > 0 && len(all) > limit {
					hidden = len(all) - limit
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
			})
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "only of this node")
	cmd.Flags().Var(&since, "since", "only those of the last `duration`, such as 90m or 7d; 0 is all that is kept")
	cmd.Flags().StringSliceVar(&states, "state", nil, "only in these states")
	cmd.Flags().IntVarP(&limit, "limit", "n", 50, "at most this many, the latest; 0 is all")
	_ = cmd.RegisterFlagCompletionFunc("node", p.completeNodes)
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(stateNames(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
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

func (p *program) commandShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID[@NODE]",
		Short: "Show a command: each state with its time, exit code and output",
		Long: `Show a command, or all commands of a send: each state with its time, the exit
code, and stdout and stderr apart and whole. Output may have any size; with -o
json, jsonl and yaml what is large goes through a temporary file in TMPDIR, since
it has to be known whether it is text: what is not is in stdout_base64. Output
that cannot be had is told in output_error; the exit code is 1 then.`,
		Example: `  muster command show 01JD3Z5K8Q
  muster command show 01JD3Z5K8Q@web1
  muster command show 01JD3Z5K8Q@web1 -o json | jq -r '.[0].stdout'`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeCommands,
		RunE: keyed(func(cmd *cobra.Command, key muster.Key) error {
			return p.with(cmd.Context(), func(ctx context.Context, c SDK) error {
				quick, cancel := context.WithTimeout(ctx, patience)
				defer cancel()
				all, err := c.Command(quick, key)
				if err != nil {
					return err
				}
				if p.format != "table" {
					return p.outcomes(ctx, c, all)
				}
				for i, s := range all {
					if i > 0 {
						fmt.Fprintln(p.stdout)
					}
					if err := p.commandText(ctx, c, s); err != nil {
						return err
					}
				}
				return nil
			})
		}),
	}
}

func (p *program) commandText(ctx context.Context, c SDK, s client.Status) error {
	w := p.stdout
	field := func(name, value string) {
		if value != "" {
			fmt.Fprintln(w, wrap(fmt.Sprintf("%-9s %s", name, clean(value)), p.outTerm.width, 10))
		}
	}
	data := func(name string, value []byte) { // to be copied, and so in one piece
		if len(value) > 0 {
			fmt.Fprintf(w, "%-9s %s\n", name, clean(string(value)))
		}
	}
	field("command", muster.Key{ID: s.ID, Node: s.Node}.String())
	field("method", string(s.Method))
	data("input", s.Input)
	field("caller", callerText(s))
	state := stateCell(s.State)
	fmt.Fprintf(w, "%-9s %s\n", "state", p.outTerm.paint(state.color, state.text))
	field("reason", reason(s))
	field("exit code", exitText(s))
	field("deadline", stamp(s.Deadline)+" ("+ago(p.now(), s.Deadline)+")")
	fmt.Fprintln(w, "history")
	for _, t := range s.History {
		line := fmt.Sprintf("  %s  %-9s", stamp(t.Time), t.State)
		if t.Attempt > 1 {
			line += fmt.Sprintf("  attempt %d", t.Attempt)
		}
		if t.Reason != "" {
			line += "  " + clean(t.Reason)
		}
		fmt.Fprintln(w, wrap(strings.TrimRight(line, " "), p.outTerm.width, 4))
	}
	r := s.Result
	if r == nil {
		return nil
	}
	if c := r.Child; c != nil {
		more := ""
		if c.Ended > 1 {
			more = fmt.Sprintf(", and %d more", c.Ended-1)
		}
		field("left over", fmt.Sprintf("process %d, started %s%s, ended by the next agent", c.PID, stamp(c.Started), more))
	}
	data("output", r.Output)
	if r.Error != nil {
		field("error", r.Error.Message)
		field("hint", r.Error.Hint)
	}
	for _, stream := range []struct {
		name string
		out  muster.Output
	}{{"stdout", r.Stdout}, {"stderr", r.Stderr}} {
		if stream.out.Size == 0 && stream.out.Truncated == 0 {
			continue
		}
		fmt.Fprintln(w, p.outTerm.paint(dim, fmt.Sprintf("--- %s, %s", stream.name, plural(int(stream.out.Size), "byte"))))
		to := &lines{w: w, on: p.outTerm}
		err := readOutput(ctx, c, s, stream.name, to)
		to.end()
		if err != nil {
			return err
		}
		if stream.out.Truncated > 0 {
			fmt.Fprintln(w, p.outTerm.paint(yellow, fmt.Sprintf("--- %s more were dropped on the node: a limit was reached", plural(int(stream.out.Truncated), "byte"))))
		}
	}
	return nil
}

// lines prints a stream line by line, harmless for a terminal, and ends with a
// line break.
type lines struct {
	w    io.Writer
	on   terminal
	rest []byte
}

func (l *lines) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	i := bytes.LastIndexByte(l.rest, '\n')
	if i < 0 && len(l.rest) < maxLine {
		return len(b), nil
	}
	if i < 0 { // a line without end must not fill the memory
		i = len(l.rest) - 1
	}
	err := l.print(l.rest[:i+1])
	l.rest = append(l.rest[:0], l.rest[i+1:]...)
	return len(b), err
}

// print writes text, in one go.
func (l *lines) print(text []byte) error {
	if !l.on.is { // a file gets the bytes as they are
		_, err := l.w.Write(text)
		return err
	}
	var out strings.Builder
	for line := range strings.Lines(string(text)) {
		body, ended := strings.CutSuffix(line, "\n")
		out.WriteString(cleanLine(strings.TrimSuffix(body, "\r"), l.on.color))
		if ended {
			out.WriteByte('\n')
		}
	}
	_, err := io.WriteString(l.w, out.String())
	return err
}

// end ends the last line.
func (l *lines) end() {
	if len(l.rest) > 0 {
		_ = l.print(append(l.rest, '\n')) // the next write to stdout fails as well
		l.rest = nil
	}
}

func (p *program) commandFollow() *cobra.Command {
	var waitFor durationFlag
	cmd := &cobra.Command{
		Use:   "follow ID",
		Short: "Follow a send until all of its commands have ended",
		Long: `Follow a send until all of its commands have ended, those for nodes that are
away included, and show the output of the runs. Ctrl-C ends the following only.`,
		Example: `  muster command follow 01JD3Z5K8Q
  muster command follow 01JD3Z5K8Q --wait-for 10m -o jsonl`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeSends,
		RunE: keyed(func(cmd *cobra.Command, key muster.Key) error {
			if key.Node != "" {
				return usagef(cmd, "expected an ID alone: a send is followed as a whole")
			}
			return p.with(cmd.Context(), func(ctx context.Context, c SDK) error {
				// Asked first, so that a wrong id is an error instead of a wait.
				quick, cancel := context.WithTimeout(ctx, patience)
				all, err := c.Command(quick, key)
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
		Example: `  muster command cancel 01JD3Z5K8Q
  muster command cancel 01JD3Z5K8Q@web1 --reason "wrong branch"`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeCommands,
		RunE: keyed(func(cmd *cobra.Command, key muster.Key) error {
			return p.ask(cmd.Context(), func(ctx context.Context, c SDK) error {
				all, err := c.Command(ctx, key)
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

func (p *program) commandRetry() *cobra.Command {
	f := sendFlags{maxFailures: 1}
	cmd := &cobra.Command{
		Use:   "retry ID[@NODE]",
		Short: "Send again to the nodes where a command did not end well",
		Long: `Send the same method and input again, under a new id, to those nodes where the
command failed, expired, was cancelled or refused, or where it is unknown what
became of it. Where it is done or has not ended, nothing is sent.

Look first what happened: a command that failed, or that is unknown, may have
had a part of its effect.

Timeout, retries, --noseq and --idempotent are those of the first time unless
given, and there is as much time until the deadline as there was then.`,
		Example: `  muster command retry 01JD3Z5K8Q
  muster command retry 01JD3Z5K8Q@web1 --wait`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeCommands,
		RunE: keyed(func(cmd *cobra.Command, key muster.Key) error {
			if err := f.checkBounds(cmd); err != nil {
				return err
			}
			return p.with(cmd.Context(), func(ctx context.Context, c SDK) error {
				quick, cancel := context.WithTimeout(ctx, patience)
				defer cancel()
				all, err := c.Command(quick, key)
				if err != nil {
					return err
				}
				all = slices.DeleteFunc(all, func(s client.Status) bool { return !s.State.Final() || s.State == muster.Done })
				if len(all) == 0 {
					return muster.Errorf(muster.NothingFound, "nothing to retry: no command of %s has ended badly", key).WithHint("'muster command show %s' shows the states", key.ID)
				}
				known, err := c.Nodes(quick)
				if err != nil {
					return err
				}
				var nodes []client.Node
				for _, s := range all {
					n := client.Node{Name: s.Node}
					if i := slices.IndexFunc(known, func(n client.Node) bool { return n.Name == s.Node }); i >= 0 {
						n = known[i]
					}
					nodes = append(nodes, n)
				}
				f.carryOver(cmd.Flags(), all[0])
				r, err := f.request(p.now(), all[0].Method, all[0].Input, nodes)
				if err != nil {
					return err
				}
				if f.deadline == "" {
					r.Deadline = p.now().Add(lifetime(all[0]))
				}
				if f.dryRun {
					return p.dryRun(r, nodes)
				}
				if err := p.confirm(ctx, f.yes, fmt.Sprintf("send %s again to", r.Method), nodes); err != nil {
					return err
				}
				s := &sending{p: p, c: c, f: &f}
				receipt, err := s.store(ctx, r)
				if err != nil {
					return err
				}
				if f.wait || f.waitAll || f.waitFor > 0 {
					return s.follow(ctx, r, receipt, nodes)
				}
				return s.receipt(receipt, nodes)
			})
		}),
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&f.deadline, "deadline", "", "not started after this: a duration or a time (default: as long as the first time)")
	fs.Var(&f.timeout, "timeout", "bound of one run (default: as the first time)")
	fs.BoolVar(&f.noTimeout, "no-timeout", false, "no bound of one run")
	fs.IntVar(&f.retries, "retries", 0, "further attempts after a failed one (default: as the first time)")
	fs.BoolVar(&f.noseq, "noseq", false, "run beside other commands of this method (default: as the first time)")
	fs.BoolVar(&f.idempotent, "idempotent", false, "running it twice does no harm (default: as the first time)")
	fs.BoolVar(&f.wait, "wait", false, "wait for what becomes of the commands")
	fs.BoolVar(&f.waitAll, "wait-all", false, "wait for nodes that are away, too")
	fs.Var(&f.waitFor, "wait-for", "longest wait, then exit with 5")
	fs.BoolVar(&f.dryRun, "dry-run", false, "send nothing")
	fs.BoolVarP(&f.yes, "yes", "y", false, fmt.Sprintf("do not ask before sending to more than %d nodes", wide))
	return cmd
}

// carryOver takes from an earlier command what the flags do not say.
func (f *sendFlags) carryOver(flags *pflag.FlagSet, s client.Status) {
	if !flags.Changed("timeout") && !flags.Changed("no-timeout") {
		f.timeout, f.noTimeout = durationFlag(max(0, s.Timeout)), s.Timeout < 0
	}
	if !flags.Changed("retries") {
		f.retries = s.Retries
	}
	if !flags.Changed("noseq") {
		f.noseq = s.NoSeq
	}
	if !flags.Changed("idempotent") {
		f.idempotent = s.Idempotent
	}
}

// lifetime is how long an earlier command could wait for its node.
func lifetime(s client.Status) time.Duration {
	if d := s.Deadline.Sub(s.Sent); !s.Sent.IsZero() && d > 0 && d <= muster.MaxLifetime {
		return d
	}
	return client.DefaultLifetime
}

// callerText is who a command is from. The node knows; before it has spoken
// there is only what the sender says of itself.
func callerText(s client.Status) string {
	if s.Caller == "" && s.Claimed != "" {
		return s.Claimed + " (not verified: the node has not spoken yet)"
	}
	return s.Caller
}
