package broker

// SyncAlways reports how the server syncs what it stores.
func (b *Broker) SyncAlways() bool { return b.server.JetStreamConfig().SyncAlways }
