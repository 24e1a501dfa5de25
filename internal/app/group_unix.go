//go:build unix

package app

import (
	"os/exec"
	"syscall"
)

// ownGroup keeps the terminal's signals from the child.
func ownGroup(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
