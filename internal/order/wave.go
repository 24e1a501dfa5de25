package order

import (
	"slices"
	"time"
)

// Timers and bounds of waves.
const (
	waveTime   = 3 * time.Second        // from the root's beginning to its decision
	margin     = 120 * time.Millisecond // by which a child's time is shorter, so that its echo arrives in time
	firstRetry = 40 * time.Millisecond
	tries      = 5
	remember   = 10 * time.Second // after its end, to recognise repetitions
	maxWaves   = 64
	maxHeld    = 1 << 20   // bytes of answers on their way through a relay; more wait below
	maxKept    = 256 << 10 // bytes of own answers that are kept, to be sent again
)

// A retry plans repetitions: the second follows after firstRetry, each further
// one after twice the time.
type retry struct {
	at    time.Time
	tries int
}

// again reports whether there is another try, at once, and plans the next.
func (r *retry) again(now time.Time) bool {
	if r.tries >= tries {
		return false
	}
	r.at = now.Add(firstRetry << r.tries)
	r.tries++
	return true
}

// A wave is one request passing through this node: received from the parent,
// forwarded to the children, answered by them, echoed to the parent. The first
// WAVE to arrive makes its sender the parent, so each wave builds its own tree.
// When the root repeats it, it builds another one: who took part does nothing a
// second time, and has its answer go the new way.
type wave struct {
	msg      Wave // with the number of the last repetition
	root     bool
	parent   NodeID
	deadline time.Time
	children []*child
	members  []Member // of this node and below
	missing  []NodeID
	conflict bool
	rival    OrderID
	ends     bool    // it is not forwarded
	running  bool    // the query of this node
	answer   *Part   // of this node, kept to be sent again
	parts    []*part // on their way to the parent
	passed   map[NodeID]bool
	done     bool // decided, at the root; echoed, elsewhere
	echo     *Echo
	retry    retry // of the echo, until it is acknowledged
	settled  bool  // nothing is sent any more
	until    time.Time

	began *begun // of the root
}

type child struct {
	id       NodeID
	accepted bool // it acknowledged: its echo will come
	over     bool
	retry    retry
}

type part struct {
	body  Part
	retry retry
}

// wave returns the wave with a number, whatever the repetition.
func (n *Node) wave(order OrderID, number uint32) *wave {
	for _, w := range n.waves {
		if w.msg.Order == order && w.msg.Seq&MaxSeq == number&MaxSeq {
			return w
		}
	}
	return nil
}

// current returns the wave with a number if that is not of an earlier repetition,
// whose tree is of no use any more.
func (n *Node) current(order OrderID, number uint32) *wave {
	if w := n.wave(order, number); w != nil && w.msg.Seq == number {
		return w
	}
	return nil
}

func (w *wave) child(id NodeID) *child {
	for _, c := range w.children {
		if c.id == id {
			return c
		}
	}
	return nil
}

// room reports whether another wave can be held, after forgetting one that is
// over if need be.
func (n *Node) room() bool {
	if len(n.waves) < maxWaves {
		return true
	}
	i := slices.IndexFunc(n.waves, func(w *wave) bool { return w.settled })
	if i >= 0 {
		n.waves = slices.Delete(n.waves, i, i+1)
	}
	return i >= 0
}

// onWave takes a WAVE: the first of its kind does something, others are told
// that they are.
func (n *Node) onWave(now time.Time, p *peer, m *Wave) {
	w := n.wave(m.Order, m.Seq)
	switch {
	case w != nil && (w.root || m.Seq <= w.msg.Seq):
		n.again(now, p, w, m.Seq)
		return
	case n.role == RoleCaller:
		n.send(p, &Dup{Order: m.Order, Seq: m.Seq})
		return
	case w == nil && !n.room() || p.failed.full(now, failedBurst, failedRate):
		return
	}
	s, code := n.check(m)
	switch code {
	case OK:
	case Unknown: // without a key nothing can be checked, so nothing is kept or forwarded
		n.send(p, &Echo{Order: m.Order, Seq: m.Seq, Flags: EchoPartial, Members: []Member{{ID: n.id, Boot: n.boot, Code: Unknown}}})
		return
	default:
		p.failed.take(now, failedBurst, failedRate)
		return
	}
	fresh := w == nil
	if fresh {
		w = &wave{passed: map[NodeID]bool{}}
		n.waves = append(n.waves, w)
	}
	w.msg, w.parent, w.deadline = *m, p.id, now.Add(n.budget(m))
	if !fresh {
		n.repeat(now, w)
	}
	if fresh || n.flaws.noMemory {
		n.enter(now, w, &s)
	}
	if !w.ends {
		n.forward(now, w)
	}
	if !n.complete(now, w) {
		n.send(p, &Ack{Order: m.Order, Seq: m.Seq, Of: TypeWave})
	}
}

