package participant

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterfleet/muster/internal/lan"
	"github.com/musterfleet/muster/internal/methods/onsite"
	"github.com/musterfleet/muster/internal/order"
	"github.com/musterfleet/muster/internal/seal"

	"crypto/rand"
)

// ask has all members tell their facts, and returns who answered.
func ask(t *testing.T, o *caller, selector string) (names []string, silent []Who) {
	t.Helper()
	return askWithin(t, o, selector, 0)
}

func askWithin(t *testing.T, o *caller, selector string, within time.Duration) (names []string, silent []Who) {
	t.Helper()
	silent, err := o.Query(t.Context(), Query{Selector: selector, Method: "facts", Within: within}, func(a Answer) {
		answer, err := onsite.DecodeAnswer(a.Data)
		if err != nil || a.Code != order.OK {
			t.Errorf("%s: %v, %v", a.Label(), a.Code, err)
		}
		names = append(names, answer.Node)
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names, silent
}

// ran counts what the journal says was begun, and fails if anything was begun twice.
func ran(t *testing.T, l *lab, name string) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(l.dir, name, "order.log"))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if fields[1] != "runs" {
			continue
		}
		if key := fields[2] + fields[3]; seen[key] {
			t.Errorf("%s ran twice: %s", name, key)
		} else {
			seen[key] = true
		}
	}
	return len(seen)
}

func segment(t *testing.T) (*lab, *network, []*member) {
	l, n := newLab(t), newNetwork()
	var all []*member
	for _, name := range []string{"a", "b", "c"} {
		all = append(all, l.start(name, n.wire(order.Address(name)), 0))
	}
	return l, n, all
}

func hold(t *testing.T, l *lab, o *caller, lease time.Duration, members int) Holding {
	t.Helper()
	l.until("entry", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return o.Entry(ctx) == nil
	})
	h, err := o.Call(t.Context(), CallOptions{CallOptions: order.CallOptions{Lease: lease}})
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Members) != members {
		t.Fatalf("the members are %v", h.Members)
	}
	return h
}

func TestARestartForgetsNoLockAndRepeatsNoQuery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, n, all := segment(t)
		time.Sleep(20 * time.Second) // the agents find one another
		o := l.call("op", n.wire("op"), 0, l.operator.PrivateKey())
		h := hold(t, l, o, 60*time.Second, 3)
		if names, _ := ask(t, o, ""); !slices.Equal(names, []string{"a", "b", "c"}) {
			t.Fatalf("%v answered", names)
		}
		all[1].stop()
		b := l.start("b", n.wire("b"), 0)
		synctest.Wait()
		if s := b.Status(); s.State != order.Ordered || s.Order != h.Order {
			t.Fatalf("after its restart b is in %v %v", s.State, s.Order)
		}
		if n.replay("b") == 0 {
			t.Fatal("nothing was recorded")
		}
		time.Sleep(time.Second)
		if count := ran(t, l, "b"); count != 1 {
			t.Errorf("b ran %d queries; one was asked", count)
		}
		// Until the others know its new process, b may miss a request.
		l.until("answer of b", func() bool { names, _ := ask(t, o, "name=b"); return slices.Equal(names, []string{"b"}) })
		if _, err := o.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // until no CALL of before counts, whatever is kept
		for _, m := range []*member{all[0], b, all[2]} {
			if s := m.Status(); s.State != order.Idle {
				t.Errorf("after the release %s is in %v", m.name, s.State)
			}
		}
		if left, err := os.ReadDir(filepath.Join(l.dir, "b", "lock")); err != nil || len(left) != 0 {
			t.Errorf("locks are left: %v, %v", left, err)
		}
		before := ran(t, l, "b")
		b.stop()
		b = l.start("b", n.wire("b"), 0)
		n.replay("b")
		time.Sleep(10 * time.Second)
		if after := ran(t, l, "b"); after != before || b.Status().State != order.Idle {
			t.Errorf("recorded frames had b run %d queries, and it is %v", after-before, b.Status().State)
		}
	})
}

