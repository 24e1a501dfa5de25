package client

import (
	"context"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// DeadLetterCount returns the number of dead letters without reading them.
func (c *Client) DeadLetterCount(ctx context.Context) (n uint64, err error) {
	err = c.with(ctx, func(conn *bus.Conn) error {
		states, err := conn.StreamStates(ctx)
		if err != nil {
			return err
		}
		for _, s := range states {
			if s.Name == bus.StreamDead {
				n = s.Messages
				return nil
			}
		}
		return muster.Errorf(muster.NotFound, "the broker has no stream %s", bus.StreamDead)
	})
	return n, err
}
