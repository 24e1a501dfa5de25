package app

import (
	"context"
	"log/slog"

	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
)

// ReshardOptions say how many command streams a fleet is to have.
type ReshardOptions struct {
	Dir       string // of the fleet
	BrokerURL string // empty for what the fleet says
	Shards    int
	Log       *slog.Logger
}

// layoutLock is held by whoever changes the layout.
const layoutLock = "layout"

// Reshard changes the number of command streams of a running broker. What it
// leaves undone when it is interrupted is done at the next start of the broker,
// or by the next call.
func Reshard(ctx context.Context, o ReshardOptions) error {
	fleet, err := config.OpenFleet(o.Dir)
	if err != nil {
		return err
	}
	unlock, err := fleet.Lock(layoutLock)
	if err != nil {
		return err
	}
	defer unlock()
	at := bus.Options{URLs: fleet.Fleet.URLs, Name: "reshard", CA: fleet.MemberCA(), Log: o.Log}
	if o.BrokerURL != "" {
		at.URLs = []string{o.BrokerURL}
	}
	conn, err := dialService(ctx, fleet, at)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Reshard(ctx, bus.LayoutOptions{Fleet: fleet.Fleet.ID}, o.Shards)
}
