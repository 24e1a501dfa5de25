package bus

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/musterfleet/muster"
)

// LayoutVersion is the version of streams and subjects that this code uses.
//
//	1  first
//	2  the number of command streams can change; settings are also kept in the
//	   metadata of their stream
const LayoutVersion = 2

// Settings are what everyone who joins the bus must agree on. They are stored
// on the bus, under P.settings.
type Settings struct {
	Version int    `json:"version"`
	Fleet   string `json:"fleet"`
	Queues         // where commands are sent to
	// Replicas of each stream. With more than one, a change of leader could
	// reorder what is sent without waiting, so senders wait for each receipt.
	Replicas int `json:"replicas"`
	// Older sets of command streams take no more commands, but may hold some. A
	// node empties its queues in them, the oldest first, before the current one.
	Older []Queues `json:"older,omitempty"`
	// Next is the set that takes the place of the current one at this moment.
	Next *Queues `json:"next,omitempty"`
	// Revoked are the lists of revoked callers, one of each issuer that has any,
	// as the issuers signed them.
	Revoked []json.RawMessage `json:"revoked,omitempty"`
}

// LayoutOptions are the choices when a layout is made.
type LayoutOptions struct {
	Fleet       string        // id of the fleet
	Shards      int           // command streams, default 16; of a layout that exists they are kept
	Replicas    int           // default what the layout has, 1 at first
	LaneLimit   int64         // commands stored for one lane of one node, default 10,000
	History     time.Duration // how long history is kept, default 30 days
	OutputBytes int64         // of large output, the oldest goes first, default 4 GiB
	OutputAge   time.Duration // default 7 days
}

// Limits of the layout that are not worth a setting.
const (
	// duplicateWindow is how long the broker itself recognises a repeated
	// message. Nodes recognise it for as long as it matters; see delivery.
	duplicateWindow = 10 * time.Minute
	maxConsumers    = 50_000
	deadAge         = 90 * 24 * time.Hour
)

func (o LayoutOptions) withDefaults() LayoutOptions {
	const day = 24 * time.Hour
	o.LaneLimit = cmp.Or(o.LaneLimit, 10_000)
	o.History = cmp.Or(o.History, 30*day)
	o.OutputBytes = cmp.Or(o.OutputBytes, 4<<30)
	o.OutputAge = cmp.Or(o.OutputAge, 7*day)
	return o
}

// base is what all streams have in common.
func (o LayoutOptions) base(name string, subjects ...string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: name, Subjects: subjects, Replicas: o.Replicas, Storage: jetstream.FileStorage,
		Duplicates: duplicateWindow, MaxConsumers: maxConsumers, AllowDirect: true,
	}
}

func (o LayoutOptions) lastValue(name string, subjects ...string) jetstream.StreamConfig {
	c := o.base(name, subjects...)
	c.MaxMsgsPerSubject = 1
	return c
}

// commandStreams is a set of command streams that takes commands.
func commandStreams(prefix string, o LayoutOptions, q Queues) []jetstream.StreamConfig {
	var all []jetstream.StreamConfig
	for i := range q.Shards {
		// A full lane refuses its sender. The default would drop the oldest
		// command that was not delivered.
		c := o.base(q.stream(i), prefix+".command."+q.token(i)+".>")
		c.Retention = jetstream.WorkQueuePolicy
		c.Discard, c.DiscardNewPerSubject, c.MaxMsgsPerSubject = jetstream.DiscardNew, true, o.LaneLimit
		c.AllowMsgTTL = true // a deadline ends the wait of a command for its node
		c.MaxMsgSize = 1 << 20
		all = append(all, c)
	}
	return all
}

// streams is the rest of the layout, with the reason for each choice.
func streams(prefix string, o LayoutOptions) []jetstream.StreamConfig {
	history := o.base(StreamHistory, prefix+".sent.*", prefix+".report.*.>", prefix+".event.*.>")
	history.MaxAge = o.History
	output := o.base(StreamOutput, prefix+".output.>")
	output.MaxAge, output.MaxBytes = o.OutputAge, o.OutputBytes
	dead := o.base(StreamDead, prefix+".dead.>")
	dead.MaxAge, dead.MaxMsgsPerSubject = deadAge, 1000
	alive := o.lastValue(StreamAlive, prefix+".alive.>")
	alive.Storage, alive.Replicas = jetstream.MemoryStorage, 1 // a beat every few seconds is not worth a sync
	alive.MaxAge = 24 * time.Hour
	return []jetstream.StreamConfig{
		history, output, dead, alive,
		o.lastValue(StreamControl, prefix+".control.>"),
		o.lastValue(StreamNodes, prefix+".node.>"),
	}
}

// settingsStream keeps the settings where all can read them. They refuse to be
// replaced: a node can make the server answer to any subject, and its answer
// would take their place.
func settingsStream(prefix string, o LayoutOptions) jetstream.StreamConfig {
	c := o.lastValue(StreamSettings, prefix+".settings")
	c.Discard, c.DiscardNewPerSubject = jetstream.DiscardNew, true
	return c
}

// natsError turns an error of nats.go into one of ours, with a kind.
func natsError(err error, doing string) error {
	if err == nil {
		return nil
	}
	kind := muster.Unavailable
	var api *jetstream.APIError
	switch {
	case errors.As(err, &api):
		kind = apiKind(api)
	case errors.Is(err, context.Canceled):
		kind = muster.Interrupted
	}
	if kind == muster.Full && api.ErrorCode != codeStreamFull {
		return muster.Errorf(kind, "%s: the broker has no room: %w", doing, err).WithHint("free disk space on the broker's machine")
	}
	return muster.Errorf(kind, "%s: %w", doing, err)
}

// codeStreamFull is the broker's code for a stream, or a subject of it, at its limit.
const codeStreamFull = 10077

func apiKind(e *jetstream.APIError) muster.ErrorKind {
	switch e.ErrorCode {
	case codeStreamFull, 10047, 10023, 10028, 10002: // a limit of stream, account or machine
		return muster.Full
	case jetstream.JSErrCodeMessageNotFound, jetstream.JSErrCodeStreamNotFound, jetstream.JSErrCodeConsumerNotFound:
		return muster.NotFound
	case jetstream.JSErrCodeStreamWrongLastSequence, jetstream.JSErrCodeStreamWrongLastSequenceConstant:
		return muster.Conflict
	case jetstream.JSErrCodeStreamMessageExceedsMaximum:
		return muster.Invalid
	}
	return muster.Unavailable
}
