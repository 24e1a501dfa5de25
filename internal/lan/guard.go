package lan

import (
	"net/netip"
	"sync"
	"time"
)

// Rations of what does not authenticate, in frames.
const (
	sourceRate, sourceBurst = 50, 100
	totalRate, totalBurst   = 5000, 5000
	trustTime               = 5 * time.Minute
	maxSources              = 1024
)

// A guard rations the work that strangers can cause. A source that fails to
// authenticate runs out of tokens, and is then not even tried. One that
// authenticated not long ago is always tried: who sends garbage in a neighbour's
// name must not make this agent deaf to the neighbour.
type guard struct {
	mu      sync.Mutex // guards all
	total   bucket
	sources map[netip.Addr]*source
}

type source struct {
	bucket
	trusted time.Time // until then
}

func newGuard() *guard {
	return &guard{total: bucket{tokens: totalBurst}, sources: map[netip.Addr]*source{}}
}

// allow tells whether to try what came from the address.
func (g *guard) allow(from netip.Addr, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.sources[network(from)]
	if s != nil && now.Before(s.trusted) {
		return true
	}
	if s != nil && s.fill(now, sourceRate, sourceBurst) < 1 {
		return false
	}
	return g.total.fill(now, totalRate, totalBurst) >= 1
}

// failed takes tokens for what did not authenticate.
func (g *guard) failed(from netip.Addr, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.total.fill(now, totalRate, totalBurst) >= 1 {
		g.total.tokens--
	}
	if s := g.source(network(from), now); s != nil && s.fill(now, sourceRate, sourceBurst) >= 1 {
		s.tokens--
	}
}

// passed notes that something of the address authenticated.
func (g *guard) passed(from netip.Addr, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.source(network(from), now); s != nil {
		s.trusted = now.Add(trustTime)
	}
}

// source finds or makes the entry of an address. When the table is full of
// sources that matter, it returns nil, and only the total is rationed.
func (g *guard) source(from netip.Addr, now time.Time) *source {
	if s := g.sources[from]; s != nil {
		return s
	}
	if len(g.sources) >= maxSources && !g.sweep(now) {
		return nil
	}
	s := &source{bucket: bucket{sourceBurst, now}}
	g.sources[from] = s
	return s
}

// sweep makes room: entries that say nothing go, else any that is not trusted.
func (g *guard) sweep(now time.Time) bool {
	var victim netip.Addr
	for a, s := range g.sources {
		switch {
		case now.Before(s.trusted):
		case s.fill(now, sourceRate, sourceBurst) >= sourceBurst:
			delete(g.sources, a)
		default:
			victim = a
		}
	}
	if len(g.sources) >= maxSources {
		delete(g.sources, victim)
	}
	return len(g.sources) < maxSources
}

// network is what one sender can choose its address from: with IPv6, 64 bits.
func network(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if a.Is6() && !a.IsLinkLocalUnicast() {
		p, _ := a.WithZone("").Prefix(64) // 64 is a length that it has
		return p.Addr()
	}
	return a
}

// A bucket holds tokens.
type bucket struct {
	tokens float64
	filled time.Time
}

// fill adds what the time that passed brings, and returns the tokens.
func (b *bucket) fill(now time.Time, rate, burst float64) float64 {
	if passed := now.Sub(b.filled); passed > 0 {
		b.tokens = min(burst, b.tokens+rate*passed.Seconds())
		b.filled = now
	}
	return b.tokens
}
