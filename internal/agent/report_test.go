package agent

import (
	"context"
	"testing"

	"github.com/musterfleet/muster"
)

func report(id string, seq int) muster.Report {
	return muster.Report{ID: muster.CommandID(id), Node: "n", Seq: seq}
}

func next(t *testing.T, r *reporter, want string, seq int) muster.Report {
	t.Helper()
	got, ok := r.next()
	if !ok && want != "" || string(got.ID) != want || got.Seq != seq {
		t.Errorf("next: got %s/%d %t, want %s/%d", got.ID, got.Seq, ok, want, seq)
	}
	return got
}

// A reporter keeps the newest report of each command until it is stored.
func TestReporter(t *testing.T) {
	r := newReporter()
	r.add(report("a", 1))
	r.add(report("b", 1))
	r.add(report("a", 2))
	old := next(t, r, "a", 2)
	next(t, r, "b", 1)
	next(t, r, "", 0)
	r.add(report("a", 3)) // while 2 is under way
	r.stored(old)
	next(t, r, "a", 3)
	if r.idle() {
		t.Error("idle with two reports under way")
	}
	r.restart() // a new session: what was under way is sent again
	got := map[muster.CommandID]int{}
	for m, ok := r.next(); ok; m, ok = r.next() {
		got[m.ID] = m.Seq
	}
	if len(got) != 2 || got["a"] != 3 || got["b"] != 1 {
		t.Errorf("after a restart: %v", got)
	}
	changed := r.changed()
	r.stored(report("a", 3))
	r.stored(report("b", 1))
	select {
	case <-changed:
	default:
		t.Error("who waits for the last report was not woken")
	}
	if !r.idle() {
		t.Error("not idle")
	}
}

// What the broker would not store is tried again, the newest of it.
func TestReporterRefused(t *testing.T) {
	r := newReporter()
	r.add(report("a", 1))
	next(t, r, "a", 1)
	r.refuse("a")
	r.refuse("unknown")
	next(t, r, "", 0)
	r.again()
	next(t, r, "a", 1)
	r.again()
	next(t, r, "", 0)
}

// Nothing is stored without a session, and waiting for one ends with ctx.
func TestLinkWithoutSession(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := newLink().store(ctx, outgoing("x")); err == nil {
		t.Error("stored without a broker")
	}
}
