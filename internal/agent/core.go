package agent

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/delivery"
	"github.com/musterfleet/muster/internal/method"
)

// A core owns the inbox. Everything that happens is a function in its mailbox.
type core struct {
	a     *Agent
	inbox *delivery.Inbox

	mu     sync.Mutex // guards the fields below
	mail   []func()
	notify chan struct{} // has one element while mail is not empty
	room   chan struct{} // closed and replaced when room may have appeared
	space  int           // of the inbox, less what is in the mail
	missed bool          // withdrawals were not taken in: they must be read again before commands

	queued, active atomic.Int64 // commands not final, and running, as last told

	// Owned by the goroutine of run.
	alarmed map[string]bool // keys of revoked callers whose use was told as an event
	acks    map[uint64]func() error
	nextAck uint64
	held    []intake // waits for the audit log, in order
	deaf    bool     // commands are not taken in until the queue is read anew
	runs    map[muster.CommandID]context.CancelCauseFunc
	running sync.WaitGroup
	ending  bool // runs are ended as soon as they begin
	dead    bool // the journal fell behind for good: nothing is carried out any more

	giveUp chan struct{} // closed when a stopping agent waits no longer for its journal
}

// An intake is something from the broker about which the node decides. It
// returns false when the decision cannot be written to the audit log: then
// nothing follows from it, and it is held.
type intake struct {
	key intakeKey // zero for what does not come again
	do  func() bool
}

// An intakeKey tells two commands of one id apart.
type intakeKey struct {
	id     muster.CommandID
	stored delivery.Mark
}

func newCore(a *Agent, state delivery.State) *core {
	c := &core{
		a: a, notify: make(chan struct{}, 1), room: make(chan struct{}), giveUp: make(chan struct{}),
		acks: make(map[uint64]func() error), runs: make(map[muster.CommandID]context.CancelCauseFunc),
		alarmed: make(map[string]bool),
	}
	c.inbox = delivery.New(delivery.Config{Node: a.o.Node, Paused: a.paused(), Revoked: a.revokedSince}, state, time.Now())
	c.offerRoom()
	return c
}

// post puts something into the mailbox. It never blocks.
func (c *core) post(f func()) {
	c.mu.Lock()
	c.mail = append(c.mail, f)
	c.mu.Unlock()
	select {
	case c.notify <- struct{}{}:
	default:
	}
}

// errMissed makes the session read the withdrawals and the queue anew.
var errMissed = muster.Errorf(muster.Full, "there was no room for all withdrawals")

// reserve waits until the inbox has room for one more command.
func (c *core) reserve(ctx context.Context) error {
	for {
		c.mu.Lock()
		if c.space > 0 {
			missed := c.missed
			c.missed = false
			c.space--
			c.mu.Unlock()
			if missed {
				return errMissed
			}
			return nil
		}
		room := c.room
		c.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// run is the core's goroutine.
func (c *core) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		c.process(ctx)
		timer.Reset(c.untilTick())
		select {
		case <-c.notify:
		case <-c.a.o.Repause:
			c.inbox.Pause(time.Now(), c.a.paused())
		case <-timer.C:
			c.takeHeld()
			c.inbox.Tick(time.Now())
			if c.inbox.Unwritten() {
				c.inbox.Flush()
			}
		case <-ctx.Done():
			c.inbox.Flush()
			c.process(ctx) // tries to write once
			return
		}
	}
}

const (
	flushTime  = time.Second // how long a write that no effect depends on may wait
	auditAgain = time.Second // how often an audit log is tried that cannot be written
)

func (c *core) untilTick() time.Duration {
	wait := time.Hour
	if next := c.inbox.Next(); !next.IsZero() {
		wait = max(min(wait, time.Until(next)), 0)
	}
	if c.inbox.Unwritten() {
		wait = min(wait, flushTime)
	}
	if len(c.held) > 0 {
		wait = min(wait, auditAgain)
	}
	return wait
}

// process empties the mailbox and carries out what follows, until neither has
// anything left.
func (c *core) process(ctx context.Context) {
	for {
		c.mu.Lock()
		mail := c.mail
		c.mail = nil
		c.mu.Unlock()
		for _, f := range mail {
			f()
		}
		ready := c.inbox.Ready()
		if len(mail) == 0 && ready.Empty() {
			return
		}
		if c.dead {
			continue // the next agent begins with what the journal has
		}
		if !c.persist(ctx, ready.Writes) {
			c.dead = true
			continue
		}
		c.carryOut(ready)
		c.offerRoom()
	}
}

