package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

func TestProblems(t *testing.T) {
	var p problems
	if p.changed() || len(p.list()) != 0 {
		t.Error("there are problems at the start")
	}
	if !p.set("b", "second") || !p.set("a", "first") || p.set("a", "first") {
		t.Error("what is news is told wrong")
	}
	if got := p.list(); p.changed() || !slices.Equal(got, []string{"first", "second"}) {
		t.Errorf("got %q", got)
	}
	if p.set("a", "first") || p.changed() {
		t.Error("the same again is news")
	}
	if p.set("none", "") {
		t.Error("the end of what was not is news")
	}
	p.set("a", "")
	if got := p.list(); !slices.Equal(got, []string{"second"}) {
		t.Errorf("got %q", got)
	}
}

func TestRecent(t *testing.T) {
	var r recent
	id := func(i int) muster.CommandID { return muster.CommandID(fmt.Sprint(i)) }
	if r.seen(id(0)) || !r.seen(id(0)) {
		t.Error("an id is known once it was seen")
	}
	r.forget(id(0))
	r.forget(id(0))
	if r.seen(id(0)) {
		t.Error("a forgotten id is known")
	}
	for i := range 3 * maxControl {
		r.seen(id(i))
	}
	if len(r.ids) != 2*maxControl || len(r.order) != 2*maxControl {
		t.Errorf("it remembers %d and %d", len(r.ids), len(r.order))
	}
	if !r.seen(id(3*maxControl-1)) || r.seen(id(0)) {
		t.Error("the oldest is to be forgotten, not the newest")
	}
}

// An event that the broker does not take at the moment, since its disk is full, say,
// comes later in the same session, in its order.
func TestEventsAreSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := openEvents("n", filepath.Join(t.TempDir(), "events.json"), slog.New(slog.DiscardHandler))
		e.add("first", "", nil)
		e.add("second", "", nil)
		var sent []string
		tries := 0
		put := func(_ context.Context, m bus.Outgoing) error {
			if tries++; tries < 4 {
				return muster.Errorf(muster.Full, "no room")
			}
			sent = append(sent, m.Subject)
			return nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		s := bus.Subjects{Prefix: "p", Shards: 1}
		e.send(ctx, s, put)
		if want := []string{s.Event("first", "n"), s.Event("second", "n")}; !slices.Equal(sent, want) {
			t.Errorf("sent %q, want %q", sent, want)
		}
	})
}

// Events wait in a file, in order, and no more than a number of them.
func TestEventsWait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.json")
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	e := openEvents("n", path, log)
	for i := range maxEvents + 5 {
		e.add("test", fmt.Sprint(i), nil)
	}
	e.drop()
	e = openEvents("n", path, log)
	if len(e.list) != maxEvents-1 {
		t.Errorf("%d wait after a restart, want %d", len(e.list), maxEvents-1)
	}
	if first, ok := e.first(); !ok || first.Message != "1" || first.Node != "n" || first.Type != "test" {
		t.Errorf("the first is %+v", first)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	e = openEvents("n", path, log)
	if _, ok := e.first(); ok {
		t.Error("a damaged file has events")
	}
	e.add("test", "again", nil)
	if e = openEvents("n", path, log); len(e.list) != 1 {
		t.Errorf("after a damaged file %d wait, want 1", len(e.list))
	}
}
