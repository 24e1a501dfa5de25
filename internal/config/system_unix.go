//go:build unix

package config

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lock takes a lock on the file, without waiting, until it is closed.
func lock(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

// noFollow is for opening files in folders of others: what is a link is no file of
// ours.
const noFollow = unix.O_NOFOLLOW

// keepOwner gives the file the owner of the one that it replaces, or else of the
// folder. Only root can.
func keepOwner(f *os.File, path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var old, now unix.Stat_t
	if unix.Stat(path, &old) != nil && unix.Stat(filepath.Dir(path), &old) != nil {
		return nil // there is neither
	}
	if err := unix.Fstat(int(f.Fd()), &now); err != nil {
		return err
	}
	if old.Uid == now.Uid && old.Gid == now.Gid {
		return nil
	}
	if now.Nlink > 1 { // whoever owns the folder would get the file of another
		return errors.New("it is a link to another file")
	}
	return f.Chown(int(old.Uid), int(old.Gid))
}
