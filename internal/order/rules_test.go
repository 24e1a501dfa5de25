package order

import (
	"crypto/ed25519"
	"slices"
	"testing"
	"time"
)

// A rig is one node with one neighbour, which the test plays.
type rig struct {
	t        testing.TB
	now      time.Time
	node     *Node
	peerID   NodeID
	peerBoot BootID
	counter  uint64
	saved    []byte
	booted   time.Time
	held     time.Time
	order    OrderID
	seq      uint32
	events   []Event
	queries  []Query
	boots    byte
}

func newRig(t testing.TB) *rig {
	r := &rig{t: t, now: t0, peerID: NodeID{9}, peerBoot: BootID{9}, order: OrderID{1}}
	r.start()
	return r
}

// start starts the node, anew with what it has saved, and proves the neighbour.
func (r *rig) start() {
	r.boots++
	cfg := Config{ID: [16]byte{1}, Name: "one", Cluster: "muster", Booted: r.booted, HeldUntil: r.held, Operators: operators(), Seed: [32]byte{r.boots}, Selects: func(s string) bool { return s == "mine" }}
	node, err := New(cfg, r.now, r.saved)
	if err != nil {
		r.t.Fatal(err)
	}
	r.node = node
	r.node.Tick(r.now)
	r.drain()
	r.now = r.now.Add(time.Second)
	ask := [8]byte{1}
	r.send(&Chal{Ask: &ask})
	for _, s := range r.drain() {
		if c, ok := s.Frame.Body.(*Chal); ok && c.Ask != nil {
			r.send(&Chal{Answer: c.Ask})
		}
	}
	if r.drain(); r.node.Neighbours() != 1 {
		r.t.Fatal("the neighbour is not proved")
	}
}

func (r *rig) send(b Body) {
	r.counter++
	r.node.Receive(r.now, "peer", Frame{Src: r.peerID, SrcBoot: r.peerBoot, Counter: r.counter, Dst: r.node.ID(), DstBoot: r.node.Boot(), Body: b})
}

func (r *rig) drain() []Send {
	ready := r.node.Ready()
	if ready.Save != nil {
		r.saved = *ready.Save
	}
	r.events = append(r.events, ready.Events...)
	r.queries = append(r.queries, ready.Executes...)
	return ready.Sends
}

// call sends a CALL for an order whose key is the third operator's.
func (r *rig) call(id OrderID, change func(*Signed)) Code {
	s := Signed{Order: id, Kind: KindCall, Cluster: "muster", IssuedAt: r.now.UnixMilli(), Hold: 7000, Lease: 60000,
		Operator: OperatorID(operators()[0]), Key: [32]byte(operators()[2])}
	if change != nil {
		change(&s)
	}
	return r.wave(s, operatorKeys[0], nil)
}

// later sends a wave of the rig's order.
func (r *rig) later(kind Kind, selector string) Code {
	r.seq++
	return r.again(kind, selector, r.seq)
}

func (r *rig) again(kind Kind, selector string, seq uint32) Code {
	query := []byte(nil)
	if kind == KindQuery {
		var err error
		if query, err = EncodeQuery("node.status", nil); err != nil {
			r.t.Fatal(err)
		}
	}
	return r.wave(Signed{Order: r.order, Seq: seq, Kind: kind, Cluster: "muster", IssuedAt: r.now.UnixMilli(), Selector: selector}, operatorKeys[2], query)
}

// noEcho stands for a wave that was not echoed.
const noEcho Code = 99

// wave sends a wave and returns what the node says of itself in its echo.
func (r *rig) wave(s Signed, key ed25519.PrivateKey, query []byte) Code {
	m, err := Sign(s, key, query)
	if err != nil {
		r.t.Fatal(err)
	}
	m.Budget = 2880
	r.send(&m)
	code := noEcho
	for _, x := range r.drain() {
		if e, ok := x.Frame.Body.(*Echo); ok && len(e.Members) == 1 && e.Order == s.Order && e.Seq == m.Seq {
			code = e.Members[0].Code
			r.send(&Fack{Order: e.Order, Seq: e.Seq, Conflict: e.Flags&EchoConflict != 0})
		}
	}
	r.drain()
	return code
}

// lock takes the node into the rig's order.
func (r *rig) lock(lease time.Duration) OrderID {
	if c := r.call(r.order, func(s *Signed) { s.Lease = uint32(lease.Milliseconds()) }); c != OK {
		r.t.Fatalf("CALL: %s", c)
	}
	if c := r.later(KindOrder, ""); c != OK {
		r.t.Fatalf("ORDER: %s", c)
	}
	return r.order
}

