package lan

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/seal"
)

const patience = time.Minute // of tests, for what takes milliseconds

func newBox(t testing.TB, cluster string) *seal.Box {
	t.Helper()
	box, err := seal.New(cluster, bytes.Repeat([]byte{7}, seal.SecretSize), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return box
}

// newFrame makes something that is a frame as far as this package can see.
func newFrame(n int, fill byte) []byte {
	head := []byte{arrayOfSeven, 2}
	for range 2 {
		head = append(head, 0x48, 1, 2, 3, 4, 5, 6, 7, 8)
	}
	head = append(head, 0x19, 0x12, fill)
	for range 2 {
		head = append(head, 0x48, 8, 7, 6, 5, 4, 3, 2, 1)
	}
	head = append(head, 0x59, byte((n-len(head)-3)>>8), byte(n-len(head)-3))
	return append(head, bytes.Repeat([]byte{fill}, n-len(head))...)
}

type arrival struct {
	from  Address
	frame []byte
}

// An agent is a carrier that runs for a test.
type agent struct {
	*Carrier
	arrivals chan arrival
	ups      chan Address // connections to peers
	gossips  atomic.Bool  // what brings a frame becomes a gossip link
	stop     func()
}

// lastPort is the last that freePort returned.
var lastPort atomic.Int32

// freePort returns a port of loopback that is free for UDP and TCP. It is below
// those that systems choose from, and not from the numbers that tests of other
// packages use: so nobody takes it before it is used, or while it is free again.
func freePort(t testing.TB) int {
	t.Helper()
	const first, all = 20_000, 4_000
	lastPort.CompareAndSwap(0, int32(os.Getpid()))
	for range all {
		port := first + int(lastPort.Add(1))%all
		if c, err := Open(Options{Box: newBox(t, "probe"), Host: "127.0.0.1", Port: port}); err == nil {
			c.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// run starts a carrier on loopback.
func run(t testing.TB, o Options, change func(*bounds)) *agent {
	t.Helper()
	if o.Box == nil {
		o.Box = newBox(t, "lab")
	}
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	a := &agent{arrivals: make(chan arrival, 1000), ups: make(chan Address, 100)}
	o.Linked = func(l Address) { a.ups <- l }
	var err error
	if a.Carrier, err = Open(o); err != nil {
		t.Fatal(err)
	}
	a.bounds.backOff, a.bounds.maxBackOff = 5*time.Millisecond, 20*time.Millisecond
	// What should work does, also on a machine that stops for a second.
	a.bounds.datagram, a.bounds.dial, a.bounds.frame = patience, patience, patience
	if change != nil {
		change(&a.bounds)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		close(started)
		done <- a.Run(ctx, func(from Address, frame []byte) {
			if a.gossips.Load() {
				a.Gossip(from)
			}
			select {
			case a.arrivals <- arrival{from, bytes.Clone(frame)}:
			default: // the test looks at a few only
			}
		})
	}()
	<-started
	a.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		done <- nil
	}
	t.Cleanup(func() { a.stop() })
	a.waitUntil(t, "it runs", func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.running != nil })
	return a
}

func (a *agent) waitUntil(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s; %+v", what, a.Counters())
		}
		time.Sleep(time.Millisecond)
	}
}

// expect waits for a frame.
func (a *agent) expect(t testing.TB, frame []byte) Address {
	t.Helper()
	select {
	case got := <-a.arrivals:
		if !bytes.Equal(got.frame, frame) {
			t.Fatalf("%d bytes from %s, want %d", len(got.frame), got.from, len(frame))
		}
		return got.from
	case <-time.After(patience):
		t.Fatalf("no frame of %d bytes came; %+v", len(frame), a.Counters())
	}
	return ""
}

// deliver sends a frame again until it comes: the system may drop a datagram when
// many come, and a connection may end with a frame on it.
func deliver(t testing.TB, a, b *agent, frame []byte) {
	t.Helper()
	wait := 5 * time.Millisecond
	b.waitUntil(t, fmt.Sprintf("%d bytes came", len(frame)), func() bool {
		a.Send(b.LocalAddr(), frame)
		wait = min(2*wait, 200*time.Millisecond)
		for {
			select {
			case got := <-b.arrivals:
				if bytes.Equal(got.frame, frame) {
					return true
				}
			case <-time.After(wait):
				return false
			}
		}
	})
}

