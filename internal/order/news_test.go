package order

import (
	"testing"
	"time"
)

// TestAHolderIsKnown: a caller that comes learns at once whose the machines are.
func TestAHolderIsKnown(t *testing.T) {
	w := newWorld(1, faults{}, flaws{})
	for range 20 {
		w.agent()
	}
	holder := w.callerHost(0)
	holder.script = &script{calls: 1, lease: time.Minute}
	w.run(t0.Add(30 * time.Second))
	holder.call()
	w.run(w.now.Add(5 * time.Second))
	newcomer := w.callerHost(0)
	w.run(w.now.Add(300 * time.Millisecond))
	for _, p := range newcomer.node.Peers() {
		if p.Role == RoleCaller && p.Order != (OrderID{}) {
			return
		}
	}
	t.Errorf("a newcomer does not know who holds an Order, of %d peers", len(newcomer.node.Peers()))
}

// TestAChangeIsTold: others know soon that a node is in an Order and that it is
// free again, of a change that is over soon they hear nothing, and an idle
// network is as quiet as it was.
func TestAChangeIsTold(t *testing.T) {
	w := newWorld(1, faults{}, flaws{})
	var agents []*host
	for range 50 {
		agents = append(agents, w.agent())
	}
	c := w.callerHost(0)
	c.script = &script{calls: 100, lease: time.Minute}
	watcher := w.agent()
	w.run(t0.Add(45 * time.Second))
	hellos := func(span time.Duration) int {
		before := w.hellos
		w.run(w.now.Add(span))
		return w.hellos - before
	}
	quiet := hellos(60 * time.Second)
	if most := 52 * 60 / 9; quiet > most {
		t.Errorf("%d HELLOs to all in an idle minute; at most %d are due", quiet, most)
	}
	told := func(state State) bool {
		n := 0
		for _, p := range watcher.node.Peers() {
			if p.Role == RoleAgent && p.State == state {
				n++
			}
		}
		return n == len(agents)
	}
	release := func() {
		if _, err := c.caller.Release(c.local()); err != nil {
			t.Fatal(err)
		}
		c.step()
	}
	c.call()
	w.until(func() bool { return told(Ordered) }, w.now.Add(20*time.Second))
	if took := w.now.Sub(t0.Add(105 * time.Second)); took > 1200*time.Millisecond || !told(Ordered) {
		t.Errorf("after %s all that are in Order have said so: %v", took, told(Ordered))
	}
	freed := w.now
	release()
	w.until(func() bool { return told(Idle) }, w.now.Add(20*time.Second))
	if took := w.now.Sub(freed); took > 1200*time.Millisecond || !told(Idle) {
		t.Errorf("after %s all that are free have said so: %v", took, told(Idle))
	}

	w.run(w.now.Add(20 * time.Second))
	before := w.hellos
	c.call()
	w.until(func() bool { return len(c.wins) == 2 }, w.now.Add(time.Second))
	release()
	w.run(w.now.Add(time.Second))
	if said := w.hellos - before; said > 25 {
		t.Errorf("of an Order that was over soon, there were %d HELLOs", said)
	}

	// Whoever changes all the time is heard of no more than is bearable.
	before = w.hellos
	began := w.now
	for w.now.Sub(began) < 60*time.Second {
		c.call()
		w.run(w.now.Add(1500 * time.Millisecond))
		release()
		w.run(w.now.Add(1500 * time.Millisecond))
	}
	span := w.now.Sub(began).Seconds()
	if most := int(float64(len(w.hosts)) * (newsBurst + newsRate*span + span/9)); w.hellos-before > most {
		t.Errorf("%d HELLOs while the state changed all the time; at most %d may be", w.hellos-before, most)
	}
	if w.err != nil {
		t.Error(w.err)
	}
}
