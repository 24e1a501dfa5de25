package cli

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// sendTimeout bounds storing the commands of one send, which may be thousands.
const sendTimeout = 2 * time.Minute

// wide is the number of nodes above which a person is asked first.
const wide = 10

// sendFlags are the flags of whatever sends commands.
type sendFlags struct {
	choice     selectorFlags
	selector   string // what was chosen, after check
	id         string
	deadline   string
	timeout    durationFlag
	noTimeout  bool
	retries    int
	noseq      bool
	idempotent bool
	yes        bool
	dryRun     bool

	wait    bool
	waitAll bool
	waitFor durationFlag

	batch       int
	pause       durationFlag
	maxFailures int
}

func (f *sendFlags) add(p *program, cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.SortFlags = false
	f.choice.add(p, cmd, "`selector` of the nodes; \"all\" is every node (required, or one of the following)")
	fs.StringVar(&f.deadline, "deadline", "", "not started after this: a duration (24h, 7d) or a time (18:30, RFC 3339) (default 7d)")
	fs.Var(&f.timeout, "timeout", "bound of one run (default: the method's)")
	fs.BoolVar(&f.noTimeout, "no-timeout", false, "no bound of one run")
	fs.IntVar(&f.retries, "retries", 0, "further attempts after a failed one")
	fs.BoolVar(&f.noseq, "noseq", false, "run beside other commands of this method instead of after them")
	fs.BoolVar(&f.idempotent, "idempotent", false, "running it twice does no harm: an interrupted run is run again instead of being called unknown")
	fs.StringVar(&f.id, "id", "", "id of the send; sending again with the same id repeats nothing")
	fs.BoolVar(&f.waitAll, "wait-all", false, "wait for nodes that are away, too")
	fs.Var(&f.waitFor, "wait-for", "longest wait, then exit with 5; the commands go on")
	fs.IntVar(&f.batch, "batch", 0, "rolling: send to this many nodes, wait for them, then to the next")
	fs.Var(&f.pause, "pause", "rolling: pause between batches")
	fs.IntVar(&f.maxFailures, "max-failures", 1, "rolling: send no further batch after this many failures")
	fs.BoolVar(&f.dryRun, "dry-run", false, "show what would be sent, to whom, and send nothing")
	fs.BoolVarP(&f.yes, "yes", "y", false, fmt.Sprintf("do not ask before sending to more than %d nodes", wide))
}

func (f *sendFlags) check(cmd *cobra.Command) error {
	var err error
	if f.selector, err = f.choice.expression(); err != nil {
		return err
	}
	switch {
	case f.selector == "":
		e := usagef(cmd, "which nodes? -t is required")
		e.hint = "-t web1 is one node, -t role=web a group, -t all every node"
		return e
	case cmd.Flags().Changed("batch") && f.batch < 1:
		return usagef(cmd, "--batch %d is out of range; expected 1 or more", f.batch)
	case f.maxFailures < 1:
		return usagef(cmd, "--max-failures %d is out of range; expected 1 or more", f.maxFailures)
	case f.batch == 0 && (cmd.Flags().Changed("pause") || cmd.Flags().Changed("max-failures")):
		return usagef(cmd, "--pause and --max-failures are for rolling sends: --batch is missing")
	}
	if err := f.checkBounds(cmd); err != nil {
		return err
	}
	if f.id != "" {
		return usage(muster.CommandID(f.id).Validate())
	}
	return nil
}

// checkBounds checks what bounds the runs.
func (f *sendFlags) checkBounds(cmd *cobra.Command) error {
	switch {
	case f.retries < 0 || f.retries > muster.MaxRetries:
		return usagef(cmd, "--retries %d is out of range; expected 0 to %d", f.retries, muster.MaxRetries)
	case f.noTimeout && f.timeout != 0:
		return usagef(cmd, "--timeout and --no-timeout exclude each other")
	}
	return nil
}

func (f *sendFlags) request(now time.Time, m muster.Method, input json.RawMessage, nodes []client.Node) (client.Request, error) {
	r := client.Request{
		ID: muster.CommandID(f.id), Method: m, Input: input, Nodes: names(nodes),
		Timeout: time.Duration(f.timeout), Retries: f.retries, NoSeq: f.noseq, Idempotent: f.idempotent,
		Deadline: now.Add(client.DefaultLifetime),
	}
	if f.noTimeout {
		r.Timeout = -1
	}
	if f.deadline != "" {
		var err error
		if r.Deadline, err = deadline(now, f.deadline); err != nil {
			return r, usage(err)
		}
	}
	return r, nil
}

