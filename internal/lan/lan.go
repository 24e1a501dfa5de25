// Package lan carries frames of the order protocol between the agents of one
// constellation, over UDP (multicast and unicast) and TCP, without any broker.
//
// A Carrier seals what it sends and opens what it receives. A frame is opaque,
// with one exception: a frame of the type Fragment is a piece of a larger one, and
// is put together here. Nothing is acknowledged or sent again, and nothing keeps
// a replayed frame from being delivered twice: that is for the protocol above.
//
//	c, err := lan.Open(lan.Options{Box: box, Port: lan.DefaultPort})
//	...
//	err = c.Run(ctx, func(from lan.Address, frame []byte) { ... })
//
// Whoever cannot seal gets no answer, and costs little: what does not
// authenticate is counted and rationed by source, and every queue, table and
// connection has a bound.
package lan

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/seal"
)

// What the agents of a constellation agree on.
const (
	DefaultPort = 6776
	// MaxDatagram is the longest frame in bytes that goes into a datagram.
	// Sealed and with the headers of IPv6 it stays below 1,400 bytes.
	MaxDatagram = 1200
	// MaxFrame is the longest frame in bytes.
	MaxFrame = seal.MaxContent
)

// The multicast groups. Both end at the first router.
var (
	group4 = netip.MustParseAddr("224.0.247.51")
	group6 = netip.MustParseAddr("ff12::6776")
)

// An Address is where a frame came from and where one can be sent: "host:port"
// for an agent's port, by UDP or, for large frames, TCP; or "tcp/host:port" for
// one connection, which is gone when it closes. Addresses can be compared.
type Address string

const overTCP = "tcp/"

func connectionAddress(remote netip.AddrPort) Address { return Address(overTCP + remote.String()) }

// parse returns the host and port, and whether the address is a connection's.
func (a Address) parse() (remote netip.AddrPort, connection bool, err error) {
	text, connection := strings.CutPrefix(string(a), overTCP)
	remote, err = netip.ParseAddrPort(text)
	return remote, connection, err
}

// Options say what a Carrier uses.
type Options struct {
	Box *seal.Box // seals and opens; required
	// Host is the IP address to listen at. "" means all, of IPv4 and IPv6, where
	// the machine has them. With a host that is given, there is no multicast,
	// since a socket that is bound to one address does not hear the group.
	Host string
	Port int // of UDP and TCP; 0 chooses one that is free
	// GroupPort is the port of the groups, if that is not Port: for a guest beside
	// an agent of the same machine, which has the port. All hear the guest, but it
	// hears only those who answer it.
	GroupPort int
	// Interfaces are the names of those to join the groups on. Without names it
	// is each one that is up and able, but for loopback.
	Interfaces []string
	Unicast    bool     // join no group and send to none
	Peers      []string // "host:port" of agents to keep a connection to
	// Linked, if there is one, is called as receive is whenever a connection to a
	// peer is up.
	Linked func(Address)
}

func (o Options) validate() error {
	if o.Box == nil {
		return muster.Errorf(muster.Invalid, "Options.Box is missing")
	}
	for _, port := range []int{o.Port, o.GroupPort} {
		if port < 0 || port > 65535 {
			return muster.Errorf(muster.Invalid, "Options: %d is no port", port)
		}
	}
	if _, err := netip.ParseAddr(o.Host); o.Host != "" && err != nil {
		return muster.Errorf(muster.Invalid, "Options.Host: %q is no IP address", o.Host)
	}
	for _, p := range o.Peers {
		_, port, err := net.SplitHostPort(p)
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		}
		if err != nil {
			return muster.Errorf(muster.Invalid, "peer %q: want host:port", p)
		}
	}
	return nil
}

// Bounds are the limits and times of a Carrier. Tests shorten them.
type bounds struct {
	connections, perAddress int           // that others opened
	dials                   int           // connections of ours, peers not counted
	queue                   int           // frames that wait for one connection
	queued                  int64         // bytes that wait for all connections
	datagram                time.Duration // for room in the system's buffer
	dial                    time.Duration // to reach a neighbour by TCP
	unreachable             time.Duration // for which TCP is not tried again
	first                   time.Duration // for a stranger's first frame
	frame                   time.Duration // for the rest of a frame that has begun, and to write one
	idle, gossipIdle        time.Duration // without a frame received, before a connection is closed
	backOff, maxBackOff     time.Duration // between attempts to reach a peer
	look                    time.Duration // between looks at the interfaces
}