func TestSmallFramesGoByUDP(t *testing.T) {
	a, b := run(t, Options{}, nil), run(t, Options{}, nil)
	for _, n := range []int{60, 500, MaxDatagram} {
		frame := newFrame(n, byte(n))
		a.Send(b.LocalAddr(), frame)
		if from := b.expect(t, frame); from != a.LocalAddr() {
			t.Errorf("came from %s, want %s", from, a.LocalAddr())
		}
		b.Send(a.LocalAddr(), frame)
		a.expect(t, frame)
	}
	if n := a.Counters(); n.FramesOut != 3 || n.FramesIn != 3 || n.BytesOut != n.BytesIn || n.Dropped != [reasons]uint64{} {
		t.Errorf("%+v", n)
	}
}

func TestIPv6(t *testing.T) {
	if c, err := net.ListenPacket("udp6", "[::1]:0"); err != nil {
		t.Skip("this machine has no IPv6 on loopback")
	} else {
		c.Close()
	}
	a, b := run(t, Options{Host: "::1"}, nil), run(t, Options{Host: "::1"}, nil)
	for _, n := range []int{60, 5000} {
		a.Send(b.LocalAddr(), newFrame(n, 1))
		b.expect(t, newFrame(n, 1))
	}
	a.Send("127.0.0.1:9", newFrame(60, 1))
	if n := a.Counters().Dropped[NoRoute]; n != 1 {
		t.Errorf("IPv4 without a socket for it: %d", n)
	}
}

// TestLargeFramesGoByTCP also answers on the connection that they came by.
func TestLargeFramesGoByTCP(t *testing.T) {
	a, b := run(t, Options{}, nil), run(t, Options{}, nil)
	var from Address
	for _, n := range []int{MaxDatagram + 1, 20_000, MaxFrame} {
		a.Send(b.LocalAddr(), newFrame(n, byte(n)))
		got := b.expect(t, newFrame(n, byte(n)))
		if !strings.HasPrefix(string(got), overTCP) || from != "" && got != from {
			t.Errorf("came from %s, after %q", got, from)
		}
		from = got
	}
	for _, n := range []int{60, 30_000} {
		b.Send(from, newFrame(n, 3))
		if back := a.expect(t, newFrame(n, 3)); back != overTCP+b.LocalAddr() {
			t.Errorf("the answer came from %s", back)
		}
	}
	if n := b.Counters(); n.FramesIn != 3 {
		t.Errorf("%d envelopes for 3 frames", n.FramesIn)
	}
	b.Send("tcp/127.0.0.1:9", newFrame(60, 1))
	b.Send("nonsense", newFrame(60, 1))
	b.Send(from, make([]byte, MaxFrame+1))
	if d := b.Counters().Dropped; d[NoRoute] != 2 || d[TooLarge] != 1 {
		t.Errorf("%v", d)
	}
}

func TestWithoutTCPLargeFramesGoInFragments(t *testing.T) {
	a, b := run(t, Options{}, nil), run(t, Options{}, nil)
	if err := b.listener.Close(); err != nil {
		t.Fatal(err)
	}
	for i, n := range []int{MaxDatagram + 1, 3000, 20_000} {
		a.Send(b.LocalAddr(), newFrame(n, byte(i)))
		if from := b.expect(t, newFrame(n, byte(i))); from != a.LocalAddr() {
			t.Errorf("came from %s", from)
		}
	}
	if n := b.Counters(); n.FramesIn < 2+3+18 || n.Dropped != [reasons]uint64{} {
		t.Errorf("%+v", n)
	}
	// The largest comes whole if no datagram is lost, which only the system
	// decides: so it is sent until it does.
	deliver(t, a, b, newFrame(65000, 9))
}

// TestPeers: hosts without multicast take part over connections to peers, which
// come back when a peer does.
func TestPeers(t *testing.T) {
	port := freePort(t)
	b := run(t, Options{Port: port}, nil)
	a := run(t, Options{Peers: []string{fmt.Sprintf("localhost:%d", port), "127.0.0.1:1"}}, nil)
	for round := range 3 {
		link := <-a.ups
		if want := overTCP + b.LocalAddr(); link != want {
			t.Fatalf("linked to %s, want %s", link, want)
		}
		frame := newFrame(100, byte(round))
		a.Multicast(frame)
		from := b.expect(t, frame)
		b.Multicast(newFrame(90, 1)) // goes nowhere: it is no gossip link yet
		b.Gossip(from)
		b.Gossip("tcp/127.0.0.1:9")
		b.Multicast(frame)
		a.expect(t, frame)
		if round < 2 {
			b.stop()
			b = run(t, Options{Port: port}, nil)
		}
	}
	a.Multicast(newFrame(MaxDatagram+1, 1))
	if d := a.Counters().Dropped; d[TooLarge] != 1 {
		t.Errorf("%v", d)
	}
}

