package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/delivery"
)

// A link is the pipeline of the current session, if there is one.
type link struct {
	mu      sync.Mutex // guards the fields below
	p       *bus.Pipeline
	changes chan struct{} // closed and replaced at each change
}

func newLink() *link { return &link{changes: make(chan struct{})} }

func (l *link) set(p *bus.Pipeline) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.p = p
	close(l.changes)
	l.changes = make(chan struct{})
}

func (l *link) get() (*bus.Pipeline, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.p, l.changes
}

// store keeps trying, on this session and the next, until the message is
// stored with the broker or ctx ends.
func (l *link) store(ctx context.Context, m bus.Outgoing) error {
	for attempt := 1; ; attempt++ {
		p, changed := l.get()
		if p == nil {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		result := make(chan error, 1)
		p.Publish(m, func(err error) { result <- err })
		err := <-result
		switch muster.KindOf(err) {
		case "":
			return nil
		case muster.Invalid:
			return err
		}
		select {
		case <-changed:
		case <-time.After(delivery.DefaultBackoff(min(attempt, 6))):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// A reporter holds the reports that are not yet stored with the broker: the
// newest of each command. The journal holds them too, until they are.
type reporter struct {
	*link
	wake *signal

	mu      sync.Mutex // guards the fields below
	pending map[muster.CommandID]*pendingReport
	queue   []muster.CommandID // to be sent in this session
	quiet   chan struct{}      // closed and replaced when something was stored
}

type pendingReport struct {
	report  muster.Report
	queued  bool
	refused bool // the broker would not store it; tried again later
}

func newReporter() *reporter {
	return &reporter{link: newLink(), wake: newSignal(), pending: make(map[muster.CommandID]*pendingReport), quiet: make(chan struct{})}
}

func (r *reporter) add(report muster.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pending[report.ID]
	if p == nil {
		p = &pendingReport{}
		r.pending[report.ID] = p
	}
	p.report = report
	r.enqueue(report.ID, p)
}

func (r *reporter) enqueue(id muster.CommandID, p *pendingReport) {
	if !p.queued {
		p.queued = true
		r.queue = append(r.queue, id)
		r.wake.set()
	}
}

// restart queues everything that is not known to be stored, at the beginning
// of a session.
func (r *reporter) restart() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, p := range r.pending {
		r.enqueue(id, p)
	}
}

func (r *reporter) next() (muster.Report, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue) > 0 {
		id := r.queue[0]
		r.queue = r.queue[1:]
		if p := r.pending[id]; p != nil {
			p.queued = false
			return p.report, true
		}
	}
	return muster.Report{}, false
}

// stored forgets a report, unless a newer one took its place.
func (r *reporter) stored(report muster.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.pending[report.ID]; p != nil && p.report.Seq == report.Seq {
		delete(r.pending, report.ID)
	}
	close(r.quiet)
	r.quiet = make(chan struct{})
}

// refuse marks a report that the broker would not store.
func (r *reporter) refuse(id muster.CommandID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.pending[id]; p != nil {
		p.refused = true
	}
}

// again queues what the broker would not store.
func (r *reporter) again() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, p := range r.pending {
		if p.refused {
			p.refused = false
			r.enqueue(id, p)
		}
	}
}

func (r *reporter) online() bool { p, _ := r.get(); return p != nil }

func (r *reporter) idle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pending) == 0
}

func (r *reporter) changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.quiet
}

// reportAgain is how often a report is tried that the broker would not store,
// because its disk is full, say.
const reportAgain = 10 * time.Second

// report sends reports during one session.
func (a *Agent) report(ctx context.Context, conn *bus.Conn, p *bus.Pipeline) {
	a.reporter.restart()
	again := time.NewTicker(reportAgain)
	defer again.Stop()
	for {
		report, ok := a.reporter.next()
		if !ok {
			select {
			case <-a.reporter.wake.c:
				continue
			case <-again.C:
				a.reporter.again()
				continue
			case <-ctx.Done():
				return
			}
		}
		data, err := json.Marshal(report)
		if err != nil { // a method's output that is no JSON was refused before
			a.log.Error("report cannot be encoded", "command", report.ID, "err", err)
			continue
		}
		p.Publish(bus.Outgoing{
			Subject: conn.Subjects().Report(report.Key()), Data: data,
			ID: fmt.Sprintf("%s/%d", report.Key(), report.Seq),
		}, func(err error) { a.reported(ctx, report, err) })
	}
}

func (a *Agent) reported(ctx context.Context, report muster.Report, err error) {
	switch {
	case err == nil:
		a.reporter.stored(report)
		a.core.post(func() { a.core.inbox.Reported(report.ID, report.Seq) })
	case ctx.Err() != nil || muster.KindOf(err) == muster.Unavailable:
		// The next session sends it again.
	default:
		a.log.Warn("broker does not store a report; trying again", "command", report.ID, "err", err)
		a.reporter.refuse(report.ID)
	}
}
