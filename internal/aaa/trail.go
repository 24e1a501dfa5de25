package aaa

import (
	"cmp"
	"crypto/sha256"
	"slices"
	"time"
)

// A Trail is the lines of one node's audit log as they were collected from
// events: in any order, some twice, the oldest of them gone already. Since each
// line names the one before, what is missing between them shows.
type Trail struct {
	links map[[sha256.Size]byte]link // by the line's hash
}

type link struct {
	prev [sha256.Size]byte
	time time.Time
}

// Add takes a line; one that is there already changes nothing. An error has
// kind Corrupt.
func (t *Trail) Add(line []byte) error {
	r, prev, err := ReadAuditLine(line)
	if err != nil {
		return err
	}
	if t.links == nil {
		t.links = make(map[[sha256.Size]byte]link)
	}
	t.links[AuditHash(line)] = link{prev: prev, time: r.Time}
	return nil
}

// Len returns the number of different lines.
func (t *Trail) Len() int { return len(t.links) }

// Has says whether the line with this hash is there.
func (t *Trail) Has(hash [sha256.Size]byte) bool {
	_, there := t.links[hash]
	return there
}

// Span returns the times of the first line and of the last one, by the node's
// clock.
func (t *Trail) Span() (first, last time.Time) {
	for _, l := range t.links {
		if first.IsZero() || l.time.Before(first) {
			first = l.time
		}
		if l.time.After(last) {
			last = l.time
		}
	}
	return first, last
}

// Whole says whether the first line of the log is there.
func (t *Trail) Whole() bool {
	for _, l := range t.links {
		if l.prev == [sha256.Size]byte{} {
			return true
		}
	}
	return false
}

// A Gap is a place at which a trail is not what one log would have left.
type Gap struct {
	Time   time.Time `json:"time"` // of the line behind it
	Reason string    `json:"reason"`
}

// Gaps returns the places at which lines are missing, or at which two lines
// follow the same one, by time. The earliest line may follow one that is not
// there: old events are removed in the end.
func (t *Trail) Gaps() []Gap {
	var starts []link
	latest := make(map[[sha256.Size]byte]time.Time, len(t.links)) // of those that follow a line
	forks := make(map[[sha256.Size]byte]bool)
	for _, l := range t.links {
		if !t.Has(l.prev) {
			starts = append(starts, l)
			continue
		}
		other, another := latest[l.prev]
		forks[l.prev] = forks[l.prev] || another
		if !another || l.time.After(other) {
			latest[l.prev] = l.time
		}
	}
	var gaps []Gap
	for prev, forked := range forks {
		if forked {
			gaps = append(gaps, Gap{latest[prev], "two decisions follow the same one: the log was rewritten, or an old copy of it put back"})
		}
	}
	slices.SortFunc(starts, func(a, b link) int { return a.time.Compare(b.time) })
	for i, l := range starts {
		if i == 0 {
			continue
		}
		reason := "decisions before this one are missing"
		if l.prev == [sha256.Size]byte{} {
			reason = "the log begins anew here: it was removed on the node, or set aside"
		}
		gaps = append(gaps, Gap{l.time, reason})
	}
	slices.SortFunc(gaps, func(a, b Gap) int { return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Reason, b.Reason)) })
	return gaps
}
