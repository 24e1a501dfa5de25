package client

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/musterfleet/muster"
)

// An outbox keeps what was accepted until the broker has stored it: one file
// for each send, numbered in the order of sending, whatever the clock says. A
// sender that is killed at any point leaves a file, which the next sender
// publishes first; what was published before is recognised by its id.
type outbox struct{ dir string }

func openOutbox(dir string) (*outbox, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, muster.Errorf(muster.Unavailable, "make the outbox: %w", err)
	}
	return &outbox{dir}, nil
}

const (
	outboxSuffix     = ".send"
	unreadableSuffix = ".unreadable" // of files that were set aside
)

// Locks of an outbox. They are two since publishing takes as long as the
// broker does, and adding must not wait for that.
const (
	publishLock = ".lock"
	addLock     = ".add.lock"
)

// An entry is what a sender has in the outbox.
type entry struct {
	name     string // of its file
	deadline time.Time
	waited   bool   // it was there: an earlier sender was told that it is kept
	release  func() // at the end of the sender's work
}

// add makes a send durable. One that repeats what waits already adds nothing.
func (o *outbox) add(ctx context.Context, b batch) (*entry, error) {
	data, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	unlock, err := o.lock(ctx, addLock)
	if err != nil {
		return nil, err
	}
	defer unlock()
	names, err := o.list(outboxSuffix)
	if err != nil {
		return nil, err
	}
	if e, err := o.waiting(b, names); e != nil || err != nil {
		return e, err
	}
	aside, err := o.list(unreadableSuffix)
	if err != nil {
		return nil, err
	}
	next := max(highest(names), highest(aside)) + 1 // what is set aside keeps its name for itself
	e := &entry{name: fmt.Sprintf("%020d-%s%s", next, b.Sent.ID, outboxSuffix), deadline: b.Sent.Deadline, release: func() {}}
	if err := writeDurably(o.dir, e.name, data); err != nil {
		return nil, muster.Errorf(muster.Unavailable, "write to the outbox: %w", err).WithHint("is the disk full? nothing was sent")
	}
	if !b.Chosen {
		return e, nil // nobody else can have its id
	}
	if e.release, err = hold(filepath.Join(o.dir, e.name)); err != nil {
		return nil, errors.Join(muster.Errorf(muster.Unavailable, "lock what is in the outbox: %w; nothing was sent", err), o.remove(e.name))
	}
	return e, nil
}

// unfinished is the file of a send while it is written, by one sender at a time. One
// that was killed leaves it to the next.
const unfinished = ".tmp"

// left says whether nobody is at work on a send any more who added it, so that it
// stays until it is published.
func (o *outbox) left(name string) bool {
	release, err := hold(filepath.Join(o.dir, name))
	if err != nil {
		return false
	}
	release()
	return true
}

// withdraw takes a send out of the outbox whose sender is told an error. One that
// was kept for an earlier sender stays.
func (o *outbox) withdraw(e *entry) (kept bool) { return e.waited || o.remove(e.name) != nil }

// writeDurably makes a file appear as a whole or not at all. The caller has the
// lock of who adds.
func writeDurably(dir, name string, data []byte) (err error) {
	tmp, err := os.OpenFile(filepath.Join(dir, unfinished), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name()) // the first error counts
		}
	}()
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err = os.Rename(tmp.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	if err = syncFolder(dir); err != nil {
		err = errors.Join(err, os.Remove(filepath.Join(dir, name))) // what is an error must not be there later
	}
	return err
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// number is that of a file, 0 if it has none.
func number(name string) uint64 {
	digits, _, _ := strings.Cut(name, "-")
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// highest is the number of the last file of a list, 0 if there is none.
func highest(names []string) uint64 {
	if len(names) == 0 {
		return 0
	}
	return number(names[len(names)-1])
}

// list returns the files with that suffix, in the order of sending.
func (o *outbox) list(suffix string) ([]string, error) {
	entries, err := os.ReadDir(o.dir)
	if err != nil {
		return nil, muster.Errorf(muster.Unavailable, "read the outbox: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) {
			names = append(names, e.Name())
		}
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(number(a), number(b)), cmp.Compare(a, b)) })
	return names, nil
}

