package test

import (
	"testing"
	"time"

	"github.com/musterfleet/muster/client"
)

// A check tells of clocks and ports also when there is nothing to complain of:
// that a line is missing does not look like ok.
func TestCheckTellsOfClocksAndPorts(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.node("n1")
		time.Sleep(time.Second)
		if got := levels(w.client.Check(t.Context())); got["clock"] != "ok " || got["node clocks"] != "ok " || got["port"] != "ok " || got["broker"] != "ok " || got["durability"] != "warn " {
			t.Errorf("got %v", got) // no service has looked at the disks
		}
		w.stopBroker()
		time.Sleep(time.Minute)
		if got := levels(w.client.Check(t.Context())); got["clock"] != "warn " || got["port"] == "" || got["broker"] != "fail " {
			t.Errorf("without a broker: got %v", got)
		}
	})
}

func levels(h client.Health) map[string]string {
	all := make(map[string]string)
	for _, c := range h.Checks {
		all[c.Name] += c.Level + " "
	}
	return all
}
