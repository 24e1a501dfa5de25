package order

import (
	"container/heap"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

var t0 = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// A world is a simulated network with participants. Time passes from event to
// event; everything comes from one seed. What it checks it knows from the
// events, the effects and the published state of the participants, not from
// the protocol's own variables.
type world struct {
	seed     uint64
	rng      *rand.Rand
	now      time.Time
	queue    eventHeap
	serial   uint64
	hosts    []*host
	byAddr   map[Address]*host
	byID     map[NodeID]*host
	flaws    flaws
	faults   faults
	checked  map[string]bool // signatures verified before
	tape     []taped         // of frames, for the attacker
	thief    *host           // or nil
	frames   int             // delivered
	repeated int             // of them, those that repeat a wave
	unicast  int             // frames of waves that were sent
	hellos   int             // HELLOs to all
	latency  func(*rand.Rand) time.Duration
	quiet    bool // no faults from now on
	routed   bool // there is no multicast
	noHub    bool // the broker is down
	answer   func(*host, Query) (Code, []byte)
	err      error
}

// faults say how the network and the machines misbehave.
type faults struct {
	loss, dup, reorder float64
	drift              bool
	crashes            bool
	partitions         bool
	replay             bool
	skew               bool // clocks are wrong by what is tolerated, two of them by 28 s at most
	thief              bool // a member sends waves of others again, in frames of its own; needs replay
}

func (f faults) none() bool { return f == faults{} || f == faults{drift: true} }

type taped struct {
	from, to Address
	frame    Frame
}

// A host is a machine with one participant, and what an observer knows of it.
type host struct {
	w      *world
	i      int
	addr   Address
	id     NodeID
	node   *Node
	caller *Caller
	up     bool
	disk   []byte    // the RAM disk
	booted time.Time // by its clock
	rate   float64
	offset time.Duration
	group  int
	wake   time.Time
	lives  uint64
	key    ed25519.PrivateKey
	slow   time.Duration // of its queries, instead of some moments
	remote bool          // it is not on the network, so that only the hub reaches it
	hub    bool          // a caller: it uses the hub

	held   OrderID // by its events: what it is in
	locked bool
	ended  map[OrderID]bool
	lost   map[OrderID]bool // by a reboot
	news   bool             // a caller's belief may have grown
	ran    map[execution]bool

	script  *script // of a caller
	calls   map[OrderID]time.Time
	wins    []win
	losses  int
	answers map[execution]map[NodeID]int
	done    map[execution]Event
}

type execution struct {
	order OrderID
	seq   uint32
}

type win struct {
	order   OrderID
	at      time.Time
	members int
	who     []Member
}

type event struct {
	at     time.Time
	serial uint64
	do     func()
}

type eventHeap []event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	if h[i].at.Equal(h[j].at) {
		return h[i].serial < h[j].serial
	}
	return h[i].at.Before(h[j].at)
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(event)) }
func (h *eventHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

func hop(r *rand.Rand) time.Duration {
	return 300*time.Microsecond + time.Duration(r.ExpFloat64()*float64(2*time.Millisecond))
}

func newWorld(seed uint64, f faults, broken flaws) *world {
	w := &world{seed: seed, rng: rand.New(rand.NewPCG(seed, 11)), now: t0, byAddr: map[Address]*host{}, byID: map[NodeID]*host{},
		faults: f, flaws: broken, checked: map[string]bool{}, latency: hop}
	w.answer = func(*host, Query) (Code, []byte) { return OK, []byte("done") }
	w.flaws.verify = w.verify
	return w
}

// verify checks each signature once: hundreds of nodes see the same.
func (w *world) verify(key ed25519.PublicKey, m *Wave) bool {
	k := string(key) + string(m.Sig[:]) + string(m.Signed)
	ok, seen := w.checked[k]
	if !seen {
		ok = m.Verify(key)
		w.checked[k] = ok
	}
	return ok
}

func (w *world) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf("seed %d at %s: %s", w.seed, w.now.Sub(t0), fmt.Sprintf(format, args...))
	}
}

func (w *world) chance(p float64) bool { return p > 0 && w.rng.Float64() < p }

func (w *world) between(least, most time.Duration) time.Duration {
	return least + time.Duration(w.rng.Int64N(int64(most-least)+1))
}

func (w *world) after(d time.Duration, do func()) {
	w.serial++
	heap.Push(&w.queue, event{w.now.Add(d), w.serial, do})
}

