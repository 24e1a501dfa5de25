package cli

import (
	"bytes"
	"context"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// coming is a broker with events that goes away between them.
type coming struct {
	fakeSDK
	stop func()
}

func (f *coming) Events(_ context.Context, q client.EventQuery, handle func(client.Event) error) error {
	if !q.Follow {
		return nil
	}
	e := client.Event{Time: noon, Node: "a", Type: "orphans", Message: "first"}
	for _, step := range []func() error{
		func() error { return handle(e) },
		func() error { return q.Link(client.Link{Lost: true, Since: noon}) },
		func() error { return q.Link(client.Link{Since: noon.Add(90 * time.Second)}) },
		func() error { e.Message = "second"; return handle(e) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	f.stop()
	return context.Canceled
}

func TestEventFollowSaysThatTheBrokerIsAway(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	code, out, errs := tryWith(ctx, &coming{stop: cancel}, "event", "follow", "-o", "jsonl")
	if code != ExitInterrupted {
		t.Errorf("got exit code %d, want %d", code, ExitInterrupted)
	}
	if strings.Count(out, "\n") != 2 || !strings.Contains(out, "first") || !strings.Contains(out, "second") {
		t.Errorf("stdout: got %q, want the events alone", out)
	}
	want := "broker away since " + noon.Local().Format("15:04:05") + "; events wait at their nodes, and come when it is back\nbroker back after 90s; nothing was missed\n"
	if errs != want {
		t.Errorf("stderr: got %q, want %q", errs, want)
	}
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

func (*endless) Events(ctx context.Context, q client.EventQuery, handle func(client.Event) error) error {
	if !q.Follow {
		return nil
	}
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
