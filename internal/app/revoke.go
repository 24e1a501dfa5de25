package app

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
)

// RevokeOptions say which callers to revoke.
type RevokeOptions struct {
	Dir       string   // of the fleet
	Who       []string // names, or public keys
	Reason    string   // for people; empty for none
	BrokerURL string   // empty for what the fleet says
	CredsFile string   // for a server whose accounts are not the fleet's; empty for credentials made with its keys
	Log       *slog.Logger
}

// A RevokeResult says what became of it.
type RevokeResult struct {
	Serial    uint64   `json:"serial"`                // of the list in which they are
	Revoked   []Caller `json:"revoked"`               // identities that are revoked now
	Unknown   []string `json:"unknown,omitempty"`     // of these there is no record: the nodes refuse them, the broker does not
	Broker    string   `json:"broker"`                // "ok", or why it does not know of it yet
	ByHand    bool     `json:"by_hand,omitempty"`     // the server's accounts are not the fleet's
	Nodes     int      `json:"nodes"`                 // in the fleet
	Current   int      `json:"nodes_that_have_it"`    // of them, within some seconds
	Uncounted string   `json:"nodes_error,omitempty"` // why nodes could not be counted; the broker has the list nevertheless
}

// RevokeCallers signs a list of revoked callers that has these, too, and waits
// until the running broker has it, and some seconds for nodes. That the broker
// cannot be reached is no error: it takes the list up when it runs.
func RevokeCallers(ctx context.Context, o RevokeOptions) (RevokeResult, error) {
	fleet, err := config.OpenFleet(o.Dir)
	if err != nil {
		return RevokeResult{}, err
	}
	result, list, err := signRevocation(ctx, fleet, o)
	if err != nil {
		return result, err
	}
	result.ByHand = o.CredsFile != ""
	result.Broker = "ok"
	if err := awaitRevoked(ctx, fleet, o, list, &result); err != nil {
		result.Broker = err.Error()
	}
	return result, ctx.Err()
}

// signRevocation writes the new list into the fleet's folder.
func signRevocation(ctx context.Context, fleet config.FleetFolder, o RevokeOptions) (result RevokeResult, list aaa.SignedRevocations, err error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	unlock, err := lockPatiently(ctx, fleet, callersLock)
	if err != nil {
		return result, list, err
	}
	defer unlock()
	issuer, err := fleet.Issuer()
	if err != nil {
		return result, list, err
	}
	callers, err := fleet.Callers()
	if err != nil {
		return result, list, err
	}
	old, _, err := fleet.RevokedCallers()
	if err != nil {
		return result, list, err
	}
	now := time.Now().UTC().Truncate(time.Second)
	result, revoked, err := addRevocations(callers, old.Revoked, o, now)
	if err != nil {
		return result, list, err
	}
	result.Serial = aaa.NextSerial(old.Serial, now)
	signed, err := issuer.SignRevocations(aaa.RevocationList{Fleet: fleet.Fleet.ID, Serial: result.Serial, IssuedAt: now, Revoked: revoked})
	if err != nil {
		return result, list, err
	}
	if list, err = aaa.ReadRevocations(signed, fleet.Fleet.ID, fleet.Fleet.Issuers...); err != nil {
		return result, list, err // the issuer's seed is not that of the fleet
	}
	return result, list, fleet.SetRevokedCallers(signed)
}

// addRevocations returns the entries of the new list: those of the old one that
// still matter, and what the options ask for.
func addRevocations(callers config.Callers, old []aaa.Revocation, o RevokeOptions, now time.Time) (result RevokeResult, all []aaa.Revocation, err error) {
	all = slices.DeleteFunc(slices.Clone(old), func(r aaa.Revocation) bool { return r.Over(now) })
	for _, who := range o.Who {
		r, matched, err := revocationOf(callers, who, now)
		if err != nil {
			return result, nil, err
		}
		r.Reason = o.Reason
		again := func(x aaa.Revocation) bool { return x.Name == r.Name && x.Key == r.Key }
		if i := slices.IndexFunc(all, again); i >= 0 {
			r.Reason = cmp.Or(r.Reason, all[i].Reason)
		}
		all = append(slices.DeleteFunc(all, again), r)
		for _, c := range matched {
			result.Revoked = append(result.Revoked, Caller{CallerRecord: c, Revoked: r.At, Reason: r.Reason})
		}
		if len(matched) == 0 {
			result.Unknown = append(result.Unknown, who)
		}
	}
	return result, all, nil
}