func names(nodes []client.Node) []muster.NodeName {
	list := make([]muster.NodeName, len(nodes))
	for i, n := range nodes {
		list[i] = n.Name
	}
	return list
}

func online(nodes []client.Node) []muster.NodeName {
	list := []muster.NodeName{} // not nil, which would mean all
	for _, n := range nodes {
		if n.Online {
			list = append(list, n.Name)
		}
	}
	return list
}

func (p *program) sendCommand() *cobra.Command {
	var f sendFlags
	cmd := &cobra.Command{
		Use:   "send METHOD [ARGS...] -t SELECTOR",
		Short: "Send a command to nodes, away or not",
		Long: `Send a command to nodes. It is stored by the broker until each node has taken
it, also when the node is away now; it runs at most once, in the order sent, and
its outcome is kept.

ARGS are key=value as the method's schema says, or words for its main
properties, or one JSON object. 'muster method show METHOD' tells which.

The id of the send goes to stdout. With --wait, what became of the commands
does, as soon as every node that is online has finished; nodes that are away
get theirs later. --wait-all waits for those too, --wait-for bounds the wait.
Ending the wait does not end the commands.

With --batch N the send is rolling: to N nodes; then, when they have finished
and after the --pause, to the next N, and so on until --max-failures of them
have not ended well. Nodes that are away are left out, unless --wait-all waits
for them, at the end. A broker that goes away in between is waited for.`,
		Example: `  muster send echo hello -t web1 --wait
  muster send http.get url=http://localhost/health -t role=web --wait -o json
  muster send shell.run --deadline 1h -t 'web* and not web1' -- apt-get update
  muster send shell.run --batch 2 --pause 9s -t 'web*' -- systemctl reload nginx
  muster send echo hello -t all --dry-run`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef(cmd, "which method? 'muster method ls' lists them")
			}
			return nil
		},
		ValidArgsFunction: p.completeMethods,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			m := muster.Method(args[0])
			if err := m.Validate(); err != nil {
				return usage(err)
			}
			words := args[1:]
			if at := cmd.ArgsLenAtDash(); at >= 1 {
				// cobra takes the -- away, but to method.Args it has a meaning.
				words = slices.Concat(args[1:at], []string{"--"}, args[at:])
			}
			return p.with(cmd.Context(), func(ctx context.Context, c SDK) error {
				s := &sending{p: p, c: c, f: &f, wait: f.wait || f.waitAll || f.waitFor > 0}
				return s.send(ctx, m, func(cat *catalogue) (json.RawMessage, error) { return cat.input(m, words) })
			})
		},
	}
	f.add(p, cmd)
	cmd.Flags().BoolVar(&f.wait, "wait", false, "wait for what becomes of the commands")
	return cmd
}

// A sending is one send from the selector to the exit code.
type sending struct {
	p    *program
	c    SDK
	f    *sendFlags
	wait bool
	live bool // output is printed while it is written, and the summary is no data

	document *listing // of the outcomes, in a form for programs; see printed
}

func (s *sending) send(ctx context.Context, m muster.Method, input func(*catalogue) (json.RawMessage, error)) error {
	nodes, err := choose(ctx, s.c, s.f.selector)
	if err != nil {
		return err
	}
	cat, err := catalogueOf(nodes)
	if err != nil {
		return err
	}
	in, err := input(cat)
	if err != nil {
		return err
	}
	r, err := s.f.request(s.p.now(), m, in, nodes)
	if err != nil {
		return err
	}
	if s.f.dryRun {
		return s.p.dryRun(r, nodes)
	}
	if err := s.p.confirm(ctx, s.f.yes, fmt.Sprintf("send %s to", m), nodes); err != nil {
		return err
	}
	if s.f.batch > 0 {
		return s.rolling(ctx, r, nodes)
	}
	receipt, err := s.store(ctx, r)
	if err != nil {
		return err
	}
	if !s.wait {
		return s.receipt(receipt, nodes)
	}
	return s.follow(ctx, r, receipt, nodes)
}

// store sends, and names what was refused.
func (s *sending) store(ctx context.Context, r client.Request) (client.Receipt, error) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	receipt, err := s.c.Send(ctx, r)
	if err != nil {
		return receipt, err
	}
	s.refusals(receipt.Refused)
	switch {
	case receipt.Repeated:
		s.p.say("the broker is away; the outbox of this machine has this send already: nothing was added, and its deadline is %s (%s)",
			stamp(receipt.Deadline), ago(s.p.now(), receipt.Deadline))
	case receipt.Outbox:
		s.p.say("the broker is away: the outbox of this machine keeps it for %s; the next send, or 'muster outbox flush', sends it when the broker is back",
			plural(len(receipt.Nodes), "node"))
	}
	return receipt, nil
}

