package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// What waits at the broker belongs to a node's queue: it is all of it while the
// node is away.
func TestQueueOfANodeThatIsAway(t *testing.T) {
	f := &fakeSDK{
		nodes:   []client.Node{{Name: "a", LastSeen: noon.Add(-time.Hour), Queue: 2, Running: 1}, {Name: "b", Online: true}},
		waiting: map[muster.NodeName]int{"a": 40},
	}
	for _, test := range []struct{ args, want string }{
		{"node ls", "42"},
		{"ping", "42"},
		{"node ls -t a -o jsonl", `"waiting":40`},
		{"node show a", "waiting    40 at the broker"},
		{"node show a -o json", `"waiting": 40`},
	} {
		_, out, errs := try(t.Context(), f, strings.Fields(test.args)...)
		if !strings.Contains(out, test.want) {
			t.Errorf("%s: got %q and %q, want %q", test.args, out, errs, test.want)
		}
	}
}
