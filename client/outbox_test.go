package client

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/musterfleet/muster"
)

// A sender whose send was set aside by another one, since its id is taken, is told
// so, and does not believe that it was published.
func TestSetAsideByAnotherSender(t *testing.T) {
	o, err := openOutbox(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := &Client{outbox: o}
	for _, taken := range []bool{false, true} {
		e, err := o.add(t.Context(), batch{Sent: sent{ID: "same"}, Chosen: true})
		if err != nil {
			t.Fatal(err)
		}
		want := muster.ErrorKind("")
		if taken {
			_ = o.setAside(e.name, errTaken) // always an error
			want = muster.Conflict
		} else if err := o.remove(e.name); err != nil {
			t.Fatal(err)
		}
		if _, kept, err := c.flushThrough(t.Context(), e); muster.KindOf(err) != want || kept == taken {
			t.Errorf("taken is %t: kept is %t, %v", taken, kept, err)
		}
		if left, err := o.list(unreadableSuffix); len(left) != 0 || err != nil {
			t.Errorf("%q are left, %v", left, err)
		}
	}
}

// Senders that are killed while they write leave one file at most, which the next
// one uses.
func TestUnfinishedSendIsGone(t *testing.T) {
	o, err := openOutbox(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(o.dir, unfinished), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	e, err := o.add(t.Context(), batch{Sent: sent{ID: "id"}})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := o.read(e.name); b.Sent.ID != "id" || err != nil {
		t.Errorf("got %+v, %v", b.Sent, err)
	}
	entries, err := os.ReadDir(o.dir)
	if len(entries) != 2 || err != nil { // with the lock
		t.Errorf("there are %v, %v", entries, err)
	}
}

// What was set aside is not mistaken for a later send of the same id.
func TestSetAsideKeepsItsName(t *testing.T) {
	o, err := openOutbox(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	first, err := o.add(t.Context(), batch{Sent: sent{ID: "same"}})
	if err != nil {
		t.Fatal(err)
	}
	_ = o.setAside(first.name, errTaken) // always an error
	second, err := o.add(t.Context(), batch{Sent: sent{ID: "same"}})
	if err != nil || second.name == first.name {
		t.Errorf("got %v after %v, %v", second, first, err)
	}
}

func waiting(id muster.CommandID, input string, nodes ...muster.NodeName) batch {
	now := time.Now()
	s := sent{ID: id, Method: "echo", Input: []byte(input), Nodes: nodes, IssuedAt: now, Deadline: now.Add(time.Hour)}
	return batch{Sent: s, Chosen: true}
}

// The same under the same id takes one place, whatever else waits.
func TestRepetitionTakesOnePlace(t *testing.T) {
	o, err := openOutbox(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name   string
		batch  batch
		waited bool
		kind   muster.ErrorKind
		places int
	}{
		{"the first", waiting("x", `{"a":1,"b":2}`, "n1", "n2"), false, "", 1},
		{"the same", waiting("x", `{"b":2, "a":1}`, "n1", "n2"), true, "", 1},
		{"one of its nodes", waiting("x", `{"a":1,"b":2}`, "n2"), true, "", 1},
		{"something else", waiting("x", `{"a":2}`, "n1"), false, muster.Conflict, 1},
		{"a further node", waiting("x", `{"a":1,"b":2}`, "n1", "n3"), false, "", 2},
		{"the same again", waiting("x", `{"a":1,"b":2}`, "n3"), true, "", 2},
		{"an id that ends alike", waiting("y-x", `{"a":3}`, "n1"), false, "", 3},
		{"an id that nobody chose", batch{Sent: sent{ID: "x"}}, false, "", 4},
	} {
		e, err := o.add(t.Context(), step.batch)
		if muster.KindOf(err) != step.kind || e != nil && e.waited != step.waited {
			t.Errorf("%s: got %+v, %v", step.name, e, err)
		}
		if e != nil {
			e.release()
		}
		if names, err := o.list(outboxSuffix); len(names) != step.places || err != nil {
			t.Errorf("%s: %q are in the outbox, %v", step.name, names, err)
		}
	}
}

// A repetition has the deadline of the first; after that it is a new send.
func TestRepetitionAfterTheDeadline(t *testing.T) {
	o, err := openOutbox(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	first := waiting("x", "{}", "n1")
	e, err := o.add(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	e.release()
	again := first
	again.Sent.IssuedAt, again.Sent.Deadline = first.Sent.Deadline.Add(-time.Second), first.Sent.Deadline.Add(time.Hour)
	if e, err := o.add(t.Context(), again); err != nil || !e.waited || !e.deadline.Equal(first.Sent.Deadline) {
		t.Errorf("before the deadline: %+v, %v", e, err)
	}
	again.Sent.IssuedAt = first.Sent.Deadline
	if e, err = o.add(t.Context(), again); err != nil || e.waited || !e.deadline.Equal(again.Sent.Deadline) {
		t.Errorf("at the deadline: %+v, %v", e, err)
	}
	e.release()
	if e, err := o.add(t.Context(), first); err != nil || !e.waited || !e.deadline.Equal(first.Sent.Deadline) {
		t.Errorf("of two that wait: %+v, %v", e, err)
	}
}

// What is still in the hands of its sender may be taken back: nobody else relies
// on it.
func TestRepetitionBesideTheFirstSender(t *testing.T) {
	o, err := openOutbox(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	first, err := o.add(t.Context(), waiting("x", "{}", "n1"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := o.add(t.Context(), waiting("x", "{}", "n1"))
	if err != nil || second.waited {
		t.Fatalf("while the first is at work: %+v, %v", second, err)
	}
	if o.withdraw(first) || o.withdraw(second) {
		t.Error("what was added for an error stays")
	}
	first.release()
	second.release()
	third, err := o.add(t.Context(), waiting("x", "{}", "n1"))
	if err != nil {
		t.Fatal(err)
	}
	third.release() // and was told that it is kept
	fourth, err := o.add(t.Context(), waiting("x", "{}", "n1"))
	if err != nil || !fourth.waited || !o.withdraw(fourth) {
		t.Errorf("what was kept before: %+v, %v", fourth, err)
	}
	// Set aside by another sender, it stays to be seen when the repetition is told.
	_ = o.setAside(third.name, errTaken) // always an error
	for range 2 {
		if err := o.takenBack(fourth); muster.KindOf(err) != muster.Conflict {
			t.Errorf("set aside: %v", err)
		}
	}
}
