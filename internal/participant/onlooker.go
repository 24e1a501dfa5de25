package participant

import (
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/musterfleet/muster/internal/cbor"
	"github.com/musterfleet/muster/internal/lan"
	"github.com/musterfleet/muster/internal/order"
)

// A program of an operator beside an agent is an onlooker: the agent has the port, and
// so hears the multicasts of others. It passes the HELLOs on, over the connection
// that the onlooker has to it anyway, in frames that never leave the machine:
//
//	[10, address that the HELLO came from, HELLO]
//
// A frame with an empty address and an empty HELLO says no more than that the agent
// passes on. An onlooker has authenticated, as all who say HELLO over a connection
// have, and could hear all of it for itself on another machine.

const (
	typeHeard    = 10
	maxOnlookers = 8
	maxAddress   = 64
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

	mu        sync.Mutex // guards onlookers
	onlookers map[lan.Address]time.Time
}

// PassOn has an agent pass the HELLOs that it hears on to programs of operators on
// this machine. It is called before Run.
func (l *LAN) PassOn() {
	t := &teller{send: l.carrier.Send, onlookers: map[lan.Address]time.Time{}}
	l.between = t.heard
}

// heard looks at what an agent receives, and lets all of it through.
func (t *teller) heard(from lan.Address, frame []byte) (lan.Address, []byte) {
	switch {
	case !isHello(frame):
	case ofThisMachine(from):
		t.welcome(time.Now(), from, frame)
	case !strings.HasPrefix(string(from), "tcp/") && len(frame) <= lan.MaxDatagram-2*maxAddress:
		t.tell(heardFrame(from, frame))
	}
	return from, frame
}

// welcome takes who says HELLO for an onlooker if it is an operator's program, and
// tells it that it will hear of others.
func (t *teller) welcome(now time.Time, from lan.Address, hello []byte) {
	f, err := order.Decode(hello)
	if err != nil {
		return
	}
	if says, ok := f.Body.(*order.Hello); !ok || says.State != order.CallerState {
		return
	}
	t.mu.Lock()
	for o, at := range t.onlookers {
		if now.Sub(at) > linkLife {
			delete(t.onlookers, o)
		}
	}
	_, known := t.onlookers[from]
	room := known || len(t.onlookers) < maxOnlookers
	if room {
		t.onlookers[from] = now
	}
	t.mu.Unlock()
	if room {
		t.send(from, heardFrame("", nil))
	}
}

// tell sends to all onlookers. One that has gone is forgotten later.
func (t *teller) tell(frame []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for o := range t.onlookers {
		t.send(o, frame)
	}
}

// An onlooker takes what the agent beside it passes on for what it has heard itself.
type onlooker struct{ told atomic.Bool }

// LookOn has a program beside an agent take what that passes on. It is called before
// Run. The result reports whether there is an agent that does.
func (l *LAN) LookOn() (told func() bool) {
	o := &onlooker{}
	l.between = o.heard
	return o.told.Load
}

func (o *onlooker) heard(from lan.Address, frame []byte) (lan.Address, []byte) {
	if !ofThisMachine(from) {
		return from, frame
	}
	of, hello, ok := parseHeard(frame)
	switch {
	case !ok:
		return from, frame
	case len(hello) == 0:
		o.told.Store(true)
		return from, nil
	}
	return of, hello
}
