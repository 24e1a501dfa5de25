package order

import (
	"crypto/ed25519"
	"math/rand/v2"
	"time"

	"github.com/musterfleet/muster"
)

// A Role says what a participant is.
type Role uint8

// The roles.
const (
	RoleAgent  Role = iota // can be locked, relays
	RoleCaller             // the program of an operator: neither locked nor asked to relay
)

// Config describes a participant.
type Config struct {
	ID        [16]byte // stable; its first 8 bytes are unique in the constellation
	Name      string   // for people, at most MaxName bytes
	Cluster   string   // the cluster key, at most MaxCluster bytes
	Operators []ed25519.PublicKey
	Seed      [32]byte // from a secure source: ids, nonces and order keys come from it
	TCPPort   uint16   // where this participant takes long frames, 0 for nowhere

	// Booted is when the machine started, by its clock; zero if that is not known.
	// CALLs are taken from 30 s after it on: those of before, it cannot tell.
	Booted time.Time

	// HeldUntil is how long another Order may hold the node that it cannot know
	// of, since what an earlier process left cannot be read. Until then it
	// answers CALLs with Busy.
	HeldUntil time.Time

	// Selects reports whether a scope or selector, never empty, matches this
	// node. It answers at once, from memory. nil matches nothing.
	Selects func(selector string) bool
}

// A Node is one participant. It is not safe for concurrent use.
type Node struct {
	cfg    Config
	id     NodeID
	boot   BootID
	role   Role
	rng    *rand.Rand
	start  time.Time // CALLs are to be later
	count  uint64    // the counter of the last frame
	ready  Ready
	caller root // of whose waves this is the root, or nil

	// overlay
	peers   map[NodeID]*peer
	ring    []*peer // agents, by place
	place   uint64  // of this node
	chosen  []*peer // whom waves are forwarded to
	asking  []*peer // who was challenged and has not answered
	links   []*link
	hello   time.Time // when the next HELLO is due
	news    news      // a change of state that is not told yet
	hints   bucket    // of frames whose source is not proved
	replies bucket    // of frames sent to such
	checks  bucket    // of hints that are not the own
	hint    told

	// waves and locks
	waves  []*wave
	lock   lock
	floor  int64 // Unix milliseconds: the latest time of a CALL that was entered, while that matters; else 0
	orders map[OrderID]*known
	calls  map[NodeID]*bucket // by operator

	flaws flaws
}

// flaws are rules that the tests break, to see that they notice.
type flaws struct {
	noReplayProtection bool // neither boot ids nor counters nor the floor of issuedAt
	longBelief         bool // the caller's lease outlasts the nodes'
	preemptOrders      bool // a stronger CALL takes a node out of an Order
	onePhase           bool // the caller believes after the CALL
	noTieBreak         bool // of two Calls neither precedes
	noFloor            bool // CALLs of before the start count by the time that they bear
	noMemory           bool // what a wave asks for is done at each repetition
	// verify replaces the check of a signature, to make thousands of runs cheap.
	verify func(key ed25519.PublicKey, w *Wave) bool
}

// A Ready is what must be done now, in the order of its fields.
type Ready struct {
	Save     *[]byte // the new content of the lock's file; empty: remove it; nil: no change
	Sends    []Send
	Executes []Query
	Events   []Event
}

// Empty reports whether there is nothing to do.
func (r *Ready) Empty() bool {
	return r.Save == nil && len(r.Sends)+len(r.Executes)+len(r.Events) == 0
}

// A Send asks for one frame to go to an address.
type Send struct {
	To      Address
	TCPPort uint16 // where the receiver takes frames that are too long for UDP; 0: nowhere known
	Frame   Frame
}

// A Query asks the host to run a method. It answers with Finished, once.
type Query struct {
	Order    OrderID
	Seq      uint32
	Operator NodeID // OperatorID of the key that called
	Selector string // which has matched already
	Method   string
	Args     []byte
	Deadline time.Time // when the answer is of no use any more
}

// An EventKind says what happened.
type EventKind uint8

// The kinds of events. The fields of an Event that each sets are named; Order
// is set by all but the first two and the last.
const (
	NeighbourUp   EventKind = 1 + iota // Node: waves go there
	NeighbourDown                      // Node: it stopped answering
	Called                             // Operator: this node waits for the Order
	Locked                             // Operator, Until: it is in Order; also at a start with a saved lock
	Extended                           // Until: the Order was renewed
	Freed                              // it is Idle again
	Conflicted                         // Rival: the id in whose favour the Call is refused or given up

	// of a Caller
	CallWon     // Members, Absent, Until
	CallLost    // Rival if known, Absent, Backoff: how long to wait before another Call
	Answered    // Seq, Member, Data: one node's answer to a query
	QueryDone   // Seq, Absent: nothing more comes
	RenewDone   // Seq, Members, Absent, Until
	ReleaseDone // Seq, Members, Absent: who may still be locked, Until at the latest
	LeaseOver   // nothing is believed locked any more

	Hinted // Data: the newest hint of the broker's address, to be kept for TakeHint after a start; no Order
)

