package methods

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/method"
)

// DefaultGrace is the time from SIGTERM to SIGKILL.
const DefaultGrace = 2 * time.Second

// Origin is the origin in the spec of a built-in method.
const Origin = "built-in"

// Options say what the built-in methods cannot know by themselves.
type Options struct {
	// Hello returns what node.hello says. Without it there is no node.hello.
	Hello func() Hello
	// Facts returns the facts of the node. Without it there is no node.facts.
	Facts func(context.Context) (map[string]any, error)
	// Grace is the time from SIGTERM to SIGKILL; 0 is DefaultGrace.
	Grace time.Duration
}

// Builtin returns the built-in methods.
func Builtin(o Options) []method.Method {
	if o.Grace <= 0 {
		o.Grace = DefaultGrace
	}
	all := []method.Method{
		shellRun(o.Grace),
		fileWrite(), fileAppend(), fileRead(),
		httpGet(),
		echo(),
	}
	if o.Hello != nil {
		all = append(all, nodeHello(o.Hello))
	}
	if o.Facts != nil {
		all = append(all, nodeFacts(o.Facts))
	}
	return all
}

// reserved reports whether a name is one of a built-in method, even of one
// that these options leave out.
func reserved(name muster.Method) bool {
	o := Options{Hello: func() Hello { return Hello{} }, Facts: func(context.Context) (map[string]any, error) { return nil, nil }}
	for _, m := range Builtin(o) {
		if m.Spec().Name == name {
			return true
		}
	}
	return false
}

// builtin is a method made of a spec and a function.
type builtin struct {
	spec method.Spec
	run  func(context.Context, method.Invocation) (method.Outcome, error)
}

var _ method.Method = builtin{}

func (b builtin) Spec() method.Spec { return b.spec }

func (b builtin) Invoke(ctx context.Context, in method.Invocation) (method.Outcome, error) {
	if ctx.Err() != nil {
		return method.Outcome{}, interrupted(ctx) // before anything has happened
	}
	return b.run(ctx, in)
}

// define makes a method of which the input is decoded to In.
func define[In any](spec method.Spec, run func(context.Context, method.Invocation, In) (method.Outcome, error)) method.Method {
	spec.Origin = Origin
	return builtin{spec, func(ctx context.Context, in method.Invocation) (method.Outcome, error) {
		var input In
		if len(in.Input) > 0 {
			if err := json.Unmarshal(in.Input, &input); err != nil {
				return method.Outcome{}, muster.Errorf(muster.Invalid, "input: %w", err)
			}
		}
		return run(ctx, in, input)
	}}
}

// result makes an outcome of a value that has a JSON form.
func result(output any) (method.Outcome, error) {
	b, err := json.Marshal(output)
	if err != nil {
		return method.Outcome{}, muster.Errorf(muster.Internal, "output: %w", err)
	}
	return method.Outcome{Output: b}, nil
}

func examples(pairs ...string) []method.Example {
	var all []method.Example
	for i := 0; i+1 < len(pairs); i += 2 {
		all = append(all, method.Example{Description: pairs[i], Input: json.RawMessage(pairs[i+1])})
	}
	return all
}

// interrupted says why a context ended.
func interrupted(ctx context.Context) *muster.Error {
	cause := context.Cause(ctx)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.Is(cause, context.DeadlineExceeded) {
		return muster.Errorf(muster.TimedOut, "stopped: its time was up: %w", cause)
	}
	return muster.Errorf(muster.Interrupted, "stopped: %w", cause)
}