// enter does what a new wave asks for.
func (n *Node) enter(now time.Time, w *wave, s *Signed) {
	v := n.decide(now, w, s)
	w.conflict, w.rival, w.ends = v.conflict, v.rival, !v.forward
	if !w.running {
		w.members = []Member{{ID: n.id, Boot: n.boot, Code: v.code}}
	}
}

// repeat has a known wave take the way of its repetition. What this node made of
// it holds, and answers that are here go to the new parent.
func (n *Node) repeat(now time.Time, w *wave) {
	w.missing = nil
	for _, c := range w.children {
		c.over = true
	}
	w.done, w.settled, w.echo = false, false, nil
	clear(w.passed) // what others hold may be lost with them
	for _, x := range w.parts {
		w.passed[x.body.From.ID] = true
		x.retry = retry{}
		n.sendPart(now, w, x)
	}
	wanted := len(w.msg.Want) == 0 || slices.Contains(w.msg.Want, n.id)
	if w.answer != nil && wanted && !w.passed[n.id] {
		w.passed[n.id] = true
		n.passOn(now, w, *w.answer)
	}
}

func (n *Node) budget(m *Wave) time.Duration {
	b := time.Duration(m.Budget) * time.Millisecond
	if m.Kind != KindQuery {
		b = min(b, waveTime)
	}
	return b
}

// again takes a WAVE that is known. From the parent it came before; anybody else
// has it from elsewhere, and is no child of this node either.
func (n *Node) again(now time.Time, p *peer, w *wave, number uint32) {
	switch {
	case number < w.msg.Seq:
		n.send(p, &Dup{Order: w.msg.Order, Seq: number})
	case w.root || p.id != w.parent:
		n.send(p, &Dup{Order: w.msg.Order, Seq: number})
		n.close(now, w, w.child(p.id))
	case w.echo != nil:
		n.send(p, w.echo)
	default:
		n.send(p, &Ack{Order: w.msg.Order, Seq: w.msg.Seq, Of: TypeWave})
	}
}

// forward sends the wave to all neighbours but its parent, if the time is worth it.
func (n *Node) forward(now time.Time, w *wave) {
	if w.deadline.Sub(now) < 2*margin || w.msg.Hops >= maxHops {
		return
	}
	for _, p := range n.neighbours() {
		if p.id != w.parent || w.root {
			c := w.child(p.id)
			if c == nil {
				c = new(child)
				w.children = append(w.children, c)
			}
			*c = child{id: p.id}
			n.ask(now, w, c)
		}
	}
}

// ask sends the wave to a child, once more.
func (n *Node) ask(now time.Time, w *wave, c *child) {
	p := n.peers[c.id]
	if p == nil || !c.retry.again(now) {
		w.missing = append(w.missing, c.id)
		if p != nil {
			n.fail(now, p)
		}
		n.close(now, w, c)
		return
	}
	if !p.proved {
		return // it has started anew; the CHAL round trip may be over by the next try
	}
	m := w.msg
	m.Hops++
	m.Budget = uint32(max(0, w.deadline.Sub(now)-margin).Milliseconds())
	n.send(p, &m)
}

// close ends the waiting for a child.
func (n *Node) close(now time.Time, w *wave, c *child) {
	if c != nil && !c.over {
		c.over = true
		n.complete(now, w)
	}
}

// complete decides the wave if nothing is awaited any more, and reports whether
// it is decided. A conflict does not wait for the rest.
func (n *Node) complete(now time.Time, w *wave) bool {
	if w.done {
		return true
	}
	waiting := w.running || len(w.parts) > 0 || slices.ContainsFunc(w.children, func(c *child) bool { return !c.over })
	if waiting && !w.conflict && now.Before(w.deadline) && !(w.root && n.caller.enough(w)) {
		return false
	}
	if w.root && n.caller.repeats(now, w) {
		return false
	}
	n.finish(now, w)
	return true
}

