package app_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/musterfleet/muster/client"
)

// durability is what a caller's check says of it, once the service has looked and
// the level is as expected.
func (f fleet) durability(level string) (message string) {
	f.t.Helper()
	f.until("the broker", func() error { _, err := f.tryOperator(); return err })
	cl := f.client()
	f.until("durability "+level, func() error {
		var found []client.Check
		for _, c := range cl.Check(f.ctx()).Checks {
			if c.Name == "durability" {
				found = append(found, c)
			}
		}
		if len(found) != 1 || found[0].Level != level {
			return fmt.Errorf("got %+v", found)
		}
		message = found[0].Message
		return nil
	})
	return message
}

// syncIsSeen: callers learn from the service whether a receipt outlasts a power
// cut, of all servers of a cluster.
func syncIsSeen(t *testing.T, f fleet) {
	if want, got := fmt.Sprintf("servers: %d,", max(f.servers, 1)), f.durability("ok"); !strings.Contains(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestLaxServerIsSeen: a server of one's own that does not sync what it stores
// makes the promise of a receipt untrue, which nobody else would notice.
func TestLaxServerIsSeen(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a nats-server; -short")
	}
	f := startFleet(t, carrier{tls: true, servers: 1})
	f.durability("ok")
	s := f.nodes[0]
	text, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	lax := strings.Replace(string(text), "sync_interval: always", "sync_interval: \"2m\"", 1)
	if lax == string(text) {
		t.Fatal("the configuration does not sync")
	}
	if err := os.WriteFile(s.file, []byte(lax), 0o600); err != nil {
		t.Fatal(err)
	}
	f.restart()
	if got := f.durability("warn"); !strings.Contains(got, s.name+" does not sync") {
		t.Errorf("got %q", got)
	}
}