// run lets time pass.
func (w *world) run(until time.Time) {
	for len(w.queue) > 0 && w.err == nil && !w.queue[0].at.After(until) {
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		e.do()
	}
	w.now = until
}

// until lets time pass until something holds.
func (w *world) until(holds func() bool, latest time.Time) {
	for len(w.queue) > 0 && !holds() && !w.queue[0].at.After(latest) {
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		e.do()
	}
}

var operatorKeys = func() []ed25519.PrivateKey {
	var keys []ed25519.PrivateKey
	for i := range byte(8) {
		seed := [ed25519.SeedSize]byte{i}
		keys = append(keys, ed25519.NewKeyFromSeed(seed[:]))
	}
	return keys
}()

func operators() []ed25519.PublicKey {
	var all []ed25519.PublicKey
	for _, k := range operatorKeys {
		all = append(all, k.Public().(ed25519.PublicKey))
	}
	return all
}

func (w *world) addHost(prefix string) *host {
	i := len(w.hosts)
	h := &host{w: w, i: i, addr: Address(fmt.Sprintf("%s%d", prefix, i)), rate: 1, ended: map[OrderID]bool{}, lost: map[OrderID]bool{}, ran: map[execution]bool{},
		calls: map[OrderID]time.Time{}, answers: map[execution]map[NodeID]int{}, done: map[execution]Event{}}
	if w.faults.drift {
		h.rate = 0.99 + 0.02*w.rng.Float64()
		h.offset = w.between(-500*time.Millisecond, 500*time.Millisecond)
		if !w.faults.none() && w.chance(0.05) {
			h.offset = pick(w, -5*time.Minute, 5*time.Minute)
		}
	}
	if w.faults.skew {
		h.offset = w.between(-14*time.Second, 14*time.Second)
	}
	w.hosts = append(w.hosts, h)
	w.byAddr[h.addr], w.byAddr[h.overHub()] = h, h
	return h
}

// overHub is the host's address over the hub.
func (h *host) overHub() Address { return Hub + h.addr }

func (w *world) agent() *host {
	h := w.addHost("agent")
	w.after(w.between(0, 500*time.Millisecond), func() { h.start() })
	return h
}

func (w *world) callerHost(operator int) *host {
	h := w.addHost("caller")
	h.key = operatorKeys[operator]
	w.after(w.between(0, 500*time.Millisecond), func() { h.start() })
	return h
}

// local is what the machine's clock shows, and far the time in the world at
// which it shows something.
func (h *host) local() time.Time {
	return t0.Add(h.offset + time.Duration(float64(h.w.now.Sub(t0))*h.rate))
}

func (h *host) far(local time.Time) time.Time {
	return t0.Add(time.Duration(float64(local.Sub(t0)-h.offset)/h.rate) + 1)
}

func (h *host) start() {
	if h.up {
		return
	}
	h.up, h.wake = true, time.Time{}
	h.lives++
	cfg := Config{Name: string(h.addr), Cluster: "muster", Operators: operators(), Selects: func(s string) bool { return s == "all" || s == string(h.addr) }}
	binary.BigEndian.PutUint64(cfg.ID[:], uint64(h.i+1))
	for i, x := range []uint64{h.w.seed, uint64(h.i), h.lives} {
		binary.BigEndian.PutUint64(cfg.Seed[8*i:], x)
	}
	var err error
	h.held, h.locked = OrderID{}, false
	if h.key != nil {
		if h.caller, err = NewCaller(cfg, h.key, h.local()); err == nil {
			h.node = h.caller.Node
		}
	} else {
		cfg.Booted = h.booted
		h.node, err = New(cfg, h.local(), h.disk)
	}
	if err != nil {
		panic(err)
	}
	h.node.flaws = h.w.flaws
	h.node.start = h.node.since(h.local()) // again, with the flaws
	h.id = h.node.ID()
	h.w.byID[h.id] = h
	for _, o := range h.w.hosts { // the broker tells callers of the nodes that are there
		switch {
		case h.hub && o.key == nil && o.up:
			h.node.AddPeer(h.local(), o.overHub())
		case h.key == nil && o.hub && o.up:
			o.node.AddPeer(o.local(), h.overHub())
			o.step()
		}
	}
	h.step()
}

// stop ends the process; a reboot empties the RAM disk too.
func (h *host) stop(reboot bool) {
	if !h.up {
		return
	}
	h.up = false
	if reboot {
		h.disk, h.booted = nil, h.local()
		if h.locked {
			h.ended[h.held], h.lost[h.held] = true, true
		}
	}
}

