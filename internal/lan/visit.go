package lan

import (
	"context"
	"net/netip"
	"time"
)

// Visit is for peers that were learnt: at where one may be, each address is tried
// once until somebody there authenticates. That one is kept as a gossip link, as one
// to a peer of the Options is, until the connection ends or the context does. Whoever
// takes the connection and does not authenticate soon is left. A link that is there
// already is only looked after, and not ended. Visit reports whether somebody
// authenticated. It may be called while Run runs.
func (c *Carrier) Visit(ctx context.Context, at []netip.AddrPort) bool {
	for _, remote := range at {
		if ctx.Err() != nil {
			return false
		}
		if c.visit(ctx, plain(remote)) {
			return true
		}
	}
	return false
}

func (c *Carrier) visit(ctx context.Context, remote netip.AddrPort) bool {
	l, made := c.gossipWith(remote)
	if l == nil {
		return false
	}
	if !made {
		select {
		case <-l.ended:
		case <-ctx.Done():
		}
		return l.trusted.Load()
	}
	stop := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		l.stop()
	}
	release := context.AfterFunc(ctx, stop)
	defer release()
	probation := time.AfterFunc(c.bounds.first, func() {
		if !l.trusted.Load() {
			stop()
		}
	})
	defer probation.Stop()
	c.attend(l)
	return l.trusted.Load()
}
