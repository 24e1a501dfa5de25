package cli

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/aaa"
)

func (p *program) auditCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "audit",
		Short: "See who had what done, and check the record of it",
		Long: `Each node writes down what it decided about each command: who sent it, what it
was, whether it was allowed, and why. The lines stay on the node, in audit.log
and some older files beside it, and are published. Each names the line before
it, so that one that is changed or missing shows.`,
		Example: `  muster audit ls --decision denied --since 7d
  muster audit verify
  muster audit verify audit.log.1 audit.log --events`,
	})
	cmd.AddCommand(p.auditList(), p.auditVerify())
	return cmd
}

// maxDecisions bounds what is remembered of decisions at a time: 200 MB.
const maxDecisions = 1 << 20

// decisions calls handle for the lines of audit logs that nodes published. One
// that cannot be read, or is another node's, has an error. It gives up when
// nothing comes for as long as patience.
func (p *program) decisions(ctx context.Context, q client.EventQuery, handle func(node muster.NodeName, line string, r aaa.Record, err error) error) error {
	q.Type = muster.EventAudit
	return p.with(ctx, func(ctx context.Context, c SDK) error {
		ctx, cancel := context.WithCancelCause(ctx)
		silence := time.AfterFunc(patience, func() { cancel(context.DeadlineExceeded) })
		count := counter{p: p, what: "decisions read", next: p.now().Add(time.Second)}
		defer func() { silence.Stop(); cancel(nil); count.end() }()
		err := c.Events(ctx, q, func(e client.Event) error {
			silence.Reset(patience)
			count.add()
			line := e.Data["line"]
			r, _, err := aaa.ReadAuditLine([]byte(line))
			if err == nil && r.Node != e.Node {
				err = muster.Errorf(muster.Corrupt, "is a line of %s", r.Node)
			}
			return handle(e.Node, line, r, err)
		})
		if err != nil && context.Cause(ctx) == context.DeadlineExceeded {
			err = muster.Errorf(muster.TimedOut, "the broker has said nothing for %s: %w", patience, err)
		}
		return err
	})
}

// A counter says on a terminal how far something is that takes long.
type counter struct {
	p     *program
	what  string
	n     int
	next  time.Time // when to say it
	drawn bool
}

func (c *counter) add() {
	c.n++
	if now := c.p.now(); c.p.errTerm.is && now.After(c.next) {
		fmt.Fprintf(c.p.stderr, "\r\x1b[K%s", c.p.errTerm.paint(dim, fmt.Sprintf("%d %s", c.n, c.what)))
		c.next, c.drawn = now.Add(time.Second/4), true
	}
}

func (c *counter) end() {
	if c.drawn {
		fmt.Fprint(c.p.stderr, "\r\x1b[K")
	}
}

// auditFilter chooses decisions.
type auditFilter struct {
	decision, caller, method string
}

func (f *auditFilter) check() error {
	known := []string{"", string(aaa.Allowed), string(aaa.Denied), string(aaa.Unauthentic), string(aaa.Replayed)}
	if !slices.Contains(known, f.decision) {
		return usagef(nil, "decision %q is unknown; expected %s", f.decision, strings.Join(known[1:], ", "))
	}
	return nil
}

func (f *auditFilter) match(r aaa.Record) bool {
	return (f.decision == "" || f.decision == string(r.Verdict)) && (f.caller == "" || f.caller == r.Caller) &&
		(f.method == "" || f.method == string(r.Method))
}

