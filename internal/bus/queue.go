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
)

// Commands reads the node's queue from its first unacknowledged command, in
// order, and calls handle for each message. It returns when ctx or the
// connection ends, or when a delivery was lost; the caller calls it again.
//
// The consumer is deleted and made anew each time: a work queue holds exactly
// what is not acknowledged, so that a fresh consumer is in order, which a kept
// one, redelivering behind newer messages, is not.
func (c *Conn) Commands(ctx context.Context, mailbox string, node muster.NodeName, handle func(Message) error) error {
	consumer, err := c.freshConsumer(ctx, mailbox, node)
	if err != nil {
		return err
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(maxAckPending/2),
		jetstream.PullHeartbeat(pullHeartbeat), jetstream.PullExpiry(2*pullHeartbeat))
	if err != nil {
		return natsError(err, "read the queue")
	}
	defer messages.Stop()
	return c.deliver(ctx, messages, handle)
}

// EnsureQueue makes the consumer of a node without reading from it.
func (c *Conn) EnsureQueue(ctx context.Context, mailbox string, node muster.NodeName) error {
	_, err := c.freshConsumer(ctx, mailbox, node)
	return err
}

// freshConsumer replaces the node's consumer by a new one.
func (c *Conn) freshConsumer(ctx context.Context, mailbox string, node muster.NodeName) (jetstream.Consumer, error) {
	stream, name := c.subjects.CommandStream(node), consumerName(mailbox, node)
	setup, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := c.js.DeleteConsumer(setup, stream, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, natsError(err, "remove the old consumer")
	}
	consumer, err := c.js.CreateConsumer(setup, stream, jetstream.ConsumerConfig{
		Name: name, FilterSubject: c.subjects.Commands(node),
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxAckPending: maxAckPending,
		InactiveThreshold: inactiveThreshold, MemoryStorage: true, Replicas: 1,
	})
	if err != nil {
		return nil, natsError(err, "make a consumer")
	}
	return consumer, nil
}

// deliver hands messages on while their consumer sequence has no gap.
func (c *Conn) deliver(ctx context.Context, messages jetstream.MessagesContext, handle func(Message) error) error {
	for want := uint64(1); ; want++ {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return natsError(err, "read the queue")
		}
		md, err := m.Metadata()
		if err != nil {
			return natsError(err, "read the queue")
		}
		if md.Sequence.Consumer != want {
			return muster.Errorf(muster.Unavailable, "a delivery was lost: got number %d, want %d", md.Sequence.Consumer, want)
		}
		err = handle(Message{
			Subject: m.Subject(), Data: m.Data(), Delivered: int(md.NumDelivered), Stored: md.Timestamp, msg: m,
		})
		if err != nil {
			return err
		}
	}
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
// exact.
func (c *Conn) Last(ctx context.Context, stream, subject string) (Stored, error) {
	m, err := c.nc.RequestWithContext(ctx, c.api+".DIRECT.GET."+stream+"."+subject, nil)
	if err != nil {
		if errors.Is(err, nats.ErrNoResponders) {
			return Stored{}, muster.Errorf(muster.NotFound, "stream %s is not there", stream).
				WithHint("start the broker once with 'muster broker', which makes it")
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
