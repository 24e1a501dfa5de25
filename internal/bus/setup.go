package bus

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/musterfleet/muster"
)

// metaSettings is the key in the metadata of StreamSettings that holds what
// the settings are, or are to become. It changes at one stroke, which a message
// in a stream that refuses to replace it cannot, and only who may change
// streams can write it. The message is made from it.
const metaSettings = "muster-settings"

// Setup makes the layout, brings one of an older version up to date in place,
// and completes a change that was interrupted. It is safe to call at each
// start, but a caller sees to it that only one Setup or Reshard runs at a time.
// A layout that a newer muster has made is left alone, with an error.
func (c *Conn) Setup(ctx context.Context, o LayoutOptions) error {
	s, err := c.intended(ctx, o)
	if err != nil {
		return err
	}
	l := layout{c: c, o: o.withDefaults(), s: s}
	l.s.Version = LayoutVersion
	l.s.Replicas = cmp.Or(o.Replicas, s.Replicas)
	l.o.Replicas = l.s.Replicas
	return l.setup(ctx)
}

// intended is what the layout is or is to become. It is new when there is none.
func (c *Conn) intended(ctx context.Context, o LayoutOptions) (Settings, error) {
	s, err := c.readIntent(ctx)
	if muster.KindOf(err) == muster.NotFound {
		return Settings{Fleet: o.Fleet, Queues: Queues{Shards: cmp.Or(o.Shards, 16)}, Replicas: 1}, nil
	}
	if err != nil {
		return s, err
	}
	if s.Version > LayoutVersion {
		return s, muster.Errorf(muster.Unsupported, "the broker's layout has version %d; this muster knows %d", s.Version, LayoutVersion).
			WithHint("use a muster that is at least as new as the one that made it")
	}
	if s.Fleet != o.Fleet {
		return s, muster.Errorf(muster.Conflict, "the broker belongs to fleet %s, not %s", s.Fleet, o.Fleet).
			WithHint("use another account of the broker, or the other fleet's folder")
	}
	return s, nil
}

// readIntent reads the settings from the metadata, where version 1 had none,
// or else from the message.
func (c *Conn) readIntent(ctx context.Context) (Settings, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	stream, err := c.js.Stream(ctx, StreamSettings)
	if err != nil {
		return Settings{}, natsError(err, "read stream "+StreamSettings)
	}
	if text, ok := stream.CachedInfo().Config.Metadata[metaSettings]; ok {
		return parseSettings([]byte(text))
	}
	m, err := c.Last(ctx, StreamSettings, c.subjects.Settings())
	if err != nil {
		return Settings{}, err
	}
	return parseSettings(m.Data)
}

// One request about streams is bounded: a cluster that has no leader yet
// answers none, and whoever asks again later is answered at once.
const (
	requestTimeout = 3 * time.Second
	makeTimeout    = 10 * time.Second // it writes to the disks of a cluster
	listTimeout    = 20 * time.Second // of thousands, page by page
)

// maxShards bounds the command streams of a layout. Many thousands of streams
// would take the broker minutes to start.
const maxShards = 256

func parseSettings(data []byte) (Settings, error) {
	var s Settings
	err := json.Unmarshal(data, &s)
	valid := func(q Queues) bool { return q.Shards >= 1 && q.Shards <= maxShards && q.Generation >= 0 }
	ok := valid(s.Queues) && (s.Next == nil || valid(*s.Next))
	for _, q := range s.Older {
		ok = ok && valid(q)
	}
	if err != nil || !ok && s.Version <= LayoutVersion {
		return s, muster.Errorf(muster.Corrupt, "the broker's settings cannot be read: %.100q", data)
	}
	return s, nil
}

// A layout is at work on the streams. Each of its steps can be repeated, and
// what it rests on is stored before it: a start after a crash at any point
// goes on with what the metadata says.
type layout struct {
	c *Conn
	o LayoutOptions
	s Settings // as stored, or about to be
}

// step is called before each change to the broker. Tests end the work here.
func (l *layout) step(ctx context.Context) error {
	if l.c.beforeStep != nil {
		l.c.beforeStep()
	}
	return ctx.Err()
}

func (l *layout) setup(ctx context.Context) error {
	all := streams(l.c.subjects.Prefix, l.o)
	if l.s.Next == nil { // those of a set that is being sealed would be opened again
		all = append(all, commandStreams(l.c.subjects.Prefix, l.o, l.s.Queues)...)
	}
	if err := l.make(ctx, all...); err != nil {
		return err
	}
	records, err := l.c.recordStream(ctx, l.o)
	if err != nil {
		return err
	}
	if err := l.make(ctx, records); err != nil {
		return err
	}
	if err := l.store(ctx); err != nil { // settings stand for a complete layout
		return err
	}
	if l.s.Next != nil {
		if err := l.move(ctx); err != nil {
			return err
		}
	}
	return l.retire(ctx)
}

