package client

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/delivery"
)

// errTaken is in the chain of an error when a chosen id is that of another send.
var errTaken = errors.New("the id is taken")

// content is a hash of what a send asks of each node.
func (s sent) content() uint64 {
	return delivery.Content(muster.Command{
		Kind: muster.KindCommand, Method: s.Method, Input: s.Input,
		TimeoutMS: s.TimeoutMS, Retries: s.Retries, NoSeq: s.NoSeq, Idempotent: s.Idempotent,
	}, s.Caller)
}

// messageID is that of a command for the broker's deduplication. It has the
// content: the broker must not take another command under a known id for the
// same, and say that it stored it. The node decides about such a one.
func (s sent) messageID(node muster.NodeName) string {
	return muster.Key{ID: s.ID, Node: node}.String() + "/" + strconv.FormatUint(s.content(), 36)
}

// claim makes a chosen id that of this send, by its sent record, unless another
// send has it: then nothing of this one may be stored, or the history would be
// of two commands. A send that asks for the same goes on: it is a repetition,
// or adds nodes.
func claim(ctx context.Context, conn *bus.Conn, b batch) error {
	record, err := outgoing(conn.Subjects(), b, 0)
	if err != nil {
		return err
	}
	for {
		last, same := uint64(0), false
		err := conn.Read(ctx, bus.Query{Stream: bus.StreamHistory, Filters: []string{record.Subject}}, func(m bus.Stored) error {
			last = m.Seq
			var earlier sent
			if json.Unmarshal(m.Data, &earlier) != nil || earlier.ID != b.Sent.ID || len(earlier.Nodes) == 0 {
				return nil // what became of a send, and not what was sent
			}
			same = true
			return b.Sent.mayFollow(earlier)
		})
		if err != nil || same {
			return err
		}
		if err := conn.PutAfter(ctx, record, last); muster.KindOf(err) != muster.Conflict {
			return err
		}
	}
}

// mayFollow returns why a send must not have the id of an earlier one, or nil.
func (s sent) mayFollow(earlier sent) error {
	if s.content() == earlier.content() {
		return nil
	}
	return muster.Errorf(muster.Conflict, "%w: %s was sent at %s by %s with the method %s, and asks for something else",
		errTaken, s.ID, earlier.IssuedAt.Local().Format("2006-01-02 15:04:05"), earlier.Caller, earlier.Method).
		WithHint("choose another --id, or none; 'muster command show %s' shows what has this one", s.ID)
}

// waiting returns the send of the outbox that a send repeats, if there is one, or
// why the send must not be added: one that waits there has its id, and asks for
// something else. A repetition adds nothing, unless it has further nodes, the
// deadline has passed, or the first sender is still at work: it takes back what
// fails for good.
func (o *outbox) waiting(b batch, names []string) (*entry, error) {
	if !b.Chosen {
		return nil, nil
	}
	var found *entry
	for _, name := range names {
		if !strings.HasSuffix(name, "-"+string(b.Sent.ID)+outboxSuffix) {
			continue
		}
		earlier, err := o.read(name)
		if err != nil || earlier.Sent.ID != b.Sent.ID {
			continue // whoever publishes says what cannot be read
		}
		if err := b.Sent.mayFollow(earlier.Sent); err != nil {
			return nil, muster.Errorf(muster.Conflict, "%w", err).WithHint("choose another --id, or none; 'muster outbox ls' shows what waits with this one")
		}
		if found == nil && b.Sent.repeats(earlier.Sent) && o.left(name) {
			found = &entry{name: name, deadline: earlier.Sent.Deadline, waited: true, release: func() {}}
		}
	}
	return found, nil
}

// repeats says whether an earlier send with the same content, which is not over,
// is for all nodes of this one.
func (s sent) repeats(earlier sent) bool {
	return s.IssuedAt.Before(earlier.Deadline) && !slices.ContainsFunc(s.Nodes, func(n muster.NodeName) bool { return !slices.Contains(earlier.Nodes, n) })
}
