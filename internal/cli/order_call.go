package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/order"
	"github.com/musterfleet/muster/internal/participant"
)

const callLong = `Call all machines in reach to order, or those that -t selects, and hold them for
as long as this session lives. Nobody else can have them in the meantime. Who
joined is shown, and who did not and why: busy (another operator has it), clock
(its clock or its start does not fit the call's time), refused, or no answer.

At the prompt, 'run CMD', 'query METHOD' and others do something on the members;
'help' lists them. The lease is renewed in the background, at half of its time.
Ctrl-D, Ctrl-C twice at the prompt, and SIGTERM let go. If this program dies,
the machines are free when the lease ends. Ctrl-C during a command stops waiting
for answers.

The session is also of use to 'muster order run', 'query', 'renew' and 'release'
of the same user on this machine.

Only one operator can have a machine. If another was first, the call fails and
names the other order; --retry calls again after a random pause. --break-glass
goes before other calls that are under way, but never before an order.

With -- CMD, or -- query METHOD: call, do that, let go. Lines can come from a
pipe as well; the exit code is then that of the last one that did not end well.`

func (p *program) orderCall(f *orderFlags) *cobra.Command {
	call := &callFlags{lease: durationFlag(time.Minute), within: durationFlag(time.Minute)}
	cmd := &cobra.Command{
		Use:   "call [-t SELECTOR] [-- CMD [ARGS...]]",
		Short: "Take machines, and operate them from a prompt",
		Long:  callLong,
		Example: `  muster order call
  muster order call -t 'web*' --lease 5m
  muster order call --retry 10 -- systemctl is-active nginx
  muster order call -- query status
  echo 'run uptime' | muster order call`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				q, err := callQuestion(args)
				if err != nil {
					return err
				}
				return p.once(cmd, f, call, q, "")
			}
			if err := errors.Join(f.check(cmd), call.check(cmd)); err != nil {
				return err
			}
			return p.callSession(cmd.Context(), f, call)
		},
	}
	call.add(cmd, "which machines to call (default: all)")
	cmd.Flags().Var(&call.within, "within", "how long to wait for answers")
	return cmd
}

// callQuestion reads what stands behind --: a program, or query METHOD.
func callQuestion(words []string) (question, error) {
	if words[0] == "query" && len(words) > 1 {
		return parseQuestion(words[1:])
	}
	return runQuestion(words), nil
}

// callSession calls, and serves the prompt until the Order ends.
func (p *program) callSession(ctx context.Context, f *orderFlags, call *callFlags) error {
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
	return p.onNetwork(ctx, f, c, operator.PrivateKey(), func(ctx context.Context, o *participant.Operator) error {
		open, err := participant.ListenSession(path, o)
		if err != nil {
			return err
		}
		h, err := p.call(ctx, f, o, call)
		if err != nil {
			open.Close()
			return err
		}
		s := &session{p: p, o: o, f: f, open: open, within: time.Duration(call.within)}
		s.sign = func(q question) (question, error) { return q.signed(p, f) }
		err = s.run(ctx, h)
		if _, over := o.Holding(ctx); over != nil {
			return err
		}
		if failed := p.letGo(ctx, o); failed != nil {
			p.printError(failed)
		} else {
			p.say("released order %s", shortOrder(h.Order))
		}
		return err
	})
}

func (p *program) call(ctx context.Context, f *orderFlags, o *participant.Operator, call *callFlags) (participant.Holding, error) {
	if err := f.entry(ctx, o); err != nil {
		return participant.Holding{}, err
	}
	return o.Call(ctx, call.options(p))
}

// A session is an Order with a prompt.
type session struct {
	p      *program
	o      *participant.Operator
	f      *orderFlags
	open   *participant.Session
	within time.Duration
	sign   func(question) (question, error)

	code  int // of the last command that did not end well
	input *prompt
}

var (
	errLeave = errors.New("leave the session")
	// errLost is the end of an Order that nobody asked for.
	errLost = muster.Errorf(muster.Interrupted, "the order is lost: no member heard a renewal before the lease ended").
		WithHint("the machines are free again; 'muster order neighbours' shows who is there")
)

