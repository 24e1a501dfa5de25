package broker

import "time"

// Syncs reports how the server syncs what it stores: with each message, and now and
// then.
func (b *Broker) Syncs() (always bool, every time.Duration) {
	c := b.server.JetStreamConfig()
	return c.SyncAlways, c.SyncInterval
}
