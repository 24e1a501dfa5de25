package lan

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"
)

func local(port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))
}

// mute returns the port of a listener that takes connections and says nothing.
func mute(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

// unused returns a port on which nobody listens.
func unused(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	n, _ := strconv.Atoi(port)
	return n
}

// Of several addresses that is kept where a member of the constellation answers,
// until the caller has enough.
func TestVisit(t *testing.T) {
	b := run(t, Options{}, nil)
	a := run(t, Options{}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	visited := make(chan bool, 1)
	go func() {
		visited <- a.Visit(ctx, []netip.AddrPort{local(unused(t)), local(unused(t)), local(b.Port()), local(unused(t))})
	}()
	hello := newFrame(100, 1)
	up := <-a.ups
	a.Send(up, hello)
	from := b.expect(t, hello)
	b.Send(from, hello) // a stranger to itself until it hears something
	a.expect(t, hello)
	spread := newFrame(80, 2)
	a.Multicast(spread)
	b.expect(t, spread)
	select {
	case <-visited:
		t.Fatal("the link ended by itself")
	default:
	}
	cancel()
	if !<-visited {
		t.Error("nobody has authenticated")
	}
	a.waitUntil(t, "the link is gone", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.links) == 0
	})
}

// A link that is there for another reason, to a peer of the Options say, outlasts a
// visit.
func TestVisitLeavesOtherLinks(t *testing.T) {
	b := run(t, Options{}, nil)
	a := run(t, Options{Peers: []string{local(b.Port()).String()}}, nil)
	hello := newFrame(100, 1)
	up := <-a.ups
	a.Send(up, hello)
	from := b.expect(t, hello)
	b.Send(from, hello)
	a.expect(t, hello)
	linked := func() *link {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.links[up]
	}
	before := linked()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if !a.Visit(ctx, []netip.AddrPort{local(b.Port())}) {
		t.Error("nobody has authenticated")
	}
	if linked() != before || before.ctx.Err() != nil {
		t.Error("the link of the peer was ended")
	}
}

// Who does not authenticate is left.
func TestVisitLeavesTheMute(t *testing.T) {
	a := run(t, Options{}, func(b *bounds) { b.first = 50 * time.Millisecond })
	if a.Visit(t.Context(), []netip.AddrPort{local(mute(t)), local(unused(t))}) {
		t.Error("somebody has authenticated")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if a.Visit(ended, []netip.AddrPort{local(mute(t))}) || a.Visit(t.Context(), nil) {
		t.Error("somebody was visited")
	}
	a.stop()
	if a.Visit(t.Context(), []netip.AddrPort{local(mute(t))}) {
		t.Error("a carrier that has stopped visits")
	}
}
