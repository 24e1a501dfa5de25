package agent

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/bus"
)

// An auditLog appends to the audit file. Each line holds the hash of the one
// before, so that a change in the middle shows. The file is also the queue of
// the events that tell of its lines: how far they were told is noted beside it.
//
// When a file is full, and all of it was told, the next one begins, and the
// chain goes on in it. Some older files are kept for those who look on the node.
type auditLog struct {
	path     string
	limit    int64 // bytes after which the next file begins
	log      *slog.Logger
	problems *problems
	secrets  func(muster.Method) []string // where in an input what is not written down is; may be nil
	wake     *signal                      // a line was written
	size     atomic.Int64                 // of the whole lines in the file
	toldTo   atomic.Int64                 // how many of these bytes the broker was told of

	// Owned by the core.
	file auditFile
	torn bool // part of a line may follow the whole ones
	prev [32]byte
}

// auditFile is what an auditLog needs of a file that was opened for appending.
type auditFile interface {
	io.Writer
	Truncate(size int64) error
	Sync() error
	Close() error
}

// Limits of the files: 144 MiB in all, which is some 200,000 decisions.
const (
	auditFileSize = 16 << 20
	auditOldFiles = 8 // audit.log.1 is the newest of them
)

func openAudit(path string, log *slog.Logger, p *problems) (*auditLog, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, muster.Errorf(muster.Unavailable, "open the audit log: %w", err)
	}
	last, size, rest, err := lastLine(f)
	if err == nil && rest > 0 {
		log.Warn("the audit log ends with part of a line, which is cut off: nothing had followed from it", "bytes", rest)
		err = f.Truncate(size)
	}
	if err != nil {
		_ = f.Close() // the first error counts
		return nil, muster.Errorf(muster.Unavailable, "read the audit log: %w", err)
	}
	a := &auditLog{path: path, limit: auditFileSize, log: log, problems: p, wake: newSignal(), file: f}
	a.size.Store(size)
	a.toldTo.Store(a.readTold())
	if len(last) == 0 {
		if last, err = a.lastOfOlder(); err != nil {
			_ = f.Close() // the first error counts
			return nil, err
		}
	}
	if len(last) > 0 {
		a.prev = aaa.AuditHash(last)
	}
	return a, nil
}

// older returns the name of the i-th file before this one.
func (a *auditLog) older(i int) string { return a.path + "." + strconv.Itoa(i) }

// lastOfOlder returns the last line of the file before this one, which has
// none yet. There is none before the first.
func (a *auditLog) lastOfOlder() ([]byte, error) {
	f, err := os.Open(a.older(1))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, muster.Errorf(muster.Unavailable, "open the older audit log: %w", err)
	}
	defer f.Close()
	last, _, _, err := lastLine(f)
	if err != nil {
		return nil, muster.Errorf(muster.Unavailable, "read the older audit log: %w", err)
	}
	return last, nil
}

