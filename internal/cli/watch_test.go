package cli

import (
	"context"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// leaving is a broker that is away for a while when something is followed.
type leaving struct{ fakeSDK }

func (f *leaving) Follow(ctx context.Context, id muster.CommandID, handle func(client.Update) error) error {
	for _, l := range []client.Link{{Lost: true, Since: noon}, {Since: noon.Add(time.Minute)}} {
		if err := handle(client.Update{Link: &l}); err != nil {
			return err
		}
	}
	return f.fakeSDK.Follow(ctx, id, handle)
}

func (f *leaving) FollowStates(ctx context.Context, id muster.CommandID, handle func(client.Update) error) error {
	return f.Follow(ctx, id, handle) // without chunks
}

const awayLines = "; nodes go on with what they have, and this goes on when it is back; Ctrl-C ends only the watching of S1\n" +
	"broker back after 1m; nothing was missed\n"

func TestRunSaysThatTheBrokerIsAway(t *testing.T) {
	f := &leaving{fakeSDK{nodes: two(true), outcome: map[muster.NodeName]client.Status{"a": endedAs(muster.Done, 0, "x"), "bb": endedAs(muster.Done, 0, "y")}}}
	for _, args := range [][]string{{"run", "-t", "all", "-o", "json", "--", "x"}, {"send", "shell.run", "-t", "all", "--wait", "-o", "json", "--", "x"}} {
		code, out, errs := tryWith(t.Context(), f, args...)
		if want := "broker away since " + noon.Local().Format("15:04:05") + awayLines; code != ExitOK || errs != want {
			t.Errorf("%s: got exit code %d and %q, want %q", args[0], code, errs, want)
		}
		if !json.Valid([]byte(out)) {
			t.Errorf("%s: stdout is no JSON: %q", args[0], out)
		}
	}
}

// On a terminal the lines replace the progress, which says it too.
func TestProgressSaysThatTheBrokerIsAway(t *testing.T) {
	var errs strings.Builder
	p := &program{stdout: &errs, stderr: &errs, errTerm: terminal{is: true, width: 200}}
	w := p.watch(nil, true)
	w.expect(client.Receipt{ID: "S1", Nodes: []muster.NodeName{"a"}}, client.Request{}, client.Status{})
	for _, l := range []client.Link{{Lost: true, Since: noon}, {Since: noon.Add(time.Minute)}} {
		if err := w.update(t.Context(), client.Update{Link: &l}); err != nil {
			t.Fatal(err)
		}
	}
	want := "broker away since " + noon.Local().Format("15:04:05") + strings.Replace(awayLines, "\n", "\nbroker away  0/1  queued 1: a\r\x1b[K", 1) + "0/1  queued 1: a"
	if got := errs.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// slow is a broker that answers after a while.
type slow struct{ fakeSDK }

func (f *slow) Select(ctx context.Context, expr string) ([]client.Node, error) {
	time.Sleep(3 * time.Second)
	return f.fakeSDK.Select(ctx, expr)
}

func (f *slow) Send(ctx context.Context, r client.Request) (client.Receipt, error) {
	time.Sleep(3 * time.Second)
	return f.fakeSDK.Send(ctx, r)
}

// Nobody is left without a word for more than a second, and a broker that
// answers sooner causes none.
func TestSlowBrokerIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fakeSDK{nodes: two(true)}
		_, out, errs := tryWith(t.Context(), &slow{f}, "send", "echo", "hello", "-t", "all")
		want := "waiting for the broker, and for nodes to answer ...\nwaiting for the broker to store the commands ...\n"
		if out != "S1\n" || !strings.HasPrefix(errs, want) {
			t.Errorf("got %q and %q, want it to begin with %q", out, errs, want)
		}
		if _, _, errs := tryWith(t.Context(), &f, "send", "echo", "hello", "-t", "all"); strings.Contains(errs, "waiting") {
			t.Errorf("a fast broker: %q", errs)
		}
	})
}

// late is a fleet whose output comes after a while.
type late struct{ *writing }

func (f late) Output(ctx context.Context, s client.Status, stream string, w io.Writer) error {
	time.Sleep(3 * time.Second)
	return f.writing.Output(ctx, s, stream, w)
}

func TestLateOutputIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, out, errs := tryWith(t.Context(), late{withOutput("one", "two")}, "run", "-t", "all", "-o", "jsonl", "--", "x")
		if want := "waiting for stdout of S1@a ...\nwaiting for stdout of S1@bb ...\n"; errs != want {
			t.Errorf("got %q, want %q", errs, want)
		}
		if got := parseOutcomes(t, "jsonl", out); len(got) != 2 || got[0]["stdout"] != "one" || got[1]["stdout"] != "two" {
			t.Errorf("got %v", got)
		}
	})
}

