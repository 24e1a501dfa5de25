package app

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/enrol"
)

// callersLock is held by whoever makes or revokes callers.
const callersLock = "callers"

// lockWait bounds the wait for it.
const lockWait = 10 * time.Second

// OperatorOptions describe a further caller.
type OperatorOptions struct {
	Dir    string // of the fleet
	Name   string
	Groups []string
	Rights []aaa.Right   // nil is every method on every node, as far as nodes' policies allow
	TTL    time.Duration // 0 is OperatorTTL
	Out    string        // folder to write the context to
}

// AddOperator makes a caller: credentials for the broker and, with another
// key, an identity to sign commands with. It writes them as a context into a
// folder to hand over. What is there already is replaced.
func AddOperator(o OperatorOptions) error {
	fleet, err := config.OpenFleet(o.Dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), lockWait)
	defer cancel()
	unlock, err := lockPatiently(ctx, fleet, callersLock)
	if err != nil {
		return err
	}
	defer unlock()
	if len(o.Rights) == 0 {
		o.Rights = []aaa.Right{{Methods: []string{"*"}, Nodes: []string{"*"}}}
	}
	now, err := issueTime(fleet, o.Name, time.Now())
	if err != nil {
		return err
	}
	expires := now.Add(cmp.Or(o.TTL, OperatorTTL))
	identity, err := newIdentity(fleet, o, expires, now)
	if err != nil {
		return err
	}
	creds, err := enrol.NewCreds(fleet.Keys, o.Name, permissionsFor(fleet.Fleet.Prefix, o.Rights), expires, now)
	if err != nil {
		return err
	}
	if err := recordCaller(fleet, o, identity, creds, now, expires); err != nil {
		return err
	}
	return config.WriteContext(o.Out, config.Context{
		Fleet: fleet.Fleet.ID, Prefix: fleet.Fleet.Prefix, URLs: fleet.Fleet.URLs,
		Credentials: creds, Identity: aaa.NewSecret(identity.Marshal()), CA: fleet.MemberCA(),
	})
}

// unbounded reports rights to use every method on every node.
func unbounded(rights []aaa.Right) bool {
	all := func(globs []string) bool { return slices.Contains(globs, "*") }
	return slices.ContainsFunc(rights, func(r aaa.Right) bool { return all(r.Methods) && all(r.Nodes) })
}

// permissionsFor are those of an operator for a caller that may use every
// method on every node, and those to send and to read for any other.
func permissionsFor(prefix string, rights []aaa.Right) bus.Permissions {
	if unbounded(rights) {
		return bus.OperatorPermissions(prefix)
	}
	return bus.CallerPermissions(prefix, bus.NewCallerInbox(), rights)
}

// issueTime is now, or later if what is issued to the name now was revoked in
// this very second.
func issueTime(fleet config.FleetFolder, name string, now time.Time) (time.Time, error) {
	list, _, err := fleet.RevokedCallers()
	if err != nil {
		return now, err
	}
	for _, r := range list.Revoked {
		if r.Matches(name, "", now.Truncate(time.Second)) {
			now = r.At.Add(time.Second)
		}
	}
	return now, nil
}

func newIdentity(fleet config.FleetFolder, o OperatorOptions, expires, now time.Time) (aaa.Identity, error) {
	issuer, err := fleet.Issuer()
	if err != nil {
		return aaa.Identity{}, err
	}
	seed, public, err := aaa.NewUserKey()
	if err != nil {
		return aaa.Identity{}, err
	}
	token, err := issuer.Issue(aaa.CallerClaims{
		PublicKey: public, Name: o.Name, Fleet: fleet.Fleet.ID, Groups: o.Groups, Rights: o.Rights, Expires: expires,
	}, now)
	if err != nil {
		return aaa.Identity{}, err
	}
	return aaa.NewIdentity(token, seed)
}

// callersKept is how long a caller is remembered after it has expired.
const callersKept = 90 * 24 * time.Hour

// recordCaller notes what was made, before it is handed over: what is not noted
// cannot be revoked at the broker.
func recordCaller(fleet config.FleetFolder, o OperatorOptions, identity aaa.Identity, creds aaa.Secret, now, expires time.Time) error {
	_, seed, err := config.ParseCreds(creds)
	if err != nil {
		return err
	}
	brokerKey, err := aaa.PublicUserKey(seed)
	if err != nil {
		return err
	}
	claims, err := identity.Claims()
	if err != nil {
		return err
	}
	callers, err := fleet.Callers()
	if err != nil {
		return err
	}
	callers.Issued = slices.DeleteFunc(callers.Issued, func(c config.CallerRecord) bool { return now.After(c.Expires.Add(callersKept)) })
	callers.Issued = append(callers.Issued, config.CallerRecord{
		Name: o.Name, Key: claims.PublicKey, BrokerKey: brokerKey, Groups: o.Groups, Bounded: !unbounded(o.Rights),
		Issued: now.UTC().Truncate(time.Second), Expires: expires.UTC().Truncate(time.Second),
	})
	return fleet.SetCallers(callers)
}

// A Caller is one identity that the fleet's issuer has signed.
type Caller struct {
	config.CallerRecord
	Revoked time.Time `json:"revoked,omitzero"`
	Reason  string    `json:"reason,omitempty"` // of the revocation
}

// Callers lists the identities of a fleet by name and time. It is partial when
// the fleet is older than the record of them.
func Callers(dir string) (all []Caller, partial bool, err error) {
	fleet, err := config.OpenFleet(dir)
	if err != nil {
		return nil, false, err
	}
	callers, err := fleet.Callers()
	if err != nil {
		return nil, false, err
	}
	list, _, err := fleet.RevokedCallers()
	if err != nil {
		return nil, false, err
	}
	for _, record := range callers.Issued {
		c := Caller{CallerRecord: record}
		for _, r := range list.Revoked {
			if r.Matches(record.Name, record.Key, record.Issued) && (c.Revoked.IsZero() || r.At.Before(c.Revoked)) {
				c.Revoked, c.Reason = r.At, r.Reason
			}
		}
		all = append(all, c)
	}
	slices.SortStableFunc(all, func(x, y Caller) int { return cmp.Or(cmp.Compare(x.Name, y.Name), x.Issued.Compare(y.Issued)) })
	return all, callers.Partial, nil
}