// run serves the prompt until the session ends, and returns why.
func (s *session) run(ctx context.Context, h participant.Holding) error {
	ctx, cancel := context.WithCancel(ctx)
	var helpers sync.WaitGroup
	helpers.Go(func() { s.open.Serve(ctx) })
	defer func() {
		cancel()
		helpers.Wait()
	}()
	s.learn(ctx)
	s.input = s.p.newPrompt(shortOrder(h.Order)[:6])
	defer s.input.close()
	s.p = s.input.program
	s.welcome(ctx)
	notices := make(chan participant.Notice)
	helpers.Go(func() { s.listen(ctx, notices) })
	for {
		if s.isReleased() {
			s.p.say("released by another command of this machine")
			return exit(s.code)
		}
		if ctx.Err() != nil { // also when there are no more lines: a select would choose
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.open.Released():
		case n := <-notices:
			if s.told(n) {
				return errLost
			}
		case line, ok := <-s.input.lines:
			if !ok {
				return exit(s.code)
			}
			if err := s.command(ctx, line, notices); errors.Is(err, errLeave) {
				return exit(s.code)
			} else if err != nil {
				return err
			}
			s.input.ready()
		}
	}
}

// listen hands over what happens.
func (s *session) listen(ctx context.Context, to chan<- participant.Notice) {
	for {
		n, err := s.o.Next(ctx)
		if err != nil {
			return
		}
		select {
		case to <- n:
		case <-ctx.Done():
			return
		}
	}
}

// told says what happened, and reports whether the Order is lost.
func (s *session) told(n participant.Notice) bool {
	switch n.Kind {
	case order.LeaseOver:
		return true
	case order.NeighbourDown:
		s.p.say("%s does not answer any more", clean(participant.Who{ID: n.Node, Name: n.Name}.Label()))
	case order.RenewDone:
		if len(n.Silent) > 0 {
			s.p.say("%s not renewed: %s; free when their lease ends", s.p.errTerm.paint(yellow, "warning:"), clean(whoIs(n.Silent)))
		}
	}
	return false
}

// learn asks members for their names, where a neighbour has not told them.
func (s *session) learn(ctx context.Context) {
	h, err := s.o.Holding(ctx)
	if err != nil {
		return
	}
	for _, m := range h.Members {
		if m.Name == "" {
			a := &asking{p: s.p, q: question{method: "status", args: [][]byte{nil}}, within: 3 * time.Second, quiet: true, mute: true}
			_, _ = a.ask(ctx, s.o) // a member without a name is shown by its id
			return
		}
	}
}

// welcome shows who joined and who did not.
func (s *session) welcome(ctx context.Context) {
	h, err := s.o.Holding(ctx)
	if err != nil {
		return // said by told
	}
	s.p.say("order %s: %s joined, yours until you let go (lease %s, renewed by itself)", shortOrder(h.Order), machines(len(h.Members)), short(h.Lease))
	if len(h.Members) <= maxShown {
		s.p.say("%s", clean(whoIs(h.Members)))
	}
	s.f.ways(ctx, s.p, s.o, h.Members)
	s.p.sayAbsent(h.Absent)
	if s.input.terminal {
		s.p.say("'help' lists what you can do, Ctrl-D lets go")
	}
}

// maxShown is how many names are listed where a table was not asked for.
const maxShown = 20

const sessionHelp = `  run CMD [ARGS..]             run a program on all members
  sh SCRIPT                    run a script with /bin/sh, all of the line
  on SELECTOR run|sh|query ..  the same on some of them
  query METHOD [ARGS..]        ask, or repair:
%s  members                      who joined, who did not and why, and until when
  renew                        extend the lease now
  release                      let go and leave; Ctrl-D does, too
  Ctrl-C                       stop waiting; twice, without a command: let go
`

