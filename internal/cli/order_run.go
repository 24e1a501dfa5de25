package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/filter"
	"github.com/musterfleet/muster/internal/methods/onsite"
	"github.com/musterfleet/muster/internal/order"
	"github.com/musterfleet/muster/internal/participant"
)

// callFlags say what is called for.
type callFlags struct {
	target     string
	lease      durationFlag
	breakGlass bool
	retry      int
	within     durationFlag
}

func (f *callFlags) add(cmd *cobra.Command, target string) {
	fs := cmd.Flags()
	fs.StringVarP(&f.target, "target", "t", "", target)
	fs.Var(&f.lease, "lease", "how long machines stay locked if nothing more is heard of you, 4s to 15m")
	fs.BoolVar(&f.breakGlass, "break-glass", false, "go before the calls of others; never before an order")
	fs.IntVar(&f.retry, "retry", 0, "how often to call again when another operator was first, after random pauses")
}

func (f *callFlags) check(cmd *cobra.Command) error {
	switch lease := time.Duration(f.lease); {
	case lease < order.MinLease || lease > order.MaxLease:
		return usagef(cmd, "--lease %s is out of range; expected %s to %s", short(lease), short(order.MinLease), short(order.MaxLease))
	case f.retry < 0:
		return usagef(cmd, "--retry %d is negative", f.retry)
	case f.within < durationFlag(time.Second) || f.within > durationFlag(15*time.Minute):
		return usagef(cmd, "--within %s is out of range; expected 1s to 15m", short(time.Duration(f.within)))
	}
	if f.target == "all" {
		f.target = "" // the protocol's word for it
	}
	return checkSelector(f.target)
}

func (f *callFlags) options(p *program) participant.CallOptions {
	return participant.CallOptions{
		CallOptions: order.CallOptions{Lease: time.Duration(f.lease), Scope: f.target, BreakGlass: f.breakGlass},
		Retries:     f.retry,
		Again:       func(why error, pause time.Duration) { p.say("%s; again in %s", why, short(pause)) },
	}
}

const runOrderLong = `Call machines to order, run a program on all of them, print what it writes as
each answers, and let go. It ends when all have answered. Each line stands
behind the name of its machine: stdout on stdout, stderr on stderr, and a
summary on stderr.

The program is started without a shell; --shell SCRIPT runs a script with
/bin/sh. Of each stream the last 15 KiB are kept. With a session open on this
machine ('muster order call') it is used, and -t chooses among its members.

The exit code is 3 if the program failed somewhere, or a machine that was asked
for did not join (of one that is silent only the name is known, and not the
labels); 5 if some did not answer within --within; 4 if nothing matched.`

func (p *program) orderRun(f *orderFlags) *cobra.Command {
	var script string
	call := &callFlags{lease: durationFlag(time.Minute), within: durationFlag(time.Minute)}
	cmd := &cobra.Command{
		Use:   "run [-t SELECTOR] -- CMD [ARGS...]",
		Short: "Run a program on machines, without a broker",
		Long:  runOrderLong,
		Example: `  muster order run -- uptime
  muster order run -t 'web*' -- systemctl restart nginx
  muster order run --shell 'df -h / | tail -n 1'
  muster order run -t db1 --peer 10.0.0.5 --retry 5 -o json -- uname -a`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			q := runQuestion(args)
			switch {
			case script != "" && len(args) > 0:
				return usagef(cmd, "--shell SCRIPT and a program exclude each other")
			case script != "":
				q = question{method: "script", args: [][]byte{onsite.Script{Script: script}.Encode()}}
			case len(args) == 0:
				return usagef(cmd, "which program? expected -- CMD [ARGS...] or --shell SCRIPT")
			}
			return p.once(cmd, f, call, q, "")
		},
	}
	call.add(cmd, "which machines (default: all)")
	cmd.Flags().Var(&call.within, "within", "how long to wait for answers")
	cmd.Flags().StringVar(&script, "shell", "", "script for /bin/sh, in place of a program")
	return cmd
}

