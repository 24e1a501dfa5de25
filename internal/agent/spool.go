package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// spools keeps what runs write in files, so that memory stays bounded however
// much it is and however long the broker is away.
type spools struct {
	dir string
	max int64
}

func openSpools(dir string, max int64) (*spools, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, muster.Errorf(muster.Unavailable, "make the folder for output: %w", err)
	}
	return &spools{dir, max}, nil
}

func (s *spools) path(id muster.CommandID, stream string) string {
	return filepath.Join(s.dir, string(id)+"."+stream)
}

// open begins the two streams of one attempt, in place of those of an earlier.
func (s *spools) open(id muster.CommandID, attempt int) (stdout, stderr *spool) {
	make := func(stream string) *spool {
		p := s.path(id, stream)
		_ = os.Remove(p)           // of an earlier attempt
		_ = os.Remove(p + ".sent") // likewise
		return &spool{path: p, stream: stream, max: s.max, sum: sha256.New(), wake: newSignal(), attempt: attempt}
	}
	return make(bus.Stdout), make(bus.Stderr)
}

// recover describes what an interrupted run had written.
func (s *spools) recover(id muster.CommandID) muster.Result {
	return muster.Result{Stdout: describe(s.path(id, bus.Stdout)), Stderr: describe(s.path(id, bus.Stderr))}
}

func describe(path string) muster.Output {
	f, err := os.Open(path)
	if err != nil {
		return muster.Output{}
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	if err != nil {
		return muster.Output{}
	}
	o := muster.Output{Size: n}
	if n > muster.MaxInline {
		o.SHA256 = hex.EncodeToString(sum.Sum(nil))
		return o
	}
	o.Inline = make([]byte, n)
	if _, err := f.ReadAt(o.Inline, 0); err != nil && !errors.Is(err, io.EOF) {
		return muster.Output{}
	}
	return o
}

// remove forgets the output of a command.
func (s *spools) remove(id muster.CommandID) {
	for _, stream := range []string{bus.Stdout, bus.Stderr} {
		_ = os.Remove(s.path(id, stream)) // most runs have none
		_ = os.Remove(s.path(id, stream) + ".sent")
	}
}

// left lists the streams that an earlier agent did not send to their end.
func (s *spools) left() ([]string, error) {
	var paths []string
	err := filepath.WalkDir(s.dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.HasSuffix(p, ".sent") {
			paths = append(paths, p)
		}
		return err
	})
	return paths, err
}

// A spool is one stream of one run. Writing never fails: what cannot be kept
// is counted.
type spool struct {
	path    string
	stream  string
	attempt int
	max     int64
	wake    *signal

	mu      sync.Mutex // guards the fields below
	file    *os.File
	sum     hash.Hash
	head    []byte // the first MaxInline bytes
	size    int64
	dropped int64
	ended   bool
	failed  error
}

// Write implements io.Writer.
func (s *spool) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keep := p
	if room := s.max - s.size; int64(len(keep)) > room {
		keep = keep[:max(room, 0)]
	}
	if s.ended {
		keep = nil
	}
	if n := len(keep); n > 0 && s.failed == nil {
		s.keep(keep)
	} else if n > 0 {
		s.dropped += int64(n)
	}
	s.dropped += int64(len(p) - len(keep))
	s.wake.set()
	return len(p), nil
}

// keep appends to the file. The file is made late: most runs write nothing.
func (s *spool) keep(p []byte) {
	if s.file == nil {
		s.file, s.failed = os.OpenFile(s.path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	}
	n := 0
	if s.failed == nil {
		n, s.failed = s.file.Write(p)
	}
	s.dropped += int64(len(p) - n)
	s.sum.Write(p[:n])
	s.size += int64(n)
	if room := muster.MaxInline - len(s.head); room > 0 {
		s.head = append(s.head, p[:min(n, room)]...)
	}
}

// finish ends the stream and describes it.
func (s *spool) finish() muster.Output {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.wake.set()
	o := muster.Output{Size: s.size, Truncated: s.dropped}
	if s.size <= muster.MaxInline {
		o.Inline = s.head
	} else {
		o.SHA256 = hex.EncodeToString(s.sum.Sum(nil))
	}
	if s.file != nil {
		if err := s.file.Close(); err != nil {
			s.failed = err
		}
		s.file = nil
	}
	return o
}

// length returns how much can be read, and whether more may come.
func (s *spool) length() (size int64, ended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size, s.ended
}

// A signal wakes one waiter; setting it twice wakes once.
type signal struct{ c chan struct{} }

func newSignal() *signal { return &signal{make(chan struct{}, 1)} }

func (s *signal) set() {
	select {
	case s.c <- struct{}{}:
	default:
	}
}

// readAt reads a part of a spool's file.
func readAt(path string, offset int64, p []byte) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := f.ReadAt(p, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, fmt.Errorf("read output: %w", err)
	}
	return n, nil
}
