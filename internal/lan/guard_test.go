package lan

import (
	"net/netip"
	"testing"
	"time"
)

func address(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

// try lets n frames that do not authenticate come at one time, and returns how
// many were tried.
func (g *guard) try(from netip.Addr, n int, now time.Time) int {
	tried := 0
	for range n {
		if g.allow(from, now) {
			g.failed(from, now)
			tried++
		}
	}
	return tried
}

func TestSourcesAreRationed(t *testing.T) {
	g := newGuard()
	a, b := address(1), address(2)
	if n := g.try(a, 1000, begin); n != sourceBurst {
		t.Errorf("%d tried at once", n)
	}
	if n := g.try(b, 10, begin); n != 10 {
		t.Error("one source takes another's ration")
	}
	if n := g.try(a, 1000, begin.Add(time.Second)); n != sourceRate {
		t.Errorf("%d tried in the second after", n)
	}
	if n := g.try(a, 1000, begin.Add(time.Hour)); n != sourceBurst {
		t.Errorf("%d tried after an hour", n)
	}
}

func TestTrustedSourcesAreAlwaysTried(t *testing.T) {
	g := newGuard()
	a := address(1)
	g.passed(a, begin)
	for i := range 2 * totalBurst { // strangers use up everything
		g.try(address(10+i), 1, begin)
	}
	if g.allow(address(5), begin) {
		t.Error("the total is not rationed")
	}
	if n := g.try(a, 10_000, begin); n != 10_000 {
		t.Errorf("a neighbour in whose name somebody sends garbage: %d tried", n)
	}
	if !g.allow(address(5), begin.Add(time.Second)) {
		t.Error("the total does not recover")
	}
	g.try(a, 10_000, begin.Add(trustTime))
	if g.allow(a, begin.Add(trustTime)) {
		t.Error("trust does not end")
	}
}

func TestTheTableIsBounded(t *testing.T) {
	g := newGuard()
	for i := range maxSources / 2 {
		g.passed(address(i), begin)
	}
	for i := range 20 * maxSources {
		now := begin.Add(time.Duration(i) * 10 * time.Millisecond)
		g.failed(address(1<<20+i), now)
		if len(g.sources) > maxSources {
			t.Fatalf("%d sources are kept", len(g.sources))
		}
	}
	for i := range maxSources / 2 {
		if s := g.sources[address(i)]; s == nil || s.trusted.IsZero() {
			t.Fatal("a neighbour was forgotten for a stranger")
		}
	}
	// Full of neighbours: one more is not kept, and its frames still pass.
	for i := range 2 * maxSources {
		g.passed(address(i), begin.Add(time.Hour))
	}
	if len(g.sources) > maxSources || !g.allow(address(1<<22), begin.Add(time.Hour)) {
		t.Errorf("%d sources", len(g.sources))
	}
}

func TestOneSenderHasOneRation(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "::ffff:192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"2001:db8::1", "2001:db8::2:3:4:5", true},
		{"2001:db8::1", "2001:db8:0:1::1", false},
		{"fe80::1%eth0", "fe80::2%eth0", false},
		{"fe80::1%eth0", "fe80::1%eth1", false},
	} {
		if same := network(netip.MustParseAddr(c.a)) == network(netip.MustParseAddr(c.b)); same != c.same {
			t.Errorf("%s and %s: %v", c.a, c.b, same)
		}
	}
}
