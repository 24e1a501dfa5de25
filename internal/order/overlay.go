package order

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"golang.org/x/crypto/blake2b"
)

// Timers and bounds of the overlay.
const (
	helloEvery  = 10 * time.Second
	helloLives  = 3.5  // intervals for which a silent peer is remembered
	maxPeers    = 4096 // remembered; more are ignored until some are forgotten
	chords      = 3
	degree      = 2 + chords // waves are forwarded to so many; about as many again forward to a node, by the chords of others
	nearby      = 4          // on either side of the ring: they greet a newcomer
	linkRetry   = 5 * time.Second
	hintBurst   = 2 * maxPeers
	hintRate    = 500
	replyBurst  = 500
	replyRate   = 100
	frameBurst  = 4000 // of one proved peer
	frameRate   = 1000
	failedBurst = 20 // signatures of one peer that are wrong
	failedRate  = 2
)

// A peer is another participant. What HELLO says of it is a hint; addr and boot
// were proved by a CHAL round trip.
type peer struct {
	id      NodeID
	role    Role
	place   uint64
	heard   time.Time
	name    string
	state   State
	order   OrderID // of its Call or Order; of a caller, that which it holds
	hint    string  // its broker, as an operator has signed it
	tcpPort uint16
	reaches uint16 // how many its waves go to
	greeted BootID // of the last HELLO

	claimed struct { // by the last HELLO or CHAL
		addr Address
		boot BootID
	}
	proved bool
	addr   Address // on the network; may be empty of one that only the hub reaches
	hub    Address // over the hub, if it is reached so
	boot   BootID
	window *window
	frames bucket
	failed bucket

	asking bool // a CHAL waits for its answer; the peer is in Node.asking
	nonce  [8]byte
	retry  retry
	down   bool // it did not answer, and was not heard of since
}

// A link is an address that the adapter gave, whose node need not be known.
type link struct {
	addr  Address
	nonce [8]byte
	at    time.Time // of the next CHAL or HELLO
	id    NodeID
	known bool
}

// A Peer is what a node knows of another.
type Peer struct {
	ID         NodeID
	Name       string
	Address    Address // on the network; empty if it is reached over the hub only
	Hub        Address // over the hub; empty if it is not reached so
	Role       Role
	State      State
	Order      OrderID // of its Call or Order; of a caller, that which it holds
	BrokerHint string  // that an operator has signed, with spaces between several
	Neighbour  bool    // waves are forwarded to it
	Heard      time.Time
	Reaches    int // how many neighbours it has itself
}

// Peers returns what is known of others, in the order of their ids. The lists
// are hints: names and states are as the last HELLO had them.
func (n *Node) Peers() []Peer {
	var all []Peer
	neighbours := n.neighbours()
	for _, p := range slices.SortedFunc(maps.Values(n.peers), func(a, b *peer) int { return bytes.Compare(a.id[:], b.id[:]) }) {
		all = append(all, p.known(neighbours))
	}
	return all
}

// Peer returns what is known of one other.
func (n *Node) Peer(id NodeID) (Peer, bool) {
	p := n.peers[id]
	if p == nil {
		return Peer{}, false
	}
	return p.known(n.neighbours()), true
}

func (p *peer) known(neighbours []*peer) Peer {
	addr, hub := p.addr, p.hub
	if !p.proved {
		addr, hub = p.claimed.addr, ""
	}
	if addr.overHub() {
		addr, hub = "", addr
	}
	return Peer{p.id, p.name, addr, hub, p.role, p.state, p.order, p.hint, slices.Contains(neighbours, p), p.heard, int(p.reaches)}
}

// Neighbours returns how many nodes a wave would be forwarded to. A Caller
// needs one at least.
func (n *Node) Neighbours() int { return len(n.neighbours()) }

// Settled reports whether as many neighbours are proved as a node chooses, and no
// address is given whose node would be one more.
func (n *Node) Settled() bool { return len(n.links) == 0 && len(n.neighbours()) >= degree }

// AddPeer makes an address a neighbour, whoever is there: one to begin with, or
// a gossip link. HELLOs go there too.
func (n *Node) AddPeer(now time.Time, addr Address) {
	if !slices.ContainsFunc(n.links, func(l *link) bool { return l.addr == addr }) {
		n.links = append(n.links, &link{addr: addr, at: now})
	}
}

// RemovePeer is the reverse of AddPeer.
func (n *Node) RemovePeer(addr Address) {
	n.links = slices.DeleteFunc(n.links, func(l *link) bool { return l.addr == addr })
}

// place returns the place on the ring of an id, or with a salt that of one of
// its chords.
func place(id NodeID, salt byte) uint64 {
	sum := blake2b.Sum256(append(id[:], salt))
	return binary.BigEndian.Uint64(sum[:])
}

