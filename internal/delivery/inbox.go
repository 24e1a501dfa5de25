package delivery

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/musterfleet/muster"
)

// Config bounds an Inbox.
type Config struct {
	Node        muster.NodeName
	Capacity    int           // commands held: not final, or their last report is not stored; default 4096
	Memory      int           // commands that are over and remembered, default 1,000,000, of some 50 bytes each
	Withdrawals int           // cancels of what has not come, default 10,000, of some 300 bytes each
	Share       int           // of Withdrawals, for one caller, default a tenth
	NoSeq       int           // noseq commands that run at once, default 16
	Linger      time.Duration // how long a report that is not final waits for a later state, default 50 ms
	Backoff     func(attempt int) time.Duration
	Paused      string                     // see Pause
	Revoked     func(Record) *muster.Error // why an accepted command must not begin after all, nil if it may; see Recheck
}

// Limits that are not worth a setting.
const (
	maxStarts    = 5              // runs of one idempotent command that ended with the agent itself, not by themselves
	cancelMargin = 24 * time.Hour // withdrawals are kept that long after the deadline, against clocks that step back
)

// DefaultBackoff waits 1 s, 2 s, 4 s and so on, at most 5 minutes.
func DefaultBackoff(attempt int) time.Duration {
	return min(time.Second<<min(max(attempt-1, 0), 9), 5*time.Minute)
}

// An Inbox is the state of all commands that a node knows. It is not safe for
// concurrent use.
type Inbox struct {
	cfg       Config
	commands  map[muster.CommandID]*entry // not yet over
	memory    *memory
	read      map[string]uint64                 // highest sequence taken in, by stream of the broker
	marks     map[string]bool                   // streams of which that is not written yet
	withdrew  map[muster.CommandID][]Withdrawal // one of each caller
	cancels   int                               // withdrawals in withdrew
	cancelsOf map[string]int                    // of each caller
	few       shortages
	lanes     map[muster.Lane][]*entry // in order of arrival, the head runs
	noseq     []*entry                 // in order of arrival, waiting or running
	beside    int                      // noseq commands running
	active    int                      // commands that are not final
	nextSeq   uint64
	lost      time.Time
	timers    timers
	ready     Ready
	writes    []Write // in order
	urgent    bool    // an effect of ready depends on writes
	stopped   bool    // nothing is started any more
	paused    string  // why nothing is started now
}

type entry struct {
	Record
	running   bool
	cancelled string // reason, once a stop was asked for
	dirty     bool   // the report has states that were not handed out
	reported  int    // Report.Seq that is stored on the operator's side
	handed    int    // Report.Seq that was handed out
}

func (e *entry) waiting() bool { return !e.running && !e.Report.State().Final() }

// New returns an Inbox with the content of a journal. Commands that were
// running are settled: idempotent ones run again, the others become unknown.
// The first Ready holds what follows from that.
func New(cfg Config, state State, now time.Time) *Inbox {
	cfg.Capacity = cmp.Or(cfg.Capacity, 4096)
	cfg.Memory = cmp.Or(cfg.Memory, 1_000_000)
	cfg.Withdrawals = cmp.Or(cfg.Withdrawals, 10_000)
	cfg.Share = cmp.Or(cfg.Share, max(cfg.Withdrawals/10, 1))
	cfg.NoSeq = cmp.Or(cfg.NoSeq, 16)
	cfg.Linger = cmp.Or(cfg.Linger, 50*time.Millisecond)
	if cfg.Backoff == nil {
		cfg.Backoff = DefaultBackoff
	}
	b := &Inbox{
		cfg:       cfg,
		commands:  make(map[muster.CommandID]*entry),
		memory:    newMemory(cfg.Memory, state, now),
		read:      make(map[string]uint64),
		marks:     make(map[string]bool),
		withdrew:  make(map[muster.CommandID][]Withdrawal),
		cancelsOf: make(map[string]int),
		lanes:     make(map[muster.Lane][]*entry),
		lost:      state.Lost,
		nextSeq:   1,
		paused:    cfg.Paused,
	}
	for _, s := range state.Seen {
		b.nextSeq = max(b.nextSeq, s.Seq+1)
	}
	for _, m := range state.Read {
		b.read[m.Stream] = m.Seq
	}
	for _, w := range state.Withdrawals {
		b.keepWithdrawal(w)
	}
	slices.SortFunc(state.Records, func(x, y Record) int { return cmp.Compare(x.Seq, y.Seq) })
	for _, r := range state.Records {
		b.restore(r, now)
	}
	b.Recheck(now)
	return b
}

