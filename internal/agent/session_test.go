package agent

import (
	"fmt"
	"testing"
	"time"
)

// Attempts get rarer, and begin anew after a session that lasted, and at once when an
// operator has moved the broker.
func TestAfterSession(t *testing.T) {
	const most = 30 * time.Second
	for _, test := range []struct {
		name     string
		err      error
		attempt  int
		lasted   time.Duration
		next     int
		min, max time.Duration
	}{
		{"first", errLost, 0, 0, 1, 100 * time.Millisecond, 200 * time.Millisecond},
		{"many", errLost, 20, time.Second, 21, most / 2, most},
		{"lasted", errLost, 20, time.Hour, 1, 100 * time.Millisecond, 200 * time.Millisecond},
		{"moved", fmt.Errorf("receive: %w", errRedial), 20, time.Second, 0, 0, 0},
	} {
		next, wait := afterSession(test.err, test.attempt, test.lasted)
		if next != test.next || wait < test.min || wait > test.max {
			t.Errorf("%s: attempt %d in %s; want %d in %s to %s", test.name, next, wait, test.next, test.min, test.max)
		}
	}
}
