package app

import (
	"context"

	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
)

// lookAtDisks sees whether the broker's servers sync what they store, warns of
// those that do not, and leaves what it saw for callers, who cannot see it.
func (s *session) lookAtDisks(ctx context.Context, conn *bus.Conn) {
	log := s.log.With("component", "app")
	seen, err := askDurability(ctx, s.fleet, s.at)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		log.Warn("whether the broker syncs what it stores cannot be seen; it has to have 'sync_interval: always', or a power cut may cost what was accepted", "err", err)
		return
	}
	for _, server := range seen.Servers {
		if !server.Always {
			log.Warn("a server of the broker does not sync what it stores: a power cut may cost what was accepted; give it 'sync_interval: always', as 'muster broker config' does",
				"server", server.Server)
		}
	}
	if seen.Silent > 0 {
		log.Warn("servers of the broker did not say whether they sync what they store", "servers", seen.Silent)
	}
	if err := conn.PutDurability(ctx, seen); err != nil {
		log.Warn("how the broker stores was not kept for 'muster doctor'", "err", err)
	}
}

// askDurability asks as a user of the broker's system account.
func askDurability(ctx context.Context, fleet config.FleetFolder, at bus.Options) (bus.Durability, error) {
	creds, err := systemCreds(fleet, bus.SyncRequest)
	if err != nil {
		return bus.Durability{}, err
	}
	conn, err := dialWith(ctx, creds, at)
	if err != nil {
		return bus.Durability{}, err
	}
	defer conn.Close()
	return conn.AskDurability(ctx)
}
