package client

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// Check looks at everything that sending depends on.
func (c *Client) Check(ctx context.Context) Health {
	var h Health
	conn, _, err := c.connection(ctx)
	c.checkIdentity(&h, muster.KindOf(err) == muster.Denied)
	c.checkDisk(ctx, &h)
	if err != nil {
		e := muster.AsError(muster.Unavailable, err)
		// Whoever reads this need not be told to look here.
		h.add("broker", "fail", strings.TrimSuffix(e.Hint, " 'muster doctor' looks"), "%s", e.Message)
		c.checkPorts(ctx, "", &h)
		h.add("clock", "warn", "try again when the broker answers", "there is no clock to compare this machine's with")
		return h
	}
	if rtt, err := conn.RTT(); err != nil {
		h.add("broker", "fail", "try again", "%v", err)
	} else {
		name, version := conn.Server()
		h.add("broker", "ok", "", "%s (nats-server %s) answers in %s", name, version, rtt.Round(10*time.Microsecond))
	}
	c.checkPorts(ctx, conn.Address(), &h)
	checkCertificate(conn.Certificate(), &h)
	checkClock(ctx, conn, &h)
	s := conn.Settings()
	h.add("layout", "ok", "", "version %d, shards: %d, replicas: %d, fleet %s", s.Version, s.Shards, s.Replicas, s.Fleet)
	c.checkStreams(ctx, conn, &h)
	checkDurability(ctx, conn, &h)
	c.checkNodes(ctx, conn, &h)
	return h
}

// portPatience is how long a port is waited for; all are tried at once.
const portPatience = 3 * time.Second

// checkPorts tries each address of the broker but for the one that has led there,
// if one has: then the others are ways more, and else each that takes no
// connections is a failure.
func (c *Client) checkPorts(ctx context.Context, connected string, h *Health) {
	if c.dial.InProcess != nil {
		h.add("port", "ok", "", "the broker is in this process")
		return
	}
	level := "fail"
	if connected != "" {
		level = "warn"
	}
	found := make([]Check, len(c.dial.URLs))
	var wg sync.WaitGroup
	for i, text := range c.dial.URLs {
		wg.Go(func() { found[i] = checkPort(ctx, text, connected, level) })
	}
	wg.Wait()
	h.Checks = append(h.Checks, found...)
}

// checkPort opens a connection to an address of the broker; level is for when
// that fails.
func checkPort(ctx context.Context, text, connected, level string) Check {
	u, err := url.Parse(text)
	if err != nil {
		return Check{"port", level, fmt.Sprintf("an address is no URL: %v", err), "mend the context"}
	}
	// What the client for NATS takes when the address has none.
	port := map[string]string{"ws": "80", "wss": "443"}[u.Scheme]
	host := net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port, "4222"))
	if host == connected {
		return Check{"port", "ok", host + " is the way that is used", ""}
	}
	d := net.Dialer{Timeout: portPatience}
	conn, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		return Check{"port", level, err.Error(), "start the broker, or see routes and firewalls on the way"}
	}
	_ = conn.Close() // it was opened only to see that it can be
	return Check{"port", "ok", host + " takes connections", ""}
}

// clockLimit is how far clocks may differ before nodes refuse commands: they
// take nothing from more than five minutes in the future.
const clockLimit = time.Minute

// checkClock compares the broker's clock, by which history is told, with ours,
// by which commands are signed.
func checkClock(ctx context.Context, conn *bus.Conn, h *Health) {
	ahead, within, err := conn.Clock(ctx)
	if err != nil {
		h.add("clock", "warn", "try again", "the broker's time is not known: %v", err)
		return
	}
	brokerClock(ahead, within, h)
}

func brokerClock(ahead, within time.Duration, h *Health) {
	if most := ahead.Abs() + within; ahead.Abs()-within <= clockLimit {
		h.add("clock", "ok", "", "the broker's and this machine's differ by %s at most", max(most.Round(time.Millisecond), time.Millisecond))
		return
	}
	side := "ahead of"
	if ahead < 0 {
		side = "behind"
	}
	h.add("clock", "warn", "set the one that is wrong; deadlines and signatures depend on this machine's",
		"the broker's is %s %s this machine's", ahead.Abs().Round(time.Second), side)
}

// checkNodeClocks compares the clocks of nodes that answered with ours.
func checkNodeClocks(h *Health, nodes []Node) {
	compared, wrong := 0, 0
	for _, n := range nodes {
		if !n.Online {
			continue
		}
		compared++
		if n.ClockOff.Abs() > clockLimit+n.RTT {
			wrong++
			h.add("node clocks", "warn", "set the clock there; deadlines and signatures depend on it", "the clock of %s differs by %s", n.Name, n.ClockOff.Round(time.Second))
		}
	}
	if compared > 0 && wrong == 0 {
		h.add("node clocks", "ok", "", "those of the nodes that answer (%d) and this machine's differ by less than %s", compared, clockLimit)
	}
}

// checkDurability tells whether a receipt outlasts a power cut, which only the
// service beside the broker can see.
func checkDurability(ctx context.Context, conn *bus.Conn, h *Health) {
	d, err := conn.Durability(ctx)
	if err != nil {
		h.add("durability", "warn", "start 'muster broker' of this version; a server of your own needs 'sync_interval: always'",
			"whether the broker syncs what it stores is not known: callers cannot see it, and the service has not looked")
		return
	}
	durability(d, h)
}

func durability(d bus.Durability, h *Health) {
	seen := d.Seen.Local().Format(time.DateTime)
	lax := 0
	for _, s := range d.Servers {
		if !s.Always {
			lax++
			h.add("durability", "warn", "give it 'sync_interval: always', as 'muster broker config' does, and start it anew",
				"%s does not sync what it stores (seen %s): a power cut may cost what was accepted", s.Server, seen)
		}
	}
	switch {
	case d.Silent > 0:
		h.add("durability", "warn", "it is looked at each hour, and when 'muster broker' starts",
			"whether %d more servers of the broker sync what they store was not seen (%s)", d.Silent, seen)
	case lax == 0:
		h.add("durability", "ok", "", "the broker syncs what it stores before it gives a receipt (servers: %d, seen %s)", len(d.Servers), seen)
	}
}
