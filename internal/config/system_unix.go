//go:build unix

package config

import (
	"os"

	"golang.org/x/sys/unix"
)

// lock takes a lock on the file, without waiting, until it is closed.
func lock(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

// keepOwner gives the file the owner of the one that it replaces, if there is one.
// Only root can.
func keepOwner(f *os.File, path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var old, now unix.Stat_t
	if err := unix.Stat(path, &old); err != nil {
		return nil // there is none
	}
	if err := unix.Fstat(int(f.Fd()), &now); err != nil {
		return err
	}
	if old.Uid == now.Uid && old.Gid == now.Gid {
		return nil
	}
	return f.Chown(int(old.Uid), int(old.Gid))
}
