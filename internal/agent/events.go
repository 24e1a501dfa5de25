package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// events waits for a session to be told in. A file keeps what waits for the
// next agent: it is written anew at each change, which is rare. Decisions are
// events too, but wait in the audit log.
type events struct {
	node muster.NodeName
	path string
	log  *slog.Logger
	wake *signal
	mu   sync.Mutex // guards list and the file
	list []muster.Event
}

const maxEvents = 1000

// openEvents reads what an earlier agent left. A file that cannot be read is
// no reason not to start: nothing is promised of events.
func openEvents(node muster.NodeName, path string, log *slog.Logger) *events {
	e := &events{node: node, path: path, log: log, wake: newSignal()}
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &e.list)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("events of an earlier agent cannot be read", "err", err)
		e.list = nil
	}
	return e
}

func (e *events) add(kind, message string, data map[string]string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.list) < maxEvents {
		e.list = append(e.list, muster.Event{Time: time.Now(), Node: e.node, Type: kind, Message: message, Data: data})
		e.save()
	}
	e.wake.set()
}

// save writes the file. When it fails the events are in memory alone.
func (e *events) save() {
	data, err := json.Marshal(e.list)
	if err != nil {
		panic(err) // plain fields
	}
	if err := replaceFile(e.path, data); err != nil {
		e.log.Warn("events that wait are not kept on disk", "err", err)
	}
}

// replaceFile writes a file that appears as a whole.
func replaceFile(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
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
	e.save()
}

// send tells events during one session, by put. What is not stored is tried again.
func (e *events) send(ctx context.Context, s bus.Subjects, put func(context.Context, bus.Outgoing) error) {
	e.wake.set()
	for {
		select {
		case <-e.wake.c:
		case <-ctx.Done():
			return
		}
		for event, ok := e.first(); ok; event, ok = e.first() {
			err := put(ctx, eventMessage(s, event, event.Time.Format(time.RFC3339Nano)))
			if err == nil {
				e.drop()
				continue
			}
			e.log.Debug("an event was not stored; trying again", "type", event.Type, "err", err)
			select {
			case <-time.After(reportAgain):
			case <-ctx.Done():
				return
			}
		}
	}
}

// eventMessage is an event on the bus. The mark tells it from others of its
// type, however often it is sent.
func eventMessage(s bus.Subjects, e muster.Event, mark string) bus.Outgoing {
	data, err := json.Marshal(e)
	if err != nil {
		panic(err) // plain fields
	}
	return bus.Outgoing{Subject: s.Event(e.Type, e.Node), Data: data, ID: string(e.Node) + "/" + e.Type + "/" + mark}
}
