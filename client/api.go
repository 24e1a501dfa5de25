// Package client is the Go SDK of muster: choose nodes, sign commands, send
// them, and learn what became of them.
//
//	c, err := client.Connect(ctx, client.Options{URLs: ..., Identity: ...})
//	receipt, err := c.Send(ctx, client.Request{Method: "echo", Input: input, Nodes: nodes})
//	err = c.Follow(ctx, receipt.ID, func(u client.Update) error { ... })
//
// A Client heals its connection by itself; each call tries until its context
// ends. It is safe for concurrent use.
package client

import (
	"encoding/json"
	"time"

	"github.com/musterfleet/muster"
)

// A Node is what is known of one machine: what its agent says of itself, what
// the operators say of it, and whether it answers now.
type Node struct {
	Name     muster.NodeName   `json:"name"`
	Online   bool              `json:"online"`                 // it answered a ping just now
	LastSeen time.Time         `json:"last_seen,omitzero"`     // by the broker's clock
	Version  string            `json:"version,omitempty"`      // of muster
	Instance string            `json:"instance,omitempty"`     // of the agent's process, new at each start
	Started  time.Time         `json:"started,omitzero"`       // of the agent's process
	Labels   map[string]string `json:"labels,omitempty"`       // set by operators
	Facts    map[string]any    `json:"facts,omitempty"`        // found by the agent
	Methods  []json.RawMessage `json:"methods,omitempty"`      // specs of third-party methods
	Problems []string          `json:"problems,omitempty"`     // what the agent wants an operator to know
	Invited  time.Time         `json:"invited,omitzero"`       // when an invitation was made
	Queue    int               `json:"queue"`                  // commands that it has accepted and not finished
	Running  int               `json:"running"`                // of those, the ones that run
	Revoked  string            `json:"revoked,omitempty"`      // names the lists of revoked callers that it has
	Waiting  int               `json:"waiting"`                // commands that the broker keeps for it, once CountWaiting has asked
	RTT      time.Duration     `json:"rtt_ns,omitempty"`       // of the ping
	ClockOff time.Duration     `json:"clock_off_ns,omitempty"` // of the node's clock from ours, as far as the ping can tell
}

// A Request is one send: one method with one input, to some nodes.
type Request struct {
	// ID names the send. Empty for a new one. Sending again with the same ID
	// repeats nothing: each node runs a command of that ID at most once.
	ID         muster.CommandID
	Method     muster.Method
	Input      json.RawMessage
	Nodes      []muster.NodeName
	Deadline   time.Time     // zero: DefaultLifetime from now
	Timeout    time.Duration // of one run; 0 the method's default, negative none
	Retries    int
	NoSeq      bool // runs beside its lane
	Idempotent bool // running it twice does no harm
}

// DefaultLifetime is how long a command waits for its node unless told
// otherwise.
const DefaultLifetime = 7 * 24 * time.Hour

// A Receipt says what was accepted. What it lists is on disk: with the broker,
// or, when Outbox is set, in this machine's outbox.
type Receipt struct {
	ID       muster.CommandID  `json:"id"`
	Nodes    []muster.NodeName `json:"nodes"`              // accepted
	Refused  []Refusal         `json:"refused,omitempty"`  // by the broker
	Outbox   bool              `json:"outbox,omitempty"`   // the broker was away; sent when it is back
	Repeated bool              `json:"repeated,omitempty"` // the outbox had the send already: nothing was added
	Deadline time.Time         `json:"deadline"`           // of the earlier one, if this is a repetition in the outbox
}

// A Refusal is a command that was not accepted.
type Refusal struct {
	Node  muster.NodeName `json:"node"`
	Error *muster.Error   `json:"error"`
}

// A Status is the state of one command as the operator's side knows it.
type Status struct {
	Key      muster.Key       `json:"-"`
	ID       muster.CommandID `json:"id"`
	Node     muster.NodeName  `json:"node"`
	Method   muster.Method    `json:"method"`
	Input    json.RawMessage  `json:"input,omitempty"`
	Caller   string           `json:"caller"`                   // as the node verified it; empty before it has
	Claimed  string           `json:"claimed_caller,omitempty"` // as the sender says
	State    muster.State     `json:"state"`
	Reason   string           `json:"reason,omitempty"` // of the state
	Sent     time.Time        `json:"sent"`
	Deadline time.Time        `json:"deadline"`
	// What the sender asked for, as in Request. Zero where the record of the
	// send is gone or older than these fields.
	Timeout    time.Duration `json:"timeout_ns,omitempty"`
	Retries    int           `json:"retries,omitempty"`
	NoSeq      bool          `json:"noseq,omitempty"`
	Idempotent bool          `json:"idempotent,omitempty"`
	// Inferred is set when the state follows from the deadline, or from the removal of the node: the node
	// has not been heard of. Its own word, if it comes, is preferred.
	Inferred bool                `json:"inferred,omitempty"`
	History  []muster.Transition `json:"history"` // begins with queued
	Result   *muster.Result      `json:"result,omitempty"`
}

// An Update is news of a send that is followed. Exactly one field is set.
type Update struct {
	Status *Status // of one command, after a change
	Chunk  *Chunk  // output while it is written
	Link   *Link   // the broker went away, or is back; nothing is missed meanwhile
}

// A Chunk is a part of what a run writes. Chunks of one stream come in order,
// without gap or overlap.
type Chunk struct {
	Key    muster.Key
	Stream string // "stdout" or "stderr"
	Offset int64
	Data   []byte
}

// A HistoryQuery chooses sends. Zero fields choose all.
type HistoryQuery struct {
	Since time.Time
	Node  muster.NodeName
	ID    muster.CommandID
}

// An Event is something that happened on a node.
type Event = muster.Event

// An EventQuery chooses events.
type EventQuery struct {
	Type   string          // empty for all
	Node   muster.NodeName // empty for all
	Since  time.Time       // only what was stored later; zero for all
	Follow bool            // also what happens until ctx ends
	// Link is told when the broker goes away and when it is back, in the calls
	// of handle. With it, following goes on by itself after a loss, where it
	// was; without it a loss ends it. It may return an error, as handle may.
	Link func(Link) error
}

// A DeadLetter is a message that a node could not take for a command. It can
// be queued again when its cause is mended.
type DeadLetter struct {
	Seq    uint64          `json:"seq"`
	Node   muster.NodeName `json:"node"`
	Time   time.Time       `json:"time"`
	Reason string          `json:"reason"`
	Size   int             `json:"size"`
	Data   []byte          `json:"data,omitempty"`
}

// DefaultOutputWait is how long Output waits for the next part of what a node
// said it would send.
const DefaultOutputWait = 30 * time.Second
