package order

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/musterfleet/muster"
)

// hold lets a caller win an Order of so many members.
func (h *host) hold(t *testing.T, members int) {
	t.Helper()
	before := len(h.wins)
	h.script.calls = 1
	h.call()
	h.w.until(func() bool { return len(h.wins) > before || h.w.err != nil }, h.w.now.Add(10*time.Second))
	if h.w.err != nil || len(h.wins) == before || h.wins[before].members != members {
		t.Fatalf("the Call won %+v, want one more with %d members; %v", h.wins, members, h.w.err)
	}
}

// ask sends a query and returns its end.
func (h *host) ask(t *testing.T, selector string, args []byte, within time.Duration) (execution, Event) {
	t.Helper()
	seq, err := h.caller.Query(h.local(), selector, "node.status", args, within)
	if err != nil {
		t.Fatal(err)
	}
	h.step()
	x := execution{h.caller.Order(), seq}
	h.w.until(func() bool { _, over := h.done[x]; return over }, h.w.now.Add(within+10*time.Second))
	e, over := h.done[x]
	if !over || h.w.err != nil {
		t.Fatalf("the query has not ended; %v", h.w.err)
	}
	return x, e
}

// TestQueryAnswers: all answers arrive, large ones too, each once, with codes,
// and the query ends with the last.
func TestQueryAnswers(t *testing.T) {
	const n = 60
	w, callers := settled(3, n, 1, flaws{})
	c := callers[0]
	c.hold(t, n)
	large := bytes.Repeat([]byte("x"), MaxResult)
	w.answer = func(h *host, q Query) (Code, []byte) {
		if !bytes.Equal(q.Args, []byte("arguments")) {
			t.Errorf("the arguments are %q", q.Args)
		}
		switch h.i {
		case 5:
			return Failed, []byte("why")
		case 6:
			return Denied, nil
		}
		return OK, large
	}
	began := w.now
	x, e := c.ask(t, "", []byte("arguments"), 30*time.Second)
	if len(c.answers[x]) != n || len(e.Absent) != 0 {
		t.Errorf("%d of %d answers, absent %v", len(c.answers[x]), n, e.Absent)
	}
	if took := w.now.Sub(began); took > 5*time.Second {
		t.Errorf("the query took %s, the last answer at most 0.4 s", took)
	}
	x, e = c.ask(t, "agent1", []byte("arguments"), 3*time.Second)
	if len(c.answers[x]) != 1 || len(e.Absent) != n-1 || slices.ContainsFunc(e.Absent, func(m Member) bool { return m.Code != NotSelected }) {
		t.Errorf("%d answers of one selected node, absent %v", len(c.answers[x]), e.Absent)
	}
}

// TestSilentMember: a member that dies is named, and the query ends in time.
func TestSilentMember(t *testing.T) {
	w, callers := settled(4, 12, 1, flaws{})
	c := callers[0]
	c.hold(t, 12)
	dead := w.hosts[3]
	dead.stop(true)
	began := w.now
	x, e := c.ask(t, "", nil, 0)
	if len(c.answers[x]) != 11 || len(e.Absent) != 1 || e.Absent[0].ID != dead.id || e.Absent[0].Code != NoAnswer {
		t.Errorf("%d answers, absent %v; want 11 and %s", len(c.answers[x]), e.Absent, dead.id)
	}
	if took := w.now.Sub(began); took > waveTime+100*time.Millisecond {
		t.Errorf("the query took %s", took)
	}
}

// TestDeadlinesNest: what the last node of a chain says at its deadline arrives
// before those of all above.
func TestDeadlinesNest(t *testing.T) {
	w := chain(10, 6)
	c := w.hosts[6]
	c.hold(t, 6)
	w.answer = func(h *host, q Query) (Code, []byte) {
		if h.i == 0 {
			h.w.fail("the answer of a query that never ends")
		}
		return OK, nil
	}
	w.hosts[0].slow = time.Minute
	began := w.now
	x, e := c.ask(t, "", nil, 0)
	if len(c.answers[x]) != 5 || len(e.Absent) != 1 || e.Absent[0].ID != w.hosts[0].id || e.Absent[0].Code != Late {
		t.Errorf("%d answers, absent %v; want 5, and that the sixth is late", len(c.answers[x]), e.Absent)
	}
	if took := w.now.Sub(began); took > waveTime {
		t.Errorf("the query took %s", took)
	}
}

