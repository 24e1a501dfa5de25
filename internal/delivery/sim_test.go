package delivery

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/musterfleet/muster"
)

// A model is a journal that applies writes all or none.
type model struct {
	records     map[uint64]string // as JSON: the journal shares nothing with the Inbox
	seen        map[uint64]Seen
	forgotten   map[string]Forgotten
	read        map[string]uint64
	withdrawals map[string]Withdrawal
}

func (j *model) apply(writes []Write) {
	if j.records == nil {
		*j = model{map[uint64]string{}, map[uint64]Seen{}, map[string]Forgotten{}, map[string]uint64{}, map[string]Withdrawal{}}
	}
	for _, w := range writes {
		switch {
		case w.Put != nil:
			data, err := json.Marshal(w.Put)
			if err != nil {
				panic(err)
			}
			j.records[w.Put.Seq] = string(data)
		case w.Delete != 0:
			delete(j.records, w.Delete)
		case w.Remember != nil:
			j.seen[w.Remember.Seq] = *w.Remember
		case w.Forget != 0:
			delete(j.seen, w.Forget)
		case w.Forgot != nil && w.Forgot.Deadline == 0:
			delete(j.forgotten, w.Forgot.Caller)
		case w.Forgot != nil:
			j.forgotten[w.Forgot.Caller] = *w.Forgot
		case w.Read != nil:
			j.read[w.Read.Stream] = w.Read.Seq
		case w.Withdraw != nil:
			j.withdrawals[string(w.Withdraw.ID)+"@"+w.Withdraw.Caller] = *w.Withdraw
		case w.Unwithdraw != "":
			maps.DeleteFunc(j.withdrawals, func(_ string, x Withdrawal) bool { return x.ID == w.Unwithdraw })
		}
	}
}

func (j *model) state() State {
	var s State
	for _, data := range j.records {
		var r Record
		if err := json.Unmarshal([]byte(data), &r); err != nil {
			panic(err)
		}
		s.Records = append(s.Records, r)
	}
	for _, seq := range slices.Sorted(maps.Keys(j.seen)) {
		s.Seen = append(s.Seen, j.seen[seq])
	}
	for stream, seq := range j.read {
		s.Read = append(s.Read, Mark{stream, seq})
	}
	s.Forgotten = slices.Collect(maps.Values(j.forgotten))
	s.Withdrawals = slices.Collect(maps.Values(j.withdrawals))
	return s
}

// sent is what the simulation knows of a command that no part of muster does.
type sent struct {
	d                         Delivery
	n                         int // place in its lane
	runs, ended, interrupted  int
	succeeded, failed, cancel bool
	acked                     bool
	final                     muster.State
	seq                       int // of the newest report that the operator has
}

// faults are rules that a simulation breaks on purpose.
type faults struct{ ackBeforeWrite, startBeforeWrite, forgetSeen, durableConsumer, deafToPause bool }

type sim struct {
	rng     *rand.Rand
	faults  faults
	now     time.Time
	box     *Inbox
	journal model
	cmds    map[muster.CommandID]*sent
	ids     []muster.CommandID // as sent
	queue   []muster.CommandID // at the broker, not acknowledged
	cursor  int                // of the consumer, into queue
	running map[muster.CommandID]bool
	reports []muster.Report // on the way to the operator
	lanes   map[string]int  // first runs begun
	paused  string
	err     error
}

func (s *sim) fail(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf(format, args...)
	}
}

func (s *sim) chance(percent int) bool { return s.rng.IntN(100) < percent }

func (s *sim) send() {
	i := len(s.ids)
	d := command(fmt.Sprintf("c%d", i), string(rune('a'+s.rng.IntN(3))), "")
	d.Token, d.Idempotent, d.Command.NoSeq = uint64(i+1), s.chance(40), s.chance(15)
	d.Command.IssuedAt, d.Command.Deadline = s.now, s.now.Add(time.Duration(1+s.rng.IntN(600))*time.Second)
	if s.chance(30) {
		d.Command.Retries = s.rng.IntN(4)
	}
	if s.chance(5) {
		d.Refusal = muster.Errorf(muster.Denied, "no")
	}
	id := d.Command.ID
	s.cmds[id] = &sent{d: d, n: i}
	s.ids = append(s.ids, id)
	s.queue = append(s.queue, id)
}

