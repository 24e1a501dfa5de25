package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/filter"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"muster": func() {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt) // as main does
		signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
		defer stop()
		os.Exit(Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv))
	}})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata", Setup: func(e *testscript.Env) error {
		e.Setenv("MUSTER_CONFIG", e.WorkDir+"/config")
		e.Setenv("HOME", e.WorkDir+"/home") // for the outbox; there is none otherwise
		return nil
	}})
}

// fakeSDK has nodes, and an outcome for each command that is sent.
type fakeSDK struct {
	SDK     // panics for what a test does not expect
	nodes   []client.Node
	outcome map[muster.NodeName]client.Status
	chunks  []client.Chunk
	sent    []client.Request
	refused []client.Refusal
	waiting map[muster.NodeName]int
}

func (f *fakeSDK) Close() {}

func (f *fakeSDK) Nodes(context.Context) ([]client.Node, error) { return f.nodes, nil }

func (f *fakeSDK) CountWaiting(_ context.Context, nodes []client.Node) error {
	for i, n := range nodes {
		nodes[i].Waiting = f.waiting[n.Name]
	}
	return nil
}

func (f *fakeSDK) Select(_ context.Context, expr string) ([]client.Node, error) {
	x, err := filter.Parse(expr)
	if err != nil {
		return nil, err
	}
	var some []client.Node
	for _, n := range f.nodes {
		if x.Match(filter.Subject{Name: n.Name, Labels: n.Labels, Facts: n.Facts}) {
			some = append(some, n)
		}
	}
	if len(some) == 0 {
		return nil, muster.Errorf(muster.NothingFound, "no node matches %q", expr)
	}
	return some, nil
}

func (f *fakeSDK) Send(_ context.Context, r client.Request) (client.Receipt, error) {
	f.sent = append(f.sent, r)
	return client.Receipt{ID: "S1", Nodes: r.Nodes, Refused: f.refused, Deadline: r.Deadline}, nil
}

func (f *fakeSDK) Follow(ctx context.Context, id muster.CommandID, handle func(client.Update) error) error {
	for _, c := range f.chunks {
		if err := handle(client.Update{Chunk: &c}); err != nil {
			return err
		}
	}
	pending := false
	for _, r := range f.sent {
		for _, n := range r.Nodes {
			s, ok := f.outcome[n]
			if !ok {
				pending = true
				continue
			}
			s.ID, s.Node, s.Key = id, n, muster.Key{ID: id, Node: n}
			if err := handle(client.Update{Status: &s}); err != nil {
				return err
			}
		}
	}
	if pending {
		<-ctx.Done()
	}
	return ctx.Err()
}

func (f *fakeSDK) FollowStates(ctx context.Context, id muster.CommandID, handle func(client.Update) error) error {
	states := *f
	states.chunks = nil
	return states.Follow(ctx, id, handle)
}

type fakeBackend struct {
	application
	sdk SDK
	err error
}

func (b fakeBackend) Connect(context.Context, string) (SDK, error) { return b.sdk, b.err }

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func try(ctx context.Context, f *fakeSDK, args ...string) (code int, stdout, stderr string) {
	return tryWith(ctx, f, args...)
}

func tryWith(ctx context.Context, f SDK, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	p := &program{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, back: fakeBackend{sdk: f},
		env: func(string) string { return "" }, now: func() time.Time { return noon }}
	code = run(ctx, p, args)
	return code, out.String(), errs.String()
}

func endedAs(state muster.State, code int, stdout string) client.Status {
	return client.Status{State: state, Result: &muster.Result{ExitCode: &code, Stdout: muster.Output{Size: int64(len(stdout)), Inline: []byte(stdout)}}}
}

func two(b bool) []client.Node {
	return []client.Node{{Name: "a", Online: true}, {Name: "bb", Online: b}}
}

