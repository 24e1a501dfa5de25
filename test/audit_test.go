package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/bus"
)

// Every decision is a line and an event, each once and in order, also those
// that were made while the broker was away and before the agent was restarted.
func TestAuditEvents(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		p := &probe{name: "test.probe"}
		n := w.node("n1", p)
		time.Sleep(time.Second)
		for range 100 { // more than a batch
			w.send("test.probe", "x", nil, "n1")
		}
		w.put("n1", "test.probe", []byte("garbage"))
		w.send("no.such", "x", nil, "n1")
		time.Sleep(time.Minute)
		n.link.setCut(true)
		time.Sleep(time.Second)
		n.stop()
		n.start()
		n.link.setCut(false)
		time.Sleep(time.Minute)
		w.send("test.probe", "last", nil, "n1")
		time.Sleep(time.Minute)
		n.audit() // checks the chain
		data, err := os.ReadFile(filepath.Join(w.dir, "n1", "audit.log"))
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
		var got []string
		err = w.client.Events(t.Context(), client.EventQuery{Type: muster.EventAudit}, func(e client.Event) error {
			got = append(got, e.Data["line"])
			return nil
		})
		if err != nil || len(got) != 103 || !slices.Equal(got, want) {
			t.Errorf("%d events for %d lines, or in another order: %v", len(got), len(want), err)
		}
		if err := w.client.Events(t.Context(), client.EventQuery{Type: "a.*"}, nil); muster.KindOf(err) != muster.Invalid {
			t.Errorf("a type that is none: %v", err)
		}
	})
}

// A withdrawal that is refused is a decision, too.
func TestRefusedWithdrawal(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.node("n1")
		time.Sleep(time.Second)
		wrong := w.sign(w.id, envelope("w", "n1", muster.MethodCancel, `{"id":"..","until":"2030-01-01T00:00:00Z"}`))
		data, err := json.Marshal([]json.RawMessage{wrong})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := bus.Dial(t.Context(), bus.Options{InProcess: w})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.Put(t.Context(), bus.Outgoing{Subject: conn.Subjects().Control(bus.OpenMailbox, "n1"), Data: data}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if all := n.audit(); len(all) != 1 || all[0].Verdict != aaa.Denied || all[0].ID != "w" || all[0].Reason == "" {
			t.Errorf("audit: %+v", all)
		}
	})
}
