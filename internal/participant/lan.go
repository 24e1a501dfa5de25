package participant

import (
	"context"
	"net/netip"
	"strings"
	"sync/atomic"

	"github.com/musterfleet/muster/internal/lan"
	"github.com/musterfleet/muster/internal/order"
)

// A LAN is the carrier over UDP and TCP. Its addresses have no scheme.
type LAN struct {
	carrier  *lan.Carrier
	receiver atomic.Pointer[Receiver]
	// between, if there is one, sees what is received first, and may replace it; what
	// it leaves empty is for nobody else. See onlooker.go.
	between func(lan.Address, []byte) (lan.Address, []byte)
}

// OpenLAN opens the sockets. Run, or Close, has to follow. o.Linked is the LAN's
// own.
func OpenLAN(o lan.Options) (*LAN, error) {
	l := &LAN{}
	o.Linked = func(a lan.Address) {
		if r := l.receiver.Load(); r != nil {
			(*r).Link(order.Address(a))
		}
	}
	c, err := lan.Open(o)
	if err != nil {
		return nil, err
	}
	l.carrier = c
	return l, nil
}

// Scheme returns the empty scheme.
func (l *LAN) Scheme() string { return "" }

// Port returns the port of UDP and TCP.
func (l *LAN) Port() int { return l.carrier.Port() }

// LocalAddr returns the address to reach this carrier at from the machine itself.
func (l *LAN) LocalAddr() string { return string(l.carrier.LocalAddr()) }

// Counters returns what was counted so far.
func (l *LAN) Counters() lan.Counters { return l.carrier.Counters() }

// Send sends to one neighbour.
func (l *LAN) Send(to order.Address, frame []byte) { l.carrier.Send(lan.Address(to), frame) }

// Multicast sends to all in reach.
func (l *LAN) Multicast(frame []byte) { l.carrier.Multicast(frame) }

// Visit keeps a link to a peer that was learnt; see lan.Carrier.
func (l *LAN) Visit(ctx context.Context, at []netip.AddrPort) bool { return l.carrier.Visit(ctx, at) }

// Close gives up a carrier that will not run.
func (l *LAN) Close() { l.carrier.Close() }

// Run brings frames until the context ends.
func (l *LAN) Run(ctx context.Context, r Receiver) error {
	l.receiver.Store(&r)
	return l.carrier.Run(ctx, func(from lan.Address, frame []byte) {
		if l.between != nil {
			if from, frame = l.between(from, frame); len(frame) == 0 {
				return
			}
		}
		if isHello(frame) && strings.HasPrefix(string(from), "tcp/") {
			// Who says HELLO over a connection has no other way to be found.
			l.carrier.Gossip(from)
			r.Link(order.Address(from))
		}
		r.Receive(order.Address(from), frame)
	})
}

// isHello looks at the type of a frame, the first of its seven elements.
func isHello(frame []byte) bool {
	return len(frame) > 1 && frame[0] == 0x87 && frame[1] == byte(order.TypeHello)
}
