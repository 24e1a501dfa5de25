package participant

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/order"
)

// CallOptions say what to call for, and how often.
type CallOptions struct {
	order.CallOptions
	Retries int // further Calls after one that another operator won
	// Again, if there is one, is told before each of them: why, and after what
	// pause.
	Again func(why error, pause time.Duration)
}

// A LostError says why a Call did not become an Order.
type LostError struct {
	Order  order.OrderID
	Rival  order.OrderID // in whose favour; zero if it was not a conflict
	Holder string        // the name of the rival's operator, if it is known
	Held   bool          // some machine is in the rival's Order, and not only called
	Absent []Who
	pause  time.Duration
}

// Error says what stands in the way.
func (e *LostError) Error() string {
	holder := ""
	if e.Holder != "" {
		holder = " of " + e.Holder
	}
	switch {
	case e.Rival != order.OrderID{} && e.Held:
		return "machines are in order " + short(e.Rival) + holder
	case e.Rival != order.OrderID{}:
		return "order " + short(e.Rival) + holder + " is called for at the same time"
	case len(e.Absent) > 0 && e.all(order.NotSelected):
		return "no machine in reach matches the selector"
	}
	return "no machine joined"
}

func (e *LostError) all(code order.Code) bool {
	return !slices.ContainsFunc(e.Absent, func(w Who) bool { return w.Code != code })
}

// rationed reports whether the agents had enough Calls of this operator, which
// many commands in a row bring about.
func (e *LostError) rationed() bool {
	return e.Rival == order.OrderID{} && len(e.Absent) > 0 && e.all(order.Refused)
}

// As makes the error one of muster, which has a kind and a hint.
func (e *LostError) As(target any) bool {
	t, ok := target.(**muster.Error)
	if !ok {
		return false
	}
	kind, hint := muster.Unavailable, "'muster order neighbours' shows who is there"
	switch {
	case e.Rival != order.OrderID{} && e.Held:
		kind, hint = muster.Conflict, "'muster order status' shows which; --retry waits for them, -t leaves them out; --break-glass does not help against an order"
	case e.Rival != order.OrderID{}:
		kind, hint = muster.Conflict, "--retry tries again after a random pause; --break-glass goes before other calls, never before an order"
	case len(e.Absent) > 0 && e.all(order.NotSelected):
		kind, hint = muster.NothingFound, "'muster order neighbours' shows who is there"
	case len(e.Absent) > 0 && e.all(order.Clock):
		hint = "compare the clocks: a call is at most 30 s old, and a machine does not obey one that is older than its agent's start"
	case e.rationed():
		hint = "an operator may call twice a second: try again in a moment"
	}
	*t = muster.Errorf(kind, "%s", e.Error()).WithHint("%s", hint)
	return true
}

// short is the beginning of an order's id, enough to tell those of one day apart.
func short(id order.OrderID) string { return id.String()[:12] }

// rationedTries are the further Calls when agents had enough of them.
const rationedTries = 3

