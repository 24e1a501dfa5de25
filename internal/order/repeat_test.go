package order

import (
	"slices"
	"testing"
	"time"
)

// ladder returns a world without multicast, in which each agent knows two before and
// two behind it, and a caller the last two: a chain in which one may die.
func ladder(seed uint64, agents int) *world {
	w := newWorld(seed, faults{}, flaws{})
	w.routed = true
	for range agents {
		w.agent()
	}
	c := w.callerHost(0)
	c.script = &script{lease: time.Minute}
	w.run(t0.Add(time.Second))
	for i, h := range w.hosts {
		for j := max(0, i-2); j < i; j++ {
			h.node.AddPeer(h.local(), w.hosts[j].addr)
			h.step()
			if h != c {
				w.hosts[j].node.AddPeer(w.hosts[j].local(), h.addr)
				w.hosts[j].step()
			}
		}
	}
	w.run(t0.Add(3 * time.Second))
	return w
}

// A death is that of one agent so long after the beginning of a wave.
type death struct {
	of    int
	after time.Duration
	back  time.Duration // after which it has started again; 0: never
}

// deaths returns those of each agent of some, at points of a query that takes so
// long: before the answers, among them, and after the first.
func deaths(agents []int, slow time.Duration) (all []death) {
	for _, of := range agents {
		for _, after := range []time.Duration{time.Millisecond, 4 * time.Millisecond, 10 * time.Millisecond, slow / 2, slow + 3*time.Millisecond, slow + 8*time.Millisecond, slow + 20*time.Millisecond} {
			all = append(all, death{of, after, 0}, death{of, after, 100 * time.Millisecond})
		}
	}
	return all
}

// survive lets one agent die during a query and returns when the last of the
// others has answered, and when the query was over.
func (d death) survive(t *testing.T, w *world, c *host, slow, within time.Duration) (last, over time.Duration) {
	t.Helper()
	agents := len(w.hosts) - 1
	c.hold(t, agents)
	for _, h := range w.hosts {
		h.slow = slow
	}
	w.after(d.after, func() { w.hosts[d.of].stop(false) })
	if d.back > 0 {
		w.after(d.after+d.back, func() { w.hosts[d.of].start() })
	}
	began := w.now
	seq, err := c.caller.Query(c.local(), "", "node.status", nil, within)
	if err != nil {
		t.Fatal(err)
	}
	c.step()
	x := execution{c.caller.Order(), seq}
	heard := func() (n int) {
		for i, h := range w.hosts[:agents] {
			if i != d.of && c.answers[x][h.id] > 0 {
				n++
			}
		}
		return n
	}
	done := func() bool { _, done := c.done[x]; return done }
	w.until(func() bool { return heard() == agents-1 || done() || w.err != nil }, began.Add(within+time.Second))
	if last = w.now.Sub(began); heard() != agents-1 {
		t.Errorf("%+v: %d of %d have answered when the query ends after %s", d, heard(), agents-1, last)
	}
	w.until(func() bool { return done() || w.err != nil }, began.Add(within+time.Second))
	for i, h := range w.hosts[:agents] {
		if i != d.of && !h.ran[x] {
			t.Errorf("%+v: %s has answered and not run", d, h.addr)
		}
	}
	if w.err != nil {
		t.Fatal(w.err) // a second run is an error of the world
	}
	return last, w.now.Sub(began)
}

// TestRelayDies: what an agent takes along that dies while it relays comes another
// way, long before the query's time is over, and nothing runs a second time.
func TestRelayDies(t *testing.T) {
	const slow, within = 200 * time.Millisecond, 20 * time.Second
	for name, c := range map[string]struct {
		agents []int
		world  func(seed uint64) (*world, *host)
	}{
		"chain": {[]int{1, 3, 5, 6, 7}, func(seed uint64) (*world, *host) {
			w := ladder(seed, 8)
			return w, w.hosts[8]
		}},
		"tree": {[]int{0, 4, 9, 14, 19}, func(seed uint64) (*world, *host) {
			w, callers := settled(seed, 20, 1, flaws{})
			return w, callers[0]
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var last, over time.Duration
			late := 0
			all := deaths(c.agents, slow)
			for i, d := range all {
				w, caller := c.world(uint64(i + 1))
				l, o := d.survive(t, w, caller, slow, within)
				if l > slow+time.Second {
					late++
				}
				last, over = max(last, l), max(over, o)
			}
			t.Logf("%d deaths: in %d of them answers came another way; the last after %s, the query was over after %s at most", len(all), late, last, over)
			if last > 4*time.Second || over > 5*time.Second || late == 0 {
				t.Errorf("too late, or nothing was lost")
			}
		})
	}
}