func (p *program) orderQuery(f *orderFlags) *cobra.Command {
	var out string
	call := &callFlags{lease: durationFlag(time.Minute), within: durationFlag(30 * time.Second)}
	var forms strings.Builder
	for _, q := range questions {
		fmt.Fprintf(&forms, "\n  %-24s %s", q.method+" "+q.args, q.what)
	}
	cmd := &cobra.Command{
		Use:   "query METHOD [ARGS...]",
		Short: "Ask machines, and repair them, without a broker",
		Long: `Call machines to order, have them carry out one method, print their answers as
they come, and let go. With a session open on this machine it is used, and -t
chooses among its members.

Methods:
` + forms.String() + `

Exit codes are those of 'muster order run'.`,
		Example: `  muster order query status
  muster order query -t web1 logs nginx.service 50
  muster order query -t broker1 service restart muster-broker.service
  muster order query broker tls://10.0.0.7:4222
  muster order query get /etc/hostname --out ./files
  muster order query -t 'web*' put ./nginx.conf /etc/nginx/nginx.conf 0644`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := parseQuestion(args)
			if err != nil {
				return err
			}
			return p.once(cmd, f, call, q, out)
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			var names []string
			for _, q := range questions {
				names = append(names, q.method)
			}
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
	call.add(cmd, "which machines (default: all)")
	cmd.Flags().Var(&call.within, "within", "how long to wait for answers")
	cmd.Flags().StringVar(&out, "out", "", "of get: folder to keep the files in, one folder for each machine")
	return cmd
}

// checkSelector tells a slip at once, before anybody is called.
func checkSelector(selector string) error {
	if selector == "" {
		return nil
	}
	_, err := filter.Parse(selector)
	return err
}

// once puts a question to an Order: that of the session that is open on this
// machine, or one of its own.
func (p *program) once(cmd *cobra.Command, f *orderFlags, call *callFlags, q question, out string) error {
	if err := errors.Join(f.check(cmd), call.check(cmd)); err != nil {
		return err
	}
	q, err := q.signed(p, f)
	if err != nil {
		return err
	}
	s := &asking{p: p, q: q, within: time.Duration(call.within), out: out}
	return p.holding(cmd.Context(), f, call, func(ctx context.Context, held participant.Held, own *participant.Holding) error {
		if own == nil {
			s.selector = call.target
		} else {
			s.target = call.target
			p.sayAbsent(own.Absent)
		}
		all, err := s.ask(ctx, held)
		if err != nil {
			return err
		}
		return s.finish(all, own)
	})
}

// holding calls f with the Order of an open session, or with one of its own,
// which it lets go afterwards.
func (p *program) holding(ctx context.Context, f *orderFlags, call *callFlags, do func(context.Context, participant.Held, *participant.Holding) error) error {
	c, err := f.readConstellation(p)
	if err != nil {
		return err
	}
	operator, err := f.readOperator(p, c)
	if err != nil {
		return err
	}
	path, err := p.sessionPath(operator)
	if err != nil {
		return err
	}
	if guest := participant.JoinSession(path); guest != nil {
		h, err := guest.Holding(ctx)
		if err != nil {
			return err
		}
		p.say("in the open session, order %s", shortOrder(h.Order))
		return do(ctx, guest, nil)
	}
	return p.onNetwork(ctx, f, c, operator.PrivateKey(), func(ctx context.Context, o *participant.Operator) error {
		if err := f.entry(ctx, o); err != nil {
			return err
		}
		h, err := o.Call(ctx, call.options(p))
		if err != nil {
			return err
		}
		f.ways(ctx, p, o, h.Members)
		err = do(ctx, o, &h)
		if failed := p.letGo(ctx, o); failed != nil && err != nil {
			p.printError(failed) // and not instead of what happened before
		} else if failed != nil {
			return failed
		}
		return err
	})
}

// letGo releases an Order whatever has become of ctx.
func (p *program) letGo(ctx context.Context, o *participant.Operator) error {
	now, err := o.Holding(ctx)
	if err != nil {
		return nil // it is over already
	}
	silent, err := o.Release(context.WithoutCancel(ctx))
	if err != nil {
		return muster.AsError(muster.Unavailable, err).WithHint("the machines are free when the lease ends, at %s", clock(now.Until))
	}
	if len(silent) > 0 {
		p.sayLocked(silent)
	}
	return nil
}

// sayLocked warns of machines that have not acknowledged a release, though it was
// repeated.
func (p *program) sayLocked(silent []participant.Who) {
	p.say("%s %s did not hear the release and may be locked, until %s at the latest", p.errTerm.paint(yellow, "warning:"),
		clean(whoIs(silent)), clock(silent[0].Until))
}

// sayAbsent warns of machines that did not join, but for those that were not
// called.
func (p *program) sayAbsent(all []participant.Who) {
	for _, w := range all {
		if w.Code == order.NotSelected {
			continue
		}
		text := fmt.Sprintf("%s did not join: %s", clean(w.Label()), w.Code)
		if w.Code == order.NoAnswer && w.Name == "" {
			text += "; others heard it less than a minute ago, and its name is not known here"
		}
		p.say("%s %s", p.errTerm.paint(yellow, "warning:"), text)
	}
}

// An asking puts one question to an Order and prints the answers.
type asking struct {
	p        *program
	q        question
	target   string // what was called for
	selector string // which of the members
	within   time.Duration
	out      string // folder for files
	quiet    bool   // no progress
	session  bool   // it is typed at the prompt
	mute     bool   // no answers

	answers map[order.NodeID]memberAnswer
	began   time.Time
	pad     int
	members int
	drawn   bool
}

// ask returns the answers of all members that the selector matches, by name.
func (s *asking) ask(ctx context.Context, held participant.Held) ([]memberAnswer, error) {
	s.answers, s.began = map[order.NodeID]memberAnswer{}, time.Now()
	h, err := held.Holding(ctx)
	if err != nil {
		return nil, err
	}
	s.members = len(h.Members)
	for _, m := range h.Members {
		s.pad = max(s.pad, len(m.Name)) // ids, which are long, give way to names in the answers
	}
	defer s.clear()
	s.progress()
	if s.q.method == "get" {
		err = s.get(ctx, held)
	} else {
		for i, args := range s.q.args {
			if err = s.query(ctx, held, args, i == len(s.q.args)-1); err != nil {
				break
			}
		}
	}
	var all []memberAnswer
	for _, m := range s.answers {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b memberAnswer) int {
		return cmp.Or(strings.Compare(a.Node, b.Node), strings.Compare(a.ID, b.ID))
	})
	return all, err
}

