package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/delivery"
)

// revoked keeps the lists of revoked callers. They are in force in the
// verifier, and in a file for the next agent.
type revoked struct {
	path string
	wake *signal    // the broker may have another list
	news *signal    // a list came during the session
	mu   sync.Mutex // held to take lists in
}

// openRevoked puts in force what an earlier agent kept. A file that makes no
// sense is no reason not to start: the lists are read from the broker before
// any command is.
func (a *Agent) openRevoked() error {
	a.revoked.path, a.revoked.wake, a.revoked.news = config.RevokedFile(a.o.StateDir), newSignal(), newSignal()
	data, err := os.ReadFile(a.revoked.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return muster.Errorf(muster.Unavailable, "read the lists of revoked callers: %w", err)
	}
	lists, err := aaa.SplitRevocations(data)
	if err == nil {
		_, err = a.enforce(lists)
	}
	if err != nil {
		a.log.Error("the lists of revoked callers that were kept cannot all be read", "file", a.revoked.path, "err", err)
		a.events.add("revocations-unreadable", "the lists of revoked callers that it kept cannot all be read: "+err.Error(), nil)
	}
	return nil
}

// enforce puts in force what is newer. Lists that are wrong hold up no others.
func (a *Agent) enforce(lists []json.RawMessage) (news []aaa.SignedRevocations, err error) {
	if len(lists) > aaa.MaxIssuers {
		return nil, muster.Errorf(muster.Invalid, "there are %d lists of revocations; at most %d are allowed", len(lists), aaa.MaxIssuers)
	}
	for _, data := range lists {
		list, bad := a.o.Verifier.ReadRevocations(data)
		changed := false
		if bad == nil {
			changed, bad = a.o.Verifier.Revoke(list)
		}
		if changed {
			news = append(news, list)
		}
		err = errors.Join(err, bad)
	}
	return news, err
}

// readRevoked takes in the lists that the broker has now.
func (a *Agent) readRevoked(ctx context.Context, conn *bus.Conn) error {
	lists, err := conn.Revoked(ctx)
	if err == nil {
		a.takeRevoked(lists)
	}
	return err
}

// takeRevoked puts lists from the broker in force and keeps them. What it
// refuses, and what is missing, shows among the problems of the node: the
// broker, or who may write to it, may want an older list to be in force.
func (a *Agent) takeRevoked(lists []json.RawMessage) {
	a.revoked.mu.Lock()
	defer a.revoked.mu.Unlock()
	news, bad := a.enforce(lists)
	if kept := len(a.o.Verifier.Revocations()); bad == nil && len(lists) < kept {
		bad = muster.Errorf(muster.Conflict, "%d of %d lists of revoked callers are missing there", kept-len(lists), kept)
	}
	text := ""
	if bad != nil {
		text = "the broker offers other lists of revoked callers than those in force, which stay: " + strings.ReplaceAll(bad.Error(), "\n", "; ")
	}
	if a.problems.set("revoked", text) && bad != nil {
		a.log.Error("lists of revoked callers are refused", "err", bad)
		a.events.add("revocations-refused", text, nil)
	}
	if len(news) == 0 {
		return
	}
	a.keepRevoked()
	for _, list := range news {
		a.log.Info("a list of revoked callers is in force", "serial", list.Serial, "issued", list.IssuedAt, "entries", len(list.Revoked))
		a.events.add("revocations", fmt.Sprintf("list %d of revoked callers is in force", list.Serial),
			map[string]string{"issuer": list.Issuer, "entries": fmt.Sprint(len(list.Revoked))})
	}
	a.core.recheck()
}

// keepRevoked writes the file. When it fails, the lists are in memory alone,
// and the next agent reads them from the broker.
func (a *Agent) keepRevoked() {
	text := ""
	if err := config.WriteFile(a.revoked.path, aaa.JoinRevocations(a.o.Verifier.Revocations())); err != nil {
		text = "its lists of revoked callers cannot be kept: " + err.Error()
		a.log.Error("lists of revoked callers are not kept on disk", "err", err)
	}
	a.problems.set("revoked-file", text)
}

