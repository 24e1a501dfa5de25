package app

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"time"

	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/enrol"
)

// A stamp tells one version of a file from another.
type stamp struct {
	at   time.Time
	size int64
}

func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{} // there is none, or what reads it says what is wrong
	}
	return stamp{info.ModTime(), info.Size()}
}

const (
	revokedEvery = time.Second      // how soon a revocation is noticed
	revokedAgain = 10 * time.Second // after one that did not work
)

// watchRevoked puts a new list of revoked callers in force, which another
// process has written into the fleet's folder.
func (s *session) watchRevoked(ctx context.Context) {
	for wait := revokedEvery; pause(ctx, wait); {
		wait = revokedEvery
		now := stampOf(s.fleet.RevokedCallersFile())
		if now == s.known {
			continue
		}
		if err := s.revokeCallers(ctx); err != nil {
			wait = revokedAgain
			s.log.Error("revoked callers are not kept out yet; trying again", "component", "app", "err", err, "in", wait)
			continue
		}
		s.known = now
	}
}

// revokeCallers cuts revoked callers off, and then tells the nodes: in this
// order, since until then they may write what nodes read.
func (s *session) revokeCallers(ctx context.Context) error {
	if err := s.cutOff(ctx); err != nil {
		return err
	}
	conn, err := s.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return s.publishRevoked(ctx, conn)
}

// cutOff has the broker keep out who is revoked.
func (s *session) cutOff(ctx context.Context) error {
	main, _, err := enrol.Accounts(s.fleet, time.Now())
	if err != nil {
		return err
	}
	return s.update(ctx, main)
}

// publishRevoked makes the folder's list the one that nodes read. Those of other
// issuers that nodes may trust stay. The connection is not used for anything
// else meanwhile.
func (s *session) publishRevoked(ctx context.Context, conn *bus.Conn) error {
	own, any, err := s.fleet.RevokedCallers()
	if err != nil || !any {
		return err
	}
	if !slices.Contains(s.fleet.Fleet.Issuers, own.Issuer) {
		s.log.Error("the list of revoked callers is of an issuer that was replaced; nodes do not get it until 'muster caller revoke' signs another one", "component", "app", "file", s.fleet.RevokedCallersFile())
		return nil
	}
	return s.alone(ctx, func(ctx context.Context) error {
		published, err := conn.Revoked(ctx)
		if err != nil {
			return err
		}
		lists, newer := s.withOwn(published, own)
		if newer {
			s.log.Error("the broker has a newer list of revoked callers than the fleet's folder, which may be from a backup; it stays. 'muster caller revoke' again whoever is missing in the folder's",
				"component", "app", "file", s.fleet.RevokedCallersFile())
			return nil
		}
		if err := conn.SetRevoked(ctx, s.fleet.Fleet.ID, lists); err != nil {
			return err
		}
		s.log.Info("the list of revoked callers is published", "component", "app", "serial", own.Serial, "entries", len(own.Revoked))
		return conn.Tell(conn.Subjects().Ping(), []byte(bus.RevokedPing+aaa.RevocationMark(lists)))
	})
}

// withOwn puts the issuer's list among those that are published, of which what
// no issuer has signed is left out. It reports a published one that is newer.
func (s *session) withOwn(published []json.RawMessage, own aaa.SignedRevocations) (lists []json.RawMessage, newer bool) {
	for _, data := range published {
		list, err := aaa.ReadRevocations(data, s.fleet.Fleet.ID, s.fleet.Fleet.Issuers...)
		switch {
		case err != nil:
			s.log.Warn("what was published as a list of revoked callers is none", "component", "app", "err", err)
		case list.Issuer != own.Issuer:
			lists = append(lists, data)
		case list.Serial > own.Serial:
			newer = true
		}
	}
	return append(lists, own.Encoded()), newer
}
