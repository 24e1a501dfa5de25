package app_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
)

// promises are what agent and client rely on, whatever carries their messages.
// The last ones change the layout, and stop what carries.
var promises = []struct {
	name string
	keep func(t *testing.T, f fleet)
}{
	{"a newcomer joins once", newcomerJoinsOnce},
	{"a node keeps to itself", nodeKeepsToItself},
	{"a lane is in order until it is acknowledged", laneInOrder},
	{"a full lane refuses", fullLaneRefuses},
	{"a command expires", commandExpires},
	{"the last value counts", lastValueCounts},
	{"a question is answered", questionIsAnswered},
	{"a removed node is put out", removedNodeIsPutOut},
	{"a removal disturbs nobody", removalDisturbsNobody},
	{"nodes learn of others", nodesLearnOfOthers},
	{"a caller keeps to its rights", callerKeepsToItsRights},
	{"a caller without bounds administers", aCallerWithoutBoundsAdministers},
	{"no detour to others", noDetourToOthers},
	{"that it syncs is seen", syncIsSeen},
	{"the service is no detour", serviceIsNoDetour},
	{"a revoked caller is cut off", revokedCallerIsCutOff},
	{"commands move to other streams", commandsMove},
	{"a receipt outlives the broker", receiptOutlives},
	{"a revocation outlives the broker", revocationOutlives},
}

// TestCarriers holds each carrier to all promises.
func TestCarriers(t *testing.T) {
	for _, c := range carriers {
		t.Run(c.name, func(t *testing.T) {
			if c.servers > 0 && testing.Short() {
				t.Skip("builds a nats-server; -short")
			}
			f := startFleet(t, c)
			for _, p := range promises {
				t.Run(p.name, func(t *testing.T) { p.keep(t, fleet{t, f.world}) })
			}
		})
	}
}

func commandTo(c *bus.Conn, n muster.NodeName, text string) bus.Outgoing {
	return bus.Outgoing{Subject: c.Subjects().Command(n, muster.KindCommand, "m.m"), ID: string(n) + text, Data: []byte(text)}
}

func numbers(from, to int) (all []string) {
	for i := from; i < to; i++ {
		all = append(all, fmt.Sprint(i))
	}
	return all
}

// take reads n commands and acknowledges those that ack chooses.
func (f fleet) take(c *bus.Conn, node muster.NodeName, n int, ack func(i int) bool) (got []string) {
	f.t.Helper()
	enough := errors.New("enough")
	ctx, open := f.ctx(), 0
	read := func(m bus.Message) error {
		got = append(got, string(m.Data))
		if !ack(len(got) - 1) {
			open++
		} else if err := m.Ack(); err != nil {
			return err
		}
		if len(got) == n {
			return enough
		}
		return nil
	}
	err := c.Commands(ctx, node, read)
	gone := func() bool {
		select {
		case <-c.Done():
			return true
		default:
			return false
		}
	}
	for open == 0 && muster.KindOf(err) == muster.Unavailable && ctx.Err() == nil && !gone() {
		err = c.Commands(ctx, node, read) // a busy cluster may be silent; an agent begins anew, too
	}
	if err == enough {
		err = c.Flush(ctx)
	}
	if err != nil {
		f.t.Fatalf("after %d of %d commands: %v", len(got), n, err)
	}
	return got
}

func always(int) bool { return true }

// waitQueue waits until so many commands are left: acknowledgements have no
// receipts.
func (f fleet) waitQueue(op *bus.Conn, node muster.NodeName, want int) {
	f.t.Helper()
	f.until(fmt.Sprintf("the queue of %s", node), func() error {
		if n, err := op.QueueLengths(f.ctx(), []muster.NodeName{node}); err != nil || n[node] != want {
			return fmt.Errorf("it holds %d, want %d: %w", n[node], want, err)
		}
		return nil
	})
}

