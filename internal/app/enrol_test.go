package app_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/enrol"
)

// newcomerJoinsOnce: a token makes one node, whose files are its own.
func newcomerJoinsOnce(t *testing.T, f fleet) {
	token := f.invite("web-1.example.org")
	dir := filepath.Join(t.TempDir(), "node")

	bad := token
	bad.Secret = aaa.RandomSecret()
	if err := f.join(bad, filepath.Join(t.TempDir(), "bad")); muster.KindOf(err) != muster.Denied {
		t.Errorf("wrong secret: %v", err)
	}
	if err := f.join(token, dir); err != nil {
		t.Fatal(err)
	}
	files := []string{"agent.yaml", "node.creds"}
	if f.tls {
		files = append(files, "ca.pem")
	}
	for _, name := range files {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		} else if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %s", name, info.Mode())
		}
	}
	conn, _, err := f.dial(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Load(f.ctx()); err != nil {
		t.Fatal(err)
	}
	if err := f.join(token, filepath.Join(t.TempDir(), "other")); muster.KindOf(err) != muster.Denied {
		t.Errorf("second use: %v", err)
	}
	if err := enrol.Join(f.ctx(), token, filepath.Join(t.TempDir(), "late"), token.Expires, nil); muster.KindOf(err) != muster.Denied {
		t.Errorf("expired: %v", err)
	}
	if err := f.join(token, dir); muster.KindOf(err) != muster.Conflict {
		t.Errorf("joined twice in one folder: %v", err)
	}
}

func TestTenWrongSecretsVoidTheToken(t *testing.T) {
	f := startFleet(t, carrier{})
	token := f.invite("n")
	bad := token
	bad.Secret = aaa.RandomSecret()
	dir := t.TempDir()
	for range enrol.MaxFailures {
		if err := f.join(bad, dir); muster.KindOf(err) != muster.Denied {
			t.Fatal(err)
		}
	}
	if err := f.join(token, dir); muster.KindOf(err) != muster.Denied {
		t.Errorf("the right secret after too many wrong ones: %v", err)
	}
}

