package order

import (
	"bytes"
	"crypto/ed25519"
	"maps"
	"slices"
	"time"

	"golang.org/x/crypto/blake2b"

	"github.com/musterfleet/muster"
)

// Bounds of what a node remembers of orders.
const (
	maxOrders    = 4096
	knownLeast   = 2 * maxSkew // after which the CALL's time alone refuses it
	callBurst    = 2           // of one operator
	callRate     = 2
	defaultLease = 60 * time.Second
	defaultHold  = 2*waveTime + time.Second
)

// A lock is this node's part in at most one Call or Order.
type lock struct {
	state    State
	order    OrderID
	operator NodeID
	strong   bool // break glass
	lease    time.Duration
	until    time.Time
	seq      uint32 // of the last wave that counted
}

// A known order is one whose CALL has passed: its key opens later waves, and
// the id does not count a second time.
type known struct {
	key      ed25519.PublicKey
	operator NodeID
	lease    time.Duration
	until    time.Time // when it may be forgotten
	aside    bool      // this node takes no part, and is free for others
	rival    OrderID   // in whose favour this node left the Call
}

// A verdict is what a node makes of a wave.
type verdict struct {
	code     Code
	forward  bool
	conflict bool
	rival    OrderID
}

// check opens a wave and verifies its signature: OK, Unknown if the key is not
// known, or Refused if it is wrong.
func (n *Node) check(m *Wave) (Signed, Code) {
	s, err := m.Open()
	if err != nil || s.Cluster != n.cfg.Cluster {
		return Signed{}, Refused
	}
	var key ed25519.PublicKey
	if s.Kind == KindCall {
		i := slices.IndexFunc(n.cfg.Operators, func(k ed25519.PublicKey) bool { return OperatorID(k) == s.Operator })
		if i < 0 {
			return Signed{}, Refused
		}
		key = n.cfg.Operators[i]
	} else if k := n.orders[s.Order]; k != nil {
		key = k.key
	} else {
		return Signed{}, Unknown
	}
	if !n.verify(key, m) {
		return Signed{}, Refused
	}
	return s, OK
}

func (n *Node) verify(key ed25519.PublicKey, m *Wave) bool {
	if n.flaws.verify != nil {
		return n.flaws.verify(key, m)
	}
	return m.Verify(key)
}

// decide applies the node rules to a wave whose signature is good.
func (n *Node) decide(now time.Time, w *wave, s *Signed) verdict {
	if s.Kind == KindCall {
		return n.decideCall(now, s)
	}
	k := n.orders[s.Order]
	k.until = later(k.until, now.Add(k.lease+knownLeast))
	switch s.Kind {
	case KindOrder:
		return n.decideOrder(now, s, k)
	case KindQuery:
		return n.decideQuery(now, w, s)
	case KindRenew:
		if code := n.member(s); code != OK {
			return verdict{code: code, forward: true}
		}
		n.lock.until = now.Add(n.lock.lease)
		n.save()
		n.event(Event{Kind: Extended, Order: s.Order, Until: n.lock.until})
	case KindRelease:
		if n.lock.state == Idle || n.lock.order != s.Order {
			return verdict{code: NotMember, forward: true}
		}
		n.free()
		n.abandon(now, w)
	}
	return verdict{code: OK, forward: true}
}

// member reports whether this node is in the Order of a wave that is later than
// all before, and notes the wave.
func (n *Node) member(s *Signed) Code {
	switch {
	case n.lock.state != Ordered || n.lock.order != s.Order:
		return NotMember
	case s.Seq <= n.lock.seq && !n.flaws.noMemory:
		return Stale
	}
	n.lock.seq = s.Seq
	return OK
}

