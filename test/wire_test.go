package test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// A wire is a way to the broker that delays what it carries, and that can keep
// it back without breaking a connection, as a network does that loses packets.
type wire struct {
	w     *world
	wg    sync.WaitGroup
	delay time.Duration // each way
	loses int           // of so many parcels one has to be sent again, 800 ms later; 0 for none

	mu   sync.Mutex // guards open
	open chan struct{}
}

func (w *world) newWire(delay time.Duration) *wire {
	wire := &wire{w: w, delay: delay, open: make(chan struct{})}
	close(wire.open)
	w.t.Cleanup(wire.wg.Wait) // after the connections of whoever uses it
	return wire
}

func (l *wire) InProcessConn() (net.Conn, error) {
	server, err := l.w.InProcessConn()
	if err != nil {
		return nil, err
	}
	here, there := net.Pipe()
	l.wg.Go(func() { l.carry(there, server) })
	l.wg.Go(func() { l.carry(server, there) })
	return here, nil
}

// setSilent keeps back what is carried, or lets it through again.
func (l *wire) setSilent(silent bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if silent {
		l.open = make(chan struct{})
	} else {
		close(l.open)
	}
}

// carry copies until one side ends.
func (l *wire) carry(to, from net.Conn) {
	type parcel struct {
		data []byte
		due  time.Time
	}
	parcels := make(chan parcel, 1<<16)
	l.wg.Go(func() {
		defer to.Close()
		for p := range parcels {
			time.Sleep(time.Until(p.due))
			l.mu.Lock()
			open := l.open
			l.mu.Unlock()
			<-open
			_, _ = to.Write(p.data) // what an ended connection was sent is lost
		}
	})
	defer close(parcels)
	for i := 1; ; i++ {
		b := make([]byte, 32<<10)
		n, err := from.Read(b)
		if n > 0 {
			due := time.Now().Add(l.delay)
			if l.loses > 0 && i%l.loses == 0 {
				due = due.Add(800 * time.Millisecond)
			}
			parcels <- parcel{b[:n], due}
		}
		if err != nil {
			return
		}
	}
}

// over is a client whose only way to the broker is the wire.
func (w *world) over(l *wire) *client.Client {
	w.t.Helper()
	c, err := client.Connect(w.t.Context(), client.Options{InProcess: l, Identity: w.id, OutboxDir: filepath.Join(w.dir, "wire-outbox")})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	return c
}

// talk writes a number every second, for five minutes.
func talk(stdout io.Writer) {
	for i := range 300 {
		fmt.Fprintln(stdout, i)
		time.Sleep(time.Second)
	}
}

// What is followed says once that the broker is away and once that it is back,
// and misses and repeats nothing: neither when the broker is stopped nor when
// the network lets nothing through, for a short while or for long.
func TestFollowSaysThatTheBrokerIsAway(t *testing.T) {
	for name, test := range map[string]struct {
		away     time.Duration
		stopped  bool
		silently time.Duration // until it is told
	}{
		"stopped":       {away: time.Minute, stopped: true, silently: time.Second},
		"silent":        {away: 13 * time.Second, silently: 12 * time.Second},
		"silent longer": {away: 2 * time.Minute, silently: 12 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				w := newWorld(t)
				w.node("n1", &probe{name: "test.talk", write: talk})
				l := w.newWire(10 * time.Millisecond)
				c := w.over(l)
				time.Sleep(time.Second)
				r := w.send("test.talk", "x", nil, "n1")
				var links []client.Link
				var text strings.Builder
				states := map[muster.State]int{}
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				ended := make(chan error, 1)
				go func() {
					ended <- c.Follow(ctx, r.ID, func(u client.Update) error {
						switch {
						case u.Link != nil:
							links = append(links, *u.Link)
						case u.Chunk != nil:
							text.Write(u.Chunk.Data)
						case u.Status != nil:
							states[u.Status.State]++
						}
						return nil
					})
				}()
				time.Sleep(20 * time.Second)
				lost := time.Now()
				if test.stopped {
					w.stopBroker()
				} else {
					l.setSilent(true)
				}
				time.Sleep(test.away)
				if test.stopped {
					w.startBroker()
				} else {
					l.setSilent(false)
				}
				back := time.Now()
				if err := <-ended; err != nil {
					t.Errorf("follow: %v, with %v", err, links)
				}
				var want strings.Builder
				for i := range 300 {
					fmt.Fprintln(&want, i)
				}
				if text.String() != want.String() {
					t.Errorf("output is not what was written: %q", text.String())
				}
				if states[muster.Running] != 1 || states[muster.Done] != 1 {
					t.Errorf("states were told as %v", states)
				}
				if len(links) != 2 || !links[0].Lost || links[1].Lost {
					t.Fatalf("got news %v of the link, want its loss and its return", links)
				}
				if d := links[0].Since.Sub(lost); d < -test.silently || d > test.silently {
					t.Errorf("it is said to be lost %s after it was", d)
				}
				if d := links[1].Since.Sub(back); d < 0 || d > 15*time.Second {
					t.Errorf("it is said to be back %s after it was", d)
				}
			})
		})
	}
}

