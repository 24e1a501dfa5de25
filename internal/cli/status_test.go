package cli

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// looked is a fleet as 'muster status' asks for it.
type looked struct {
	fakeSDK
	history []client.Status
	waiting []client.Waiting
	dead    uint64
	err     error
}

func (f *looked) Nodes(context.Context) ([]client.Node, error) { return f.nodes, f.err }
func (f *looked) Outbox() ([]client.Waiting, error)            { return f.waiting, nil }
func (f *looked) History(context.Context, client.HistoryQuery) ([]client.Status, error) {
	return f.history, nil
}
func (f *looked) DeadLetterCount(context.Context) (uint64, error) { return f.dead, nil }

func TestStatus(t *testing.T) {
	t.Setenv("MUSTER_CONFIG", t.TempDir())
	nodes := []client.Node{{Name: "a", Online: true}, {Name: "b", LastSeen: noon}, {Name: "c"}}
	sick := append([]client.Node{{Name: "d", Online: true, Problems: []string{"disk is full"}}}, nodes...)
	state := func(states ...muster.State) (all []client.Status) {
		for _, s := range states {
			all = append(all, client.Status{State: s})
		}
		return all
	}
	for _, test := range []struct {
		name string
		f    looked
		code int
		want string
	}{
		{"well", looked{fakeSDK: fakeSDK{nodes: nodes}, history: state(muster.Queued, muster.Done, muster.Done)}, ExitOK, "1 of 3 online, 1 away, 1 invited"},
		{"waiting is no fault", looked{history: state(muster.Queued, muster.Running, muster.Expired), waiting: make([]client.Waiting, 2)}, ExitOK, "1 waiting, 1 running, 1 expired in the last 24h"},
		{"failed", looked{history: state(muster.Failure, muster.Unknown)}, ExitFailed, "see: muster command ls --state failed,unknown"},
		{"a problem", looked{fakeSDK: fakeSDK{nodes: sick}}, ExitFailed, "d: disk is full"},
		{"a dead letter", looked{dead: 4}, ExitFailed, "4; see: muster deadletter ls"},
		{"no broker", looked{err: muster.Errorf(muster.Unavailable, "no broker answers"), waiting: make([]client.Waiting, 2)}, ExitError, "2 sends wait"},
	} {
		t.Run(test.name, func(t *testing.T) {
			code, out, errs := tryWith(t.Context(), &test.f, "status")
			if code != test.code || !strings.Contains(out, test.want) {
				t.Errorf("got exit code %d, want %d, and\n%s%s, want it to contain %q", code, test.code, out, errs, test.want)
			}
		})
	}
	code, out, _ := tryWith(t.Context(), &looked{err: muster.Errorf(muster.Unavailable, "no broker answers")}, "status", "-o", "json")
	var got struct{ Broker string }
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != ExitError || got.Broker != "no broker answers" {
		t.Errorf("got exit code %d and %s (%v)", code, out, err)
	}
}
