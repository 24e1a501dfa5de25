package delivery

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/musterfleet/muster"
)

// by makes a command of a caller, issued and due at times from t0.
func by(caller, id string, issued, due time.Duration) Delivery {
	d := command(id, "m", "")
	d.Caller, d.Command.IssuedAt, d.Command.Deadline = caller, at(issued), at(due)
	return d
}

// through takes a command in at a time and to its end, and returns that.
func through(b *Inbox, j *model, now time.Time, d Delivery) muster.State {
	b.Deliver(now, d)
	b.Finished(now, d.Command.ID, fine)
	var last muster.State
	b.Flush()
	r := b.Ready()
	for _, x := range r.Reports {
		last = x.State()
	}
	b.Reported(d.Command.ID, 99)
	b.Flush()
	j.apply(r.Writes)
	j.apply(b.Ready().Writes)
	return last
}

// A flood of one caller never makes the node take nothing. What was forgotten
// for it does not run again, and the others are as before.
func TestMemoryIsNeverFull(t *testing.T) {
	cfg := Config{Memory: 100}
	b, j := New(cfg, State{}, t0), &model{}
	through(b, j, t0, by("bob", "bob's first", 0, 200*time.Hour))
	var flood []Delivery
	for i := range 1000 {
		d := by("alice", fmt.Sprint("a", i), time.Duration(i)*time.Second, 100*time.Hour+time.Duration(i)*time.Second)
		flood = append(flood, d)
		if got := through(b, j, d.Command.IssuedAt, d); got != muster.Done || b.Room() == 0 {
			t.Fatalf("command %d is %q, room %d", i, got, b.Room())
		}
	}
	if len(j.seen) != 100 || len(b.Shortages()) != 1 {
		t.Errorf("%d ids are kept, told %q", len(j.seen), b.Shortages())
	}
	for i, what := range []string{"at work", "after a restart"} {
		now := at(2000 * time.Second)
		if got := through(b, j, now, flood[500+i]); got != muster.Unknown {
			t.Errorf("%s: a replay of what was forgotten is %q", what, got)
		}
		for _, d := range append(flood[:20:20], flood[980:]...) {
			if got := through(b, j, now, d); got == muster.Done {
				t.Fatalf("%s: %s runs twice", what, d.Command.ID)
			}
		}
		if b.Recall(by("bob", "bob's first", 0, 200*time.Hour)) == Fresh {
			t.Errorf("%s: the flood of alice made the node forget bob", what)
		}
		late := by("bob", "late "+what, 0, 100*time.Hour)
		if got := through(b, j, now, late); got != muster.Done {
			t.Errorf("%s: a late command of bob is %q", what, got)
		}
		if got := through(b, j, now, by("alice", "new "+what, 1999*time.Second, 50*time.Hour)); got != muster.Done {
			t.Errorf("%s: a new command of alice is %q", what, got)
		}
		if got := through(b, j, now, by("alice", "late of alice "+what, 0, 50*time.Hour)); got != muster.Unknown {
			t.Errorf("%s: a late one of alice is %q, and may have run", what, got)
		}
		b = New(cfg, j.state(), now)
	}
}

// Ids are forgotten soon after their deadlines, and do not run again even if
// the clock is set back; what is new then runs.
func TestForgottenAndClockSetBack(t *testing.T) {
	b, j := New(Config{}, State{}, t0), &model{}
	var all []Delivery
	for i := range 3 * sweepMost / 2 {
		d := by("alice", fmt.Sprint(i), 0, time.Hour)
		all = append(all, d)
		through(b, j, t0, d)
	}
	later := at(time.Hour + idMargin + sweepEvery)
	for n := sweepMost / 2; n >= 0; n -= sweepMost / 2 {
		b.Tick(later)
		b.Flush()
		j.apply(b.Ready().Writes)
		if len(j.seen) != n {
			t.Fatalf("%d ids are left, want %d", len(j.seen), n)
		}
		if next := b.Next(); n > 0 && next.After(later) {
			t.Errorf("it goes on at %s", next)
		}
	}
	if got := through(b, j, later, all[0]); got != muster.Expired {
		t.Errorf("a replay after the deadline is %q", got)
	}
	b = New(Config{}, j.state(), t0)
	if got := through(b, j, at(time.Minute), all[1]); got != muster.Unknown {
		t.Errorf("with the clock set back a replay is %q", got)
	}
	if got := through(b, j, at(2*time.Minute), by("alice", "new", time.Minute, 30*time.Minute)); got != muster.Done {
		t.Errorf("with the clock set back a new command is %q", got)
	}
	if len(j.forgotten) == 0 || len(j.forgotten) > 2 {
		t.Errorf("%d callers are kept", len(j.forgotten))
	}
}