// revocationOf is the entry that revokes a name or a key, and the records that
// it is about.
func revocationOf(callers config.Callers, who string, now time.Time) (r aaa.Revocation, matched []config.CallerRecord, err error) {
	r = aaa.Revocation{Name: who, At: now}
	if aaa.IsUserKey(who) {
		r = aaa.Revocation{Key: who, At: now}
		if i := slices.IndexFunc(callers.Issued, func(c config.CallerRecord) bool { return c.Key == who || c.BrokerKey == who }); i >= 0 {
			r.Name, r.Key = callers.Issued[i].Name, callers.Issued[i].Key
		}
	}
	known := false
	for _, c := range callers.Issued {
		known = known || c.Name == r.Name
		if c.Name == r.Name && c.Issued.After(r.At) { // by a clock that was ahead
			r.At = c.Issued
		}
	}
	for _, c := range callers.Issued {
		if r.Matches(c.Name, c.Key, c.Issued) && now.Before(c.Expires) {
			matched = append(matched, c)
		}
	}
	switch {
	case len(matched) == 0 && !callers.Partial && known:
		return r, nil, muster.Errorf(muster.NotFound, "all that was issued to %s has expired", who)
	case len(matched) == 0 && !callers.Partial:
		return r, nil, muster.Errorf(muster.NotFound, "this fleet has no caller %s", who).WithHint("'muster caller ls' lists them")
	case callers.Partial && r.Key == "":
		return r, matched, nil // there may be others, and nobody knows until when
	}
	for _, c := range matched {
		if c.Expires.After(r.Until) {
			r.Until = c.Expires
		}
	}
	return r, matched, nil
}

const (
	publishWait = 15 * time.Second // for the broker's service, which looks every second
	nodesWait   = 5 * time.Second  // for nodes that are there
	recordsWait = 30 * time.Second // with the reading of who is on record
)

// awaitRevoked waits until the list is published, and counts nodes that have it.
func awaitRevoked(ctx context.Context, fleet config.FleetFolder, o RevokeOptions, list aaa.SignedRevocations, result *RevokeResult) error {
	at := bus.Options{URLs: fleet.Fleet.URLs, Name: "revoke", CA: fleet.MemberCA(), Prefix: fleet.Fleet.Prefix, Log: o.Log}
	if o.BrokerURL != "" {
		at.URLs = []string{o.BrokerURL}
	}
	reach, cancel := context.WithTimeout(ctx, publishWait+nodesWait)
	defer cancel()
	conn, err := dialAs(reach, fleet, o.CredsFile, at)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Load(reach); err != nil {
		return err
	}
	mark, err := awaitPublished(reach, conn, list)
	if err != nil {
		return err
	}
	if err := countNodes(ctx, conn, mark, result); err != nil && ctx.Err() == nil {
		result.Uncounted = err.Error()
	}
	return nil
}

// countNodes asks those on record which lists they have.
func countNodes(ctx context.Context, conn *bus.Conn, mark string, result *RevokeResult) error {
	ctx, cancel := context.WithTimeout(ctx, recordsWait)
	defer cancel()
	names := map[muster.NodeName]bool{}
	err := conn.Records(ctx, "node.>", false, func(m bus.Stored) error {
		names[muster.NodeName(strings.TrimPrefix(m.Subject, "node."))] = false
		return nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return muster.Errorf(muster.Unavailable, "the broker did not say within %v who is on record", recordsWait)
	}
	if err != nil {
		return err
	}
	result.Nodes = len(names)
	result.Current, err = countCurrent(ctx, conn, mark, names)
	return err
}

// awaitPublished waits until the broker's service has published the list, and
// returns the mark of all lists.
func awaitPublished(ctx context.Context, conn *bus.Conn, list aaa.SignedRevocations) (mark string, err error) {
	ctx, cancel := context.WithTimeout(ctx, publishWait)
	defer cancel()
	for {
		try, cancel := context.WithTimeout(ctx, time.Second)
		lists, err := conn.Revoked(try)
		cancel()
		if slices.ContainsFunc(lists, func(l json.RawMessage) bool { return slices.Equal(l, list.Encoded()) }) {
			return aaa.RevocationMark(lists), nil
		}
		if !pause(ctx, 100*time.Millisecond) {
			if err != nil {
				return "", err
			}
			return "", muster.Errorf(muster.Unavailable, "it answers, but nobody has published the list: does 'muster broker' run with this folder?")
		}
	}
}

// countCurrent asks nodes which lists they have.
func countCurrent(ctx context.Context, conn *bus.Conn, mark string, names map[muster.NodeName]bool) (n int, err error) {
	if len(names) == 0 {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, nodesWait)
	defer cancel()
	s := conn.Subjects()
	err = conn.AskAll(ctx, s.Ping(), []byte(bus.RevokedPing+mark), s.Alive(bus.AnyMailbox, ">"), func(subject string, data []byte) bool {
		b, ok := s.BeatOf(subject, data)
		if !ok || b.Revoked != mark {
			return true
		}
		if counted, known := names[b.Node]; known && !counted {
			names[b.Node] = true
			n++
		}
		return n < len(names)
	})
	return n, err
}

// dialAs connects with the credentials in the file, or else as the service does.
func dialAs(ctx context.Context, fleet config.FleetFolder, credsFile string, at bus.Options) (*bus.Conn, error) {
	if credsFile == "" {
		return dialService(ctx, fleet, at)
	}
	creds, err := config.ReadCreds(credsFile)
	if err != nil {
		return nil, err
	}
	return dialWith(ctx, creds, at)
}
