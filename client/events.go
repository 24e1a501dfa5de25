package client

import (
	"cmp"
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// Events calls handle for what happened on nodes, in the order in which the
// broker stored it. An event can come twice when a node was interrupted.
func (c *Client) Events(ctx context.Context, query EventQuery, handle func(Event) error) error {
	if strings.ContainsAny(query.Type, ".*> ") {
		return muster.Errorf(muster.Invalid, "%q is no type of events", query.Type)
	}
	if query.Node != "" {
		if err := query.Node.Validate(); err != nil {
			return err
		}
	}
	r := &eventReader{query: query, handle: handle}
	if !query.Follow || query.Link == nil {
		return c.with(ctx, func(conn *bus.Conn) error {
			read := conn.Read
			if query.Follow {
				read = conn.Follow
			}
			return read(ctx, r.stream(conn), func(m bus.Stored) error { return r.take(conn.Subjects(), m) })
		})
	}
	if err := c.with(ctx, func(*bus.Conn) error { return nil }); err != nil {
		return err // a broker that was never there is no loss
	}
	r.link.tell = query.Link
	return r.link.again(ctx, c, func(conn *bus.Conn) error {
		if err := r.link.hear(); err != nil {
			return err
		}
		stream := reading{r.stream(conn), func(m bus.Stored) error { return r.take(conn.Subjects(), m) }}
		return r.link.follow(ctx, conn, []reading{stream}, func(time.Time) error { return nil })
	})
}

// An eventReader hands on each event that is stored once, also when it is read
// again after a loss.
type eventReader struct {
	query  EventQuery
	handle func(Event) error
	link   linkWatch
	last   bus.Stored // without its data
}

// stream is what remains to be read.
func (r *eventReader) stream(conn *bus.Conn) bus.Query {
	q := bus.Query{Stream: bus.StreamHistory, Since: r.query.Since, Filters: []string{conn.Subjects().Event(cmp.Or(r.query.Type, "*"), cmp.Or(r.query.Node, ">"))}}
	if !r.last.Time.IsZero() {
		q.Since = r.last.Time // and not its number, which a broker that lost its end gives again
	}
	return q
}

func (r *eventReader) take(s bus.Subjects, m bus.Stored) error {
	if m.Seq <= r.last.Seq && !m.Time.After(r.last.Time) {
		return nil // handed on before
	}
	r.last = bus.Stored{Seq: m.Seq, Time: m.Time}
	kind, node, ok := s.EventOf(m.Subject)
	var e Event
	if !ok || json.Unmarshal(m.Data, &e) != nil || e.Node != node || e.Type != kind || e.Time.IsZero() {
		return nil // the broker checked the subject; what stands there is not what an agent writes
	}
	return r.handle(e)
}
