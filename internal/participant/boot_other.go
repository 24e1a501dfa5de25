//go:build !linux

package participant

import "time"

// bootedAt is not known here.
func bootedAt(time.Time) time.Time { return time.Time{} }
