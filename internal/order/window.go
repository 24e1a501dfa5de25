package order

import "time"

// A window tells new counters of one process from repeated ones, in the manner
// of RFC 6479: a ring of bits behind the highest counter seen.
type window struct {
	high uint64
	bits [windowWords]uint64
}

const (
	windowWords = 16
	windowSize  = (windowWords - 1) * 64 // the oldest word is cleared as the newest is entered, and so does not count
)

// take reports whether the counter is new, and remembers it.
func (w *window) take(counter uint64) bool {
	if counter == 0 || counter+windowSize <= w.high {
		return false
	}
	if counter > w.high {
		for n := range min(counter/64-w.high/64, windowWords) { // words that are entered
			w.bits[(counter/64-n)%windowWords] = 0
		}
		w.high = counter
	}
	bit := uint64(1) << (counter % 64)
	word := &w.bits[counter/64%windowWords]
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}

// A bucket lets through so many at once, and so many a second.
type bucket struct {
	used float64
	at   time.Time
}

// take reports whether one more is within the limits.
func (b *bucket) take(now time.Time, burst, perSecond float64) bool {
	if b.full(now, burst, perSecond) {
		return false
	}
	b.used++
	return true
}

// full reports whether one more would be beyond the limits.
func (b *bucket) full(now time.Time, burst, perSecond float64) bool {
	b.used = max(0, b.used-max(0, now.Sub(b.at).Seconds())*perSecond)
	b.at = now
	return b.used+1 > burst
}
