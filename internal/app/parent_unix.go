//go:build unix

package app

import (
	"os"
	"strconv"
	"syscall"

	"github.com/musterfleet/muster"
)

// ParentVariable names, to a child process, the descriptor of a pipe that ends
// when its parent does, however that ends.
const ParentVariable = "MUSTER_PARENT_FD"

// parentPipe opens the pipe that ends with the parent, nil when there is none.
func parentPipe() (*os.File, error) {
	text := os.Getenv(ParentVariable)
	if text == "" {
		return nil, nil
	}
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 3 {
		return nil, muster.Errorf(muster.Invalid, "%s is %q; expected the number of an open pipe", ParentVariable, text)
	}
	syscall.CloseOnExec(fd) // methods must not hold it
	if err := syscall.SetNonblock(fd, true); err != nil {
		return nil, muster.Errorf(muster.Invalid, "%s is %q, which is no open pipe: %w", ParentVariable, text, err)
	}
	return os.NewFile(uintptr(fd), "parent"), nil
}
