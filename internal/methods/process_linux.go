package methods

import (
	"errors"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// dieWithParent has the process killed when the thread that starts it ends,
// and so when the agent dies. See watch for the thread.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }

// reap waits for the process to end, closes exited, and takes its status once
// release is closed. In between the process is a zombie that keeps its id, so
// that a signal to its group cannot hit a stranger's.
func reap(cmd *exec.Cmd, exited chan<- struct{}, release <-chan struct{}) error {
	for {
		err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break // with nil; or there is nothing to wait for, which Wait will say
		}
	}
	close(exited)
	<-release
	return cmd.Wait()
}

// groupAlive reports whether a process of the group runs. Signal 0 would also
// find the leader's zombie.
func groupAlive(pgid int) bool {
	pids, err := processes()
	if err != nil {
		return true
	}
	for _, pid := range pids {
		s, err := readStat(pid)
		if err == nil && s.group == pgid && s.state != 'Z' && s.state != 'X' {
			return true
		}
	}
	return false
}
