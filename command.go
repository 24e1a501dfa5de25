package muster

import (
	"encoding/json"
	"time"
)

// Limits of a command. They are checked by the sender and again by the node.
const (
	MaxInput    = 512 << 10            // bytes of a command's input
	MaxRetries  = 100                  // attempts after the first
	MaxLifetime = 400 * 24 * time.Hour // from IssuedAt to Deadline
)

// EnvelopeVersion is the version of the signed envelope that this code writes.
const EnvelopeVersion = 1

// A Command is the signed envelope: a durable instruction to one node. The
// caller is not a field of it. It is known from the signature alone.
type Command struct {
	Version    int             `json:"v"`
	Fleet      string          `json:"fleet"` // id of the fleet, so that a command is worth nothing in another
	ID         CommandID       `json:"id"`
	Node       NodeName        `json:"node"`
	Kind       Kind            `json:"kind"`
	Method     Method          `json:"method"`
	Input      json.RawMessage `json:"input"`
	IssuedAt   time.Time       `json:"issued_at"`
	Deadline   time.Time       `json:"deadline"`             // not started, retried or resumed after this
	TimeoutMS  int64           `json:"timeout_ms,omitempty"` // of one run; 0 is the method's default, -1 none
	Retries    int             `json:"retries,omitempty"`    // further attempts after a failed one
	NoSeq      bool            `json:"noseq,omitempty"`      // runs beside its lane
	Idempotent bool            `json:"idempotent,omitempty"` // the caller declares that running twice does no harm
}

// Key returns the id and node of the command.
func (c *Command) Key() Key { return Key{c.ID, c.Node} }

// Lane returns the lane of the command within its node.
func (c *Command) Lane() Lane { return Lane{c.Kind, c.Method} }

// A Lane is a sequence within one node: what is sent to it runs one after the
// other, in the order sent. Lanes do not wait for one another.
type Lane struct {
	Kind   Kind   `json:"kind"`
	Method Method `json:"method"`
}

// String returns kind/method.
func (l Lane) String() string { return string(l.Kind) + "/" + string(l.Method) }

// Validate checks every field but the fleet and the times against the clock,
// which only the receiver can judge.
func (c *Command) Validate() error {
	if c.Version != EnvelopeVersion {
		return Errorf(Invalid, "envelope version %d is not supported; expected %d", c.Version, EnvelopeVersion)
	}
	for _, err := range []error{c.ID.Validate(), c.Node.Validate(), c.Kind.Validate(), c.Method.Validate()} {
		if err != nil {
			return err
		}
	}
	switch life := c.Deadline.Sub(c.IssuedAt); {
	case len(c.Input) > MaxInput:
		return Errorf(Invalid, "input has %d bytes; at most %d are allowed", len(c.Input), MaxInput)
	case len(c.Input) > 0 && !json.Valid(c.Input):
		return Errorf(Invalid, "input is not valid JSON")
	case c.Retries < 0 || c.Retries > MaxRetries:
		return Errorf(Invalid, "retries %d is out of range; expected 0 to %d", c.Retries, MaxRetries)
	case c.TimeoutMS < -1 || c.TimeoutMS > MaxLifetime.Milliseconds():
		return Errorf(Invalid, "timeout %d ms is out of range; expected -1 (none), 0 (default) or more", c.TimeoutMS)
	case c.IssuedAt.IsZero() || life <= 0:
		return Errorf(Invalid, "deadline %s is not after the time of issue %s", c.Deadline.Format(time.RFC3339), c.IssuedAt.Format(time.RFC3339))
	case life > MaxLifetime:
		return Errorf(Invalid, "deadline is %s after the time of issue; at most %s is allowed", life, MaxLifetime)
	}
	return nil
}

// A State says what became of a command.
type State string

// The states. Queued, Accepted and Running are on the way; the others are
// final.
const (
	Queued    State = "queued"    // stored by the broker or the sender's outbox
	Accepted  State = "accepted"  // journalled by the node
	Running   State = "running"   // started by the node
	Done      State = "done"      // ended well
	Failure   State = "failed"    // ended badly, after all retries
	Expired   State = "expired"   // its deadline passed before it was run
	Cancelled State = "cancelled" // withdrawn before or during the run
	Refused   State = "refused"   // by policy, validation or a full queue; it did not run
	Unknown   State = "unknown"   // the node was interrupted during the run, and it must not run twice
)

// Final reports whether no further state follows.
func (s State) Final() bool { return s != Queued && s != Accepted && s != Running }

// States lists all states in the order in which a table shows them.
func States() []State {
	return []State{Queued, Accepted, Running, Done, Failure, Expired, Cancelled, Refused, Unknown}
}

// A Transition is one change of state, as the node saw it.
type Transition struct {
	State   State     `json:"state"`
	Time    time.Time `json:"time"`
	Attempt int       `json:"attempt,omitempty"` // of the run, from 1
	Reason  string    `json:"reason,omitempty"`
}

// A Report is what a node says of a command. Reports are cumulative: the one
// with the highest Seq holds the whole history, so that a lost or repeated
// report does no harm.
type Report struct {
	ID       CommandID       `json:"id"`
	Node     NodeName        `json:"node"`
	Method   Method          `json:"method"`
	Caller   string          `json:"caller"`         // as verified by the node
	Rule     string          `json:"rule,omitempty"` // of the node's policy that decided
	Input    json.RawMessage `json:"input,omitempty"`
	IssuedAt time.Time       `json:"issued_at"`
	Deadline time.Time       `json:"deadline"`
	Seq      int             `json:"seq"` // number of transitions
	History  []Transition    `json:"history"`
	Result   *Result         `json:"result,omitempty"` // of the last attempt
}

// Key returns the id and node of the command.
func (r *Report) Key() Key { return Key{r.ID, r.Node} }

// State returns the last state of the history.
func (r *Report) State() State {
	if len(r.History) == 0 {
		return Queued
	}
	return r.History[len(r.History)-1].State
}

// A Result is the outcome of one run.
type Result struct {
	ExitCode *int            `json:"exit_code,omitempty"` // of a process; nil when there was none, or it was killed
	Output   json.RawMessage `json:"output,omitempty"`    // as the method's output schema says
	Stdout   Output          `json:"stdout"`
	Stderr   Output          `json:"stderr"`
	Error    *Error          `json:"error,omitempty"`
	Child    *Child          `json:"child,omitempty"` // what is known of an interrupted run's process
}

// An Output describes one stream of bytes that a run wrote. Small output is
// carried inline; all of it can be read from the output stream under the
// command's key.
type Output struct {
	Size      int64  `json:"size"`                // bytes kept
	Inline    []byte `json:"inline,omitempty"`    // all of it when Size <= MaxInline
	SHA256    string `json:"sha256,omitempty"`    // hex, of the bytes kept, when they are not inline
	Truncated int64  `json:"truncated,omitempty"` // bytes that were dropped because a limit or the disk was reached
}

// MaxInline is how many bytes of a stream are carried within a report.
const MaxInline = 32 << 10

// A Child is the operating system's view of a run.
type Child struct {
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Ended   int       `json:"ended,omitempty"` // processes of an interrupted run that were found alive and killed
}