// TestRelayDiesInACall: whoever is locked or renewed while an agent dies that should
// have passed its word on is a member all the same.
func TestRelayDiesInACall(t *testing.T) {
	for name, begins := range map[string]func(c *host) bool{
		"CALL":  func(c *host) bool { return c.caller.phase == calling },
		"ORDER": func(c *host) bool { return c.caller.phase == ordering },
		"RENEW": func(c *host) bool { return c.caller.phase == holding },
	} {
		t.Run(name, func(t *testing.T) {
			var longest time.Duration
			for i, d := range deaths([]int{1, 3, 5, 6, 7}, 0) {
				w := ladder(uint64(i+1), 8)
				c, dies := w.hosts[8], w.hosts[d.of]
				c.script.calls = 1
				c.call()
				w.until(func() bool { return begins(c) || w.err != nil }, w.now.Add(decisionTime))
				began, found := w.now, func() []Member { return c.caller.Members(c.local()) }
				w.after(d.after, func() { dies.stop(false) })
				if name == "RENEW" {
					seq, err := c.caller.Renew(c.local())
					if err != nil {
						t.Fatal(err)
					}
					c.step()
					x := execution{c.caller.Order(), seq}
					found = func() []Member { return c.done[x].Members }
				}
				w.until(func() bool { return len(found()) > 0 || w.err != nil }, began.Add(decisionTime))
				longest = max(longest, w.now.Sub(began))
				for _, h := range w.hosts[:8] {
					if h != dies && !slices.ContainsFunc(found(), func(m Member) bool { return m.ID == h.id }) {
						t.Errorf("%+v: %s is not among %v", d, h.addr, found())
					}
				}
				if w.err != nil {
					t.Fatal(w.err)
				}
			}
			t.Logf("decided after %s at most", longest)
		})
	}
}

// A tally of releases: who is locked when the caller has ended, who of them was not
// named, and who was named and is free.
type releaseTally struct {
	worlds, locked, unnamed, free int
	longest                       time.Duration
}

// release holds an Order at a loss of frames for some time, and lets go.
func (r *releaseTally) release(t *testing.T, w *world, c *host, loss float64) {
	c.script = &script{calls: 1, lease: time.Minute}
	c.call()
	w.until(func() bool { return len(c.wins) > 0 }, w.now.Add(decisionTime))
	w.faults.loss = loss
	for range 2 {
		w.run(w.now.Add(w.between(0, 15*time.Second)))
		if _, err := c.caller.Renew(c.local()); err != nil {
			t.Fatal(err)
		}
		c.step()
	}
	w.run(w.now.Add(w.between(0, 3*time.Second)))
	members := c.caller.Members(c.local())
	seq, err := c.caller.Release(c.local())
	if err != nil {
		t.Fatal(err)
	}
	c.step()
	x, began := execution{c.caller.Order(), seq}, w.now
	w.until(func() bool { _, over := c.done[x]; return over }, began.Add(decisionTime))
	if w.err != nil {
		t.Fatal(w.err)
	}
	r.longest = max(r.longest, w.now.Sub(began))
	before := r.locked
	for _, m := range members {
		named := slices.ContainsFunc(c.done[x].Absent, func(o Member) bool { return o.ID == m.ID })
		switch locked := w.byID[m.ID].locked; {
		case locked && !named:
			r.unnamed++
			fallthrough
		case locked:
			r.locked++
		case named:
			r.free++
		}
	}
	if r.locked > before {
		r.worlds++
	}
}

// TestReleaseAtLoss: a RELEASE reaches its members in the worst of networks, and who
// may not have heard it is named.
func TestReleaseAtLoss(t *testing.T) {
	releases := 1000
	if raceDetector {
		releases = 50
	}
	mesh := func(agents int) func(seed uint64) (*world, *host) {
		return func(seed uint64) (*world, *host) {
			w, callers := settled(seed, agents, 1, flaws{})
			return w, callers[0]
		}
	}
	for name, make := range map[string]func(seed uint64) (*world, *host){
		"one agent": mesh(1), "5 agents": mesh(5),
		"a chain of 5": func(seed uint64) (*world, *host) {
			w := chain(seed, 5)
			return w, w.hosts[5]
		},
	} {
		t.Run(name, func(t *testing.T) {
			var r releaseTally
			for seed := range uint64(releases) {
				w, c := make(seed + 1)
				r.release(t, w, c, 0.4)
			}
			t.Logf("of %d releases %d left members locked, %d of them, %d not named; %d were named and free; at most %s",
				releases, r.worlds, r.locked, r.unnamed, r.free, r.longest.Round(time.Millisecond))
			if r.unnamed > 0 || r.worlds > releases/100 || r.longest > waveTime+time.Millisecond {
				t.Error("too many, or silently, or too late")
			}
		})
	}
}

func status(t testing.TB) []byte {
	query, err := EncodeQuery("node.status", nil)
	if err != nil {
		t.Fatal(err)
	}
	return query
}

// answers returns what the node sends upwards of a wave that comes now, without
// taking it.
func (r *rig) answers(s Signed, want []NodeID) (all []Body) {
	r.t.Helper()
	s.Order, s.Cluster, s.IssuedAt = r.order, "muster", r.now.UnixMilli()
	m, err := Sign(s, operatorKeys[2], status(r.t))
	if err != nil {
		r.t.Fatal(err)
	}
	m.Budget, m.Want = 60000, want
	r.send(&m)
	for _, x := range r.drain() {
		all = append(all, x.Frame.Body)
	}
	return all
}

