package order

import (
	"slices"
	"testing"
	"time"
)

// settled returns a world of so many agents that have found each other, and a
// caller for each of the first operators.
func settled(seed uint64, agents, callers int, broken flaws) (*world, []*host) {
	w := newWorld(seed, faults{}, broken)
	for range agents {
		w.agent()
	}
	w.run(t0.Add(2 * time.Second))
	var all []*host
	for i := range callers {
		h := w.callerHost(i)
		h.script = &script{calls: 1, lease: 30 * time.Second}
		all = append(all, h)
	}
	w.run(t0.Add(4 * time.Second))
	return w, all
}

// TestOverlappingCalls: of two callers within 10 ms one wins. That both lose is
// what the tie-break prevents.
func TestOverlappingCalls(t *testing.T) {
	t.Parallel()
	both := func(broken flaws, seeds int) (lost int) {
		for seed := range uint64(seeds) {
			w, callers := settled(seed+1, 20, 2, broken)
			w.after(0, callers[0].call)
			w.after(w.between(0, 10*time.Millisecond), callers[1].call)
			for _, c := range callers {
				c.script.calls = 1
			}
			w.run(w.now.Add(decisionTime + time.Second))
			if w.err != nil {
				t.Fatal(w.err)
			}
			switch len(callers[0].wins) + len(callers[1].wins) {
			case 0:
				lost++
			case 2:
				t.Fatalf("seed %d: both won", w.seed)
			}
		}
		return lost
	}
	seeds := 400
	if raceDetector {
		seeds = 20
	}
	with, without := both(flaws{}, seeds), both(flaws{noTieBreak: true}, seeds)
	t.Logf("both lost: %d of %d with the tie-break, %d without", with, seeds, without)
	if with != 0 || without < seeds/10 {
		t.Errorf("both lost in %d and %d of %d runs; want none with the tie-break and many without", with, without, seeds)
	}
}

// A scale is what one wave costs in a constellation of some size.
type scale struct {
	nodes   int
	latency time.Duration // of a CALL until its last echo, the median
	order   time.Duration // of CALL and ORDER
	frames  float64       // of each node and wave
}

func measure(seed uint64, nodes, waves int) (scale, error) {
	w, callers := settled(seed, nodes, 1, flaws{})
	c := callers[0]
	s := scale{nodes: nodes}
	var took, orders []time.Duration
	for range waves {
		c.script.calls = 1
		began := w.now
		c.call()
		before := len(c.wins)
		w.until(func() bool { return len(c.wins) > before || w.err != nil }, began.Add(10*time.Second))
		if len(c.wins) == before {
			w.fail("the Call of %d nodes was lost", nodes)
			return s, w.err
		}
		orders = append(orders, w.now.Sub(began))
		w.run(w.now.Add(500 * time.Millisecond)) // the acknowledgements too
		sent, start := w.unicast, w.now
		seq, err := c.caller.Renew(c.local())
		if err != nil {
			return s, err
		}
		c.step()
		x := execution{c.caller.Order(), seq}
		w.until(func() bool { _, over := c.done[x]; return over || w.err != nil }, start.Add(10*time.Second))
		took = append(took, w.now.Sub(start))
		w.run(w.now.Add(500 * time.Millisecond))
		s.frames += float64(w.unicast-sent) / float64(nodes) / float64(waves)
		if n := len(c.done[x].Members); n != nodes {
			w.fail("%d of %d nodes are members", n, nodes)
		}
		if _, err := c.caller.Release(c.local()); err != nil {
			return s, err
		}
		c.step()
		w.run(w.now.Add(2 * time.Second))
	}
	slices.Sort(took)
	slices.Sort(orders)
	s.latency, s.order = took[len(took)/2], orders[len(orders)/2]
	return s, w.err
}

// TestScale: the time of a wave grows as the logarithm of the number of nodes
// at most, and the frames that each sends not at all.
func TestScale(t *testing.T) {
	t.Parallel()
	sizes, waves := []int{10, 50, 200, 1000}, 5
	if raceDetector {
		sizes = sizes[:3]
	}
	var first scale
	for i, n := range sizes {
		s, err := measure(1, n, waves)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("N = %4d: a wave %s, CALL and ORDER %s, %.1f frames a node", n, s.latency.Round(100*time.Microsecond), s.order.Round(100*time.Microsecond), s.frames)
		if i == 0 {
			first = s
			continue
		}
		if s.frames > 14 || s.latency > 4*first.latency {
			t.Errorf("N = %d costs too much", n)
		}
	}
}
