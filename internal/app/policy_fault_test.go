package app_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/app"
)

// TestBrokenPolicyShows: operators see from afar that a node's policy cannot be
// read, for as long as that is so, and are not told that there is none.
func TestBrokenPolicyShows(t *testing.T) {
	f := startFleet(t, carrier{})
	dir := filepath.Join(t.TempDir(), "n1")
	if err := f.join(f.invite("n1"), dir); err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "policy.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const fault = `policy.yaml:3: unknown key "efect"`
	write("rules:\n  - methods: ['*']\n    efect: allow\n")
	startDaemon(t, func(ctx context.Context, ready func()) error {
		return app.RunAgent(ctx, app.AgentOptions{StateDir: dir, Heartbeat: 50 * time.Millisecond, Ready: ready})
	})
	c := f.client()
	told := func(want bool) func() bool {
		return func() bool {
			nodes, err := c.Nodes(f.ctx())
			return err == nil && len(nodes) == 1 && nodes[0].LastSeen != (time.Time{}) && want == slices.ContainsFunc(nodes[0].Problems, func(p string) bool {
				return strings.Contains(p, "its policy cannot be read") && strings.Contains(p, fault)
			})
		}
	}
	await(t, "word of the policy", told(true))
	if text, err := json.Marshal(c.Check(f.ctx())); err != nil || !strings.Contains(string(text), "its policy cannot be read") {
		t.Errorf("doctor: %s, %v", text, err)
	}
	if s := echoed(f, c, "n1"); s.State != muster.Refused || !strings.Contains(s.Reason, "the policy of this node cannot be read: "+fault) {
		t.Errorf("%s: %q", s.State, s.Reason)
	}
	log, err := os.ReadFile(filepath.Join(dir, "audit.log"))
	if err != nil || !strings.Contains(string(log), `"reason":"the policy of this node cannot be read: policy.yaml:3:`) {
		t.Errorf("audit log: %s, %v", log, err)
	}
	write("rules:\n  - methods: ['*']\n    effect: allow\n")
	await(t, "the end of the problem", told(false))
	if s := echoed(f, c, "n1"); s.State != muster.Done {
		t.Errorf("%s: %q", s.State, s.Reason)
	}
}

// echoed is what became of a command to the node.
func echoed(f fleet, c *client.Client, node muster.NodeName) client.Status {
	f.t.Helper()
	r, err := c.Send(f.ctx(), client.Request{Method: "echo", Input: json.RawMessage(`{"message":1}`), Nodes: []muster.NodeName{node}})
	if err != nil {
		f.t.Fatal(err)
	}
	if err := c.Follow(f.ctx(), r.ID, func(client.Update) error { return nil }); err != nil {
		f.t.Fatal(err)
	}
	all, err := c.Command(f.ctx(), muster.Key{ID: r.ID, Node: node})
	if err != nil || len(all) != 1 {
		f.t.Fatalf("%+v, %v", all, err)
	}
	return all[0]
}