func (p *program) auditList() *cobra.Command {
	since := durationFlag(24 * time.Hour)
	var node string
	var chosen auditFilter
	last := 1000
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List what nodes decided about commands",
		Long: `List what nodes decided about commands, the latest last. In the other forms than
the table each has its input, as far as it is kept.`,
		Example: `  muster audit ls
  muster audit ls --node web1 --caller alice
  muster audit ls --decision denied --since 7d -o jsonl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := chosen.check(); err != nil {
				return err
			}
			if last < 1 || last > maxDecisions {
				return usagef(cmd, "--last %d is out of range; expected 1 to %d", last, maxDecisions)
			}
			all, more, err := p.latest(cmd.Context(), client.EventQuery{Node: muster.NodeName(node), Since: p.since(since)}, chosen, last)
			if err != nil {
				return err
			}
			if len(all) == 0 && p.format == "table" {
				p.say("no decisions; --since looks back further")
				return nil
			}
			if err := list(p, all, func() *table { return p.decisionTable(all) }); err != nil {
				return err
			}
			if more > 0 {
				p.say("%d earlier ones are not shown; --last shows more", more)
			}
			return nil
		},
	}
	fs := cmd.Flags()
	fs.Var(&since, "since", "only those of the last `duration`, such as 90m or 7d; 0 is all that is kept")
	fs.StringVar(&chosen.decision, "decision", "", "only allowed, denied, unauthentic or replayed")
	fs.StringVar(&chosen.caller, "caller", "", "only about commands of the caller of this `name`")
	fs.StringVar(&chosen.method, "method", "", "only about this `method`")
	fs.IntVar(&last, "last", last, "at most so many, the latest")
	p.nodeFlag(cmd, &node)
	_ = cmd.RegisterFlagCompletionFunc("method", p.completeMethods)
	_ = cmd.RegisterFlagCompletionFunc("decision", cobra.FixedCompletions([]string{string(aaa.Allowed), string(aaa.Denied),
		string(aaa.Unauthentic), string(aaa.Replayed)}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// latest returns the latest decisions, and how many earlier ones there are.
func (p *program) latest(ctx context.Context, q client.EventQuery, chosen auditFilter, last int) (all []aaa.Record, more int, err error) {
	err = p.decisions(ctx, q, func(_ muster.NodeName, _ string, r aaa.Record, bad error) error {
		if bad != nil || !chosen.match(r) {
			return nil // verify tells of those that cannot be read
		}
		if all = append(all, r); len(all) > 2*last { // not each time
			more += len(all) - last
			all = slices.Clone(all[len(all)-last:])
		}
		return nil
	})
	if n := len(all) - last; n > 0 {
		more, all = more+n, all[n:]
	}
	return all, more, err
}

func (p *program) decisionTable(all []aaa.Record) *table {
	t := newTable("TIME", "NODE", "DECISION", "CALLER", "METHOD", "COMMAND", "INPUT")
	t.whole = "COMMAND"
	colors := map[aaa.Verdict]string{aaa.Allowed: green, aaa.Denied: red, aaa.Unauthentic: red, aaa.Replayed: yellow}
	for _, r := range all {
		t.row(ago(p.now(), r.Time), r.Node, cell{string(r.Verdict), colors[r.Verdict]}, r.Caller, r.Method, r.ID, string(r.Input))
		if r.Verdict != aaa.Allowed {
			t.note(r.Reason)
		}
	}
	return t
}

func (p *program) auditVerify() *cobra.Command {
	var since durationFlag
	var node string
	var compare bool
	cmd := &cobra.Command{
		Use:   "verify [FILE]...",
		Short: "Check that no decision was changed or removed",
		Long: `Check the chain of decisions. Without files, that of all that nodes published
and the broker still has. With files, that of a node's own log, the oldest file
first; this needs no broker.

Each line has the hash of the one before. Nothing follows the last line yet: the
chain does not show a change to that one alone, nor that lines were cut off at
the end, nor that the log was written anew from some line on. With --events the
files are compared with what the node published, too, which shows all of these
as far as the lines had been published.

The exit code is 1 when something is not in order.`,
		Example: `  muster audit verify
  muster audit verify --node web1
  sudo muster audit verify /var/lib/muster/agent/audit.log
  muster audit verify audit.log.2 audit.log.1 audit.log --events`,
		RunE: func(cmd *cobra.Command, files []string) error {
			switch {
			case len(files) == 0 && compare:
				return usagef(cmd, "--events compares files with events: name the files")
			case len(files) > 0 && (node != "" || since != 0):
				return usagef(cmd, "--node and --since choose events; files are checked whole")
			case len(files) > 0:
				return p.verifyFiles(cmd.Context(), files, compare)
			}
			return p.verifyEvents(cmd.Context(), client.EventQuery{Node: muster.NodeName(node), Since: p.since(since)})
		},
	}
	p.nodeFlag(cmd, &node)
	cmd.Flags().Var(&since, "since", "only what was published in the last `duration`; 0 is all that is kept")
	cmd.Flags().BoolVar(&compare, "events", false, "compare the files with what the node published")
	return cmd
}

// A trailReport is what the events of a node say about its audit log.
type trailReport struct {
	Node       muster.NodeName `json:"node"`
	Decisions  int             `json:"decisions"`
	Whole      bool            `json:"whole"` // the first of them is the first of the log
	First      time.Time       `json:"first"`
	Last       time.Time       `json:"last"`
	Unreadable int             `json:"unreadable"` // events that are no line of this node's log
	Gaps       []aaa.Gap       `json:"gaps"`
}

func (r trailReport) result() cell {
	switch {
	case len(r.Gaps) > 0:
		return cell{plural(len(r.Gaps), "gap"), red}
	case r.Unreadable > 0:
		return cell{plural(r.Unreadable, "unreadable line"), red}
	case r.Whole:
		return cell{"in order from the first on", green}
	}
	return cell{"in order; earlier ones are gone", green}
}

func (p *program) verifyEvents(ctx context.Context, q client.EventQuery) error {
	reports, err := p.trailReports(ctx, q)
	if err != nil {
		return err
	}
	if len(reports) == 0 {
		return muster.Errorf(muster.NothingFound, "the broker has no such decisions").WithHint("see 'muster audit ls --since 0'")
	}
	bad := 0
	for _, r := range reports {
		if len(r.Gaps) > 0 || r.Unreadable > 0 {
			bad++
		}
	}
	err = list(p, reports, func() *table {
		t := newTable("NODE", "DECISIONS", "FIRST", "LAST", "RESULT")
		for _, r := range reports {
			t.row(r.Node, r.Decisions, ago(p.now(), r.First), ago(p.now(), r.Last), r.result())
			for _, g := range r.Gaps {
				t.note(g.Time.Local().Format(time.DateTime) + "  " + g.Reason)
			}
		}
		return t
	})
	if err == nil && bad > 0 {
		err = muster.Errorf(muster.Corrupt, "the decisions of %s are not in order", plural(bad, "node")).
			WithHint("compare with the log on the node: muster audit verify FILE... --events")
	}
	return err
}

func (p *program) trailReports(ctx context.Context, q client.EventQuery) ([]trailReport, error) {
	trails := make(map[muster.NodeName]*aaa.Trail)
	unreadable := make(map[muster.NodeName]int)
	n := 0
	err := p.decisions(ctx, q, func(node muster.NodeName, line string, _ aaa.Record, err error) error {
		if trails[node] == nil {
			trails[node] = new(aaa.Trail)
		}
		if err != nil {
			unreadable[node]++
			return nil
		}
		if n++; n > maxDecisions {
			return tooMany().WithHint("choose with --node or --since")
		}
		return trails[node].Add([]byte(line))
	})
	if err != nil {
		return nil, err
	}
	var reports []trailReport
	for _, node := range slices.Sorted(maps.Keys(trails)) {
		t := trails[node]
		r := trailReport{Node: node, Decisions: t.Len(), Whole: t.Whole(), Unreadable: unreadable[node], Gaps: append([]aaa.Gap{}, t.Gaps()...)}
		r.First, r.Last = t.Span()
		reports = append(reports, r)
	}
	return reports, nil
}

func tooMany() *muster.Error {
	return muster.Errorf(muster.Full, "there are more than %d decisions", maxDecisions)
}

// A logReport is what the files of an audit log say.
type logReport struct {
	Node      muster.NodeName `json:"node"`
	Decisions int             `json:"decisions"`
	Whole     bool            `json:"whole"`
	First     time.Time       `json:"first"`
	Last      time.Time       `json:"last"`
	Published *int            `json:"published,omitempty"` // of these; null if it was not asked
	Missing   *int            `json:"missing,omitempty"`   // that were published and are not in the files
}

func (p *program) verifyFiles(ctx context.Context, files []string, compare bool) error {
	var r logReport
	lines := make(map[[sha256.Size]byte]bool)
	check := aaa.AuditCheck{Each: func(hash [sha256.Size]byte, rec aaa.Record) {
		r.Node = rec.Node
		if compare {
			lines[hash] = true
		}
	}}
	for _, name := range files {
		if err := verifyFile(&check, name); err != nil {
			return err
		}
	}
	if check.Lines == 0 {
		return muster.Errorf(muster.NothingFound, "no decisions are in %s", strings.Join(files, ", "))
	}
	r.Decisions, r.Whole, r.First, r.Last = check.Lines, check.Whole, check.First, check.Last
	if compare {
		if err := p.compareWithEvents(ctx, &r, lines); err != nil {
			return err
		}
	}
	if err := show(p, r, r.print); err != nil {
		return err
	}
	if r.Missing != nil && *r.Missing > 0 {
		return muster.Errorf(muster.Corrupt, "the log lacks %s that %s published", plural(*r.Missing, "decision"), r.Node).
			WithHint("the log was cut off or rewritten, or a file of it was not named")
	}
	return nil
}

func verifyFile(check *aaa.AuditCheck, name string) error {
	f, err := os.Open(name)
	if err != nil {
		e := muster.Errorf(muster.Invalid, "%w", err)
		if errors.Is(err, fs.ErrPermission) {
			return e.WithHint("a node's log is for root alone: try sudo")
		}
		return e
	}
	defer f.Close()
	if err := check.Read(f); err != nil {
		return muster.Errorf(muster.KindOf(err), "%s: %w", name, err)
	}
	return nil
}

// compareWithEvents counts which lines were published, and which were
// published and are not there.
func (p *program) compareWithEvents(ctx context.Context, r *logReport, lines map[[sha256.Size]byte]bool) error {
	published, missing := make(map[[sha256.Size]byte]bool), make(map[[sha256.Size]byte]bool)
	err := p.decisions(ctx, client.EventQuery{Node: r.Node}, func(_ muster.NodeName, line string, rec aaa.Record, err error) error {
		hash := aaa.AuditHash([]byte(line))
		switch {
		case err != nil: // verify without files tells of it
		case lines[hash]:
			published[hash] = true
		case r.Whole || !rec.Time.Before(r.First): // else it stands in an older file
			missing[hash] = true
		}
		if len(published)+len(missing) > maxDecisions {
			return tooMany()
		}
		return nil
	})
	n, m := len(published), len(missing)
	r.Published, r.Missing = &n, &m
	return err
}

func (r logReport) print(w io.Writer) error {
	begin := "from the first on"
	if !r.Whole {
		begin = "from where an older file ends"
	}
	_, err := fmt.Fprintf(w, "node       %s\ndecisions  %d, in order %s\nfirst      %s\nlast       %s\n", clean(string(r.Node)), r.Decisions, begin,
		r.First.Local().Format(time.DateTime), r.Last.Local().Format(time.DateTime))
	if err == nil && r.Published != nil {
		_, err = fmt.Fprintf(w, "published  %d of these, and %d that are not among these\n", *r.Published, *r.Missing)
	}
	return err
}
