//go:build unix && !linux

package methods

import (
	"syscall"

	"golang.org/x/sys/unix"
)

func dieWithParent(*syscall.SysProcAttr) {} // only Linux can

// groupAlive reports whether a process of the group is left.
func groupAlive(pgid int) bool { return unix.Kill(-pgid, 0) == nil }