// away is a broker that goes away after the first batch, and is back later.
type away struct {
	fakeSDK
	flushes int
}

func (f *away) Send(ctx context.Context, r client.Request) (client.Receipt, error) {
	receipt, err := f.fakeSDK.Send(ctx, r)
	receipt.Outbox = len(f.sent) == 2
	return receipt, err
}

func (f *away) FlushOutbox(context.Context) (int, error) {
	if f.flushes++; f.flushes < 3 {
		return 0, muster.Errorf(muster.Unavailable, "no broker answers")
	}
	return 1, nil
}

func TestRollingWaitsForTheBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		done := endedAs(muster.Done, 0, "")
		f := &away{fakeSDK: fakeSDK{nodes: two(true), outcome: map[muster.NodeName]client.Status{"a": done, "bb": done}}}
		code, _, errs := tryWith(t.Context(), f, "run", "-t", "all", "--batch", "1", "--", "x")
		if code != ExitOK || len(f.sent) != 2 || f.flushes != 3 || !strings.Contains(errs, "the rolling send goes on when it is back") {
			t.Errorf("got exit code %d, %d sends, %d flushes and %q", code, len(f.sent), f.flushes, errs)
		}
	})
}

// A file of another send that cannot be read is set aside, and stops no batch.
func TestRollingGoesOnBesideAnUnreadableSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		done := endedAs(muster.Done, 0, "")
		f := &unreadable{away: away{fakeSDK: fakeSDK{nodes: two(true), outcome: map[muster.NodeName]client.Status{"a": done, "bb": done}}}}
		code, _, errs := tryWith(t.Context(), f, "run", "-t", "all", "--batch", "1", "--", "x")
		if code != ExitOK || len(f.sent) != 2 || !strings.Contains(errs, "error: it is set aside") || strings.Contains(errs, "stopped") {
			t.Errorf("got exit code %d, %d sends and %q", code, len(f.sent), errs)
		}
	})
}

// unreadable is an away broker, with such a file in the outbox.
type unreadable struct{ away }

func (f *unreadable) FlushOutbox(ctx context.Context) (int, error) {
	n, err := f.away.FlushOutbox(ctx)
	if f.flushes == 3 {
		err = muster.Errorf(muster.Corrupt, "it is set aside")
	}
	return n, err
}

// full is a broker that takes only the first batch.
type full struct{ fakeSDK }

func (f *full) Send(ctx context.Context, r client.Request) (client.Receipt, error) {
	if len(f.sent) > 0 {
		return client.Receipt{}, muster.Errorf(muster.Full, "the broker has no room")
	}
	return f.fakeSDK.Send(ctx, r)
}

func TestRollingSaysWhyItStops(t *testing.T) {
	f := &full{fakeSDK{nodes: two(true), outcome: map[muster.NodeName]client.Status{"a": endedAs(muster.Done, 0, "")}}}
	code, _, errs := tryWith(t.Context(), f, "run", "-t", "all", "--batch", "1", "--", "x")
	if code != ExitFailed || !strings.Contains(errs, "error: the broker has no room") || !strings.Contains(errs, "not sent") {
		t.Errorf("got exit code %d and %q", code, errs)
	}
}

// going is a fleet of which one node goes away while it is waited for.
type going struct {
	fakeSDK
	looks int
}

func (f *going) Away(_ context.Context, nodes []muster.NodeName) (map[muster.NodeName]time.Time, error) {
	f.looks++
	away := map[muster.NodeName]time.Time{}
	if slices.Contains(nodes, "bb") && f.looks < 4 {
		away["bb"] = noon
	}
	return away, nil
}

func TestRunSaysWhichNodeWentAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &going{fakeSDK: fakeSDK{nodes: two(true), outcome: map[muster.NodeName]client.Status{"a": endedAs(muster.Done, 0, "")}}}
		code, _, errs := tryWith(t.Context(), f, "run", "-t", "all", "--wait-for", "100s", "--", "x")
		want := "away: bb; waiting until it is back; Ctrl-C ends only the watching of S1\nback: bb\n"
		if code != ExitPending || f.looks != 6 || !strings.HasPrefix(errs, want) {
			t.Errorf("got exit code %d after %d looks and %q, want it to begin with %q", code, f.looks, errs, want)
		}
	})
}
