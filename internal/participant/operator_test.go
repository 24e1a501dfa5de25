package participant

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/order"
)

func idle(all []*member) bool {
	return !slices.ContainsFunc(all, func(m *member) bool { return m.Status().State != order.Idle })
}

func TestOneOfTwoOperatorsHasTheMachines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, n, all := segment(t)
		time.Sleep(20 * time.Second)
		first := l.call("ada@desk", n.wire("op1"), 0, l.operator.PrivateKey())
		second := l.call("bob@hut", n.wire("op2"), 0, l.operator.PrivateKey())
		h := hold(t, l, first, time.Minute, 3)
		time.Sleep(20 * time.Second) // HELLOs tell whose the Order is

		for _, strong := range []bool{false, true} {
			_, err := second.Call(t.Context(), CallOptions{CallOptions: order.CallOptions{BreakGlass: strong}})
			lost, ok := errors.AsType[*LostError](err)
			if !ok || lost.Rival != h.Order || lost.Holder != "ada@desk" || !lost.Held || muster.KindOf(err) != muster.Conflict {
				t.Fatalf("break glass %v: %+v, %v", strong, lost, err)
			}
			if text := err.Error(); !strings.Contains(text, short(h.Order)) || !strings.Contains(text, "ada@desk") {
				t.Errorf("the message does not name the rival: %s", text)
			}
			time.Sleep(time.Second)
		}

		time.AfterFunc(10*time.Second, func() { _, _ = first.Release(t.Context()) })
		again := 0
		won, err := second.Call(t.Context(), CallOptions{Retries: 50, Again: func(why error, pause time.Duration) {
			if again++; pause <= 0 || muster.KindOf(why) != muster.Conflict {
				t.Errorf("again after %s: %v", pause, why)
			}
		}})
		if err != nil || len(won.Members) != 3 || again == 0 {
			t.Fatalf("after %d losses: %v, %v", again, won, err)
		}
		if _, err := second.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !idle(all) {
			t.Error("machines are still locked")
		}
	})
}

func TestAnOrderLivesAsLongAsItsOperator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, n, all := segment(t)
		time.Sleep(20 * time.Second)
		o := l.call("op", n.wire("op"), 0, l.operator.PrivateKey())
		h := hold(t, l, o, 10*time.Second, 3)
		time.Sleep(5 * time.Minute)
		if now, err := o.Holding(t.Context()); err != nil || now.Order != h.Order || !now.Until.After(time.Now()) {
			t.Fatalf("after five minutes: %v, %v", now, err)
		}
		if names, silent := ask(t, o, ""); len(names) != 3 || len(silent) != 0 {
			t.Errorf("%v answered, %v did not", names, silent)
		}

		n.cutOff("op", true)
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		for over := false; !over; {
			e, err := o.Next(ctx)
			if err != nil {
				t.Fatalf("the loss of the Order was not told: %v", err)
			}
			over = e.Kind == order.LeaseOver
		}
		if _, err := o.Holding(t.Context()); muster.KindOf(err) != muster.Conflict {
			t.Errorf("it still holds: %v", err)
		}
		if _, err := o.Query(t.Context(), Query{Method: "status"}, func(Answer) {}); muster.KindOf(err) != muster.Conflict {
			t.Errorf("it still asks: %v", err)
		}
		time.Sleep(10 * time.Second)
		if !idle(all) {
			t.Error("machines are locked after the lease")
		}
	})
}

func TestAMemberThatIsLostIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, n, all := segment(t)
		time.Sleep(20 * time.Second)
		o := l.call("op", n.wire("op"), 0, l.operator.PrivateKey())
		hold(t, l, o, 10*time.Second, 3)
		n.cutOff("b", true)
		_, silent, err := o.Renew(t.Context())
		if err != nil || len(silent) != 1 || silent[0].Name != "b" || silent[0].Code != order.NoAnswer {
			t.Errorf("not renewed: %v, %v", silent, err)
		}
		if names, _ := ask(t, o, ""); !slices.Equal(names, []string{"a", "c"}) {
			t.Errorf("%v answered", names)
		}
		silent, err = o.Release(t.Context())
		if err != nil || len(silent) != 1 || silent[0].Name != "b" {
			t.Fatalf("not released: %v, %v", silent, err)
		}
		if idle(all[1:2]) {
			t.Error("it is free, so that nothing is tested")
		}
		time.Sleep(time.Until(silent[0].Until))
		if !idle(all) {
			t.Error("it is locked for longer than was said")
		}
	})
}

func TestAnInterruptedCallLeavesNothingLocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, n, all := segment(t)
		time.Sleep(20 * time.Second)
		o := l.call("op", n.wire("op"), 0, l.operator.PrivateKey())
		if err := o.Entry(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		n.cutOff("c", true) // so that the Call takes as long as one can
		time.AfterFunc(time.Second, cancel)
		if h, err := o.Call(ctx, CallOptions{}); !errors.Is(err, context.Canceled) {
			t.Fatalf("%v, %v", h, err)
		}
		time.Sleep(time.Second)
		if !idle(all[:2]) {
			t.Error("machines are still locked")
		}
	})
}

func TestCallsInARowAreNotRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, n, _ := segment(t)
		time.Sleep(20 * time.Second)
		o := l.call("op", n.wire("op"), 0, l.operator.PrivateKey())
		for range 6 {
			hold(t, l, o, time.Minute, 3)
			if _, err := o.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestWhoCannotCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, n, _ := segment(t)
		time.Sleep(20 * time.Second)
		looker := l.call("looker", n.wire("op"), 0, nil)
		if err := looker.Entry(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := looker.Call(t.Context(), CallOptions{}); muster.KindOf(err) != muster.Denied {
			t.Errorf("without a key: %v", err)
		}
		peers, err := looker.Peers(t.Context())
		if err != nil || len(peers) != 3 {
			t.Errorf("without a key it sees %v, %v", peers, err)
		}
		o := l.call("op", n.wire("op2"), 0, l.operator.PrivateKey())
		if err := o.Entry(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err = o.Call(t.Context(), CallOptions{CallOptions: order.CallOptions{Scope: "name=nobody"}})
		if muster.KindOf(err) != muster.NothingFound {
			t.Errorf("nothing matches: %v", err)
		}
		alone := l.call("alone", newNetwork().wire("op"), 0, l.operator.PrivateKey())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := alone.Entry(ctx); muster.KindOf(err) != muster.Unavailable {
			t.Errorf("nobody is there: %v", err)
		}
	})
}

func TestAReleaseEndsWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, n, _ := segment(t)
		time.Sleep(20 * time.Second)
		o := l.call("op", n.wire("op"), 0, l.operator.PrivateKey())
		hold(t, l, o, time.Minute, 3)
		n.cutOff("c", true) // so that the query waits for it
		ended := make(chan error)
		go func() {
			_, err := o.Query(t.Context(), Query{Method: "facts", Within: 10 * time.Minute}, func(Answer) {})
			ended <- err
		}()
		time.Sleep(time.Second)
		if _, err := o.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; muster.KindOf(err) != muster.Conflict {
			t.Errorf("the query ended with %v", err)
		}
	})
}