// TestStrangersGetNoAnswer talks to an agent in all kinds of wrong ways.
func TestStrangersGetNoAnswer(t *testing.T) {
	b := run(t, Options{}, func(b *bounds) { b.first = 100 * time.Millisecond })
	stranger, err := newBox(t, "other").Seal(nil, newFrame(60, 1))
	if err != nil {
		t.Fatal(err)
	}
	forged, err := newBox(t, "lab").Seal(nil, newFrame(60, 1))
	if err != nil {
		t.Fatal(err)
	}
	forged[len(forged)-1] ^= 1
	for name, data := range map[string][]byte{
		"nothing": nil, "version 1": {1, 0xff}, "half a header": forged[:20], "half an envelope": forged[:100],
		"stranger": stranger, "forged": forged, "large length": append([]byte{0, 42, 0x83, 0x63}, "lab\x58\x20"+strings.Repeat("n", 32)+"\x19\xff\x00"...),
		"HTTP": []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
	} {
		tcp, err := net.Dial("tcp", string(b.LocalAddr()))
		if err != nil {
			t.Fatal(err)
		}
		defer tcp.Close()
		udp, err := net.Dial("udp", string(b.LocalAddr()))
		if err != nil {
			t.Fatal(err)
		}
		defer udp.Close()
		_, _ = tcp.Write(data)
		_, _ = udp.Write(data)
		// The end of the connection comes, and nothing before it.
		_ = tcp.SetReadDeadline(time.Now().Add(patience))
		if n, err := tcp.Read(make([]byte, 10)); n != 0 || err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s over TCP: %d bytes, %v", name, n, err)
		}
		_ = udp.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if n, err := udp.Read(make([]byte, 10)); n != 0 || err == nil {
			t.Errorf("%s over UDP: %d bytes, %v", name, n, err)
		}
	}
	b.waitUntil(t, "all datagrams were refused", func() bool {
		d := b.Counters().Dropped
		return d[Forged] >= 1 && d[Stranger] >= 1 && d[Malformed] >= 6
	})
	if n := b.Counters(); n.FramesIn != 0 || n.FramesOut != 0 {
		t.Errorf("%+v", n)
	}
}

// TestGarbageMakesNobodyDeaf has garbage thrown at an agent on UDP and TCP, also
// from the address of its neighbour, while frames are asked for and answered.
func TestGarbageMakesNobodyDeaf(t *testing.T) {
	// Silent connections stay, so that they fill up what there is, at whatever speed
	// they are opened.
	a, b := run(t, Options{}, nil), run(t, Options{}, func(b *bounds) { b.first = time.Hour })
	frame := newFrame(100, 1)
	a.Send(b.LocalAddr(), frame)
	b.expect(t, frame)
	ctx, cancel := context.WithCancel(t.Context())
	var thrown atomic.Int64
	done := make(chan struct{})
	throwers := []func(context.Context, testing.TB, *agent, *atomic.Int64){throwDatagrams("127.0.0.1"), throwDatagrams("127.0.0.2"), throwConnections}
	for _, throw := range throwers {
		go func() { throw(ctx, t, b, &thrown); done <- struct{}{} }()
	}
	for i := range 200 {
		n := 60 + i
		if i%10 == 0 {
			n = 5000 // over TCP
		}
		deliver(t, a, b, newFrame(n, byte(i)))
	}
	// The throwers are not in step: on a fast machine the frames are through before
	// there were enough connections for one to be refused.
	b.waitUntil(t, "enough was thrown, of all kinds", func() bool {
		d := b.Counters().Dropped
		return thrown.Load() > 20_000 && d[Forged] > 0 && d[Malformed] > 0 && d[Rationed] > 0 && d[Refused] > 0
	})
	cancel()
	for range throwers {
		<-done
	}
	t.Logf("%d thrown; %+v", thrown.Load(), b.Counters())
}

