//go:build !linux

package lab

import "errors"

// A Disk is a small file system; there is none here.
type Disk struct{}

// NewDisk returns an error.
func NewDisk(string, int64) (*Disk, error) {
	return nil, errors.New("small disks are made on Linux only")
}

// Fill is never called.
func (*Disk) Fill() error { return nil }

// Free is never called.
func (*Disk) Free() error { return nil }

// Close is never called.
func (*Disk) Close() error { return nil }