func (a *Agent) revokedMark() string { return aaa.RevocationMark(a.o.Verifier.Revocations()) }

// hearRevoked looks whether a ping tells of lists that this node does not have.
func (a *Agent) hearRevoked(ping string) {
	if mark, ok := bus.NewsOfRevoked(ping); ok && mark != a.revokedMark() {
		a.revoked.wake.set()
	}
}

const (
	revokedEvery = 10 * time.Minute // in case that a ping did not come
	revokedPause = time.Second      // pings cost no more than that, whoever sends them
)

// watchRevoked reads the lists anew during one session, when there is news, and
// then tells the operators that it has them.
func (a *Agent) watchRevoked(ctx context.Context, conn *bus.Conn) {
	again := time.NewTicker(revokedEvery)
	defer again.Stop()
	for {
		select {
		case <-a.revoked.wake.c:
		case <-again.C:
		case <-ctx.Done():
			return
		}
		before := a.revokedMark()
		if err := a.readRevoked(ctx, conn); err != nil {
			a.log.Debug("lists of revoked callers were not read", "err", err)
			a.revoked.wake.set()
		}
		if a.revokedMark() != before {
			a.revoked.news.set()
			if err := conn.Tell(conn.Subjects().Alive(conn.Mailbox(), a.o.Node), a.beat(false, "")); err != nil {
				a.log.Debug("heartbeat was not sent", "err", err)
			}
		}
		select {
		case <-time.After(revokedPause):
		case <-ctx.Done():
			return
		}
	}
}

var errRevokedNews = muster.Errorf(muster.Interrupted, "a list of revoked callers came")

// untilRevoked returns a context for reading the queue, which ends when a list
// comes: the broker has cut callers off before, and with that lost what it was
// about to answer to nodes. Without it the node would notice after half a minute.
func (a *Agent) untilRevoked(ctx context.Context) (reading context.Context, stop func()) {
	reading, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-a.revoked.news.c:
			cancel(errRevokedNews)
		case <-reading.Done():
		}
	})
	return reading, func() {
		cancel(nil)
		watch.Wait()
	}
}

// revokedSince is why an accepted command must not begin, nil if it may.
func (a *Agent) revokedSince(r delivery.Record) *muster.Error {
	return a.o.Verifier.Revoked(callerOf(r))
}

func signerOf(c aaa.Caller) delivery.Signer {
	return delivery.Signer{Key: c.PublicKey, Issued: c.Issued}
}

// callerOf is as much of a command's caller as the journal keeps.
func callerOf(r delivery.Record) aaa.Caller {
	return aaa.Caller{Name: r.Report.Caller, PublicKey: r.Signer.Key, Issued: r.Signer.Issued}
}

// recheck refuses what waits and was sent by a caller that is revoked now.
func (c *core) recheck() {
	c.post(func() { c.inbox.Recheck(time.Now()) })
}

// tellRefused writes the audit line of a command that was accepted before its
// caller was revoked. The refusal does not wait for it: nothing may run for want
// of a line.
func (c *core) tellRefused(r delivery.Record) {
	caller := callerOf(r)
	rec := c.a.decided(r.Command, caller, aaa.Denied)
	rec.Reason = "it was accepted before: " + r.Report.History[len(r.Report.History)-1].Reason
	c.take(intake{do: func() bool { return c.a.audit.write(rec) }})
	c.alarm(caller, r.Command)
}

// maxAlarms bounds the keys that are told of, and the memory of them.
const maxAlarms = 1000

// alarm tells once of each key that it was used after it was revoked: a thief
// may still have it.
func (c *core) alarm(caller aaa.Caller, cmd muster.Command) {
	if c.alarmed[caller.PublicKey] || len(c.alarmed) >= maxAlarms {
		return
	}
	c.alarmed[caller.PublicKey] = true
	c.a.log.Warn("a command of a revoked caller is refused", "caller", caller.Name, "command", cmd.ID)
	c.a.events.add("revoked-caller", fmt.Sprintf("a command of %s, who is revoked, was refused", caller.Name), map[string]string{
		"caller": caller.Name, "caller_key": caller.PublicKey, "id": string(cmd.ID), "method": string(cmd.Method),
	})
}
