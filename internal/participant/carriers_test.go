package participant

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterfleet/muster/internal/order"
)

// TestTwoCarriers: who is reached in two ways acts once and answers once, and
// either way can fail while the Order holds.
func TestTwoCarriers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, lan, hub := newLab(t), newNetwork(), newNetwork()
		hub.hub = true
		names := []string{"a", "b", "c"}
		var all []*member
		for _, name := range names {
			addr := order.Address(name)
			all = append(all, l.start(name, lan.wire(addr), 0, hub.wire(addr)))
		}
		time.Sleep(20 * time.Second)
		o := l.call("op", lan.wire("op"), 0, l.operator.PrivateKey(), hub.wire("op"))
		time.Sleep(20 * time.Second)
		hold(t, l, o, time.Minute, 3)
		asked := 0
		answer := func(when string) {
			t.Helper()
			asked++
			if got, silent := ask(t, o, ""); !slices.Equal(got, names) || len(silent) > 0 {
				t.Errorf("%s: %v answered, %v did not", when, got, silent)
			}
			for _, name := range names {
				if n := ran(t, l, name); n != asked {
					t.Errorf("%s: %s ran %d of %d queries", when, name, n, asked)
				}
			}
		}
		answer("over both")
		hub.cutOff("op", true)
		answer("without the hub")
		time.Sleep(5 * time.Minute) // renewed meanwhile
		answer("long without the hub")
		hub.cutOff("op", false)
		time.Sleep(time.Minute)
		lan.cutOff("op", true)
		answer("over the hub alone")
		if _, err := o.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !idle(all) {
			t.Error("some are not free")
		}
	})
}

// TestHubAlone: machines that cannot hear one another are one Order.
func TestHubAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, hub := newLab(t), newNetwork()
		hub.hub = true
		for _, name := range []string{"a", "b", "c"} {
			l.start(name, hub.wire(order.Address(name)), 0)
		}
		synctest.Wait()
		o := l.call("op", hub.wire("op"), 0, l.operator.PrivateKey())
		hold(t, l, o, time.Minute, 3)
		other := l.call("op2", hub.wire("op2"), 0, l.operator.PrivateKey())
		time.Sleep(time.Second)
		if _, err := other.Call(t.Context(), CallOptions{}); err == nil {
			t.Error("two operators have the same machines")
		}
		peers, err := o.Peers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range peers {
			if p.Address != "" || p.Hub == "" {
				t.Errorf("%s is at %q and %q", p.Name, p.Address, p.Hub)
			}
		}
		if _, err := o.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}