// laneInOrder: what was sent without waiting is delivered in that order, and
// what was not acknowledged is delivered again, before the rest.
func laneInOrder(t *testing.T, f fleet) {
	const node, n = muster.NodeName("lane.order"), 200
	op, me := f.operator(), f.node(node)
	p, err := op.Pipeline()
	if err != nil {
		t.Fatal(err)
	}
	results := make(chan error, n)
	for _, text := range numbers(0, n) {
		p.Publish(commandTo(op, node, text), func(err error) { results <- err })
	}
	for range n {
		if err := <-results; err != nil {
			t.Fatal(err)
		}
	}
	f.waitQueue(op, node, n) // a receipt means that it is stored
	if got := f.take(me, node, n/2, func(i int) bool { return i%3 == 0 }); !slices.Equal(got, numbers(0, n/2)) {
		t.Errorf("got %v", got)
	}
	f.waitQueue(op, node, n-34)
	want := slices.DeleteFunc(numbers(0, n/2), func(s string) bool { var i int; _, _ = fmt.Sscan(s, &i); return i%3 == 0 })
	want = append(want, numbers(n/2, n)...)
	if got := f.take(me, node, len(want), always); !slices.Equal(got, want) {
		t.Errorf("again: got %v, want %v", got, want)
	}
	f.waitQueue(op, node, 0)
}

