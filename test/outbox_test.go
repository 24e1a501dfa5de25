package test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// The order of what waits in the outbox is that of sending, also when the ids,
// which have the time in them, say otherwise: clocks are set back.
func TestOutboxOrderNeedsNoClock(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		p := &probe{name: "test.probe"}
		w.node("n1", p)
		time.Sleep(time.Second)
		w.stopBroker()
		var want []string
		for _, id := range []muster.CommandID{"z-first", "m-second", "a-third"} {
			want = append(want, string(id))
			if r := w.send("test.probe", string(id), func(r *client.Request) { r.ID = id }, "n1"); !r.Outbox {
				t.Errorf("%s is not in the outbox", id)
			}
		}
		all, err := w.client.Outbox()
		if err != nil || len(all) != 3 || all[0].ID != "z-first" || all[2].ID != "a-third" {
			t.Errorf("%+v, %v", all, err)
		}
		w.startBroker()
		time.Sleep(time.Minute)
		if n, err := w.client.FlushOutbox(t.Context()); n != 3 || err != nil {
			t.Errorf("flush: got %d, %v", n, err)
		}
		time.Sleep(time.Second)
		if got := p.runs(); !slices.Equal(got, want) {
			t.Errorf("ran in the order %v, want %v", got, want)
		}
	})
}

// A file of the outbox that cannot be read is an error, and stays to be seen;
// the others are sent.
func TestOutboxWithAnUnreadableFile(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		p := &probe{name: "test.probe"}
		w.node("n1", p)
		time.Sleep(time.Second)
		w.stopBroker()
		for _, arg := range []string{"a", "b", "c"} {
			w.send("test.probe", arg, nil, "n1")
		}
		names, err := filepath.Glob(filepath.Join(w.dir, "outbox", "*.send"))
		if err != nil || len(names) != 3 {
			t.Fatalf("%q, %v", names, err)
		}
		if err := os.WriteFile(names[1], []byte("garbage"), 0o600); err != nil {
			t.Fatal(err)
		}
		w.startBroker()
		time.Sleep(time.Minute)
		n, err := w.client.FlushOutbox(t.Context())
		if n != 2 || muster.KindOf(err) != muster.Corrupt || !strings.Contains(err.Error(), names[1]) {
			t.Errorf("flush: got %d, %v", n, err)
		}
		all, err := w.client.Outbox()
		if err != nil || len(all) != 1 || all[0].Unreadable != names[1]+".unreadable" {
			t.Errorf("%+v, %v", all, err)
		}
		// It does not hold up what is sent later.
		w.send("test.probe", "d", nil, "n1")
		time.Sleep(time.Second)
		if got := p.runs(); !slices.Equal(got, []string{"a", "c", "d"}) {
			t.Errorf("ran %v", got)
		}
	})
}

// Commands of a node that is removed do not stay queued.
func TestRemovedNodesCommandsEnd(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		p := &probe{name: "test.probe", hold: make(chan struct{})}
		n := w.node("n1", p, &probe{name: "test.quick"})
		time.Sleep(time.Second)
		done := w.send("test.quick", "x", nil, "n1")
		running := w.send("test.probe", "a", nil, "n1")
		time.Sleep(time.Second)
		n.link.setCut(true)
		queued := w.send("test.probe", "b", nil, "n1")
		if err := w.client.RemoveNode(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		w.expect(done, "n1", muster.Done)
		w.expect(running, "n1", muster.Unknown)
		w.expect(queued, "n1", muster.Cancelled)
		close(p.hold)
	})
}
