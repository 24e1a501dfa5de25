package app

import (
	"context"

	"github.com/musterfleet/muster/internal/broker"
	"github.com/musterfleet/muster/internal/config"
)

// StartBroker runs the broker of a fleet without the service that RunBroker
// adds, for connections within the process too.
func StartBroker(ctx context.Context, dir, listen string) (*broker.Broker, error) {
	fleet, err := config.OpenFleet(dir)
	if err != nil {
		return nil, err
	}
	o, err := brokerOptions(fleet, BrokerOptions{Listen: listen})
	if err != nil {
		return nil, err
	}
	return broker.Start(ctx, o)
}