// chain returns a world without multicast, in which each agent knows the ones
// before and behind it and a caller the last.
func chain(seed uint64, agents int) *world {
	w := newWorld(seed, faults{}, flaws{})
	w.routed = true
	for range agents {
		w.agent()
	}
	c := w.callerHost(0)
	c.script = &script{lease: 30 * time.Second}
	w.run(t0.Add(time.Second))
	for i, h := range w.hosts[1:] {
		h.node.AddPeer(h.local(), w.hosts[i].addr)
		h.step()
		w.hosts[i].node.AddPeer(h.local(), h.addr)
		w.hosts[i].step()
	}
	w.run(t0.Add(3 * time.Second))
	return w
}

// TestNetworkComesBack: neighbours that did not answer for a moment are found
// again without their next HELLO.
func TestNetworkComesBack(t *testing.T) {
	w, callers := settled(11, 4, 1, flaws{})
	c := callers[0]
	c.hold(t, 4) // all are neighbours
	c.group = 1
	w.after(1500*time.Millisecond, func() { c.group = 0 })
	x, _ := c.ask(t, "", nil, 0)
	if len(c.answers[x]) != 0 {
		t.Fatal("answers through a cut network")
	}
	w.run(w.now.Add(500 * time.Millisecond))
	if x, _ := c.ask(t, "", nil, 0); len(c.answers[x]) != 4 {
		t.Errorf("%d of 4 answers when the network is back", len(c.answers[x]))
	}
}

// TestEntryDies: a caller whose every neighbour dies goes on through others.
func TestEntryDies(t *testing.T) {
	w, callers := settled(5, 20, 1, flaws{})
	c := callers[0]
	c.hold(t, 20)
	for _, p := range c.node.neighbours() {
		w.byID[p.id].stop(false)
	}
	gone := 20 - len(slices.DeleteFunc(slices.Clone(w.hosts), func(h *host) bool { return h.key != nil || !h.up }))
	if gone != degree {
		t.Fatalf("%d neighbours, want %d", gone, degree)
	}
	c.ask(t, "", nil, 0) // finds out
	w.run(w.now.Add(2 * time.Second))
	x, e := c.ask(t, "", nil, 0)
	if len(c.answers[x]) != 20-gone || len(e.Absent) != gone {
		t.Errorf("%d answers, %d absent; want %d and %d", len(c.answers[x]), len(e.Absent), 20-gone, gone)
	}
}

// TestWithoutMulticast: addresses that were given are enough, in a chain too.
func TestWithoutMulticast(t *testing.T) {
	w := newWorld(6, faults{}, flaws{})
	w.routed = true
	for range 8 {
		w.agent()
	}
	w.run(t0.Add(time.Second))
	for i, h := range w.hosts[1:] {
		h.node.AddPeer(h.local(), w.hosts[i].addr) // the one before,
		h.step()
		w.hosts[i].node.AddPeer(h.local(), h.addr) // which has a gossip link with this one
		w.hosts[i].step()
	}
	c := w.callerHost(0)
	c.script = &script{lease: 30 * time.Second}
	w.run(t0.Add(3 * time.Second))
	if _, err := c.caller.Call(c.local(), CallOptions{}); muster.KindOf(err) != muster.Unavailable {
		t.Errorf("a Call without a neighbour: %v", err)
	}
	c.node.AddPeer(c.local(), w.hosts[7].addr)
	c.step()
	w.run(t0.Add(5 * time.Second))
	c.hold(t, 8)
	c.node.RemovePeer(w.hosts[7].addr)
	c.node.AddPeer(c.local(), w.hosts[0].addr)
	c.step()
	w.run(w.now.Add(time.Second))
	if x, _ := c.ask(t, "", nil, 0); len(c.answers[x]) != 8 {
		t.Errorf("%d of 8 answers through another entry", len(c.answers[x]))
	}
}