// A machine whose lock was damaged while its agent was away is not given to
// another operator as long as the first may hold it.
func TestADamagedLockIsNobodyElses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, n, all := segment(t)
		time.Sleep(20 * time.Second) // the agents find one another
		o := l.call("op", n.wire("op"), 0, l.operator.PrivateKey())
		hold(t, l, o, 60*time.Second, 3)
		all[1].stop()
		locks, err := filepath.Glob(filepath.Join(l.dir, "b", "lock", "*.lock"))
		if err != nil || len(locks) != 1 {
			t.Fatalf("locks %q, %v", locks, err)
		}
		if err := os.WriteFile(locks[0], []byte("garbage"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(locks[0], time.Time{}, time.Now()); err != nil { // the time of the bubble
			t.Fatal(err)
		}
		l.start("b", n.wire("b"), 0)
		time.Sleep(20 * time.Second)
		if _, err := o.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		other := l.call("other", n.wire("other"), 0, l.operator.PrivateKey())
		hold(t, l, other, 60*time.Second, 2) // a and c
		if _, err := other.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(order.MaxLease)
		last := l.call("last", n.wire("last"), 0, l.operator.PrivateKey())
		hold(t, l, last, 60*time.Second, 3)
	})
}

func TestAnOutageEndsAndALeaseDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, n, all := segment(t)
		time.Sleep(20 * time.Second)
		o := l.call("op", n.wire("op"), 0, l.operator.PrivateKey())
		hold(t, l, o, 60*time.Second, 3)
		n.cutOff("c", true)
		if names, silent := ask(t, o, ""); !slices.Equal(names, []string{"a", "b"}) || len(silent) != 1 {
			t.Errorf("without c, %v answered and %v did not", names, silent)
		}
		n.cutOff("c", false)
		time.Sleep(15 * time.Second)
		if names, _ := ask(t, o, ""); !slices.Equal(names, []string{"a", "b", "c"}) {
			t.Errorf("after the outage %v answered", names)
		}
		o.die()
		time.Sleep(29 * time.Second) // the last renewal was at most half a lease ago
		if s := all[0].Status(); s.State != order.Ordered {
			t.Errorf("before its lease is over a is in %v", s.State)
		}
		time.Sleep(32 * time.Second)
		for _, m := range all {
			if s := m.Status(); s.State != order.Idle {
				t.Errorf("after its lease %s is in %v", m.name, s.State)
			}
		}
	})
}

