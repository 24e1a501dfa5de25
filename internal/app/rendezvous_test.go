package app_test

import (
	"bytes"
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/rendezvous"
)

// asking is what the agent with an id says and asks, of a constellation.
func asking(t *testing.T, constellation, id byte) []byte {
	t.Helper()
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, id}), 6776)
	data, err := rendezvous.Encode(rendezvous.Request{Tag: rendezvous.Tag{constellation}, Peer: rendezvous.Peer{ID: rendezvous.ID{id}, At: []netip.AddrPort{at}}})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// told asks as a node and returns the ids of those that it is told of.
func told(f fleet, conn *bus.Conn, node muster.NodeName, constellation, id byte) (ids []byte) {
	f.t.Helper()
	f.until("an answer to "+string(node), func() error { // who asks twice in a second gets none
		ctx, cancel := context.WithTimeout(f.ctx(), time.Second)
		defer cancel()
		reply, err := conn.Ask(ctx, conn.Subjects().Peers(conn.Mailbox(), node), asking(f.t, constellation, id))
		if err != nil {
			return err
		}
		answer, err := rendezvous.Decode[rendezvous.Answer](reply)
		if err != nil {
			f.t.Fatalf("%v: %q", err, reply)
		}
		ids = nil
		for _, p := range answer.Peers {
			ids = append(ids, p.ID[0])
		}
		return nil
	})
	return ids
}

// nodesLearnOfOthers: those of their constellation, and not of those that are put
// out. What nobody can mean is not answered.
func nodesLearnOfOthers(t *testing.T, f fleet) {
	one, two, three := f.node("peer1"), f.node("peer2"), f.node("peer3")
	if got := told(f, one, "peer1", 7, 1); len(got) != 0 {
		t.Errorf("the first one is told of %v", got)
	}
	if got := told(f, two, "peer2", 7, 2); !bytes.Equal(got, []byte{1}) {
		t.Errorf("the second one is told of %v", got)
	}
	if got := told(f, three, "peer3", 8, 3); len(got) != 0 {
		t.Errorf("one of another constellation is told of %v", got)
	}
	if got := told(f, one, "peer1", 7, 1); !bytes.Equal(got, []byte{2}) {
		t.Errorf("the first one is told of %v, then", got)
	}
	for _, bad := range []string{"", "{}", string(asking(t, 7, 1)) + " "} {
		ctx, cancel := context.WithTimeout(f.ctx(), 200*time.Millisecond)
		if reply, err := one.Ask(ctx, one.Subjects().Peers(one.Mailbox(), "peer1"), []byte(bad)); err == nil {
			t.Errorf("%q is answered with %q", bad, reply)
		}
		cancel()
	}
	op := f.operator()
	if err := op.AddRecord(f.ctx(), "remove.peer2", []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	f.until("nobody is told of a node that was put out", func() error {
		if got := told(f, one, "peer1", 7, 1); len(got) != 0 {
			return muster.Errorf(muster.Internal, "told of %v", got)
		}
		return nil
	})
}