func defaultBounds() bounds {
	return bounds{
		connections: 64, perAddress: 8, dials: 32,
		queue: 32, queued: 1 << 20,
		datagram: 50 * time.Millisecond,
		dial:     500 * time.Millisecond, unreachable: 30 * time.Second,
		first: 5 * time.Second, frame: 5 * time.Second,
		idle: time.Minute, gossipIdle: 5 * time.Minute,
		backOff: time.Second, maxBackOff: time.Minute,
		look: 10 * time.Second,
	}
}

// A Carrier is a machine's place on the network. Its methods may be called from
// several goroutines.
type Carrier struct {
	o        Options
	bounds   bounds
	sockets  []*socket // for each family that the machine has
	listener net.Listener
	port     int
	counters counters
	// Rations of those who do not authenticate. Streams have their own: their
	// source is proved by the connection, and must not pay for datagrams that
	// somebody sent in its name.
	datagrams, streams *guard
	messages           atomic.Uint64 // the number of the last that was cut into fragments
	multicasts         atomic.Uint64 // frames

	// delivery lets one frame at a time through to receive. It guards parts too.
	delivery sync.Mutex
	receive  func(Address, []byte)
	parts    *assembler

	// mu guards what follows.
	mu          sync.Mutex
	running     context.Context // nil before Run and after it
	work        sync.WaitGroup  // all goroutines; added to only while running
	links       map[Address]*link
	unreachable map[netip.AddrPort]time.Time // when TCP failed
}

// Open opens the sockets and joins the groups. Run or Close has to follow.
func Open(o Options) (*Carrier, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	c := &Carrier{
		o: o, bounds: defaultBounds(), datagrams: newGuard(), streams: newGuard(), parts: newAssembler(),
		links: map[Address]*link{}, unreachable: map[netip.AddrPort]time.Time{},
	}
	c.messages.Store(uint64(time.Now().UnixNano())) // unlike those of the last start
	if err := c.listen(); err != nil {
		c.close()
		return nil, muster.Errorf(muster.Unavailable, "listen on UDP and TCP port %d: %w", o.Port, err).
			WithHint("another agent may run on this machine; choose another port, or stop it")
	}
	c.look()
	return c, nil
}

// listen opens UDP and TCP on the same port. Where any port will do, one that is
// free for UDP may be taken for TCP, so that it tries again.
func (c *Carrier) listen() error {
	tries := 1
	if c.o.Port == 0 {
		tries = 20
	}
	var err error
	for range tries {
		if err = c.listenOnce(); err == nil {
			return nil
		}
		c.close()
	}
	return err
}

func (c *Carrier) listenOnce() error {
	c.sockets, c.listener, c.port = nil, nil, c.o.Port
	families, host := []family{ipv4Family, ipv6Family}, netip.Addr{}
	if c.o.Host != "" {
		host = netip.MustParseAddr(c.o.Host).Unmap() // validated
		families = slices.DeleteFunc(families, func(f family) bool { return f.wildcard.Is4() != host.Is4() })
	}
	var err error
	for _, f := range families {
		at := f.wildcard
		if host.IsValid() {
			at = host
		}
		s, failed := openSocket(f, at, c.port)
		if failed != nil {
			err = failed
			if missing(err) {
				continue
			}
			return err
		}
		c.sockets = append(c.sockets, s)
		c.port = int(s.local().Port())
		s.groupPort = cmp.Or(c.o.GroupPort, c.port)
	}
	if len(c.sockets) == 0 {
		return err
	}
	// For TCP the wildcard of IPv6, which is last, takes IPv4 along.
	at := c.sockets[len(c.sockets)-1].local()
	c.listener, err = net.Listen("tcp", at.String())
	return err
}

// Port returns the port of UDP and TCP.
func (c *Carrier) Port() int { return c.port }

// LocalAddr returns the address to reach this carrier at from the machine itself.
func (c *Carrier) LocalAddr() Address {
	a := c.sockets[0].local()
	if a.Addr().IsUnspecified() {
		loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if a.Addr().Is6() {
			loopback = netip.IPv6Loopback()
		}
		a = netip.AddrPortFrom(loopback, a.Port())
	}
	return Address(a.String())
}