// restore takes up a record of the journal after a restart.
func (b *Inbox) restore(r Record, now time.Time) {
	e := &entry{Record: r, dirty: true}
	b.nextSeq = max(b.nextSeq, r.Seq+1)
	b.commands[r.Command.ID] = e
	b.timers.add(now, r.Command.ID)
	if e.Report.State().Final() {
		return
	}
	b.active++
	if e.Report.State() == muster.Running {
		switch {
		case !e.Idempotent:
			b.settle(e, now, muster.Unknown, "the agent was interrupted during the run, and the command must not run twice")
			return
		case e.Starts-e.Attempts >= maxStarts:
			b.settle(e, now, muster.Unknown, "the agent was interrupted during each of several runs; not tried again")
			return
		}
		if w, ok := b.withdrawal(e.Command.ID, e.Report.Caller); ok {
			b.settle(e, now, muster.Cancelled, cmp.Or(w.Reason, "cancelled"))
			return
		}
		b.change(e, now, muster.Accepted, "the agent was interrupted during the run; running again")
		b.put(e, true)
	}
	b.enqueue(e)
}

// Room returns how many more commands the Inbox can hold. When it is zero the
// caller stops delivering; nothing is dropped. Without room for another
// withdrawal there is none for commands either: the next one may be withdrawn
// by a cancel that was not taken in.
func (b *Inbox) Room() int {
	if b.cancels >= b.cfg.Withdrawals {
		return 0
	}
	return max(b.cfg.Capacity-len(b.commands), 0)
}

// Len returns the number of commands that are not final.
func (b *Inbox) Len() int { return b.active }

// A Recall is what an Inbox knows of a delivery.
type Recall int

// The recalls.
const (
	Fresh    Recall = iota // its id was not seen, as far as is remembered
	Again                  // the very message of the broker that was taken in before
	Replay                 // the same command, stored with the broker once more
	Conflict               // another command under an id that is taken
)

// Recall says whether a delivery was taken in before. That the broker delivers
// a message again is ordinary, since acknowledgements are lost; that somebody
// stores a command again is worth a note.
func (b *Inbox) Recall(d Delivery) Recall {
	before, known := b.content(d.Command.ID)
	switch {
	case !known:
		return Fresh
	case before != 0 && before != Content(d.Command, d.Caller):
		return Conflict
	case d.Stored.Seq > b.read[d.Stored.Stream]:
		return Replay
	}
	return Again
}

// content returns the content of the command of this id, 0 if that is not known.
func (b *Inbox) content(id muster.CommandID) (content uint64, known bool) {
	if e, live := b.commands[id]; live {
		return Content(e.Command, e.Report.Caller), true
	}
	content, known = b.memory.content[KeyOf(id)]
	return content, known
}

func (b *Inbox) known(id muster.CommandID) bool {
	_, live := b.commands[id]
	return live || b.over(id)
}

func (b *Inbox) over(id muster.CommandID) bool {
	_, over := b.memory.content[KeyOf(id)]
	return over
}

// Deliver takes a command in. One that was taken in before is only acknowledged
// again. One that conflicts is not touched: its sender has to learn of it in
// another way than by a report under an id that is not its own.
func (b *Inbox) Deliver(now time.Time, d Delivery) {
	recall := b.Recall(d)
	if recall == Conflict {
		return
	}
	if d.Token != 0 {
		b.ready.Acks = append(b.ready.Acks, d.Token)
	}
	if d.Stored.Seq > b.read[d.Stored.Stream] {
		b.read[d.Stored.Stream] = d.Stored.Seq
		b.marks[d.Stored.Stream] = true
		b.urgent = true
	}
	if recall != Fresh {
		return
	}
	e := b.admit(d)
	b.commands[d.Command.ID] = e
	b.active++
	if state, reason := b.verdict(now, d); state != muster.Accepted {
		if d.Refusal != nil && state == muster.Refused {
			e.Report.Result = &muster.Result{Error: d.Refusal}
		}
		b.settle(e, now, state, reason)
		return
	}
	b.change(e, now, muster.Accepted, b.paused)
	b.put(e, true)
	b.enqueue(e)
	b.schedule(now)
}