func (n *Node) decideCall(now time.Time, s *Signed) verdict {
	if n.orders[s.Order] != nil && !n.flaws.noReplayProtection {
		return verdict{code: Refused}
	}
	operator := n.calls[s.Operator]
	if operator == nil {
		operator = &bucket{}
		n.calls[s.Operator] = operator // one of the configured ones
	}
	if !operator.take(now, callBurst, callRate) || len(n.orders) >= maxOrders {
		return verdict{code: Refused}
	}
	lease := time.Duration(s.Lease) * time.Millisecond
	k := &known{key: bytes.Clone(s.Key[:]), operator: s.Operator, lease: lease, until: now.Add(lease + knownLeast), aside: true}
	n.orders[s.Order] = k
	if !n.timely(now, s) {
		return verdict{code: Clock, forward: true}
	}
	if now.Before(n.cfg.HeldUntil) {
		return verdict{code: Busy, forward: true}
	}
	if s.Scope != "" && !n.selects(s.Scope) {
		return verdict{code: NotSelected, forward: true}
	}
	k.aside = false
	strong := s.Flags&FlagBreakGlass != 0
	if n.lock.state != Idle {
		rival := n.lock.order
		if !n.precedes(strong, s.Order) {
			n.event(Event{Kind: Conflicted, Order: s.Order, Rival: rival})
			return verdict{code: Busy, conflict: true, rival: rival}
		}
		n.giveUp(now, s.Order)
	}
	hold := time.Duration(s.Hold) * time.Millisecond
	if n.flaws.onePhase {
		hold = lease
	}
	n.floor = max(n.floor, s.IssuedAt)
	n.lock = lock{state: Calling, order: s.Order, operator: s.Operator, strong: strong, lease: lease, until: now.Add(hold)}
	n.save()
	n.event(Event{Kind: Called, Order: s.Order, Operator: s.Operator})
	return verdict{code: OK, forward: true}
}

// timely reports whether a CALL was made after this process began, and now. So
// nothing that was sent before a start of this machine can lock it, whoever sends
// it again.
func (n *Node) timely(now time.Time, s *Signed) bool {
	issued := time.UnixMilli(s.IssuedAt)
	return n.flaws.noReplayProtection || issued.After(n.start) && issued.Sub(now).Abs() <= maxSkew
}

// since returns the time that a CALL has to be later than, after a start. The
// caller's clock may be ahead, so that what it sent before is later than the
// start by this node's clock: after a restart of the program the CALLs are known
// that the node has entered; one of the machine has lost them, and leaves out
// all that a caller with a tolerable clock can have sent before it.
func (n *Node) since(start time.Time) time.Time {
	if n.flaws.noFloor {
		return start
	}
	if n.floor != 0 {
		start = later(start, time.UnixMilli(n.floor))
	}
	if !n.cfg.Booted.IsZero() {
		start = later(start, n.cfg.Booted.Add(maxSkew))
	}
	return start
}

func (n *Node) selects(selector string) bool {
	return n.cfg.Selects != nil && n.cfg.Selects(selector)
}

// precedes reports whether a CALL takes this node out of the Call it is in. All
// nodes decide alike, so that of two Calls at once one wins everywhere.
func (n *Node) precedes(strong bool, id OrderID) bool {
	switch {
	case n.lock.state == Ordered && !n.flaws.preemptOrders, n.flaws.noTieBreak:
		return false
	case strong != n.lock.strong:
		return strong
	}
	a, b := blake2b.Sum256(id[:]), blake2b.Sum256(n.lock.order[:])
	return bytes.Compare(a[:], b[:]) > 0
}

// giveUp leaves a Call in favour of another, and tells its caller.
func (n *Node) giveUp(now time.Time, rival OrderID) {
	old := n.lock.order
	n.event(Event{Kind: Conflicted, Order: old, Rival: rival})
	n.free()
	if k := n.orders[old]; k != nil {
		k.rival = rival
	}
	if w := n.wave(old, 0); w != nil && !w.root {
		for i, m := range w.members {
			if m.ID == n.id {
				w.members[i].Code = Busy
			}
		}
		n.object(now, w, rival)
	}
}