// An Event is for a log or a person.
type Event struct {
	Kind     EventKind
	Order    OrderID
	Rival    OrderID
	Node     NodeID
	Operator NodeID
	Seq      uint32
	Member   Member
	Data     []byte
	Members  []Member // who did what was asked
	Absent   []Member // who did not, and why
	Until    time.Time
	Backoff  time.Duration
}

// New starts a participant that can be locked. saved is the content of the
// lock's file, empty if there is none. An unreadable one is an error of kind
// Corrupt; whoever starts without it may run a query again.
func New(cfg Config, now time.Time, saved []byte) (*Node, error) {
	n, err := newNode(cfg, RoleAgent, now)
	if err != nil || len(saved) == 0 {
		return n, err
	}
	return n, n.restore(now, saved)
}

func newNode(cfg Config, role Role, now time.Time) (*Node, error) {
	switch {
	case len(cfg.Name) > MaxName:
		return nil, muster.Errorf(muster.Invalid, "the name has %d bytes; %d are possible", len(cfg.Name), MaxName)
	case len(cfg.Cluster) > MaxCluster:
		return nil, muster.Errorf(muster.Invalid, "the cluster key has %d bytes; %d are possible", len(cfg.Cluster), MaxCluster)
	}
	n := &Node{cfg: cfg, id: NodeID(cfg.ID[:8]), role: role, rng: rand.New(rand.NewChaCha8(cfg.Seed)), start: now, hello: now,
		peers: map[NodeID]*peer{}, orders: map[OrderID]*known{}, calls: map[NodeID]*bucket{}}
	n.start = n.since(now)
	n.place = place(n.id, 0)
	n.draw(n.boot[:])
	return n, nil
}

// draw fills b from the node's random source.
func (n *Node) draw(b []byte) {
	for i := range b {
		b[i] = byte(n.rng.Uint32())
	}
}

// ID returns the node's id.
func (n *Node) ID() NodeID { return n.id }

// Boot returns the id of this start.
func (n *Node) Boot() BootID { return n.boot }

// A Status says what a node is doing.
type Status struct {
	State    State
	Order    OrderID // of the Call or Order
	Operator NodeID
	Until    time.Time // when it ends by itself
}

// Status returns the node's state at a time.
func (n *Node) Status(now time.Time) Status {
	if n.role == RoleCaller {
		return Status{State: CallerState}
	}
	if n.lock.state == Idle || !now.Before(n.lock.until) {
		return Status{State: Idle}
	}
	return Status{n.lock.state, n.lock.order, n.lock.operator, n.lock.until}
}

// Receive takes a frame that an authentic envelope contained.
func (n *Node) Receive(now time.Time, from Address, f Frame) {
	n.Tick(now) // what is over is over before the frame counts
	defer n.notice(now)
	if f.Src == n.id || f.Body == nil || !f.Body.valid() {
		return
	}
	switch b := f.Body.(type) {
	case *Hello:
		n.onHello(now, from, f, b)
		return
	case *Chal:
		n.onChal(now, from, f, b)
		return
	}
	p := n.proved(now, from, f)
	if p == nil {
		return
	}
	switch b := f.Body.(type) {
	case *Wave:
		n.onWave(now, p, b)
	case *Ack:
		n.onAck(now, p, b)
	case *Echo:
		n.onEcho(now, p, b)
	case *Dup:
		n.onDup(now, p, b)
	case *Fack:
		n.onFack(p, b)
	case *Part:
		n.onPart(now, p, b)
	}
}

// Tick lets time pass. It may be called at any time.
func (n *Node) Tick(now time.Time) {
	n.tickLock(now)
	n.tickWaves(now)
	n.tickOverlay(now)
	if n.caller != nil {
		n.caller.tick(now)
	}
	n.notice(now)
}

// Next returns when Tick must be called. It is never zero.
func (n *Node) Next() time.Time {
	next := n.nextOverlay()
	next = earlier(next, n.nextWave())
	if n.lock.state != Idle {
		next = earlier(next, n.lock.until)
	}
	if n.caller != nil {
		next = earlier(next, n.caller.next())
	}
	return next
}

// earlier returns the earlier of two times; zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// Ready returns what must be done, and forgets it.
func (n *Node) Ready() Ready {
	r := n.ready
	n.ready = Ready{}
	return r
}

func (n *Node) event(e Event) { n.ready.Events = append(n.ready.Events, e) }

// send queues a frame for a peer that was proved. One that is reached in two ways
// gets the same frame, with the same counter, on both: only the first counts,
// and neither way has to fail before the other is used.
func (n *Node) send(p *peer, body Body) {
	n.count++
	f := Frame{Src: n.id, SrcBoot: n.boot, Counter: n.count, Dst: p.id, DstBoot: p.boot, Body: body}
	if p.addr != "" {
		n.ready.Sends = append(n.ready.Sends, Send{To: p.addr, TCPPort: p.tcpPort, Frame: f})
	}
	if p.hub != "" {
		n.ready.Sends = append(n.ready.Sends, Send{To: p.hub, Frame: f})
	}
}

func (n *Node) emit(s Send) {
	n.count++
	s.Frame.Src, s.Frame.SrcBoot, s.Frame.Counter = n.id, n.boot, n.count
	n.ready.Sends = append(n.ready.Sends, s)
}