func (l *layout) make(ctx context.Context, all ...jetstream.StreamConfig) error {
	for _, s := range all {
		if err := l.step(ctx); err != nil {
			return err
		}
		if err := l.makeOne(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func (l *layout) makeOne(ctx context.Context, s jetstream.StreamConfig) error {
	ctx, cancel := context.WithTimeout(ctx, makeTimeout)
	defer cancel()
	_, err := l.c.js.CreateOrUpdateStream(ctx, s)
	return natsError(err, "make stream "+s.Name)
}

// store makes the settings those of the layout: in the metadata, then as the
// message.
func (l *layout) store(ctx context.Context) error {
	data, err := json.Marshal(l.s)
	if err != nil {
		return err
	}
	stream := settingsStream(l.c.subjects.Prefix, l.o)
	stream.Metadata = map[string]string{metaSettings: string(data)}
	if err := l.make(ctx, stream); err != nil {
		return err
	}
	for {
		done, err := l.publish(ctx, data)
		if err != nil {
			return err
		}
		if done {
			l.c.adopt(l.s)
			return nil
		}
	}
}

// publish replaces the message. It reports false when something else took its
// place, which can happen between the two halves.
func (l *layout) publish(ctx context.Context, data []byte) (done bool, err error) {
	subject := l.c.subjects.Settings()
	last, err := l.c.Last(ctx, StreamSettings, subject)
	switch {
	case err == nil && bytes.Equal(last.Data, data):
		return true, nil
	case err != nil && muster.KindOf(err) != muster.NotFound:
		return false, err
	}
	if err := l.step(ctx); err != nil {
		return false, err
	}
	err = l.c.patiently(ctx, requestTimeout, func(ctx context.Context) error { return l.c.Purge(ctx, StreamSettings, subject) })
	if err != nil {
		return false, err
	}
	if err := l.step(ctx); err != nil {
		return false, err
	}
	err = l.c.patiently(ctx, requestTimeout, func(ctx context.Context) error {
		_, err := l.c.js.Publish(ctx, subject, data)
		return err
	})
	if err = natsError(err, "store settings"); muster.KindOf(err) == muster.Full {
		return false, nil
	}
	return err == nil, err
}

// How long Load waits for a change of the layout that is under way.
const (
	changeWait = 3 * time.Second
	changePoll = 50 * time.Millisecond
)

// Load reads the settings of the bus. It must succeed, or Setup must, before
// commands are sent or received. While the layout is being changed it waits a
// little for the end of that.
func (c *Conn) Load(ctx context.Context) (Settings, error) {
	s, err := c.settled(ctx)
	return s, c.accept(s, err)
}

// settled reads the settings, and waits a little while they are being changed.
func (c *Conn) settled(ctx context.Context) (Settings, error) {
	deadline := time.Now().Add(changeWait)
	for {
		s, err := c.readSettings(ctx)
		changing := err == nil && s.Next != nil || errors.Is(err, errNoSettings)
		if !changing || time.Now().After(deadline) || !wait(ctx, changePoll) {
			return s, err
		}
	}
}

// wait reports false when ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (c *Conn) accept(s Settings, err error) error {
	if err != nil {
		return err
	}
	if s.Version > LayoutVersion {
		return muster.Errorf(muster.Unsupported, "the broker's layout has version %d; this muster knows %d", s.Version, LayoutVersion).
			WithHint("install a newer muster here")
	}
	c.adopt(s)
	return nil
}

func (c *Conn) adopt(s Settings) {
	c.settings = s
	c.subjects = c.subjects.of(s.Queues)
}

// errNoSettings is the moment at which settings are replaced, or before a
// first Setup has ended.
var errNoSettings = muster.Errorf(muster.Unavailable, "the broker's settings are being written").WithHint("try again in a moment")

func (c *Conn) readSettings(ctx context.Context) (Settings, error) {
	m, err := c.Last(ctx, StreamSettings, c.subjects.Settings())
	if muster.KindOf(err) == muster.NotFound {
		return Settings{}, errNoSettings
	}
	if err != nil {
		return Settings{}, err
	}
	return parseSettings(m.Data)
}

// current ends the connection when commands have moved to other streams than
// it knows of, so that its owner dials anew and loads the new settings.
func (c *Conn) current(ctx context.Context) error {
	s, err := c.readSettings(ctx)
	if err != nil || s.Generation == c.settings.Generation {
		return err
	}
	c.nc.Close()
	return muster.Errorf(muster.Unavailable, "commands have moved to other streams; connecting anew")
}