// TestScopes: Orders of disjoint scopes are held at the same time.
func TestScopes(t *testing.T) {
	w, callers := settled(7, 10, 2, flaws{})
	for i, c := range callers {
		id, err := c.caller.Call(c.local(), CallOptions{Scope: string(w.hosts[i].addr)})
		if err != nil {
			t.Fatal(err)
		}
		c.calls[id] = w.now
		c.step()
	}
	w.run(w.now.Add(time.Second))
	for i, c := range callers {
		if m := c.caller.Members(c.local()); len(m) != 1 || m[0].ID != w.hosts[i].id {
			t.Errorf("caller %d holds %v, want the node %s alone", i, m, w.hosts[i].id)
		}
	}
	if w.err != nil {
		t.Error(w.err)
	}
}

func TestCallerRefuses(t *testing.T) {
	w, callers := settled(8, 3, 1, flaws{})
	c := callers[0]
	for name, err := range map[string]error{
		"a query without an Order":   second(c.caller.Query(c.local(), "", "node.status", nil, 0)),
		"a renewal without an Order": second(c.caller.Renew(c.local())),
		"a release without an Order": second(c.caller.Release(c.local())),
		"too long a lease":           second(c.caller.Call(c.local(), CallOptions{Lease: MaxLease + 1})),
		"too short a lease":          second(c.caller.Call(c.local(), CallOptions{Lease: MinLease - 1})),
		"a query without a method":   second(c.caller.Query(c.local(), "", "", nil, 0)),
		"too large arguments":        second(c.caller.Query(c.local(), "", "m", make([]byte, MaxArgs+1), 0)),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	c.hold(t, 3)
	if _, err := c.caller.Call(c.local(), CallOptions{}); muster.KindOf(err) != muster.Conflict {
		t.Errorf("a Call in an Order: %v", err)
	}
	w.run(w.now.Add(30 * time.Second)) // no renewal
	if len(c.caller.Members(c.local())) != 0 {
		t.Error("the belief outlasts the lease")
	}
	if _, err := c.caller.Query(c.local(), "", "node.status", nil, 0); err == nil {
		t.Error("a query after the lease: accepted")
	}
}

// TestGivingUp: a Call that its operator gives up leaves nobody waiting.
func TestGivingUp(t *testing.T) {
	for ms := range 60 {
		w, callers := settled(9, 20, 1, flaws{})
		c := callers[0]
		if _, err := c.caller.Call(c.local(), CallOptions{}); err != nil {
			t.Fatal(err)
		}
		c.step()
		w.run(w.now.Add(time.Duration(ms) * time.Millisecond))
		if _, err := c.caller.Release(c.local()); err != nil {
			t.Fatal(err)
		}
		c.step()
		w.run(w.now.Add(waveTime))
		for _, h := range w.hosts {
			// What overtakes the RELEASE on its way is over after the hold.
			if s := h.node.Status(h.local()); s.State == Ordered || s.State == Calling && ms > 20 {
				t.Errorf("given up after %d ms: %s is in %s", ms, h.addr, s.State)
			}
		}
		if len(c.wins) > 0 {
			t.Errorf("given up after %d ms, and won", ms)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestLateConflict: a node that has echoed a Call and then leaves it for
// another says so, and an acknowledgement of the first echo does not silence
// the second.
func TestLateConflict(t *testing.T) {
	weak, strong := weaker()
	r := newRig(t)
	m, err := Sign(Signed{Order: weak, Kind: KindCall, Cluster: "muster", IssuedAt: r.now.UnixMilli(), Hold: 7000, Lease: 60000,
		Operator: OperatorID(operators()[0]), Key: [32]byte(operators()[2])}, operatorKeys[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	m.Budget = 2880
	r.send(&m)
	r.drain()
	r.want("the strong Call", r.call(strong, nil), OK)
	r.send(&Fack{Order: weak}) // of the first echo, late
	count := 0
	for end := r.now.Add(time.Second); count < 3 && r.node.Next().Before(end); {
		r.now = r.node.Next()
		r.node.Tick(r.now)
		for _, s := range r.drain() {
			if e, ok := s.Frame.Body.(*Echo); ok && e.Order == weak && e.Flags&EchoConflict != 0 && *e.Rival == strong && e.Members[0].Code == Busy {
				count++
			}
		}
	}
	if count != 3 {
		t.Errorf("the conflict was echoed %d times of 3", count)
	}
	r.send(&Fack{Order: weak, Conflict: true})
	if w := r.node.wave(weak, 0); !w.settled {
		t.Error("its own acknowledgement does not end it")
	}
}
