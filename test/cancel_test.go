package test

import (
	"fmt"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// For a node that does not come the number of cancels has a limit. What was
// cancelled and is over does not count: then the next is cancelled too.
func TestManyCancels(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		p := &probe{name: "test.probe", hold: make(chan struct{})}
		n := w.node("n1", p)
		time.Sleep(time.Second)
		w.send("test.probe", "first", nil, "n1")
		cancel := func(i int) error {
			r := w.send("test.probe", fmt.Sprint(i), nil, "n1")
			c, err := w.client.Cancel(t.Context(), r.ID, nil, "")
			if err == nil && c != 1 {
				t.Errorf("cancel %d is of %d commands", i, c)
			}
			return err
		}
		n.link.setCut(true)
		time.Sleep(time.Second)
		for i := range 200 {
			if err := cancel(i); err != nil {
				t.Fatalf("cancel %d of a node that is away: %v", i, err)
			}
		}
		if err := cancel(200); muster.KindOf(err) != muster.Full {
			t.Errorf("the 201st: %v", err)
		}
		n.link.setCut(false)
		time.Sleep(time.Minute)
		if err := cancel(201); err != nil {
			t.Errorf("after the node came back, and all are over: %v", err)
		}
		close(p.hold)
		time.Sleep(time.Minute)
		if got := p.runs(); len(got) != 2 || got[0] != "first" || got[1] != "200" {
			t.Errorf("ran %v", got)
		}
	})
}

// What is expired by inference alone is withdrawn all the same; of a node that
// was removed nothing is, and nothing is claimed.
func TestCancelOfInferred(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.node("n1", &probe{name: "test.probe"})
		time.Sleep(time.Second)
		n.link.setCut(true)
		soon := w.send("test.probe", "a", func(r *client.Request) { r.Deadline = time.Now().Add(time.Minute) }, "n1")
		later := w.send("test.probe", "b", nil, "n1")
		time.Sleep(5 * time.Minute)
		if s := w.expect(soon, "n1", muster.Expired); !s.Inferred {
			t.Error("it is not inferred")
		}
		if c, err := w.client.Cancel(t.Context(), soon.ID, nil, ""); c != 1 || err != nil {
			t.Errorf("cancelled %d, %v", c, err)
		}
		if err := w.client.RemoveNode(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		if c, err := w.client.Cancel(t.Context(), later.ID, nil, ""); c != 0 || err != nil {
			t.Errorf("of a node that was removed: %d, %v", c, err)
		}
	})
}
