package test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// Commands to a node that is away for two days arrive in order, once, after it
// comes back; and a node that was there all the time is not held up.
func TestOutageOfDays(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		p1, p2 := &probe{name: "test.probe"}, &probe{name: "test.probe"}
		n1 := w.node("ship.one", p1)
		w.node("ship.two", p2)
		time.Sleep(time.Second)
		w.send("test.probe", "a", nil, "ship.one", "ship.two")
		time.Sleep(time.Second)
		n1.link.setCut(true)
		var last client.Receipt
		want := []string{"a"}
		for i := range 20 {
			what := fmt.Sprint(i)
			last = w.send("test.probe", what, nil, "ship.one", "ship.two")
			want = append(want, what)
		}
		time.Sleep(48 * time.Hour)
		w.expect(last, "ship.two", muster.Done)
		w.expect(last, "ship.one", muster.Queued)
		if got := p1.runs(); !slices.Equal(got, []string{"a"}) {
			t.Errorf("cut off, it ran %v", got)
		}
		n1.link.setCut(false)
		time.Sleep(time.Minute)
		w.expect(last, "ship.one", muster.Done)
		if got := p1.runs(); !slices.Equal(got, want) {
			t.Errorf("after the outage: got %v, want %v", got, want)
		}
	})
}

// The broker is away for six hours while one command runs and others are sent:
// the sends wait in the outbox, the result in the journal.
func TestBrokerAway(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		p := &probe{name: "test.probe", hold: make(chan struct{})}
		w.node("n1", p)
		time.Sleep(time.Second)
		running := w.send("test.probe", "a", nil, "n1")
		time.Sleep(time.Second)
		w.expect(running, "n1", muster.Running)
		w.stopBroker()
		kept := w.send("test.probe", "b", nil, "n1")
		if !kept.Outbox {
			t.Error("with the broker away the receipt must name the outbox")
		}
		close(p.hold)
		time.Sleep(6 * time.Hour)
		w.startBroker()
		time.Sleep(time.Minute)
		if n, err := w.client.FlushOutbox(t.Context()); n != 1 || err != nil {
			t.Errorf("flush: got %d, %v", n, err)
		}
		time.Sleep(time.Second)
		w.expect(running, "n1", muster.Done)
		w.expect(kept, "n1", muster.Done)
		if got := p.runs(); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("got %v", got)
		}
	})
}

// A send that waits in the outbox beyond its deadline is not silently gone.
func TestExpiredInTheOutbox(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		p := &probe{name: "test.probe"}
		w.node("n1", p)
		time.Sleep(time.Second)
		w.stopBroker()
		r := w.send("test.probe", "x", func(r *client.Request) { r.Deadline = time.Now().Add(time.Hour) }, "n1")
		if !r.Outbox {
			t.Error("it is not in the outbox")
		}
		time.Sleep(2 * time.Hour)
		w.startBroker()
		time.Sleep(time.Minute)
		if n, err := w.client.FlushOutbox(t.Context()); n != 1 || err != nil {
			t.Errorf("flush: got %d, %v", n, err)
		}
		time.Sleep(time.Minute)
		w.expect(r, "n1", muster.Expired)
		if len(p.runs()) != 0 {
			t.Error("it ran after its deadline")
		}
	})
}

func TestDeadlines(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		p := &probe{name: "test.probe", hold: make(chan struct{})}
		n := w.node("n1", p)
		time.Sleep(time.Second)
		hour := func(r *client.Request) { r.Deadline = time.Now().Add(time.Hour) }
		w.send("test.probe", "long", nil, "n1")
		behind := w.send("test.probe", "behind", hour, "n1")
		away := w.send("test.probe", "away", hour, "n2")
		time.Sleep(2 * time.Hour)
		if s := w.expect(behind, "n1", muster.Expired); s.Inferred {
			t.Error("the node itself knows that it expired")
		}
		if s := w.expect(away, "n2", muster.Expired); !s.Inferred {
			t.Error("nobody but the clock can know that it expired")
		}
		close(p.hold)
		n.link.setCut(true)
		cut := w.send("test.probe", "cut", hour, "n1")
		time.Sleep(3 * time.Hour)
		n.link.setCut(false)
		time.Sleep(time.Minute)
		w.expect(cut, "n1", muster.Expired)
		if got := p.runs(); !slices.Equal(got, []string{"long"}) {
			t.Errorf("ran %v, want only the first", got)
		}
	})
}

