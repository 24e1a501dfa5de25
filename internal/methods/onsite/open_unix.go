//go:build unix

package onsite

import "syscall"

// Flags for opening files that others may have put there.
const (
	noWait   = syscall.O_NONBLOCK
	noFollow = syscall.O_NOFOLLOW
)