// admit makes the record of a new command.
func (b *Inbox) admit(d Delivery) *entry {
	c := d.Command
	e := &entry{Record: Record{
		Seq: b.nextSeq, Command: c, Idempotent: d.Idempotent, Signer: d.Signer,
		Report: muster.Report{
			ID: c.ID, Node: c.Node, Method: c.Method, Caller: d.Caller, Rule: d.Rule,
			IssuedAt: c.IssuedAt, Deadline: c.Deadline,
		},
	}}
	b.nextSeq++
	return e
}

// verdict says whether a new command is accepted or is over at once.
func (b *Inbox) verdict(now time.Time, d Delivery) (muster.State, string) {
	c := d.Command
	switch w, withdrawn := b.withdrawal(c.ID, d.Caller); {
	case d.Refusal != nil:
		return muster.Refused, d.Refusal.Message
	case withdrawn:
		return muster.Cancelled, w.Reason
	case !now.Before(c.Deadline):
		return muster.Expired, "it arrived after its deadline"
	case c.IssuedAt.Before(b.lost) && !d.Idempotent:
		return muster.Unknown, "it was issued before this node lost its journal and may have run already"
	}
	if gone, ok := b.memory.mayHave(c, d.Caller); ok {
		return muster.Unknown, fmt.Sprintf("it was issued before %s and may have run already: this node does not remember all of that time",
			time.Unix(int64(gone.Issued), 0).UTC().Format(time.RFC3339))
	}
	return muster.Accepted, ""
}

// withdrawal returns the withdrawal that applies to the caller's command.
func (b *Inbox) withdrawal(id muster.CommandID, caller string) (Withdrawal, bool) {
	all := b.withdrew[id]
	i := slices.IndexFunc(all, func(w Withdrawal) bool { return w.Matches(caller) })
	if i < 0 {
		return Withdrawal{}, false
	}
	return all[i], true
}

// withdraw remembers a cancel. Those of other callers stay: whose command it
// is shows only when it arrives.
func (b *Inbox) withdraw(c Cancel) {
	if _, again := b.withdrawal(c.ID, c.Caller); again {
		return
	}
	w := Withdrawal{ID: c.ID, Caller: c.Caller, Any: c.Any, Reason: c.Reason, Until: c.Until.Add(cancelMargin)}
	b.keepWithdrawal(w)
	b.write(Write{Withdraw: &w}, true)
}

func (b *Inbox) keepWithdrawal(w Withdrawal) {
	b.withdrew[w.ID] = append(b.withdrew[w.ID], w)
	b.cancels++
	b.cancelsOf[w.Caller]++
	b.timers.add(w.Until, w.ID)
}

func (b *Inbox) dropWithdrawals(id muster.CommandID) {
	if all, ok := b.withdrew[id]; ok {
		for _, w := range all {
			b.cancels--
			if b.cancelsOf[w.Caller]--; b.cancelsOf[w.Caller] == 0 {
				delete(b.cancelsOf, w.Caller)
			}
		}
		delete(b.withdrew, id)
		b.write(Write{Unwithdraw: id}, false)
	}
}

// Overdrawn returns why a cancel must not be taken in, or nil: it would have to
// be remembered, and its caller has used up its share. What one caller does must
// not cost the others their room. No sender of muster has that many in force.
func (b *Inbox) Overdrawn(c Cancel) *muster.Error {
	_, again := b.withdrawal(c.ID, c.Caller)
	if again || b.known(c.ID) || b.cancelsOf[c.Caller] < b.cfg.Share {
		return nil
	}
	return muster.Errorf(muster.Full, "%d cancels of caller %q wait here for commands that have not come; no more are taken", b.cfg.Share, c.Caller)
}

// Cancel withdraws a command, wherever it is. One that has not arrived yet is
// cancelled when it does. It returns false when there is no room to remember
// the cancel of such a command: the caller comes again with it, and before any
// command, once there is Room.
func (b *Inbox) Cancel(now time.Time, c Cancel) bool {
	if b.over(c.ID) {
		return true
	}
	e, known := b.commands[c.ID]
	if !known {
		if b.cancels >= b.cfg.Withdrawals {
			return false
		}
		b.withdraw(c)
		return true
	}
	if e.Report.State().Final() || e.cancelled != "" || !(c.Any || c.Caller == e.Report.Caller) {
		return true
	}
	if e.running {
		e.cancelled = cmp.Or(c.Reason, "cancelled")
		if e.Idempotent {
			b.withdraw(c) // or an interruption would run it again; at most one for each command held
		}
		b.ready.Stops = append(b.ready.Stops, c.ID)
		return true
	}
	b.settle(e, now, muster.Cancelled, c.Reason)
	b.schedule(now)
	return true
}