// turn begins the next file if this one is full and nothing of it is still to
// be told. A crash at any point leaves files whose chain is whole; at worst
// lines are told twice.
func (a *auditLog) turn() error {
	size := a.size.Load()
	if size < a.limit || a.toldTo.Load() < size || a.torn {
		return nil
	}
	next, err := os.OpenFile(a.path+".next", os.O_CREATE|os.O_TRUNC|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	err = a.file.Sync()
	if err == nil {
		err = remove(a.told())
	}
	for i := auditOldFiles; i > 1 && err == nil; i-- {
		if err = os.Rename(a.older(i-1), a.older(i)); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		err = os.Rename(a.path, a.older(1))
	}
	if err == nil {
		if err = os.Rename(a.path+".next", a.path); err != nil {
			err = errors.Join(err, os.Rename(a.older(1), a.path))
		}
	}
	if err != nil {
		return errors.Join(err, next.Close())
	}
	old := a.file
	a.file = next
	a.size.Store(0)
	a.toldTo.Store(0)
	return old.Close()
}

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// lastLine returns the last whole line, where it ends, and how many bytes of
// another follow: the agent or its machine stopped while it was written.
func lastLine(f *os.File) (line []byte, size, rest int64, err error) {
	st, err := f.Stat()
	if err != nil {
		return nil, 0, 0, err
	}
	end, err := lineEnd(f, st.Size())
	if err != nil || end == 0 {
		return nil, 0, st.Size(), err
	}
	begin, err := lineEnd(f, end-1)
	if err != nil {
		return nil, 0, 0, err
	}
	line = make([]byte, end-begin)
	_, err = f.ReadAt(line, begin)
	return line, end, st.Size() - end, err
}

// lineEnd returns the offset behind the last line break before the given one.
func lineEnd(f io.ReaderAt, before int64) (int64, error) {
	buf := make([]byte, aaa.MaxAuditLine)
	for before > 0 {
		begin := max(0, before-int64(len(buf)))
		part := buf[:before-begin]
		if _, err := f.ReadAt(part, begin); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(part, '\n'); i >= 0 {
			return begin + int64(i) + 1, nil
		}
		before = begin
	}
	return 0, nil
}

// write appends one record. It is called by the core alone. It returns false
// when the line cannot be written; then the node says that it has a problem,
// and nothing may follow from the decision.
func (a *auditLog) write(r aaa.Record) bool {
	if err := a.turn(); err != nil {
		a.limit += auditFileSize // until it is tried again
		a.log.Warn("the next audit log could not be begun; this one goes on", "err", err)
	}
	var secrets []string
	if a.secrets != nil {
		secrets = a.secrets(r.Method)
	}
	line, next := aaa.AuditLine(a.prev, r, secrets)
	if err := a.append(line); err != nil {
		text := "its audit log cannot be written, and no command is accepted until it can: " + err.Error()
		if a.problems.set("audit", text) {
			a.log.Error("audit log cannot be written; nothing is accepted until it can", "err", err)
		}
		return false
	}
	if a.problems.set("audit", "") {
		a.log.Info("audit log can be written again")
	}
	a.prev = next
	a.size.Add(int64(len(line)))
	a.wake.set()
	return true
}

// append writes a whole line or, as far as it shows, nothing.
func (a *auditLog) append(line []byte) error {
	if a.torn {
		if err := a.file.Truncate(a.size.Load()); err != nil {
			return err
		}
		a.torn = false
	}
	n, err := a.file.Write(line)
	if err == nil {
		return nil
	}
	if n > 0 {
		a.torn = a.file.Truncate(a.size.Load()) != nil
	}
	return err
}

func (a *auditLog) close() error { return errors.Join(a.file.Sync(), a.file.Close()) }

// Decisions are told in batches: one batch is under way at a time.
const (
	auditBatch = 64
	auditRead  = 256 << 10
)

// told is the file that notes up to where the lines were published.
func (a *auditLog) told() string { return a.path + ".told" }

// readTold reads the note. One that is missing or makes no sense tells
// everything again, which does no harm: a line is known by its hash.
func (a *auditLog) readTold() int64 {
	data, err := os.ReadFile(a.told())
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(string(data), 10, 64)
	if err != nil || n < 0 || n > a.size.Load() {
		return 0
	}
	return n
}

// lines returns whole lines from an offset on, and where the next begins.
func (a *auditLog) lines(from int64) (lines [][]byte, next int64, err error) {
	n := min(a.size.Load()-from, auditRead)
	if n <= 0 {
		return nil, from, nil
	}
	buf := make([]byte, n)
	if n, err := readAt(a.path, from, buf); err != nil || n < len(buf) {
		return nil, from, muster.Errorf(muster.Unavailable, "read the audit log: %d of %d bytes: %w", n, len(buf), err)
	}
	next = from
	for len(lines) < auditBatch {
		line, rest, whole := bytes.Cut(buf, []byte("\n"))
		if !whole {
			break
		}
		lines = append(lines, line)
		next += int64(len(line)) + 1
		buf = rest
	}
	if next == from { // longer than any line of ours
		next += n
	}
	return lines, next, nil
}

// auditEvent is the event of one line. It has the line as it is, so that the
// chain can be checked from the events alone.
func auditEvent(node muster.NodeName, line []byte) (e muster.Event, mark string) {
	hash := aaa.AuditHash(line)
	e = muster.Event{Time: time.Now(), Node: node, Type: muster.EventAudit, Message: "a line that cannot be read",
		Data: map[string]string{"line": string(line)}}
	var r aaa.Record
	if json.Unmarshal(line, &r) == nil {
		e.Time = r.Time
		e.Message = fmt.Sprintf("%s: %s %s by %s", r.Verdict, r.Method, r.ID, r.Caller)
	}
	return e, hex.EncodeToString(hash[:])
}

// tellAudit publishes the decisions during one session, in their order.
func (a *Agent) tellAudit(ctx context.Context, conn *bus.Conn, p *bus.Pipeline) {
	for ctx.Err() == nil {
		at := a.audit.toldTo.Load()
		lines, next, err := a.audit.lines(at)
		if err == nil && next == at {
			select {
			case <-a.audit.wake.c:
			case <-ctx.Done():
			}
			continue
		}
		if err == nil {
			err = a.tellLines(conn.Subjects(), p, lines)
		}
		if err != nil {
			a.log.Debug("decisions were not published; trying again", "err", err)
			select {
			case <-time.After(reportAgain):
			case <-ctx.Done():
			}
			continue
		}
		if err := replaceFile(a.audit.told(), strconv.AppendInt(nil, next, 10)); err != nil {
			a.log.Debug("an agent that follows will publish decisions again", "err", err)
		}
		a.audit.toldTo.Store(next) // last: from here on the core may begin the next file
	}
}

// tellLines publishes one batch and waits until it is stored.
func (a *Agent) tellLines(s bus.Subjects, p *bus.Pipeline, lines [][]byte) error {
	results := make(chan error, len(lines))
	for _, line := range lines {
		e, mark := auditEvent(a.o.Node, line)
		p.Publish(eventMessage(s, e, mark), func(err error) { results <- err })
	}
	var failed error
	for range lines {
		failed = errors.Join(failed, <-results)
	}
	return failed
}
