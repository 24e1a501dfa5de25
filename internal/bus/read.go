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

func (c *Conn) read(ctx context.Context, q Query, follow bool, handle func(Stored) error) error {
	consumer, err := c.reader(ctx, q)
	if muster.KindOf(err) == muster.Denied {
		return err
	}
	if err != nil {
		return natsError(err, "read stream "+q.Stream)
	}
	info := consumer.CachedInfo()
	defer c.dropConsumer(q.Stream, info.Name)
	if info.NumPending == 0 && !follow {
		return nil
	}
	messages, err := consumer.Messages(jetstream.PullMaxBytes(readAhead), jetstream.PullExpiry(2*readerBeat), jetstream.PullHeartbeat(readerBeat))
	if err != nil {
		return natsError(err, "read stream "+q.Stream)
	}
	defer messages.Stop()
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return natsError(err, "read stream "+q.Stream)
		}
		md, err := m.Metadata()
		if err != nil {
			return natsError(err, "read stream "+q.Stream)
		}
		s := Stored{m.Subject(), m.Data(), m.Headers(), md.Sequence.Stream, md.Timestamp, md.NumPending}
		if err := handle(s); err != nil {
			return err
		}
		if !follow && md.NumPending == 0 {
			return nil
		}
	}
}

// readAhead is how many bytes the broker may send ahead. Counted in messages, as
// it would be otherwise, large ones exceed what a broker keeps for one
// connection (64 MiB by default), and it closes that.
const readAhead = 8 << 20

// readerTries is how often a consumer is asked for. A cluster that has lost a
// server gives it to that server, which never answers, once in a few times,
// until it has noticed the loss.
const readerTries = 10

// readerBeat is how often the broker says that there is nothing to read. After
// two that are missing the consumer is made anew, which nothing interrupts for
// half a minute: by then, whoever watches over the connection has closed it.
const readerBeat = 20 * time.Second

// resetTries is how often a consumer is made anew that the broker does not
// serve any more. Without a bound this goes on when the connection has ended.
const resetTries = 3

func (c *Conn) reader(ctx context.Context, q Query) (consumer jetstream.Consumer, err error) {
	for range readerTries {
		err = c.permitted(ctx, q.Stream, func(ctx context.Context) error {
			try, cancel := context.WithTimeout(ctx, requestTimeout)
			defer cancel()
			consumer, err = c.js.OrderedConsumer(try, q.Stream, q.config())
			return err
		})
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			break
		}
	}
	return consumer, err
}

// dropConsumer is a courtesy: the broker would drop it a minute later.
func (c *Conn) dropConsumer(stream, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := c.js.DeleteConsumer(ctx, stream, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		c.log.Debug("consumer was not removed", "component", "bus", "stream", stream, "err", err)
	}
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
