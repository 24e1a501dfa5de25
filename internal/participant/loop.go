package participant

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/order"
)

// A Carrier takes frames to other participants and brings theirs. It seals what
// it sends and opens what it hands up. Send and Multicast may be called from the
// Receiver's methods, do not block, and do not keep the frame; what cannot be
// sent is lost, which the protocol survives.
type Carrier interface {
	// Scheme is what the carrier's addresses begin with, a slash included. The
	// one with the empty scheme has all other addresses. The carrier itself never
	// sees it.
	Scheme() string
	Send(to order.Address, frame []byte)
	Multicast(frame []byte)
	// Run brings frames until the context ends, and waits for all that it started.
	Run(ctx context.Context, r Receiver) error
}

// A Receiver takes what a Carrier brings. Its methods do not block.
type Receiver interface {
	// Receive takes a frame, which the carrier may use again afterwards.
	Receive(from order.Address, frame []byte)
	// Link makes an address a neighbour, whoever is there: a connection that is
	// up now. It may be told again and again.
	Link(order.Address)
}

// Bounds of what waits for the loop.
const (
	maxFrames     = 256
	maxFrameBytes = 256 << 10
	maxLinks      = 4096             // all nodes of a fleet, over its broker
	linkLife      = 10 * time.Minute // without a frame
	saveRetry     = time.Second
	maxLockFile   = 4 << 10
)

// Options say what a Loop drives.
type Options struct {
	Node     *order.Node // of an order.Caller: the one in it
	Carriers []Carrier   // at least one
	// Lock is the file that keeps the node's lock over a restart of the program,
	// on a RAM disk. Empty for a caller, which has no lock.
	Lock string
	// Execute runs a query and returns its answer. It is called in a goroutine of
	// its own; the context ends at the query's deadline, with its Order, and with
	// the loop. nil denies all.
	Execute func(context.Context, order.Query) (order.Code, []byte)
	// Event, if there is one, is told what happens, by the goroutine that owns the
	// node: it must not block, nor call Do.
	Event func(order.Event)
	// Log, if there is one, takes what a person should see. It must not block.
	Log func(message string)
}

// A Loop owns a participant while Run runs. Its methods may be called from
// several goroutines.
type Loop struct {
	o        Options
	node     *order.Node
	frames   chan arrival
	waiting  atomic.Int64 // bytes of the frames that wait
	dropped  atomic.Uint64
	requests chan func(time.Time)
	done     chan struct{} // closed when nobody takes requests any more
	queries  sync.WaitGroup

	// What follows belongs to Run's goroutine.
	unsaved *[]byte // the lock's file, that could not be written yet
	retry   time.Time
	orders  map[order.OrderID]*execution
	links   map[order.Address]time.Time // when the last frame came
	swept   time.Time
}

type arrival struct {
	from  order.Address
	frame order.Frame
	size  int
	link  bool // no frame, but a link that is up
}

// An execution is what goes on for one Order.
type execution struct {
	ctx    context.Context
	cancel context.CancelFunc
}

// New returns a loop. Run has to follow.
func New(o Options) (*Loop, error) {
	if o.Node == nil || len(o.Carriers) == 0 {
		return nil, muster.Errorf(muster.Internal, "a participant needs a node and a carrier")
	}
	return &Loop{o: o, node: o.Node, frames: make(chan arrival, maxFrames), requests: make(chan func(time.Time)),
		done: make(chan struct{}), orders: map[order.OrderID]*execution{}, links: map[order.Address]time.Time{}}, nil
}

// Run drives the participant until the context ends, or a carrier fails. Then it
// stops queries and carriers, and waits for them. It may be called once.
func (l *Loop) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, len(l.o.Carriers))
	for _, c := range l.o.Carriers {
		go func() { failed <- c.Run(ctx, receiver{l, c.Scheme()}) }()
	}
	errs := make([]error, 0, len(l.o.Carriers))
	err, ended := l.drive(ctx, failed)
	if ended {
		errs = append(errs, err)
	}
	cancel()
	close(l.done)
	l.queries.Wait()
	for len(errs) < len(l.o.Carriers) {
		errs = append(errs, <-failed)
	}
	return errors.Join(errs...)
}

// drive is the loop: it returns when the context ends, or with a carrier's error
// when that ended.
func (l *Loop) drive(ctx context.Context, failed <-chan error) (err error, carrier bool) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(time.Until(l.carryOut(ctx)))
		select {
		case <-ctx.Done():
			return nil, false
		case err := <-failed:
			return err, true
		case a := <-l.frames:
			l.arrived(time.Now(), a)
		case f := <-l.requests:
			f(time.Now())
		case <-timer.C:
			now := time.Now()
			l.node.Tick(now)
			l.sweep(now)
		}
	}
}

func (l *Loop) arrived(now time.Time, a arrival) {
	l.waiting.Add(-int64(a.size))
	_, linked := l.links[a.from]
	if linked || a.link && len(l.links) < maxLinks {
		l.links[a.from] = now
	}
	switch {
	case !a.link:
		l.node.Receive(now, a.from, a.frame)
	case !linked:
		l.node.AddPeer(now, a.from)
	}
}

// sweep forgets links that are silent: their connections are gone.
func (l *Loop) sweep(now time.Time) {
	if now.Sub(l.swept) < linkLife/10 {
		return
	}
	l.swept = now
	for addr, heard := range l.links {
		if now.Sub(heard) >= linkLife {
			delete(l.links, addr)
			l.node.RemovePeer(addr)
		}
	}
}

