//go:build unix

package facts

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/musterfleet/muster"
)

// checkTrusted refuses executables that somebody else than root and the user
// of this process could have written, or put into their folder: they would
// run with the rights of this process, often root.
func checkTrusted(path string, info fs.FileInfo) error {
	if err := checkOwner("it", info); err != nil {
		return err
	}
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return bare(err)
	}
	return checkOwner("its folder", dir)
}

func checkOwner(what string, info fs.FileInfo) error {
	if info.Mode().Perm()&0o002 != 0 {
		return muster.Errorf(muster.Denied, "not run: %s is writable by everybody (mode %04o)", what, info.Mode().Perm())
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return muster.Errorf(muster.Internal, "not run: the owner of %s is unknown", what)
	}
	if self := os.Geteuid(); stat.Uid != 0 && int(stat.Uid) != self {
		return muster.Errorf(muster.Denied, "not run: %s belongs to user %d; expected root or user %d", what, stat.Uid, self)
	}
	return nil
}

// inOwnGroup makes the command the leader of a process group, which is killed
// as a whole when its context ends.
func inOwnGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return killGroup(cmd) }
}

func killGroup(cmd *exec.Cmd) error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
