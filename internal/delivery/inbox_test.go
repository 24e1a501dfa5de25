package delivery

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(d time.Duration) time.Time { return t0.Add(d) }

// command makes a delivery: letters of how say noseq (n), idempotent (i).
func command(id, method, how string) Delivery {
	return Delivery{Caller: "alice", Token: 1, Idempotent: strings.Contains(how, "i"), Command: muster.Command{
		ID: muster.CommandID(id), Node: "n", Kind: muster.KindCommand, Method: muster.Method(method),
		IssuedAt: t0, Deadline: at(time.Hour), NoSeq: strings.Contains(how, "n"),
	}}
}

// show writes the effects of a Ready in short.
func show(r Ready) string {
	var s []string
	if len(r.Acks) > 0 {
		s = append(s, fmt.Sprint("acks", len(r.Acks)))
	}
	for _, x := range r.Starts {
		s = append(s, fmt.Sprintf("start %s/%d", x.Command.ID, x.Attempt))
	}
	for _, x := range r.Stops {
		s = append(s, "stop "+string(x))
	}
	for _, x := range r.Reports {
		s = append(s, fmt.Sprintf("%s %s/%d", x.ID, x.State(), x.Seq))
	}
	slices.Sort(s)
	return strings.Join(s, ", ")
}

func expect(t *testing.T, b *Inbox, want string) Ready {
	t.Helper()
	r := b.Ready()
	if got := show(r); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	return r
}

var (
	fine = muster.Result{}
	bad  = muster.Result{Error: muster.Errorf(muster.Failed, "bad")}
)

func TestDedupe(t *testing.T) {
	b := New(Config{}, State{}, t0)
	d := command("a", "m", "")
	b.Deliver(t0, d)
	if r := expect(t, b, "acks1, start a/1"); len(r.Writes) == 0 {
		t.Error("acknowledged without a write")
	}
	b.Deliver(t0, d)
	expect(t, b, "acks1")
	b.Finished(t0, "a", fine)
	expect(t, b, "a done/3")
	b.Deliver(t0, d)
	expect(t, b, "acks1")
	b.Reported("a", 2)
	b.Reported("a", 3)
	b.Deliver(t0, d)
	expect(t, b, "acks1")
	if !b.Unwritten() || b.Len() != 0 {
		t.Error("the deletion is missing")
	}
	b.Flush()
	if r := b.Ready(); len(r.Writes) != 2 || r.Writes[0].Remember == nil || r.Writes[1].Delete != 1 {
		t.Errorf("got %+v", r.Writes)
	}
	b.Tick(at(time.Hour + idMargin))
	b.Flush()
	if r := b.Ready(); !r.Empty() {
		t.Errorf("forgotten early: %+v", r)
	}
	b.Tick(at(time.Hour + idMargin + sweepEvery))
	b.Flush()
	if r := b.Ready(); len(r.Writes) == 0 || r.Writes[0].Forget != 1 {
		t.Errorf("got %+v", r.Writes)
	}
}

func TestPause(t *testing.T) {
	b := New(Config{Paused: "held"}, State{}, t0)
	short := command("short", "s", "")
	short.Command.Deadline = at(time.Minute)
	for _, d := range []Delivery{command("a", "m", ""), command("b", "m", "n"), short} {
		b.Deliver(t0, d)
	}
	expect(t, b, "acks3")
	b.Tick(at(time.Second))
	if r := expect(t, b, "a accepted/1, b accepted/1, short accepted/1"); r.Reports[0].History[0].Reason != "held" {
		t.Errorf("accepted with %+v", r.Reports[0].History)
	}
	b.Tick(at(time.Minute))
	expect(t, b, "short expired/2")
	b.Pause(at(time.Minute), "")
	expect(t, b, "start a/1, start b/1")
	b.Deliver(at(time.Minute), command("c", "m", ""))
	b.Pause(at(time.Minute), "again")
	b.Finished(at(time.Minute), "a", fine)
	expect(t, b, "a done/3, acks1") // what runs goes on; what is next waits
	b.Pause(at(2*time.Minute), "")
	expect(t, b, "b running/2, c accepted/1, start c/1")
}

func TestPausedRetry(t *testing.T) {
	b := New(Config{}, State{}, t0)
	d := command("a", "m", "")
	d.Command.Retries = 1
	b.Deliver(t0, d)
	expect(t, b, "acks1, start a/1")
	b.Finished(t0, "a", bad)
	b.Pause(t0, "held")
	b.Tick(at(time.Minute))
	expect(t, b, "a accepted/3")
	b.Pause(at(2*time.Minute), "")
	expect(t, b, "start a/2")
}