func (r *rig) want(what string, got, want Code) {
	r.t.Helper()
	if got != want {
		r.t.Errorf("%s: %s, want %s", what, got, want)
	}
}

func (r *rig) wantState(want State) {
	r.t.Helper()
	if got := r.node.Status(r.now).State; got != want {
		r.t.Errorf("the node is in state %s, want %s", got, want)
	}
}

// pass lets time pass, with a Tick whenever the node wants one.
func (r *rig) pass(d time.Duration) {
	end := r.now.Add(d)
	for next := r.node.Next(); next.Before(end); next = r.node.Next() {
		r.now = later(r.now, next)
		r.node.Tick(r.now)
		r.drain()
	}
	r.now = end
	r.node.Tick(r.now)
	r.drain()
}

func TestWhatACallNeeds(t *testing.T) {
	ms := func(d time.Duration) int64 { return d.Milliseconds() }
	for name, c := range map[string]struct {
		change func(*rig, *Signed)
		want   Code
	}{
		"nothing more":                {func(*rig, *Signed) {}, OK},
		"a time after the start":      {func(r *rig, s *Signed) { s.IssuedAt = r.node.start.UnixMilli() }, Clock},
		"a time within 30 s":          {func(r *rig, s *Signed) { s.IssuedAt += ms(maxSkew) }, OK},
		"a time not beyond 30 s":      {func(r *rig, s *Signed) { s.IssuedAt += ms(maxSkew) + 1 }, Clock},
		"a scope that matches":        {func(r *rig, s *Signed) { s.Scope = "mine" }, OK},
		"a scope, not another's":      {func(r *rig, s *Signed) { s.Scope = "other" }, NotSelected},
		"its own constellation":       {func(r *rig, s *Signed) { s.Cluster = "other" }, noEcho},
		"an operator who is known":    {func(r *rig, s *Signed) { s.Operator = NodeID{1} }, noEcho},
		"the key of that operator":    {func(r *rig, s *Signed) { s.Operator = OperatorID(operators()[1]) }, noEcho},
		"a lease that is possible":    {func(r *rig, s *Signed) { s.Lease = 900_001 }, noEcho},
		"a lease at all":              {func(r *rig, s *Signed) { s.Lease = 0 }, noEcho},
		"a hold that is possible":     {func(r *rig, s *Signed) { s.Hold = 15_001 }, noEcho},
		"the longest possible things": {func(r *rig, s *Signed) { s.Hold, s.Lease = 15_000, 900_000 }, OK},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.want("CALL", r.call(r.order, func(s *Signed) { c.change(r, s) }), c.want)
			want := Idle
			if c.want == OK {
				want = Calling
			}
			r.wantState(want)
		})
	}
}

// weaker and stronger are ids of which the second precedes.
func weaker() (OrderID, OrderID) {
	n := &Node{lock: lock{state: Calling, order: OrderID{1}}}
	if n.precedes(false, OrderID{2}) {
		return OrderID{1}, OrderID{2}
	}
	return OrderID{2}, OrderID{1}
}

func TestPrecedence(t *testing.T) {
	weak, strong := weaker()
	glass := func(s *Signed) { s.Flags = FlagBreakGlass }

	r := newRig(t)
	r.want("the weak Call", r.call(weak, nil), OK)
	r.want("the strong one", r.call(strong, nil), OK)
	if got := r.node.Status(r.now).Order; got != strong {
		t.Errorf("the node is called by %s, want %s", got, strong)
	}
	r.order = weak
	r.want("ORDER of the one that was given up", r.later(KindOrder, ""), Busy)

	r.order, r.seq = strong, 0
	r.want("RELEASE of the strong one", r.later(KindRelease, ""), OK)
	r.order, r.seq = weak, 1
	r.want("ORDER of the one that was given up, when all is over", r.later(KindOrder, ""), Busy)

	r = newRig(t)
	r.want("the strong Call", r.call(strong, nil), OK)
	r.want("the weak one", r.call(weak, nil), Busy)

	r = newRig(t)
	r.want("the strong Call", r.call(strong, nil), OK)
	r.want("the weak one that breaks glass", r.call(weak, glass), OK)

	r = newRig(t)
	r.order = weak
	r.lock(time.Minute)
	r.want("breaking glass against an Order", r.call(strong, glass), Busy)
	if got := r.node.Status(r.now); got.State != Ordered || got.Order != weak {
		t.Errorf("the Order was lost: %+v", got)
	}
}