// refusals says which nodes get nothing and why, then what to try.
func (s *sending) refusals(all []client.Refusal) {
	hint := ""
	for _, r := range all {
		s.p.say("%s %s: not sent: %s", s.p.errTerm.paint(red, "error:"), r.Node, clean(r.Error.Message))
		hint = cmp.Or(hint, r.Error.Hint) // that of the first: the others are of its kind
	}
	if hint != "" {
		s.p.say("%s %s", s.p.errTerm.paint(cyan, "hint:"), clean(hint))
	}
}

// refusedCode is the exit code for what was not accepted.
func refusedCode(r client.Receipt) int {
	if len(r.Refused) == 0 {
		return ExitOK
	}
	if len(r.Nodes) == 0 && r.Refused[0].Error != nil {
		return kindCode(r.Refused[0].Error.Kind)
	}
	return ExitFailed
}

func (s *sending) receipt(r client.Receipt, nodes []client.Node) error {
	err := show(s.p, r, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, r.ID)
		return err
	})
	if err != nil {
		return err
	}
	away := 0
	for _, n := range nodes {
		if !n.Online && slices.Contains(r.Nodes, n.Name) {
			away++
		}
	}
	if r.Outbox { // which was said, and which nodes are away is not known
		return exit(refusedCode(r))
	}
	text := "sent to " + plural(len(r.Nodes), "node")
	switch {
	case away > 0 && away == len(r.Nodes):
		text += fmt.Sprintf(", away now: the command waits until the deadline (%s)", ago(s.p.now(), r.Deadline))
	case away > 0:
		text += fmt.Sprintf(", %d of them away now: the command waits until the deadline (%s)", away, ago(s.p.now(), r.Deadline))
	}
	s.p.say("%s; follow with: muster command follow %s", text, r.ID)
	return exit(refusedCode(r))
}

// follow waits and reports.
func (s *sending) follow(ctx context.Context, r client.Request, receipt client.Receipt, nodes []client.Node) error {
	if len(receipt.Nodes) == 0 {
		return exit(refusedCode(receipt))
	}
	if receipt.Outbox { // the broker does not know of it yet: there is nothing to follow
		if err := s.receipt(receipt, nodes); err != nil {
			return err
		}
		return exitError(ExitPending)
	}
	w := s.p.watch(s.c, s.live && s.p.format == "table")
	w.expect(receipt, r, client.Status{Sent: s.p.now()})
	s.streamLines(ctx, w)
	err := s.await(ctx, w, s.waitsFor(receipt.Nodes, nodes))
	return s.end(ctx, w, err, nil, refusedCode(receipt))
}

// streamLines prints each command as a line of JSON when it has finished.
func (s *sending) streamLines(ctx context.Context, w *watch) {
	if s.p.format != "jsonl" {
		return
	}
	w.onDone = func(status client.Status) error { return s.printed().add(ctx, status) }
}

// printed is the document that the outcomes are printed in.
func (s *sending) printed() *listing {
	if s.document == nil {
		s.document = &listing{p: s.p, c: s.c}
	}
	return s.document
}

// waitsFor returns the nodes of the accepted ones to wait for, nil for all.
func (s *sending) waitsFor(accepted []muster.NodeName, nodes []client.Node) []muster.NodeName {
	if s.f.waitAll {
		return accepted
	}
	return slices.DeleteFunc(online(nodes), func(n muster.NodeName) bool { return !slices.Contains(accepted, n) })
}

// await waits within --wait-for. That the time is up is no error.
func (s *sending) await(ctx context.Context, w *watch, nodes []muster.NodeName) error {
	bounded := ctx
	if s.f.waitFor > 0 {
		var cancel context.CancelFunc
		bounded, cancel = context.WithTimeout(ctx, time.Duration(s.f.waitFor))
		defer cancel()
	}
	err := w.until(bounded, nodes)
	if err != nil && ctx.Err() == nil && bounded.Err() != nil {
		return nil // the summary says what is pending
	}
	return err
}

