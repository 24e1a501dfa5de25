//go:build unix

package methods

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// terminateGroup asks every process of the group that leader leads to end.
func terminateGroup(leader *os.Process) {
	_ = unix.Kill(-leader.Pid, unix.SIGTERM)
	_ = unix.Kill(-leader.Pid, unix.SIGCONT) // one that was stopped would not hear it
}

// killGroup ends every process of the group. That there is none any more is
// no error.
func killGroup(leader *os.Process) { _ = unix.Kill(-leader.Pid, unix.SIGKILL) }

func signalName(s syscall.Signal) string {
	if name := unix.SignalName(s); name != "" {
		return name
	}
	return s.String()
}

// attributes puts a process into a group of its own, as the given account.
func attributes(a *account) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if a != nil && a.foreign {
		attr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups}
	}
	dieWithParent(attr)
	return attr
}