// persist makes the writes durable, however long that takes; only a stopping
// agent gives up. While it fails, nothing is acknowledged and nothing runs; the
// broker keeps the commands.
func (c *core) persist(ctx context.Context, writes []delivery.Write) bool {
	if len(writes) == 0 {
		return true
	}
	for attempt := 1; ; attempt++ {
		err := c.a.journal.Apply(writes)
		if err == nil {
			c.a.problems.set("journal", "")
			return true
		}
		c.a.problems.set("journal", "its journal cannot be written: "+err.Error())
		c.a.log.Error("journal cannot be written; nothing is accepted until it can", "err", err, "attempt", attempt)
		select {
		case <-time.After(delivery.DefaultBackoff(min(attempt, 4))):
		case <-c.giveUp:
			return false
		case <-ctx.Done():
			return false
		}
		if ctx.Err() != nil {
			return false
		}
	}
}

func (c *core) carryOut(r delivery.Ready) {
	for _, token := range r.Acks {
		ack := c.acks[token]
		delete(c.acks, token)
		if err := ack(); err != nil {
			c.a.log.Debug("acknowledgement was not sent; the command will come again", "err", err)
		}
	}
	for _, s := range r.Starts {
		c.start(s)
	}
	for _, id := range r.Stops {
		if cancel, ok := c.runs[id]; ok {
			cancel(errCancelled)
		}
	}
	for _, report := range r.Reports {
		c.a.reporter.add(report)
	}
	for _, record := range r.Refused {
		c.tellRefused(record)
	}
}

func (c *core) offerRoom() {
	c.queued.Store(int64(c.inbox.Len()))
	c.active.Store(int64(len(c.runs)))
	c.a.problems.set("room", strings.Join(c.inbox.Shortages(), "; "))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.space = c.inbox.Room() - len(c.mail) - len(c.held)
	if c.space > 0 {
		close(c.room)
		c.room = make(chan struct{})
	}
}

// token keeps the acknowledgement of a delivery until its writes are durable.
func (c *core) token(ack func() error) uint64 {
	c.nextAck++
	c.acks[c.nextAck] = ack
	return c.nextAck
}

// listen says that the queue is read from its beginning, after the withdrawals.
func (c *core) listen() {
	c.post(func() { c.deaf = false })
}

// take carries out an intake, or holds it behind those that are held.
func (c *core) take(in intake) {
	if len(c.held) == 0 && in.do() {
		return
	}
	again := slices.IndexFunc(c.held, func(h intake) bool { return in.key != intakeKey{} && h.key == in.key })
	if again >= 0 {
		c.held[again] = in // on a new connection: the old one takes no acknowledgement
		return
	}
	c.held = append(c.held, in)
}

// takeHeld tries again what waits for the audit log.
func (c *core) takeHeld() {
	for len(c.held) > 0 && c.held[0].do() {
		c.held = c.held[1:]
	}
}

// A parcel is a verified command as it came from the broker.
type parcel struct {
	cmd     muster.Command
	caller  aaa.Caller
	refusal *muster.Error // not nil when its signature is genuine but it must not run
	stored  delivery.Mark
	ack     func() error
	// aside is called, and must not block, when another command has its id.
	aside func(cause error)
}

// deliver takes in a parcel.
func (c *core) deliver(p parcel) {
	d := delivery.Delivery{Command: p.cmd, Caller: p.caller.Name, Signer: signerOf(p.caller), Idempotent: p.cmd.Idempotent, Stored: p.stored}
	in := intake{intakeKey{p.cmd.ID, p.stored}, func() bool {
		if c.deaf {
			return true // it stays with the broker
		}
		switch c.inbox.Recall(d) {
		case delivery.Conflict:
			p.aside(muster.Errorf(muster.Conflict, "id %s is that of another command of this node: its caller, method or input differ", p.cmd.ID))
			return true
		case delivery.Replay:
			if !c.a.audit.write(c.a.replayed(p)) {
				return false
			}
		case delivery.Fresh:
			if !c.judge(&d, p.caller, p.refusal) {
				return false
			}
		}
		d.Token = c.token(p.ack)
		c.inbox.Deliver(time.Now(), d)
		return true
	}}
	c.post(func() { c.take(in) })
}