// A redelivery is silent, what is stored anew is a replay, and other content
// under a known id a conflict: while it is held, when it is over, and after a
// restart.
func TestRecall(t *testing.T) {
	b, j := New(Config{}, State{}, t0), &model{}
	stored := func(d Delivery, seq uint64) Delivery { d.Stored = Mark{"s", seq}; return d }
	d := stored(by("alice", "a", 0, time.Hour), 7)
	d.Command.Input = json.RawMessage(`{"x": 1, "y": "<"}`)
	again := d
	again.Command.IssuedAt, again.Command.Deadline = at(time.Minute), at(2*time.Hour)
	again.Command.Input = json.RawMessage(`{"y":"\u003c","x":1}`)
	others := map[string]Delivery{"caller": d, "input": d, "method": d, "retries": d}
	for what, o := range others {
		switch o.Stored.Seq++; what {
		case "caller":
			o.Caller = "eve"
		case "input":
			o.Command.Input = json.RawMessage(`{"x": 2}`)
		case "method":
			o.Command.Method = "other"
		case "retries":
			o.Command.Retries = 1
		}
		others[what] = o
	}
	check := func(when string) {
		t.Helper()
		if got := b.Recall(d); got != Again {
			t.Errorf("%s: delivered again: %v", when, got)
		}
		if got := b.Recall(stored(again, 8)); got != Replay {
			t.Errorf("%s: stored again: %v", when, got)
		}
		for what, o := range others {
			if got := b.Recall(o); got != Conflict {
				t.Errorf("%s: another %s: %v", when, what, got)
			}
			b.Deliver(t0, o)
			if r := b.Ready(); len(r.Acks)+len(r.Starts)+len(r.Reports) > 0 {
				t.Errorf("%s: another %s has effects: %s", when, what, show(r))
			}
		}
	}
	if b.Recall(d) != Fresh {
		t.Error("it is known before it came")
	}
	b.Deliver(t0, d)
	j.apply(b.Ready().Writes)
	check("running")
	b = New(Config{}, j.state(), t0)
	j.apply(b.Ready().Writes)
	check("held, after a restart")
	b.Reported("a", 99)
	b.Flush()
	j.apply(b.Ready().Writes)
	check("over")
	b = New(Config{}, j.state(), t0)
	check("over, after a restart")
	b.Deliver(t0, stored(again, 8))
	r := b.Ready()
	if show(r) != "acks1" || len(r.Writes) != 1 {
		t.Errorf("a replay: %s with %d writes", show(r), len(r.Writes))
	}
	j.apply(r.Writes)
	b = New(Config{}, j.state(), t0)
	if b.Recall(stored(again, 8)) != Again {
		t.Error("a replay whose acknowledgement was lost is another one")
	}
}

func TestFifo(t *testing.T) {
	var f fifo
	in, out := uint64(0), uint64(0)
	for round := range 2000 {
		for range round % 11 {
			f.push(item{seq: in})
			in++
		}
		for range min(round%9, f.n) {
			if got := f.pop().seq; got != out {
				t.Fatalf("got %d, want %d", got, out)
			}
			out++
		}
		if f.n != int(in-out) {
			t.Fatalf("length %d, want %d", f.n, in-out)
		}
	}
}
