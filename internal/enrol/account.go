package enrol

import (
	"maps"
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
// changed, or a caller was revoked: answers that are under way to nodes at that
// moment are lost.
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
	callers, err := revokedCallers(fleet, now)
	if err != nil {
		return main, nodes, err
	}
	maps.Copy(callers, revoked)
	spec.Revocations = callers
	if main.JWT, err = fleet.Keys.AccountJWT(spec, now); err != nil {
		return main, nodes, err
	}
	spec.Name += " nodes"
	spec.Revocations = revoked
	nodes.JWT, err = fleet.Keys.NodesAccountJWT(spec, now)
	return main, nodes, err
}

// revokedCallers are the users of the broker whose identities the fleet's issuer
// has revoked, but for those whose credentials have expired.
func revokedCallers(fleet config.FleetFolder, now time.Time) (map[string]time.Time, error) {
	all := map[string]time.Time{}
	list, _, err := fleet.RevokedCallers()
	if err != nil {
		return nil, err
	}
	callers, err := fleet.Callers()
	if err != nil {
		return nil, err
	}
	for _, c := range callers.Issued {
		for _, r := range list.Revoked {
			if now.Before(c.Expires) && r.Matches(c.Name, c.Key, c.Issued) {
				// The credentials were made with the identity, perhaps by a clock that
				// was ahead of the one that revoked it.
				all[c.BrokerKey] = latest(all[c.BrokerKey], latest(r.At, c.Issued))
			}
		}
	}
	return all, nil
}

func latest(x, y time.Time) time.Time {
	if x.After(y) {
		return x
	}
	return y
}
