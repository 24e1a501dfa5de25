package cli

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// retrying knows the commands of one send.
type retrying struct {
	fakeSDK
	first []client.Status
}

func (f *retrying) Command(context.Context, muster.Key) ([]client.Status, error) {
	return slices.Clone(f.first), nil
}

func TestRetryAsTheFirstTime(t *testing.T) {
	first := client.Status{ID: "S0", Node: "a", Method: "echo", Input: []byte(`{"text":"x"}`), State: muster.Failure,
		Sent: noon.Add(-time.Hour), Deadline: noon.Add(-30 * time.Minute),
		Timeout: time.Minute, Retries: 2, NoSeq: true, Idempotent: true}
	unbounded := first
	unbounded.Timeout = -1
	for _, test := range []struct {
		name  string
		first client.Status
		args  []string
		want  client.Request
	}{
		{"as it was", first, nil, client.Request{Timeout: time.Minute, Retries: 2, NoSeq: true, Idempotent: true, Deadline: noon.Add(30 * time.Minute)}},
		{"no timeout", unbounded, nil, client.Request{Timeout: -1, Retries: 2, NoSeq: true, Idempotent: true, Deadline: noon.Add(30 * time.Minute)}},
		{"other bounds", first, []string{"--timeout", "5s", "--retries", "0", "--noseq=false", "--deadline", "2h"},
			client.Request{Timeout: 5 * time.Second, Idempotent: true, Deadline: noon.Add(2 * time.Hour)}},
		{"without its record", client.Status{ID: "S0", Node: "a", Method: "echo", State: muster.Failure}, nil,
			client.Request{Deadline: noon.Add(client.DefaultLifetime)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := &retrying{fakeSDK{nodes: two(true)}, []client.Status{test.first}}
			code, _, errs := tryWith(t.Context(), f, append([]string{"command", "retry", "S0"}, test.args...)...)
			if code != ExitOK || len(f.sent) != 1 {
				t.Fatalf("got exit code %d and %d sends: %s", code, len(f.sent), errs)
			}
			got := f.sent[0]
			if got.Timeout != test.want.Timeout || got.Retries != test.want.Retries || got.NoSeq != test.want.NoSeq ||
				got.Idempotent != test.want.Idempotent || !got.Deadline.Equal(test.want.Deadline) {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestUnknownMethodSaysWhereToLook(t *testing.T) {
	code, _, errs := try(t.Context(), &fakeSDK{nodes: two(true)}, "send", "nothing.like.it", "-t", "all")
	if code != ExitError || !strings.Contains(errs, "hint: 'muster method ls'") {
		t.Errorf("got exit code %d and %q", code, errs)
	}
}

func TestWaitShowsShortOutput(t *testing.T) {
	done := endedAs(muster.Done, 0, "one\ntwo")
	done.Result.Output = []byte(`{"text":"hi"}`)
	long := endedAs(muster.Done, 0, strings.Repeat("x", 5000))
	f := &fakeSDK{nodes: two(true), outcome: map[muster.NodeName]client.Status{"a": done, "bb": long}}
	_, out, _ := try(t.Context(), f, "send", "echo", "hello", "-t", "all", "--wait")
	want := `NODE  STATE  EXIT  TIME  REASON
a     done   0     -     -
  {"text":"hi"}
  one
  two
bb    done   0     -     -
  5000 bytes of stdout: muster command show S1@bb
`
	if out != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
}

// What an interrupted run left behind is shown.
func TestShowLeftOver(t *testing.T) {
	s := endedAs(muster.Unknown, 0, "")
	s.ID, s.Node = "S0", "a"
	s.Result = &muster.Result{Child: &muster.Child{PID: 4711, Started: noon, Ended: 3}}
	f := &retrying{fakeSDK{nodes: two(true)}, []client.Status{s}}
	if _, out, _ := tryWith(t.Context(), f, "command", "show", "S0"); !strings.Contains(out, "left over process 4711, started "+stamp(noon)+", and 2 more, ended by the next agent\n") {
		t.Errorf("got\n%s", out)
	}
	if _, out, _ := tryWith(t.Context(), f, "command", "show", "S0", "-o", "jsonl"); !strings.Contains(out, `"child":{"pid":4711,`) {
		t.Errorf("got\n%s", out)
	}
}

// A machine that gets the name of a node that was removed must not get what was
// sent to that.
func TestRetrySendsNothingToANodeThatWasRemoved(t *testing.T) {
	failed := func(n muster.NodeName) client.Status {
		return client.Status{ID: "S0", Node: n, Method: "echo", Input: []byte(`{"text":"x"}`), State: muster.Failure}
	}
	for _, test := range []struct {
		name  string
		first []client.Status
		code  int
		sent  []muster.NodeName
		say   string
	}{
		{"it alone", []client.Status{failed("web3")}, ExitNothing, nil, "error: no node web3 in the fleet any more"},
		{"and another", []client.Status{failed("a"), failed("web3")}, ExitOK, []muster.NodeName{"a"}, "warning: web3 is in the fleet no more"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := &retrying{fakeSDK{nodes: two(true)}, test.first}
			code, _, errs := tryWith(t.Context(), f, "command", "retry", "S0")
			var sent []muster.NodeName
			for _, r := range f.sent {
				sent = append(sent, r.Nodes...)
			}
			if code != test.code || !slices.Equal(sent, test.sent) || !strings.Contains(errs, test.say) {
				t.Errorf("got exit code %d, sent to %v: %s", code, sent, errs)
			}
		})
	}
}

// What follows from a node's silence is said once, by the reason itself.
func TestReasonOfInferredIsSaidOnce(t *testing.T) {
	s := client.Status{State: muster.Cancelled, Inferred: true, Reason: "the node was removed, and the command with its queue"}
	if got := reason(s); got != s.Reason {
		t.Errorf("got %q, want %q", got, s.Reason)
	}
}
