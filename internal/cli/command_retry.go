package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

func (p *program) commandRetry() *cobra.Command {
	f := sendFlags{maxFailures: 1}
	cmd := &cobra.Command{
		Use:   "retry ID[@NODE]",
		Short: "Send again to the nodes where a command did not end well",
		Long: `Send the same method and input again, under a new id, to those nodes where the
command failed, expired, was cancelled or refused, or where it is unknown what
became of it. Where it is done or has not ended, nothing is sent; nor is it to
nodes that were removed from the fleet.

Look first what happened: a command that failed, or that is unknown, may have
had a part of its effect.

Timeout, retries, --noseq and --idempotent are those of the first time unless
given, and there is as much time until the deadline as there was then.`,
		Example: `  muster command retry 01JD3Z5K8QX0V9M4T7RC2HNWBE
  muster command retry 01JD3Z5K8QX0V9M4T7RC2HNWBE@web1 --wait`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeCommands,
		RunE: keyed(func(cmd *cobra.Command, key muster.Key) error {
			if err := f.checkBounds(cmd); err != nil {
				return err
			}
			return p.with(cmd.Context(), func(ctx context.Context, c SDK) error {
				return p.retry(ctx, c, &f, cmd.Flags(), key)
			})
		}),
	}
	f.addRetry(cmd.Flags())
	return cmd
}

func (f *sendFlags) addRetry(fs *pflag.FlagSet) {
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
}

func (p *program) retry(ctx context.Context, c SDK, f *sendFlags, flags *pflag.FlagSet, key muster.Key) error {
	first, nodes, gone, err := endedBadly(ctx, c, key)
	if err != nil {
		return err
	}
	for _, n := range gone {
		p.say("%s %s is in the fleet no more; nothing is sent there", p.errTerm.paint(yellow, "warning:"), n)
	}
	f.carryOver(flags, first)
	r, err := f.request(p.now(), first.Method, first.Input, nodes)
	if err != nil {
		return err
	}
	if f.deadline == "" {
		r.Deadline = p.now().Add(lifetime(first))
	}
	if f.dryRun {
		return p.dryRun(r, nodes)
	}
	if err := p.confirm(ctx, f.yes, fmt.Sprintf("send %s again to", r.Method), nodes); err != nil {
		return err
	}
	s := &sending{p: p, c: c, f: f}
	receipt, err := s.store(ctx, r)
	if err != nil {
		return err
	}
	if f.wait || f.waitAll || f.waitFor > 0 {
		return s.follow(ctx, r, receipt, nodes)
	}
	return s.receipt(receipt, nodes)
}

// endedBadly returns the first command of a key that did not end well, the nodes
// of all that did not, and which nodes of such commands were removed: a machine
// that gets the name later must not get the command. It takes no longer than
// patience.
func endedBadly(ctx context.Context, c SDK, key muster.Key) (first client.Status, nodes []client.Node, gone []muster.NodeName, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	all, err := commandsOf(ctx, c, key)
	if err != nil {
		return first, nil, nil, err
	}
	all = slices.DeleteFunc(all, func(s client.Status) bool { return !s.State.Final() || s.State == muster.Done })
	if len(all) == 0 {
		return first, nil, nil, muster.Errorf(muster.NothingFound, "nothing to retry: no command of %s has ended badly", strings.TrimSuffix(key.String(), "@")).WithHint("'muster command show %s' shows the states", key.ID)
	}
	known, err := c.Nodes(ctx)
	if err != nil {
		return first, nil, nil, err
	}
	for _, s := range all {
		if i := slices.IndexFunc(known, func(n client.Node) bool { return n.Name == s.Node }); i >= 0 {
			nodes = append(nodes, known[i])
		} else {
			gone = append(gone, s.Node)
		}
	}
	if len(nodes) == 0 {
		return first, nil, nil, muster.Errorf(muster.NothingFound, "no node %s in the fleet any more", nodesText(gone))
	}
	return all[0], nodes, gone, nil
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