func TestLanes(t *testing.T) {
	b := New(Config{}, State{}, t0)
	for _, x := range []string{"a1", "b1", "a2", "b2", "a3"} {
		b.Deliver(t0, command(x, x[:1], ""))
	}
	expect(t, b, "acks5, start a1/1, start b1/1")
	if b.Len() != 5 {
		t.Errorf("held %d", b.Len())
	}
	b.Finished(t0, "b1", fine)
	expect(t, b, "b1 done/3, start b2/1")
	b.Finished(t0, "a1", bad)
	expect(t, b, "a1 failed/3, start a2/1")
	b.Finished(t0, "a3", fine) // does not run
	expect(t, b, "")
}

func TestNoSeqLimit(t *testing.T) {
	b := New(Config{NoSeq: 2}, State{}, t0)
	b.Deliver(t0, command("a", "m", ""))
	for _, x := range []string{"x", "y", "z"} {
		b.Deliver(t0, command(x, "m", "n"))
	}
	expect(t, b, "acks4, start a/1, start x/1, start y/1")
	b.Finished(t0, "y", fine)
	expect(t, b, "start z/1, y done/3")
}

func TestDeadlines(t *testing.T) {
	b := New(Config{}, State{}, t0)
	b.Deliver(at(time.Hour), command("late", "m", ""))
	expect(t, b, "acks1, late expired/1")
	b.Deliver(t0, command("a", "m", ""))
	b.Deliver(t0, command("b", "m", ""))
	b.Deliver(t0, command("c", "m", ""))
	b.Ready()
	// Nobody called Tick, and still nothing starts after its deadline.
	b.Finished(at(time.Hour), "a", fine)
	expect(t, b, "a done/3, b expired/2, c expired/2")
}

func TestDeadlineAfterRestart(t *testing.T) {
	b, j := New(Config{}, State{}, t0), model{}
	for _, d := range []Delivery{command("a", "m", ""), command("b", "m", ""), command("i", "o", "i")} {
		b.Deliver(t0, d)
	}
	j.apply(b.Ready().Writes)
	b = New(Config{}, j.state(), at(2*time.Hour))
	expect(t, b, "a unknown/3, b expired/2, i unknown/4")
}

func TestCancel(t *testing.T) {
	mine := Cancel{ID: "b", Caller: "alice", Reason: "why", Until: at(time.Hour)}
	theirs := Cancel{ID: "b", Caller: "eve", Until: at(time.Hour)}
	policy := Cancel{ID: "b", Caller: "eve", Any: true, Until: at(time.Hour)}
	t.Run("before", func(t *testing.T) {
		for name, all := range map[string][]Cancel{"mine": {mine}, "mine, then theirs": {mine, theirs}, "theirs, then mine": {theirs, mine}, "policy": {policy}, "policy, then theirs": {policy, theirs}} {
			b, j := New(Config{}, State{}, t0), model{}
			for _, c := range all {
				b.Cancel(t0, c)
			}
			j.apply(b.Ready().Writes)
			b = New(Config{}, j.state(), t0)
			b.Deliver(t0, command("b", "m", ""))
			if r := b.Ready(); show(r) != "acks1, b cancelled/1" {
				t.Errorf("%s: %s", name, show(r))
			} else {
				j.apply(r.Writes)
			}
			b.Reported("b", 1)
			b.Flush()
			j.apply(b.Ready().Writes)
			if len(j.withdrawals)+len(j.records) != 0 {
				t.Errorf("%s: left behind: %+v", name, j)
			}
		}
	})
	t.Run("before, by another", func(t *testing.T) {
		b := New(Config{}, State{}, t0)
		b.Cancel(t0, theirs)
		b.Ready()
		b.Deliver(t0, command("b", "m", ""))
		expect(t, b, "acks1, start b/1")
	})
	t.Run("before, never sent", func(t *testing.T) {
		b, j := New(Config{}, State{}, t0), model{}
		b.Cancel(t0, mine)
		b.Tick(at(time.Hour + cancelMargin))
		j.apply(b.Ready().Writes)
		if len(j.withdrawals) != 0 {
			t.Error("kept")
		}
	})
	t.Run("queued", func(t *testing.T) {
		b := New(Config{}, State{}, t0)
		b.Deliver(t0, command("a", "m", ""))
		b.Deliver(t0, command("b", "m", ""))
		b.Ready()
		b.Cancel(t0, theirs)
		expect(t, b, "")
		b.Cancel(t0, mine)
		expect(t, b, "b cancelled/2")
	})
	t.Run("running", func(t *testing.T) {
		for want, result := range map[string]muster.Result{"b cancelled/3": bad, "b done/3": fine} {
			b := New(Config{}, State{}, t0)
			d := command("b", "m", "")
			d.Command.Retries = 3
			b.Deliver(t0, d)
			b.Ready()
			b.Cancel(t0, theirs)
			expect(t, b, "")
			b.Cancel(t0, mine)
			b.Cancel(t0, mine)
			expect(t, b, "stop b")
			b.Finished(t0, "b", result)
			expect(t, b, want)
			b.Cancel(t0, mine)
			expect(t, b, "")
		}
	})
	t.Run("running, then interrupted", func(t *testing.T) {
		b, j := New(Config{}, State{}, t0), model{}
		b.Deliver(t0, command("b", "m", "i"))
		b.Cancel(t0, mine)
		j.apply(b.Ready().Writes)
		b = New(Config{}, j.state(), t0)
		expect(t, b, "b cancelled/3")
	})
}

