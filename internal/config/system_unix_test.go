//go:build unix

package config

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Root works in the folder of a fleet that belongs to somebody else, who must not
// get a file of root's by putting a link where the lock is to be.
func TestLockIsNoLink(t *testing.T) {
	for name, link := range map[string]func(old, new string) error{"symbolic": os.Symlink, "hard": os.Link} {
		t.Run(name, func(t *testing.T) {
			if name == "hard" && os.Geteuid() != 0 {
				t.Skip("only root gives files away")
			}
			dir, other := t.TempDir(), filepath.Join(t.TempDir(), "shadow")
			if err := os.WriteFile(other, []byte("secret"), 0o600); err != nil {
				t.Fatal(err)
			}
			if os.Geteuid() == 0 {
				if err := os.Chown(dir, 12345, 12345); err != nil {
					t.Fatal(err)
				}
			}
			path := filepath.Join(dir, "callers.lock")
			if err := link(other, path); err != nil {
				t.Fatal(err)
			}
			if unlock, err := LockFile(path); err == nil {
				unlock()
				t.Error("the link is taken for a lock")
			}
			var st unix.Stat_t
			if err := unix.Stat(other, &st); err != nil || int(st.Uid) != os.Geteuid() {
				t.Errorf("the other file belongs to %d, %v", st.Uid, err)
			}
		})
	}
}
