package test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// While a node is away, more of its commands are cancelled than cancels can wait
// for it. Each cancel that was taken is heeded before the queue is, each that was
// refused said so, and its command runs once.
func TestMoreCancelsThanWait(t *testing.T) {
	l, n, c := realFleet(t)
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	const waiting, more = 200, 5
	evidence := filepath.Join(l.Dir, "evidence")
	var want []string
	var last client.Receipt
	for i := range waiting + more {
		id := muster.CommandID(fmt.Sprintf("c%03d", i))
		last = shell(t, c, `echo "$MUSTER_COMMAND" >>`+evidence, func(r *client.Request) { r.ID = id })
		out, err := l.Muster(t.Context(), "command", "cancel", string(id)).CombinedOutput()
		switch {
		case i < waiting && err != nil:
			t.Fatalf("cancel %d: %v: %s", i, err, out)
		case i >= waiting:
			want = append(want, string(id))
			if err == nil || !strings.Contains(string(out), "200 cancels are waiting for node node1") {
				t.Errorf("cancel %d: got %v, want a refusal: %s", i, err, out)
			}
		}
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	final(t, c, last)
	data, err := os.ReadFile(evidence)
	if got := strings.Fields(string(data)); err != nil || !slices.Equal(got, want) {
		t.Errorf("ran %v, %v; want %v", got, err, want)
	}
	all, err := c.History(t.Context(), client.HistoryQuery{})
	states := make(map[muster.State]int)
	for _, s := range all {
		states[s.State]++
	}
	if err != nil || states[muster.Cancelled] != waiting || states[muster.Done] != more {
		t.Errorf("got states %v, %v", states, err)
	}
}
