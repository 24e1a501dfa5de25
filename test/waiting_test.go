package test

import (
	"testing"
	"time"

	"github.com/musterfleet/muster/client"
)

// What waits for a node that is away is counted where it waits: the node has
// never heard of it.
func TestWaitingForANodeThatIsAway(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		p := &probe{name: "test.probe"}
		away := w.node("away", p)
		w.node("here", p)
		time.Sleep(time.Second)
		away.stop()
		for range 3 {
			w.send("test.probe", "x", nil, "away", "here")
		}
		time.Sleep(time.Second)
		waiting := func() map[string]int {
			t.Helper()
			nodes, err := w.client.Nodes(t.Context())
			if err == nil {
				err = w.client.CountWaiting(t.Context(), nodes)
			}
			if err != nil || len(nodes) != 2 {
				t.Fatalf("%+v, %v", nodes, err)
			}
			return count(nodes)
		}
		if got := waiting(); got["away"] != 3 || got["here"] != 0 {
			t.Errorf("got %v", got)
		}
		away.start()
		time.Sleep(10 * time.Second)
		if got := waiting(); got["away"] != 0 {
			t.Errorf("after it came back: %v", got)
		}
	})
}

func count(nodes []client.Node) map[string]int {
	all := make(map[string]int)
	for _, n := range nodes {
		all[string(n.Name)] = n.Waiting
	}
	return all
}
