package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/musterfleet/muster/internal/methods/onsite"
	"github.com/musterfleet/muster/internal/participant"
)

// TestARelayIsKilledInAQuery: behind two scouts there are some that nobody else
// knows. One of the two is killed when all have begun; whoever would have answered
// through it answers through the other one, long before the time is over, and runs
// nothing a second time.
func TestARelayIsKilledInAQuery(t *testing.T) {
	w := newWorld(t)
	entry, left, right := freePort(t), freePort(t), freePort(t)
	w.start("entry", entry)
	relay := w.start("left", left, entry)
	w.start("right", right, entry)
	names := []string{"entry", "left", "right"}
	for i := range 4 {
		name := fmt.Sprintf("far%d", i)
		w.start(name, freePort(t), left, right)
		names = append(names, name)
	}
	o := w.operate(entry)
	w.called(o, len(names))

	marks := t.TempDir()
	begun := func() int {
		files, err := os.ReadDir(marks)
		if err != nil {
			t.Error(err)
		}
		return len(files)
	}
	killed := make(chan error, 1)
	go func() {
		for end := time.Now().Add(patience); begun() < len(names) && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		killed <- relay.Process.Kill()
	}()
	const within = 60 * time.Second
	script := onsite.Script{Script: "mktemp " + filepath.Join(marks, "XXXXXX") + " && sleep 2"}
	var answered []string
	began := time.Now()
	silent, err := o.Query(t.Context(), participant.Query{Method: "script", Args: script.Encode(), Within: within}, func(a participant.Answer) {
		answer, err := onsite.DecodeAnswer(a.Data)
		if err != nil {
			t.Error(err)
		}
		answered = append(answered, answer.Node)
		o.Learn(a.ID, answer.Node)
	})
	if bad := <-killed; err != nil || bad != nil {
		t.Fatal(err, bad)
	}
	slices.Sort(answered)
	slices.Sort(names)
	living := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == "left" })
	if !slices.Equal(answered, living) || len(silent) != 1 {
		t.Errorf("%v answered, and %v did not", answered, silent)
	}
	if took := time.Since(began); took > within/2 {
		t.Errorf("the query took %s", took)
	}
	if n := begun(); n != len(names) {
		t.Errorf("the query was run %d times by %d members", n, len(names))
	}
	locked, err := o.Release(t.Context())
	if err != nil || len(locked) != 1 || locked[0].ID != silent[0].ID || locked[0].Until.Before(time.Now()) {
		t.Errorf("after the release %v, %v; want the one that is dead, with a time", locked, err)
	}
}