// read returns a send. One that cannot be read is set aside under another
// name, with an error: it must not hold up the others, nor vanish.
func (o *outbox) read(name string) (batch, error) {
	path := filepath.Join(o.dir, name)
	data, err := os.ReadFile(path)
	if err != nil {
		return batch{}, err
	}
	var b batch
	if err := json.Unmarshal(data, &b); err != nil {
		if failed := os.Rename(path, path+unreadableSuffix); failed != nil {
			return batch{}, failed
		}
		return batch{}, muster.Errorf(muster.Corrupt, "a send in the outbox cannot be read, and is set aside as %s: %w", path+unreadableSuffix, err).
			WithHint("send again what it was, and remove the file")
	}
	return b, nil
}

// setAside keeps a send that cannot be sent, ever, out of the way of the others.
func (o *outbox) setAside(name string, cause error) error {
	path := filepath.Join(o.dir, name)
	if err := os.Rename(path, path+unreadableSuffix); err != nil {
		return err
	}
	return muster.Errorf(muster.Corrupt, "a send in the outbox is set aside as %s: %w", path+unreadableSuffix, cause).
		WithHint("send again what it was, under another id, and remove the file")
}

// takenBack returns why another sender set a send aside, or nil if it did not. It
// is no longer kept then, if its own sender is told.
func (o *outbox) takenBack(e *entry) error {
	path := filepath.Join(o.dir, e.name+unreadableSuffix)
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return muster.Errorf(muster.Unavailable, "read the outbox: %w", err)
	case !json.Valid(data):
		return muster.Errorf(muster.Corrupt, "the send cannot be read, and is set aside as %s", path)
	}
	if !e.waited {
		if err := os.Remove(path); err != nil {
			return muster.Errorf(muster.Unavailable, "write to the outbox: %w", err)
		}
	}
	return muster.Errorf(muster.Conflict, "%w by another send; nothing was sent", errTaken).WithHint("choose another --id, or none")
}

func (o *outbox) remove(name string) error { return os.Remove(filepath.Join(o.dir, name)) }

// flushThrough publishes the sends of the outbox, oldest first, up to and with
// that of the entry, and returns what the broker refused of that. When it fails
// for good before anything of that one was given to the broker, the send is taken
// out of the outbox again, and kept is false: what is an error for its sender
// must not be executed later. It stays if an earlier sender relies on it.
func (c *Client) flushThrough(ctx context.Context, e *entry) (refused []Refusal, kept bool, err error) {
	unlock, err := c.outbox.lock(ctx, publishLock)
	if err != nil {
		return nil, true, err
	}
	defer unlock()
	names, err := c.outbox.list(outboxSuffix)
	if err != nil {
		return nil, true, err
	}
	at := slices.Index(names, e.name)
	if at < 0 { // another sender was faster; what was refused is in the history
		err := c.outbox.takenBack(e)
		return nil, err == nil, err
	}
	for _, name := range names[:at] {
		if err := c.flushEarlier(ctx, name); err != nil {
			if ctx.Err() != nil || temporary(err) {
				return nil, true, err
			}
			err = muster.Errorf(muster.KindOf(err), "what was sent before waits in the outbox and cannot be sent: %w", err).
				WithHint("see 'muster outbox ls'; nothing was sent now")
			return nil, c.outbox.withdraw(e), err
		}
	}
	refused, begun, err := c.flushOne(ctx, e.name)
	switch {
	case err == nil || begun || ctx.Err() != nil || temporary(err):
		return refused, true, err
	case e.waited && errors.Is(err, errTaken): // as flushEarlier does, but here is somebody to be told
		return nil, false, c.outbox.setAside(e.name, err)
	}
	return nil, c.outbox.withdraw(e), err
}

// flushEarlier publishes what another sender left. What can never be sent is set
// aside, and holds up nothing.
func (c *Client) flushEarlier(ctx context.Context, name string) error {
	_, _, err := c.flushOne(ctx, name)
	switch {
	case errors.Is(err, errTaken):
		err = c.outbox.setAside(name, err)
	case muster.KindOf(err) != muster.Corrupt:
		return err
	}
	c.log.Error("some of what was sent before is not sent", "err", err)
	return nil
}

