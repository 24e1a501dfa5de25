package bus

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/musterfleet/muster"
)

func directStored(m *nats.Msg) Stored {
	seq, _ := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)     // 0 when absent
	at, _ := time.Parse(time.RFC3339Nano, m.Header.Get("Nats-Time-Stamp")) // zero when absent
	return Stored{Subject: m.Header.Get("Nats-Subject"), Data: m.Data, Header: m.Header, Seq: seq, Time: at}
}

// A Query says what to read of a stream.
type Query struct {
	Stream  string
	Filters []string  // subjects, with wildcards; empty for all
	From    uint64    // first sequence, 0 for the start
	Since   time.Time // only what was stored later; zero for all
	Last    bool      // only the newest of each subject
}

func (q Query) config() jetstream.OrderedConsumerConfig {
	o := jetstream.OrderedConsumerConfig{FilterSubjects: q.Filters, InactiveThreshold: time.Minute, MaxResetAttempts: resetTries}
	switch {
	case q.Last:
		o.DeliverPolicy = jetstream.DeliverLastPerSubjectPolicy
	case q.From > 0:
		o.DeliverPolicy, o.OptStartSeq = jetstream.DeliverByStartSequencePolicy, q.From
	case !q.Since.IsZero():
		o.DeliverPolicy, o.OptStartTime = jetstream.DeliverByStartTimePolicy, &q.Since
	}
	return o
}

// Read calls handle for each stored message that is there now, in order.
func (c *Conn) Read(ctx context.Context, q Query, handle func(Stored) error) error {
	return c.read(ctx, q, false, handle)
}

// Follow calls handle for each stored message that is there now and for each
// that comes, until ctx or the connection ends or handle returns an error.
func (c *Conn) Follow(ctx context.Context, q Query, handle func(Stored) error) error {
	return c.read(ctx, q, true, handle)
}

// Put stores one message and waits for the receipt.
func (c *Conn) Put(ctx context.Context, m Outgoing) error {
	_, err := c.put(ctx, m)
	return err
}

// PutAfter stores a message if the newest on its subject still has the given
// sequence (0: there is none), or returns an error of kind Conflict.
func (c *Conn) PutAfter(ctx context.Context, m Outgoing, seq uint64) error {
	_, err := c.put(ctx, m, jetstream.WithExpectLastSequencePerSubject(seq))
	return err
}

func (c *Conn) put(ctx context.Context, m Outgoing, opts ...jetstream.PublishOpt) (uint64, error) {
	if m.ID != "" {
		opts = append(opts, jetstream.WithMsgID(m.ID))
	}
	if m.TTL > 0 {
		opts = append(opts, jetstream.WithMsgTTL(ttl(m.TTL)))
	}
	msg := &nats.Msg{Subject: m.Subject, Data: m.Data, Header: nats.Header{}}
	for k, v := range m.Header {
		msg.Header.Set(k, v)
	}
	var ack *jetstream.PubAck
	err := c.permitted(ctx, m.Subject, func(ctx context.Context) (err error) {
		ack, err = c.js.PublishMsg(ctx, msg, opts...)
		return err
	})
	if muster.KindOf(err) == muster.Denied {
		return 0, err
	}
	if errors.Is(err, jetstream.ErrNoStreamResponse) {
		c.nc.Close() // the stream may have been replaced: a new connection knows
	}
	if err != nil {
		return 0, natsError(err, "store "+m.Subject)
	}
	return ack.Sequence, nil
}

// Tell publishes a message that nobody stores or that need not be stored.
func (c *Conn) Tell(subject string, data []byte) error {
	return natsError(c.nc.Publish(subject, data), "publish "+subject)
}

// Flush waits until the broker has taken what was published.
func (c *Conn) Flush(ctx context.Context) error {
	return natsError(c.nc.FlushWithContext(ctx), "flush")
}

// PurgeQueue removes all commands that wait for the node.
func (c *Conn) PurgeQueue(ctx context.Context, node muster.NodeName) error {
	return c.eachQueue(ctx, func(s Subjects) error { return c.Purge(ctx, s.CommandStream(node), s.Commands(node)) })
}

// eachQueue calls f for each set of command streams. An older one may have
// been removed.
func (c *Conn) eachQueue(ctx context.Context, f func(Subjects) error) error {
	if err := c.current(ctx); err != nil {
		return err
	}
	for _, q := range c.settings.Older {
		if err := f(c.subjects.of(q)); err != nil && muster.KindOf(err) != muster.NotFound {
			return err
		}
	}
	return f(c.subjects)
}

// Purge removes what a stream holds under a filter.
func (c *Conn) Purge(ctx context.Context, stream, filter string) error {
	return c.permitted(ctx, stream, func(ctx context.Context) error {
		s, err := c.js.Stream(ctx, stream)
		if err != nil {
			return natsError(err, "purge "+stream)
		}
		return natsError(s.Purge(ctx, jetstream.WithPurgeSubject(filter)), "purge "+filter)
	})
}

// Delete removes one message of a stream.
func (c *Conn) Delete(ctx context.Context, stream string, seq uint64) error {
	return c.permitted(ctx, stream, func(ctx context.Context) error {
		s, err := c.js.Stream(ctx, stream)
		if err != nil {
			return natsError(err, "delete from "+stream)
		}
		return natsError(s.DeleteMsg(ctx, seq), "delete from "+stream)
	})
}

// A StreamState is how full a stream is.
type StreamState struct {
	Name      string
	Messages  uint64
	Bytes     uint64
	Consumers int
}

// StreamStates describes all streams of the account.
func (c *Conn) StreamStates(ctx context.Context) ([]StreamState, error) {
	var all []StreamState
	list := c.js.ListStreams(ctx)
	for i := range list.Info() {
		all = append(all, StreamState{i.Config.Name, i.State.Msgs, i.State.Bytes, i.State.Consumers})
	}
	return all, natsError(list.Err(), "list streams")
}
