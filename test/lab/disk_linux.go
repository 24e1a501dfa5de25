package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// A Disk is a small file system in memory, mounted on a folder, that can be
// filled. It needs root.
type Disk struct {
	dir    string
	size   int64
	mu     sync.Mutex // guards closed
	closed bool
}

// NewDisk mounts one. Its size is a limit, not memory that is taken.
func NewDisk(dir string, size int64) (*Disk, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("mode=0700,size=%d", size)); err != nil {
		return nil, fmt.Errorf("mount a small disk: %w", err)
	}
	return &Disk{dir: dir, size: size}, nil
}

func (d *Disk) ballast() string { return filepath.Join(d.dir, "ballast") }

func (d *Disk) resize(size int64) error {
	return syscall.Mount("tmpfs", d.dir, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", size))
}

// shrink lowers the limit to little more than what is used. A limit below that is
// refused: who writes at the same time may have passed the one that was chosen.
func (d *Disk) shrink() error {
	for {
		var st syscall.Statfs_t
		if err := syscall.Statfs(d.dir, &st); err != nil {
			return err
		}
		limit := min(int64(st.Blocks-st.Bfree)*st.Bsize+1<<20, d.size)
		if err := d.resize(limit); limit == d.size || !errors.Is(err, syscall.EINVAL) {
			return err
		}
	}
}

// Fill leaves no room. The limit comes down first, so that the ballast need not be
// large.
func (d *Disk) Fill() error {
	if err := d.shrink(); err != nil {
		return err
	}
	f, err := os.Create(d.ballast())
	if errors.Is(err, syscall.ENOSPC) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for zeros := make([]byte, 4096); err == nil; {
		_, err = f.Write(zeros)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	return nil
}

// Free gives the room back.
func (d *Disk) Free() error {
	if err := os.Remove(d.ballast()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return d.resize(d.size)
}

// Close unmounts the disk. What still uses it keeps it until it ends.
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	return syscall.Unmount(d.dir, syscall.MNT_DETACH)
}
