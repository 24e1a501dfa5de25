package muster

import (
	"encoding/json"
	"time"
)

// A Hello is what a node says of itself when it connects, and now and then
// afterwards. The broker keeps the newest of each node.
type Hello struct {
	Node     NodeName          `json:"node"`
	Version  string            `json:"version"`  // of muster
	Instance string            `json:"instance"` // of the agent's process, new at each start
	Started  time.Time         `json:"started"`  // of the agent's process
	Facts    map[string]any    `json:"facts,omitempty"`
	Methods  []json.RawMessage `json:"methods,omitempty"`  // specs of third-party methods
	Problems []string          `json:"problems,omitempty"` // what an operator should know
}

// A Beat is a sign of life, sent at intervals and in answer to a ping.
type Beat struct {
	Node     NodeName  `json:"node"`
	Instance string    `json:"instance"`
	Time     time.Time `json:"time"`  // by the node's clock
	Queue    int       `json:"queue"` // commands accepted and not final
	Running  int       `json:"running"`
	Leaving  bool      `json:"leaving,omitempty"` // an orderly end
	// RTT is the round trip to the broker in milliseconds, as measured last:
	// how long an answer to a ping may take.
	RTT float64 `json:"rtt_ms,omitempty"`
	// Revoked is the mark of the lists of revoked callers that are in force on
	// the node, empty for none.
	Revoked string `json:"revoked,omitempty"`
	// Ping repeats the text of the ping that this answers.
	Ping string `json:"ping,omitempty"`
}

// An Event is something that happened on a node.
type Event struct {
	Time    time.Time         `json:"time"`
	Node    NodeName          `json:"node"`
	Type    string            `json:"type"` // "journal-unreadable", "orphans", ...
	Message string            `json:"message"`
	Data    map[string]string `json:"data,omitempty"`
}

// EventAudit is the type of the events that tell of decisions: one for each line
// of a node's audit log, with the line itself as the data "line".
const EventAudit = "audit"

// MethodCancel is the method of a withdrawal, and the name under which
// policies allow or deny the cancelling of what other callers sent.
const MethodCancel Method = "command.cancel"

// A Withdrawal is the input of MethodCancel.
type Withdrawal struct {
	ID     CommandID `json:"id"`
	Until  time.Time `json:"until"`            // deadline of the command, after which the withdrawal is moot
	Reason string    `json:"reason,omitempty"` // at most MaxReason bytes
}

// MaxReason is the longest reason of a withdrawal, in bytes: a node keeps it for
// as long as the withdrawal.
const MaxReason = 1 << 10