func TestRetry(t *testing.T) {
	b := New(Config{}, State{}, t0)
	d := command("a", "m", "")
	d.Command.Retries = 2
	b.Deliver(t0, d)
	b.Deliver(t0, command("b", "m", ""))
	b.Ready()
	b.Finished(t0, "a", bad)
	expect(t, b, "")
	b.Tick(at(999 * time.Millisecond))
	expect(t, b, "a accepted/3, b accepted/1")
	b.Tick(at(time.Second))
	expect(t, b, "start a/2")
	b.Finished(at(time.Second), "a", bad)
	b.Tick(at(3 * time.Second))
	expect(t, b, "a accepted/5, start a/3")
	b.Finished(at(3*time.Second), "a", bad)
	expect(t, b, "a failed/7, start b/1")

	for _, kind := range []muster.ErrorKind{muster.Invalid, muster.Denied} {
		b = New(Config{}, State{}, t0)
		b.Deliver(t0, d)
		b.Ready()
		b.Finished(t0, "a", muster.Result{Error: muster.Errorf(kind, "no")})
		expect(t, b, "a failed/3")
	}
	b = New(Config{}, State{}, t0)
	b.Deliver(t0, d)
	b.Ready()
	b.Finished(at(time.Hour-time.Second), "a", bad)
	expect(t, b, "a failed/3")
}

func TestRecovery(t *testing.T) {
	b, j := New(Config{}, State{}, t0), model{}
	for _, d := range []Delivery{command("a", "m", ""), command("b", "m", ""), command("i", "o", "i"), command("k", "o", "i")} {
		b.Deliver(t0, d)
	}
	j.apply(b.Ready().Writes)
	b = New(Config{}, j.state(), t0)
	r := expect(t, b, "a unknown/3, b accepted/1, i accepted/3, k accepted/1, start b/1, start i/1")
	j.apply(r.Writes)
	for range maxStarts - 2 {
		b = New(Config{}, j.state(), t0)
		r = b.Ready()
		if !strings.Contains(show(r), "start i/1") {
			t.Fatalf("got %s", show(r))
		}
		j.apply(r.Writes)
	}
	b = New(Config{}, j.state(), t0)
	if got := show(b.Ready()); !strings.Contains(got, "i unknown/") || !strings.Contains(got, "start k/1") {
		t.Errorf("after %d runs: %s", maxStarts, got)
	}
}

// TestFailedRunsAreNotInterruptions: attempts that ended by themselves do not
// count against a command that is interrupted once.
func TestFailedRunsAreNotInterruptions(t *testing.T) {
	b, j, now := New(Config{}, State{}, t0), model{}, t0
	d := command("a", "m", "i")
	d.Command.Retries = 20
	b.Deliver(t0, d)
	for range 7 {
		b.Finished(now, "a", bad)
		now = now.Add(5 * time.Minute)
		b.Tick(now)
	}
	j.apply(b.Ready().Writes)
	b = New(Config{}, j.state(), now)
	if got := show(b.Ready()); !strings.Contains(got, "start a/8") {
		t.Errorf("got %s", got)
	}
}

