package client

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/musterfleet/muster"
)

// An outbox keeps what was accepted until the broker has stored it: one file
// for each send, named so that they sort in the order of sending. A sender
// that is killed at any point leaves a file, which the next sender publishes
// first; what was published before is recognised by its id.
type outbox struct{ dir string }

func openOutbox(dir string) (*outbox, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, muster.Errorf(muster.Unavailable, "make the outbox: %w", err)
	}
	return &outbox{dir}, nil
}

const outboxSuffix = ".send"

// add makes a send durable and returns the name of its file.
func (o *outbox) add(b batch) (name string, err error) {
	data, err := json.Marshal(b)
	if err != nil {
		return "", err
	}
	name = string(NewID()) + outboxSuffix
	if err := writeDurably(o.dir, name, data); err != nil {
		return "", muster.Errorf(muster.Unavailable, "write to the outbox: %w", err).WithHint("is the disk full? nothing was sent")
	}
	return name, nil
}

// writeDurably makes a file appear as a whole or not at all.
func writeDurably(dir, name string, data []byte) (err error) {
	tmp, err := os.CreateTemp(dir, ".tmp-*")
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
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// list returns the files in the order of sending.
func (o *outbox) list() ([]string, error) {
	entries, err := os.ReadDir(o.dir)
	if err != nil {
		return nil, muster.Errorf(muster.Unavailable, "read the outbox: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), outboxSuffix) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
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
		err = cmp.Or(os.Rename(path, path+".unreadable"), err)
		return batch{}, muster.Errorf(muster.Corrupt, "outbox: %s cannot be read and is set aside: %w", path, err)
	}
	return b, nil
}

func (o *outbox) remove(name string) error { return os.Remove(filepath.Join(o.dir, name)) }

// flushThrough publishes the sends of the outbox, oldest first, up to and with
// the named one, and returns what the broker refused of that.
func (c *Client) flushThrough(ctx context.Context, last string) ([]Refusal, error) {
	unlock, err := c.outbox.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	names, err := c.outbox.list()
	if err != nil {
		return nil, err
	}
	if !slices.Contains(names, last) {
		return nil, nil // another sender was faster; what was refused is in the history
	}
	for _, name := range names {
		refused, err := c.flushOne(ctx, name)
		if err != nil || name == last {
			return refused, err
		}
	}
	return nil, nil
}

func (c *Client) flushOne(ctx context.Context, name string) ([]Refusal, error) {
	b, err := c.outbox.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if muster.KindOf(err) == muster.Corrupt {
		c.log.Error("a send in the outbox cannot be read", "err", err)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	refused, err := c.publish(ctx, b)
	if err != nil {
		return nil, err
	}
	return refused, c.outbox.remove(name)
}

// FlushOutbox publishes everything in the outbox and returns how many sends
// that were.
func (c *Client) FlushOutbox(ctx context.Context) (int, error) {
	if c.outbox == nil {
		return 0, nil
	}
	unlock, err := c.outbox.lock(ctx)
	if err != nil {
		return 0, err
	}
	defer unlock()
	names, err := c.outbox.list()
	if err != nil {
		return 0, err
	}
	for i, name := range names {
		if _, err := c.flushOne(ctx, name); err != nil {
			return i, err
		}
	}
	return len(names), nil
}

// A Waiting send is in the outbox.
type Waiting struct {
	ID       muster.CommandID  `json:"id"`
	Method   muster.Method     `json:"method"`
	Nodes    []muster.NodeName `json:"nodes"`
	Since    time.Time         `json:"since"`
	Deadline time.Time         `json:"deadline"`
}

// Outbox lists the sends that wait in the outbox, in the order in which they
// will be sent.
func (c *Client) Outbox() ([]Waiting, error) {
	if c.outbox == nil {
		return nil, nil
	}
	names, err := c.outbox.list()
	if err != nil {
		return nil, err
	}
	var all []Waiting
	for _, name := range names {
		b, err := c.outbox.read(name)
		switch {
		case errors.Is(err, fs.ErrNotExist): // sent meanwhile
		case err != nil:
			return all, err
		default:
			all = append(all, Waiting{b.Sent.ID, b.Sent.Method, b.Sent.Nodes, b.Sent.IssuedAt, b.Sent.Deadline})
		}
	}
	return all, nil
}

// OutboxLen returns the number of sends that wait in the outbox.
func (c *Client) OutboxLen() (int, error) {
	if c.outbox == nil {
		return 0, nil
	}
	names, err := c.outbox.list()
	return len(names), err
}

// lockPoll is how often a taken lock is tried again.
const lockPoll = 20 * time.Millisecond

// lock keeps two senders from publishing one outbox at once, which could
// change the order. The kernel frees it when its holder dies.
func (o *outbox) lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(o.dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
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