// connect makes a fresh consumer, which begins at the first command that is
// not acknowledged.
func (s *sim) connect() {
	s.cursor = 0
	if s.faults.durableConsumer { // which redelivers behind newer messages
		s.rng.Shuffle(len(s.queue), func(i, j int) { s.queue[i], s.queue[j] = s.queue[j], s.queue[i] })
	}
}

// expire removes what the broker does not keep any longer: of what the node has
// had, so that it tells the end of each command.
func (s *sim) expire() {
	for i := 0; i < len(s.queue); {
		c := s.cmds[s.queue[i]]
		if c.final != "" && s.now.After(c.d.Command.Deadline.Add(time.Minute)) {
			s.unqueue(i)
			continue
		}
		i++
	}
}

func (s *sim) unqueue(i int) {
	s.queue = slices.Delete(s.queue, i, i+1)
	if i < s.cursor {
		s.cursor--
	}
}

// crash ends the agent with everything that it had in memory, and starts it.
func (s *sim) crash() {
	st := s.journal.state()
	// A run whose end, or whose beginning, the journal does not know is cut.
	cut := maps.Clone(s.running)
	for _, r := range st.Records {
		if r.Report.State() == muster.Running {
			cut[r.Command.ID] = true
		}
	}
	for id := range cut {
		s.cmds[id].interrupted++
	}
	clear(s.running)
	s.reports = nil
	if s.faults.forgetSeen {
		st.Seen, st.Forgotten = nil, nil
	}
	s.box = New(Config{NoSeq: 3, Paused: s.paused}, st, s.now)
	s.connect()
}

// carry does what the Inbox asks for. It may crash at any point.
func (s *sim) carry(crashes int) {
	r := s.box.Ready()
	if s.chance(crashes) {
		s.crash() // before the writes
		return
	}
	if s.faults.ackBeforeWrite {
		s.acks(r.Acks)
		if s.chance(crashes * 5) {
			s.crash()
			return
		}
	}
	if s.faults.startBeforeWrite {
		for _, x := range r.Starts {
			s.start(x)
		}
		if s.chance(crashes * 5) {
			s.crash()
			return
		}
		r.Starts = nil
	}
	s.journal.apply(r.Writes)
	effects := []func(){func() { s.acks(r.Acks) }}
	for _, x := range r.Starts {
		effects = append(effects, func() { s.start(x) })
	}
	for _, id := range r.Stops {
		effects = append(effects, func() { s.cmds[id].cancel = true })
	}
	effects = append(effects, func() { s.reports = append(s.reports, r.Reports...) })
	for _, f := range effects {
		if s.chance(crashes) {
			s.crash() // between the effects
			return
		}
		f()
	}
}

func (s *sim) acks(tokens []uint64) {
	for _, token := range tokens {
		if s.chance(20) {
			continue // lost on the way
		}
		id := s.ids[token-1]
		if i := slices.Index(s.queue, id); i >= 0 {
			s.unqueue(i)
		}
		s.cmds[id].acked = true
	}
}

func (s *sim) start(x Start) {
	c := s.cmds[x.Command.ID]
	switch {
	case s.paused != "":
		s.fail("%s starts during a pause", x.Command.ID)
	case s.running[x.Command.ID]:
		s.fail("%s runs beside itself", x.Command.ID)
	case c.interrupted > 0 && !c.d.Idempotent:
		s.fail("%s was interrupted, is not idempotent, and runs again", x.Command.ID)
	case c.runs > c.d.Command.Retries && !c.d.Idempotent:
		s.fail("%s runs %d times", x.Command.ID, c.runs+1)
	case !s.now.Before(x.Command.Deadline):
		s.fail("%s starts after its deadline", x.Command.ID)
	case c.d.Refusal != nil:
		s.fail("%s was refused, and runs", x.Command.ID)
	case c.final != "":
		s.fail("%s is %s, and runs", x.Command.ID, c.final)
	}
	if !x.Command.NoSeq {
		lane := x.Command.Lane().String()
		for id := range s.running {
			if o := s.cmds[id].d.Command; !o.NoSeq && o.Lane().String() == lane {
				s.fail("%s and %s run in one lane", id, x.Command.ID)
			}
		}
		if c.runs == 0 {
			if last, ok := s.lanes[lane]; ok && last > c.n {
				s.fail("%s runs after c%d, which was sent later", x.Command.ID, last)
			}
			s.lanes[lane] = c.n
		}
	}
	c.runs++
	s.running[x.Command.ID] = true
}

