package client

import (
	"os"
	"path/filepath"
	"testing"

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
		name, err := o.add(t.Context(), batch{Sent: sent{ID: "same"}, Chosen: true})
		if err != nil {
			t.Fatal(err)
		}
		want := muster.ErrorKind("")
		if taken {
			_ = o.setAside(name, errTaken) // always an error
			want = muster.Conflict
		} else if err := o.remove(name); err != nil {
			t.Fatal(err)
		}
		if _, kept, err := c.flushThrough(t.Context(), name); muster.KindOf(err) != want || kept == taken {
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
	name, err := o.add(t.Context(), batch{Sent: sent{ID: "id"}})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := o.read(name); b.Sent.ID != "id" || err != nil {
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
	_ = o.setAside(first, errTaken) // always an error
	second, err := o.add(t.Context(), batch{Sent: sent{ID: "same"}})
	if err != nil || second == first {
		t.Errorf("got %q after %q, %v", second, first, err)
	}
}
