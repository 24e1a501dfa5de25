package app

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// A node that the broker refuses goes on trying, but seldom, and says what to
// do.
func TestRefusedNodeTriesSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := error(muster.Errorf(muster.Denied, "refused"))
		g := &gate{node: "web1", dial: func(context.Context) (*bus.Conn, error) { return nil, answer }}
		attempt := func() (time.Duration, error) {
			began := time.Now()
			_, err := g.open(t.Context())
			return time.Since(began), err
		}
		var waited []time.Duration
		for range 12 {
			d, err := attempt()
			waited = append(waited, d)
			if muster.KindOf(err) != muster.Denied || !strings.Contains(err.Error(), "muster node invite web1") {
				t.Fatalf("got %v", err)
			}
		}
		if waited[0] != 0 || waited[patientFor] != 0 || waited[patientFor+1] != refusedWait || waited[11] != refusedMost {
			t.Errorf("got waits %s", waited)
		}
		answer = muster.Errorf(muster.Unavailable, "away")
		if _, err := attempt(); muster.KindOf(err) != muster.Unavailable {
			t.Errorf("got %v", err)
		}
		if d, _ := attempt(); d != 0 {
			t.Errorf("waited %s for a broker that does not refuse", d)
		}
	})
}
