//go:build !linux

package methods

import "os/exec"

// reap waits for the process and closes exited. Elsewhere than on Linux it
// cannot look before it takes the status, so that the group's id may be free
// when the group is killed, and children that hold the output are killed only
// when the wait for them is over.
func reap(cmd *exec.Cmd, exited chan<- struct{}, _ <-chan struct{}) error {
	err := cmd.Wait()
	close(exited)
	return err
}