func TestExitCodes(t *testing.T) {
	denied := client.Status{State: muster.Refused, Result: &muster.Result{Error: &muster.Error{Kind: muster.Denied, Message: "no rule"}}}
	done, failed := endedAs(muster.Done, 0, ""), endedAs(muster.Failure, 7, "")
	for _, test := range []struct {
		name    string
		nodes   []client.Node
		outcome map[muster.NodeName]client.Status
		args    string
		want    int
	}{
		{"all done", two(true), map[muster.NodeName]client.Status{"a": done, "bb": done}, "run -t all -- true", ExitOK},
		{"one failed", two(true), map[muster.NodeName]client.Status{"a": done, "bb": failed}, "run -t all -- true", ExitFailed},
		{"one away", two(false), map[muster.NodeName]client.Status{"a": done}, "run -t all -- true", ExitPending},
		{"one failed, one away", two(false), map[muster.NodeName]client.Status{"a": failed}, "run -t all -- true", ExitFailed},
		{"time is up", two(true), map[muster.NodeName]client.Status{"a": done}, "run -t all --wait-for 1ms -- true", ExitPending},
		{"denied", two(true), map[muster.NodeName]client.Status{"a": denied, "bb": denied}, "run -t all -- true", ExitDenied},
		{"nothing matched", two(true), nil, "run -t c -- true", ExitNothing},
		{"bad selector", two(true), nil, "run -t (a -- true", ExitUsage},
		{"bad host", nil, nil, "init --host a/b", ExitUsage},
		{"no selector", two(true), nil, "run -- true", ExitUsage},
		{"bad input", two(true), nil, "send echo -t all nonsense=1", ExitUsage},
		{"unknown method", two(true), nil, "send ecko -t all", ExitError},
		{"sent", two(false), nil, "send echo -t all hello", ExitOK},
		{"bad deadline", two(true), nil, "send echo -t all hello --deadline soon", ExitUsage},
		{"some away", two(false), nil, "ping", ExitFailed},
	} {
		t.Run(test.name, func(t *testing.T) {
			code, out, errs := try(t.Context(), &fakeSDK{nodes: test.nodes, outcome: test.outcome}, strings.Fields(test.args)...)
			if code != test.want {
				t.Errorf("muster %s: got exit code %d, want %d\n%s%s", test.args, code, test.want, out, errs)
			}
		})
	}
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := &interrupting{fakeSDK{nodes: two(true)}, cancel}
	var out, errs bytes.Buffer
	p := &program{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, back: fakeBackend{sdk: f}, env: func(string) string { return "" }, now: time.Now}
	if code := run(ctx, p, []string{"run", "-t", "all", "--", "true"}); code != ExitInterrupted {
		t.Errorf("got exit code %d, want %d", code, ExitInterrupted)
	}
	if want := "muster command cancel S1"; !strings.Contains(errs.String(), want) {
		t.Errorf("got %q, want it to contain %q", errs.String(), want)
	}
}

type interrupting struct {
	fakeSDK
	interrupt func()
}

func (f *interrupting) Follow(ctx context.Context, _ muster.CommandID, _ func(client.Update) error) error {
	f.interrupt()
	<-ctx.Done()
	return ctx.Err()
}

func TestRunOutput(t *testing.T) {
	f := &fakeSDK{nodes: two(true),
		outcome: map[muster.NodeName]client.Status{"a": endedAs(muster.Done, 0, "one\ntwo\n"), "bb": endedAs(muster.Done, 0, "three")},
		chunks:  []client.Chunk{{Key: muster.Key{ID: "S1", Node: "a"}, Stream: "stdout", Data: []byte("one\ntw")}},
	}
	_, out, errs := try(t.Context(), f, "run", "-t", "all", "--", "x")
	if want := "a  | one\na  | two\nbb | three\n"; out != want {
		t.Errorf("stdout: got %q, want %q", out, want)
	}
	if want := "NODE  STATE  EXIT  TIME  REASON\na     done   0     -     -\nbb    done   0     -     -\n"; errs != want {
		t.Errorf("stderr: got %q, want %q", errs, want)
	}
	_, out, _ = try(t.Context(), f, "run", "-t", "all", "-o", "json", "--", "x")
	var got []struct {
		Node, Stdout string
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got) != 2 || got[0].Stdout != "one\ntwo\n" {
		t.Errorf("json: got %s (%v)", out, err)
	}
}

// repeated is a broker that is away, and an outbox that has the send already.
type repeated struct{ fakeSDK }

func (f *repeated) Send(context.Context, client.Request) (client.Receipt, error) {
	return client.Receipt{ID: "S1", Nodes: []muster.NodeName{"a"}, Outbox: true, Repeated: true, Deadline: noon.Add(time.Hour)}, nil
}

func TestARepetitionInTheOutboxIsSaid(t *testing.T) {
	f := &repeated{fakeSDK{nodes: two(true)}}
	code, out, errs := tryWith(t.Context(), f, "send", "echo", "hello", "-t", "a", "--id", "S1")
	if code != ExitOK || out != "S1\n" || !strings.Contains(errs, "has this send already: nothing was added, and its deadline is "+stamp(noon.Add(time.Hour))+" (in 1h)") {
		t.Errorf("got exit code %d, %q and %q", code, out, errs)
	}
	if _, out, _ := tryWith(t.Context(), f, "send", "echo", "hello", "-t", "a", "--id", "S1", "-o", "jsonl"); !strings.Contains(out, `"repeated":true`) {
		t.Errorf("got %s", out)
	}
}

