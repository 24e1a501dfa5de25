package order

import (
	"cmp"
	"crypto/ed25519"
	"slices"
	"time"

	"github.com/musterfleet/muster"
)

// belief is the part of a lease for which the caller trusts it: drift of the
// clocks makes up for less than the rest.
const belief = 0.95

// A Caller is the operator's side: a participant that cannot be locked, and the
// root of the waves that it sends.
type Caller struct {
	*Node
	key   ed25519.PrivateKey
	phase phase
	call  call
	tries int // Calls lost in a row
}

// A root is the Caller that a node belongs to, as its waves see it. An interface,
// so that a program without one has none of its code.
type root interface {
	// enough reports whether a wave need not wait any longer.
	enough(w *wave) bool
	repeats(now time.Time, w *wave) bool
	repeat(now time.Time, w *wave)
	answered(now time.Time, w *wave, m Part)
	finished(now time.Time, w *wave)
	// holds returns the Order that is held, zero without one.
	holds() OrderID
	tick(now time.Time)
	next() time.Time
}

var _ root = (*Caller)(nil)

type phase uint8

const (
	resting phase = iota
	calling
	ordering
	holding
)

// A call is the Call or Order that the caller has.
type call struct {
	order   OrderID
	key     ed25519.PrivateKey
	seq     uint32
	lease   time.Duration
	started map[uint32]time.Time // waves on their way
	members map[NodeID]*believed
	joined  map[NodeID]Member // who has said so to the CALL or the ORDER
	locked  time.Time         // until when somebody may be locked, by what was sent
	absent  []Member          // of the CALL
}

type believed struct {
	Member
	until time.Time
	mute  bool // the last wave ended without a word of it
}

// CallOptions say what is called for.
type CallOptions struct {
	Lease      time.Duration // MinLease to MaxLease, default 60 s
	Scope      string        // selector of the nodes that are to be locked; empty: all
	BreakGlass bool          // precede Calls of others that are not Orders yet
}

// NewCaller starts the operator's side. The key is the operator's.
func NewCaller(cfg Config, key ed25519.PrivateKey, now time.Time) (*Caller, error) {
	n, err := newNode(cfg, RoleCaller, now)
	if err != nil {
		return nil, err
	}
	c := &Caller{Node: n, key: key}
	n.caller = c
	return c, nil
}

// Call asks all nodes in reach to be locked. CallWon or CallLost tells how it
// ended, within 6 s and some hundred milliseconds.
func (c *Caller) Call(now time.Time, o CallOptions) (OrderID, error) {
	switch {
	case c.phase != resting:
		return OrderID{}, muster.Errorf(muster.Conflict, "this caller has a Call or Order already")
	case o.Lease != 0 && (o.Lease < MinLease || o.Lease > MaxLease):
		return OrderID{}, muster.Errorf(muster.Invalid, "a lease is %s to %s, not %s", MinLease, MaxLease, o.Lease)
	case len(o.Scope) > MaxSelector:
		return OrderID{}, muster.Errorf(muster.Invalid, "the scope has %d bytes; %d are possible", len(o.Scope), MaxSelector)
	case c.Neighbours() == 0:
		return OrderID{}, muster.Errorf(muster.Unavailable, "no agent answers").WithHint("name the address of one that runs")
	}
	lease := cmp.Or(o.Lease, defaultLease)
	var seed [ed25519.SeedSize]byte
	c.draw(seed[:])
	c.call = call{key: ed25519.NewKeyFromSeed(seed[:]), lease: lease, started: map[uint32]time.Time{}, members: map[NodeID]*believed{},
		joined: map[NodeID]Member{}, locked: now.Add(waveTime + defaultHold)}
	c.draw(c.call.order[:])
	s := Signed{Cluster: c.cfg.Cluster, Order: c.call.order, Kind: KindCall, IssuedAt: now.UnixMilli(),
		Hold: uint32(defaultHold.Milliseconds()), Lease: uint32(lease.Milliseconds()), Scope: o.Scope,
		Operator: OperatorID(c.key.Public().(ed25519.PublicKey)), Key: [ed25519.PublicKeySize]byte(c.call.key.Public().(ed25519.PublicKey))}
	if o.BreakGlass {
		s.Flags |= FlagBreakGlass
	}
	m, err := Sign(s, c.key, nil)
	if err != nil {
		return OrderID{}, err
	}
	c.phase = calling
	order := c.call.order
	c.begin(now, m, waveTime, &begun{key: c.key})
	return order, nil
}

// Query asks the members of the Order that a selector matches, all if it is
// empty, to run a method. Answered tells each answer and QueryDone that there
// are no more; within is the time for both, at most 15 minutes, default 3 s.
func (c *Caller) Query(now time.Time, selector, method string, args []byte, within time.Duration) (uint32, error) {
	body, err := EncodeQuery(method, args)
	if err != nil {
		return 0, err
	}
	if len(selector) > MaxSelector {
		return 0, muster.Errorf(muster.Invalid, "the selector has %d bytes; %d are possible", len(selector), MaxSelector)
	}
	within = min(cmp.Or(within, waveTime), maxQueryMs*time.Millisecond)
	return c.later(now, KindQuery, selector, body, within)
}

