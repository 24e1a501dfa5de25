package order

import (
	"crypto/ed25519"
	"math"
	"slices"
	"time"
)

// When the root repeats a wave. An agent that dies while it relays takes what is
// on its way through it along, and nobody but the root can know who is missing.
// So the root asks again while somebody is, and the repetition finds ways of its own.
const (
	firstPause = 1500 * time.Millisecond // longer than it takes to find that a neighbour does not answer
	longPause  = 15 * time.Second        // what a pause doubles to
	soonest    = 750 * time.Millisecond  // between repetitions of a RELEASE, and of a wave that is over while somebody is missing
	lastMoment = 600 * time.Millisecond  // before the deadline, after which nothing is repeated
)

// Begun is what only the root of a wave knows.
type begun struct {
	key    ed25519.PrivateKey // that signs the wave
	at     time.Time          // of the last repetition
	next   time.Time          // of the next one; the deadline if there is none
	joined map[NodeID]Member  // of a RELEASE: who may be locked,
	locked time.Time          // and until when
}

// plan sets when a wave is repeated if it is not over.
func (c *Caller) plan(now time.Time, w *wave) {
	pause := min(firstPause<<min(w.msg.Seq/firstRepeat, 4), longPause)
	if w.msg.Kind == KindRelease {
		pause = soonest // nothing follows that would make up for it
	}
	w.began.at, w.began.next = now, w.timely(now.Add(pause))
}

// heard plans anew after an answer: while they come nobody is lost, and those that
// are missing then may have been ready at the same time.
func (c *Caller) heard(now time.Time, w *wave) { w.began.next = w.timely(now.Add(firstPause)) }

// timely returns the time, or the deadline if there would be too little left.
func (w *wave) timely(at time.Time) time.Time {
	if at.Add(lastMoment).After(w.deadline) {
		return w.deadline
	}
	return at
}

// repeats reports whether a wave from which nothing more will come is repeated,
// now or soon, because somebody is missing.
func (c *Caller) repeats(now time.Time, w *wave) bool {
	again := w.timely(later(now, w.began.at.Add(soonest)))
	if w.conflict || again.Equal(w.deadline) || !c.incomplete(w) {
		return false
	}
	w.began.next = again
	if !now.Before(again) {
		c.repeat(now, w)
	}
	return true
}

// incomplete reports whether a wave that is over is worth another try: a RELEASE as
// long as there is time, others once, for members that were heard before.
func (c *Caller) incomplete(w *wave) bool {
	switch w.msg.Kind {
	case KindRelease:
		return len(w.unreleased()) > 0
	case KindQuery, KindRenew:
		return !w.msg.repeated() && c.owns(w) && slices.ContainsFunc(c.silent(w), func(id NodeID) bool { return !c.call.members[id].mute })
	}
	return false
}

// mute notes who has said nothing in a wave.
func (c *Caller) mute(w *wave) {
	for _, b := range c.call.members {
		b.mute = false
	}
	for _, id := range c.silent(w) {
		c.call.members[id].mute = true
	}
}

// owns reports whether a wave is of the Order that is held.
func (c *Caller) owns(w *wave) bool { return c.phase == holding && w.msg.Order == c.call.order }

// ran reports whether there is an answer to a query besides the code.
func (c Code) ran() bool { return c == OK || c == Denied || c == Failed }

// silent returns the members whose answers to a wave are missing.
func (c *Caller) silent(w *wave) []NodeID {
	var all []NodeID
	for _, m := range c.lacking(w) {
		if m.Code == NoAnswer || m.Code.ran() {
			all = append(all, m.ID)
		}
	}
	return all
}

// repeat sends a wave again, along a new tree.
func (c *Caller) repeat(now time.Time, w *wave) {
	w.began.next = w.deadline
	s, err := w.msg.Open()
	if after := w.msg.Kind == KindQuery || w.msg.Kind == KindRenew; err != nil || after && !c.owns(w) || s.Repeat == math.MaxUint8 {
		return
	}
	s.Repeat++
	m, err := Sign(s, w.began.key, w.msg.Query)
	if err != nil {
		return
	}
	if w.msg.Kind == KindQuery {
		if m.Want = c.silent(w); len(m.Want) > MaxMissing {
			m.Want = nil
		}
	}
	w.msg, w.missing = m, nil
	for _, x := range w.children {
		x.over = true
	}
	c.plan(now, w)
	c.forward(now, w)
}

// unreleased returns who has joined and, as far as a RELEASE has told, may still be
// locked. Who is not in the Order, or does not know it, is free.
func (w *wave) unreleased() []Member {
	var all []Member
	echoed := w.codes()
	for id, m := range w.began.joined {
		said, heard := echoed[id]
		switch {
		case !heard:
			all = append(all, Member{ID: id, Boot: m.Boot, Code: NoAnswer})
		case said.Code != OK && said.Code != NotMember && said.Code != Unknown:
			all = append(all, said)
		}
	}
	slices.SortFunc(all, byID)
	return all
}
