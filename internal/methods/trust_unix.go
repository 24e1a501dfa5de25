//go:build unix

package methods

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// trusted says why a file or directory of plug-ins is not to be trusted, or
// nil: others could put their own code there.
func trusted(info fs.FileInfo) error {
	if info.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("it is writable for all (mode %s)", octal(info.Mode()))
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("its owner is not known")
	}
	if s.Uid != 0 && int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("it belongs to user %d; expected root or the agent's user", s.Uid)
	}
	return nil
}

func executable(info fs.FileInfo) bool { return info.Mode().Perm()&0o111 != 0 }
