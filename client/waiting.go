package client

import (
	"context"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// CountWaiting sets Waiting of each of the nodes: how many commands the broker
// keeps until the node takes them. It asks once for each stream of commands, and
// not for each node.
func (c *Client) CountWaiting(ctx context.Context, nodes []Node) error {
	names := make([]muster.NodeName, len(nodes))
	for i, n := range nodes {
		names[i] = n.Name
	}
	return c.with(ctx, func(conn *bus.Conn) error {
		lengths, err := conn.QueueLengths(ctx, names)
		if err != nil {
			return err
		}
		for i := range nodes {
			nodes[i].Waiting = lengths[nodes[i].Name]
		}
		return nil
	})
}