// Finished says how a run ended. A failed run is tried again while retries and
// the deadline allow it.
func (b *Inbox) Finished(now time.Time, id muster.CommandID, result muster.Result) {
	e, known := b.commands[id]
	if !known || !e.running {
		return
	}
	e.running = false
	e.Attempts++
	e.Report.Result = &result
	if e.Command.NoSeq {
		b.beside--
	}
	switch {
	case result.Error == nil:
		b.settle(e, now, muster.Done, "")
	case e.cancelled != "":
		b.settle(e, now, muster.Cancelled, e.cancelled)
	case e.Attempts <= e.Command.Retries && retryable(result.Error) && b.revoked(e) == nil:
		b.retry(e, now, result.Error)
	default:
		b.settle(e, now, muster.Failure, result.Error.Message)
	}
	b.schedule(now)
}

// retryable reports whether another attempt can help.
func retryable(err *muster.Error) bool {
	return err.Kind != muster.Invalid && err.Kind != muster.Denied
}

// retry plans the next attempt. The lane waits for it: order outlives failure.
func (b *Inbox) retry(e *entry, now time.Time, err *muster.Error) {
	e.NotBefore = now.Add(b.cfg.Backoff(e.Attempts))
	if !e.NotBefore.Before(e.Command.Deadline) {
		b.settle(e, now, muster.Failure, err.Message+"; no time is left for another attempt")
		return
	}
	b.change(e, now, muster.Accepted, err.Message+"; trying again")
	b.put(e, true)
	b.timers.add(e.NotBefore, e.Command.ID)
}

// Reported says that the operator's side has stored a report.
func (b *Inbox) Reported(id muster.CommandID, seq int) {
	e, known := b.commands[id]
	if !known {
		return
	}
	e.reported = max(e.reported, seq)
	if !e.Report.State().Final() || e.reported < e.Report.Seq {
		return
	}
	// The deletion is not urgent: if it is lost, the report is sent once more.
	delete(b.commands, id)
	b.remember(e)
	b.write(Write{Delete: e.Seq}, false)
	b.dropWithdrawals(id)
	b.timers.prune(len(b.commands)+b.cancels, func(id muster.CommandID) bool {
		return b.commands[id] != nil || len(b.withdrew[id]) > 0
	})
}

// Tick lets time pass: deadlines, retries and waiting reports.
func (b *Inbox) Tick(now time.Time) {
	b.sweep(now)
	b.schedule(now)
}

func (b *Inbox) tick(now time.Time, id muster.CommandID) {
	if all, ok := b.withdrew[id]; ok && !slices.ContainsFunc(all, func(w Withdrawal) bool { return now.Before(w.Until) }) {
		b.dropWithdrawals(id)
	}
	e, ok := b.commands[id]
	if !ok {
		return
	}
	if e.waiting() && !now.Before(e.Command.Deadline) {
		switch {
		case e.Attempts > 0:
			b.settle(e, now, muster.Failure, "its deadline passed before another attempt")
		case e.Starts > 0:
			b.settle(e, now, muster.Unknown, "the agent was interrupted during the run, and the deadline passed before another")
		default:
			b.settle(e, now, muster.Expired, "its deadline passed while it waited on the node")
		}
	}
	b.handOut(e)
}

// Next returns when Tick must be called, zero if never.
func (b *Inbox) Next() time.Time {
	next := b.timers.next()
	if b.memory.n > 0 && (next.IsZero() || b.memory.next.Before(next)) {
		next = b.memory.next
	}
	return next
}

// Unwritten reports whether writes wait that no effect depends on. The caller
// calls Flush within some seconds to have them written.
func (b *Inbox) Unwritten() bool { return len(b.writes) > 0 }

// Stop keeps further runs from being started; what waits is kept for the next
// Inbox on the same journal.
func (b *Inbox) Stop() { b.stopped = true }

// Pause keeps runs from being started, retries too, until it is called with an
// empty reason. What runs goes on, commands are accepted, with the reason, and
// deadlines pass.
func (b *Inbox) Pause(now time.Time, reason string) {
	b.paused = reason
	b.schedule(now)
}

// Flush makes the next Ready hold all writes.
func (b *Inbox) Flush() { b.urgent = true }

