package cli

import (
	"bytes"
	"context"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// coming is a broker with events that goes away after each, and answers no
// question in between.
type coming struct {
	fakeSDK
	asked []time.Time
	stop  func()
}

func (f *coming) Events(_ context.Context, q client.EventQuery, handle func(client.Event) error) error {
	f.asked = append(f.asked, q.Since)
	first := client.Event{Time: noon, Node: "a", Type: "orphans", Message: "first"}
	switch len(f.asked) {
	case 1:
		if err := handle(first); err != nil {
			return err
		}
		time.Sleep(time.Minute)
	case 2: // still away
	case 3:
		for _, e := range []client.Event{first, {Time: noon.Add(time.Second), Node: "a", Type: "orphans", Message: "second"}} {
			if err := handle(e); err != nil {
				return err
			}
		}
		time.Sleep(time.Minute)
	default:
		f.stop()
		return context.Canceled
	}
	return muster.Errorf(muster.Unavailable, "the connection was lost")
}

func TestEventFollowOutlivesTheBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f := &coming{stop: cancel}
		var out, errs bytes.Buffer
		p := &program{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, back: fakeBackend{sdk: f},
			env: func(string) string { return "" }, now: time.Now}
		if code := run(ctx, p, []string{"event", "follow"}); code != ExitInterrupted {
			t.Errorf("got exit code %d, want %d", code, ExitInterrupted)
		}
		if got := out.String(); strings.Count(got, "first") != 1 || strings.Count(got, "second") != 1 {
			t.Errorf("got %q, want each event once", got)
		}
		if got := strings.Count(errs.String(), "the broker is away"); got != 2 {
			t.Errorf("said %d times that the broker is away, want 2: %s", got, errs.String())
		}
	})
}

func TestEventFollowWithoutBroker(t *testing.T) {
	f := &neverThere{}
	code, _, errs := tryWith(t.Context(), f, "event", "follow")
	if code != ExitError || !strings.Contains(errs, "no broker") {
		t.Errorf("got exit code %d and %q", code, errs)
	}
}

type neverThere struct{ fakeSDK }

func (*neverThere) Events(context.Context, client.EventQuery, func(client.Event) error) error {
	return muster.Errorf(muster.Unavailable, "no broker answers")
}

// brokenPipe is the output of a command whose reader has gone away.
type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) {
	return 0, &os.PathError{Op: "write", Path: "|1", Err: syscall.EPIPE}
}

// endless has events until it is told to stop, whatever becomes of them.
type endless struct{ fakeSDK }

func (*endless) Events(ctx context.Context, _ client.EventQuery, handle func(client.Event) error) error {
	_ = handle(client.Event{Time: noon, Node: "a", Type: "orphans", Message: "first"})
	<-ctx.Done()
	return ctx.Err()
}

func TestAReaderThatGoesAwayInterrupts(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var errs bytes.Buffer
	p := &program{stdin: strings.NewReader(""), stdout: &reader{w: brokenPipe{}, gone: cancel}, stderr: &errs, back: fakeBackend{sdk: &endless{}},
		env: func(string) string { return "" }, now: time.Now}
	if code := run(ctx, p, []string{"event", "follow"}); code != ExitInterrupted || errs.Len() > 0 {
		t.Errorf("exit code %d, %q", code, errs.String())
	}
}
