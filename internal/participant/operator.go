package participant

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/order"
)

// A Who is one machine's part in something.
type Who struct {
	ID   order.NodeID
	Name string // "" as long as nobody has told it
	Code order.Code

	Until time.Time // of one that did not hear a release: when it is free at the latest
}

// Label is the name, or the id of a machine whose name is not known.
func (w Who) Label() string {
	if w.Name != "" {
		return w.Name
	}
	return w.ID.String()
}

// A Holding is an Order that is held.
type Holding struct {
	Order   order.OrderID
	Lease   time.Duration
	Until   time.Time // when it ends, if nothing renews it
	Members []Who
	Absent  []Who // who was asked and did not join, and why
}

// A Query asks members of the Order to run a method.
type Query struct {
	Selector string // which members; empty: all
	Method   string
	Args     []byte
	Within   time.Duration // for all answers; 0: 3 s
}

// An Answer is what one member answered to a query.
type Answer struct {
	Who
	Data []byte
}

// A Held is an Order, in this process or in another one of this machine.
type Held interface {
	// Holding returns the Order, an error of kind Conflict without one.
	Holding(ctx context.Context) (Holding, error)
	// Query calls each with every answer as it comes, and returns the members
	// that gave none, with the reason.
	Query(ctx context.Context, q Query, each func(Answer)) (silent []Who, err error)
	// Renew extends the lease, and returns the members that did not hear of it.
	Renew(ctx context.Context) (h Holding, silent []Who, err error)
	// Release ends the Order, and returns who has not said that it heard of it:
	// their leases end by themselves.
	Release(ctx context.Context) (silent []Who, err error)
}

// A Notice is an event that the holder of an Order wants to know at once. Node
// names are looked up.
type Notice struct {
	order.Event
	Name   string // of Node
	Silent []Who  // of RenewDone: the members that did not hear of it
}

// OperatorOptions say who looks or calls.
type OperatorOptions struct {
	Config   order.Config       // Seed from a secure source; ID at random
	Key      ed25519.PrivateKey // nil for somebody who only looks
	Carriers []Carrier
	// Settle is how long Entry waits for a further neighbour; default 40 ms.
	Settle time.Duration
	// Log, if there is one, takes what a person should see. It must not block.
	Log func(message string)
}

// An Operator is the place on the network of somebody who looks, or calls. Its
// methods may be called from several goroutines.
type Operator struct {
	loop   *Loop
	caller *order.Caller // belongs to the loop's goroutine
	able   bool          // there is a key
	settle time.Duration

	mu      sync.Mutex // guards what follows
	names   map[order.NodeID]string
	waits   map[*wait]bool
	holding Holding // Order is zero without one
	notices []Notice
	noticed chan struct{} // has one when notices are new
	changed chan struct{} // has one when the next renewal is another
}

var _ Held = (*Operator)(nil)

// A wait collects the events of one wave.
type wait struct {
	order  order.OrderID
	seq    uint32
	call   bool // the end of a Call is awaited
	events []order.Event
	wake   chan struct{}
}

func (w *wait) wants(e order.Event) bool {
	switch e.Kind {
	case order.CallWon, order.CallLost:
		return w.call && e.Order == w.order
	case order.Answered, order.QueryDone, order.RenewDone, order.ReleaseDone:
		return !w.call && e.Order == w.order && e.Seq == w.seq
	case order.LeaseOver:
		return !w.call && e.Order == w.order
	}
	return false
}

// maxNotices bounds what waits for somebody who does not listen.
const maxNotices = 1000

// NewOperator returns an operator. Run has to follow.
func NewOperator(opts OperatorOptions) (*Operator, error) {
	key := opts.Key
	if key == nil {
		key = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)) // signs nothing: Call refuses
	}
	caller, err := order.NewCaller(opts.Config, key, time.Now())
	if err != nil {
		return nil, err
	}
	o := &Operator{caller: caller, able: opts.Key != nil, settle: cmp.Or(opts.Settle, entrySettle), names: map[order.NodeID]string{}, waits: map[*wait]bool{},
		noticed: make(chan struct{}, 1), changed: make(chan struct{}, 1)}
	o.loop, err = New(Options{Node: caller.Node, Carriers: opts.Carriers, Event: o.happened, Log: opts.Log})
	return o, err
}

// Run keeps the operator on the network, and renews an Order that is held when
// half of its lease is over. It ends with the context, and releases nothing.
func (o *Operator) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var renewals sync.WaitGroup
	defer renewals.Wait()
	renewals.Go(func() { o.keepRenewing(ctx) })
	err := o.loop.Run(ctx)
	cancel()
	return err
}