// Renew extends the Order by its lease from now. RenewDone tells how far. It is
// time for it when half of the lease is over.
func (c *Caller) Renew(now time.Time) (uint32, error) {
	return c.later(now, KindRenew, "", nil, waveTime)
}

// Release ends the Order, or gives the Call up. Nothing is believed locked from
// now on, and what else was under way ends without a word; ReleaseDone tells who
// heard of it.
func (c *Caller) Release(now time.Time) (uint32, error) {
	if c.phase == resting {
		return 0, errNoOrder
	}
	seq, err := c.issue(now, KindRelease, "", nil, waveTime)
	if err != nil {
		return 0, err
	}
	c.phase = resting
	clear(c.call.members)
	c.abandon(now, c.wave(c.call.order, seq))
	return seq, nil
}

var errNoOrder = muster.Errorf(muster.Conflict, "no Order is held").WithHint("call first")

// later sends a wave of the Order that is held.
func (c *Caller) later(now time.Time, kind Kind, selector string, query []byte, within time.Duration) (uint32, error) {
	if c.phase != holding || !now.Before(c.Until()) {
		return 0, errNoOrder
	}
	return c.issue(now, kind, selector, query, within)
}

func (c *Caller) issue(now time.Time, kind Kind, selector string, query []byte, within time.Duration) (uint32, error) {
	c.call.seq++
	m, err := Sign(Signed{Cluster: c.cfg.Cluster, Order: c.call.order, Seq: c.call.seq, Kind: kind, IssuedAt: now.UnixMilli(), Selector: selector}, c.call.key, query)
	if err != nil {
		return 0, err
	}
	seq, b := c.call.seq, &begun{key: c.call.key}
	switch kind {
	case KindOrder, KindRenew: // and a twentieth more, for clocks that drift
		c.call.locked = now.Add(within + c.call.lease*21/20)
	case KindRelease:
		b.joined, b.locked = c.call.joined, c.call.locked
	}
	c.begin(now, m, within, b)
	return seq, nil
}

// begin is the root's part of a wave.
func (c *Caller) begin(now time.Time, m Wave, within time.Duration, b *begun) {
	w := &wave{msg: m, root: true, deadline: now.Add(within), passed: map[NodeID]bool{}, began: b}
	c.room() // what the operator asks for is held in any case
	c.waves = append(c.waves, w)
	c.call.started[m.Seq] = now
	c.plan(now, w)
	c.forward(now, w)
	c.complete(now, w)
}

// Members returns who is locked to the Order for certain at a time, in the
// order of their ids.
func (c *Caller) Members(now time.Time) []Member {
	var all []Member
	for _, m := range c.call.members {
		if now.Before(m.until) {
			all = append(all, m.Member)
		}
	}
	slices.SortFunc(all, byID)
	return all
}

// Until returns when the belief in the last member ends; zero without one.
func (c *Caller) Until() time.Time {
	var last time.Time
	for _, m := range c.call.members {
		last = later(last, m.until)
	}
	return last
}

// enough reports whether a wave need not wait for what is outstanding: every
// member has answered the query.
func (c *Caller) enough(w *wave) bool {
	if w.msg.Kind != KindQuery || w.msg.Order != c.call.order || len(c.call.members) == 0 {
		return false
	}
	if len(w.passed)+len(w.members) < len(c.call.members) {
		return false // the common case, told without looking
	}
	echoed := w.codes()
	for id := range c.call.members {
		if m, ok := echoed[id]; (!ok || m.Code.ran()) && !w.passed[id] {
			return false
		}
	}
	return true
}

// answered tells one answer to a query.
func (c *Caller) answered(now time.Time, w *wave, m Part) {
	c.event(Event{Kind: Answered, Order: m.Order, Seq: m.Seq & MaxSeq, Member: m.From, Data: m.Data})
	c.heard(now, w)
}

// finished takes the end of a wave.
func (c *Caller) finished(now time.Time, w *wave) {
	ok, absent := w.outcome()
	e := Event{Order: w.msg.Order, Seq: w.msg.Seq & MaxSeq, Members: ok, Absent: absent}
	if w.msg.Kind == KindRelease {
		e.Kind, e.Absent, e.Until = ReleaseDone, w.unreleased(), w.began.locked
		c.event(e)
		return
	}
	if w.msg.Order != c.call.order || c.phase == resting {
		return // of a Call that was lost, or an Order that is over
	}
	if w.msg.Kind == KindQuery || w.msg.Kind == KindRenew {
		e.Absent = c.lacking(w)
		c.mute(w)
	}
	started := c.call.started[e.Seq]
	delete(c.call.started, e.Seq)
	if w.msg.Kind != KindQuery {
		for _, m := range ok {
			c.call.joined[m.ID] = m
		}
	}
	switch w.msg.Kind {
	case KindCall:
		c.called(now, w, ok, absent, started)
	case KindOrder:
		c.ordered(now, w, ok, absent, started)
	case KindQuery:
		e.Kind = QueryDone
		c.event(e)
	case KindRenew:
		c.believe(ok, started)
		e.Kind, e.Until = RenewDone, c.Until()
		c.event(e)
	}
}

