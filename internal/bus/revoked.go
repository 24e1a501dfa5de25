package bus

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/musterfleet/muster"
)

// maxRevoked bounds the lists of revoked callers together, in bytes: the broker
// takes 128 KiB of metadata, and the other settings are there, too.
const maxRevoked = 112 << 10

// RevokedPing begins the text of a ping that also says which lists of revoked
// callers there are now, so that nodes which are there read them at once.
const RevokedPing = "revoked "

// NewsOfRevoked reads the mark of the lists from the text of a ping.
func NewsOfRevoked(ping string) (mark string, ok bool) { return strings.CutPrefix(ping, RevokedPing) }

// SetRevoked makes the lists those that nodes read. Setup or Reshard must not
// run at the same time, and the connection not be used for anything else.
func (c *Conn) SetRevoked(ctx context.Context, fleet string, lists []json.RawMessage) error {
	size := 0
	for _, l := range lists {
		size += len(l)
	}
	if size > maxRevoked {
		return muster.Errorf(muster.Full, "the lists of revoked callers have %d bytes; at most %d are allowed", size, maxRevoked)
	}
	s, err := c.intended(ctx, LayoutOptions{Fleet: fleet})
	if err == nil && s.Version == 0 {
		err = muster.Errorf(muster.NotFound, "the broker has no layout yet")
	}
	if err != nil {
		return err
	}
	s.Revoked = lists
	l := layout{c: c, o: LayoutOptions{Replicas: s.Replicas}.withDefaults(), s: s}
	return l.store(ctx)
}

// Revoked reads the lists of revoked callers, as they are stored: whoever can
// write to the broker may have put anything there. The wait is bounded: to cut a
// caller off, the broker loses answers that are under way to nodes.
func (c *Conn) Revoked(ctx context.Context) ([]json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	s, err := c.settled(ctx)
	return s.Revoked, err
}