func TestAnIDCountsOnce(t *testing.T) {
	r := newRig(t)
	r.lock(10 * time.Second)
	r.want("RELEASE", r.later(KindRelease, ""), OK)
	r.wantState(Idle)
	r.pass(remember + time.Second) // the waves are forgotten, the id is not
	r.want("the CALL again", r.call(r.order, nil), Refused)
	r.want("ORDER", r.later(KindOrder, ""), NotMember)
	r.wantState(Idle)
}

func TestCallRate(t *testing.T) {
	r := newRig(t)
	r.want("the first Call", r.call(OrderID{1}, nil), OK)
	r.want("the second", r.call(OrderID{2}, func(s *Signed) { s.Flags = FlagBreakGlass }), OK)
	r.want("the third within a second", r.call(OrderID{3}, func(s *Signed) { s.Flags = FlagBreakGlass }), Refused)
	r.pass(time.Second)
	r.want("one later", r.call(OrderID{4}, nil), Busy)
}

func TestHoldAndLeaseEnd(t *testing.T) {
	r := newRig(t)
	r.want("CALL", r.call(r.order, nil), OK)
	r.pass(7*time.Second - 1)
	r.wantState(Calling)
	r.pass(1)
	r.wantState(Idle)
	r.want("ORDER after the hold", r.later(KindOrder, ""), NotMember)

	r = newRig(t)
	r.lock(20 * time.Second)
	r.pass(15 * time.Second)
	r.want("RENEW", r.later(KindRenew, ""), OK)
	r.pass(20*time.Second - 1)
	r.wantState(Ordered)
	r.pass(1)
	r.wantState(Idle)
	if keptOrder(r.saved) {
		t.Error("the lock's file has it after its end")
	}
	r.want("QUERY after the end", r.later(KindQuery, ""), NotMember)
	if len(r.queries) != 0 {
		t.Error("a query runs after the end")
	}
	r.pass(time.Minute)
	if len(r.saved) != 0 {
		t.Error("the file outlives what is in it")
	}
}

func TestQueryRunsOnce(t *testing.T) {
	r := newRig(t)
	r.lock(time.Minute)
	r.want("QUERY", r.later(KindQuery, ""), noEcho) // it runs
	if len(r.queries) != 1 || r.queries[0].Method != "node.status" || r.queries[0].Operator != OperatorID(operators()[0]) {
		t.Fatalf("queries %+v", r.queries)
	}
	r.want("the same again", r.again(KindQuery, "", r.seq), noEcho)
	r.want("one for others", r.later(KindQuery, "other"), NotSelected)
	r.want("one for this node", r.later(KindQuery, "mine"), noEcho)
	if len(r.queries) != 2 {
		t.Errorf("%d queries run, want 2", len(r.queries))
	}
	r.pass(waveTime + 2*time.Second + remember) // the waves are forgotten
	r.want("the first again", r.again(KindQuery, "", 2), Stale)
	if len(r.queries) != 2 {
		t.Errorf("%d queries run, want 2", len(r.queries))
	}
}

// TestEchoWaitsForTheAnswer: an ECHO that overtook the PART would end the wave
// above, and the answer would be lost.
func TestEchoWaitsForTheAnswer(t *testing.T) {
	r := newRig(t)
	r.lock(time.Minute)
	r.later(KindQuery, "")
	r.node.Finished(r.now, r.order, r.seq, OK, []byte("answer"))
	types := func() (all []Type) {
		for _, s := range r.drain() {
			all = append(all, s.Frame.Body.Type())
		}
		return all
	}
	if got := types(); !slices.Equal(got, []Type{TypePart}) {
		t.Errorf("after the query the node sends %v", got)
	}
	r.send(&Ack{Order: r.order, Seq: r.seq, Of: TypeWave}) // names something else
	if got := types(); len(got) != 0 {
		t.Errorf("after another acknowledgement it sends %v", got)
	}
	r.send(&Ack{Order: r.order, Seq: r.seq, Of: TypePart, Part: r.node.ID()})
	if got := types(); !slices.Equal(got, []Type{TypeEcho}) {
		t.Errorf("after the acknowledgement of the answer it sends %v", got)
	}
}