// happened takes the events, in the loop's goroutine.
func (o *Operator) happened(e order.Event) {
	peers := o.peersNamed(e)
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range peers {
		o.names[p.ID] = p.Name
	}
	switch e.Kind {
	case order.CallWon:
		o.holding = Holding{Order: e.Order, Lease: o.holding.Lease, Until: e.Until, Members: o.who(e.Members), Absent: o.who(e.Absent)}
		nudge(o.changed)
	case order.RenewDone:
		o.holding.Until = e.Until
		nudge(o.changed)
	case order.LeaseOver:
		o.holding = Holding{}
		nudge(o.changed)
	}
	for w := range o.waits {
		if w.wants(e) {
			w.events = append(w.events, e)
			nudge(w.wake)
		}
	}
	o.notice(e)
}

// notice keeps what the holder wants to know. The mutex is held.
func (o *Operator) notice(e order.Event) {
	n := Notice{Event: e, Name: o.names[e.Node]}
	switch e.Kind {
	case order.RenewDone:
		n.Silent = o.missing(e.Members)
	case order.NeighbourUp, order.NeighbourDown, order.LeaseOver:
	default:
		return
	}
	if len(o.notices) < maxNotices {
		o.notices = append(o.notices, n)
	}
	nudge(o.noticed)
}

// peersNamed returns the peers whose names are of use now: looking them all up
// at each answer would cost too much.
func (o *Operator) peersNamed(e order.Event) []order.Peer {
	switch e.Kind {
	case order.CallWon, order.CallLost, order.NeighbourUp, order.NeighbourDown:
		return slices.DeleteFunc(o.caller.Peers(), func(p order.Peer) bool { return p.Name == "" })
	}
	return nil
}

// missing returns the members of the Order that are not in a list. The mutex is
// held.
func (o *Operator) missing(from []order.Member) []Who {
	var all []Who
	for _, m := range o.holding.Members {
		if !slices.ContainsFunc(from, func(x order.Member) bool { return x.ID == m.ID }) {
			m.Code = order.NoAnswer
			all = append(all, m)
		}
	}
	return all
}

// who gives members their names, and sorts by them. The mutex is held.
func (o *Operator) who(members []order.Member) []Who {
	all := make([]Who, 0, len(members))
	for _, m := range members {
		all = append(all, Who{ID: m.ID, Name: o.names[m.ID], Code: m.Code})
	}
	slices.SortFunc(all, byLabel)
	return all
}

func byLabel(a, b Who) int {
	return cmp.Or(strings.Compare(a.Label(), b.Label()), bytes.Compare(a.ID[:], b.ID[:]))
}

// Learn notes the name of a machine, which an answer of it may tell: frames carry
// ids, and the names of neighbours only are known from their HELLOs.
func (o *Operator) Learn(id order.NodeID, name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.names[id] = name
	for _, list := range [][]Who{o.holding.Members, o.holding.Absent} {
		for i := range list {
			if list[i].ID == id {
				list[i].Name = name
			}
		}
		slices.SortFunc(list, byLabel)
	}
}

// Next returns the next notice.
func (o *Operator) Next(ctx context.Context) (Notice, error) {
	for {
		o.mu.Lock()
		if len(o.notices) > 0 {
			n := o.notices[0]
			o.notices = o.notices[1:]
			o.mu.Unlock()
			return n, nil
		}
		o.mu.Unlock()
		select {
		case <-ctx.Done():
			return Notice{}, ctx.Err()
		case <-o.noticed:
		}
	}
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Peers returns who was heard of.
func (o *Operator) Peers(ctx context.Context) ([]order.Peer, error) {
	var all []order.Peer
	err := o.loop.Do(ctx, func(time.Time) { all = o.caller.Peers() })
	return all, err
}

// Times of finding an entry.
const (
	entryLook   = 3 * time.Millisecond  // between looks
	entrySettle = 40 * time.Millisecond // without a further neighbour, before the wait ends, unless told otherwise
)

// Entry waits until an agent takes waves, and a moment longer for more of them if
// there may be more, since one may die. The end of the context without any is an error of kind
// Unavailable.
func (o *Operator) Entry(ctx context.Context) error {
	tick := time.NewTicker(entryLook)
	defer tick.Stop()
	count, last := 0, time.Now()
	for {
		now, all := 0, false
		if err := o.loop.Do(ctx, func(time.Time) { now, all = o.caller.Neighbours(), o.caller.Settled() }); err == nil && now != count {
			count, last = now, time.Now()
		}
		all = all && len(o.loop.o.Carriers) == 1 // another carrier may bring more
		if count > 0 && (all || time.Since(last) >= o.settle) {
			return nil
		}
		select {
		case <-ctx.Done():
			if count > 0 {
				return nil
			}
			return muster.Errorf(muster.Unavailable, "no agent of this constellation answers")
		case <-tick.C:
		}
	}
}
