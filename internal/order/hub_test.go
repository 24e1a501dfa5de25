package order

import (
	"testing"
	"time"
)

// star is a world with agents, some of them on the network, and a caller who
// has the hub.
func star(t *testing.T, agents int, remote func(i int) bool, both bool) (*world, *host) {
	t.Helper()
	w := newWorld(7, faults{}, flaws{})
	for i := range agents {
		w.agent().remote = remote(i)
	}
	c := w.callerHost(0)
	c.script, c.hub, c.remote = &script{calls: 1, lease: time.Minute}, true, !both
	w.run(t0.Add(3 * time.Second))
	return w, c
}

func (h *host) won(t *testing.T, members int) {
	t.Helper()
	if len(h.wins) != 1 || h.wins[0].members != members {
		t.Fatalf("won: %+v, not %d members", h.wins, members)
	}
}

// TestStar: over the hub a wave has the depth one, whatever the overlay's degree.
func TestStar(t *testing.T) {
	const agents = 60
	w, c := star(t, agents, func(int) bool { return true }, false)
	w.unicast = 0
	c.call()
	w.run(w.now.Add(time.Second))
	c.won(t, agents)
	// WAVE, ECHO and FACK of two waves for each.
	if want := 2 * 3 * agents; w.unicast != want {
		t.Errorf("CALL and ORDER took %d frames, not %d", w.unicast, want)
	}
	if w.err != nil {
		t.Fatal(w.err)
	}
}

// TestMixed: who can be reached in both ways acts once, and counts once; what
// only the hub reaches belongs to the same Order.
func TestMixed(t *testing.T) {
	const agents = 40
	w, c := star(t, agents, func(i int) bool { return i%4 == 0 }, true)
	c.call()
	w.run(w.now.Add(time.Second))
	c.won(t, agents)
	c.query("")
	c.step()
	w.run(w.now.Add(4 * time.Second))
	e := c.done[execution{c.caller.Order(), 2}]
	if e.Kind != QueryDone || len(e.Absent) > 0 || len(c.answers[execution{e.Order, 2}]) != agents {
		t.Errorf("the query ended with %+v and %d answers", e, len(c.answers[execution{e.Order, 2}]))
	}
	if w.err != nil {
		t.Fatal(w.err)
	}
}

// TestHubDies: an Order over both goes on over the network, at once, and again
// over the hub when that is back.
func TestHubDies(t *testing.T) {
	const agents = 30
	w, c := star(t, agents, func(int) bool { return false }, true)
	c.call()
	w.run(w.now.Add(time.Second))
	c.won(t, agents)
	renewed := func(when string, seq uint32) {
		t.Helper()
		if _, err := c.caller.Renew(c.local()); err != nil {
			t.Fatal(err)
		}
		c.step()
		w.run(w.now.Add(4 * time.Second))
		if e := c.done[execution{c.caller.Order(), seq}]; len(e.Members) != agents || len(e.Absent) > 0 {
			t.Errorf("%s: the renewal reached %d, not %+v", when, len(e.Members), e.Absent)
		}
	}
	w.noHub = true
	renewed("without the hub", 2)
	w.run(w.now.Add(30 * time.Second))
	renewed("long after", 3)
	w.noHub = false
	w.run(w.now.Add(15 * time.Second))
	for _, h := range w.hosts {
		h.group = h.i // nobody hears anybody on the network
	}
	renewed("over the hub alone", 4)
	if w.err != nil {
		t.Fatal(w.err)
	}
}
