package order

import (
	"crypto/ed25519"
	"encoding/hex"
	"strings"
)

// Protocol is the version of the frames, spoken in HELLO.
const Protocol = 0

// Limits of what is sent and accepted.
const (
	MaxFrame    = 65000     // bytes of an encoded frame; with the envelope's overhead it fits into 64 KiB
	MaxResult   = 32 << 10  // bytes of one answer to a query
	MaxArgs     = 16 << 10  // bytes of a query's arguments
	MaxMethod   = 64        // bytes of a query's method
	MaxSelector = 4 << 10   // bytes of a selector or scope
	MaxName     = 128       // bytes of a node's name
	MaxCluster  = 32        // bytes of the cluster key
	MaxHint     = 512       // bytes of a broker hint
	MaxMembers  = 2000      // nodes named in one ECHO, and so in one Order
	MaxMissing  = 1000      // nodes that an ECHO names as missing
	maxHops     = 64        // of a wave
	maxSigned   = 6 << 10   // bytes of a signed body
	maxBody     = 17 << 10  // bytes of a query's body
	maxQueryMs  = 900 * 1e3 // budget of a query
)

// A NodeID names a node in frames: the first 8 bytes of its stable id.
type NodeID [8]byte

// String returns the id in hexadecimal.
func (id NodeID) String() string { return hex.EncodeToString(id[:]) }

// A BootID is random for each start of a process.
type BootID [8]byte

// An OrderID names one Call for Order and what follows from it. The caller
// draws it at random.
type OrderID [16]byte

// String returns the id in hexadecimal.
func (id OrderID) String() string { return hex.EncodeToString(id[:]) }

// An Address is where frames come from and go to. Its form is the adapter's.
type Address string

// Multicast is the address of everybody in reach.
const Multicast Address = "*"

// Hub begins the addresses of a carrier on which a caller reaches every agent by
// itself, and agents reach callers only: a broker of messages. The caller makes
// each of them a link with AddPeer, so that a wave is a star of depth one. A
// participant that is reached over the hub and on the network as well gets each
// frame in both ways.
const Hub = "nats/"

func (a Address) overHub() bool { return strings.HasPrefix(string(a), Hub) }

// A Type says what a frame carries.
type Type uint8

// The types of frames. A fragment is the carrier's business: Decode refuses it.
const (
	TypeHello Type = 1 + iota
	TypeWave
	TypeAck
	TypeEcho
	TypeDup
	TypeFack
	TypePart
	TypeFrag
	TypeChal
)

// A Kind says what a wave asks for.
type Kind uint8

// The kinds of waves.
const (
	KindCall Kind = 1 + iota
	KindOrder
	KindQuery
	KindRenew
	KindRelease
)

// A State is what a node says of itself.
type State uint8

// The states of a node. A caller is never locked.
const (
	Idle State = iota
	Calling
	Ordered
	CallerState
)

// String returns the state's name.
func (s State) String() string {
	switch s {
	case Idle:
		return "idle"
	case Calling:
		return "call"
	case Ordered:
		return "order"
	case CallerState:
		return "caller"
	}
	return "unknown"
}

// A Code is a node's part in a wave's answer.
type Code uint8

// The codes. All but OK leave the node out of what the wave asked for.
const (
	OK          Code = iota
	Busy             // it is in another Call or Order
	Clock            // the CALL's time does not fit its clock or its own start
	Refused          // it knows the id already, the operator calls too often, or it has no room
	NotMember        // it relays, but is not locked to this Order
	Unknown          // it does not know this Order, and cannot check or relay the wave
	NotSelected      // scope or selector do not match it
	Stale            // it has seen a later wave of this Order
	Denied           // its host does not permit the method
	Failed           // the method ran and failed
	Late             // the query had not ended when the wave's time was over
	NoAnswer         // nothing was heard of it; never sent
)

// String returns what a code means, in a few words.
func (c Code) String() string {
	words := [...]string{"ok", "busy with another order", "its clock or its start does not fit the call's time", "refused",
		"not a member", "does not know the order", "not selected", "overtaken by a later request", "denied", "failed",
		"not finished in time", "no answer"}
	if int(c) < len(words) {
		return words[c]
	}
	return "unknown code"
}

// A Frame is one message between neighbours.
type Frame struct {
	Src     NodeID
	SrcBoot BootID
	Counter uint64 // of the source's process, from 1, never repeated
	Dst     NodeID // zero in HELLO, and in a CHAL to an address whose node is unknown
	DstBoot BootID // zero where it is not known yet
	Body    Body
}

// A Body is what a frame carries: *Hello, *Wave, *Ack, *Echo, *Dup, *Fack,
// *Part or *Chal.
type Body interface {
	Type() Type
	valid() bool // within the limits
	append([]byte) []byte
}