// removedNodeIsPutOut: at once, and for as long as it is not invited again.
func removedNodeIsPutOut(t *testing.T, f fleet) {
	dir := filepath.Join(t.TempDir(), "node")
	open := f.invite("n")
	if err := f.join(f.invite("n"), dir); err != nil {
		t.Fatal(err)
	}
	conn, _, err := f.dial(dir)
	if err != nil {
		t.Fatal(err)
	}
	op := f.operator()
	if err := op.AddRecord(f.ctx(), "remove.n", []byte(`{"stream":"MUSTER_ALIVE","seq":1}`)); err != nil {
		t.Fatal(err)
	}
	// Nor is it a reason to refuse a newcomer.
	if err := f.join(f.invite("m"), filepath.Join(t.TempDir(), "m")); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RTT(); err != nil {
		t.Fatalf("a record that is no removal put the node out: %v", err)
	}
	if err := op.AddRecord(f.ctx(), "remove.n", []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-conn.Done():
	case <-time.After(patience):
		t.Fatal("the removed node stays connected")
	}
	// A pipe within the process is closed before the reason is read.
	if _, _, err := f.dial(dir); err == nil || !f.inProcess && muster.KindOf(err) != muster.Denied {
		t.Errorf("the removed node comes back: %v", err)
	}
	if err := f.join(open, filepath.Join(t.TempDir(), "open")); muster.KindOf(err) != muster.Denied {
		t.Errorf("an older invitation still works: %v", err)
	}
	again := filepath.Join(t.TempDir(), "again")
	if err := f.join(f.invite("n"), again); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.dial(again); err != nil {
		t.Errorf("a new invitation does not work: %v", err)
	}
	ff, err := config.OpenFleet(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	if all, err := ff.Revocations(); err != nil || len(all) != 1 {
		t.Errorf("revocations: %v, %v", all, err)
	}
	// The same machine may come back with its folder.
	if err := enrol.Rejoin(f.ctx(), f.invite("n"), dir, time.Now(), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.dial(dir); err != nil {
		t.Errorf("the removed node, invited again: %v", err)
	}
}

// removalDisturbsNobody: a removal changes the account of all nodes while they
// work.
func removalDisturbsNobody(t *testing.T, f fleet) {
	dir := filepath.Join(t.TempDir(), "good")
	if err := f.join(f.invite("good"), dir); err != nil {
		t.Fatal(err)
	}
	conn, _, err := f.dial(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Load(f.ctx()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(f.ctx())
	defer cancel()
	took, ended := make(chan string, 100), make(chan error, 1)
	go func() {
		ended <- conn.Commands(ctx, "good", func(m bus.Message) error {
			took <- string(m.Data)
			return m.Ack()
		})
	}()
	op, cl := f.operator(), f.client()
	for i := range 5 {
		bad := muster.NodeName(fmt.Sprintf("bad%d", i))
		badDir := filepath.Join(t.TempDir(), string(bad))
		if err := f.join(f.invite(bad), badDir); err != nil {
			t.Fatal(err)
		}
		badConn, _, err := f.dial(badDir)
		if err != nil {
			t.Fatal(err)
		}
		if err := cl.RemoveNode(ctx, bad); err != nil {
			t.Fatal(err)
		}
		// Until the change has come, the node works on.
		for working := true; working; {
			select {
			case <-badConn.Done():
				working = false
			case <-ctx.Done():
				t.Fatal("the removed node stays connected")
			default:
			}
			report := bus.Outgoing{Subject: op.Subjects().Report(muster.Key{ID: "id1", Node: "good"}), Data: []byte("{}")}
			if err := conn.Put(ctx, report); err != nil {
				t.Fatalf("a report during a removal: %v", err)
			}
		}
		text := fmt.Sprintf("after %s", bad)
		command := bus.Outgoing{Subject: op.Subjects().Command("good", muster.KindCommand, "echo"), Data: []byte(text)}
		if err := op.Put(ctx, command); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-took:
			if got != text {
				t.Fatalf("took %q", got)
			}
		case err := <-ended:
			t.Fatalf("the queue of the other node: %v", err)
		case <-ctx.Done():
			t.Fatalf("no command reaches the other node %s", text)
		}
	}
	cancel()
	<-ended
}

// TestTheOwnPolicyStaysAndTheAgentSaysSo: whoever sends a policy with a token
// would else believe that it is in force.
func TestTheOwnPolicyStaysAndTheAgentSaysSo(t *testing.T) {
	const brought, own = "rules: [{name: all, effect: allow, methods: [\"*\"]}]\n", "# nothing is allowed here\n"
	f := startFleet(t, carrier{})
	for i, test := range []struct {
		there string // in policy.yaml, before
		stays bool
	}{{"", false}, {brought, false}, {own, true}} {
		o := invitation(f, muster.NodeName(fmt.Sprint("n", i)))
		o.Policy = brought
		token, err := app.Invite(f.ctx(), o)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if test.there != "" {
			if err := os.WriteFile(config.PolicyFile(dir), []byte(test.there), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		ctx, joined := context.WithCancel(f.ctx())
		var log bytes.Buffer
		err = app.RunAgent(ctx, app.AgentOptions{StateDir: dir, Token: token, Ready: joined, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatalf("%v\n%s", err, &log)
		}
		want := brought
		if test.stays {
			want = own
		}
		if text, err := os.ReadFile(config.PolicyFile(dir)); err != nil || string(text) != want {
			t.Errorf("%q: the policy is %q, %v", test.there, text, err)
		}
		if said := strings.Contains(log.String(), "the one that came with the token is not used"); said != test.stays {
			t.Errorf("%q: the agent says\n%s", test.there, &log)
		}
	}
}
