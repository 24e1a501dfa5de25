// Package method says what a method is: a name, a schema for input and output,
// and a way to run it. It holds the registry that an agent looks methods up
// in. It is pure: what methods do is written elsewhere (package methods for
// the built-in ones).
//
// A registry is a value made by whoever wires the program. Nothing registers
// itself.
package method

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/musterfleet/muster"
)

// A Spec describes a method to callers.
type Spec struct {
	Name        muster.Method   `json:"name"`
	Description string          `json:"description"`          // one sentence
	Idempotent  bool            `json:"idempotent,omitempty"` // running it twice does what running it once does
	TimeoutMS   int64           `json:"timeout_ms,omitempty"` // default of one run; 0 is DefaultTimeout, -1 none
	Input       json.RawMessage `json:"input"`                // JSON Schema 2020-12
	Output      json.RawMessage `json:"output"`               // JSON Schema 2020-12 of Result.Output
	Examples    []Example       `json:"examples,omitempty"`
	Origin      string          `json:"origin,omitempty"` // "built-in", or the path of an executable
}

// An Example shows one use.
type Example struct {
	Description string          `json:"description"`
	Input       json.RawMessage `json:"input"`
}

// DefaultTimeout bounds one run of a method that states no other limit.
const DefaultTimeout = 10 * time.Minute

// An Invocation is one run of a method on behalf of a caller. The input has
// been validated against the method's schema.
type Invocation struct {
	Key     muster.Key
	Caller  string // as verified by the agent
	Attempt int    // from 1
	Input   json.RawMessage
	// Stdout and Stderr take output while the method runs. They never block
	// for the network and never fail: bytes beyond the limits are counted and
	// dropped. They may be used by several goroutines.
	Stdout, Stderr io.Writer
	// Started is told the process that carries out the run, if there is one.
	Started func(muster.Child)
	// Env are variables that every process of the run must have, as NAME=VALUE.
	// The agent finds the processes of an interrupted run by them.
	Env []string
}

// CommandVariable names the variable that has the id of the command, in the
// environment of every process of a run.
const CommandVariable = "MUSTER_COMMAND"

// An Orphan is a process that an earlier agent left behind.
type Orphan struct {
	muster.Child
	Command muster.CommandID // of its run, as its environment says; may be empty
}

// An Outcome is what a run returns when it came to an end.
type Outcome struct {
	ExitCode *int            // of a process, nil when there was none
	Output   json.RawMessage // as the output schema says; nil for none
}

// A Method can be invoked by an agent.
type Method interface {
	Spec() Spec
	// Invoke runs the method until it ends or ctx does. When ctx ends, every
	// process of the run is ended before Invoke returns. A non-nil error means
	// that the run failed; the Outcome counts also then (an exit code, say).
	Invoke(ctx context.Context, in Invocation) (Outcome, error)
}
