// Package methodtest is the conformance suite of methods. Whoever writes a
// method runs it in a test, built-in or plug-in alike:
//
//	methodtest.Run(t, m, `{"path": "/etc/hosts"}`)
package methodtest

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

// promptly is how long a method may take to notice that its context had ended
// before it began. It is generous, since it only has to tell that from never.
const promptly = 5 * time.Second

// Run checks that m keeps what method.Method promises. Each input is valid,
// and m succeeds with it, also a second time. It is invoked for real.
func Run(t *testing.T, m method.Method, inputs ...string) {
	t.Helper()
	registry, err := method.NewRegistry(m)
	if err != nil {
		t.Fatalf("it has no place in a registry: %v", err)
	}
	s := suite{m, m.Spec(), registry}
	t.Run("spec", s.testSpec)
	t.Run("schemas", s.testSchemas)
	t.Run("examples", s.testExamples)
	if len(inputs) == 0 {
		t.Error("no input was given to invoke the method with")
	}
	for _, input := range inputs {
		t.Run("invoke", func(t *testing.T) { s.testInvoke(t, json.RawMessage(input)) })
		t.Run("cancelled", func(t *testing.T) { s.testCancelled(t, json.RawMessage(input)) })
	}
}

type suite struct {
	method   method.Method
	spec     method.Spec
	registry *method.Registry
}

func (s suite) testSpec(t *testing.T) {
	again := s.method.Spec()
	a, errA := json.Marshal(s.spec)
	b, errB := json.Marshal(again)
	if errA != nil || errB != nil || !bytes.Equal(a, b) {
		t.Errorf("the spec changes, or has no JSON form: %s, %v; then %s, %v", a, errA, b, errB)
	}
	if !strings.HasSuffix(s.spec.Description, ".") || strings.Contains(s.spec.Description, "\n") {
		t.Errorf("description %q: expected one sentence that ends with a full stop", s.spec.Description)
	}
	if s.spec.Origin == "" {
		t.Error("the spec does not say where the method comes from")
	}
}

func (s suite) testSchemas(t *testing.T) {
	for side, raw := range map[string]json.RawMessage{"input": s.spec.Input, "output": s.spec.Output} {
		var schema struct {
			Type       string                     `json:"type"`
			Properties map[string]json.RawMessage `json:"properties"`
			Additional *bool                      `json:"additionalProperties"`
			Positional []string                   `json:"x-positional"`
		}
		if err := json.Unmarshal(raw, &schema); err != nil {
			t.Errorf("%s schema: %v", side, err)
			continue
		}
		if schema.Type != "object" || schema.Additional == nil || *schema.Additional {
			t.Errorf(`%s schema: expected "type": "object" and "additionalProperties": false, so that slips are found`, side)
		}
		for _, name := range schema.Positional {
			if _, ok := schema.Properties[name]; !ok {
				t.Errorf("%s schema: x-positional names %q, which is no property", side, name)
			}
		}
	}
	if err := s.registry.ValidateInput(s.spec.Name, json.RawMessage(`{"no-such-property": 1}`)); muster.KindOf(err) != muster.Invalid {
		t.Errorf("an unknown property: got %v, want it refused", err)
	}
}

func (s suite) testExamples(t *testing.T) {
	if len(s.spec.Examples) == 0 {
		t.Error("there is none")
	}
	for _, e := range s.spec.Examples {
		if e.Description == "" {
			t.Errorf("%s has no description", e.Input)
		}
		if err := s.registry.ValidateInput(s.spec.Name, e.Input); err != nil {
			t.Errorf("%s: %v", e.Input, err)
		}
	}
}

func (s suite) testInvoke(t *testing.T, input json.RawMessage) {
	if err := s.registry.ValidateInput(s.spec.Name, input); err != nil {
		t.Fatalf("the input is not valid: %v", err)
	}
	for attempt := 1; attempt <= 2; attempt++ {
		in, out := invocation(input, attempt)
		outcome, err := s.method.Invoke(t.Context(), in)
		if err != nil {
			t.Fatalf("attempt %d: %v\n%s", attempt, err, out)
		}
		if err := s.registry.ValidateOutput(s.spec.Name, outcome.Output); err != nil {
			t.Errorf("attempt %d: output %s: %v", attempt, outcome.Output, err)
		}
		if !bytes.Equal(in.Input, input) {
			t.Errorf("attempt %d changed its input to %s", attempt, in.Input)
		}
	}
}

func (s suite) testCancelled(t *testing.T, input json.RawMessage) {
	tests := []struct {
		name string
		end  func(context.Context) (context.Context, context.CancelFunc)
		want muster.ErrorKind
	}{
		{"cancelled", func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			return ctx, cancel
		}, muster.Interrupted},
		{"out of time", func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, -time.Second)
		}, muster.TimedOut},
	}
	for _, tt := range tests {
		ctx, cancel := tt.end(t.Context())
		defer cancel()
		in, _ := invocation(input, 1)
		in.Started = func(muster.Child) { t.Errorf("%s: a process was started", tt.name) }
		begun := time.Now()
		_, err := s.method.Invoke(ctx, in)
		if took := time.Since(begun); took > promptly {
			t.Errorf("%s: it returned after %s", tt.name, took)
		}
		if kind := muster.KindOf(err); kind != tt.want {
			t.Errorf("%s: got %v (%s), want kind %s", tt.name, err, kind, tt.want)
		}
	}
}

// invocation makes an invocation as an agent would, and the buffer that takes
// its output.
func invocation(input json.RawMessage, attempt int) (method.Invocation, *buffer) {
	out := &buffer{}
	return method.Invocation{
		Key:     muster.Key{ID: "01TEST", Node: "node.test"},
		Caller:  "tester",
		Attempt: attempt,
		Input:   bytes.Clone(input),
		Stdout:  out,
		Stderr:  out,
		Started: func(muster.Child) {},
		Env:     []string{"MUSTER_RUN=01TEST@node.test"},
	}, out
}

// buffer takes output from several goroutines.
type buffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
