package participant

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/musterfleet/muster"
)

// LockFolder returns where the lock's file belongs: a folder that a restart of
// the program leaves and one of the machine empties, so that no lock outlives
// the clock it was measured with. getenv looks variables up as os.Getenv does.
func LockFolder(getenv func(string) string) string {
	if os.Geteuid() == 0 {
		if info, err := os.Stat("/run"); err == nil && info.IsDir() {
			return "/run/muster"
		}
	}
	if folder := getenv("XDG_RUNTIME_DIR"); folder != "" {
		return filepath.Join(folder, "muster")
	}
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return filepath.Join("/dev/shm", "muster-"+strconv.Itoa(os.Getuid()))
	}
	return filepath.Join(os.TempDir(), "muster-"+strconv.Itoa(os.Getuid()))
}

// privateFolder makes a folder that only this user can enter. One that is
// another's is not used, and one that others can enter is closed to them: who can
// write to it takes locks away, and who connects to a session's socket in it
// commands the fleet.
func privateFolder(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return muster.Errorf(muster.Unavailable, "make a folder for Orders: %w", err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return muster.Errorf(muster.Unavailable, "look at the folder of Orders: %w", err)
	}
	if !info.IsDir() || !ours(info) {
		return muster.Errorf(muster.Denied, "%s, the folder of Orders, is not a folder of this user", path).
			WithHint("look who made it, and remove it, or name another one")
	}
	if info.Mode().Perm()&0o077 == 0 {
		return nil
	}
	if err := os.Chmod(path, 0o700); err != nil {
		return muster.Errorf(muster.Denied, "others can use %s, the folder of Orders: %w", path, err)
	}
	return nil
}

// ReadLock returns the content of the lock's file, nothing if there is none.
func ReadLock(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, muster.Errorf(muster.Unavailable, "read the lock: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxLockFile))
	if err != nil {
		return nil, muster.Errorf(muster.Unavailable, "read the lock: %w", err)
	}
	return data, nil
}

// writeLock replaces the lock's file, or the hint's, or removes it when there is
// nothing in it. It does not sync: the lock need not outlive the machine's start,
// and the hint is learnt again.
func writeLock(path string, data []byte) error {
	if len(data) == 0 {
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	next := path + ".new"
	if err := os.WriteFile(next, data, 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}
