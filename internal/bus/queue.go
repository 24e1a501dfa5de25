package bus

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/musterfleet/muster"
)

// A Message is a command as a node receives it, not yet decoded.
type Message struct {
	Subject   string
	Data      []byte
	Stream    string    // that holds it
	Seq       uint64    // within the stream
	Delivered int       // how often the broker has handed it out
	Stored    time.Time // by the broker
	msg       jetstream.Msg
}

// Ack lets the broker forget the message. The receipt of the acknowledgement
// is not waited for: if it is lost the message comes again, and is known.
func (m Message) Ack() error { return m.msg.Ack() }

// Figures of a node's consumer.
const (
	maxAckPending     = 512
	ackWait           = 5 * time.Minute
	inactiveThreshold = 5 * time.Minute
	pullHeartbeat     = 15 * time.Second
	drainWait         = 5 * time.Second // for a message of an older queue, before it is counted again
)

// Commands reads the node's queue from its first unacknowledged command, in
// order, and calls handle for each message. It returns when ctx or the
// connection ends, or when a delivery was lost; the caller calls it again.
//
// The consumer is deleted and made anew each time: a work queue holds exactly
// what is not acknowledged, so that a fresh consumer is in order, which a kept
// one, redelivering behind newer messages, is not.
func (c *Conn) Commands(ctx context.Context, node muster.NodeName, handle func(Message) error) error {
	for _, q := range c.settings.Older {
		if err := c.drain(ctx, q, node, handle); err != nil {
			return err
		}
	}
	consumer, err := c.freshConsumer(ctx, c.settings.Queues, node)
	// If commands move to other streams after this, the consumer is deleted; if
	// they did before, and perhaps the stream is gone, it is seen here.
	if err := c.current(ctx); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(maxAckPending/2),
		jetstream.PullHeartbeat(pullHeartbeat), jetstream.PullExpiry(2*pullHeartbeat))
	if err != nil {
		return natsError(err, "read the queue")
	}
	defer messages.Stop()
	for want := uint64(1); ; want++ {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return natsError(err, "read the queue")
		}
		if err := deliver(m, want, handle); err != nil {
			return err
		}
	}
}

// drain reads the node's queue in a set of streams that takes no more commands,
// to its end. Streams that are gone were empty.
func (c *Conn) drain(ctx context.Context, q Queues, node muster.NodeName, handle func(Message) error) error {
	consumer, err := c.freshConsumer(ctx, q, node)
	if muster.KindOf(err) == muster.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	if consumer.CachedInfo().NumPending == 0 {
		c.dropConsumer(c.subjects.of(q).CommandStream(node), consumerName(c.mailbox, node))
		return nil
	}
	for want := uint64(1); ; {
		// What is pending may be removed by its time to live, so that the end is
		// not seen in the messages. The consumer stays, for acknowledgements.
		info, err := consumer.Info(ctx)
		if err != nil {
			return natsError(err, "read the older queue")
		}
		if info.NumPending == 0 {
			return nil
		}
		batch, err := consumer.Fetch(int(min(info.NumPending, maxAckPending/2)), jetstream.FetchMaxWait(drainWait))
		if err != nil {
			return natsError(err, "read the older queue")
		}
		for m := range batch.Messages() {
			if err := deliver(m, want, handle); err != nil {
				return err
			}
			want++
		}
		if err := batch.Error(); err != nil {
			return natsError(err, "read the older queue")
		}
		if ctx.Err() != nil {
			return natsError(ctx.Err(), "read the older queue")
		}
	}
}

// EnsureQueue makes the consumer of a node without reading from it.
func (c *Conn) EnsureQueue(ctx context.Context, node muster.NodeName) error {
	_, err := c.freshConsumer(ctx, c.settings.Queues, node)
	return err
}

// freshConsumer replaces the node's consumer in a set of streams by a new one.
func (c *Conn) freshConsumer(ctx context.Context, q Queues, node muster.NodeName) (jetstream.Consumer, error) {
	subjects, name := c.subjects.of(q), consumerName(c.mailbox, node)
	stream := subjects.CommandStream(node)
	setup, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := c.js.DeleteConsumer(setup, stream, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, natsError(err, "remove the old consumer")
	}
	consumer, err := c.js.CreateConsumer(setup, stream, jetstream.ConsumerConfig{
		Name: name, FilterSubject: subjects.Commands(node),
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxAckPending: maxAckPending,
		InactiveThreshold: inactiveThreshold, MemoryStorage: true,
		Replicas: c.settings.Replicas, // the broker wants as many as of a work queue's stream
	})
	if err != nil {
		return nil, natsError(err, "make a consumer")
	}
	return consumer, nil
}

// deliver hands a message on if its consumer's sequence has no gap.
func deliver(m jetstream.Msg, want uint64, handle func(Message) error) error {
	md, err := m.Metadata()
	if err != nil {
		return natsError(err, "read the queue")
	}
	if md.Sequence.Consumer != want {
		return muster.Errorf(muster.Unavailable, "a delivery was lost: got number %d, want %d", md.Sequence.Consumer, want)
	}
	return handle(Message{
		Subject: m.Subject(), Data: m.Data(), Stream: md.Stream, Seq: md.Sequence.Stream, Delivered: int(md.NumDelivered), Stored: md.Timestamp, msg: m,
	})
}

// A Stored message is one that was read from a stream.
type Stored struct {
	Subject string
	Data    []byte
	Header  map[string][]string
	Seq     uint64
	Time    time.Time
	Pending uint64 // messages that follow now
}

// Last returns the newest message on a subject, or an error of kind NotFound.
// It asks by a subject that names the wanted one, so that permissions can be
// exact. That nobody answers may mean that the stream has no leader at the
// moment, and never that it holds nothing: the kind is then Unavailable. An answer
// may be lost, as when the broker changes an account: then it asks again.
func (c *Conn) Last(ctx context.Context, stream, subject string) (Stored, error) {
	var m *nats.Msg
	err := c.patiently(ctx, requestTimeout, func(ctx context.Context) (err error) {
		m, err = c.nc.RequestWithContext(ctx, c.api+".DIRECT.GET."+stream+"."+subject, nil)
		return err
	})
	if err != nil {
		if errors.Is(err, nats.ErrNoResponders) {
			return Stored{}, muster.Errorf(muster.Unavailable, "stream %s does not answer", stream).
				WithHint("a cluster may have no leader for it now; on a server of your own, 'muster broker --broker URL' makes it")
		}
		return Stored{}, natsError(err, "read "+subject)
	}
	if m.Header.Get("Status") == "404" {
		return Stored{}, muster.Errorf(muster.NotFound, "nothing is stored under %s", subject)
	}
	if s := m.Header.Get("Status"); s != "" {
		return Stored{}, muster.Errorf(muster.Unavailable, "read %s: status %s %s", subject, s, m.Header.Get("Description"))
	}
	return directStored(m), nil
}
