package client

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/musterfleet/muster"
)

// Anybody may have written the list of withdrawals. What is kept of it can be
// read, and has not ended.
func FuzzInForce(f *testing.F) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	envelope, err := json.Marshal(muster.Command{ID: "w", Deadline: now.Add(time.Hour)})
	if err != nil {
		f.Fatal(err)
	}
	frame, err := json.Marshal(map[string]any{"envelope": envelope})
	if err != nil {
		f.Fatal(err)
	}
	seed := "[" + string(frame) + `,{"envelope":"e30="},{},null,7]`
	if got := inForce([]byte(seed), now); len(got) != 1 {
		f.Fatalf("%d of one are in force", len(got))
	}
	f.Add([]byte(seed))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, frame := range inForce(data, now) {
			if cmd, err := envelopeOf(frame); err != nil || now.After(cmd.Deadline) {
				t.Errorf("kept %q: %v", frame, err)
			}
		}
	})
}
