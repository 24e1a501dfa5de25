package bus

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/musterfleet/muster"
)

// LayoutVersion is the version of streams and subjects that this code uses.
//
//	1  first
const LayoutVersion = 1

// Settings are what everyone who joins the bus must agree on. They are stored
// on the bus, under P.settings.
type Settings struct {
	Version int    `json:"version"`
	Fleet   string `json:"fleet"`
	Shards  int    `json:"shards"`
	// Replicas of each stream. With more than one, a change of leader could
	// reorder what is sent without waiting, so senders wait for each receipt.
	Replicas int `json:"replicas"`
}

// LayoutOptions are the choices when a layout is made.
type LayoutOptions struct {
	Fleet       string        // id of the fleet
	Shards      int           // command streams, default 16
	Replicas    int           // default 1
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
	o.Shards = cmp.Or(o.Shards, 16)
	o.Replicas = cmp.Or(o.Replicas, 1)
	o.LaneLimit = cmp.Or(o.LaneLimit, 10_000)
	o.History = cmp.Or(o.History, 30*day)
	o.OutputBytes = cmp.Or(o.OutputBytes, 4<<30)
	o.OutputAge = cmp.Or(o.OutputAge, 7*day)
	return o
}

// streams is the layout: every stream, with the reason for each choice.
func streams(prefix string, o LayoutOptions) []jetstream.StreamConfig {
	base := func(name string, subjects ...string) jetstream.StreamConfig {
		return jetstream.StreamConfig{
			Name: name, Subjects: subjects, Replicas: o.Replicas, Storage: jetstream.FileStorage,
			Duplicates: duplicateWindow, MaxConsumers: maxConsumers, AllowDirect: true,
		}
	}
	lastValue := func(name string, subjects ...string) jetstream.StreamConfig {
		c := base(name, subjects...)
		c.MaxMsgsPerSubject = 1
		return c
	}
	var all []jetstream.StreamConfig
	for i := range o.Shards {
		// A full lane refuses its sender. The default would drop the oldest
		// command that was not delivered.
		c := base(commandStream(i), fmt.Sprintf("%s.command.%d.>", prefix, i))
		c.Retention = jetstream.WorkQueuePolicy
		c.Discard, c.DiscardNewPerSubject, c.MaxMsgsPerSubject = jetstream.DiscardNew, true, o.LaneLimit
		c.AllowMsgTTL = true // a deadline ends the wait of a command for its node
		c.MaxMsgSize = 1 << 20
		all = append(all, c)
	}
	history := base(StreamHistory, prefix+".sent.*", prefix+".report.*.>", prefix+".event.*.>")
	history.MaxAge = o.History
	output := base(StreamOutput, prefix+".output.>")
	output.MaxAge, output.MaxBytes = o.OutputAge, o.OutputBytes
	dead := base(StreamDead, prefix+".dead.>")
	dead.MaxAge, dead.MaxMsgsPerSubject = deadAge, 1000
	alive := lastValue(StreamAlive, prefix+".alive.>")
	alive.Storage, alive.Replicas = jetstream.MemoryStorage, 1 // a beat every few seconds is not worth a sync
	alive.MaxAge = 24 * time.Hour
	// Settings are written once and refuse to be replaced: a node can make the
	// server answer to any subject, and its answer would take their place.
	settings := lastValue(StreamSettings, prefix+".settings")
	settings.Discard, settings.DiscardNewPerSubject = jetstream.DiscardNew, true
	return append(all, history, output, dead, alive, settings,
		lastValue(StreamControl, prefix+".control.>"),
		lastValue(StreamNodes, prefix+".node.>"))
}

// Setup makes the streams, or brings those of an older version up to date. It
// is safe to call at each start and by several starters. A layout that a newer
// muster has made is left alone, with an error.
func (c *Conn) Setup(ctx context.Context, o LayoutOptions) error {
	o = o.withDefaults()
	old, err := c.readSettings(ctx)
	switch {
	case muster.KindOf(err) == muster.NotFound:
	case err != nil:
		return err
	case old.Version > LayoutVersion:
		return muster.Errorf(muster.Unsupported, "the broker's layout has version %d; this muster knows %d", old.Version, LayoutVersion).
			WithHint("use a muster that is at least as new as the one that made it")
	case old.Fleet != o.Fleet:
		return muster.Errorf(muster.Conflict, "the broker belongs to fleet %s, not %s", old.Fleet, o.Fleet).
			WithHint("use another account of the broker, or the other fleet's folder")
	default:
		o.Shards = old.Shards // nodes find their stream by it
	}
	for _, s := range streams(c.subjects.Prefix, o) {
		if _, err := c.js.CreateOrUpdateStream(ctx, s); err != nil {
			return natsError(err, "make stream "+s.Name)
		}
	}
	if err := c.setupRecords(ctx, o); err != nil {
		return err
	}
	return c.writeSettings(ctx, old, Settings{Version: LayoutVersion, Fleet: o.Fleet, Shards: o.Shards, Replicas: o.Replicas})
}

// writeSettings is the last step: settings stand for a complete layout.
func (c *Conn) writeSettings(ctx context.Context, old, s Settings) error {
	if s != old {
		data, err := json.Marshal(s)
		if err != nil {
			return err
		}
		if err := c.Purge(ctx, StreamSettings, c.subjects.Settings()); err != nil {
			return err
		}
		if _, err := c.js.Publish(ctx, c.subjects.Settings(), data); err != nil {
			return natsError(err, "store settings")
		}
	}
	c.adopt(s)
	return nil
}

// Load reads the settings of the bus. It must succeed, or Setup must, before
// commands are sent or received.
func (c *Conn) Load(ctx context.Context) (Settings, error) {
	s, err := c.readSettings(ctx)
	if err != nil {
		return Settings{}, err
	}
	if s.Version > LayoutVersion {
		return s, muster.Errorf(muster.Unsupported, "the broker's layout has version %d; this muster knows %d", s.Version, LayoutVersion).
			WithHint("install a newer muster here")
	}
	c.adopt(s)
	return s, nil
}

func (c *Conn) adopt(s Settings) {
	c.settings = s
	c.subjects.Shards = s.Shards
}

func (c *Conn) readSettings(ctx context.Context) (Settings, error) {
	m, err := c.Last(ctx, StreamSettings, c.subjects.Settings())
	if err != nil {
		return Settings{}, err
	}
	var s Settings
	if err := json.Unmarshal(m.Data, &s); err != nil || s.Shards < 1 || s.Shards > 4096 || s.Version < 1 {
		return Settings{}, muster.Errorf(muster.Corrupt, "the settings on the broker cannot be read: %.200q", m.Data)
	}
	return s, nil
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
	return muster.Errorf(kind, "%s: %w", doing, err)
}

func apiKind(e *jetstream.APIError) muster.ErrorKind {
	switch e.ErrorCode {
	case 10077, 10047, 10023, 10028, 10002: // a limit of stream, account or machine
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