// Call asks the machines in reach to be locked to this operator. The end of the
// context does not leave a Call behind: it is brought to its decision, and what
// was won is released.
func (o *Operator) Call(ctx context.Context, opts CallOptions) (Holding, error) {
	if !o.able {
		return Holding{}, muster.Errorf(muster.Denied, "only an operator can call, and there is no operator's file").
			WithHint("--operator FILE names it; 'muster order keygen' has made it")
	}
	for conflicts, rationed := 0, 0; ; {
		h, err := o.callOnce(ctx, opts.CallOptions)
		lost, _ := errors.AsType[*LostError](err)
		switch {
		case lost == nil:
			return h, err
		case lost.rationed() && rationed < rationedTries:
			rationed++
		case lost.Rival != order.OrderID{} && conflicts < opts.Retries:
			conflicts++
			if opts.Again != nil {
				opts.Again(err, lost.pause)
			}
		default:
			return h, err
		}
		if err := pause(ctx, lost.pause); err != nil {
			return Holding{}, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func (o *Operator) callOnce(ctx context.Context, opts order.CallOptions) (Holding, error) {
	w, err := o.begin(ctx, true, func(now time.Time) (order.OrderID, uint32, error) {
		id, err := o.caller.Call(now, opts)
		if err == nil {
			o.mu.Lock()
			o.holding = Holding{Lease: cmp.Or(opts.Lease, time.Minute)}
			o.mu.Unlock()
		}
		return id, 0, err
	})
	if err != nil {
		return Holding{}, err
	}
	defer o.forget(w)
	// A Call decides within seconds; half of one would leave machines locked.
	e, err := o.event(context.WithoutCancel(ctx), w)
	if err != nil {
		return Holding{}, err
	}
	if e.Kind == order.CallLost {
		return Holding{}, o.lost(e)
	}
	h, err := o.Holding(ctx)
	if ctx.Err() != nil {
		_, released := o.Release(context.WithoutCancel(ctx))
		return Holding{}, errors.Join(ctx.Err(), released)
	}
	return h, err
}

// lost explains a Call that was lost.
func (o *Operator) lost(e order.Event) error {
	l := &LostError{Order: e.Order, Rival: e.Rival, pause: e.Backoff}
	for until := time.Now().Add(holderWait); ; {
		if err := o.rival(l); err != nil {
			return err
		}
		if (e.Rival == order.OrderID{}) || l.Holder != "" || time.Now().After(until) {
			break
		}
		if err := pause(context.Background(), holderWait/25); err != nil {
			return err
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	l.Absent = o.who(e.Absent)
	return l
}

// holderWait is how long who the rival is may stay unknown before the loss is told
// without it: the agent that refuses may be faster than the one that passes the
// rival's word on.
const holderWait = 500 * time.Millisecond

// rival tells of a lost Call what is known of the other operator.
func (o *Operator) rival(l *LostError) error {
	var peers []order.Peer
	if err := o.loop.Do(context.Background(), func(time.Time) { peers = o.caller.Peers() }); err != nil {
		return err
	}
	for _, p := range peers {
		switch {
		case p.Order != l.Rival || l.Rival == order.OrderID{}:
		case p.Role == order.RoleCaller:
			l.Holder = p.Name
		case p.State == order.Ordered:
			l.Held = true
		}
	}
	return nil
}

// Holding returns the Order that is held.
func (o *Operator) Holding(context.Context) (Holding, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if (o.holding.Order == order.OrderID{}) {
		return Holding{}, errNoOrder
	}
	h := o.holding
	h.Members, h.Absent = slices.Clone(h.Members), slices.Clone(h.Absent)
	return h, nil
}

var errNoOrder = muster.Errorf(muster.Conflict, "no order is held any more").WithHint("its lease may be over: call again")

// begin starts a wave in the loop's goroutine, and collects its events.
func (o *Operator) begin(ctx context.Context, call bool, start func(time.Time) (order.OrderID, uint32, error)) (*wait, error) {
	w := &wait{call: call, wake: make(chan struct{}, 1)}
	var err error
	did := o.loop.Do(ctx, func(now time.Time) {
		if w.order, w.seq, err = start(now); err == nil {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.waits[w] = true
		}
	})
	return w, errors.Join(did, err)
}

func (o *Operator) forget(w *wait) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.waits, w)
}

// event returns the next event of a wait.
func (o *Operator) event(ctx context.Context, w *wait) (order.Event, error) {
	for {
		o.mu.Lock()
		if len(w.events) > 0 {
			e := w.events[0]
			w.events = w.events[1:]
			o.mu.Unlock()
			return e, nil
		}
		o.mu.Unlock()
		select {
		case <-ctx.Done():
			return order.Event{}, ctx.Err()
		case <-o.loop.done:
			return order.Event{}, muster.Errorf(muster.Interrupted, "this participant has stopped")
		case <-w.wake:
		}
	}
}

// Query runs a method on members of the Order.
func (o *Operator) Query(ctx context.Context, q Query, each func(Answer)) ([]Who, error) {
	h, err := o.Holding(ctx)
	if err != nil {
		return nil, err
	}
	w, err := o.begin(ctx, false, func(now time.Time) (order.OrderID, uint32, error) {
		seq, err := o.caller.Query(now, q.Selector, q.Method, q.Args, q.Within)
		return h.Order, seq, err
	})
	if err != nil {
		return nil, err
	}
	defer o.forget(w)
	answered := map[order.NodeID]bool{}
	for {
		e, err := o.event(ctx, w)
		switch {
		case err != nil:
			return nil, err
		case e.Kind == order.LeaseOver:
			return o.silent(h, answered, nil), errNoOrder
		case e.Kind == order.QueryDone:
			return o.silent(h, answered, e.Absent), nil
		}
		answered[e.Member.ID] = true
		o.mu.Lock()
		who := o.who([]order.Member{e.Member})[0]
		o.mu.Unlock()
		each(Answer{who, e.Data})
	}
}

// silent returns the members that did not answer, without those that the
// selector does not match.
func (o *Operator) silent(h Holding, answered map[order.NodeID]bool, absent []order.Member) []Who {
	var all []Who
	for _, m := range h.Members {
		if answered[m.ID] {
			continue
		}
		m.Code = order.NoAnswer
		if i := slices.IndexFunc(absent, func(a order.Member) bool { return a.ID == m.ID }); i >= 0 {
			m.Code = absent[i].Code
		}
		if m.Code != order.NotSelected {
			all = append(all, m)
		}
	}
	return all
}

// Renew extends the lease of all members from now on.
func (o *Operator) Renew(ctx context.Context) (Holding, []Who, error) {
	w, err := o.later(ctx, o.caller.Renew)
	if err != nil {
		return Holding{}, nil, err
	}
	defer o.forget(w)
	e, err := o.event(ctx, w)
	if err == nil && e.Kind == order.LeaseOver {
		err = errNoOrder
	}
	if err != nil {
		return Holding{}, nil, err
	}
	o.mu.Lock()
	silent := o.missing(e.Members)
	o.mu.Unlock()
	h, err := o.Holding(ctx)
	return h, silent, err
}

// Release ends the Order.
func (o *Operator) Release(ctx context.Context) ([]Who, error) {
	w, err := o.later(ctx, o.caller.Release)
	if err != nil {
		return nil, err
	}
	defer o.forget(w)
	o.abandon(w)
	e, err := o.event(ctx, w)
	o.mu.Lock()
	defer o.mu.Unlock()
	silent := o.who(e.Absent)
	for i := range silent {
		silent[i].Until = e.Until
	}
	o.holding = Holding{}
	nudge(o.changed)
	return silent, err
}

// abandon ends the waits for an Order that is being released: members stop what
// they do for it, and answer no more.
func (o *Operator) abandon(release *wait) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for w := range o.waits {
		if w != release && w.order == release.order {
			w.events = append(w.events, order.Event{Kind: order.LeaseOver, Order: w.order})
			nudge(w.wake)
		}
	}
}

// later sends a wave of the Order that is held.
func (o *Operator) later(ctx context.Context, send func(time.Time) (uint32, error)) (*wait, error) {
	return o.begin(ctx, false, func(now time.Time) (order.OrderID, uint32, error) {
		id := o.caller.Order()
		seq, err := send(now)
		return id, seq, err
	})
}

// minRenew is the shortest pause between renewals, when they fail.
const minRenew = 500 * time.Millisecond

// keepRenewing renews when half of the lease is over, and after a failure when
// half of the rest is.
func (o *Operator) keepRenewing(ctx context.Context) {
	for ctx.Err() == nil {
		o.mu.Lock()
		h := o.holding
		o.mu.Unlock()
		if (h.Order == order.OrderID{}) {
			select {
			case <-ctx.Done():
			case <-o.changed:
			}
			continue
		}
		t := time.NewTimer(max(minRenew, time.Until(h.Until)/2))
		select {
		case <-ctx.Done():
		case <-o.changed:
		case <-t.C:
			// What comes of it is told as an event; a lost Order too.
			_, _, _ = o.Renew(ctx)
		}
		t.Stop()
	}
}