// query sends one query. Answers are shown at the last.
func (s *asking) query(ctx context.Context, held participant.Held, args []byte, last bool) error {
	q := participant.Query{Selector: s.selector, Method: s.q.method, Args: args, Within: s.within}
	silent, err := held.Query(ctx, q, func(a participant.Answer) {
		m := answerOf(s.q.method, a, time.Since(s.began))
		if o, ok := held.(*participant.Operator); ok && m.who.Name != "" {
			o.Learn(m.who.ID, m.who.Name)
		}
		if old, seen := s.answers[a.ID]; seen && old.failed {
			return // an earlier piece failed, and says why
		}
		s.answers[a.ID] = m
		s.pad = max(s.pad, len(m.Node))
		if last {
			s.show(m)
		}
	})
	for _, w := range silent {
		if old, seen := s.answers[w.ID]; !seen || !old.failed {
			s.answers[w.ID] = silentAnswer(s.q.method, w)
			s.show(s.answers[w.ID])
		}
	}
	return err
}

// get reads the pieces of a file until all members' files are whole.
func (s *asking) get(ctx context.Context, held participant.Held) error {
	content := map[order.NodeID][]byte{}
	for offset, more := int64(0), true; more && offset <= onsite.MaxFile; offset += onsite.MaxGet {
		if err := s.query(ctx, held, onsite.Get{Path: s.q.path, Offset: offset}.Encode(), false); err != nil {
			return err
		}
		more = false
		for id, m := range s.answers {
			if !m.failed && int64(len(content[id])) == offset {
				content[id] = append(content[id], m.chunk.Data...)
				more = more || int64(len(content[id])) < m.chunk.Size
			}
		}
	}
	for id, m := range s.answers {
		if !m.failed {
			m.output.Stdout = content[id]
			if int64(len(content[id])) != m.chunk.Size {
				m.failed, m.Error = true, muster.Errorf(muster.Conflict, "the file changed while it was read").WithHint("try again")
			}
			m.Result = map[string]any{"size": m.chunk.Size, "mode": fmt.Sprintf("%04o", m.chunk.Mode)}
		}
		s.answers[id] = s.got(m)
		s.show(s.answers[id])
	}
	return nil
}