func (n *Node) finish(now time.Time, w *wave) {
	w.done = true
	w.until = now.Add(remember)
	if w.running {
		w.running = false
		w.members = append(w.members, Member{ID: n.id, Boot: n.boot, Code: Late})
	}
	for _, c := range w.children {
		if !c.over {
			c.over = true
			w.missing = append(w.missing, c.id)
		}
	}
	w.parts = nil
	if w.root {
		w.settled = true
		n.caller.finished(now, w)
		return
	}
	w.msg.Signed, w.msg.Query = nil, nil // a repetition brings its own
	if w.answer != nil {
		w.until = later(w.until, w.deadline)
	}
	n.echo(now, w)
}

// echo answers the parent, until it acknowledges.
func (n *Node) echo(now time.Time, w *wave) {
	e := &Echo{Order: w.msg.Order, Seq: w.msg.Seq,
		Members: slices.Clone(w.members[:min(len(w.members), MaxMembers)]), Missing: slices.Clone(w.missing[:min(len(w.missing), MaxMissing)])}
	if len(w.missing) > 0 || len(e.Members) < len(w.members) {
		e.Flags |= EchoPartial
	}
	if w.conflict {
		rival := w.rival
		e.Flags |= EchoConflict
		e.Rival = &rival
	}
	w.echo, w.settled, w.retry = e, false, retry{}
	n.echoAgain(now, w)
}

func (n *Node) echoAgain(now time.Time, w *wave) {
	p := n.peers[w.parent]
	if p == nil || !w.retry.again(now) {
		w.settled = true
		return
	}
	if p.proved {
		n.send(p, w.echo)
	}
}

// object makes a conflict of a wave known, also after its echo.
func (n *Node) object(now time.Time, w *wave, rival OrderID) {
	if w.conflict {
		return
	}
	w.conflict, w.rival = true, rival
	switch {
	case !w.done:
		n.complete(now, w)
	case !w.root:
		n.echo(now, w)
	}
}

func (n *Node) onAck(now time.Time, p *peer, a *Ack) {
	w := n.current(a.Order, a.Seq)
	switch {
	case w == nil:
	case a.Of == TypeWave:
		if c := w.child(p.id); c != nil {
			c.accepted = true
		}
	case p.id == w.parent && !w.root:
		w.parts = slices.DeleteFunc(w.parts, func(x *part) bool { return x.body.From.ID == a.Part })
		n.complete(now, w)
	}
}

func (n *Node) onDup(now time.Time, p *peer, d *Dup) {
	if w := n.current(d.Order, d.Seq); w != nil {
		n.close(now, w, w.child(p.id))
	}
}

func (n *Node) onFack(p *peer, f *Fack) {
	w := n.current(f.Order, f.Seq)
	if w != nil && w.echo != nil && p.id == w.parent && f.Conflict == (w.echo.Flags&EchoConflict != 0) {
		w.settled = true
	}
}

func (n *Node) onEcho(now time.Time, p *peer, e *Echo) {
	conflict := e.Flags&EchoConflict != 0
	n.send(p, &Fack{Order: e.Order, Seq: e.Seq, Conflict: conflict})
	w := n.wave(e.Order, e.Seq)
	if w == nil {
		return
	}
	c := w.child(p.id)
	if c == nil {
		return
	}
	current := e.Seq == w.msg.Seq
	if !w.done {
		w.learn(e.Members) // of an earlier repetition, too
	}
	if !w.done && !c.over && current {
		w.missing = append(w.missing, e.Missing...)
		w.missing = w.missing[:min(len(w.missing), 2*MaxMissing)]
	}
	if conflict {
		var rival OrderID
		if e.Rival != nil {
			rival = *e.Rival
		}
		n.object(now, w, rival)
	}
	if current {
		n.close(now, w, c)
	}
}

// learn notes members, each once: of two codes the better counts.
func (w *wave) learn(all []Member) {
	for _, m := range all {
		i := slices.IndexFunc(w.members, func(o Member) bool { return o.ID == m.ID })
		switch {
		case i >= 0:
			w.members[i].Code = min(w.members[i].Code, m.Code)
		case len(w.members) < 2*MaxMembers:
			w.members = append(w.members, m)
		}
	}
}