// Ready returns what must be done, and forgets it. Writes that no effect
// depends on stay behind until an urgent one takes them along.
func (b *Inbox) Ready() Ready {
	r := b.ready
	b.ready = Ready{}
	if b.urgent {
		for _, stream := range slices.Sorted(maps.Keys(b.marks)) {
			b.writes = append(b.writes, Write{Read: &Mark{stream, b.read[stream]}})
		}
		clear(b.marks)
		r.Writes = b.writes
		b.writes, b.urgent = nil, false
	}
	return r
}

// enqueue places a command at the end of its lane.
func (b *Inbox) enqueue(e *entry) {
	b.timers.add(e.Command.Deadline, e.Command.ID)
	if !e.NotBefore.IsZero() {
		b.timers.add(e.NotBefore, e.Command.ID)
	}
	if e.Command.NoSeq {
		b.noseq = append(b.noseq, e)
		return
	}
	lane := e.Command.Lane()
	b.lanes[lane] = append(b.lanes[lane], e)
}

// schedule starts what can run: the head of each lane, and noseq commands up
// to their limit. What is due comes first, so that nothing starts after its
// deadline.
func (b *Inbox) schedule(now time.Time) {
	if b.stopped {
		return
	}
	for _, id := range b.timers.due(now) {
		b.tick(now, id)
	}
	if b.paused != "" {
		return
	}
	// In a fixed order, so that a simulation can be repeated.
	for _, lane := range slices.SortedFunc(maps.Keys(b.lanes), compareLanes) {
		if head := b.lanes[lane][0]; head.waiting() && !now.Before(head.NotBefore) {
			b.start(head, now)
		}
	}
	for _, e := range b.noseq {
		if b.beside >= b.cfg.NoSeq {
			return
		}
		if e.waiting() && !now.Before(e.NotBefore) {
			b.beside++
			b.start(e, now)
		}
	}
}

func compareLanes(x, y muster.Lane) int {
	return cmp.Or(cmp.Compare(x.Kind, y.Kind), cmp.Compare(x.Method, y.Method))
}

// start begins a run. The journal knows of it before it begins: a command that
// must not run twice depends on that, and for an idempotent one the count of
// starts bounds how often it can take the agent down with it.
func (b *Inbox) start(e *entry, now time.Time) {
	e.running = true
	e.Starts++
	b.change(e, now, muster.Running, "")
	b.put(e, true)
	b.ready.Starts = append(b.ready.Starts, Start{Command: e.Command, Caller: e.Report.Caller, Attempt: e.Attempts + 1})
}

// settle makes a state final and takes the command out of its lane.
func (b *Inbox) settle(e *entry, now time.Time, s muster.State, reason string) {
	b.change(e, now, s, reason)
	b.active--
	b.put(e, true)
	b.handOut(e)
	if e.Command.NoSeq {
		b.noseq = slices.DeleteFunc(b.noseq, func(o *entry) bool { return o == e })
		return
	}
	lane := e.Command.Lane()
	queue := slices.DeleteFunc(b.lanes[lane], func(o *entry) bool { return o == e })
	if len(queue) == 0 {
		delete(b.lanes, lane)
		return
	}
	b.lanes[lane] = queue
}

// change records a transition. A final state is reported at once; others may
// be overtaken by the next within the linger, which saves a message.
func (b *Inbox) change(e *entry, now time.Time, s muster.State, reason string) {
	t := muster.Transition{State: s, Time: now, Reason: reason}
	if s == muster.Running {
		t.Attempt = e.Attempts + 1
	}
	e.Report.History = append(e.Report.History, t)
	e.Report.Seq = len(e.Report.History)
	if !e.dirty {
		e.dirty = true
		b.timers.add(now.Add(b.cfg.Linger), e.Command.ID)
	}
}

// handOut puts the report into the Ready, unless its last state is there.
func (b *Inbox) handOut(e *entry) {
	if !e.dirty || e.handed == e.Report.Seq {
		return
	}
	e.dirty = false
	e.handed = e.Report.Seq
	r := e.Report
	r.History = slices.Clone(r.History)
	b.ready.Reports = append(b.ready.Reports, r)
}

// put writes the record. The journal needs a copy: the entry changes on.
func (b *Inbox) put(e *entry, urgent bool) {
	r := e.Record
	r.Report.History = slices.Clone(r.Report.History)
	b.write(Write{Put: &r}, urgent)
}

func (b *Inbox) write(w Write, urgent bool) {
	b.writes = append(b.writes, w)
	b.urgent = b.urgent || urgent
}
