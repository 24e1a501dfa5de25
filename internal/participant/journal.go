package participant

import (
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/blake2b"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/order"
)

// Bounds of a journal.
const (
	maxJournal   = 4 << 20 // bytes after which it is begun anew
	maxPublished = 64 << 10
)

// A Journal is the log of what an Order had this machine do: one line before a
// query runs and one after it, in a file of mode 0600. A line is like
//
//	2026-11-21T08:00:00.123456789Z runs order=9f.. seq=3 operator=5c.. method=script args=blake2b:1d..
//	2026-11-21T08:00:00.523456789Z ran order=9f.. seq=3 operator=5c.. method=script args=blake2b:1d.. code=ok ms=400
//
// Arguments are there as a hash, since they may hold secrets. A full journal is
// kept once, with the suffix .1.
type Journal struct {
	path  string
	added chan struct{} // has room for one

	mu   sync.Mutex // guards what follows
	file *os.File
	last time.Time // of the last line: each has its own
}

// OpenJournal opens the journal in a folder, which is made.
func OpenJournal(folder string) (*Journal, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, journalError(err)
	}
	j := &Journal{path: filepath.Join(folder, "order.log"), added: make(chan struct{}, 1)}
	if info, err := os.Stat(j.path); err == nil && info.Size() >= maxJournal {
		err := errors.Join(os.Rename(j.path, j.path+".1"), j.setPublished(0))
		if err != nil {
			return nil, journalError(err)
		}
	}
	f, err := os.OpenFile(j.path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return nil, journalError(err)
	}
	j.file = f
	return j, nil
}

func journalError(err error) error {
	return muster.Errorf(muster.Unavailable, "the log of what Orders do: %w", err)
}

// Close closes the file.
func (j *Journal) Close() error { return j.file.Close() }

// Runs notes that a query is about to run, and waits until that is on disk. If it
// fails the query must not run.
func (j *Journal) Runs(q order.Query) error {
	if err := j.write("runs", q, ""); err != nil {
		return err
	}
	if err := j.file.Sync(); err != nil {
		return journalError(err)
	}
	return nil
}

// Ran notes how a query ended. It does not wait for the disk, as the caller waits
// for the answer: that the query ran is there already.
func (j *Journal) Ran(q order.Query, code order.Code, took time.Duration) error {
	return j.write("ran", q, " code="+strings.ReplaceAll(code.String(), " ", "_")+" ms="+strconv.FormatInt(took.Milliseconds(), 10))
}

func (j *Journal) write(what string, q order.Query, rest string) error {
	sum := blake2b.Sum256(q.Args)
	j.mu.Lock()
	defer j.mu.Unlock()
	now := time.Now().UTC()
	if !now.After(j.last) {
		now = j.last.Add(1)
	}
	line := now.Format("2006-01-02T15:04:05.000000000Z") + " " + what + " order=" + q.Order.String() + " seq=" + strconv.FormatUint(uint64(q.Seq), 10) +
		" operator=" + q.Operator.String() + " method=" + strconv.Quote(q.Method) + " args=blake2b:" + hex.EncodeToString(sum[:8]) + rest + "\n"
	if _, err := j.file.WriteString(line); err != nil {
		return journalError(err)
	}
	j.last = now
	select {
	case j.added <- struct{}{}:
	default:
	}
	return nil
}

// Added has something to receive after lines were written.
func (j *Journal) Added() <-chan struct{} { return j.added }

// Publish calls publish with each line that no call returned nil for yet, in
// their order, until one fails. Where it stands is kept in a file: after a crash
// a line may be published again.
func (j *Journal) Publish(publish func(line string) error) error {
	offset, err := j.published()
	if err != nil {
		return err
	}
	for {
		data := make([]byte, maxPublished)
		n, err := j.file.ReadAt(data, offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return journalError(err)
		}
		line, _, whole := strings.Cut(string(data[:n]), "\n")
		if !whole {
			return nil
		}
		if err := publish(line); err != nil {
			return err
		}
		offset += int64(len(line)) + 1
		if err := j.setPublished(offset); err != nil {
			return err
		}
	}
}

func (j *Journal) published() (int64, error) {
	data, err := os.ReadFile(j.path + ".published")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, journalError(err)
	}
	offset, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	info, statErr := j.file.Stat()
	if err != nil || statErr != nil || offset < 0 || offset > info.Size() {
		return 0, nil // rather twice than never
	}
	return offset, nil
}

func (j *Journal) setPublished(offset int64) error {
	next := j.path + ".published.new"
	if err := os.WriteFile(next, strconv.AppendInt(nil, offset, 10), 0o600); err != nil {
		return journalError(err)
	}
	if err := os.Rename(next, j.path+".published"); err != nil {
		return journalError(err)
	}
	return nil
}
