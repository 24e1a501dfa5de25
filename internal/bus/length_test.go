package bus_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// queueLength is that of one node.
func queueLength(t *testing.T, c *bus.Conn, n muster.NodeName) (int, error) {
	t.Helper()
	all, err := c.QueueLengths(t.Context(), []muster.NodeName{n})
	return all[n], err
}

// The queues of a whole fleet take a few requests, whatever its size: two for
// each stream that has one. Queues of earlier sets of streams count, too.
func TestQueueLengthsOfManyNodes(t *testing.T) {
	with(t, func(t *testing.T, l *link, c *bus.Conn) {
		put := func(i int, n muster.NodeName) { must(t, c.Put(t.Context(), outgoing(c, n, i))) }
		put(0, "fleet.n7")
		put(1, "fleet.n7")
		put(0, "stranger")
		const shards, many = 4, 500
		must(t, c.Reshard(t.Context(), layout, shards))
		var nodes []muster.NodeName
		for i := range many {
			nodes = append(nodes, muster.NodeName(fmt.Sprintf("fleet.n%d", i)))
			if i%2 == 1 {
				put(2, nodes[i])
			}
		}
		m := outgoing(c, "fleet.n7", 3)
		m.Subject = c.Subjects().Command("fleet.n7", muster.KindCommand, "other.lane")
		must(t, c.Put(t.Context(), m))

		requests := countRequests(t, l, "$JS.API.STREAM.INFO.>")
		got, err := c.QueueLengths(t.Context(), nodes)
		must(t, err)
		if n := requests(); n > 2*(shards+1) {
			t.Errorf("%d requests for the queues of %d nodes", n, many)
		}
		if len(got) != many/2 || got["fleet.n7"] != 4 || got["fleet.n1"] != 1 || got["fleet.n70"] != 0 {
			t.Errorf("%d nodes have queues; n7 %d, n1 %d, n70 %d", len(got), got["fleet.n7"], got["fleet.n1"], got["fleet.n70"])
		}
		if got, err := c.QueueLengths(t.Context(), nil); err != nil || len(got) != 0 {
			t.Errorf("of no node: %v, %v", got, err)
		}
	})
}

// countRequests counts what is published on the subject from now on.
func countRequests(t *testing.T, l *link, subject string) (count func() int64) {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(l))
	must(t, err)
	t.Cleanup(nc.Close)
	var n atomic.Int64
	_, err = nc.Subscribe(subject, func(*nats.Msg) { n.Add(1) })
	must(t, err)
	must(t, nc.Flush())
	return func() int64 {
		must(t, nc.Flush()) // what came before its answer has been delivered
		return n.Load()
	}
}