// lan opens a carrier on loopback.
func (l *lab) lan(port int, peers ...string) *LAN {
	l.t.Helper()
	c, err := OpenLAN(lan.Options{Box: l.box(), Host: "127.0.0.1", Port: port, Unicast: true, Peers: peers})
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

// A query that does not end is ended, also before it has begun, and says why.
func TestAQueryEndsWhenItsTimeIsOver(t *testing.T) {
	l := newLab(t)
	m := l.start("n", newNetwork().wire("n"), 0)
	for seq, left := range []time.Duration{0, 100 * time.Millisecond} {
		q := order.Query{Seq: uint32(seq), Method: "script", Args: onsite.Script{Argv: []string{"sleep", "1000"}}.Encode(), Deadline: time.Now().Add(answerMargin + left)}
		code, data := m.execute(t.Context(), q)
		if a, err := onsite.DecodeAnswer(data); err != nil || code != order.Failed || !strings.Contains(a.Message, "its time was over") {
			t.Errorf("%s before its end: %v, %+v, %v", left, code, a, err)
		}
	}
}

// called calls until as many are members: in real time one may be late.
func (l *lab) called(o *caller, lease time.Duration, members int) {
	l.t.Helper()
	l.until("Order of all", func() bool {
		h, err := o.Call(l.t.Context(), CallOptions{CallOptions: order.CallOptions{Lease: lease}})
		if err != nil {
			return false
		}
		if len(h.Members) != members {
			_, _ = o.Release(l.t.Context()) // whose lease ends it otherwise
			return false
		}
		return true
	})
}

// freePort returns a port of loopback that is free. It is below those that systems
// choose from, and not from the numbers that tests of other packages use: so nobody
// takes it while it is free again.
func (l *lab) freePort() int {
	l.t.Helper()
	const first, all = 25_000, 5_000
	for i := range all {
		port := first + (os.Getpid()+i)%all
		if c, err := lan.Open(lan.Options{Box: l.box(), Host: "127.0.0.1", Port: port}); err == nil {
			c.Close()
			return port
		}
	}
	l.t.Fatal("no port is free")
	return 0
}

func (l *lab) box() *seal.Box {
	l.t.Helper()
	box, err := seal.New(l.c.Key, l.c.Secret.Reveal(), rand.Reader)
	if err != nil {
		l.t.Fatal(err)
	}
	return box
}

func TestOnLoopback(t *testing.T) {
	l := newLab(t)
	port := l.freePort()
	first := l.lan(port)
	peer := first.LocalAddr()
	all := []*member{l.start("n0", first, first.Port())}
	for _, name := range []string{"n1", "n2", "n3", "n4"} {
		c := l.lan(0, peer)
		all = append(all, l.start(name, c, c.Port()))
	}
	l.until("link to all", func() bool {
		peers, err := all[0].Peers(t.Context())
		return err == nil && len(peers) == 4 && linked(peers)
	})
	oc := l.lan(0, peer)
	o := l.call("op", oc, oc.Port(), l.operator.PrivateKey())
	l.called(o, 10*time.Second, 5)
	if names, silent := askWithin(t, o, "", patience); len(names) != 5 || len(silent) != 0 {
		t.Errorf("%v answered, %v did not", names, silent)
	}
	// A file that is more than a datagram, in both directions.
	content := []byte(strings.Repeat("x", onsite.MaxPut))
	path := filepath.Join(t.TempDir(), "f")
	puts, err := onsite.Puts(path, 0o600, content)
	if err != nil {
		t.Fatal(err)
	}
	answered := 0
	each := func(a Answer) {
		answered++
		if answer, err := onsite.DecodeAnswer(a.Data); err != nil || a.Code != order.OK {
			t.Errorf("%v %+v %v", a.Code, answer, err)
		}
	}
	if _, err := o.Query(t.Context(), Query{Selector: "n3", Method: "put", Args: puts[0].Encode(), Within: patience}, each); err != nil || answered != 1 {
		t.Errorf("%d answers, %v", answered, err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != string(content) {
		t.Errorf("%d bytes were put, %v", len(got), err)
	}
	answered = 0
	if _, err := o.Query(t.Context(), Query{Method: "get", Args: onsite.Get{Path: path}.Encode(), Within: patience}, each); err != nil || answered != 5 {
		t.Errorf("%d answers, %v", answered, err)
	}

	// One is started anew in the middle of the Order.
	all[2].stop()
	c := l.lan(0, peer)
	all[2] = l.start("n2", c, c.Port())
	if s := all[2].Status(); s.State != order.Ordered {
		t.Errorf("after its restart n2 is in %v", s.State)
	}
	l.until("answer of n2", func() bool { names, _ := ask(t, o, "n2"); return len(names) == 1 })
	for _, m := range all {
		ran(t, l, m.name)
	}
	o.die()
	l.until("end of the leases", func() bool {
		return !slices.ContainsFunc(all, func(m *member) bool { return m.Status().State != order.Idle })
	})

	// Another operator, and the entry is started anew on its port.
	oc = l.lan(0, peer)
	o = l.call("op2", oc, oc.Port(), l.operator.PrivateKey())
	l.called(o, 20*time.Second, 5)
	all[0].stop()
	c = l.lan(port)
	all[0] = l.start("n0", c, c.Port())
	l.until("answers of all", func() bool { names, _ := ask(t, o, ""); return len(names) == 5 })
	silent, err := o.Release(t.Context())
	if err != nil || len(silent) != 0 {
		t.Errorf("%v did not hear the release, %v", silent, err)
	}
	l.until("release", func() bool {
		return !slices.ContainsFunc(all, func(m *member) bool { return m.Status().State != order.Idle })
	})
}

func linked(peers []order.Peer) bool {
	return !slices.ContainsFunc(peers, func(p order.Peer) bool { return !p.Neighbour || p.BrokerHint == "" })
}