// fullLaneRefuses: nothing is dropped to make room, and others are not
// affected.
func fullLaneRefuses(t *testing.T, f fleet) {
	op := f.operator()
	ff, err := config.OpenFleet(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	limit := func(n int64) {
		err := f.available(func() error { return op.Setup(f.ctx(), bus.LayoutOptions{Fleet: ff.Fleet.ID, LaneLimit: n}) })
		if err != nil {
			t.Fatal(err)
		}
	}
	limit(3)
	defer limit(0) // the default
	for i := range 5 {
		err := op.Put(f.ctx(), commandTo(op, "full", fmt.Sprint(i)))
		if want := map[bool]muster.ErrorKind{true: muster.Full}[i >= 3]; muster.KindOf(err) != want {
			t.Errorf("command %d: %v", i, err)
		}
	}
	if err := op.Put(f.ctx(), commandTo(op, "other", "0")); err != nil {
		t.Errorf("another node: %v", err)
	}
	if got := f.take(f.node("full"), "full", 3, always); !slices.Equal(got, numbers(0, 3)) {
		t.Errorf("got %v", got)
	}
}

// commandExpires: the broker removes it, and no other.
func commandExpires(t *testing.T, f fleet) {
	op := f.operator()
	short := commandTo(op, "ttl", "short")
	short.TTL = time.Second
	for _, m := range []bus.Outgoing{short, commandTo(op, "ttl", "long")} {
		if err := op.Put(f.ctx(), m); err != nil {
			t.Fatal(err)
		}
	}
	f.waitQueue(op, "ttl", 1)
	if got := f.take(f.node("ttl"), "ttl", 1, always); !slices.Equal(got, []string{"long"}) {
		t.Errorf("got %v", got)
	}
}

// lastValueCounts: it replaces the one before, on condition of what that was.
func lastValueCounts(t *testing.T, f fleet) {
	op := f.operator()
	subject := op.Subjects().Control("box", "last")
	if _, err := op.Last(f.ctx(), bus.StreamControl, subject); muster.KindOf(err) != muster.NotFound {
		t.Errorf("before the first: %v", err)
	}
	next := uint64(0)
	for _, text := range []string{"one", "two"} {
		last := next
		if err := op.PutAfter(f.ctx(), bus.Outgoing{Subject: subject, Data: []byte(text)}, last); err != nil {
			t.Fatal(err)
		}
		// A replica may hear of it a moment later than the leader.
		f.until("the last value", func() error {
			m, err := op.Last(f.ctx(), bus.StreamControl, subject)
			if err == nil && string(m.Data) != text {
				err = fmt.Errorf("it is %q, want %q", m.Data, text)
			}
			next = m.Seq // of the next look another replica may answer
			return err
		})
		if err := op.PutAfter(f.ctx(), bus.Outgoing{Subject: subject}, last); muster.KindOf(err) != muster.Conflict {
			t.Errorf("on a condition that does not hold: %v", err)
		}
	}
}

// questionIsAnswered by who is there, on a subject of its own.
func questionIsAnswered(t *testing.T, f fleet) {
	op, me := f.operator(), f.node("answers")
	stop, err := me.Serve(me.Subjects().Ping(), func(r bus.Request) {
		_ = me.Tell(me.Subjects().Alive(me.Mailbox(), "answers"), append(r.Data, " here"...)) // it will be asked again
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	f.until("an answer", func() error { // in a cluster the question may come before the interest
		ctx, cancel := context.WithTimeout(f.ctx(), time.Second)
		defer cancel()
		var got string
		err := op.AskAll(ctx, op.Subjects().Ping(), []byte("who"), op.Subjects().Alive(bus.AnyMailbox, "answers"), func(_ string, data []byte) bool {
			got = string(data)
			return false
		})
		if err == nil && got != "who here" {
			err = fmt.Errorf("got %q", got)
		}
		return err
	})
}

// commandsMove to another number of streams, in order.
func commandsMove(t *testing.T, f fleet) {
	op, me := f.operator(), f.node("moves")
	if err := op.Put(f.ctx(), commandTo(op, "moves", "0")); err != nil {
		t.Fatal(err)
	}
	err := f.available(func() error { return app.Reshard(f.ctx(), app.ReshardOptions{Dir: f.dir, Shards: 3}) })
	if err != nil {
		t.Fatal(err)
	}
	if err := op.Put(f.ctx(), commandTo(op, "moves", "1")); muster.KindOf(err) != muster.Unavailable {
		t.Errorf("a sender that does not know of it: %v", err)
	}
	<-op.Done()
	op = f.operator()
	if err := op.Put(f.ctx(), commandTo(op, "moves", "1")); err != nil {
		t.Fatal(err)
	}
	if err := me.Commands(f.ctx(), "moves", func(bus.Message) error { return nil }); muster.KindOf(err) != muster.Unavailable {
		t.Errorf("a node that does not know of it: %v", err)
	}
	me = f.again("moves")
	if got := f.take(me, "moves", 2, always); !slices.Equal(got, numbers(0, 2)) {
		t.Errorf("got %v", got)
	}
}

// again connects as a node that has joined, with new credentials.
func (f fleet) again(name muster.NodeName) *bus.Conn {
	f.t.Helper()
	var conn *bus.Conn
	f.until("connect again", func() error {
		dir := filepath.Join(f.t.TempDir(), "again")
		text, err := app.Invite(f.ctx(), invitation(f, name))
		if err != nil {
			return err
		}
		if err := f.joinWith(text, dir); err != nil {
			return err
		}
		if conn, _, err = f.dial(dir); err != nil {
			return err
		}
		_, err = conn.Load(f.ctx())
		return err
	})
	return conn
}

// receiptOutlives what carries the messages, which ends without a warning
// where it is a process. What had no receipt is told so. The service that
// admits nodes goes on by itself.
func receiptOutlives(t *testing.T, f fleet) {
	op := f.operator()
	for _, text := range numbers(0, 3) {
		err := f.available(func() error { // its id has it stored once
			select {
			case <-op.Done(): // a cluster that was busy did not answer
				again, err := f.tryOperator()
				if err != nil {
					return err
				}
				op = again
			default:
			}
			ctx, cancel := context.WithTimeout(f.ctx(), 10*time.Second)
			defer cancel()
			return op.Put(ctx, commandTo(op, "outlives", text))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	p, err := op.Pipeline()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	f.restart()
	<-op.Done()
	wg.Add(1)
	p.Publish(commandTo(op, "outlives", "lost"), func(err error) {
		defer wg.Done()
		if muster.KindOf(err) != muster.Unavailable {
			t.Errorf("without a broker: %v", err)
		}
	})
	wg.Wait()
	p.Wait()
	me := f.again("outlives")
	f.until("the stored commands", func() error {
		op, err := f.tryOperator()
		if err != nil {
			return err
		}
		n, err := op.QueueLengths(f.ctx(), []muster.NodeName{"outlives"})
		if err == nil && n["outlives"] != 3 {
			err = fmt.Errorf("%d are stored, want 3", n["outlives"])
		}
		return err
	})
	if got := f.take(me, "outlives", 3, always); !slices.Equal(got, numbers(0, 3)) {
		t.Errorf("got %v", got)
	}
}
