package methods

import (
	"os"
	"syscall"
)

// Windows has neither groups nor signals in this sense: the process is ended,
// and its children are left alone.

func terminateGroup(leader *os.Process) { _ = leader.Kill() }

func killGroup(leader *os.Process) { _ = leader.Kill() }

func groupAlive(int) bool { return false }

func signalName(s syscall.Signal) string { return s.String() }

func attributes(*account) *syscall.SysProcAttr { return nil }