func TestLostJournal(t *testing.T) {
	b := New(Config{}, State{Lost: at(time.Minute)}, at(time.Minute))
	b.Deliver(at(time.Minute), command("a", "m", ""))
	b.Deliver(at(time.Minute), command("i", "m", "i"))
	newer := command("b", "o", "")
	newer.Command.IssuedAt = at(time.Minute)
	b.Deliver(at(time.Minute), newer)
	expect(t, b, "a unknown/1, acks3, start b/1, start i/1")
}

func TestRefusal(t *testing.T) {
	b := New(Config{}, State{}, t0)
	d := command("a", "m", "")
	d.Refusal = muster.Errorf(muster.Denied, "policy says no")
	b.Deliver(t0, d)
	if r := expect(t, b, "a refused/1, acks1"); r.Reports[0].Result.Error.Kind != muster.Denied {
		t.Errorf("got %+v", r.Reports[0])
	}
}

func TestLinger(t *testing.T) {
	b := New(Config{Linger: time.Second}, State{}, t0)
	b.Deliver(t0, command("a", "m", ""))
	b.Ready()
	if !b.Next().Equal(at(time.Second)) {
		t.Errorf("next %v", b.Next())
	}
	b.Tick(at(time.Second))
	expect(t, b, "a running/2")
	b.Finished(at(time.Second), "a", fine)
	expect(t, b, "a done/3") // at once
	b.Tick(at(2 * time.Second))
	expect(t, b, "")
}

func TestRoom(t *testing.T) {
	b := New(Config{Capacity: 3, Memory: 2}, State{}, t0)
	for i, x := range []string{"a", "b", "c"} {
		b.Deliver(t0, command(x, x, ""))
		if b.Room() != 2-i {
			t.Errorf("room %d", b.Room())
		}
	}
	for _, x := range []muster.CommandID{"a", "b", "c"} {
		b.Finished(t0, x, fine)
		b.Reported(x, 3)
	}
	if b.Room() != 3 {
		t.Errorf("room %d, though nothing is held", b.Room())
	}
}

// What is over counts until its report is stored: a node whose reports nobody
// takes stops accepting, and forgets nothing.
func TestRoomWhileNobodyTakesReports(t *testing.T) {
	b := New(Config{Capacity: 2}, State{}, t0)
	j := model{}
	for _, x := range []string{"a", "b"} {
		b.Deliver(t0, command(x, "m", ""))
		b.Finished(t0, muster.CommandID(x), fine)
	}
	j.apply(b.Ready().Writes)
	if b.Room() != 0 || b.Len() != 0 {
		t.Errorf("room %d with two reports that wait, %d held", b.Room(), b.Len())
	}
	b = New(Config{Capacity: 2}, j.state(), t0)
	if b.Room() != 0 {
		t.Errorf("room %d after a restart", b.Room())
	}
	expect(t, b, "a done/3, b done/3")
	b.Reported("a", 3)
	if b.Room() != 1 {
		t.Errorf("room %d, want one place that a report has freed", b.Room())
	}
	b.Deliver(t0, command("c", "m", ""))
	b.Finished(t0, "c", fine)
	b.Reported("b", 3)
	if b.Room() != 1 {
		t.Errorf("room %d beside one report that waits", b.Room())
	}
}

// Cancels of what has not come are bounded. At the limit nothing is accepted,
// since the next command may be withdrawn by one that was not taken in.
func TestRoomForWithdrawals(t *testing.T) {
	b, j := New(Config{Withdrawals: 2}, State{}, t0), model{}
	cancel := func(id muster.CommandID, by string) bool {
		return b.Cancel(t0, Cancel{ID: id, Caller: by, Until: at(time.Hour)})
	}
	b.Deliver(t0, command("here", "m", ""))
	for range 3 {
		if !cancel("a", "alice") || b.Room() == 0 {
			t.Error("a cancel takes one place, however often it comes")
		}
	}
	if !cancel("a", "eve") || b.Room() != 0 {
		t.Errorf("with both places taken the room is %d", b.Room())
	}
	if cancel("b", "alice") {
		t.Error("a third was taken in")
	}
	if !cancel("here", "alice") {
		t.Error("a cancel of what is here needs no place")
	}
	j.apply(b.Ready().Writes)
	b = New(Config{Withdrawals: 2}, j.state(), t0)
	if b.Room() != 0 || len(j.withdrawals) != 2 {
		t.Errorf("after a restart the room is %d, with %d withdrawals", b.Room(), len(j.withdrawals))
	}
	b.Tick(at(time.Hour + cancelMargin))
	if b.Room() == 0 || !cancel("b", "alice") {
		t.Error("the places are not free after the deadline")
	}
	// A command that comes frees the places of its withdrawals.
	c := command("b", "m", "")
	b.Deliver(t0, c)
	b.Reported("b", 1)
	if !cancel("c", "alice") || !cancel("d", "alice") || cancel("e", "alice") {
		t.Error("two places were to be free")
	}
}

