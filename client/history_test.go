package client

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

var testSubjects = bus.Subjects{Prefix: "muster", Shards: 1}

func stored(t testing.TB, subject string, v any) bus.Stored {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return bus.Stored{Subject: subject, Data: data}
}

// The state of a command does not depend on the order in which its records
// are read, nor on their being read twice.
func TestLedgerOrder(t *testing.T) {
	now := time.Now().UTC()
	report := func(states ...muster.State) muster.Report {
		r := muster.Report{ID: "x", Node: "a.b", Method: "echo", Caller: "alice", IssuedAt: now, Deadline: now.Add(time.Hour)}
		for _, s := range states {
			r.History = append(r.History, muster.Transition{State: s, Time: now})
		}
		r.Seq = len(r.History)
		return r
	}
	key := muster.Key{ID: "x", Node: "a.b"}
	records := []bus.Stored{
		stored(t, testSubjects.Sent("x"), sent{ID: "x", Caller: "alice", Method: "echo", Nodes: []muster.NodeName{"a.b"}, IssuedAt: now, Deadline: now.Add(time.Hour)}),
		stored(t, testSubjects.Report(key), report(muster.Accepted)),
		stored(t, testSubjects.Report(key), report(muster.Accepted, muster.Running, muster.Done)),
		// What the broker writes when somebody makes it answer to this subject.
		{Subject: testSubjects.Report(key), Data: []byte(`{"stream":"MUSTER_NODES","seq":9}`)},
		// What another node might claim.
		stored(t, testSubjects.Report(muster.Key{ID: "x", Node: "c"}), report(muster.Failure)),
	}
	for _, order := range [][]int{{0, 1, 2, 3, 4}, {4, 3, 2, 1, 0}, {2, 0, 1, 4, 3, 0, 1, 2}} {
		l := newLedger(testSubjects)
		for _, i := range order {
			l.add(records[i])
		}
		all := l.list(HistoryQuery{})
		if len(all) != 1 || all[0].State != muster.Done || len(all[0].History) != 4 || all[0].Caller != "alice" {
			t.Errorf("order %v: got %+v", order, all)
		}
	}
}

// A deadline without a word from the node is taken for expired; the node's
// word, when it comes, counts more.
func TestInfer(t *testing.T) {
	now := time.Now()
	s := Status{State: muster.Queued, Deadline: now, History: []muster.Transition{{State: muster.Queued}}}
	l := newLedger(testSubjects)
	if got := l.infer(s, now.Add(inferAfter/2)); got.State != muster.Queued {
		t.Errorf("within the margin: got %s", got.State)
	}
	if got := l.infer(s, now.Add(2*inferAfter)); got.State != muster.Expired || !got.Inferred || len(s.History) != 1 {
		t.Errorf("after the margin: got %+v", got)
	} else if want := "the node said nothing of the command before its deadline"; got.Reason != want {
		t.Errorf("after the margin: got %q, want %q", got.Reason, want)
	}
	s.State = muster.Accepted
	if got := l.infer(s, now.Add(2*inferAfter)); got.State != muster.Accepted {
		t.Errorf("accepted by the node: got %s", got.State)
	}
}

// Of what a removed node did not end, that is said, unless it did after all.
func TestInferOfARemovedNode(t *testing.T) {
	now := time.Now().UTC()
	gone := sent{ID: "x", Method: "echo", Nodes: nil, IssuedAt: now, Deadline: now.Add(time.Hour), Gone: []muster.NodeName{"a"}, GoneAt: now.Add(time.Minute)}
	reasons := map[muster.State]string{
		muster.Cancelled: "the node was removed, and the command with its queue",
		muster.Unknown:   "the node was removed before it said how the command ended",
	}
	for state, want := range map[muster.State]muster.State{"": muster.Cancelled, muster.Accepted: muster.Unknown, muster.Running: muster.Unknown, muster.Done: muster.Done} {
		l := newLedger(testSubjects)
		l.add(stored(t, testSubjects.Sent("x"), gone))
		l.add(stored(t, testSubjects.Sent("x"), sent{ID: "x", Caller: "alice", Method: "echo", Nodes: []muster.NodeName{"a"}, IssuedAt: now, Deadline: now.Add(time.Hour)}))
		if state != "" {
			r := muster.Report{ID: "x", Node: "a", Method: "echo", IssuedAt: now, Deadline: now.Add(time.Hour), Seq: 1, History: []muster.Transition{{State: state, Time: now}}}
			l.add(stored(t, testSubjects.Report(r.Key()), r))
		}
		all := l.list(HistoryQuery{})
		if len(all) != 1 || all[0].State != want || all[0].Inferred != (state != muster.Done) || all[0].Reason != reasons[want] {
			t.Errorf("%q: got %+v, want %s", state, all, want)
		}
	}
}

// Who sent something is what the node verified. Until then there is what the
// sender says, and a second sender that takes the same id changes nothing.
func TestLedgerTellsWhatIsClaimed(t *testing.T) {
	now := time.Now().UTC()
	record := func(caller string, m muster.Method) bus.Stored {
		return stored(t, testSubjects.Sent("x"), sent{ID: "x", Caller: caller, Method: m, Input: []byte(`{"by":"` + caller + `"}`), Nodes: []muster.NodeName{"a"}, IssuedAt: now, Deadline: now.Add(time.Hour)})
	}
	l := newLedger(testSubjects)
	l.add(record("alice", "echo"))
	l.add(record("mallory", "shell.run"))
	if s := l.list(HistoryQuery{})[0]; s.Caller != "" || s.Claimed != "alice" || s.Method != "echo" || string(s.Input) != `{"by":"alice"}` {
		t.Errorf("got %+v", s)
	}
	r := muster.Report{ID: "x", Node: "a", Method: "echo", Caller: "alicia", IssuedAt: now, Deadline: now.Add(time.Hour), Seq: 1, History: []muster.Transition{{State: muster.Accepted, Time: now}}}
	l.add(stored(t, testSubjects.Report(r.Key()), r))
	if s := l.list(HistoryQuery{})[0]; s.Caller != "alicia" {
		t.Errorf("got %+v", s)
	}
}

func FuzzLedger(f *testing.F) {
	f.Add("muster.report.x.n", []byte(`{"id":"x","node":"n","seq":1,"history":[{"state":"done"}]}`))
	f.Add("muster.sent.x", []byte(`{"id":"x","nodes":["n"],"refused":[{"node":"n"}]}`))
	f.Fuzz(func(t *testing.T, subject string, data []byte) {
		l := newLedger(testSubjects)
		l.add(bus.Stored{Subject: subject, Data: data})
		l.add(bus.Stored{Subject: subject, Data: data})
		l.list(HistoryQuery{})
	})
}

// A command can be sent again as it was sent the first time.
func TestLedgerKeepsHowItWasSent(t *testing.T) {
	now := time.Now().UTC()
	l := newLedger(testSubjects)
	l.add(stored(t, testSubjects.Sent("x"), sent{ID: "x", Method: "echo", Nodes: []muster.NodeName{"a"}, IssuedAt: now, Deadline: now.Add(time.Hour),
		TimeoutMS: -1, Retries: 3, NoSeq: true, Idempotent: true}))
	all := l.list(HistoryQuery{})
	if len(all) != 1 || all[0].Timeout != -1 || all[0].Retries != 3 || !all[0].NoSeq || !all[0].Idempotent {
		t.Errorf("got %+v", all)
	}
	if got := (sent{TimeoutMS: 1 << 62}).timeout(); got != 0 {
		t.Errorf("a timeout that cannot be: got %s, want 0", got)
	}
}