// temporary says whether a send that failed so may be stored when it is tried
// again later.
func temporary(err error) bool {
	kind := muster.KindOf(err)
	return kind == muster.Unavailable || kind == muster.Interrupted || kind == muster.Full
}

// flushOne publishes one send. Begun says that the broker may have got some of
// it.
func (c *Client) flushOne(ctx context.Context, name string) (refused []Refusal, begun bool, err error) {
	b, err := c.outbox.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	refused, begun, err = c.publish(ctx, b)
	if err != nil {
		return nil, begun, err
	}
	return refused, begun, c.outbox.remove(name)
}

// FlushOutbox publishes everything in the outbox and returns how many sends
// that were. Those that cannot be read are set aside, and are an error of kind
// Corrupt in the end.
func (c *Client) FlushOutbox(ctx context.Context) (int, error) {
	if c.outbox == nil {
		return 0, nil
	}
	unlock, err := c.outbox.lock(ctx, publishLock)
	if err != nil {
		return 0, err
	}
	defer unlock()
	names, err := c.outbox.list(outboxSuffix)
	if err != nil {
		return 0, err
	}
	n := 0
	var unreadable error
	for _, name := range names {
		_, _, err := c.flushOne(ctx, name)
		switch {
		case err == nil:
			n++
		case errors.Is(err, errTaken):
			unreadable = cmp.Or(unreadable, c.outbox.setAside(name, err))
		case muster.KindOf(err) == muster.Corrupt:
			unreadable = cmp.Or(unreadable, err)
		default:
			return n, err
		}
	}
	return n, unreadable
}

// A Waiting send is in the outbox.
type Waiting struct {
	ID       muster.CommandID  `json:"id"`
	Method   muster.Method     `json:"method"`
	Nodes    []muster.NodeName `json:"nodes"`
	Since    time.Time         `json:"since"`
	Deadline time.Time         `json:"deadline"`
	// Unreadable is the file of a send that cannot be read; then nothing else is
	// known of it.
	Unreadable string `json:"unreadable,omitempty"`
}

// Outbox lists the sends that wait in the outbox, in the order in which they
// will be sent, and then those that cannot be read.
func (c *Client) Outbox() ([]Waiting, error) {
	if c.outbox == nil {
		return nil, nil
	}
	names, err := c.outbox.list(outboxSuffix)
	if err != nil {
		return nil, err
	}
	var all []Waiting
	for _, name := range names {
		b, err := c.outbox.read(name)
		switch {
		case errors.Is(err, fs.ErrNotExist): // sent meanwhile
		case muster.KindOf(err) == muster.Corrupt: // set aside; it comes below
		case err != nil:
			return all, err
		default:
			all = append(all, Waiting{ID: b.Sent.ID, Method: b.Sent.Method, Nodes: b.Sent.Nodes, Since: b.Sent.IssuedAt, Deadline: b.Sent.Deadline})
		}
	}
	aside, err := c.outbox.list(unreadableSuffix)
	for _, name := range aside {
		all = append(all, Waiting{Unreadable: filepath.Join(c.outbox.dir, name)})
	}
	return all, err
}

// lockPoll is how often a taken lock is tried again.
const lockPoll = 20 * time.Millisecond

// lock keeps two senders from doing the same to one outbox at once, which
// could change the order. The kernel frees it when its holder dies.
func (o *outbox) lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(o.dir, name), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, muster.Errorf(muster.Unavailable, "lock the outbox: %w", err)
	}
	t := time.NewTicker(lockPoll)
	defer t.Stop()
	for {
		locked, err := tryLock(f)
		if locked {
			return func() { _ = f.Close() }, nil
		}
		if err != nil {
			_ = f.Close() // the first error counts
			return nil, muster.Errorf(muster.Unavailable, "lock the outbox: %w", err)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			_ = f.Close()
			return nil, muster.Errorf(muster.Unavailable, "another sender holds the outbox: %w", ctx.Err())
		}
	}
}
