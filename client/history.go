package client

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// A ledger folds sent records and reports into the state of commands. The
// order in which it is told does not matter.
type ledger struct {
	subjects bus.Subjects
	commands map[muster.Key]*Status
	seq      map[muster.Key]int       // of the report that counts
	gone     map[muster.Key]time.Time // when the node was removed
}

func newLedger(s bus.Subjects) *ledger {
	return &ledger{s, make(map[muster.Key]*Status), make(map[muster.Key]int), make(map[muster.Key]time.Time)}
}

// add takes one message of the history and returns the commands it changed.
func (l *ledger) add(m bus.Stored) []*Status {
	if key, ok := l.subjects.ReportKey(m.Subject); ok {
		var r muster.Report
		if json.Unmarshal(m.Data, &r) != nil || r.Key() != key {
			return nil // a node may write what it likes under its own name
		}
		return l.report(r)
	}
	var s sent
	if json.Unmarshal(m.Data, &s) != nil || m.Subject != l.subjects.Sent(s.ID) {
		return nil
	}
	return l.sent(s)
}

func (l *ledger) status(k muster.Key) *Status {
	s := l.commands[k]
	if s == nil {
		s = &Status{Key: k, ID: k.ID, Node: k.Node, State: muster.Queued}
		l.commands[k] = s
	}
	return s
}

// sent takes what a sender wrote. What a node said of the command counts more,
// and of two records that name one node for one id the first.
func (l *ledger) sent(r sent) (changed []*Status) {
	describe := func(n muster.NodeName) *Status {
		s := l.status(muster.Key{ID: r.ID, Node: n})
		if s.Method == "" {
			s.Method, s.Sent, s.Deadline = r.Method, r.IssuedAt, r.Deadline
		}
		changed = append(changed, s)
		return s
	}
	for _, n := range r.Nodes {
		s := describe(n)
		if s.Claimed != "" {
			continue
		}
		s.Claimed, s.Input = r.Caller, r.Input
		s.Timeout, s.Retries, s.NoSeq, s.Idempotent = r.timeout(), r.Retries, r.NoSeq, r.Idempotent
		if len(s.History) == 0 || s.History[0].State != muster.Queued {
			s.History = slices.Insert(s.History, 0, muster.Transition{State: muster.Queued, Time: r.IssuedAt})
		}
	}
	for _, f := range r.Refused {
		s := describe(f.Node)
		if l.seq[s.Key] > 0 || f.Error == nil || s.State == muster.Refused {
			continue
		}
		s.State, s.Reason = muster.Refused, f.Error.Message
		s.History = append(s.History, muster.Transition{State: muster.Refused, Time: r.IssuedAt, Reason: f.Error.Message})
	}
	for _, n := range r.Gone {
		describe(n)
		l.gone[muster.Key{ID: r.ID, Node: n}] = r.GoneAt
	}
	return changed
}

// timeout is that of the request, from a record that anybody may have written.
func (r sent) timeout() time.Duration {
	switch {
	case r.TimeoutMS < 0:
		return -1
	case r.TimeoutMS > muster.MaxLifetime.Milliseconds():
		return 0
	}
	return time.Duration(r.TimeoutMS) * time.Millisecond
}

func (l *ledger) report(r muster.Report) []*Status {
	s := l.status(r.Key())
	if r.Seq <= l.seq[s.Key] || len(r.History) == 0 || r.Seq != len(r.History) {
		return nil
	}
	l.seq[s.Key] = r.Seq
	queued := muster.Transition{State: muster.Queued, Time: r.IssuedAt}
	s.Method, s.Caller, s.Sent, s.Deadline = r.Method, r.Caller, r.IssuedAt, r.Deadline // as the node verified them
	s.History = append([]muster.Transition{queued}, r.History...)
	s.State, s.Reason, s.Result = r.State(), r.History[len(r.History)-1].Reason, r.Result
	return []*Status{s}
}

// inferAfter is how long after its deadline a command without any word from
// its node is taken for expired.
const inferAfter = time.Minute

// infer says what follows when the node says nothing more: from the time, and
// from its removal. It may still say otherwise: it may have taken the command
// and lost its connection.
func (l *ledger) infer(s Status, now time.Time) Status {
	gone, removed := l.gone[s.Key]
	inferred := func(state muster.State, at time.Time, reason string) Status {
		s.State, s.Inferred, s.Reason = state, true, reason
		s.History = append(slices.Clone(s.History), muster.Transition{State: state, Time: at, Reason: reason})
		return s
	}
	switch {
	case s.State.Final():
	case removed && s.State == muster.Queued:
		return inferred(muster.Cancelled, gone, "the node was removed, and the command with its queue")
	case removed:
		return inferred(muster.Unknown, gone, "the node was removed before it said how the command ended")
	case s.State == muster.Queued && !s.Deadline.IsZero() && now.After(s.Deadline.Add(inferAfter)):
		return inferred(muster.Expired, s.Deadline, "the node said nothing of the command before its deadline")
	}
	return s
}

// History returns the commands of the chosen sends, oldest first.
func (c *Client) History(ctx context.Context, q HistoryQuery) ([]Status, error) {
	var all []Status
	err := c.with(ctx, func(conn *bus.Conn) (err error) {
		all, err = history(ctx, conn, q)
		return err
	})
	return all, err
}

func history(ctx context.Context, conn *bus.Conn, q HistoryQuery) ([]Status, error) {
	l := newLedger(conn.Subjects())
	query := bus.Query{Stream: bus.StreamHistory, Since: q.Since, Filters: historyFilters(conn.Subjects(), q)}
	err := conn.Read(ctx, query, func(m bus.Stored) error { l.add(m); return nil })
	return l.list(q), err
}

func historyFilters(s bus.Subjects, q HistoryQuery) []string {
	id, node := cmp.Or(string(q.ID), "*"), cmp.Or(string(q.Node), ">")
	return []string{s.Sent(muster.CommandID(id)), s.Report(muster.Key{ID: muster.CommandID(id), Node: muster.NodeName(node)})}
}

func (l *ledger) list(q HistoryQuery) []Status {
	now := time.Now()
	all := make([]Status, 0, len(l.commands))
	for _, s := range l.commands {
		if q.Node == "" || s.Node == q.Node {
			all = append(all, l.infer(*s, now))
		}
	}
	slices.SortFunc(all, func(a, b Status) int {
		return cmp.Or(a.Sent.Compare(b.Sent), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Node, b.Node))
	})
	return all
}

// Command returns the state of one command, or of all commands of a send when
// the key names no node.
func (c *Client) Command(ctx context.Context, k muster.Key) ([]Status, error) {
	all, err := c.History(ctx, HistoryQuery{ID: k.ID, Node: k.Node})
	if err == nil && len(all) == 0 {
		err = unknownCommand(k)
	}
	return all, err
}

func unknownCommand(k muster.Key) error {
	return muster.Errorf(muster.NotFound, "no command %s is known", strings.TrimSuffix(k.String(), "@")).
		WithHint("'muster command ls' lists commands, 'muster outbox ls' those that are not sent yet")
}

// exists returns an error if there is no send of an id.
func exists(ctx context.Context, conn *bus.Conn, id muster.CommandID) error {
	all, err := history(ctx, conn, HistoryQuery{ID: id})
	if err == nil && len(all) == 0 {
		err = unknownCommand(muster.Key{ID: id})
	}
	return err
}