// pick returns one of the commands that run.
func (s *sim) pick() (muster.CommandID, bool) {
	all := slices.Sorted(maps.Keys(s.running))
	if len(all) == 0 {
		return "", false
	}
	return all[s.rng.IntN(len(all))], true
}

func (s *sim) finish(id muster.CommandID) {
	delete(s.running, id)
	c := s.cmds[id]
	c.ended++
	if s.chance(30) {
		c.failed = true
		s.box.Finished(s.now, id, bad)
		return
	}
	c.succeeded = true
	s.box.Finished(s.now, id, fine)
}

// stored is a report that reached the operator's side, whose receipt may be lost.
func (s *sim) stored(lossy bool) {
	r := s.reports[0]
	s.reports = s.reports[1:]
	if lossy && s.chance(10) {
		s.reports = append(s.reports, r) // not stored; the outbox tries again
		return
	}
	c := s.cmds[r.ID]
	switch {
	case c.final != "" && r.State().Final() && r.State() != c.final:
		s.fail("%s is %s, after it was %s", r.ID, r.State(), c.final)
	case r.Seq > c.seq && c.final != "":
		s.fail("%s has state %s after %s", r.ID, r.State(), c.final)
	case r.Seq == c.seq && c.final == "" && r.State().Final():
		s.fail("%s: report %d has two contents", r.ID, r.Seq)
	}
	c.seq = max(c.seq, r.Seq)
	if r.State().Final() {
		c.final = r.State()
		s.judge(r.ID, c)
	}
	if lossy && s.chance(10) {
		s.reports = append(s.reports, r) // the receipt is lost; the outbox tries again
		return
	}
	s.box.Reported(r.ID, r.Seq)
}

// judge says whether a final state is true.
func (s *sim) judge(id muster.CommandID, c *sent) {
	ok := true
	switch c.final {
	case muster.Done:
		ok = c.succeeded
	case muster.Failure:
		ok = c.failed
	case muster.Unknown:
		ok = c.interrupted > 0
	case muster.Expired:
		ok = c.runs == 0 && !s.now.Before(c.d.Command.Deadline)
	case muster.Cancelled:
		ok = c.cancel
	case muster.Refused:
		ok = c.d.Refusal != nil && c.runs == 0
	}
	if !ok || c.succeeded && c.final != muster.Done && c.final != muster.Unknown && !c.d.Idempotent {
		s.fail("%s is reported %s, but %+v", id, c.final, *c)
	}
}

// pause takes effect on what is decided from now on.
func (s *sim) pause(reason string) {
	s.carry(0)
	s.paused = reason
	if !s.faults.deafToPause {
		s.box.Pause(s.now, reason)
	}
}

func (s *sim) step() {
	switch n := s.rng.IntN(100); {
	case n < 15:
		if len(s.ids) < 150 {
			s.send()
		}
	case n < 45:
		if s.cursor < len(s.queue) && s.box.Room() > 0 {
			id := s.queue[s.cursor]
			s.cursor++
			s.box.Deliver(s.now, s.cmds[id].d)
		}
	case n < 60:
		if id, ok := s.pick(); ok {
			s.finish(id)
		}
	case n < 80:
		if len(s.reports) > 0 {
			s.stored(true)
		}
	case n < 83:
		if len(s.ids) > 0 {
			id := s.ids[max(0, len(s.ids)-1-s.rng.IntN(20))]
			by := []string{"alice", "eve"}[s.rng.IntN(2)]
			if by == "alice" {
				s.cmds[id].cancel = true
			}
			s.box.Cancel(s.now, Cancel{ID: id, Caller: by, Reason: "enough", Until: s.cmds[id].d.Command.Deadline})
		}
	case n < 85:
		s.connect()
	case n < 86:
		s.crash()
	case n < 88:
		s.box.Flush()
	case n < 90:
		s.pause([]string{"", "", "somebody else has this node"}[s.rng.IntN(3)])
	default:
		s.carry(3) // what was decided is done at its time
		s.carry(0)
		s.now = s.now.Add(time.Duration(s.rng.IntN(4000)) * time.Millisecond)
		s.expire()
		if s.chance(70) {
			s.box.Tick(s.now)
		}
	}
	if s.chance(60) {
		s.carry(3)
	}
}