func TestRollingStops(t *testing.T) {
	f := &fakeSDK{nodes: two(true), outcome: map[muster.NodeName]client.Status{"a": endedAs(muster.Failure, 1, ""), "bb": endedAs(muster.Done, 0, "")}}
	code, _, errs := try(t.Context(), f, "run", "-t", "all", "--batch", "1", "--", "x")
	if code != ExitFailed || len(f.sent) != 1 || !strings.Contains(errs, "not sent") {
		t.Errorf("got exit code %d, %d sends and %q; want %d, 1 and a node that is not sent to", code, len(f.sent), errs, ExitFailed)
	}
}

// A batch that is away has not finished: what is rolling does not go on over it.
func TestRollingLeavesOutWhatIsAway(t *testing.T) {
	done := endedAs(muster.Done, 0, "")
	for args, want := range map[string]struct{ sends, code int }{"": {1, ExitFailed}, "--wait-all": {2, ExitOK}} {
		f := &fakeSDK{nodes: two(false), outcome: map[muster.NodeName]client.Status{"a": done, "bb": done}}
		code, _, errs := try(t.Context(), f, append(strings.Fields("run -t all --batch 1 "+args), "--", "x")...)
		if code != want.code || len(f.sent) != want.sends || (args == "") != strings.Contains(errs, "not sent to: bb") {
			t.Errorf("%q: exit code %d, %d sends, %s", args, code, len(f.sent), errs)
		}
	}
	f := &fakeSDK{nodes: []client.Node{{Name: "a"}, {Name: "bb"}}}
	if code, _, errs := try(t.Context(), f, "run", "-t", "all", "--batch", "1", "--", "x"); code != ExitFailed || len(f.sent) != 0 || !strings.Contains(errs, "a bb") {
		t.Errorf("all away: exit code %d, %d sends, %s", code, len(f.sent), errs)
	}
}

// What the agent did not keep of the output is said.
func TestRunSaysWhatIsDropped(t *testing.T) {
	much := endedAs(muster.Done, 0, "one\n")
	much.Result.Stdout.Truncated = 12345
	f := &fakeSDK{nodes: two(true), outcome: map[muster.NodeName]client.Status{"a": much, "bb": endedAs(muster.Done, 0, "")}}
	code, _, errs := try(t.Context(), f, "run", "-t", "all", "--", "x")
	if code != ExitOK || !strings.Contains(errs, "warning: a wrote 12345 more bytes to stdout") || strings.Contains(errs, "bb wrote") {
		t.Errorf("exit code %d, %s", code, errs)
	}
}

func TestTable(t *testing.T) {
	tab := newTable("NODE", "REASON")
	tab.row("web1", "a long reason\x1b[2J that does not fit")
	var b bytes.Buffer
	if err := tab.write(&b, terminal{width: 20}); err != nil {
		t.Fatal(err)
	}
	if got, want := b.String(), "NODE  REASON\nweb1  a long reason…\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What is to be copied is not cut: an id without its end leads nowhere.
func TestTableKeepsWhatIsCopied(t *testing.T) {
	for width, want := range map[int]string{
		20: "ID          REASON\n0123456789  a long …\n",
		16: "ID          REASON\n0123456789  a long reason\n", // too narrow for both
	} {
		tab := newTable("ID", "REASON")
		tab.whole = "ID"
		tab.row("0123456789", "a long reason")
		var b bytes.Buffer
		if err := tab.write(&b, terminal{width: width}); err != nil || b.String() != want {
			t.Errorf("width %d: got %q (%v), want %q", width, b.String(), err, want)
		}
	}
}

func TestYAML(t *testing.T) {
	b, err := toYAML([]byte(`{"z":"1","a":[1,2.5,true,null,"true"],"e":{},"text":"x\ny\n"}`))
	if want := "z: \"1\"\na:\n"; err != nil || !strings.HasPrefix(string(b), want) {
		t.Errorf("got %q (%v), want it to begin with %q", b, err, want)
	}
	if !strings.Contains(string(b), "- \"true\"\n") || !strings.Contains(string(b), "e: {}\n") {
		t.Errorf("got %q", b)
	}
}

func TestEveryCommandTeaches(t *testing.T) {
	p := &program{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard, env: func(string) string { return "" }, now: time.Now}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || c.Long == "" || !strings.Contains(c.Example, "muster") {
			t.Errorf("%s: Short, Long and Example are needed", c.CommandPath())
		}
		for line := range strings.Lines(c.Long + "\n" + c.Example) {
			if n := len(strings.TrimRight(line, "\n")); n > 80 {
				t.Errorf("%s: a line of the help has %d characters, a terminal 80: %s", c.CommandPath(), n, line)
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(p.root())
}
