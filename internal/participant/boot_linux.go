package participant

import (
	"time"

	"golang.org/x/sys/unix"
)

// bootedAt returns when the machine started, zero if it does not say. Time that it
// slept counts.
func bootedAt(now time.Time) time.Time {
	var up unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return time.Time{}
	}
	return now.Add(-time.Duration(up.Nano()))
}
