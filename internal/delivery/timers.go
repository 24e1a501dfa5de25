package delivery

import (
	"container/heap"
	"slices"
	"time"

	"github.com/musterfleet/muster"
)

// timers is a queue of moments at which a command needs a look. It may hold
// moments that no longer matter; whoever looks decides.
type timers struct{ h timerHeap }

type timer struct {
	at time.Time
	id muster.CommandID
}

func (t *timers) add(at time.Time, id muster.CommandID) { heap.Push(&t.h, timer{at, id}) }

// due removes and returns the commands whose moment has come.
func (t *timers) due(now time.Time) []muster.CommandID {
	var ids []muster.CommandID
	for len(t.h) > 0 && !now.Before(t.h[0].at) {
		ids = append(ids, heap.Pop(&t.h).(timer).id)
	}
	return ids
}

// prune removes the moments that no longer matter, as soon as they are most of
// all: of what is over, the deadline may be days ahead. Live is how many commands
// and withdrawals there are, each of which has a few.
func (t *timers) prune(live int, matters func(muster.CommandID) bool) {
	if len(t.h) < pruneFrom || len(t.h) < pruneRatio*live {
		return
	}
	t.h = slices.DeleteFunc(t.h, func(x timer) bool { return !matters(x.id) })
	heap.Init(&t.h)
}

const (
	pruneFrom  = 1024
	pruneRatio = 8
)

func (t *timers) next() time.Time {
	if len(t.h) == 0 {
		return time.Time{}
	}
	return t.h[0].at
}

type timerHeap []timer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h timerHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *timerHeap) Push(x any)        { *h = append(*h, x.(timer)) }
func (h *timerHeap) Pop() any {
	old := *h
	n := len(old) - 1
	x := old[n]
	*h = old[:n]
	return x
}
