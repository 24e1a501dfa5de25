package enrol

import (
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
)

// Join makes this machine the node that the token names: it makes a key,
// presents the token, and writes the node's folder. The key is stored before
// the token is presented, so that Join can be called again after a crash or a
// lost answer.
func Join(ctx context.Context, token aaa.Token, dir string, now time.Time, log *slog.Logger) error {
	if config.NodeExists(dir) {
		return muster.Errorf(muster.Conflict, "a node has joined with the folder %s already", dir).
			WithHint("choose another folder with --state")
	}
	return Rejoin(ctx, token, dir, now, log)
}

// Rejoin is Join for a folder whose node was removed from the fleet and is
// invited again: its credentials are replaced, journal and policy stay.
func Rejoin(ctx context.Context, token aaa.Token, dir string, now time.Time, log *slog.Logger) error {
	if token.Expired(now) {
		return refusedf("the token expired at %s", token.Expires.Format(time.RFC3339))
	}
	prefix := prefixOf(token)
	seed, err := config.JoinKey(filepath.Join(dir, "join.seed"))
	if err != nil {
		return err
	}
	userJWT, err := present(ctx, token, seed, prefix, log)
	if err != nil {
		return err
	}
	creds, err := aaa.Creds(userJWT, seed)
	if err != nil {
		return muster.Errorf(muster.Corrupt, "the broker's answer does not fit the key of this node: %w", err)
	}
	var revoked []byte
	if len(token.Revoked) > 0 {
		revoked = aaa.JoinRevocations([][]byte{token.Revoked})
	}
	err = config.WriteNode(dir, config.NodeFolder{
		Node: config.Node{
			Node: string(token.Node), Fleet: token.Fleet, Prefix: prefix, URLs: token.URLs, Issuers: token.Issuers,
		},
		Credentials: creds, CA: []byte(token.CAPEM), Policy: []byte(token.Policy), Revoked: revoked,
	})
	if err != nil {
		return err
	}
	return config.RemoveFile(filepath.Join(dir, "join.seed"))
}

// How often a newcomer asks, and how long it waits for an answer: the request
// or its answer can be lost on the way.
const (
	askTimes = 4
	askWait  = 4 * time.Second
)

func askAgain(ctx context.Context, conn *bus.Conn, subject string, data []byte) (reply []byte, err error) {
	for range askTimes {
		one, cancel := context.WithTimeout(ctx, askWait)
		reply, err = conn.Ask(one, subject, data)
		cancel()
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	return reply, err
}

// prefixOf reads the prefix of the fleet's subjects from the one subject to
// which the token's credentials may publish.
func prefixOf(token aaa.Token) string {
	text, _, err := config.ParseCreds(token.Creds)
	if err != nil {
		return bus.DefaultPrefix
	}
	subjects := mayPublish(text)
	if len(subjects) != 1 {
		return bus.DefaultPrefix
	}
	prefix, ok := strings.CutSuffix(subjects[0], bus.Subjects{}.Enrol(token.ID))
	if !ok || prefix == "" {
		return bus.DefaultPrefix
	}
	return prefix
}

// MailboxOf reads a node's mailbox from its user JWT.
func MailboxOf(userJWT, prefix string, node muster.NodeName) string {
	return bus.MailboxOf(prefix, node, mayPublish(userJWT))
}

// CallerInbox reads the prefix of inboxes of a caller with bounded rights from
// its user JWT. It is empty for an operator.
func CallerInbox(userJWT string) string {
	claims, err := jwt.DecodeUserClaims(userJWT)
	if err != nil {
		return "" // the broker will say what is wrong with it
	}
	return bus.CallerInbox(claims.Sub.Allow)
}

// mayPublish lists the subjects to which a user JWT lets publish.
func mayPublish(userJWT string) []string {
	claims, err := jwt.DecodeUserClaims(userJWT)
	if err != nil {
		return nil // the broker will say what is wrong with it
	}
	return claims.Pub.Allow
}

func present(ctx context.Context, token aaa.Token, seed aaa.Secret, prefix string, log *slog.Logger) (string, error) {
	public, err := aaa.PublicUserKey(seed)
	if err != nil {
		return "", err
	}
	o := bus.Options{
		URLs: token.URLs, Name: "enrol " + string(token.Node), CA: []byte(token.CAPEM),
		Prefix: prefix, Inbox: bus.EnrolInbox(token.ID), Log: log,
	}
	if !token.Creds.Empty() {
		userJWT, key, err := config.ParseCreds(token.Creds)
		if err != nil {
			return "", err
		}
		o.JWT, o.Seed = userJWT, string(key.Reveal())
	}
	conn, err := bus.Dial(ctx, o)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	data, err := json.Marshal(request{token.Secret.Reveal(), public})
	if err != nil {
		return "", muster.Errorf(muster.Internal, "write the request to join: %w", err)
	}
	reply, err := askAgain(ctx, conn, conn.Subjects().Enrol(token.ID), data)
	if err != nil {
		return "", muster.Errorf(muster.Unavailable, "nobody answers the request to join: %w", err).
			WithHint("is 'muster broker' (or its service) running, and was the token made for this fleet?")
	}
	var a answer
	if len(reply) > maxAnswer || json.Unmarshal(reply, &a) != nil || (a.JWT == "") == (a.Error == nil) {
		return "", muster.Errorf(muster.Corrupt, "the answer to the request to join cannot be read")
	}
	if a.Error != nil {
		return "", a.Error
	}
	return a.JWT, nil
}
