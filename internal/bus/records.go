package bus

import (
	"context"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/musterfleet/muster"
)

// Records are what operators keep of a fleet: invitations, and what they say
// of nodes. A key has tokens with dots between them.

const (
	recordHistory = 8                // versions of a record that are kept
	recordTimeout = 10 * time.Second // of reading one: a cluster may be choosing a leader
)

// leading is patient for as long as a cluster takes to choose a leader: an
// invitation or a newcomer should not fail for that.
func (c *Conn) leading(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	return c.patiently(ctx, requestTimeout, f)
}

// recordSubject reads the subject of records, which only operators can know,
// from the stream that holds them. There is none before Setup.
func (c *Conn) recordSubject(ctx context.Context) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.records != "" {
		return c.records, nil
	}
	var s jetstream.Stream
	err := c.leading(ctx, func(ctx context.Context) (err error) {
		s, err = c.js.Stream(ctx, StreamFleet)
		return err
	})
	if err != nil {
		return "", natsError(err, "find the records of the fleet")
	}
	subjects := s.CachedInfo().Config.Subjects
	base, ok := "", false
	if len(subjects) == 1 {
		base, ok = strings.CutSuffix(subjects[0], ">")
	}
	if !ok || !strings.HasPrefix(base, c.subjects.Prefix+".fleet.") {
		return "", muster.Errorf(muster.Corrupt, "the stream %s has the subjects %q; expected %s.fleet.MAILBOX.>", StreamFleet, subjects, c.subjects.Prefix)
	}
	c.records = base
	return base, nil
}

// recordStream is the stream of records, under a subject that nobody can guess:
// the one that it has, or a new one.
func (c *Conn) recordStream(ctx context.Context, o LayoutOptions) (jetstream.StreamConfig, error) {
	base, err := c.recordSubject(ctx)
	if muster.KindOf(err) == muster.NotFound {
		base, err = c.subjects.Prefix+".fleet."+NewMailbox()+".", nil
	}
	s := o.base(StreamFleet, base+">")
	s.MaxMsgsPerSubject = recordHistory
	s.AllowDirect = false // a replica may answer with what was true a moment ago
	return s, err
}

// Record reads the newest version of a record. Its Subject is the key.
func (c *Conn) Record(ctx context.Context, key string) (Stored, error) {
	base, err := c.recordSubject(ctx)
	if err != nil {
		return Stored{}, err
	}
	var m *jetstream.RawStreamMsg
	err = c.leading(ctx, func(ctx context.Context) error {
		s, err := c.js.Stream(ctx, StreamFleet)
		if err == nil {
			m, err = s.GetLastMsgForSubject(ctx, base+key)
		}
		return err
	})
	if err != nil {
		return Stored{}, natsError(err, "read the record "+key)
	}
	return Stored{Subject: key, Data: m.Data, Header: m.Header, Seq: m.Sequence, Time: m.Time}, nil
}

// PutRecord writes a record if its newest version still has the given sequence
// (0: there is none), or returns an error of kind Conflict.
func (c *Conn) PutRecord(ctx context.Context, key string, data []byte, seq uint64) error {
	base, err := c.recordSubject(ctx)
	if err != nil {
		return err
	}
	return c.PutAfter(ctx, Outgoing{Subject: base + key, Data: data}, seq)
}

// AddRecord writes a record, whatever was there.
func (c *Conn) AddRecord(ctx context.Context, key string, data []byte) error {
	base, err := c.recordSubject(ctx)
	if err != nil {
		return err
	}
	return c.Put(ctx, Outgoing{Subject: base + key, Data: data})
}

// PurgeRecord removes all versions of a record.
func (c *Conn) PurgeRecord(ctx context.Context, key string) error {
	base, err := c.recordSubject(ctx)
	if err != nil {
		return err
	}
	return c.Purge(ctx, StreamFleet, base+key)
}

// Records calls handle for the newest version of each record whose key the
// filter matches. With follow it goes on, and tells all versions that come,
// until ctx or the connection ends.
func (c *Conn) Records(ctx context.Context, filter string, follow bool, handle func(Stored) error) error {
	base, err := c.recordSubject(ctx)
	if err != nil {
		return err
	}
	q := Query{Stream: StreamFleet, Filters: []string{base + filter}, Last: true}
	return c.read(ctx, q, follow, func(m Stored) error {
		m.Subject = strings.TrimPrefix(m.Subject, base)
		return handle(m)
	})
}