func types(all []Body) (t []Type) {
	for _, b := range all {
		t = append(t, b.Type())
	}
	return t
}

// TestARepetitionRunsNothing: a query that was run is answered from what was kept, by
// its number, to who wants it, and only by the key of the Order.
func TestARepetitionRunsNothing(t *testing.T) {
	r := newRig(t)
	r.lock(time.Minute)
	query := func(repeat uint8) Signed { return Signed{Seq: 2, Kind: KindQuery, Repeat: repeat} }
	r.answers(query(0), nil)
	r.node.Finished(r.now, r.order, 2, OK, []byte("answer"))
	r.drain()

	got := r.answers(query(1), nil)
	if !slices.Equal(types(got), []Type{TypePart, TypeAck}) || string(got[0].(*Part).Data) != "answer" || got[0].(*Part).Seq != firstRepeat+2 {
		t.Fatalf("to the repetition the node sends %+v", got)
	}
	if got := r.answers(query(0), nil); !slices.Equal(types(got), []Type{TypeDup}) {
		t.Errorf("to the first one, late, it sends %v", types(got))
	}
	r.send(&Ack{Order: r.order, Seq: 2, Of: TypePart, Part: r.node.ID()})
	if got := r.drain(); len(got) != 0 {
		t.Errorf("an acknowledgement of before ends the answer")
	}
	r.send(&Ack{Order: r.order, Seq: firstRepeat + 2, Of: TypePart, Part: r.node.ID()})
	if got := r.drain(); len(got) != 1 || got[0].Frame.Body.Type() != TypeEcho {
		t.Errorf("after the acknowledgement it sends %+v", got)
	}
	if got := r.answers(query(2), []NodeID{{7}}); !slices.Equal(types(got), []Type{TypeEcho}) {
		t.Errorf("to a repetition for others it sends %v", types(got))
	}
	if got := r.answers(query(3), []NodeID{{7}, r.node.ID()}); !slices.Equal(types(got), []Type{TypePart, TypeAck}) {
		t.Errorf("to one for it, too, it sends %v", types(got))
	}
	if c := r.wave(Signed{Order: r.order, Seq: 2, Kind: KindQuery, Cluster: "muster", Repeat: 4}, operatorKeys[3], []byte{1}); c != noEcho {
		t.Errorf("a forged repetition is answered: %s", c)
	}
	if len(r.queries) != 1 {
		t.Errorf("%d queries run", len(r.queries))
	}
	r.start()
	r.want("a repetition after a restart", r.wave(Signed{Order: r.order, Seq: 2, Kind: KindQuery, Cluster: "muster", Repeat: 5}, operatorKeys[2], status(t)), Stale)
	if len(r.queries) != 1 {
		t.Errorf("%d queries run", len(r.queries))
	}
}

// TestARepetitionComesFirst: who has missed a query runs it when it is repeated, and
// not when the first one comes after all.
func TestARepetitionComesFirst(t *testing.T) {
	r := newRig(t)
	r.lock(time.Minute)
	for _, repeat := range []uint8{3, 0, 3, 4} {
		r.answers(Signed{Seq: 2, Kind: KindQuery, Repeat: repeat}, []NodeID{{7}})
	}
	if len(r.queries) != 1 || r.queries[0].Seq != 2 {
		t.Fatalf("the queries %+v run", r.queries)
	}
	r.node.Finished(r.now, r.order, 2, OK, nil)
	if got := r.drain(); len(got) != 1 || got[0].Frame.Body.(*Part).Seq != 4*firstRepeat+2 {
		t.Errorf("the answer takes the way of %+v, not that of the last repetition", got)
	}
}

// TestKeptAnswersAreBounded: in bytes, the newest staying, and in time.
func TestKeptAnswersAreBounded(t *testing.T) {
	r := newRig(t)
	r.lock(10 * time.Minute)
	const count = maxKept/MaxResult + 2
	for seq := range uint32(count) {
		r.answers(Signed{Seq: 2 + seq, Kind: KindQuery}, nil)
		r.node.Finished(r.now, r.order, 2+seq, OK, make([]byte, MaxResult))
		r.send(&Ack{Order: r.order, Seq: 2 + seq, Of: TypePart, Part: r.node.ID()})
		for _, s := range r.drain() {
			if e, ok := s.Frame.Body.(*Echo); ok {
				r.send(&Fack{Order: e.Order, Seq: e.Seq})
			}
		}
	}
	kept := 0
	for seq := range uint32(count) {
		if slices.Contains(types(r.answers(Signed{Seq: 2 + seq, Kind: KindQuery, Repeat: 1}, nil)), TypePart) {
			kept++
		} else if seq >= 2 {
			t.Errorf("answer %d of %d is not kept", seq, count)
		}
	}
	if kept != maxKept/MaxResult {
		t.Errorf("%d answers are kept", kept)
	}
	r.pass(60*time.Second + remember + time.Second)
	if len(r.node.waves) != 0 {
		t.Errorf("%d waves are remembered after their time", len(r.node.waves))
	}
}
