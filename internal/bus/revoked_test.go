package bus_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// TestRevoked: nodes read what was set last; neither a start of the service nor
// another number of streams loses it, and the layout stays what it is.
func TestRevoked(t *testing.T) {
	with(t, func(t *testing.T, l *link, c *bus.Conn) {
		reader := dial(t, l)
		defer reader.Close()
		expect := func(what string, want ...json.RawMessage) {
			t.Helper()
			got, err := reader.Revoked(t.Context())
			if err != nil || !slices.EqualFunc(got, want, slices.Equal) {
				t.Errorf("%s: got %s, %v; want %s", what, got, err, want)
			}
		}
		expect("at first")
		one, two := json.RawMessage(`{"list":1}`), json.RawMessage(`{"list":2}`)
		must(t, c.SetRevoked(t.Context(), "F", []json.RawMessage{one}))
		expect("one", one)
		must(t, c.SetRevoked(t.Context(), "F", []json.RawMessage{one, two}))
		expect("two", one, two)
		must(t, c.Setup(t.Context(), layout))
		expect("after a start", one, two)
		must(t, c.Reshard(t.Context(), layout, 3))
		expect("after a change of the layout", one, two)
		if s := c.Settings(); s.Shards != 3 || s.Fleet != "F" || s.Version != bus.LayoutVersion {
			t.Errorf("the layout is %+v", s)
		}

		long := json.RawMessage(fmt.Sprintf("%q", strings.Repeat("x", 110<<10)))
		must(t, c.SetRevoked(t.Context(), "F", []json.RawMessage{long}))
		expect("as long as it may be", long)
		if err := c.SetRevoked(t.Context(), "F", []json.RawMessage{long, long}); muster.KindOf(err) != muster.Full {
			t.Errorf("too long: %v", err)
		}
		if err := c.SetRevoked(t.Context(), "G", nil); muster.KindOf(err) != muster.Conflict {
			t.Errorf("of another fleet: %v", err)
		}
		expect("after what was refused", long)
	})
}

// TestRevokedWithoutLayout: there is nothing to be a part of.
func TestRevokedWithoutLayout(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := start(t)
		defer b.Stop()
		c := dial(t, &link{b: b})
		defer c.Close()
		if err := c.SetRevoked(t.Context(), "F", nil); muster.KindOf(err) != muster.NotFound {
			t.Errorf("got %v", err)
		}
	})
}