// command carries out one line.
func (s *session) command(ctx context.Context, line string, notices <-chan participant.Notice) error {
	words, starts, err := splitWords(line)
	if err != nil {
		s.done(err)
		return nil
	}
	if len(words) == 0 {
		return nil
	}
	switch words[0] {
	case "help", "?":
		var forms strings.Builder
		for _, q := range questions {
			fmt.Fprintf(&forms, "      %-24s %s\n", q.method+" "+q.args, q.what)
		}
		fmt.Fprintf(s.p.stderr, sessionHelp, forms.String()) // and not said: that is for one line
		return nil
	case "members":
		s.done(s.showMembers(ctx))
		return nil
	case "renew":
		h, _, err := s.o.Renew(ctx)
		if err == nil {
			s.p.say("renewed until %s", clock(h.Until)) // told warns of those who did not hear it
		}
		s.done(err)
		return nil
	case "release", "exit", "quit":
		return errLeave
	}
	selector, q, err := s.question(line, words, starts)
	if err != nil {
		s.done(err)
		return nil
	}
	return s.ask(ctx, selector, q, notices)
}

// question reads a line that asks something of the members.
func (s *session) question(line string, words []string, starts []int) (selector string, q question, err error) {
	if words[0] == "on" {
		if len(words) < 3 {
			return "", q, usagef(nil, "expected: on SELECTOR run|sh|query ..")
		}
		selector = words[1]
		if err := checkSelector(selector); err != nil {
			return "", q, err
		}
		words, starts = words[2:], starts[2:]
	}
	switch {
	case words[0] == "run" && len(words) > 1:
		return selector, runQuestion(words[1:]), nil
	case words[0] == "sh" && len(words) > 1:
		// As it was written: the shell of the members takes it apart.
		q, err := parseQuestion([]string{"script", line[starts[1]:]})
		return selector, q, err
	case words[0] == "query" && len(words) > 1:
		q, err := parseQuestion(words[1:])
		return selector, q, err
	}
	known := []string{"run", "sh", "query", "on", "members", "renew", "release", "help"}
	e := usagef(nil, "%q is not understood; expected %s", line, strings.Join(known, ", "))
	e.hint = "'help' explains them; a program is run with 'run " + line + "'"
	if slices.Contains(known, words[0]) {
		e.hint = "'help' shows what has to follow"
	} else if near := nearest(words[0], known); near != "" {
		e.hint = "did you mean " + near + "?"
	}
	return "", q, e
}

// ask puts a question to the members. Ctrl-C ends the waiting, and what happens
// meanwhile is said.
func (s *session) ask(ctx context.Context, selector string, q question, notices <-chan participant.Notice) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	q, err := s.sign(q)
	if err != nil {
		return err
	}
	a := &asking{p: s.p, q: q, selector: selector, within: s.within, quiet: true, session: true}
	type result struct {
		all []memberAnswer
		err error
	}
	results := make(chan result, 1)
	go func() {
		all, err := a.ask(ctx, s.o)
		results <- result{all, err}
	}()
	released := s.open.Released()
	for lost := false; ; {
		select {
		case <-s.input.interrupts:
			cancel()
		case <-released:
			released = nil // run says so
			cancel()
		case n := <-notices:
			if s.told(n) {
				lost = true
				cancel()
			}
		case r := <-results:
			switch {
			case lost:
				return errLost
			case r.err != nil && s.isReleased():
			case r.err != nil && ctx.Err() != nil:
				s.p.say("not waited for any more; what runs goes on until its time is over")
			case r.err != nil:
				s.done(r.err)
			default:
				s.done(a.finish(r.all, nil))
			}
			return nil
		}
	}
}

func (s *session) isReleased() bool {
	select {
	case <-s.open.Released():
		return true
	default:
		return false
	}
}

// done says and notes how a command ended.
func (s *session) done(err error) {
	if err == nil {
		return
	}
	s.code = exitCode(err)
	s.p.printError(err)
}

func (s *session) showMembers(ctx context.Context) error {
	h, err := s.o.Holding(ctx)
	if err != nil {
		return err
	}
	t := newTable("NODE", "ID", "STATE", "REASON")
	for _, m := range h.Members {
		t.row(m.Label(), m.ID, cell{"joined", green}, "")
	}
	for _, m := range h.Absent {
		t.row(m.Label(), m.ID, cell{strings.ReplaceAll(codeWord(m.Code), "_", " "), yellow}, m.Code)
	}
	if err := t.write(s.p.stdout, s.p.outTerm); err != nil {
		return err
	}
	s.p.say("order %s, lease until %s", h.Order, clock(h.Until))
	return nil
}

