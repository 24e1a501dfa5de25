package bus

import (
	"context"
	"time"
)

// Clock compares the broker's clock with ours: how far it is ahead, negative
// when it is behind, and by how much that can be wrong at most, which is half of
// what the answer took. Of a cluster it is the clock of one server.
func (c *Conn) Clock(ctx context.Context) (ahead, within time.Duration, err error) {
	asked := time.Now()
	stream, err := c.js.Stream(ctx, StreamSettings)
	if err != nil {
		return 0, 0, natsError(err, "ask for the time")
	}
	// The wall clock counts, as it does for deadlines.
	within = time.Since(asked) / 2
	return stream.CachedInfo().TimeStamp.Round(0).Sub(asked.Round(0).Add(within)), within, nil
}