func simulate(seed uint64, f faults) error {
	s := &sim{rng: rand.New(rand.NewPCG(seed, 7)), faults: f, now: t0, cmds: map[muster.CommandID]*sent{}, running: map[muster.CommandID]bool{}, lanes: map[string]int{}}
	s.crash()
	for range 3000 {
		if s.step(); s.err != nil {
			return s.err
		}
	}
	// Calm: everything comes to an end.
	s.pause("")
	for i := 0; i < 5000 && s.err == nil && (i == 0 || len(s.queue) > 0 || s.box.Len() > 0 || len(s.reports) > 0); i++ {
		if i%20 == 0 {
			s.connect()
		}
		for s.cursor < len(s.queue) {
			s.cursor++
			s.box.Deliver(s.now, s.cmds[s.queue[s.cursor-1]].d)
		}
		s.carry(0)
		if id, ok := s.pick(); ok {
			s.finish(id)
		}
		for len(s.reports) > 0 {
			s.stored(false)
		}
		s.carry(0) // what was decided is done at its time
		s.now = s.now.Add(3 * time.Second)
		s.expire()
		s.box.Tick(s.now)
	}
	s.carry(0)
	for len(s.reports) > 0 && s.err == nil {
		s.stored(false)
	}
	s.now = s.now.Add(2 * cancelMargin)
	s.box.Tick(s.now)
	s.box.Flush()
	s.carry(0)
	for _, id := range s.ids {
		if c := s.cmds[id]; c.final == "" {
			s.fail("%s was lost: %+v", id, *c)
		}
	}
	if n := len(s.journal.records) + len(s.journal.seen) + len(s.journal.withdrawals); n != 0 {
		s.fail("the journal holds %d entries at the end: %+v", n, s.journal)
	}
	if len(s.queue) != 0 || s.box.Len() != 0 || len(s.running) != 0 {
		s.fail("left: %d at the broker, %d held, %d running", len(s.queue), s.box.Len(), len(s.running))
	}
	return s.err
}

// TestSimulation runs seeds from 1; MUSTER_SEEDS says how many, and
// MUSTER_SEED names a single one.
func TestSimulation(t *testing.T) {
	seeds := uint64(100) // 300 take half a minute
	if v := os.Getenv("MUSTER_SEEDS"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = n
	}
	first := uint64(1)
	if v := os.Getenv("MUSTER_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, seeds = n, 1
	}
	failed := 0
	for seed := first; seed < first+seeds && failed < 5; seed++ {
		if err := simulate(seed, faults{}); err != nil {
			failed++
			t.Errorf("MUSTER_SEED=%d: %v", seed, err)
		}
	}
}

// TestSimulationCanFail breaks a rule at a time: the simulation must notice.
func TestSimulationCanFail(t *testing.T) {
	for name, f := range map[string]faults{
		"acknowledges before the writes are durable": {ackBeforeWrite: true},
		"starts before the writes are durable":       {startBeforeWrite: true},
		"forgets what is over":                       {forgetSeen: true},
		"redelivers out of order":                    {durableConsumer: true},
		"starts during a pause":                      {deafToPause: true},
	} {
		var caught error
		for seed := uint64(1); seed <= 20 && caught == nil; seed++ {
			caught = simulate(seed, f)
		}
		if caught == nil {
			t.Errorf("%s: not noticed in 20 seeds", name)
		} else {
			t.Logf("%s: %.120s", name, caught)
		}
	}
}