// replayed is the record of a command that somebody stored again. What the
// broker delivers again by itself has none: it was decided once.
func (a *Agent) replayed(p parcel) aaa.Record {
	rec := a.decided(p.cmd, p.caller, aaa.Replayed)
	rec.Reason = "it was taken in before; it is acknowledged, and does not run again"
	return rec
}

// judge asks the policy and the method's schema, and writes the audit line. It
// returns false when that cannot be written.
func (c *core) judge(d *delivery.Delivery, caller aaa.Caller, refusal *muster.Error) bool {
	verdict := aaa.Denied
	decision := aaa.Decision{}
	if refusal == nil { // a list may have come since it was verified
		refusal = c.a.o.Verifier.Revoked(caller)
	}
	if refusal == nil {
		decision = c.a.policy().Decide(caller, d.Command)
		d.Rule = decision.Rule
		refusal = muster.AsError(muster.Denied, decision.Err())
	}
	if refusal == nil {
		verdict = aaa.Allowed
		refusal = c.check(d)
	}
	rec := c.a.decided(d.Command, caller, verdict)
	rec.Rule = decision.Rule
	if refusal != nil {
		rec.Reason = refusal.Message
	}
	d.Refusal = refusal
	if !c.a.audit.write(rec) {
		return false
	}
	if refusal != nil && errors.Is(refusal, aaa.ErrRevoked) {
		c.alarm(caller, d.Command)
	}
	return true
}

// decided begins the record of a decision.
func (a *Agent) decided(cmd muster.Command, caller aaa.Caller, v aaa.Verdict) aaa.Record {
	return aaa.Record{
		Time: time.Now(), Node: a.o.Node, Fleet: a.o.Fleet, ID: cmd.ID,
		Caller: caller.Name, CallerKey: caller.PublicKey, Method: cmd.Method, Input: cmd.Input,
		Verdict: v, IssuedAt: cmd.IssuedAt, Deadline: cmd.Deadline,
	}
}