// A Hello makes a node known. It is a hint: nothing is sent to its source
// before a CHAL has proved that it is there.
type Hello struct {
	Protocol   uint8
	ID         [16]byte // the stable id
	State      State
	Order      *OrderID // in Call or Order
	TCPPort    uint16   // 0: none
	Neighbours uint16   // nodes that waves are forwarded to
	View       [8]byte  // digest of the ids of the agents it knows, its own among them
	Name       string
	BrokerHint []byte // where a newcomer finds the fleet's broker: see OpenHint; nil: not told now
}

// A wave that is repeated has a number of its own: in frames, Seq is that of the
// signed part and, in its upper 8 bits, how often the wave was repeated.
const (
	firstRepeat = 1 << 24
	MaxSeq      = firstRepeat - 1 // of a signed part
)

// A Wave is one request on its way through the overlay.
type Wave struct {
	Order  OrderID
	Seq    uint32
	Kind   Kind
	Budget uint32 // milliseconds in which the receiver has to echo
	Hops   uint8
	Signed []byte // see Signed
	Sig    [ed25519.SignatureSize]byte
	Query  []byte // of a QUERY only: see EncodeQuery; Signed holds its hash

	// Want has, of a QUERY that is repeated, the nodes that are to send their
	// answers again if they have run it; empty: all.
	Want []NodeID
}

func (w *Wave) repeated() bool { return w.Seq > MaxSeq }

// An Ack says that a WAVE or a PART has arrived.
type Ack struct {
	Order OrderID
	Seq   uint32
	Of    Type   // TypeWave or TypePart
	Part  NodeID // whose PART; zero for a WAVE
}

// A Member is one node's part in a wave.
type Member struct {
	ID   NodeID
	Boot BootID
	Code Code
}

// Flags of an Echo.
const (
	EchoConflict uint8 = 1 << iota // some node is in another Call or Order
	EchoPartial                    // not everything below was heard of
)

// An Echo answers a wave for a whole subtree.
type Echo struct {
	Order   OrderID
	Seq     uint32
	Flags   uint8
	Rival   *OrderID // with EchoConflict: what is in the way
	Members []Member
	Missing []NodeID // neighbours that did not answer
}

// A Dup answers a WAVE whose receiver has it from another neighbour.
type Dup struct {
	Order OrderID
	Seq   uint32
}

// A Fack says that an ECHO has arrived. It never names anything else.
type Fack struct {
	Order    OrderID
	Seq      uint32
	Conflict bool // the ECHO that arrived had the conflict flag
}

// A Part is one node's answer to a query, on its way up.
type Part struct {
	Order OrderID
	Seq   uint32
	From  Member
	Data  []byte
}

// A Chal proves that a node is at an address. The first asks, the second
// answers and asks, the third answers.
type Chal struct {
	Role   Role
	Ask    *[8]byte
	Answer *[8]byte
}

// Type returns the frame type of the body.
func (*Hello) Type() Type { return TypeHello }

// Type returns the frame type of the body.
func (*Wave) Type() Type { return TypeWave }

// Type returns the frame type of the body.
func (*Ack) Type() Type { return TypeAck }

// Type returns the frame type of the body.
func (*Echo) Type() Type { return TypeEcho }

// Type returns the frame type of the body.
func (*Dup) Type() Type { return TypeDup }

// Type returns the frame type of the body.
func (*Fack) Type() Type { return TypeFack }

// Type returns the frame type of the body.
func (*Part) Type() Type { return TypePart }

// Type returns the frame type of the body.
func (*Chal) Type() Type { return TypeChal }

func (h *Hello) valid() bool {
	return h.State <= CallerState && len(h.Name) <= MaxName && len(h.BrokerHint) <= MaxHint
}

func (w *Wave) valid() bool {
	return w.Kind >= KindCall && w.Kind <= KindRelease && w.Hops <= maxHops && w.Budget <= maxQueryMs &&
		len(w.Signed) <= maxSigned && len(w.Query) <= maxBody && (len(w.Query) > 0) == (w.Kind == KindQuery) &&
		len(w.Want) <= MaxMissing && (len(w.Want) == 0 || w.Kind == KindQuery && w.repeated())
}

func (a *Ack) valid() bool { return a.Of == TypeWave && a.Part == NodeID{} || a.Of == TypePart }

func (e *Echo) valid() bool {
	return e.Flags <= EchoConflict|EchoPartial && len(e.Members) <= MaxMembers && len(e.Missing) <= MaxMissing
}

func (d *Dup) valid() bool  { return true }
func (f *Fack) valid() bool { return true }
func (p *Part) valid() bool { return len(p.Data) <= MaxResult }
func (c *Chal) valid() bool { return c.Role <= RoleCaller && (c.Ask != nil || c.Answer != nil) }
