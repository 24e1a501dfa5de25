//go:build !unix

package client

import "os"

// tryLock does nothing where there is no flock: one sender at a time then.
func tryLock(*os.File) (bool, error) { return true, nil }

// hold does nothing either, and keeps no file open that is to be removed.
func hold(string) (release func(), err error) { return func() {}, nil }