// step carries out what the participant asks for, and plans its next Tick.
func (h *host) step() {
	r := h.node.Ready()
	if r.Save != nil {
		h.disk = *r.Save
	}
	for _, e := range r.Events {
		h.observe(e)
	}
	for _, q := range r.Executes {
		h.execute(q)
	}
	for _, s := range r.Sends {
		h.w.transmit(h, s)
	}
	h.check()
	next := h.far(h.node.Next())
	if h.wake.IsZero() || next.Before(h.wake) {
		if !next.After(h.w.now) {
			next = h.w.now.Add(time.Microsecond)
		}
		h.wake = next
		life := h.lives
		h.w.after(next.Sub(h.w.now), func() {
			if h.up && h.lives == life && h.wake.Equal(next) {
				h.wake = time.Time{}
				h.node.Tick(h.local())
				h.step()
			}
		})
	}
}

func (w *world) transmit(from *host, s Send) {
	if s.To == Multicast {
		w.hellos++
		w.multicast(from, s.Frame)
		return
	}
	switch s.Frame.Body.(type) {
	case *Hello, *Chal:
	default:
		w.unicast++
	}
	if to := w.byAddr[s.To]; to != nil {
		w.carry(from, to, s.To.overHub(), s.Frame)
	}
}

// multicast reaches who is on the network, and from an agent the callers on the hub.
func (w *world) multicast(from *host, f Frame) {
	for _, h := range w.hosts {
		if h == from {
			continue
		}
		if !w.routed {
			w.carry(from, h, false, f)
		}
		if h.hub && from.key == nil {
			w.carry(from, h, true, f)
		}
	}
}

func (w *world) carry(from, to *host, hub bool, f Frame) {
	bad := w.faults
	if w.quiet {
		bad = faults{}
	}
	source, target, cut := from.addr, to.addr, from.group != to.group || from.remote || to.remote
	if hub {
		source, target, cut = from.overHub(), to.overHub(), w.noHub
		if (from.key == nil) == (to.key == nil) {
			if !w.faults.replay { // an attacker may have pretended
				w.fail("%s sends %T to %s over the hub", from.addr, f.Body, to.addr)
			}
			return
		}
	}
	if w.faults.replay && len(w.tape) < 20000 {
		w.tape = append(w.tape, taped{source, target, f})
	}
	if cut || w.chance(bad.loss) {
		return
	}
	copies := 1
	if w.chance(bad.dup) {
		copies++
	}
	for range copies {
		d := w.latency(w.rng)
		if w.chance(bad.reorder) {
			d += w.between(0, 100*time.Millisecond)
		}
		w.after(d, func() { w.deliver(source, to, f) })
	}
}

func (w *world) deliver(from Address, to *host, f Frame) {
	if !to.up {
		return
	}
	w.frames++
	if m, ok := f.Body.(*Wave); ok && m.repeated() {
		w.repeated++
	}
	if w.frames%50 == 0 {
		data, err := Encode(f)
		if err != nil {
			w.fail("encode %T: %v", f.Body, err)
			return
		}
		if f, err = Decode(data); err != nil {
			w.fail("decode %T: %v", f.Body, err)
			return
		}
	}
	to.node.Receive(to.local(), from, f)
	to.step()
}

// observe follows the events, which must fit each other.
func (h *host) observe(e Event) {
	w := h.w
	switch e.Kind {
	case Called: // I1
		if h.held != (OrderID{}) {
			w.fail("I1: %s enters Call %s while it is in %s", h.addr, e.Order, h.held)
		}
		h.held, h.locked = e.Order, false
	case Locked:
		if h.held != e.Order && h.held != (OrderID{}) {
			w.fail("I1: %s enters Order %s while it is in %s", h.addr, e.Order, h.held)
		}
		h.held, h.locked = e.Order, true
	case Freed:
		if h.held != e.Order {
			w.fail("I1: %s leaves %s while it is in %s", h.addr, e.Order, h.held)
		}
		h.held, h.locked = OrderID{}, false
		h.ended[e.Order] = true
	case CallWon:
		h.news = true
		h.decided(e.Order)
		h.wins = append(h.wins, win{order: e.Order, at: w.now, members: len(e.Members), who: e.Members})
		h.script.won(h)
	case CallLost:
		h.decided(e.Order)
		h.losses++
		h.script.lost(h, e.Backoff)
	case Answered:
		x := execution{e.Order, e.Seq}
		if h.answers[x] == nil {
			h.answers[x] = map[NodeID]int{}
		}
		if h.answers[x][e.Member.ID]++; h.answers[x][e.Member.ID] > 1 {
			w.fail("%s hears of %s twice", h.addr, e.Member.ID)
		}
	case QueryDone, RenewDone, ReleaseDone:
		h.news = true
		h.done[execution{e.Order, e.Seq}] = e
		switch e.Kind {
		case QueryDone:
			h.noSilence(e)
		case ReleaseDone:
			h.noneForgotten(e)
		}
	}
}

