package client

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// A Link is news of the way to the broker, while something is followed.
type Link struct {
	Lost  bool      // the broker is away; otherwise it is back
	Since time.Time // by this machine's clock: when its connection ended or it was last heard of; or heard of again
	Err   error     // what the connection said; nil when it only is silent
}

// A silent broker is asked for a sign of life, and is away when none comes. A
// link that lets nothing through shows in no other way for a minute, and a
// connection over it may stay silent for as long again when the link is back:
// after giveUp a new one is tried.
const (
	probeEvery = 5 * time.Second
	probeWait  = 5 * time.Second
	giveUp     = 10 * time.Second // from the question
)

var errSilent = muster.Errorf(muster.Unavailable, "the broker is silent")

// A handlerError is what the code said that something is followed for: it ends
// the following, whatever its kind.
type handlerError struct{ err error }

func (e *handlerError) Error() string { return e.err.Error() }
func (e *handlerError) Unwrap() error { return e.err }

// handled marks an error of a handler.
func handled(err error) error {
	if err == nil {
		return nil
	}
	return &handlerError{err}
}

// A linkWatch follows streams, and tells of the loss and the return of the
// broker, once each.
type linkWatch struct {
	tell  func(Link) error
	heard time.Time // of the broker
	lost  bool
}

// lose tells that the broker is away, unless that is known.
func (w *linkWatch) lose(err error) error {
	if w.lost {
		return nil
	}
	w.lost = true
	since := w.heard
	if err != nil {
		since = time.Now() // a connection that is idle is there until it ends
	}
	return handled(w.tell(Link{Lost: true, Since: since, Err: err}))
}

// hear notes a sign of life.
func (w *linkWatch) hear() error {
	w.heard = time.Now()
	if !w.lost {
		return nil
	}
	w.lost = false
	return handled(w.tell(Link{Since: w.heard}))
}

// A reading is a stream that is followed.
type reading struct {
	query bus.Query
	take  func(bus.Stored) error
}

// follow calls take for what the streams have, one after the other, and tick
// every second while the broker is there, until ctx or the connection ends or
// one of them returns an error, which is then a handlerError.
func (w *linkWatch) follow(ctx context.Context, conn *bus.Conn, readings []reading, tick func(now time.Time) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	calls := make(chan func() error)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	for _, r := range readings {
		wg.Go(func() {
			cancel(conn.Follow(ctx, r.query, func(m bus.Stored) error {
				select {
				case calls <- func() error { return r.take(m) }:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}))
		})
	}
	ticker, probe := time.NewTicker(time.Second), &prober{conn: conn, answer: make(chan error, 1)}
	defer ticker.Stop()
	defer probe.wg.Wait()
	defer cancel(nil)
	for {
		var err error
		select {
		case call := <-calls:
			if err = w.hear(); err == nil {
				err = handled(call())
				w.heard = time.Now() // however long that took
			}
		case failed := <-probe.answer:
			if probe.asked = (time.Time{}); failed == nil {
				err = w.hear()
			}
		case now := <-ticker.C:
			if err = probe.tick(ctx, w, now); err == nil && !w.lost {
				err = handled(tick(now))
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// A prober asks the broker for signs of life while nothing else comes.
type prober struct {
	conn   *bus.Conn
	answer chan error
	asked  time.Time // zero: no question is open
	wg     sync.WaitGroup
}

// tick looks at the time; the end of ctx ends the open question.
func (p *prober) tick(ctx context.Context, w *linkWatch, now time.Time) error {
	silent := now.Sub(w.heard)
	if p.asked.IsZero() {
		if silent >= probeEvery {
			p.asked = now
			p.wg.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, 2*giveUp) // more than it is waited for
				defer cancel()
				p.answer <- p.conn.Flush(ctx)
			})
		}
		return nil
	}
	asked := now.Sub(p.asked)
	if asked < probeWait || silent < probeWait {
		return nil
	}
	if err := w.lose(nil); err != nil {
		return err
	}
	if asked < giveUp || silent < giveUp {
		return nil
	}
	p.conn.Close()
	return errSilent
}

// A backoff is the pause between attempts, which begins anew after one that
// held for a while.
type backoff struct {
	attempt int
	began   time.Time
}

func (b *backoff) begin() { b.began = time.Now() }

// wait pauses before the next attempt, unless ctx ends.
func (b *backoff) wait(ctx context.Context) bool {
	if time.Since(b.began) > 2*retryMost {
		b.attempt = 0
	}
	b.attempt++
	return pause(ctx, b.attempt-1)
}

// again calls attempt with a connection, over and over while the broker is
// away, until ctx ends or it returns anything else.
func (w *linkWatch) again(ctx context.Context, c *Client, attempt func(*bus.Conn) error) error {
	var pace backoff
	for {
		pace.begin()
		conn, _, err := c.connection(ctx)
		if err == nil {
			err = attempt(conn)
		}
		kind := muster.KindOf(err)
		switch h, ok := errors.AsType[*handlerError](err); {
		case ok:
			return h.err
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case kind != muster.Unavailable && kind != muster.Interrupted:
			return err
		}
		if h, ok := errors.AsType[*handlerError](w.lose(err)); ok {
			return h.err
		}
		if !pace.wait(ctx) {
			return ctx.Err()
		}
	}
}
