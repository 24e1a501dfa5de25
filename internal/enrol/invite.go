package enrol

import (
	"cmp"
	"context"
	"crypto/rand"
	"maps"
	"slices"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
)

// DefaultTTL is how long an invitation is good unless told otherwise.
const DefaultTTL = time.Hour

// An Invitation says who is invited.
type Invitation struct {
	Node   muster.NodeName
	TTL    time.Duration     // 0 is DefaultTTL
	Labels map[string]string // added to those that the node has
	Policy string            // YAML for the node to begin with; empty denies everything
	URLs   []string          // of the broker for this node; nil for those of the fleet
}

// Invite makes a token with which one node can join once, and stores what the
// service needs to recognise it. It takes the fleet's folder, since the token
// holds credentials to ask for admission, and a connection of an operator.
func Invite(ctx context.Context, conn *bus.Conn, fleet config.FleetFolder, v Invitation, now time.Time) (aaa.Token, error) {
	if err := v.Node.Validate(); err != nil {
		return aaa.Token{}, err
	}
	if v.Policy != "" {
		if _, err := aaa.ParsePolicy("policy", []byte(v.Policy)); err != nil {
			return aaa.Token{}, err
		}
	}
	if v.TTL <= 0 {
		v.TTL = DefaultTTL
	}
	if len(v.URLs) == 0 {
		v.URLs = fleet.Fleet.URLs
	}
	id, secret, expires := rand.Text(), aaa.RandomSecret(), now.Add(v.TTL).UTC().Truncate(time.Second)
	creds, err := enrolCreds(fleet, id, expires, now)
	if err != nil {
		return aaa.Token{}, err
	}
	revoked, err := revokedForToken(fleet)
	if err != nil {
		return aaa.Token{}, err
	}
	hash := aaa.HashSecret(secret)
	if err := put(ctx, conn, "invite."+id, invitation{Node: v.Node, Secret: hash[:], Expires: expires}, 0); err != nil {
		return aaa.Token{}, err
	}
	if err := describe(ctx, conn, v, now); err != nil {
		return aaa.Token{}, err
	}
	return aaa.Token{
		ID: id, URLs: v.URLs, CAPEM: string(fleet.MemberCA()), Fleet: fleet.Fleet.ID, Node: v.Node,
		Secret: secret, Expires: expires, Creds: creds, Issuers: fleet.Fleet.Issuers, Policy: v.Policy, Revoked: revoked,
	}, nil
}

// maxTokenRevoked is the longest list of revoked callers in a token, in bytes.
// One that is longer the node has from the broker alone.
const maxTokenRevoked = 16 << 10

// revokedForToken is the list with which a node begins, so that it knows of it
// even if the broker keeps it back.
func revokedForToken(fleet config.FleetFolder) ([]byte, error) {
	list, any, err := fleet.RevokedCallers()
	if err != nil || !any || len(list.Encoded()) > maxTokenRevoked || !slices.Contains(fleet.Fleet.Issuers, list.Issuer) {
		return nil, err
	}
	return list.Encoded(), nil
}

func enrolCreds(fleet config.FleetFolder, id string, expires, now time.Time) (aaa.Secret, error) {
	return newCreds(fleet.Keys.NodeUserJWT, "enrol "+id, bus.EnrolPermissions(fleet.Fleet.Prefix, id), expires, now)
}

// NewCreds makes a key and signs credentials of the broker for it, in the main
// account.
func NewCreds(keys aaa.FleetKeys, name string, p bus.Permissions, expires, now time.Time) (aaa.Secret, error) {
	return newCreds(keys.UserJWT, name, p, expires, now)
}

func newCreds(sign func(aaa.UserSpec, time.Time) (string, error), name string, p bus.Permissions, expires, now time.Time) (aaa.Secret, error) {
	seed, public, err := aaa.NewUserKey()
	if err != nil {
		return aaa.Secret{}, err
	}
	token, err := sign(UserSpec(name, public, p, expires), now)
	if err != nil {
		return aaa.Secret{}, err
	}
	return aaa.Creds(token, seed)
}

// UserSpec describes a user of the broker with the permissions.
func UserSpec(name, public string, p bus.Permissions, expires time.Time) aaa.UserSpec {
	return aaa.UserSpec{
		Name: name, PublicKey: public, PubAllow: p.Publish, SubAllow: p.Subscribe,
		AllowResponses: p.Responses, Expires: expires,
	}
}

// describe writes the node's record, so that an invited node is seen before
// it has joined. Labels that are there stay.
func describe(ctx context.Context, conn *bus.Conn, v Invitation, now time.Time) error {
	for {
		var r NodeRecord
		key := "node." + string(v.Node)
		seq, err := get(ctx, conn, key, &r)
		if err != nil {
			return err
		}
		if r.Labels == nil {
			r.Labels = map[string]string{}
		}
		maps.Copy(r.Labels, v.Labels)
		r.Mailbox = cmp.Or(r.Mailbox, bus.NewMailbox())
		r.Invited = now.UTC().Truncate(time.Second)
		err = put(ctx, conn, key, r, seq)
		if muster.KindOf(err) != muster.Conflict {
			return err
		}
	}
}