// onPart passes an answer on to the parent, also one that took the way of an
// earlier repetition. It is acknowledged when it is held here, so that what a
// relay has no room for waits below.
func (n *Node) onPart(now time.Time, p *peer, m *Part) {
	w := n.wave(m.Order, m.Seq)
	if w == nil {
		return // this process has not relayed the wave, but may be asked to
	}
	if w.done || w.child(p.id) == nil {
		n.send(p, &Ack{Order: m.Order, Seq: m.Seq, Of: TypePart, Part: m.From.ID}) // nobody waits for it any more
		return
	}
	if !w.passed[m.From.ID] {
		if !w.root && n.held()+len(m.Data) > maxHeld || len(w.passed) >= MaxMembers {
			return
		}
		w.passed[m.From.ID] = true
		n.passOn(now, w, *m)
	}
	n.send(p, &Ack{Order: m.Order, Seq: m.Seq, Of: TypePart, Part: m.From.ID})
	n.complete(now, w)
}

// held returns the bytes of answers that wait for the parents' receipts, with
// something for each answer itself.
func (n *Node) held() int {
	sum := 0
	for _, w := range n.waves {
		for _, x := range w.parts {
			sum += len(x.body.Data) + 256
		}
	}
	return sum
}

func (n *Node) passOn(now time.Time, w *wave, m Part) {
	if w.root {
		n.caller.answered(now, w, m)
		return
	}
	x := &part{body: m}
	w.parts = append(w.parts, x)
	n.sendPart(now, w, x)
}

// sendPart sends an answer upwards; after the last try it goes on at the last
// pace for as long as the wave has time.
func (n *Node) sendPart(now time.Time, w *wave, x *part) {
	if !x.retry.again(now) {
		x.retry.at = now.Add(firstRetry << (tries - 1))
	}
	if p := n.peers[w.parent]; p != nil && p.proved {
		b := x.body
		b.Seq = w.msg.Seq
		n.send(p, &b)
	}
}

// Finished says how a query that was asked for in Ready.Executes ended: OK,
// Denied or Failed, with at most MaxResult bytes for the caller; more are cut.
func (n *Node) Finished(now time.Time, order OrderID, seq uint32, code Code, data []byte) {
	w := n.wave(order, seq)
	if w == nil || w.done || !w.running {
		return
	}
	w.running = false
	m := Member{ID: n.id, Boot: n.boot, Code: code}
	w.members = append(w.members, m)
	w.passed[n.id] = true
	w.answer = &Part{Order: order, Seq: seq, From: m, Data: data[:min(len(data), MaxResult)]}
	n.keep()
	n.passOn(now, w, *w.answer)
}

// keep forgets the oldest answers of this node when there are too many of them.
func (n *Node) keep() {
	sum := 0
	for i := len(n.waves) - 1; i >= 0; i-- {
		if w := n.waves[i]; w.answer != nil {
			if sum += len(w.answer.Data); sum > maxKept {
				w.answer = nil
			}
		}
	}
}

// abandon ends the waves of an Order that its RELEASE, the last one, has ended.
func (n *Node) abandon(now time.Time, release *wave) {
	for _, w := range n.waves {
		if w != release && w.msg.Order == release.msg.Order && !w.settled {
			w.done, w.settled, w.running, w.parts, w.answer = true, true, false, nil, nil
			w.until = now.Add(remember)
		}
	}
}

func (n *Node) tickWaves(now time.Time) {
	for _, w := range slices.Clone(n.waves) {
		if !w.done {
			n.tickWave(now, w)
		}
		if w.done && !w.settled && !now.Before(w.retry.at) {
			n.echoAgain(now, w)
		}
	}
	n.waves = slices.DeleteFunc(n.waves, func(w *wave) bool { return w.settled && !now.Before(w.until) })
}

func (n *Node) tickWave(now time.Time, w *wave) {
	if n.complete(now, w) {
		return
	}
	for _, c := range w.children {
		if !c.over && !c.accepted && !now.Before(c.retry.at) {
			n.ask(now, w, c)
		}
	}
	for _, x := range w.parts {
		if !now.Before(x.retry.at) {
			n.sendPart(now, w, x)
		}
	}
	if w.root && !now.Before(w.began.next) {
		n.caller.repeat(now, w)
	}
}

func (n *Node) nextWave() time.Time {
	var next time.Time
	for _, w := range n.waves {
		switch {
		case w.settled:
			next = earlier(next, w.until)
		case w.done:
			next = earlier(next, w.retry.at)
		default:
			next = earlier(next, w.nextStep())
		}
	}
	return next
}

func (w *wave) nextStep() time.Time {
	next := w.deadline
	if w.root {
		next = earlier(next, w.began.next)
	}
	for _, c := range w.children {
		if !c.over && !c.accepted {
			next = earlier(next, c.retry.at)
		}
	}
	for _, x := range w.parts {
		next = earlier(next, x.retry.at)
	}
	return next
}