// end prints the summary and returns the exit code.
func (s *sending) end(ctx context.Context, w *watch, err error, notSent []muster.NodeName, refused int) error {
	if err != nil && ctx.Err() == nil {
		s.p.say("what was sent goes on; follow with: muster command follow %s", w.id)
		return err
	}
	all := w.all()
	if printErr := s.summary(ctx, w, all, notSent); printErr != nil {
		return printErr
	}
	if ctx.Err() != nil {
		s.p.interrupted(w.id)
		return exitError(ExitInterrupted)
	}
	waiting, running := 0, 0
	for _, status := range all {
		switch {
		case status.State == muster.Queued:
			waiting++
		case !status.State.Final():
			running++
		}
	}
	if waiting > 0 {
		s.p.say("%s for nodes that are away or busy, until %s", verb(waiting, "command waits", "commands wait"), all[0].Deadline.Local().Format("2006-01-02 15:04"))
	}
	if running > 0 {
		s.p.say("%s", verb(running, "command has not finished", "commands have not finished"))
	}
	if waiting+running > 0 {
		s.p.say("follow with: muster command follow %s", w.id)
	}
	code := codeOf(all)
	if len(notSent) > 0 || refused != ExitOK && code != ExitDenied {
		code = ExitFailed
	}
	return exit(code)
}

func verb(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func (p *program) interrupted(id muster.CommandID) {
	p.say("interrupted: the commands go on without you")
	p.say("  follow: muster command follow %s", id)
	p.say("  cancel: muster command cancel %s", id)
}

func (s *sending) summary(ctx context.Context, w *watch, all []client.Status, notSent []muster.NodeName) error {
	t := summaryTable(all, notSent, !s.live)
	switch {
	case s.p.format == "table" && s.live:
		return t.write(s.p.stderr, s.p.errTerm)
	case s.p.format == "table":
		return t.write(s.p.stdout, s.p.outTerm)
	}
	if ctx.Err() != nil { // what is known is printed after an interrupt, too
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
	}
	doc := s.printed()
	for _, status := range all {
		if s.p.format == "jsonl" && status.State.Final() {
			continue // printed when it came
		}
		if err := doc.add(ctx, status); err != nil {
			return errors.Join(err, doc.end())
		}
	}
	for _, n := range notSent {
		if err := doc.print(outcome{ID: w.id, Node: n, NotSent: true}, nil); err != nil {
			return err
		}
	}
	return doc.end()
}

// rolling sends batch by batch, all under one id.
func (s *sending) rolling(ctx context.Context, r client.Request, nodes []client.Node) error {
	nodes, away := s.inTurn(nodes)
	w := s.p.watch(s.c, s.live && s.p.format == "table")
	s.streamLines(ctx, w)
	failures, refused := 0, ExitOK
	for len(nodes) > 0 {
		n := min(s.f.batch, len(nodes))
		batch := nodes[:n]
		r.Nodes = names(batch)
		receipt, err := s.store(ctx, r)
		if err != nil {
			if w.id == "" {
				return err
			}
			s.p.printError(err)
			return s.end(ctx, w, nil, names(slices.Concat(nodes, away)), refused)
		}
		nodes = nodes[n:]
		began := w.id != "" // a batch was stored before
		r.ID = receipt.ID
		w.expect(receipt, r, client.Status{Sent: s.p.now()})
		if receipt.Outbox && !(began && s.flushed(ctx)) {
			s.p.say("stopped: a rolling send needs the broker")
			if err := s.end(ctx, w, nil, names(slices.Concat(nodes, away)), refused); err != nil {
				return err
			}
			return exitError(ExitPending)
		}
		if code := refusedCode(receipt); code != ExitOK {
			refused, failures = code, failures+len(receipt.Refused)
		}
		if err := s.await(ctx, w, s.waitsFor(receipt.Nodes, batch)); err != nil {
			return s.end(ctx, w, err, names(slices.Concat(nodes, away)), refused)
		}
		for _, name := range receipt.Nodes {
			if st := w.status[name]; st.State.Final() && st.State != muster.Done {
				failures++
			}
		}
		if failures >= s.f.maxFailures && len(nodes) > 0 {
			s.p.say("stopped after %s", plural(failures, "failure"))
			break
		}
		if len(nodes) > 0 && !sleep(ctx, time.Duration(s.f.pause)) {
			break
		}
	}
	if len(away) > 0 && ctx.Err() == nil {
		s.p.say("away, and so not sent to: %s; --wait-all sends, and waits for them", nodesText(names(away)))
	}
	return s.end(ctx, w, nil, names(slices.Concat(nodes, away)), refused)
}

// inTurn returns the nodes that a rolling send goes to, those that are online
// first, and those that it leaves out: a batch that is away has not finished, and
// the next one must not begin, which only --wait-all has the patience for.
func (s *sending) inTurn(nodes []client.Node) (turn, away []client.Node) {
	for _, n := range nodes {
		if n.Online {
			turn = append(turn, n)
		} else {
			away = append(away, n)
		}
	}
	if s.f.waitAll {
		return append(turn, away...), nil
	}
	return turn, away
}

// flushAgain is how often the outbox is tried.
const flushAgain = 2 * time.Second

// flushed waits until the broker is back and has what the outbox keeps.
func (s *sending) flushed(ctx context.Context) bool {
	s.p.say("the rolling send goes on when it is back; Ctrl-C ends it here")
	if s.f.waitFor > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(s.f.waitFor))
		defer cancel()
	}
	began := s.p.now()
	for sleep(ctx, flushAgain) {
		_, err := s.c.FlushOutbox(ctx)
		switch kind := muster.KindOf(err); {
		case err == nil:
			s.p.say("broker back after %s", short(s.p.now().Sub(began)))
			return true
		case kind == muster.Corrupt: // of another send, which is set aside: the next look is at the rest
			s.p.printError(err)
		case kind != muster.Unavailable && kind != muster.Interrupted && ctx.Err() == nil:
			s.p.printError(err)
			return false
		}
	}
	return false
}