// TestRestart: an agent that starts anew with its file is still locked, repeats
// no query, and obeys the Order; one that has lost its file is Idle, and no
// frame of before can lock it.
func TestRestart(t *testing.T) {
	r := newRig(t)
	r.lock(time.Minute)
	r.later(KindQuery, "")
	began := r.node.Status(r.now)
	r.start()
	if got := r.node.Status(r.now); got.State != Ordered || got.Order != r.order || got.Until.Sub(began.Until).Abs() > time.Millisecond {
		t.Fatalf("after the restart %+v, before %+v", got, began)
	}
	r.want("the query again", r.again(KindQuery, "", 2), Stale)
	r.want("a new query", r.later(KindQuery, ""), noEcho)
	if len(r.queries) != 2 {
		t.Errorf("%d queries run, want 2", len(r.queries))
	}
	r.want("another Call", r.call(OrderID{7}, nil), Busy)
	r.want("RENEW", r.later(KindRenew, ""), OK)

	r.saved = nil
	before := r.now
	r.start()
	r.wantState(Idle)
	r.want("the recorded CALL", r.call(r.order, func(s *Signed) { s.IssuedAt = before.UnixMilli() }), Clock)
	r.want("the recorded ORDER", r.again(KindOrder, "", 1), NotMember)
	r.want("the recorded QUERY", r.again(KindQuery, "", 2), NotMember)
	r.wantState(Idle)
}

// TestACallerAheadIsNotHeardTwice: a CALL whose time is after a start of the
// node, because the caller's clock is ahead, does not count again after it.
func TestACallerAheadIsNotHeardTwice(t *testing.T) {
	ahead := func(s *Signed) { s.IssuedAt += 25e3 }
	for name, restart := range map[string]func(*rig){
		"the program": func(*rig) {},
		"the machine": func(r *rig) { r.saved, r.booted = nil, r.now },
	} {
		r := newRig(t)
		r.want("CALL", r.call(r.order, ahead), OK)
		r.want("ORDER", r.later(KindOrder, ""), OK)
		r.later(KindQuery, "")
		r.want("RELEASE", r.later(KindRelease, ""), OK)
		called := r.now
		restart(r)
		r.start()
		r.want("the same CALL after a restart of "+name, r.call(r.order, func(s *Signed) { s.IssuedAt = called.UnixMilli() + 24e3 }), Clock)
		r.pass(31 * time.Second)
		r.want("a new CALL", r.call(OrderID{8}, nil), OK)
		if len(r.queries) != 1 {
			t.Errorf("%d queries have run", len(r.queries))
		}
	}
}

// TestALockThatCannotBeRead: a node that may be somebody's, and cannot know,
// takes no Call for as long.
func TestALockThatCannotBeRead(t *testing.T) {
	r := newRig(t)
	r.saved, r.held = nil, r.now.Add(20*time.Second)
	r.start()
	r.want("a CALL meanwhile", r.call(r.order, nil), Busy)
	r.want("its ORDER", r.again(KindOrder, "", 1), NotMember)
	r.want("one that breaks glass", r.call(OrderID{7}, func(s *Signed) { s.Flags |= FlagBreakGlass }), Busy)
	r.wantState(Idle)
	r.pass(20 * time.Second)
	r.want("a CALL afterwards", r.call(OrderID{8}, nil), OK)
}

func TestRestartAfterTheEnd(t *testing.T) {
	r := newRig(t)
	r.lock(5 * time.Second)
	r.now = r.now.Add(time.Minute)
	r.start()
	r.wantState(Idle)
	if len(r.saved) != 0 {
		t.Error("the file is not removed")
	}
	if _, err := New(Config{}, r.now, []byte("rubbish")); err == nil {
		t.Error("an unreadable file is not told")
	}
}

// TestUnknownOrder: a wave that cannot be checked is answered and leaves no trace.
func TestUnknownOrder(t *testing.T) {
	r := newRig(t)
	r.want("QUERY of an unknown order", r.later(KindQuery, ""), Unknown)
	r.want("RELEASE of one", r.later(KindRelease, ""), Unknown)
	if len(r.node.waves) != 0 || len(r.node.orders) != 0 {
		t.Error("it is remembered")
	}
}

// TestForgeries: who is a member of the constellation, but has no key, changes
// nothing, and cannot keep the node busy checking.
func TestForgeries(t *testing.T) {
	r := newRig(t)
	r.lock(time.Minute)
	checks := 0
	r.node.flaws.verify = func(key ed25519.PublicKey, m *Wave) bool { checks++; return m.Verify(key) }
	for range 200 {
		r.seq++
		s := Signed{Order: r.order, Seq: r.seq, Kind: KindRelease, Cluster: "muster"}
		r.want("a forged RELEASE", r.wave(s, operatorKeys[3], nil), noEcho)
	}
	if checks > failedBurst {
		t.Errorf("%d signatures were checked, want %d at most", checks, failedBurst)
	}
	r.wantState(Ordered)
	r.pass(failedBurst / failedRate * time.Second)
	r.want("the true RELEASE", r.later(KindRelease, ""), OK)
}

