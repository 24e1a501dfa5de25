package app_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/constellation"
	"github.com/musterfleet/muster/internal/participant"
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

// TestAgentsFindEachOtherWithoutTheBroker: agents that hear no multicast and were
// told of no peers are one constellation when the broker is gone, from wherever an
// operator comes in; also those that were started again since.
func TestAgentsFindEachOtherWithoutTheBroker(t *testing.T) {
	const count = 5 // an agent takes 8 connections of one address
	f := startFleet(t, carrier{})
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	c, key, err := constellation.Generate(fmt.Sprintf("t%d", time.Now().UnixNano()), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	times := app.PeerTimes{
		First: 10 * time.Millisecond, Every: time.Second, Soon: 2 * time.Second, Look: 50 * time.Millisecond,
		Away: 100 * time.Millisecond, Back: time.Hour, Wait: 50 * time.Millisecond, MaxWait: time.Second,
	}
	var dirs []string
	var ports []int
	start := func(i int) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			err := app.RunAgent(ctx, app.AgentOptions{
				StateDir: dirs[i], Order: app.OrderOptions{Listen: "127.0.0.1", Port: ports[i], PeerTimes: &times},
				Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
			})
			if err != nil {
				t.Error(err)
			}
		})
		stop = sync.OnceFunc(func() { cancel(); running.Wait() })
		t.Cleanup(stop)
		return stop
	}
	var stops []func()
	for i := range count {
		name := muster.NodeName(fmt.Sprint("n", i))
		dir := filepath.Join(t.TempDir(), string(name))
		if err := f.join(f.invite(name), dir); err != nil {
			t.Fatal(err)
		}
		if err := c.Write(filepath.Join(dir, "constellation.json")); err != nil {
			t.Fatal(err)
		}
		dirs, ports = append(dirs, dir), append(ports, freePort(t))
		stops = append(stops, start(i))
	}
	await(t, "file of all others at each agent", func() bool {
		for _, dir := range dirs {
			data, err := os.ReadFile(filepath.Join(dir, app.PeersFile))
			saved, bad := rendezvous.Decode[rendezvous.Saved](data)
			if err != nil || bad != nil || len(saved.Peers) != count-1 {
				return false
			}
		}
		return true
	})
	f.embedded.end(t)
	stops[2]()
	start(2) // it has the file alone
	for _, entry := range []int{0, 2, count - 1} {
		o := operate(t, c, key, ports[entry])
		if err := o.Entry(f.ctx()); err != nil {
			t.Fatal(err)
		}
		await(t, fmt.Sprintf("Order of all through %d", entry), func() bool {
			h, err := o.Call(f.ctx(), participant.CallOptions{})
			if err == nil {
				_, err = o.Release(f.ctx())
			}
			return err == nil && len(h.Members) == count
		})
	}
}