// One caller cannot take the places of the others, and operators are told
// before all are taken.
func TestShareOfWithdrawals(t *testing.T) {
	b, j := New(Config{Withdrawals: 10, Share: 4}, State{}, t0), model{}
	taken := func(by string, n int) (count int) {
		for i := range n {
			c := Cancel{ID: muster.CommandID(fmt.Sprint(by, i)), Caller: by, Until: at(time.Hour)}
			if b.Overdrawn(c) == nil && b.Cancel(t0, c) {
				count++
			}
		}
		return count
	}
	b.Deliver(t0, command("here", "m", ""))
	if n := taken("eve", 100); n != 4 || b.Room() == 0 || len(b.Shortages()) != 0 {
		t.Errorf("%d of eve's cancels were taken, room %d, told %q", n, b.Room(), b.Shortages())
	}
	if err := b.Overdrawn(Cancel{ID: "here", Caller: "eve"}); err != nil {
		t.Errorf("a cancel of what is here needs no place: %v", err)
	}
	if n := taken("eve", 100); n != 4 {
		t.Errorf("%d of eve's are taken for repetitions", n)
	}
	if n := taken("bob", 100); n != 4 || len(b.Shortages()) != 1 {
		t.Errorf("%d of bob's cancels were taken, told %q", n, b.Shortages())
	}
	j.apply(b.Ready().Writes)
	b = New(Config{Withdrawals: 10, Share: 4}, j.state(), t0)
	if b.Overdrawn(Cancel{ID: "more", Caller: "eve"}) == nil {
		t.Error("after a restart eve has places again")
	}
	b.Tick(at(time.Hour + cancelMargin))
	if b.Overdrawn(Cancel{ID: "more", Caller: "eve"}) != nil || len(b.Shortages()) != 0 {
		t.Error("her places are not free after the deadline")
	}
}

func TestFullInboxIsTold(t *testing.T) {
	b := New(Config{Capacity: 20}, State{}, t0)
	for i := range 20 {
		if n := len(b.Shortages()); n != 0 {
			t.Fatalf("%d shortages with %d commands", n, i)
		}
		b.Deliver(t0, command(fmt.Sprint(i), "m", "n"))
	}
	if len(b.Shortages()) != 1 || b.Room() != 0 {
		t.Errorf("told %q, room %d", b.Shortages(), b.Room())
	}
	over := func(i int) {
		b.Finished(t0, muster.CommandID(fmt.Sprint(i)), fine)
		b.Reported(muster.CommandID(fmt.Sprint(i)), 99)
	}
	over(0)
	over(1)
	if len(b.Shortages()) != 1 {
		t.Error("it comes and goes with each command")
	}
	over(2)
	if len(b.Shortages()) != 0 {
		t.Errorf("with 17 of 20: %q", b.Shortages())
	}
}

func TestRelaxedWritesAreTakenAlong(t *testing.T) {
	b := New(Config{}, State{}, t0)
	b.Deliver(t0, command("a", "m", ""))
	b.Finished(t0, "a", fine)
	b.Ready()
	b.Reported("a", 3)
	if r := b.Ready(); !r.Empty() || !b.Unwritten() {
		t.Errorf("got %+v", r)
	}
	b.Deliver(t0, command("b", "m", ""))
	if r := b.Ready(); len(r.Writes) != 4 || r.Writes[0].Remember == nil || r.Writes[1].Delete == 0 || b.Unwritten() {
		t.Errorf("got %+v", r.Writes)
	}
}

func TestDefaultBackoff(t *testing.T) {
	for n, want := range map[int]time.Duration{0: time.Second, 1: time.Second, 2: 2 * time.Second, 9: 256 * time.Second, 10: 5 * time.Minute, 1 << 40: 5 * time.Minute} {
		if got := DefaultBackoff(n); got != want {
			t.Errorf("attempt %d: %v, want %v", n, got, want)
		}
	}
}
