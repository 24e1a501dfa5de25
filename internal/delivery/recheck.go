package delivery

import (
	"cmp"
	"slices"
	"time"

	"github.com/musterfleet/muster"
)

// Recheck asks Config.Revoked about each command that waits, and refuses those
// that must not begin any more. It is called when the answers may have changed.
// What runs goes on, but is not tried again.
func (b *Inbox) Recheck(now time.Time) {
	var waiting []*entry
	for _, e := range b.commands {
		if e.waiting() {
			waiting = append(waiting, e)
		}
	}
	// In a fixed order, so that a simulation can be repeated.
	slices.SortFunc(waiting, func(x, y *entry) int { return cmp.Compare(x.Seq, y.Seq) })
	for _, e := range waiting {
		why := b.revoked(e)
		if why == nil {
			continue
		}
		switch { // refused would say that it did not run
		case e.Attempts > 0:
			b.settle(e, now, muster.Failure, "there is no other attempt: "+why.Message)
		case e.Starts > 0:
			b.settle(e, now, muster.Unknown, "the agent was interrupted during the run, and there is no other: "+why.Message)
		default:
			e.Report.Result = &muster.Result{Error: why}
			b.settle(e, now, muster.Refused, why.Message)
		}
		b.ready.Refused = append(b.ready.Refused, e.Record)
	}
	b.schedule(now)
}

// revoked is why a command must not begin, nil if it may.
func (b *Inbox) revoked(e *entry) *muster.Error {
	if b.cfg.Revoked == nil {
		return nil
	}
	return b.cfg.Revoked(e.Record)
}
