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
// Arguments are there as a hash, since they may hold secrets. A full file gets
// the suffix .1, in place of the one before, and the next begins. What was not
// published by then is, from there.
type Journal struct {
	path  string
	added chan struct{} // has room for one

	mu     sync.Mutex // guards what follows
	file   *os.File
	size   int64     // of the file
	older  int64     // size of the one before
	offset int64     // published so far, of both together
	turns  int       // files begun
	last   time.Time // of the last line: each has its own
}

// OpenJournal opens the journal in a folder, which is made.
func OpenJournal(folder string) (*Journal, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, journalError(err)
	}
	j := &Journal{path: filepath.Join(folder, "order.log"), added: make(chan struct{}, 1)}
	if err := j.open(); err != nil {
		return nil, journalError(err)
	}
	if err := j.readPublished(); err != nil {
		return nil, errors.Join(journalError(err), j.file.Close())
	}
	return j, nil
}

// open opens the file, and ends a line that a crash has cut short.
func (j *Journal) open() (err error) {
	if j.file, err = os.OpenFile(j.path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600); err != nil {
		return err
	}
	info, err := j.file.Stat()
	if err != nil {
		return errors.Join(err, j.file.Close())
	}
	j.size, j.older = info.Size(), 0
	if info, err := os.Stat(j.path + ".1"); err == nil {
		j.older = info.Size()
	}
	end := make([]byte, 1)
	if j.size == 0 {
		return nil
	}
	if _, err = j.file.ReadAt(end, j.size-1); err == nil && end[0] != '\n' {
		_, err = j.file.WriteString("\n")
		j.size++
	}
	if err != nil {
		return errors.Join(err, j.file.Close())
	}
	return nil
}

// turn begins the next file. What was published is noted first: after a crash in
// between lines are published twice rather than never.
func (j *Journal) turn() error {
	offset := max(0, j.offset-j.older)
	if err := j.writePublished(offset); err != nil {
		return err
	}
	if err := os.Rename(j.path, j.path+".1"); err != nil {
		return err
	}
	old := j.file
	if err := j.open(); err != nil {
		j.file = old
		return errors.Join(err, os.Rename(j.path+".1", j.path))
	}
	j.offset = offset
	j.turns++
	return old.Close()
}

func journalError(err error) error {
	return muster.Errorf(muster.Unavailable, "the log of what Orders do: %w", err)
}

// Close closes the file.
func (j *Journal) Close() error { return j.file.Close() }

// Runs notes that a query is about to run, and waits until that is on disk. If it
// fails the query must not run.
func (j *Journal) Runs(q order.Query) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	err := j.write("runs", q, "")
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		return journalError(err)
	}
	return nil
}

// Ran notes how a query ended. It does not wait for the disk, as the caller waits
// for the answer: that the query ran is there already.
func (j *Journal) Ran(q order.Query, code order.Code, took time.Duration) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	err := j.write("ran", q, " code="+strings.ReplaceAll(code.String(), " ", "_")+" ms="+strconv.FormatInt(took.Milliseconds(), 10))
	if err != nil {
		return journalError(err)
	}
	return nil
}

// write appends a line, as a whole or not at all. The caller has the lock.
func (j *Journal) write(what string, q order.Query, rest string) error {
	if j.size >= maxJournal {
		if err := j.turn(); err != nil {
			return err
		}
	}
	sum := blake2b.Sum256(q.Args)
	now := time.Now().UTC()
	if !now.After(j.last) {
		now = j.last.Add(1)
	}
	line := now.Format("2006-01-02T15:04:05.000000000Z") + " " + what + " order=" + q.Order.String() + " seq=" + strconv.FormatUint(uint64(q.Seq), 10) +
		" operator=" + q.Operator.String() + " method=" + strconv.Quote(q.Method) + " args=blake2b:" + hex.EncodeToString(sum[:8]) + rest + "\n"
	n, err := j.file.WriteString(line)
	if err != nil {
		if n > 0 && j.file.Truncate(j.size) != nil {
			j.size += int64(n) // the next line follows part of this one
		}
		return err
	}
	j.size += int64(n)
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
	for {
		line, turns, err := j.unpublished()
		if err != nil {
			return journalError(err)
		}
		if line == "" {
			return nil
		}
		if err := publish(strings.TrimSuffix(line, "\n")); err != nil {
			return err
		}
		if err := j.passed(len(line), turns); err != nil {
			return journalError(err)
		}
	}
}

// unpublished returns the next line with its end, empty if there is none, and of
// which turn it is.
func (j *Journal) unpublished() (line string, turns int, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	file, at := j.file, j.offset-j.older
	if at < 0 {
		if file, err = os.Open(j.path + ".1"); err != nil {
			return "", 0, err
		}
		defer file.Close()
		at = j.offset
	}
	data := make([]byte, maxPublished)
	n, err := file.ReadAt(data, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", 0, err
	}
	line, _, whole := strings.Cut(string(data[:n]), "\n")
	if !whole && n < len(data) && file == j.file {
		return "", 0, nil
	}
	return string(data[:min(n, len(line)+1)]), j.turns, nil
}

// passed notes that a line was published, unless a file was begun meanwhile:
// then it is published again.
func (j *Journal) passed(n, turns int) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if turns != j.turns {
		return nil
	}
	j.offset += int64(n)
	return j.writePublished(j.offset)
}

// readPublished reads how far publishing got. What makes no sense begins anew:
// rather twice than never.
func (j *Journal) readPublished() error {
	data, err := os.ReadFile(j.path + ".published")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if offset, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64); err == nil && offset >= 0 && offset <= j.older+j.size {
		j.offset = offset
	}
	return nil
}

func (j *Journal) writePublished(offset int64) error {
	next := j.path + ".published.new"
	if err := os.WriteFile(next, strconv.AppendInt(nil, offset, 10), 0o600); err != nil {
		return err
	}
	return os.Rename(next, j.path+".published")
}
