package methods

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/method"
)

// patience bounds every wait of these tests for what should happen at once, also on
// a machine that is busy with other things.
const patience = 2 * time.Minute

// output takes what a run writes, and tells when it contains some text.
type output struct {
	mu      sync.Mutex // guards the rest
	b       bytes.Buffer
	waiting map[string]chan struct{}
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, err := o.b.Write(p)
	for text, c := range o.waiting {
		if strings.Contains(o.b.String(), text) {
			close(c)
			delete(o.waiting, text)
		}
	}
	return n, err
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// await returns when text has been written.
func (o *output) await(t *testing.T, text string) {
	t.Helper()
	o.mu.Lock()
	c := make(chan struct{})
	if strings.Contains(o.b.String(), text) {
		close(c)
	} else {
		if o.waiting == nil {
			o.waiting = map[string]chan struct{}{}
		}
		o.waiting[text] = c
	}
	o.mu.Unlock()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("%q was not written; got %q", text, o.String())
	}
}

// A call is one invocation in a test.
type call struct {
	stdout, stderr output
	child          muster.Child
	outcome        method.Outcome
	err            error
}

// invoke runs m with the input, and env for all its processes.
func (c *call) invoke(ctx context.Context, m method.Method, input string, env ...string) {
	c.outcome, c.err = m.Invoke(ctx, method.Invocation{
		Key: muster.Key{ID: "01CALL", Node: "node.test"}, Caller: "alice", Attempt: 2,
		Input: json.RawMessage(input), Stdout: &c.stdout, Stderr: &c.stderr, Env: env,
		Started: func(child muster.Child) { c.child = child },
	})
}

// start runs m in the background. The function returned waits for it.
func (c *call) start(ctx context.Context, m method.Method, input string, env ...string) (wait func(*testing.T)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.invoke(ctx, m, input, env...)
	}()
	return func(t *testing.T) {
		t.Helper()
		select {
		case <-done:
		case <-time.After(patience):
			t.Fatalf("the run does not end; it wrote %q and %q", c.stdout.String(), c.stderr.String())
		}
	}
}

// want fails the test unless the error has the kind and contains the text.
func (c *call) want(t *testing.T, kind muster.ErrorKind, text string) {
	t.Helper()
	if muster.KindOf(c.err) != kind || c.err != nil && !strings.Contains(c.err.Error(), text) {
		t.Errorf("got error %v (%s), want %q (%s); stderr %q", c.err, muster.KindOf(c.err), text, kind, c.stderr.String())
	}
}

// decodeOutput reads the output of a run.
func decodeOutput[T any](t *testing.T, c *call) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(c.outcome.Output, &v); err != nil {
		t.Fatalf("output %q: %v", c.outcome.Output, err)
	}
	return v
}

// quote writes text as JSON.
func quote(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// builtinNamed returns one of the built-in methods.
func builtinNamed(t *testing.T, name muster.Method) method.Method {
	t.Helper()
	for _, m := range Builtin(testOptions()) {
		if m.Spec().Name == name {
			return m
		}
	}
	t.Fatalf("%s is not built in", name)
	return nil
}

func testOptions() Options {
	return Options{
		Hello: func() Hello { return Hello{"node.test", "v1.2.3", time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)} },
		Facts: func(context.Context) (map[string]any, error) {
			return map[string]any{"os": map[string]any{"name": "linux"}, "cores": 2}, nil
		},
	}
}
