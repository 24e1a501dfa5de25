package bus

import (
	"context"
	"errors"
	"slices"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/musterfleet/muster"
)

// Reshard gives the layout another number of command streams while senders and
// nodes work. No command is copied: a new set of streams takes the new ones,
// and nodes empty the old set first. The order of the steps keeps lanes in
// order:
//
//	intend   the settings say what comes; from here on Setup completes it
//	make     the new streams
//	seal     each old stream gives up its subjects: a sender finds nobody
//	         listening, connects anew and waits for the new settings
//	switch   the settings name the new set, and the old one as an older set
//	tell     the old streams' consumers go, so that nodes connect anew
//
// An older set is removed by a later Setup, when it is empty.
func (c *Conn) Reshard(ctx context.Context, o LayoutOptions, shards int) error {
	if shards < 1 || shards > maxShards {
		return muster.Errorf(muster.Invalid, "%d command streams are out of range; expected 1 to %d", shards, maxShards)
	}
	if _, err := c.readIntent(ctx); err != nil {
		return err // there is nothing to change, or it cannot be understood
	}
	if err := c.Setup(ctx, o); err != nil {
		return err
	}
	if c.settings.Shards == shards {
		return nil
	}
	l := layout{c: c, o: o.withDefaults(), s: c.settings}
	l.o.Replicas = l.s.Replicas
	l.s.Next = &Queues{Generation: l.s.Generation + 1, Shards: shards}
	if err := l.store(ctx); err != nil {
		return err
	}
	if err := l.move(ctx); err != nil {
		return err
	}
	return l.retire(ctx)
}

// move puts the next set of command streams in place of the current one.
func (l *layout) move(ctx context.Context) error {
	prefix := l.c.subjects.Prefix
	if err := l.make(ctx, commandStreams(prefix, l.o, *l.s.Next)...); err != nil {
		return err
	}
	for i := range l.s.Shards {
		if err := l.seal(ctx, l.s.Queues, i); err != nil {
			return err
		}
	}
	l.s.Older = append(slices.Clone(l.s.Older), l.s.Queues)
	l.s.Queues, l.s.Next = *l.s.Next, nil
	return l.store(ctx)
}

// seal makes a stream take no more commands, and returns when those that it
// had taken before are stored: the broker stores in the order of taking, so
// that a message which comes after has its receipt after theirs.
func (l *layout) seal(ctx context.Context, q Queues, shard int) error {
	if err := l.step(ctx); err != nil {
		return err
	}
	doing, subject := "seal stream "+q.stream(shard), l.c.subjects.sealed(q, shard)
	err := l.c.patiently(ctx, requestTimeout, func(ctx context.Context) error {
		stream, err := l.c.js.Stream(ctx, q.stream(shard))
		if err != nil {
			return err
		}
		config := stream.CachedInfo().Config
		config.Subjects = []string{subject}
		_, err = l.c.js.UpdateStream(ctx, config)
		return err
	})
	if err != nil {
		return natsError(err, doing)
	}
	if err := l.step(ctx); err != nil {
		return err
	}
	err = l.c.patiently(ctx, requestTimeout, func(ctx context.Context) error {
		_, err := l.c.js.Publish(ctx, subject, nil)
		return err
	})
	return natsError(err, doing)
}

// retire tells nodes to leave the older sets, and removes those that are empty.
func (l *layout) retire(ctx context.Context) error {
	var kept []Queues
	for _, q := range l.s.Older {
		left := false
		for i := range q.Shards {
			if err := l.step(ctx); err != nil {
				return err
			}
			there, err := l.retireStream(ctx, q, i)
			if err != nil {
				return err
			}
			left = left || there
		}
		if left {
			kept = append(kept, q)
		}
	}
	if len(kept) == len(l.s.Older) {
		return nil
	}
	l.s.Older = kept
	return l.store(ctx)
}

// retireStream reports whether the stream is still there.
func (l *layout) retireStream(ctx context.Context, q Queues, shard int) (there bool, err error) {
	name := q.stream(shard)
	doing := "retire stream " + name
	var stream jetstream.Stream
	err = l.c.patiently(ctx, requestTimeout, func(ctx context.Context) error {
		if err := l.c.Purge(ctx, name, l.c.subjects.sealed(q, shard)); err != nil { // only commands count
			return err
		}
		stream, err = l.c.js.Stream(ctx, name)
		return err
	})
	err = natsError(err, doing)
	if muster.KindOf(err) == muster.NotFound {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	if stream.CachedInfo().State.Msgs > 0 {
		return true, natsError(l.dropConsumers(ctx, stream), doing)
	}
	err = l.c.patiently(ctx, requestTimeout, func(ctx context.Context) error { return l.c.js.DeleteStream(ctx, name) })
	if errors.Is(err, jetstream.ErrStreamNotFound) { // by an earlier try
		err = nil
	}
	return false, natsError(err, doing)
}

// dropConsumers removes all consumers of a stream.
func (l *layout) dropConsumers(ctx context.Context, stream jetstream.Stream) error {
	var all []string
	err := l.c.patiently(ctx, listTimeout, func(ctx context.Context) error {
		all = all[:0]
		names := stream.ConsumerNames(ctx)
		for n := range names.Name() {
			all = append(all, n)
		}
		return names.Err()
	})
	if err != nil {
		return err
	}
	for _, n := range all {
		err := l.c.patiently(ctx, requestTimeout, func(ctx context.Context) error { return stream.DeleteConsumer(ctx, n) })
		if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return err
		}
	}
	return nil
}
