package client

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// A rolling send is not over when its first batch is, as long as more of its
// history has yet to be read; output that comes in between changes nothing.
func TestFollowReadsAllBatches(t *testing.T) {
	now := time.Now().UTC()
	f := &follower{handle: func(Update) error { return nil }, ledger: newLedger(testSubjects),
		streams: map[streamKey]*streamState{}, final: map[muster.Key]bool{}, told: map[muster.Key]int{}}
	batch := func(node muster.NodeName, pending uint64) bus.Stored {
		m := stored(t, testSubjects.Sent("x"), sent{ID: "x", Method: "echo", Nodes: []muster.NodeName{node}, IssuedAt: now, Deadline: now.Add(time.Hour)})
		m.Pending = pending
		return m
	}
	report := func(node muster.NodeName, pending uint64) bus.Stored {
		r := muster.Report{ID: "x", Node: node, Method: "echo", IssuedAt: now, Deadline: now.Add(time.Hour), Seq: 1,
			History: []muster.Transition{{State: muster.Done, Time: now}}}
		m := stored(t, testSubjects.Report(r.Key()), r)
		m.Pending = pending
		return m
	}
	for i, step := range []func() error{
		func() error { return f.report(batch("a", 3)) },
		func() error { return f.report(report("a", 2)) },
		func() error {
			return f.output(bus.Stored{Subject: testSubjects.Output(muster.Key{ID: "x", Node: "a"}, bus.Stdout)})
		},
		func() error { return f.expire(now.Add(time.Second)) },
		func() error { return f.report(batch("b", 1)) },
	} {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	if err := f.report(report("b", 0)); !errors.Is(err, errFinished) {
		t.Errorf("at the end: %v", err)
	}
}

// Who follows the states alone is told of an end at once, whatever output there is.
func TestFollowStatesNeedsNoOutput(t *testing.T) {
	now := time.Now().UTC()
	var told []muster.State
	f := &follower{statesOnly: true, ledger: newLedger(testSubjects), final: map[muster.Key]bool{}, told: map[muster.Key]int{},
		handle: func(u Update) error {
			told = append(told, u.Status.State)
			return nil
		}}
	r := muster.Report{ID: "x", Node: "a", Method: "echo", IssuedAt: now, Deadline: now.Add(time.Hour), Seq: 1,
		History: []muster.Transition{{State: muster.Done, Time: now}}, Result: &muster.Result{Stdout: muster.Output{Size: 1 << 20}}}
	if err := f.report(stored(t, testSubjects.Report(r.Key()), r)); !errors.Is(err, errFinished) {
		t.Errorf("got %v", err)
	}
	if !slices.Equal(told, []muster.State{muster.Done}) {
		t.Errorf("told %q", told)
	}
}