// TestFramesOfOthers: a frame to another process, of another, or that came
// before is not looked at.
func TestFramesOfOthers(t *testing.T) {
	m, err := Sign(Signed{Order: OrderID{1}, Kind: KindCall, Cluster: "muster", IssuedAt: t0.Add(time.Second).UnixMilli(), Hold: 7000, Lease: 60000,
		Operator: OperatorID(operators()[0]), Key: [32]byte(operators()[2])}, operatorKeys[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	m.Budget = 2880
	for name, change := range map[string]func(*Frame){
		"another boot of this node":    func(f *Frame) { f.DstBoot[0]++ },
		"another node":                 func(f *Frame) { f.Dst[0]++ },
		"another boot of the sender":   func(f *Frame) { f.SrcBoot[0]++ },
		"another sender":               func(f *Frame) { f.Src[0]++ },
		"a counter that was used":      func(f *Frame) { f.Counter = 2 },
		"the node itself as a sender":  func(f *Frame) { f.Src = f.Dst },
		"no counter":                   func(f *Frame) { f.Counter = 0 },
		"nothing wrong (it must pass)": func(f *Frame) {},
	} {
		r := newRig(t)
		r.counter++
		f := Frame{Src: r.peerID, SrcBoot: r.peerBoot, Counter: r.counter, Dst: r.node.ID(), DstBoot: r.node.Boot(), Body: &m}
		change(&f)
		r.node.Receive(r.now, "peer", f)
		got := r.node.Status(r.now).State == Calling
		if want := name == "nothing wrong (it must pass)"; got != want {
			t.Errorf("%s: the CALL counts: %v", name, got)
		}
	}
}

// TestStrangersAreBounded: HELLOs of any number of nodes cost bounded memory
// and bounded answers.
func TestStrangersAreBounded(t *testing.T) {
	r := newRig(t)
	sends := 0
	for i := range 3 * maxPeers {
		var id [16]byte
		id[0], id[1], id[2] = 0xff, byte(i>>8), byte(i)
		r.node.Receive(r.now, "stranger", Frame{Src: NodeID(id[:8]), SrcBoot: BootID{1}, Counter: 1, Body: &Hello{ID: id}})
		sends += len(r.drain())
	}
	if len(r.node.peers) > maxPeers || sends > replyBurst+10 {
		t.Errorf("%d peers are remembered and %d frames were sent", len(r.node.peers), sends)
	}
	if r.node.Neighbours() != 1 {
		t.Error("a stranger is a neighbour unproved, or the neighbour was lost")
	}
	r.want("CALL", r.call(r.order, nil), OK)
}

// TestAQuestionHasOneAnswer: a recorded CHAL answer does not bring back a
// process that is gone, also not on a link.
func TestAQuestionHasOneAnswer(t *testing.T) {
	r := newRig(t)
	far := NodeID{7}
	counter := uint64(0)
	chal := func(boot byte, c *Chal) Frame {
		counter++
		return Frame{Src: far, SrcBoot: BootID{boot}, Counter: counter, Dst: r.node.ID(), DstBoot: r.node.Boot(), Body: c}
	}
	asked := func() *[8]byte {
		for _, s := range r.drain() {
			if c, ok := s.Frame.Body.(*Chal); ok && s.To == "far" && c.Ask != nil {
				return c.Ask
			}
		}
		t.Fatal("nothing is asked")
		return nil
	}
	r.node.AddPeer(r.now, "far")
	r.node.Tick(r.now)
	first := chal(1, &Chal{Answer: asked()})
	r.node.Receive(r.now, "far", first)
	ask := [8]byte{1}
	r.node.Receive(r.now, "far", chal(2, &Chal{Ask: &ask})) // it has started anew
	second := chal(2, &Chal{Answer: asked()})
	r.node.Receive(r.now, "far", second)
	for _, replayed := range []Frame{first, second, first} {
		r.node.Receive(r.now, "far", replayed)
		if p := r.node.peers[far]; !p.proved || p.boot != (BootID{2}) {
			t.Fatalf("the boot id %x is proved %v, want 02", p.boot, p.proved)
		}
	}
}