func TestCancel(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		p := &probe{name: "test.probe", hold: make(chan struct{})}
		n := w.node("n1", p)
		time.Sleep(time.Second)
		cancel := func(r client.Receipt) {
			t.Helper()
			if _, err := w.client.Cancel(t.Context(), r.ID, nil, "no longer wanted"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		running := w.send("test.probe", "running", nil, "n1")
		waiting := w.send("test.probe", "waiting", nil, "n1")
		time.Sleep(time.Second)
		cancel(waiting)
		w.expect(waiting, "n1", muster.Cancelled)
		w.expect(running, "n1", muster.Running)
		cancel(running)
		w.expect(running, "n1", muster.Cancelled)

		n.link.setCut(true)
		queued := w.send("test.probe", "queued", nil, "n1")
		after := w.send("test.probe", "after", nil, "n1")
		cancel(queued)
		n.link.setCut(false)
		time.Sleep(time.Minute)
		w.expect(queued, "n1", muster.Cancelled)
		w.expect(after, "n1", muster.Running)
		if got := p.runs(); !slices.Equal(got, []string{"running", "after"}) {
			t.Errorf("ran %v", got)
		}
	})
}

func TestRetries(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		p := &probe{name: "test.probe", fail: func(attempt int) error {
			if attempt < 3 {
				return errors.New("not yet")
			}
			return nil
		}}
		w.node("n1", p)
		time.Sleep(time.Second)
		r := w.send("test.probe", "x", func(r *client.Request) { r.Retries = 5 }, "n1")
		next := w.send("test.probe", "y", nil, "n1")
		time.Sleep(time.Minute)
		w.expect(r, "n1", muster.Done)
		w.expect(next, "n1", muster.Failure)
		if got := p.runs(); !slices.Equal(got, []string{"x", "x", "x", "y"}) {
			t.Errorf("ran %v: a lane must wait for its retries", got)
		}
	})
}

// While somebody else has the node, commands are accepted and wait, over a
// restart of the agent too; their deadlines pass.
func TestPause(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		p := &probe{name: "test.probe"}
		n := w.node("n1", p)
		time.Sleep(time.Second)
		n.pause("somebody has it")
		r := w.send("test.probe", "a", nil, "n1")
		short := w.send("test.probe", "late", func(r *client.Request) { r.Deadline = time.Now().Add(10 * time.Minute) }, "n1")
		time.Sleep(time.Minute)
		if s := w.expect(r, "n1", muster.Accepted); s.Reason != "somebody has it" {
			t.Errorf("accepted because of %q", s.Reason)
		}
		n.stop()
		n.start()
		time.Sleep(time.Hour)
		w.expect(r, "n1", muster.Accepted)
		w.expect(short, "n1", muster.Expired)
		n.pause("")
		time.Sleep(time.Second)
		w.expect(r, "n1", muster.Done)
		if got := p.runs(); !slices.Equal(got, []string{"a"}) {
			t.Errorf("ran %v", got)
		}
	})
}

// An agent that is stopped and started again keeps what it had accepted.
func TestAgentRestart(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		p := &probe{name: "test.probe", hold: make(chan struct{})}
		n := w.node("n1", p)
		time.Sleep(time.Second)
		first := w.send("test.probe", "first", nil, "n1")
		second := w.send("test.probe", "second", nil, "n1")
		time.Sleep(time.Second)
		n.stop()
		close(p.hold)
		time.Sleep(time.Hour)
		n.start()
		time.Sleep(time.Minute)
		w.expect(first, "n1", muster.Failure)
		w.expect(second, "n1", muster.Done)
		if got := p.runs(); !slices.Equal(got, []string{"first", "second"}) {
			t.Errorf("ran %v", got)
		}
	})
}
