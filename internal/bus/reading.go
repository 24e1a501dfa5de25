package bus

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/musterfleet/muster"
)

// A reading is a Query under way.
type reading struct {
	c      *Conn
	q      Query
	follow bool
	handle func(Stored) error
	last   uint64 // sequence of the newest message that was handled
}

// errLost says that the broker has sent something which did not arrive, or that
// it has lost the request for more.
var errLost = errors.New("messages were lost on their way")

func (c *Conn) read(ctx context.Context, q Query, follow bool, handle func(Stored) error) error {
	r := reading{c: c, q: q, follow: follow, handle: handle}
	for {
		err := r.attempt(ctx)
		if !errors.Is(err, errLost) {
			return err
		}
		c.log.Debug("reading begins anew", "component", "bus", "stream", q.Stream, "after", r.last, "err", err)
		if !q.Last && r.last > 0 { // of Last, what was handled is left out below
			r.q.From = r.last + 1
		}
	}
}

// attempt reads until the end, or until something was lost.
func (r *reading) attempt(ctx context.Context) error {
	consumer, err := r.c.reader(ctx, r.q)
	if muster.KindOf(err) == muster.Denied {
		return err
	}
	if err != nil {
		return natsError(err, "read stream "+r.q.Stream)
	}
	info := consumer.CachedInfo()
	defer func() {
		if now := consumer.CachedInfo(); now != nil { // the library may have replaced it
			info = now
		}
		r.c.dropConsumer(r.q.Stream, info.Name)
	}()
	if info.NumPending == 0 && !r.follow {
		return nil
	}
	messages, err := consumer.Messages(jetstream.PullMaxBytes(readAhead), jetstream.PullExpiry(2*readerBeat), jetstream.PullHeartbeat(readerBeat))
	if err != nil {
		return natsError(err, "read stream "+r.q.Stream)
	}
	defer messages.Stop()
	idle := idleBeforeEnd
	if r.follow {
		idle = idleFollowing
	}
	watch := lossWatch{consumer: consumer}
	for {
		next, cancel := context.WithTimeout(ctx, idle)
		m, err := messages.Next(jetstream.NextContext(next))
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			watch.look(ctx)
			switch {
			case watch.lost:
				return errLost
			case watch.nothing && !r.follow:
				return nil
			}
			continue
		case err != nil:
			return natsError(err, "read stream "+r.q.Stream)
		}
		md, err := m.Metadata()
		if err != nil {
			return natsError(err, "read stream "+r.q.Stream)
		}
		watch.arrived(md)
		if err := r.take(Stored{m.Subject(), m.Data(), m.Headers(), md.Sequence.Stream, md.Timestamp, md.NumPending}); err != nil {
			return err
		}
		if !r.follow && md.NumPending == 0 {
			return nil
		}
	}
}

// take handles a message once.
func (r *reading) take(s Stored) error {
	if s.Seq <= r.last {
		return nil
	}
	r.last = s.Seq
	return r.handle(s)
}

// How long nothing comes before the broker is asked whether that is right: when
// messages are known to be there, and when they are waited for.
const (
	idleBeforeEnd = 3 * time.Second
	idleFollowing = readerBeat
)

// A lossWatch notices that the newest messages did not arrive, or that the
// request for them did not: a cluster loses what is under way between two of its
// servers when their connection ends or while one learns of a consumer. The
// client library sees a gap only when a later message comes.
type lossWatch struct {
	consumer jetstream.Consumer
	name     string // of the broker's consumer, which the library may replace
	got      uint64 // number of its newest message here
	suspect  bool
	lost     bool
	nothing  bool // is left: what was there has been removed meanwhile
}

func (w *lossWatch) arrived(md *jetstream.MsgMetadata) {
	w.name, w.got, w.suspect = md.Consumer, md.Sequence.Consumer, false
}

// look asks the broker. What it says was sent earlier than its answer, and may be
// behind that in the client only: the second time in a row it is lost.
func (w *lossWatch) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	info, err := w.consumer.Info(ctx)
	if err != nil {
		return // of a connection that ended, its watch tells; of a consumer, the missing beat
	}
	if info.Name != w.name {
		w.name, w.got = info.Name, 0
	}
	again, missing := w.suspect, info.Delivered.Consumer > w.got
	w.suspect = missing || info.NumPending > 0 && info.NumWaiting == 0
	w.lost = again && w.suspect
	w.nothing = !missing && info.NumPending == 0
}

// readAhead is how many bytes the broker may send ahead. Counted in messages, as
// it would be otherwise, large ones exceed what a broker keeps for one
// connection (64 MiB by default), and it closes that.
const readAhead = 8 << 20

// readerBeat is how often the broker says that there is nothing to read. After
// two that are missing the consumer is made anew, which nothing interrupts for
// half a minute: by then, whoever watches over the connection has closed it.
const readerBeat = 20 * time.Second

// resetTries is how often a consumer is made anew that the broker does not
// serve any more. Without a bound this goes on when the connection has ended.
const resetTries = 3

func (c *Conn) reader(ctx context.Context, q Query) (consumer jetstream.Consumer, err error) {
	err = c.patiently(ctx, requestTimeout, func(ctx context.Context) error {
		return c.permitted(ctx, q.Stream, func(ctx context.Context) error {
			consumer, err = c.js.OrderedConsumer(ctx, q.Stream, q.config())
			return err
		})
	})
	return consumer, err
}

// dropConsumer is a courtesy: the broker would drop it a minute later.
func (c *Conn) dropConsumer(stream, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := c.js.DeleteConsumer(ctx, stream, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		c.log.Debug("consumer was not removed", "component", "bus", "stream", stream, "err", err)
	}
}