func (n *Node) decideOrder(now time.Time, s *Signed, k *known) verdict {
	switch {
	case n.lock.state == Calling && n.lock.order == s.Order:
	case k.rival != OrderID{}:
		return verdict{code: Busy, conflict: true, rival: k.rival}
	case k.aside, n.lock.state == Idle, n.lock.order == s.Order:
		return verdict{code: NotMember, forward: true}
	default:
		n.event(Event{Kind: Conflicted, Order: s.Order, Rival: n.lock.order})
		return verdict{code: Busy, conflict: true, rival: n.lock.order}
	}
	n.lock.state = Ordered
	n.lock.until = now.Add(n.lock.lease)
	n.lock.seq = s.Seq
	n.save()
	n.event(Event{Kind: Locked, Order: s.Order, Operator: n.lock.operator, Until: n.lock.until})
	return verdict{code: OK, forward: true}
}

// decideQuery runs a query once: that it was seen is kept before it begins.
func (n *Node) decideQuery(now time.Time, w *wave, s *Signed) verdict {
	if code := n.member(s); code != OK {
		return verdict{code: code, forward: true}
	}
	n.save()
	if s.Selector != "" && !n.selects(s.Selector) {
		return verdict{code: NotSelected, forward: true}
	}
	method, args, err := DecodeQuery(w.msg.Query)
	if err != nil {
		return verdict{code: Failed, forward: true}
	}
	w.running = true
	n.ready.Executes = append(n.ready.Executes, Query{Order: s.Order, Seq: s.Seq, Operator: n.lock.operator, Selector: s.Selector,
		Method: method, Args: args, Deadline: earlier(w.deadline, n.lock.until)})
	return verdict{forward: true}
}

// free makes the node Idle.
func (n *Node) free() {
	kept := n.lock.state == Ordered
	n.event(Event{Kind: Freed, Order: n.lock.order})
	n.lock = lock{}
	if kept {
		n.save()
	}
}

func (n *Node) tickLock(now time.Time) {
	if n.lock.state != Idle && !now.Before(n.lock.until) {
		n.free()
	}
}

// forgetOrders drops what no frame can refer to any more.
func (n *Node) forgetOrders(now time.Time) {
	if n.lock.state == Idle && n.floor != 0 && now.Sub(time.UnixMilli(n.floor)) > maxSkew {
		n.floor, n.ready.Save = 0, new([]byte) // no CALL of before it is timely any more
	}
	maps.DeleteFunc(n.orders, func(id OrderID, k *known) bool { return !now.Before(k.until) && n.lock.order != id })
}

// save keeps the lock for the next start, and the floor of CALLs. A Call is not
// kept: it is over sooner than a program has started again.
func (n *Node) save() {
	r := record{Floor: n.floor}
	if n.lock.state == Ordered {
		r = record{Order: n.lock.order, Operator: n.lock.operator, Lease: n.lock.lease.Milliseconds(), Until: n.lock.until.UnixMilli(), Seq: n.lock.seq, Floor: n.floor}
		if k := n.orders[n.lock.order]; k != nil {
			r.Key = [ed25519.PublicKeySize]byte(k.key)
		}
	}
	data := r.encode()
	n.ready.Save = &data
}

// restore takes up a lock that an earlier process of this machine held.
func (n *Node) restore(now time.Time, saved []byte) error {
	r, ok := decodeRecord(saved)
	held := r.Order != OrderID{}
	if !ok || held && r.Lease <= 0 || r.Lease > MaxLease.Milliseconds() {
		return muster.Errorf(muster.Corrupt, "the saved lock cannot be read").WithHint("remove the file if no Order can still be in force")
	}
	n.floor = r.Floor
	n.start = n.since(now)
	lease := time.Duration(r.Lease) * time.Millisecond
	// A clock that was set back must not make the lock outlast its lease.
	until := earlier(time.UnixMilli(r.Until), now.Add(lease))
	if !held || !now.Before(until) {
		n.save()
		return nil
	}
	n.orders[r.Order] = &known{key: bytes.Clone(r.Key[:]), operator: r.Operator, lease: lease, until: until.Add(knownLeast)}
	n.lock = lock{state: Ordered, order: r.Order, operator: r.Operator, lease: lease, until: until, seq: r.Seq}
	n.event(Event{Kind: Locked, Order: r.Order, Operator: r.Operator, Until: until})
	return nil
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