// TestNewcomersGetInByTCP: forged datagrams in the name of somebody who is not
// known yet use up its ration of datagrams, but not that of connections. What
// comes by TCP then opens the way for its datagrams.
func TestNewcomersGetInByTCP(t *testing.T) {
	a, b := run(t, Options{}, nil), run(t, Options{}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	var thrown atomic.Int64
	go func() { defer close(done); throwDatagrams("127.0.0.1")(ctx, t, b, &thrown) }()
	defer func() { cancel(); <-done }()
	b.waitUntil(t, "the ration is used up", func() bool { return b.Counters().Dropped[Rationed] > 0 })
	a.Send(b.LocalAddr(), newFrame(4000, 1))
	deliver(t, a, b, newFrame(80, 2))
}

// throwDatagrams sends forged and broken envelopes from the address.
func throwDatagrams(from string) func(context.Context, testing.TB, *agent, *atomic.Int64) {
	return func(ctx context.Context, t testing.TB, to *agent, thrown *atomic.Int64) {
		conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(from)}, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(string(to.LocalAddr()))))
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		good, _ := to.o.Box.Seal(nil, newFrame(100, 1))
		for i := 0; ctx.Err() == nil; i++ {
			bad := bytes.Clone(good)
			bad[i%len(bad)] ^= 0x55
			_, _ = conn.Write(bad[:len(bad)-i/7%2])
			thrown.Add(1)
		}
	}
}

// throwConnections opens connections that say nothing or something wrong, and
// keeps the silent ones open.
func throwConnections(ctx context.Context, _ testing.TB, to *agent, thrown *atomic.Int64) {
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	forged, _ := to.o.Box.Seal(nil, newFrame(100, 1))
	forged[len(forged)-1] ^= 1
	for i := 0; ctx.Err() == nil; i++ {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i%20))}, Timeout: time.Second}
		conn, err := d.DialContext(ctx, "tcp4", string(to.LocalAddr()))
		if err != nil {
			continue
		}
		thrown.Add(1)
		_, _ = conn.Write([][]byte{nil, {1, 0xff}, forged, forged[:30]}[i/20%4])
		if open = append(open, conn); len(open) > 300 {
			open[0].Close()
			open = open[1:]
		}
	}
}

// TestStrangersMakeRoom: silent connections from everywhere do not keep a
// neighbour out, and neighbours are not thrown out for them.
func TestStrangersMakeRoom(t *testing.T) {
	b := run(t, Options{}, func(b *bounds) { b.connections, b.perAddress, b.first = 4, 2, time.Hour })
	a := run(t, Options{}, nil)
	a.Send(b.LocalAddr(), newFrame(2000, 1))
	from := b.expect(t, newFrame(2000, 1))
	for i := range 20 {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i/2))}}
		conn, err := d.Dial("tcp4", string(b.LocalAddr()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	b.waitUntil(t, "strangers made room", func() bool { return b.Counters().Dropped[Refused] >= 17 })
	second := run(t, Options{}, nil)
	second.Send(b.LocalAddr(), newFrame(3000, 2))
	b.expect(t, newFrame(3000, 2))
	b.Send(from, newFrame(80, 3))
	a.expect(t, newFrame(80, 3))
	third := run(t, Options{}, nil) // two from one address, both trusted, are there
	third.Send(b.LocalAddr(), newFrame(3000, 4))
	b.waitUntil(t, "the third was refused", func() bool { return b.Counters().Dropped[Refused] >= 19 })
	conn, err := net.Dial("tcp4", string(b.LocalAddr()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if n, err := conn.Read(make([]byte, 10)); n != 0 || err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("who is refused is told %d bytes, %v", n, err)
	}
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	short := func(b *bounds) { b.idle, b.gossipIdle = 300*time.Millisecond, time.Hour }
	long := func(b *bounds) { b.idle, b.gossipIdle = time.Hour, time.Hour }
	for name, who := range map[string]struct{ dials, accepts func(*bounds) }{
		"by who dialled": {short, long}, "by who accepted": {long, short},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := run(t, Options{}, who.dials), run(t, Options{}, who.accepts)
			gossiper := run(t, Options{Peers: []string{string(b.LocalAddr())}}, who.dials)
			<-gossiper.ups
			b.gossips.Store(true) // at once, before the link is idle
			gossiper.Multicast(newFrame(70, 1))
			b.expect(t, newFrame(70, 1))
			b.gossips.Store(false)
			deliver(t, a, b, newFrame(2000, 1))
			count := func(c *agent) int { c.mu.Lock(); defer c.mu.Unlock(); return len(c.links) }
			b.waitUntil(t, "only the gossip link is left", func() bool { return count(a) == 0 && count(b) == 1 })
			deliver(t, a, b, newFrame(2000, 2)) // and a new one is made when it is needed
			if count(gossiper) != 1 {
				t.Error("the gossip link is gone")
			}
		})
	}
}

