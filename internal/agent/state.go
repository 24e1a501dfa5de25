package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/bus"
)

func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// problems are what an operator should know of the node, by topic.
type problems struct {
	mu    sync.Mutex // guards topic
	topic map[string]string
}

func (p *problems) add(text string) { p.set(text, text) }

// set replaces the text of a topic; an empty one ends it.
func (p *problems) set(topic, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.topic == nil {
		p.topic = make(map[string]string)
	}
	p.topic[topic] = text
	if text == "" {
		delete(p.topic, topic)
	}
}

func (p *problems) list() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []string
	for _, t := range p.topic {
		all = append(all, t)
	}
	slices.Sort(all)
	return all
}

// events waits for a session to be told in. It keeps a bounded number.
type events struct {
	node muster.NodeName
	wake *signal
	mu   sync.Mutex // guards list
	list []muster.Event
}

const maxEvents = 1000

func newEvents(node muster.NodeName) *events { return &events{node: node, wake: newSignal()} }

func (e *events) add(kind, message string, data map[string]string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.list) < maxEvents {
		e.list = append(e.list, muster.Event{Time: time.Now(), Node: e.node, Type: kind, Message: message, Data: data})
	}
	e.wake.set()
}

func (e *events) first() (muster.Event, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.list) == 0 {
		return muster.Event{}, false
	}
	return e.list[0], true
}

func (e *events) drop() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = e.list[1:]
}

// send tells events during one session.
func (e *events) send(ctx context.Context, conn *bus.Conn) {
	e.wake.set()
	for {
		select {
		case <-e.wake.c:
		case <-ctx.Done():
			return
		}
		for event, ok := e.first(); ok; event, ok = e.first() {
			data, err := json.Marshal(event)
			if err != nil {
				panic(err) // plain fields
			}
			m := bus.Outgoing{Subject: conn.Subjects().Event(event.Type, e.node), Data: data,
				ID: string(e.node) + "/" + event.Type + "/" + event.Time.Format(time.RFC3339Nano)}
			if conn.Put(ctx, m) != nil {
				return // the next session tries again
			}
			e.drop()
		}
	}
}

// An auditLog appends to the audit file. Each line holds the hash of the one
// before, so that a change in the middle shows.
type auditLog struct {
	log      *slog.Logger
	problems *problems
	file     *os.File
	prev     [32]byte
}

func openAudit(path string, log *slog.Logger, p *problems) (*auditLog, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, muster.Errorf(muster.Unavailable, "open the audit log: %w", err)
	}
	last, err := lastLine(f)
	if err != nil {
		_ = f.Close() // the first error counts
		return nil, muster.Errorf(muster.Unavailable, "read the audit log: %w", err)
	}
	a := &auditLog{log: log, problems: p, file: f}
	if len(last) > 0 {
		a.prev = aaa.AuditHash(last)
	}
	return a, nil
}

// maxAuditLine is more than any line that is written.
const maxAuditLine = 64 << 10

// lastLine returns the last line without its newline. A line that was cut
// short by a crash is ended first.
func lastLine(f *os.File) ([]byte, error) {
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return nil, err
	}
	n := min(st.Size(), maxAuditLine)
	buf := make([]byte, n)
	if _, err := f.ReadAt(buf, st.Size()-n); err != nil {
		return nil, err
	}
	if buf[n-1] != '\n' {
		if _, err := f.Write([]byte("\n")); err != nil {
			return nil, err
		}
	} else {
		buf = buf[:n-1]
	}
	for i := len(buf) - 1; i >= 0; i-- {
		if buf[i] == '\n' {
			return buf[i+1:], nil
		}
	}
	return buf, nil
}

// write appends one record. It is called by the core alone. A line that cannot
// be written goes to the program's log, and the node says that it has a problem.
func (a *auditLog) write(r aaa.Record) {
	line, next := aaa.AuditLine(a.prev, r, nil)
	if _, err := a.file.Write(line); err != nil {
		a.log.Error("audit log cannot be written", "err", err, "line", string(line))
		a.problems.set("audit", "its audit log cannot be written: "+err.Error())
		return
	}
	a.problems.set("audit", "")
	a.prev = next
}

func (a *auditLog) close() error { return errors.Join(a.file.Sync(), a.file.Close()) }

// recent remembers the ids of withdrawals that were taken in, so that they are
// judged and audited once. It forgets the oldest.
type recent struct {
	mu    sync.Mutex // guards the fields below
	ids   map[muster.CommandID]bool
	order []muster.CommandID
}

// seen reports whether the id was seen before, and remembers it.
func (r *recent) seen(id muster.CommandID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ids[id] {
		return true
	}
	if r.ids == nil {
		r.ids = make(map[muster.CommandID]bool)
	}
	r.ids[id] = true
	r.order = append(r.order, id)
	if len(r.order) > 2*maxControl {
		delete(r.ids, r.order[0])
		r.order = r.order[1:]
	}
	return false
}
