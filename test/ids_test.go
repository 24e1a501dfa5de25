package test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

func (w *world) sendAs(id muster.CommandID, arg string, nodes ...muster.NodeName) (client.Receipt, error) {
	w.t.Helper()
	return w.client.Send(w.t.Context(), client.Request{
		ID: id, Method: "test.probe", Input: []byte(`{"What":"` + arg + `"}`), Nodes: nodes,
	})
}

// A chosen id is that of one thing to do: sending that again repeats nothing,
// and anything else under it is an error, of which nothing is stored.
func TestChosenID(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		p, p2 := &probe{name: "test.probe"}, &probe{name: "test.probe"}
		w.node("n1", p)
		w.node("n2", p2)
		time.Sleep(time.Second)
		for _, wait := range []time.Duration{time.Second, time.Hour} { // within the broker's deduplication, and after it
			first, err := w.sendAs("same", "a", "n1")
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(wait)
			w.expect(first, "n1", muster.Done)
			if _, err := w.sendAs("same", "b", "n1"); muster.KindOf(err) != muster.Conflict {
				t.Errorf("other input under the id: %v", err)
			}
			if waiting, err := w.client.Outbox(); len(waiting) != 0 || err != nil {
				t.Errorf("%+v are in the outbox, %v", waiting, err)
			}
		}
		if _, err := w.sendAs("same", "a", "n2"); err != nil {
			t.Errorf("a further node: %v", err)
		}
		time.Sleep(time.Minute)
		if got := append(p.runs(), p2.runs()...); !slices.Equal(got, []string{"a", "a"}) {
			t.Errorf("ran %v", got)
		}
		all, err := w.client.Command(t.Context(), muster.Key{ID: "same"})
		if err != nil || len(all) != 2 || string(all[0].Input) != `{"What":"a"}` {
			t.Errorf("%+v, %v", all, err)
		}
	})
}

// What waits in the outbox under the id of another send is not sent, and stays
// to be seen.
func TestChosenIDInTheOutbox(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		p := &probe{name: "test.probe"}
		w.node("n1", p)
		time.Sleep(time.Second)
		if _, err := w.sendAs("same", "a", "n1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		w.stopBroker()
		if r, err := w.sendAs("same", "b", "n1"); err != nil || !r.Outbox {
			t.Errorf("the broker is away: %+v, %v", r, err)
		}
		if _, err := w.sendAs("same", "c", "n1"); muster.KindOf(err) != muster.Conflict {
			t.Errorf("another one that waits has the id: %v", err)
		}
		if r, err := w.sendAs("next", "d", "n1"); err != nil || !r.Outbox {
			t.Errorf("the broker is away: %+v, %v", r, err)
		}
		w.startBroker()
		time.Sleep(time.Minute)
		n, err := w.client.FlushOutbox(t.Context())
		if n != 1 || muster.KindOf(err) != muster.Corrupt || !strings.Contains(err.Error(), "the id is taken") {
			t.Errorf("flush: %d, %v", n, err)
		}
		all, err := w.client.Outbox()
		if err != nil || len(all) != 1 || all[0].Unreadable == "" {
			t.Errorf("%+v, %v", all, err)
		}
		time.Sleep(time.Second)
		if got := p.runs(); !slices.Equal(got, []string{"a", "d"}) {
			t.Errorf("ran %v", got)
		}
	})
}

// What is sent again while the broker is away waits once, and runs once.
func TestRepeatedSendWaitsOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		p, p2 := &probe{name: "test.probe"}, &probe{name: "test.probe"}
		w.node("n1", p)
		w.node("n2", p2)
		time.Sleep(time.Second)
		w.stopBroker()
		for i, nodes := range [][]muster.NodeName{{"n1"}, {"n1"}, {"n1", "n2"}, {"n2"}, {"n1", "n2"}} {
			r, err := w.sendAs("same", "a", nodes...)
			if wantAgain := i != 0 && i != 2; err != nil || !r.Outbox || r.Repeated != wantAgain || !slices.Equal(r.Nodes, nodes) {
				t.Errorf("send %d: %+v, %v", i, r, err)
			}
			time.Sleep(time.Minute)
		}
		if all, err := w.client.Outbox(); len(all) != 2 || err != nil {
			t.Errorf("%+v are in the outbox, %v", all, err)
		}
		w.startBroker()
		time.Sleep(time.Minute)
		if r, err := w.sendAs("same", "a", "n1"); err != nil || r.Outbox || r.Repeated {
			t.Errorf("the broker is back: %+v, %v", r, err)
		}
		if n, err := w.client.FlushOutbox(t.Context()); n > 1 || err != nil {
			t.Errorf("flush: %d, %v", n, err)
		}
		time.Sleep(time.Second)
		if got := append(p.runs(), p2.runs()...); !slices.Equal(got, []string{"a", "a"}) {
			t.Errorf("ran %v", got)
		}
	})
}

// A node sets another command under a known id aside, with a reason, and what
// is said of the first stays true.
func TestConflictOnTheNode(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		p := &probe{name: "test.probe"}
		n := w.node("n1", p)
		time.Sleep(time.Second)
		first, err := w.sendAs("same", "a", "n1")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		other := w.sign(w.id, envelope("same", "n1", "test.probe", `{"What":"b"}`))
		w.put("n1", "test.probe", other)
		time.Sleep(time.Second)
		n.stop()
		n.start()
		time.Sleep(time.Second)
		w.put("n1", "test.probe", other)
		after := w.send("test.probe", "after", nil, "n1")
		time.Sleep(time.Minute)
		w.expect(first, "n1", muster.Done)
		w.expect(after, "n1", muster.Done)
		if got := p.runs(); !slices.Equal(got, []string{"a", "after"}) {
			t.Errorf("ran %v", got)
		}
		dead, err := w.client.DeadLetters(t.Context(), "n1")
		if err != nil || len(dead) != 2 || !strings.Contains(dead[0].Reason, "id same is that of another command") {
			t.Errorf("%+v, %v", dead, err)
		}
		var got []string
		for _, r := range n.audit() {
			got = append(got, string(r.ID)+" "+string(r.Verdict))
		}
		want := []string{"same allowed", "same denied", "same denied", string(after.ID) + " allowed"}
		slices.Sort(got)
		if slices.Sort(want); !slices.Equal(got, want) {
			t.Errorf("audit: got %q, want %q", got, want)
		}
	})
}