func (n *Node) interval() time.Duration {
	return time.Duration(float64(helloEvery) * max(1, float64(len(n.ring)+1)/100))
}

// neighbours returns the proved peers that waves are forwarded to, those on
// links among them.
func (n *Node) neighbours() []*peer {
	var all []*peer
	for _, p := range n.chosen {
		if p.proved {
			all = append(all, p)
		}
	}
	for _, l := range n.links {
		if p := n.peers[l.id]; l.known && p != nil && p.proved && p.role == RoleAgent && !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	// Until a newly chosen one is proved, another one does its work.
	for i := 0; len(all) < degree && i < len(n.ring); i++ {
		if p := n.ring[i]; p.proved && !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	return all
}

// via returns the peer's proved address of the kind that another one has.
func (p *peer) via(like Address) Address {
	if like.overHub() {
		return p.hub
	}
	return p.addr
}

// onlyHub reports whether a peer is reached over the hub, and not without it.
func (p *peer) onlyHub() bool { return p.proved && p.addr == "" && p.hub != "" }

// choose picks the neighbours: the next ones on the ring on both sides, and the
// nodes that follow some fixed points, the chords. Who chooses is not asked to
// be chosen: a link carries waves from the one to the other, and the ring makes
// sure that all are reached.
func (n *Node) choose(now time.Time) {
	n.chosen = n.chosen[:0]
	n.pick(n.place, 1)
	n.pick(n.place, -1)
	for i := range chords {
		n.pick(place(n.id, byte(i+1)), 1)
	}
	for _, p := range n.chosen {
		if !p.proved || p.boot != p.claimed.boot || p.onlyHub() && !p.claimed.addr.overHub() {
			n.challenge(now, p)
		}
	}
}

// pick adds the next usable peer from a point of the ring that is not chosen yet.
func (n *Node) pick(from uint64, step int) {
	i, _ := n.at(from)
	if step < 0 {
		i--
	}
	for range n.ring {
		p := n.ring[(i+len(n.ring))%len(n.ring)]
		if !p.down && !slices.Contains(n.chosen, p) {
			n.chosen = append(n.chosen, p)
			return
		}
		i = (i + step + len(n.ring)) % len(n.ring)
	}
}

// near reports whether this node is one of those next to a place on the ring.
func (n *Node) near(place uint64) bool {
	if len(n.ring) <= 2*nearby {
		return true
	}
	i, _ := n.at(place)
	mine, _ := n.at(n.place)
	apart := (mine - i + len(n.ring)) % len(n.ring)
	return min(apart, len(n.ring)-apart) <= nearby
}

// meet returns the peer with an id, made if there is room.
func (n *Node) meet(now time.Time, id NodeID, role Role) *peer {
	p := n.peers[id]
	if p != nil && p.role == role {
		return p
	}
	if p == nil {
		if len(n.peers) >= maxPeers {
			return nil
		}
		p = &peer{id: id, place: place(id, 0), heard: now}
		n.peers[id] = p
	}
	p.role = role
	n.ring = slices.DeleteFunc(n.ring, func(o *peer) bool { return o == p })
	if role == RoleAgent {
		i, _ := n.at(p.place)
		n.ring = slices.Insert(n.ring, i, p)
	}
	return p
}

func (n *Node) forget(p *peer) {
	n.stopAsking(p)
	delete(n.peers, p.id)
	n.ring = slices.DeleteFunc(n.ring, func(o *peer) bool { return o == p })
}

// at returns the index in the ring of a place, or of what follows it.
func (n *Node) at(place uint64) (int, bool) {
	return slices.BinarySearchFunc(n.ring, place, func(p *peer, at uint64) int { return cmp.Compare(p.place, at) })
}

// proved returns the peer that sent a frame, or nil: unless a round trip has
// shown that it runs now, the frame was meant for this very process, and its
// counter is new, the frame is not looked at.
func (n *Node) proved(now time.Time, from Address, f Frame) *peer {
	p := n.peers[f.Src]
	if n.flaws.noReplayProtection && p != nil && p.proved {
		return p
	}
	if f.Dst != n.id {
		return nil
	}
	if p == nil || !p.proved || p.boot != f.SrcBoot || f.DstBoot != n.boot {
		// One of both has started anew and the other does not know.
		if n.hints.take(now, hintBurst, hintRate) {
			n.reprove(now, from, f)
		}
		return nil
	}
	if !p.frames.take(now, frameBurst, frameRate) || !p.window.take(f.Counter) {
		return nil
	}
	p.heard = now
	if p.via(from) == "" { // this way serves for answers too, once it is proved
		p.claimed.addr = from
		n.challenge(now, p)
	}
	return p
}

func (n *Node) reprove(now time.Time, from Address, f Frame) {
	role := RoleAgent
	if p := n.peers[f.Src]; p != nil {
		role = p.role
	}
	if p := n.meet(now, f.Src, role); p != nil {
		p.claimed.addr, p.claimed.boot = from, f.SrcBoot
		n.challenge(now, p)
	}
}

// challenge asks a peer to prove that it is where it claims to be.
func (n *Node) challenge(now time.Time, p *peer) {
	if !p.asking {
		n.startAsking(p)
		n.askAgain(now, p)
	}
}

func (n *Node) startAsking(p *peer) {
	p.asking = true
	n.asking = append(n.asking, p)
	n.draw(p.nonce[:])
	p.retry = retry{}
}

func (n *Node) stopAsking(p *peer) {
	p.asking = false
	n.asking = slices.DeleteFunc(n.asking, func(o *peer) bool { return o == p })
}

func (n *Node) askAgain(now time.Time, p *peer) {
	if !p.retry.again(now) {
		n.stopAsking(p)
		p.down = !p.proved
		if known := cmp.Or(p.addr, p.hub); known != "" {
			p.claimed.addr, p.claimed.boot = known, p.boot // the claim was not true
		}
		n.choose(now)
		return
	}
	if n.replies.take(now, replyBurst, replyRate) {
		ask := p.nonce
		n.emit(Send{To: p.claimed.addr, Frame: Frame{Dst: p.id, Body: &Chal{Role: n.role, Ask: &ask}}})
	}
}

// fail notes that a peer did not answer: others take its place, until it
// answers a CHAL or is heard of again.
func (n *Node) fail(now time.Time, p *peer) {
	if p.proved {
		n.event(Event{Kind: NeighbourDown, Node: p.id})
	}
	n.stopAsking(p)
	p.proved, p.down = false, true
	n.challenge(now, p) // it may have been the network
	for _, l := range n.links {
		if l.known && l.id == p.id {
			l.at = now // or one of two carriers
		}
	}
	n.choose(now)
}

func (n *Node) onHello(now time.Time, from Address, f Frame, h *Hello) {
	p := n.peers[f.Src]
	switch {
	case h.Protocol != Protocol || NodeID(h.ID[:8]) != f.Src || !n.hints.take(now, hintBurst, hintRate):
		return
	case p != nil && p.proved && p.boot == f.SrcBoot && !p.window.take(f.Counter):
		if p.onlyHub() && !from.overHub() {
			p.claimed.addr = from // the same HELLO was faster over the hub
			n.choose(now)
		}
		return
	}
	role := RoleAgent
	if h.State == CallerState {
		role = RoleCaller
	}
	// A caller proves itself over a link before it says HELLO.
	fresh := p == nil || p.claimed.boot != f.SrcBoot || role == RoleCaller && p.greeted != f.SrcBoot
	if p = n.meet(now, f.Src, role); p == nil {
		return
	}
	again := p.down || p.onlyHub() && !from.overHub()
	if !from.overHub() || p.claimed.boot != f.SrcBoot {
		p.claimed.addr = from // whoever is over the hub has a link, which asks by itself
	}
	p.claimed.boot, p.heard, p.down = f.SrcBoot, now, false
	p.greeted = f.SrcBoot
	p.name, p.state, p.tcpPort, p.order = h.Name, h.State, h.TCPPort, OrderID{}
	if h.Order != nil {
		p.order = *h.Order
	}
	if len(h.BrokerHint) > 0 {
		n.hear(now, p, h.BrokerHint)
	}
	p.reaches = h.Neighbours
	if fresh && n.answers(p, from) && n.replies.take(now, replyBurst, replyRate) {
		n.greet(now, from, true)
	}
	if fresh || again {
		n.choose(now)
	}
}

// answers reports whether a newcomer is told who this is: by agents near it, or
// over the hub, where nobody else could tell it names; and a caller by whoever
// holds what it may want to call.
func (n *Node) answers(p *peer, from Address) bool {
	if n.role == RoleAgent {
		return n.near(p.place) || from.overHub()
	}
	return p.role == RoleCaller && n.caller != nil && n.caller.holds() != OrderID{}
}

// greet says HELLO, to a newcomer or to who may know it.
func (n *Node) greet(now time.Time, to Address, newcomer bool) {
	is := n.stance(now)
	h := &Hello{Protocol: Protocol, ID: n.cfg.ID, State: is.state, TCPPort: n.cfg.TCPPort, Neighbours: uint16(len(n.neighbours())), View: n.view(), Name: n.cfg.Name}
	if (is.order != OrderID{}) {
		h.Order = &is.order
	}
	if to == Multicast {
		n.news.told, n.news.at = is, time.Time{}
	}
	if n.role == RoleAgent {
		h.BrokerHint = n.tells(to, newcomer)
	}
	n.emit(Send{To: to, Frame: Frame{Body: h}})
}

// view is a digest of the agents that this node knows, in the order of the
// ring. Two nodes that see the same fleet have the same.
func (n *Node) view() [8]byte {
	hash, err := blake2b.New256(nil)
	if err != nil {
		panic(err) // only for a key that is too long
	}
	own := n.role == RoleAgent
	for _, p := range n.ring {
		if own && p.place > n.place {
			hash.Write(n.id[:])
			own = false
		}
		hash.Write(p.id[:])
	}
	if own {
		hash.Write(n.id[:])
	}
	return [8]byte(hash.Sum(nil))
}

func (n *Node) onChal(now time.Time, from Address, f Frame, c *Chal) {
	known := f.DstBoot == n.boot
	switch {
	case f.Dst != n.id && f.Dst != NodeID{}, !known && (c.Answer != nil || f.DstBoot != BootID{}):
		return
	case !n.hints.take(now, hintBurst, hintRate) || !n.replies.take(now, replyBurst, replyRate):
		return
	}
	p := n.meet(now, f.Src, c.Role)
	if p == nil {
		return
	}
	// A peer that was asked in two ways answers each: the second finds that it was
	// proved in between.
	open := p.asking || p.via(from) == ""
	if c.Answer != nil && (open && p.nonce == *c.Answer && p.nonce != [8]byte{} || n.answersLink(now, from, f.Src, *c.Answer)) {
		n.confirm(now, p, from, f)
	}
	if c.Ask == nil {
		return
	}
	reply := &Chal{Role: n.role, Answer: c.Ask}
	if !p.proved || p.boot != f.SrcBoot || p.via(from) == "" {
		p.claimed.addr, p.claimed.boot = from, f.SrcBoot
		if !p.asking {
			n.startAsking(p)
			p.retry.again(now)
		}
		ask := p.nonce
		reply.Ask = &ask
	}
	n.emit(Send{To: from, Frame: Frame{Dst: f.Src, DstBoot: f.SrcBoot, Body: reply}})
}

func (n *Node) answersLink(now time.Time, from Address, id NodeID, answer [8]byte) bool {
	for _, l := range n.links {
		if l.addr == from && l.nonce == answer && l.nonce != [8]byte{} {
			l.id, l.known, l.at, l.nonce = id, true, now, [8]byte{} // each question has one answer; a HELLO follows
			return true
		}
	}
	return false
}

// confirm notes that a peer has proved its address and its boot id.
func (n *Node) confirm(now time.Time, p *peer, from Address, f Frame) {
	if p.window == nil || p.boot != f.SrcBoot {
		p.window = new(window)
	}
	if !p.window.take(f.Counter) {
		return
	}
	if p.boot != f.SrcBoot {
		p.addr, p.hub = "", ""
	}
	if from.overHub() {
		p.hub = from
	} else {
		p.addr = from
	}
	p.boot, p.heard = f.SrcBoot, now
	p.claimed.addr, p.claimed.boot = cmp.Or(p.addr, from), f.SrcBoot
	p.down = false
	n.stopAsking(p)
	if !p.proved {
		p.proved = true
		n.event(Event{Kind: NeighbourUp, Node: p.id})
	}
	n.choose(now)
}

func (n *Node) tickOverlay(now time.Time) {
	for _, p := range slices.Clone(n.asking) {
		if !now.Before(p.retry.at) {
			n.askAgain(now, p)
		}
	}
	for _, l := range n.links {
		if !now.Before(l.at) {
			n.tickLink(now, l)
		}
	}
	n.tellNews(now)
	if now.Before(n.hello) {
		return
	}
	n.sweep(now)
	n.forgetOrders(now)
	n.greet(now, Multicast, false)
	// Not all at once, or they would stay in step.
	n.hello = now.Add(time.Duration(float64(n.interval()) * (0.9 + 0.2*n.rng.Float64())))
}

func (n *Node) tickLink(now time.Time, l *link) {
	if p := n.peers[l.id]; l.known && p != nil && p.proved && (!l.addr.overHub() || p.hub == l.addr) {
		l.at = now.Add(n.interval())
		n.greet(now, l.addr, false)
		return
	}
	l.at = now.Add(linkRetry)
	n.draw(l.nonce[:])
	ask := l.nonce
	n.emit(Send{To: l.addr, Frame: Frame{Body: &Chal{Role: n.role, Ask: &ask}}})
}

// sweep forgets who was silent for long.
func (n *Node) sweep(now time.Time) {
	oldest := now.Add(-time.Duration(helloLives * float64(n.interval())))
	for _, p := range n.peers {
		if p.heard.Before(oldest) {
			n.forget(p)
		}
	}
	n.choose(now)
}

func (n *Node) nextOverlay() time.Time {
	next := earlier(n.hello, n.news.at)
	for _, p := range n.asking {
		next = earlier(next, p.retry.at)
	}
	for _, l := range n.links {
		next = earlier(next, l.at)
	}
	return next
}
