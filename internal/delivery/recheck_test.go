package delivery

import (
	"testing"
	"time"

	"github.com/musterfleet/muster"
)

// TestRecheck: what a revoked caller sent and has not begun is refused, also
// beside a lane; what runs goes on, and is not tried again.
func TestRecheck(t *testing.T) {
	revoked := false
	b := New(Config{Revoked: func(r Record) *muster.Error {
		if revoked && r.Signer.Key == "thief" {
			return muster.Errorf(muster.Denied, "revoked")
		}
		return nil
	}}, State{}, t0)
	for _, id := range []string{"a", "b", "c", "d"} {
		d := command(id, "m", "")
		d.Command.Retries = 5
		if id != "c" {
			d.Signer.Key = "thief"
		}
		b.Deliver(t0, d)
	}
	expect(t, b, "acks4, start a/1")
	b.Tick(at(time.Second))
	expect(t, b, "a running/2, b accepted/1, c accepted/1, d accepted/1")
	b.Recheck(at(time.Second))
	expect(t, b, "")
	revoked = true
	b.Recheck(at(2 * time.Second))
	r := expect(t, b, "b refused/2, d refused/2")
	if got := r.Reports[0]; got.Result == nil || got.Result.Error.Kind != muster.Denied || got.History[1].Reason != "revoked" {
		t.Errorf("the report: %+v", got)
	}
	if len(r.Writes) == 0 {
		t.Error("it is reported without a write")
	}
	if len(r.Refused) != 2 || r.Refused[0].Command.ID != "b" || r.Refused[1].Command.ID != "d" {
		t.Errorf("refused: %+v", r.Refused)
	}
	b.Finished(at(3*time.Second), "a", bad)
	expect(t, b, "a failed/3, start c/1")
}

// TestRecheckAtStart: an agent that begins with commands of a revoked caller in
// its journal begins none of them, and one that failed is not tried again.
func TestRecheckAtStart(t *testing.T) {
	b := New(Config{}, State{}, t0)
	for _, c := range []struct{ id, method, how string }{{"wait", "m", ""}, {"again", "n", "i"}, {"retry", "o", ""}, {"late", "m", ""}} {
		d := command(c.id, c.method, c.how)
		d.Signer.Key = "thief"
		d.Command.Retries = 1
		b.Deliver(t0, d)
	}
	b.Finished(t0, "retry", bad)
	records := map[muster.CommandID]Record{}
	b.Flush()
	for _, w := range b.Ready().Writes {
		if w.Put != nil {
			records[w.Put.Command.ID] = *w.Put
		}
	}
	var s State
	for _, r := range records {
		s.Records = append(s.Records, r)
	}
	all := func(Record) *muster.Error { return muster.Errorf(muster.Denied, "revoked") }
	b = New(Config{Revoked: all}, s, at(time.Second))
	// What must not run twice is unknown for another reason.
	if r := expect(t, b, "again unknown/4, late refused/2, retry failed/4, wait unknown/3"); len(r.Refused) != 3 {
		t.Errorf("refused: %+v", r.Refused)
	}
	if b.Len() != 0 {
		t.Errorf("%d commands are left", b.Len())
	}
}