// sleep reports whether the pause came to its end.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// A plan is what a dry run prints.
type plan struct {
	Method     muster.Method     `json:"method"`
	Input      json.RawMessage   `json:"input"`
	Deadline   time.Time         `json:"deadline"`
	TimeoutMS  int64             `json:"timeout_ms,omitempty"` // -1 for none
	Retries    int               `json:"retries,omitempty"`
	NoSeq      bool              `json:"noseq,omitempty"`
	Idempotent bool              `json:"idempotent,omitempty"`
	Nodes      []muster.NodeName `json:"nodes"`
	Away       []muster.NodeName `json:"away"`
}

func planOf(r client.Request, away []muster.NodeName) plan {
	p := plan{r.Method, r.Input, r.Deadline, r.Timeout.Milliseconds(), r.Retries, r.NoSeq, r.Idempotent, r.Nodes, away}
	if r.Timeout < 0 {
		p.TimeoutMS = -1
	}
	return p
}

// bounds says how the runs are bounded, where that is not the default.
func bounds(r client.Request) string {
	var words []string
	switch {
	case r.Timeout < 0:
		words = append(words, "no timeout")
	case r.Timeout > 0:
		words = append(words, "timeout "+short(r.Timeout))
	}
	if r.Retries == 1 {
		words = append(words, "1 retry")
	} else if r.Retries > 1 {
		words = append(words, fmt.Sprintf("%d retries", r.Retries))
	}
	if r.NoSeq {
		words = append(words, "beside others")
	}
	if r.Idempotent {
		words = append(words, "idempotent")
	}
	return strings.Join(words, ", ")
}

func (p *program) dryRun(r client.Request, nodes []client.Node) error {
	away := []muster.NodeName{}
	for _, n := range nodes {
		if !n.Online {
			away = append(away, n.Name)
		}
	}
	err := show(p, planOf(r, away), func(w io.Writer) error {
		fmt.Fprintf(w, "method    %s\ninput     %s\ndeadline  %s\n", r.Method, r.Input, stamp(r.Deadline))
		if b := bounds(r); b != "" {
			fmt.Fprintf(w, "bounds    %s\n", b)
		}
		fmt.Fprintln(w)
		t := newTable("NODE", "ONLINE", "LAST SEEN")
		for _, n := range nodes {
			t.row(n.Name, onlineCell(n), ago(p.now(), n.LastSeen))
		}
		return t.write(w, p.outTerm)
	})
	p.say("dry run: nothing was sent to %s", plural(len(nodes), "node"))
	return err
}

// confirm asks a person before a wide change. Scripts are not asked.
func (p *program) confirm(ctx context.Context, yes bool, what string, nodes []client.Node) error {
	if yes || !p.inTerm || len(nodes) <= wide {
		return nil
	}
	away := len(nodes) - len(online(nodes))
	question := fmt.Sprintf("%s %d nodes", what, len(nodes))
	if away > 0 {
		question += fmt.Sprintf(", %d of them away", away)
	}
	return p.question(ctx, question+"?")
}

func (p *program) question(ctx context.Context, text string) error {
	fmt.Fprintf(p.stderr, "%s [y/N] ", text)
	// Reading a terminal cannot be interrupted. When ctx ends first, the
	// goroutine stays behind until the process ends, which is at once.
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(p.stdin).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case a := <-answer:
		if a == "y" || a == "yes" {
			return nil
		}
		return muster.Errorf(muster.Interrupted, "nothing was done: the answer was no").WithHint("-y skips the question")
	case <-ctx.Done():
		p.say("")
		return ctx.Err()
	}
}