// carryOut does what the node wants done, and returns when it is to be asked
// again. While the lock cannot be kept the node is silent and executes nothing:
// what it says could turn out to be forgotten.
func (l *Loop) carryOut(ctx context.Context) time.Time {
	for r := l.node.Ready(); !r.Empty(); r = l.node.Ready() {
		l.keep(r.Save)
		for _, s := range r.Sends {
			if l.unsaved == nil {
				l.send(s)
			}
		}
		for _, q := range r.Executes {
			if l.unsaved == nil {
				l.execute(ctx, q)
			} else {
				l.node.Finished(time.Now(), q.Order, q.Seq, order.Failed, []byte("the lock cannot be kept"))
			}
		}
		for _, e := range r.Events {
			l.happened(e)
		}
	}
	next := l.node.Next()
	if l.unsaved != nil {
		l.keep(nil)
		if l.unsaved != nil && l.retry.Before(next) {
			next = l.retry
		}
	}
	return next
}

// keep writes the lock's file if it changed, or if that failed a while ago.
func (l *Loop) keep(save *[]byte) {
	now := time.Now()
	switch {
	case save != nil:
		l.unsaved = save
	case l.unsaved == nil || now.Before(l.retry):
		return
	}
	if l.o.Lock == "" {
		l.unsaved = nil
		return
	}
	if err := writeLock(l.o.Lock, *l.unsaved); err != nil {
		l.retry = now.Add(saveRetry)
		l.log("the lock cannot be kept, so that this node says nothing: " + err.Error())
		return
	}
	l.unsaved = nil
}

func (l *Loop) send(s order.Send) {
	frame, err := order.Encode(s.Frame)
	if err != nil {
		l.log("a frame was not sent: " + err.Error())
		return
	}
	if s.To == order.Multicast {
		for _, c := range l.o.Carriers {
			c.Multicast(frame)
		}
		return
	}
	c, to := l.route(s.To)
	if c != nil {
		c.Send(to, frame)
	}
}

// route returns the carrier of an address, and the address as the carrier knows it.
func (l *Loop) route(a order.Address) (Carrier, order.Address) {
	var other Carrier
	for _, c := range l.o.Carriers {
		scheme := c.Scheme()
		if rest, ok := strings.CutPrefix(string(a), scheme); ok && scheme != "" {
			return c, order.Address(rest)
		}
		if scheme == "" {
			other = c
		}
	}
	return other, a
}

func (l *Loop) execute(ctx context.Context, q order.Query) {
	e := l.orders[q.Order]
	if e == nil {
		e = &execution{}
		e.ctx, e.cancel = context.WithCancel(ctx)
		l.orders[q.Order] = e
	}
	l.queries.Go(func() {
		ctx, cancel := context.WithDeadline(e.ctx, q.Deadline)
		defer cancel()
		code, data := order.Denied, []byte(nil)
		if l.o.Execute != nil {
			code, data = l.o.Execute(ctx, q)
		}
		l.request(func(now time.Time) { l.node.Finished(now, q.Order, q.Seq, code, data) })
	})
}

func (l *Loop) happened(e order.Event) {
	if x := l.orders[e.Order]; e.Kind == order.Freed && x != nil {
		x.cancel() // nothing of an Order goes on after it
		delete(l.orders, e.Order)
	}
	if l.o.Event != nil {
		l.o.Event(e)
	}
}

// Do has f run by the goroutine that owns the node, and returns when it has run.
// What follows from it, the loop carries out then. f must not block, nor call Do.
func (l *Loop) Do(ctx context.Context, f func(now time.Time)) error {
	ran := make(chan struct{})
	select {
	case <-ctx.Done():
		return muster.Errorf(muster.Interrupted, "stopped before the request was made: %w", context.Cause(ctx))
	case <-l.done:
		return muster.Errorf(muster.Interrupted, "this participant has stopped")
	case l.requests <- func(now time.Time) { defer close(ran); f(now) }:
		<-ran
		return nil
	}
}

// request is Do for those that Run waits for.
func (l *Loop) request(f func(time.Time)) {
	select {
	case <-l.done:
	case l.requests <- f:
	}
}

// Dropped returns how many frames were lost here since there was no room.
func (l *Loop) Dropped() uint64 { return l.dropped.Load() }

func (l *Loop) log(message string) {
	if l.o.Log != nil {
		l.o.Log(message)
	}
}

// A receiver takes what one carrier brings.
type receiver struct {
	loop   *Loop
	scheme string
}

func (r receiver) address(a order.Address) order.Address {
	return order.Address(r.scheme) + a
}

// Receive decodes here, so that the loop has to do with good frames only.
func (r receiver) Receive(from order.Address, frame []byte) {
	f, err := order.Decode(frame)
	if err != nil {
		r.loop.dropped.Add(1)
		return
	}
	r.loop.put(arrival{from: r.address(from), frame: f, size: len(frame)})
}

func (r receiver) Link(a order.Address) { r.loop.put(arrival{from: r.address(a), link: true}) }

// put gives the loop something to do, if there is room.
func (l *Loop) put(a arrival) {
	if l.waiting.Add(int64(a.size)) <= maxFrameBytes {
		select {
		case l.frames <- a:
			return
		default:
		}
	}
	l.waiting.Add(-int64(a.size))
	l.dropped.Add(1)
}
