package agent

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
)

// revoking is a list of the bench's issuer.
func (b *bench) revoking(serial uint64, revoked ...aaa.Revocation) []json.RawMessage {
	b.t.Helper()
	data, err := b.issuer.SignRevocations(aaa.RevocationList{Fleet: "f", Serial: serial, IssuedAt: time.Now().UTC(), Revoked: revoked})
	if err != nil {
		b.t.Fatal(err)
	}
	return []json.RawMessage{data}
}

// by delivers a command of a caller.
func (b *bench) by(name, id string, issued time.Time) {
	caller := alice
	caller.Name, caller.PublicKey, caller.Issued = name, "key of "+name, issued
	b.deliver(parcel{cmd: b.command(id), caller: caller, ack: func() error { return nil }, aside: func(error) {}})
}

// told lists the types of the events that wait.
func (b *bench) told() (types []string) {
	b.a.events.mu.Lock()
	defer b.a.events.mu.Unlock()
	for _, e := range b.a.events.list {
		types = append(types, e.Type)
	}
	return types
}

// TestRevokedWhileWaiting: what runs goes on; what waits does not run, nor does
// what comes afterwards; another caller and a new identity are not concerned.
func TestRevokedWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		b := newBench(t, hold)
		now := time.Now().UTC().Truncate(time.Second)
		b.by("mallory", "runs", now)
		b.by("mallory", "waits", now)
		b.by("alice", "other", now)
		synctest.Wait()
		b.expect("before", nil, "runs")
		b.a.takeRevoked(b.revoking(1, aaa.Revocation{Name: "mallory", At: now, Reason: "left"}))
		b.by("mallory", "late", now)
		b.by("mallory", "reissued", now.Add(time.Second))
		synctest.Wait()
		close(hold)
		synctest.Wait()
		b.expect("after", nil, "runs", "other", "reissued")
		if got := strings.Join(b.told(), " "); got != "revocations revoked-caller" {
			t.Errorf("events: %s", got)
		}
		log, err := os.ReadFile(filepath.Join(b.dir, "audit.log"))
		if err != nil {
			t.Fatal(err)
		}
		denied := 0
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, `"decision":"denied"`) && strings.Contains(line, "revoked at") && strings.Contains(line, ": left") {
				denied++
			}
		}
		if denied != 2 || verified(t, filepath.Join(b.dir, "audit.log")) != 6 {
			t.Errorf("%d lines of refusals, want 2, in\n%s", denied, log)
		}
	})
}

// TestWithdrawalOfARevokedCaller: one that was verified before the list came, and
// waited since, withdraws nothing.
func TestWithdrawalOfARevokedCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		mallory := alice
		mallory.Name, mallory.PublicKey, mallory.Issued = "mallory", "key of mallory", time.Now()
		b.room(0)
		w := b.command("w")
		w.Input = json.RawMessage(`{"id": "c", "until": "` + w.Deadline.Format(time.RFC3339) + `"}`)
		if err := b.withdraw(w, mallory); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		b.a.takeRevoked(b.revoking(1, aaa.Revocation{Name: "mallory", At: time.Now().UTC().Truncate(time.Second)}))
		b.room(1 << 30)
		time.Sleep(2 * auditAgain)
		b.send("c", "c")
		synctest.Wait()
		b.expect("afterwards", []string{"c"}, "c")
		if got := strings.Join(b.told(), " "); got != "revocations revoked-caller" {
			t.Errorf("events: %s", got)
		}
	})
}

// TestWithdrawalWithARevokedKey: whoever uses one is told of, whatever for.
func TestWithdrawalWithARevokedKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.a.takeRevoked(b.revoking(1, aaa.Revocation{Name: "alice", At: time.Now().UTC().Truncate(time.Second)}))
		b.refuse(b.command("w"), alice, b.a.o.Verifier.Revoked(alice))
		synctest.Wait()
		if got := strings.Join(b.told(), " "); got != "revocations revoked-caller" {
			t.Errorf("events: %s", got)
		}
	})
}

// TestOlderListIsRefused: what the broker offers is never a way back, and the
// operators hear of it.
func TestOlderListIsRefused(t *testing.T) {
	b := newBench(t, nil)
	bob := aaa.Revocation{Name: "bob", At: time.Unix(1, 0).UTC()}
	first, second := b.revoking(1), b.revoking(2, bob)
	b.a.takeRevoked(first)
	b.a.takeRevoked(second)
	mark := b.a.revokedMark()
	if l := b.a.problems.list(); len(l) != 0 {
		t.Fatalf("problems: %q", l)
	}
	for name, offer := range map[string][]json.RawMessage{
		"an older one": first, "another with its number": b.revoking(2), "none": nil,
		"garbage": {json.RawMessage(`{"stream":"X","seq":1}`)},
	} {
		b.a.takeRevoked(offer)
		if b.a.revokedMark() != mark {
			t.Fatalf("%s took its place", name)
		}
		if l := b.a.problems.list(); len(l) != 1 || !strings.Contains(l[0], "the broker offers other lists") {
			t.Errorf("%s: problems: %q", name, l)
		}
	}
	b.a.takeRevoked(second)
	if l := b.a.problems.list(); len(l) != 0 {
		t.Errorf("problems afterwards: %q", l)
	}
	if got := strings.Count(strings.Join(b.told(), " "), "revocations-refused"); got != 4 {
		t.Errorf("%d events of refusals, want 4", got)
	}
}

// TestRevokedIsKept: an agent that starts without a broker knows who is revoked.
// A file that makes no sense is said so, and does not keep it from starting.
func TestRevokedIsKept(t *testing.T) {
	b := newBench(t, nil)
	bob := aaa.Caller{Name: "bob", Issued: time.Unix(1, 0)}
	b.a.takeRevoked(b.revoking(1, aaa.Revocation{Name: "bob", At: time.Unix(1, 0).UTC()}))
	verifier, err := aaa.NewVerifier("f", b.issuer.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	next := &Agent{o: Options{StateDir: b.dir, Verifier: verifier}, log: b.a.log, events: b.a.events}
	if err := next.openRevoked(); err != nil {
		t.Fatal(err)
	}
	if why := next.o.Verifier.Revoked(bob); why == nil || !errors.Is(why, aaa.ErrRevoked) || muster.KindOf(why) != muster.Denied {
		t.Errorf("after a restart: %v", why)
	}
	if info, err := os.Stat(next.revoked.path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its file: %v, %v", info, err)
	}
	if err := os.WriteFile(next.revoked.path, []byte("[{}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := next.openRevoked(); err != nil || !strings.Contains(strings.Join(b.told(), " "), "revocations-unreadable") {
		t.Errorf("a file that makes no sense: %v, events %q", err, b.told())
	}
}