// got keeps a file that was asked for, in a folder or in the answer itself.
func (s *asking) got(m memberAnswer) memberAnswer {
	if m.failed {
		return m
	}
	if s.out == "" {
		m.Stdout, m.StdoutBase64 = textOrBytes(m.output.Stdout)
		return m
	}
	to, err := saveFile(s.out, m, s.q.path)
	if err != nil {
		return m.bad(err)
	}
	m.output.Stdout = nil
	m.Result = map[string]any{"file": to, "size": m.chunk.Size}
	return m
}

// show prints one answer as it comes.
func (s *asking) show(m memberAnswer) {
	s.clear()
	switch {
	case s.mute:
	case s.p.format == "jsonl":
		_ = s.p.line(m) // a stdout that is closed ends the program by itself
	case s.p.format == "table":
		s.p.printLines(m, s.pad)
	}
	s.progress()
}

func (s *asking) progress() {
	// The lines of a program that reads the answers, such as less, would stand
	// behind it.
	if s.quiet || !s.p.errTerm.is || !s.p.outTerm.is {
		return
	}
	s.clear()
	_, _ = io.WriteString(s.p.stderr, s.p.errTerm.paint(dim, fmt.Sprintf("%d/%d answered", len(s.answers), s.members)))
	s.drawn = true
}

func (s *asking) clear() {
	if s.drawn {
		_, _ = io.WriteString(s.p.stderr, "\r\x1b[K")
		s.drawn = false
	}
}

// finish prints the summary and returns the exit code as an error.
func (s *asking) finish(all []memberAnswer, own *participant.Holding) error {
	if len(all) == 0 {
		hint := "'muster order query status' shows the members"
		if s.session {
			hint = "'members' shows who there is"
		}
		return muster.Errorf(muster.NothingFound, "no member matches %q", s.selector).WithHint("%s", hint)
	}
	switch {
	case s.p.format == "json" || s.p.format == "yaml":
		if err := s.p.data(all); err != nil {
			return err
		}
	case s.p.format == "jsonl":
	case s.q.method == "status" || s.q.method == "broker":
		if err := s.p.answerTable(s.q.method, all).write(s.p.stdout, s.p.outTerm); err != nil {
			return err
		}
	default:
		if err := s.p.answerTable(s.q.method, all).write(s.p.stderr, s.p.errTerm); err != nil {
			return err
		}
	}
	var missed []participant.Who
	if own != nil {
		missed = missing(own.Absent, s.target)
	}
	return exit(answerCode(all, missed))
}

// missing returns the machines that were asked for and did not join. Of one that
// gave no answer only the name can be known, and not whether it has the labels
// or facts that a selector asks for.
func missing(absent []participant.Who, target string) []participant.Who {
	asked, err := filter.Parse(cmp.Or(target, "all"))
	return slices.DeleteFunc(slices.Clone(absent), func(w participant.Who) bool {
		switch w.Code {
		case order.NotSelected:
			return true
		case order.NoAnswer:
			return err != nil || !asked.Match(filter.Subject{Name: muster.NodeName(w.Name)})
		}
		return false
	})
}

// answerCode returns the exit code for what became of a query.
func answerCode(all []memberAnswer, absent []participant.Who) int {
	failed, denied, silent := 0, 0, 0
	for _, m := range all {
		switch {
		case !m.failed:
		case m.who.Code == order.Denied:
			denied++
		case m.who.Code == order.OK || m.who.Code == order.Failed:
			failed++
		default:
			silent++
		}
	}
	failed += len(absent)
	switch {
	case denied == len(all) && failed == 0:
		return ExitDenied
	case failed+denied > 0:
		return ExitFailed
	case silent > 0:
		return ExitPending
	}
	return ExitOK
}
