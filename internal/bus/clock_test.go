package bus_test

import (
	"testing"
	"time"

	"github.com/musterfleet/muster/internal/bus"
)

// In virtual time nothing takes any, and broker and caller have one clock.
func TestClock(t *testing.T) {
	with(t, func(t *testing.T, l *link, c *bus.Conn) {
		ahead, within, err := c.Clock(t.Context())
		if err != nil || ahead != 0 || within != 0 {
			t.Errorf("got %v within %v, %v", ahead, within, err)
		}
		time.Sleep(time.Hour)
		if ahead, _, err := c.Clock(t.Context()); err != nil || ahead != 0 {
			t.Errorf("later: got %v, %v", ahead, err)
		}
		l.set(true)
		<-c.Done()
		if _, _, err := c.Clock(t.Context()); err == nil {
			t.Error("no broker has a clock")
		}
	})
}
