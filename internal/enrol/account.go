package enrol

import (
	"time"

	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
)

// An Account is one of a fleet's accounts at the broker.
type Account struct {
	Key string // public, A...
	JWT string
}

// Accounts makes the JWTs of the main account and of that of the nodes, with
// all revocations.
//
// Give the broker a new one of the main account only when what is shared has
// changed: answers that are under way to nodes at that moment are lost.
func Accounts(fleet config.FleetFolder, now time.Time) (main, nodes Account, err error) {
	public, err := fleet.Keys.PublicKeys()
	if err != nil {
		return main, nodes, err
	}
	revoked, err := fleet.Revocations()
	if err != nil {
		return main, nodes, err
	}
	spec := aaa.AccountSpec{
		Name: fleet.Fleet.Name, Limits: aaa.NoLimits(), Shares: bus.Shares(fleet.Fleet.Prefix), Revocations: revoked,
	}
	main.Key, nodes.Key = public.Account, public.Nodes
	if main.JWT, err = fleet.Keys.AccountJWT(spec, now); err != nil {
		return main, nodes, err
	}
	spec.Name += " nodes"
	nodes.JWT, err = fleet.Keys.NodesAccountJWT(spec, now)
	return main, nodes, err
}