// Events that are followed come once each, whatever becomes of the broker.
func TestEventsOutliveTheBroker(t *testing.T) {
	for name, silent := range map[string]bool{"stopped": false, "silent": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				w := newWorld(t)
				w.node("n1", &probe{name: "test.probe"})
				l := w.newWire(10 * time.Millisecond)
				c := w.over(l)
				time.Sleep(time.Second)
				began := time.Now()
				send := func() {
					for i := range 3 {
						w.send("test.probe", fmt.Sprint(i), nil, "n1")
						time.Sleep(time.Second)
					}
				}
				send()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				decided := map[string]int{}
				var links []bool
				ended := make(chan error, 1)
				go func() {
					q := client.EventQuery{Type: muster.EventAudit, Since: began, Follow: true, Link: func(l client.Link) error {
						links = append(links, l.Lost)
						return nil
					}}
					ended <- c.Events(ctx, q, func(e client.Event) error {
						decided[e.Data["line"]]++
						return nil
					})
				}()
				time.Sleep(10 * time.Second)
				if silent {
					l.setSilent(true)
					time.Sleep(time.Minute)
					send()
					l.setSilent(false)
				} else {
					w.stopBroker()
					time.Sleep(time.Minute)
					w.startBroker()
					time.Sleep(10 * time.Second) // until the node is back
					send()
				}
				time.Sleep(time.Minute)
				cancel()
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Errorf("events: %v", err)
				}
				for line, n := range decided {
					if n != 1 {
						t.Errorf("%d times: %s", n, line)
					}
				}
				if len(decided) != 6 || !slices.Equal(links, []bool{true, false}) {
					t.Errorf("got %d events and %v of the link, want 6 and its loss and return", len(decided), links)
				}
			})
		})
	}
}

// present asks who is there, and returns their names and how long the answer
// took.
func present(t *testing.T, c *client.Client) (names []muster.NodeName, took time.Duration) {
	t.Helper()
	began := time.Now()
	nodes, err := c.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if n.Online {
			names = append(names, n.Name)
		}
	}
	return names, time.Since(began)
}

// Nodes that are there are not called away because the way to them is slow and
// loses packets, be it theirs or the client's.
func TestSlowLinksAreWaitedFor(t *testing.T) {
	for name, test := range map[string]struct{ node, client bool }{
		"of a node": {node: true}, "of the client": {client: true}, "of both": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				w := newWorld(t)
				satellite := w.newWire(300 * time.Millisecond)
				satellite.loses = 10
				w.node("near")
				if test.node {
					w.nodeOver(satellite, "other")
				} else {
					w.node("other")
				}
				c := w.client
				if test.client {
					c = w.over(satellite)
				}
				time.Sleep(time.Minute)
				for range 20 {
					if got, took := present(t, c); !slices.Equal(got, []muster.NodeName{"near", "other"}) {
						t.Errorf("after %s %v are online, want near and other", took, got)
					}
					time.Sleep(time.Second)
				}
			})
		})
	}
}

// A node that has just died is waited for as long as its own link asks for, the
// shorter the more its heartbeats are overdue, and then not at all.
func TestDeadNodesAreHardlyWaitedFor(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.node("a")
		n := w.node("b")
		ship := w.nodeOver(w.newWire(300*time.Millisecond), "ship")
		time.Sleep(2 * time.Minute)
		check := func(when string, most time.Duration, want ...muster.NodeName) {
			t.Helper()
			if got, took := present(t, w.client); took > most || !slices.Equal(got, want) {
				t.Errorf("%s: after %s %v are online, want %v within %s", when, took, got, want, most)
			}
		}
		check("all are there", 700*time.Millisecond, "a", "b", "ship")
		n.link.setCut(true)
		check("one is gone", 700*time.Millisecond, "a", "ship")
		ship.link.setCut(true)
		check("both are gone", 5*time.Second+50*time.Millisecond, "a")
		time.Sleep(26 * time.Second)
		check("both are overdue", 1500*time.Millisecond, "a")
		time.Sleep(25 * time.Second)
		check("both are long gone", 50*time.Millisecond, "a")
		away, err := w.client.Away(t.Context(), []muster.NodeName{"a", "b", "never"})
		if err != nil || len(away) != 2 || away["b"].IsZero() || !away["never"].IsZero() {
			t.Errorf("away: got %v, %v; want b with a time, and never without", away, err)
		}
	})
}
