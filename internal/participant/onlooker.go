package participant

import (
	"maps"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/musterfleet/muster/internal/cbor"
	"github.com/musterfleet/muster/internal/lan"
	"github.com/musterfleet/muster/internal/order"
)

// A program of an operator that reaches agents over connections hears no multicasts:
// it is elsewhere, or beside an agent, which has the port. It is an onlooker: an agent
// passes on the HELLOs that it hears, and at first the last of each, over the
// connection that the onlooker has to it anyway:
//
//	[10, address that the HELLO came from, HELLO]
//
// A frame with an empty address and an empty HELLO says no more than that the agent
// passes on. An onlooker has authenticated, as all who say HELLO over a connection
// have, and could hear all of it for itself on the agents' network.

const (
	typeHeard    = 10
	maxOnlookers = 8
	maxAddress   = 64
	maxWords     = order.MaxMembers // last HELLOs that are kept
	// wordLife is how long a HELLO is worth passing on: in a network of up to 100,
	// whoever was silent for longer is forgotten.
	wordLife = 35 * time.Second
)

// heardFrame makes the frame that passes a HELLO on.
func heardFrame(from lan.Address, hello []byte) []byte {
	b := cbor.AppendUint(cbor.AppendArray(nil, 3), typeHeard)
	return cbor.AppendBytes(cbor.AppendText(b, string(from)), hello)
}

// parseHeard reads it. It is not ok when the frame is something else. Of the word that
// the agent passes on, the HELLO is empty.
func parseHeard(frame []byte) (from lan.Address, hello []byte, ok bool) {
	r := cbor.NewReader(frame)
	r.Array(3)
	kind := r.Uint()
	text := r.Text(maxAddress)
	hello = r.Bytes(lan.MaxDatagram)
	if !r.End() || kind != typeHeard {
		return "", nil, false
	}
	if text == "" && len(hello) == 0 {
		return "", nil, true
	}
	_, err := netip.ParseAddrPort(text)
	return lan.Address(text), hello, err == nil && isHello(hello)
}

// ofThisMachine reports whether an address is of a connection from or to this machine.
func ofThisMachine(a lan.Address) bool {
	text, connection := strings.CutPrefix(string(a), "tcp/")
	remote, err := netip.ParseAddrPort(text)
	return connection && err == nil && remote.Addr().IsLoopback()
}

// A teller passes on what an agent hears.
type teller struct {
	send func(lan.Address, []byte)

	mu        sync.Mutex // guards the fields below
	onlookers map[lan.Address]time.Time
	words     map[order.NodeID]word
}

// A word is the last HELLO of a participant, as it is passed on.
type word struct {
	frame []byte
	at    time.Time
}

func newTeller(send func(lan.Address, []byte)) *teller {
	return &teller{send: send, onlookers: map[lan.Address]time.Time{}, words: map[order.NodeID]word{}}
}

// PassOn has an agent pass the HELLOs that it hears on to programs of operators.
// It is called before Run.
func (l *LAN) PassOn() { l.between = newTeller(l.carrier.Send).heard }

// heard looks at what an agent receives, and lets all of it through.
func (t *teller) heard(from lan.Address, frame []byte) (lan.Address, []byte) {
	if !isHello(frame) || len(frame) > lan.MaxDatagram-2*maxAddress {
		return from, frame
	}
	f, err := order.Decode(frame)
	says, ok := f.Body.(*order.Hello)
	if err != nil || !ok {
		return from, frame
	}
	now := time.Now()
	if isLink(from) && says.State == order.CallerState {
		t.welcome(now, from)
	}
	t.tell(now, from, f.Src, heardFrame(where(from, says.TCPPort), frame))
	return from, frame
}

func isLink(a lan.Address) bool { return strings.HasPrefix(string(a), "tcp/") }

// where is the address of who said a HELLO. The port of a connection is none to
// reach anybody at, if it was not made to the agent's port.
func where(from lan.Address, port uint16) lan.Address {
	text, link := strings.CutPrefix(string(from), "tcp/")
	at, err := netip.ParseAddrPort(text)
	if !link || err != nil || port == 0 {
		return lan.Address(text)
	}
	return lan.Address(netip.AddrPortFrom(at.Addr(), port).String())
}

// welcome has an operator's program told of all others, from now on and of those that
// were heard before.
func (t *teller) welcome(now time.Time, from lan.Address) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for o, at := range t.onlookers {
		if now.Sub(at) > linkLife {
			delete(t.onlookers, o)
		}
	}
	_, known := t.onlookers[from]
	if !known && len(t.onlookers) >= maxOnlookers {
		return
	}
	t.onlookers[from] = now
	t.send(from, heardFrame("", nil))
	if known {
		return
	}
	for _, w := range t.words {
		if now.Sub(w.at) < wordLife {
			t.send(from, w.frame)
		}
	}
}

// tell sends the word of a participant to all onlookers but itself. One that has gone
// is forgotten later.
func (t *teller) tell(now time.Time, from lan.Address, who order.NodeID, frame []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for o := range t.onlookers {
		if o != from {
			t.send(o, frame)
		}
	}
	if _, known := t.words[who]; !known && len(t.words) >= maxWords {
		maps.DeleteFunc(t.words, func(_ order.NodeID, w word) bool { return now.Sub(w.at) >= wordLife })
		if len(t.words) >= maxWords {
			return
		}
	}
	t.words[who] = word{frame, now}
}

// An onlooker takes what agents pass on for what it has heard itself.
type onlooker struct {
	trusts  func(lan.Address) bool // whose word it takes
	callers bool                   // it takes HELLOs of operators alone
	told    atomic.Bool
}

// LookOn has a program beside an agent take what that passes on. It is called before
// Run. The result reports whether there is an agent that does.
func (l *LAN) LookOn() (told func() bool) {
	o := &onlooker{trusts: ofThisMachine}
	l.between = o.heard
	return o.told.Load
}

// LookFar has a program that reaches agents over connections alone take what those
// pass on. It is called before Run. A program that calls hears of operators only: it
// cannot know whether it reaches agents of another network at their addresses, and
// has those that it is connected to reach them.
func (l *LAN) LookFar(calls bool) {
	l.between = (&onlooker{trusts: isLink, callers: calls}).heard
}

func (o *onlooker) heard(from lan.Address, frame []byte) (lan.Address, []byte) {
	if !o.trusts(from) {
		return from, frame
	}
	of, hello, ok := parseHeard(frame)
	switch {
	case !ok:
		return from, frame
	case len(hello) == 0:
		o.told.Store(true)
		return from, nil
	case o.callers && !ofCaller(hello):
		return from, nil
	}
	return of, hello
}

func ofCaller(hello []byte) bool {
	f, err := order.Decode(hello)
	says, ok := f.Body.(*order.Hello)
	return err == nil && ok && says.State == order.CallerState
}
