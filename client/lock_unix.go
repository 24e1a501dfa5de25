//go:build unix

package client

import (
	"errors"
	"os"
	"syscall"
)

// hold locks a file until release; it is an error if somebody else holds it. The
// kernel releases it when the process dies.
func hold(path string) (release func(), err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	locked, err := tryLock(f)
	if err == nil && !locked {
		err = errors.New("somebody else holds " + path)
	}
	if err != nil {
		_ = f.Close() // the first error counts
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

func tryLock(f *os.File) (bool, error) {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, syscall.EINTR) {
		return false, nil
	}
	return err == nil, err
}