// TestQueuesAreBounded sends to one who does not read.
func TestQueuesAreBounded(t *testing.T) {
	deaf, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	a := run(t, Options{}, func(b *bounds) { b.queued = 500_000; b.frame = 50 * time.Millisecond })
	a.waitUntil(t, "frames found no room, and the connection was given up", func() bool {
		for range 100 {
			a.Send(Address(deaf.Addr().String()), newFrame(60_000, 1))
			if w := a.counters.waiting.Load(); w > 500_000 {
				t.Fatalf("%d bytes wait", w)
			}
		}
		d := a.Counters().Dropped
		return d[QueueFull] > 0 && d[SendFailed] > 0
	})
	a.stop()
	if w := a.counters.waiting.Load(); w != 0 {
		t.Errorf("%d bytes wait in the end", w)
	}
}

// TestMemoryDoesNotGrow sends 100,000 frames.
func TestMemoryDoesNotGrow(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	var received atomic.Int64
	b, err := Open(Options{Box: newBox(t, "lab"), Host: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- b.Run(ctx, func(Address, []byte) { received.Add(1) }) }()
	a := run(t, Options{}, nil)
	frame := newFrame(200, 1)
	var lost uint64
	send := func(n int) {
		for i := range n {
			a.Send(b.LocalAddr(), frame)
			if i%50 != 0 {
				continue
			}
			// Not faster than it is received: so the system has room for it. What does
			// not come for a second is lost, unless it comes later.
			under := func() uint64 { return a.counters.framesOut.Load() - b.counters.framesIn.Load() }
			for begun := time.Now(); under() > lost+50; runtime.Gosched() {
				if time.Since(begun) > time.Second {
					lost = under()
				}
			}
			lost = min(lost, under())
		}
	}
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	send(5_000)
	before := heap()
	send(100_000)
	grown := heap() - before
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	t.Logf("%d received; the heap grew by %d bytes", received.Load(), grown)
	if grown > 256<<10 || received.Load() < 50_000 {
		t.Errorf("the heap grew by %d bytes; %d frames came", grown, received.Load())
	}
}

func TestRunWaitsForAll(t *testing.T) {
	before := runtime.NumGoroutine()
	b := run(t, Options{}, nil)
	a := run(t, Options{Peers: []string{string(b.LocalAddr()), "127.0.0.1:1"}}, nil)
	<-a.ups
	a.Send(b.LocalAddr(), newFrame(3000, 1))
	b.expect(t, newFrame(3000, 1))
	a.stop()
	b.stop()
	a.Send(b.LocalAddr(), newFrame(3000, 1)) // goes nowhere, and starts nothing
	a.Send(b.LocalAddr(), newFrame(60, 1))
	a.Multicast(newFrame(60, 1))
	b.waitUntil(t, "all goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
}

func TestOpenRefuses(t *testing.T) {
	box := newBox(t, "lab")
	for name, o := range map[string]Options{
		"no box":       {},
		"port":         {Box: box, Port: 70000},
		"host":         {Box: box, Host: "localhost"},
		"peer":         {Box: box, Peers: []string{"host"}},
		"peer's port":  {Box: box, Peers: []string{"host:http"}},
		"peer's range": {Box: box, Peers: []string{"host:65536"}},
	} {
		if c, err := Open(o); muster.KindOf(err) != muster.Invalid {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
	a := run(t, Options{}, nil)
	_, err := Open(Options{Box: box, Host: "127.0.0.1", Port: a.Port()})
	if muster.KindOf(err) != muster.Unavailable || muster.AsError("", err).Hint == "" {
		t.Errorf("port taken: %v", err)
	}
}

func TestReasonsHaveNames(t *testing.T) {
	var names []string
	for r := range reasons {
		names = append(names, r.String())
	}
	if slices.Sort(names); len(slices.Compact(names)) != int(reasons) || names[0] == "" {
		t.Errorf("%q", names)
	}
}
