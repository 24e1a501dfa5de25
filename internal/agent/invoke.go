package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/delivery"
	"github.com/musterfleet/muster/internal/method"
)

// invoke runs a command once, to its end or its time limit.
func (a *Agent) invoke(ctx context.Context, m method.Method, s delivery.Start) muster.Result {
	ctx, cancel := withTimeout(ctx, m.Spec(), s.Command)
	defer cancel()
	key := s.Command.Key()
	out, errs := a.spools.open(key.ID, s.Attempt)
	stop := a.uploads.live(key, out, errs)
	outcome, err := a.safely(ctx, m, method.Invocation{
		Key: key, Caller: s.Caller, Attempt: s.Attempt, Input: s.Command.Input,
		Stdout: out, Stderr: errs,
		Env: []string{a.tag(), method.CommandVariable + "=" + string(key.ID), "MUSTER_NODE=" + string(key.Node)},
	})
	stop()
	result := muster.Result{ExitCode: outcome.ExitCode, Output: outcome.Output, Stdout: out.finish(), Stderr: errs.finish()}
	switch cause := context.Cause(ctx); {
	case err != nil && errors.Is(cause, errStopping):
		result.Error = muster.Errorf(muster.Interrupted, "the agent was stopped during the run")
	case err != nil && errors.Is(cause, errCancelled):
		result.Error = muster.Errorf(muster.Interrupted, "cancelled during the run")
	case err != nil:
		result.Error = muster.AsError(muster.Failed, err)
	default:
		result.Error = a.checkOutput(s.Command.Method, outcome)
	}
	return result
}

func (a *Agent) checkOutput(m muster.Method, outcome method.Outcome) *muster.Error {
	if len(outcome.Output) == 0 {
		return nil
	}
	if err := a.o.Registry.ValidateOutput(m, outcome.Output); err != nil {
		return muster.AsError(muster.Failed, fmt.Errorf("the method ended, but its output is not what its schema promises: %w", err))
	}
	return nil
}

// withTimeout bounds a run: the caller's limit, else the method's, else the
// default; -1 is none.
func withTimeout(ctx context.Context, spec method.Spec, c muster.Command) (context.Context, context.CancelFunc) {
	ms := c.TimeoutMS
	if ms == 0 {
		ms = spec.TimeoutMS
	}
	if ms == 0 {
		ms = method.DefaultTimeout.Milliseconds()
	}
	if ms < 0 {
		return context.WithCancel(ctx)
	}
	limit := time.Duration(ms) * time.Millisecond
	return context.WithTimeoutCause(ctx, limit, muster.Errorf(muster.TimedOut, "it ran longer than %s", limit))
}

// safely turns a panic of a method into an error: one method must not end the
// agent and with it what the others do.
func (a *Agent) safely(ctx context.Context, m method.Method, in method.Invocation) (out method.Outcome, err error) {
	defer func() {
		if r := recover(); r != nil {
			a.log.Error("method panicked", "method", m.Spec().Name, "command", in.Key.ID, "panic", r, "stack", string(debug.Stack()))
			err = muster.Errorf(muster.Internal, "the method panicked: %v", r)
		}
	}()
	return m.Invoke(ctx, in)
}