// lacking returns the members of the Order that have not done what a wave asked
// for. An answer that was lost on its way counts as none.
func (c *Caller) lacking(w *wave) []Member {
	var all []Member
	echoed := w.codes()
	for id, b := range c.call.members {
		m, ok := echoed[id]
		switch {
		case w.passed[id] || ok && m.Code == OK && w.msg.Kind == KindRenew:
			continue
		case !ok || m.Code == OK:
			m = Member{ID: id, Boot: b.Boot, Code: NoAnswer}
		}
		all = append(all, m)
	}
	slices.SortFunc(all, byID)
	return all
}

func byID(a, b Member) int { return slices.Compare(a.ID[:], b.ID[:]) }

func (c *Caller) called(now time.Time, w *wave, ok, absent []Member, started time.Time) {
	switch {
	case w.conflict || len(ok) == 0:
		c.lose(now, w, absent)
	case c.flaws.onePhase:
		c.ordered(now, w, ok, absent, started)
	default:
		c.phase = ordering
		c.call.absent = absent
		if _, err := c.issue(now, KindOrder, "", nil, waveTime); err != nil {
			c.lose(now, w, absent)
		}
	}
}

func (c *Caller) ordered(now time.Time, w *wave, ok, absent []Member, started time.Time) {
	if w.conflict || len(ok) == 0 {
		c.lose(now, w, absent)
		return
	}
	c.phase, c.tries = holding, 0
	c.believe(ok, started)
	// Why a node is missing is what it said first: the ORDER only finds it
	// not called.
	absent = merge(c.call.absent, absent, ok)
	c.event(Event{Kind: CallWon, Order: c.call.order, Members: ok, Absent: absent, Until: c.Until()})
}

// believe notes members until shortly before their lease ends.
func (c *Caller) believe(ok []Member, started time.Time) {
	part := belief
	if c.flaws.longBelief {
		part = 1.2
	}
	until := started.Add(time.Duration(part * float64(c.call.lease)))
	for _, m := range ok {
		c.call.members[m.ID] = &believed{Member: m, until: until}
	}
}

// lose gives a Call up and tells the nodes, so that they need not wait for the
// end of their hold.
func (c *Caller) lose(now time.Time, w *wave, absent []Member) {
	// Within bounds that double with each loss, so that callers come apart.
	c.tries++
	bound := 500 * time.Millisecond << min(c.tries, 5)
	wait := bound/4 + time.Duration(c.rng.Int64N(int64(bound)))
	c.event(Event{Kind: CallLost, Order: c.call.order, Rival: w.rival, Absent: absent, Backoff: wait})
	c.phase = resting
	if _, err := c.issue(now, KindRelease, "", nil, waveTime); err != nil {
		return // the hold ends by itself
	}
}

func (c *Caller) holds() OrderID {
	if c.phase != holding {
		return OrderID{}
	}
	return c.call.order
}

func (c *Caller) tick(now time.Time) {
	if c.phase == holding && !now.Before(c.Until()) {
		c.phase = resting
		clear(c.call.members)
		c.event(Event{Kind: LeaseOver, Order: c.call.order})
	}
}

func (c *Caller) next() time.Time {
	if c.phase != holding {
		return time.Time{}
	}
	return c.Until()
}

// codes returns what is known of each node: what it said, or that it said
// nothing. A node that two parents tell of counts with the better code.
func (w *wave) codes() map[NodeID]Member {
	best := map[NodeID]Member{}
	for _, m := range w.members {
		if old, seen := best[m.ID]; !seen || m.Code < old.Code {
			best[m.ID] = m
		}
	}
	return best
}

// outcome returns who did what a wave asked for and who did not, each node once
// and in the order of ids.
func (w *wave) outcome() (ok, absent []Member) {
	best := w.codes()
	for _, id := range w.missing {
		if _, seen := best[id]; !seen {
			best[id] = Member{ID: id, Code: NoAnswer}
		}
	}
	for _, m := range best {
		if m.Code == OK {
			ok = append(ok, m)
		} else {
			absent = append(absent, m)
		}
	}
	slices.SortFunc(ok, byID)
	slices.SortFunc(absent, byID)
	return ok, absent
}

// merge returns the members of first, and those of second that it lacks,
// without those that are ok after all.
func merge(first, second, ok []Member) []Member {
	var all []Member
	has := func(list []Member, m Member) bool {
		return slices.ContainsFunc(list, func(o Member) bool { return o.ID == m.ID })
	}
	for _, m := range slices.Concat(first, second) {
		if !has(ok, m) && !has(all, m) {
			all = append(all, m)
		}
	}
	return all
}

// Order returns the id of the Call or Order that the caller has or had last.
func (c *Caller) Order() OrderID { return c.call.order }