// Run receives until the context ends, and then closes everything, waits for all
// that it started, and returns nil. It calls receive for one frame at a time;
// receive must not block, and must not keep the frame. Run may be called once.
func (c *Carrier) Run(ctx context.Context, receive func(from Address, frame []byte)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.receive = receive
	c.mu.Lock()
	c.running = ctx
	c.mu.Unlock()
	for _, s := range c.sockets {
		c.start(func() { c.readDatagrams(ctx, s) })
	}
	c.start(func() { c.accept(ctx) })
	for _, peer := range c.o.Peers {
		c.start(func() { c.keepPeer(ctx, peer) })
	}
	c.start(func() { c.housekeep(ctx) })
	<-ctx.Done()
	c.close()
	c.work.Wait()
	return nil
}

// start runs f in a goroutine that Run waits for, unless Run is over.
func (c *Carrier) start(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.startLocked(f)
}

func (c *Carrier) startLocked(f func()) bool {
	if c.running == nil || c.running.Err() != nil {
		return false
	}
	c.work.Go(f)
	return true
}

// Close gives up a carrier that will not run.
func (c *Carrier) Close() { c.close() }

func (c *Carrier) close() {
	for _, s := range c.sockets {
		_ = s.conn.Close() // nothing was written that could be lost
	}
	if c.listener != nil {
		_ = c.listener.Close()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running = nil
	for _, l := range c.links {
		l.stop()
	}
}

// housekeep does what is due from time to time.
func (c *Carrier) housekeep(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	looked := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			c.delivery.Lock()
			c.counters.drop(StaleFragments, c.parts.expire(now))
			c.delivery.Unlock()
			c.forgetUnreachable(now)
			if now.Sub(looked) >= c.bounds.look {
				looked = now
				c.look()
			}
		}
	}
}

// Send sends a frame to one neighbour: by UDP, or over TCP when it is longer than
// MaxDatagram, or in fragments when there is no TCP to it; over the connection
// itself when the address is one's. It does not block for the network. A frame
// that cannot be sent is dropped and counted; frame is not kept.
func (c *Carrier) Send(to Address, frame []byte) {
	remote, connection, err := to.parse()
	switch {
	case err != nil:
		c.counters.drop(NoRoute, 1)
	case len(frame) > MaxFrame:
		c.counters.drop(TooLarge, 1)
	case connection:
		c.sendLink(to, frame)
	case len(frame) <= MaxDatagram:
		c.sendDatagram(remote, frame)
	default:
		c.sendLarge(remote, frame)
	}
}

// Multicast sends a frame of at most MaxDatagram bytes to the groups, on every
// joined interface, and over all gossip links. On an interface that has both
// families IPv6 is used every third time: who has nothing else is to hear of
// others within the life of a HELLO, and nobody else needs it.
func (c *Carrier) Multicast(frame []byte) {
	if len(frame) > MaxDatagram {
		c.counters.drop(TooLarge, 1)
		return
	}
	envelope, err := c.o.Box.Seal(make([]byte, 0, len(frame)+sealRoom), frame)
	if err != nil {
		c.counters.drop(SendFailed, 1)
		return
	}
	sparing := (c.multicasts.Add(1)-1)%bothFamilies != 0
	var heard map[int]bool // interfaces on which the first family has spoken
	for _, s := range c.sockets {
		var except map[int]bool
		if sparing {
			except = heard
		}
		sent, failed := s.multicast(envelope, except, c.bounds.datagram)
		heard = s.interfaces()
		c.counters.sent(sent, len(envelope))
		c.counters.drop(SendFailed, failed)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.links {
		if l.gossip.Load() {
			c.enqueue(l, frame)
		}
	}
}

// Gossip makes the connection that a frame came from a gossip link: Multicast
// uses it too, and it may be idle for longer. It is for connections on which a
// Hello came. For other addresses it does nothing.
func (c *Carrier) Gossip(from Address) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.links[from]; l != nil {
		l.gossip.Store(true)
	}
}

// opened hands up a frame that authenticated. Fragments are put together first.
func (c *Carrier) opened(from Address, source netip.AddrPort, frame []byte, size int) {
	c.counters.received(size)
	c.delivery.Lock()
	defer c.delivery.Unlock()
	if isFragment(frame) {
		whole, err := c.parts.add(source, frame, time.Now())
		if err != nil {
			c.counters.drop(BadFragment, 1)
		}
		if whole == nil {
			return
		}
		frame = whole
	}
	c.receive(from, frame)
}