// record writes a decision from which nothing follows in the inbox, and
// returns when it is written.
func (c *core) record(ctx context.Context, rec aaa.Record) error {
	done := make(chan struct{})
	c.post(func() {
		c.take(intake{do: func() bool {
			if !c.a.audit.write(rec) {
				return false
			}
			close(done)
			return true
		}})
	})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// check looks the method up and validates the input.
func (c *core) check(d *delivery.Delivery) *muster.Error {
	m, ok := c.a.o.Registry.Lookup(d.Command.Method)
	if !ok {
		return c.a.o.Registry.NotFound(d.Command.Method)
	}
	d.Idempotent = d.Idempotent || m.Spec().Idempotent
	if err := c.a.o.Registry.ValidateInput(d.Command.Method, d.Command.Input); err != nil {
		return muster.AsError(muster.Invalid, err)
	}
	return nil
}

// withdraw takes in a verified withdrawal. The caller may always withdraw what
// it sent itself; the policy decides about the rest.
func (c *core) withdraw(cmd muster.Command, caller aaa.Caller) error {
	var in muster.Withdrawal
	if err := json.Unmarshal(cmd.Input, &in); err != nil {
		return muster.Errorf(muster.Invalid, "withdrawal: input cannot be read: %w", err)
	}
	if err := in.ID.Validate(); err != nil {
		return err
	}
	switch {
	case in.Until.After(cmd.Deadline):
		return muster.Errorf(muster.Invalid, "withdrawal: it is to last until %s, beyond its own deadline %s",
			in.Until.Format(time.RFC3339), cmd.Deadline.Format(time.RFC3339))
	case len(in.Reason) > muster.MaxReason:
		return muster.Errorf(muster.Invalid, "withdrawal: its reason has %d bytes; at most %d are allowed", len(in.Reason), muster.MaxReason)
	case !caller.Reaches(cmd.Node):
		return muster.Errorf(muster.Denied, "no right of caller %q covers node %s, so that it can have sent nothing here", caller.Name, cmd.Node)
	}
	reason := "cancelled by " + caller.Name
	if in.Reason != "" {
		reason += ": " + in.Reason
	}
	cancel := delivery.Cancel{ID: in.ID, Caller: caller.Name, Reason: reason, Until: in.Until}
	c.post(func() { c.take(intake{intakeKey{id: cmd.ID}, func() bool { return c.cancel(cmd, caller, cancel) }}) })
	return nil
}

// cancel takes in a withdrawal that is right in itself. It returns false when the
// audit line cannot be written.
func (c *core) cancel(cmd muster.Command, caller aaa.Caller, cancel delivery.Cancel) bool {
	decision := c.a.policy().Decide(caller, cmd)
	cancel.Any = decision.Allowed
	rec := c.a.decided(cmd, caller, aaa.Allowed)
	rec.Rule, rec.Reason = decision.Rule, ownOrAny(decision.Allowed)
	refusal := c.a.o.Verifier.Revoked(caller) // a list may have come since it was verified
	if refusal == nil {
		refusal = c.inbox.Overdrawn(cancel)
	}
	if refusal != nil {
		rec.Verdict, rec.Reason = aaa.Denied, refusal.Message
	}
	if !c.a.audit.write(rec) {
		return false
	}
	switch {
	case refusal != nil && errors.Is(refusal, aaa.ErrRevoked):
		c.alarm(caller, cmd)
	case refusal == nil && !c.inbox.Cancel(time.Now(), cancel):
		c.miss(cmd.ID)
	}
	return true
}

// refuse records that a withdrawal was refused.
func (c *core) refuse(cmd muster.Command, caller aaa.Caller, cause error) {
	rec := c.a.decided(cmd, caller, aaa.Denied)
	if errors.Is(cause, aaa.ErrUnauthentic) {
		rec = c.a.decided(muster.Command{}, caller, aaa.Unauthentic)
	}
	rec.Reason = cause.Error()
	c.post(func() {
		c.take(intake{do: func() bool {
			written := c.a.audit.write(rec)
			if written && errors.Is(cause, aaa.ErrRevoked) {
				c.alarm(caller, cmd)
			}
			return written
		}})
	})
}

// miss notes that a withdrawal was not taken in. Commands that follow may be
// the ones that it withdraws: they stay with the broker until it was read again.
func (c *core) miss(id muster.CommandID) {
	c.a.log.Warn("no room for a withdrawal; commands wait until earlier ones expire", "withdrawal", id)
	c.a.withdrawn.forget(id)
	c.deaf = true
	c.mu.Lock()
	defer c.mu.Unlock()
	c.missed = true
}

func ownOrAny(any bool) string {
	if any {
		return "may cancel what any caller sent"
	}
	return "may cancel only what the same caller sent"
}

// Reasons for which a run is ended before its time.
var (
	errCancelled = errors.New("cancelled")
	errStopping  = errors.New("the agent was stopped")
)

// start begins a run in a goroutine of its own.
func (c *core) start(s delivery.Start) {
	m, ok := c.a.o.Registry.Lookup(s.Command.Method)
	if !ok { // it was there when the command was accepted by an earlier agent
		c.inbox.Finished(time.Now(), s.Command.ID, muster.Result{Error: c.a.o.Registry.NotFound(s.Command.Method)})
		return
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	c.runs[s.Command.ID] = cancel
	if c.ending {
		cancel(errStopping)
	}
	c.running.Go(func() {
		result := c.a.invoke(ctx, m, s)
		cause := context.Cause(ctx)
		cancel(nil)
		c.post(func() {
			delete(c.runs, s.Command.ID)
			if errors.Is(cause, errStopping) && idempotent(m, s.Command) {
				return // the next agent runs it again
			}
			c.inbox.Finished(time.Now(), s.Command.ID, result)
			c.a.uploads.finished(s.Command.ID, result)
		})
	})
}

func idempotent(m method.Method, cmd muster.Command) bool {
	return cmd.Idempotent || m.Spec().Idempotent
}

// endRuns ends everything that runs, and returns when the outcomes are in the
// mailbox. A journal that cannot be written does not hold up the end: what it
// does not have, the next agent finds interrupted.
func (c *core) endRuns() {
	patience := time.AfterFunc(goodbyeTime, func() { close(c.giveUp) })
	defer patience.Stop()
	done := make(chan struct{})
	c.post(func() {
		c.inbox.Stop()
		c.ending = true
		for _, cancel := range c.runs {
			cancel(errStopping)
		}
		close(done)
	})
	<-done
	c.running.Wait()
	flushed := make(chan struct{})
	c.post(func() { c.inbox.Flush() })
	c.post(func() { close(flushed) })
	<-flushed
}

// load returns the number of commands that are not final, and that run. It does
// not wait for a journal that cannot be written.
func (c *core) load() (queued, running int) {
	return int(c.queued.Load()), int(c.active.Load())
}
