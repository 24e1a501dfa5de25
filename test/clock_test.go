package test

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// A sender whose clock is set back between two sends, by less than a node
// tolerates, sends in the order of sending all the same: what it kept before, in
// the outbox, goes first. Each bubble begins at the same time, so that the second
// one is the past of the first.
func TestClockSetBack(t *testing.T) {
	outbox := filepath.Join(t.TempDir(), "outbox")
	var before *world
	var want []string
	keep := func(w *world, c *client.Client, what string) muster.CommandID {
		w.t.Helper()
		r, err := c.Send(w.t.Context(), client.Request{Method: "test.probe", Input: fmt.Appendf(nil, `{"What":%q}`, what), Nodes: []muster.NodeName{"n1"}})
		if err != nil {
			w.t.Fatal(err)
		}
		want = append(want, what)
		return r.ID
	}
	sender := func(w *world) *client.Client {
		w.t.Helper()
		c, err := client.Connect(w.t.Context(), client.Options{InProcess: w.link, Identity: before.id, OutboxDir: outbox})
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(c.Close)
		return c
	}
	var first muster.CommandID
	inBubble(t, func(t *testing.T) {
		before = newWorld(t)
		time.Sleep(4 * time.Minute)
		before.stopBroker()
		c := sender(before)
		first = keep(before, c, "a")
		keep(before, c, "b")
	})
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.issuer = before.issuer
		p := &probe{name: "test.probe"}
		w.node("n1", p)
		w.stopBroker()
		c := sender(w)
		if id := keep(w, c, "c"); id > first {
			t.Fatalf("%s is not before %s: the clock was not set back", id, first)
		}
		w.startBroker()
		time.Sleep(30 * time.Second)
		keep(w, c, "d") // and with it what waits
		time.Sleep(30 * time.Second)
		if got := p.runs(); !slices.Equal(got, want) {
			t.Errorf("ran %v, want %v", got, want)
		}
	})
}