// splitWords takes a line apart as a shell does, with single and double quotes
// and backslashes, and nothing else. It returns where each word starts, too.
func splitWords(line string) (words []string, starts []int, err error) {
	var word strings.Builder
	in, escaped, quote := false, false, rune(0)
	begin := func(i int) {
		if !in {
			in, starts = true, append(starts, i)
		}
	}
	for i, r := range line {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			begin(i)
			escaped = true
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			begin(i)
			quote = r
		case r == ' ' || r == '\t':
			if in {
				words = append(words, word.String())
				word.Reset()
			}
			in = false
		default:
			begin(i)
			word.WriteRune(r)
		}
	}
	if quote != 0 || escaped {
		return nil, nil, usagef(nil, "a quote is not closed")
	}
	if in {
		words = append(words, word.String())
	}
	return words, starts, nil
}

// guest returns the session that is open on this machine.
func (p *program) guest(f *orderFlags) (*participant.Guest, error) {
	c, err := f.readConstellation(p)
	if err != nil {
		return nil, err
	}
	operator, err := f.readOperator(p, c)
	if err != nil {
		return nil, err
	}
	path, err := p.sessionPath(operator)
	if err != nil {
		return nil, err
	}
	if guest := participant.JoinSession(path); guest != nil {
		return guest, nil
	}
	return nil, muster.Errorf(muster.NotFound, "no session of this operator is open on this machine").
		WithHint("'muster order call' opens one; the machines of one that died are free when its lease ends")
}

func (p *program) orderRenew(f *orderFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "renew",
		Short: "Extend the lease of the open session now",
		Long: `Extend the lease of the session that is open on this machine now. A session does
so by itself when half of its lease is over.`,
		Example: `  muster order renew`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			guest, err := p.guest(f)
			if err != nil {
				return err
			}
			h, silent, err := guest.Renew(cmd.Context())
			if err != nil {
				return err
			}
			data := map[string]any{"order": h.Order.String(), "until": h.Until, "silent": whoList(silent)}
			err = show(p, data, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "order  %s\nuntil  %s\n", shortOrder(h.Order), clock(h.Until))
				return err
			})
			if len(silent) > 0 {
				p.say("%s %s did not hear the renewal: free at %s, when the lease ends", p.errTerm.paint(yellow, "warning:"), clean(whoIs(silent)), clock(h.Until))
				err = errors.Join(err, exit(ExitFailed))
			}
			return err
		},
	}
}

func (p *program) orderRelease(f *orderFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "release",
		Short: "End the open session and free its machines",
		Long: `End the session that is open on this machine, and free its machines. Without a
session there is nothing to release: the lease of one that died ends by itself.`,
		Example: `  muster order release`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			guest, err := p.guest(f)
			if err != nil {
				return err
			}
			h, err := guest.Holding(cmd.Context())
			if err != nil {
				return err
			}
			silent, err := guest.Release(cmd.Context())
			if err != nil {
				return err
			}
			data := map[string]any{"order": h.Order.String(), "members": whoList(h.Members), "silent": whoList(silent)}
			if len(silent) > 0 {
				data["locked_until"] = silent[0].Until // at the latest
			}
			err = show(p, data, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "released order %s: %s free\n", shortOrder(h.Order), machines(len(slices.DeleteFunc(h.Members, isIn(silent)))))
				return err
			})
			if len(silent) > 0 {
				p.sayLocked(silent)
				err = errors.Join(err, exit(ExitFailed))
			}
			return err
		},
	}
}

// isIn returns whether a machine is one of a list.
func isIn(list []participant.Who) func(participant.Who) bool {
	return func(w participant.Who) bool {
		return slices.ContainsFunc(list, func(o participant.Who) bool { return o.ID == w.ID })
	}
}

func whoList(all []participant.Who) []string {
	list := []string{}
	for _, w := range all {
		list = append(list, w.Label())
	}
	return list
}