// noSilence checks that each member either answered a query or is named.
func (h *host) noSilence(e Event) {
	for _, m := range h.caller.Members(h.local()) {
		named := slices.ContainsFunc(e.Absent, func(o Member) bool { return o.ID == m.ID })
		if answered := h.answers[execution{e.Order, e.Seq}][m.ID] > 0; answered == named {
			h.w.fail("%s: of member %s query %d of %s says: answered %v, absent %v", h.addr, m.ID, e.Seq, e.Order, answered, named)
		}
	}
}

// noneForgotten checks that each member that is still locked after a release is
// named, and is free when the caller says.
func (h *host) noneForgotten(e Event) {
	for _, won := range h.wins {
		for _, m := range won.who {
			o := h.w.byID[m.ID]
			if won.order != e.Order || !o.up || !o.locked || o.held != e.Order {
				continue
			}
			if !slices.ContainsFunc(e.Absent, func(x Member) bool { return x.ID == m.ID }) {
				h.w.fail("%s has released %s, which %s did not hear and is not named", h.addr, e.Order, o.addr)
			}
			// Whoever sends a RENEW again later extends a lease that far.
			if left, said := o.node.Status(o.local()).Until.Sub(o.local()), e.Until.Sub(h.local()); left > said && !h.w.faults.replay {
				h.w.fail("%s is locked for %s more, and %s says %s", o.addr, left, h.addr, said)
			}
		}
	}
}

// decided checks I4.
func (h *host) decided(id OrderID) {
	at, ok := h.calls[id]
	if !ok {
		h.w.fail("%s has an outcome of %s, which it did not call or that was decided", h.addr, id)
	}
	delete(h.calls, id)
	if took := h.w.now.Sub(at); took > decisionTime {
		h.w.fail("I4: %s decided after %s", h.addr, took)
	}
}

const decisionTime = 2*waveTime + 500*time.Millisecond

func (h *host) execute(q Query) {
	x := execution{q.Order, q.Seq}
	switch { // I5
	case h.ran[x]:
		h.w.fail("I5: %s runs query %d of %s again", h.addr, q.Seq, q.Order)
	case h.held != q.Order || !h.locked:
		h.w.fail("I5: %s runs a query of %s while it is in %s", h.addr, q.Order, h.held)
	case h.ended[q.Order]:
		h.w.fail("I5: %s runs a query of %s after its end", h.addr, q.Order)
	}
	h.ran[x] = true
	life := h.lives
	h.w.after(max(h.slow, h.w.between(time.Millisecond, 400*time.Millisecond)), func() {
		if h.up && h.lives == life {
			code, data := h.w.answer(h, q)
			h.node.Finished(h.local(), q.Order, q.Seq, code, data)
			h.step()
		}
	})
}

// check compares what this host is with what the callers believe (I3, I2).
func (h *host) check() {
	if h.key == nil {
		for _, c := range h.w.hosts {
			if c.believes(h.id) {
				h.w.believed(c, h)
			}
		}
		return
	}
	if h.news {
		h.news = false
		for _, m := range h.caller.Members(h.local()) {
			h.w.believed(h, h.w.byID[m.ID])
		}
	}
}

// believes reports what Members would, faster.
func (h *host) believes(id NodeID) bool {
	if h.caller == nil || !h.up {
		return false
	}
	m := h.caller.call.members[id]
	return m != nil && h.local().Before(m.until)
}

// believed checks a node that a caller believes locked to it.
func (w *world) believed(c, h *host) {
	order := c.caller.Order()
	if h.lost[order] {
		return // it rebooted, which the caller cannot know
	}
	if s := h.node.Status(h.local()); h.up && (s.State != Ordered || s.Order != order) {
		w.fail("I3: %s believes %s in its Order %s, but that is in %s %s", c.addr, h.addr, order, s.State, s.Order)
	}
	for _, o := range w.hosts {
		if o != c && o.believes(h.id) && !h.lost[o.caller.Order()] {
			w.fail("I2: %s is a member of the Orders of %s and %s", h.addr, c.addr, o.addr)
		}
	}
}
