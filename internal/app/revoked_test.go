package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
)

// caller makes a further caller, and returns the folder of its context.
func (f fleet) caller(name string) string {
	f.t.Helper()
	dir := filepath.Join(f.t.TempDir(), name)
	if err := app.AddOperator(app.OperatorOptions{Dir: f.dir, Name: name, Groups: []string{"admin"}, Out: dir}); err != nil {
		f.t.Fatal(err)
	}
	return dir
}

// dialContext connects with the credentials of a context, by a socket: a pipe
// within the process is closed before the reason for a refusal is read.
func (f fleet) dialContext(dir string) (*bus.Conn, error) {
	f.t.Helper()
	c, err := config.ReadContext(dir)
	if err != nil {
		f.t.Fatal(err)
	}
	userJWT, seed, err := config.ParseCreds(c.Credentials)
	if err != nil {
		f.t.Fatal(err)
	}
	conn, err := bus.Dial(f.ctx(), bus.Options{URLs: c.URLs, JWT: userJWT, Seed: string(seed.Reveal()), CA: c.CA, Prefix: c.Prefix})
	if err == nil {
		f.t.Cleanup(conn.Close)
	}
	return conn, err
}

// revoke does as 'muster caller revoke' does.
func (f fleet) revoke(who ...string) app.RevokeResult {
	f.t.Helper()
	r, err := app.RevokeCallers(f.ctx(), app.RevokeOptions{Dir: f.dir, Who: who, Reason: "a test"})
	if err != nil || r.Broker != "ok" || r.Uncounted != "" {
		f.t.Fatalf("revoke %v: %+v, %v", who, r, err)
	}
	return r
}

// refuses reports an error unless the broker refuses the context.
func (f fleet) refuses(dir string) error {
	conn, err := f.dialContext(dir)
	switch {
	case err == nil:
		conn.Close()
		return fmt.Errorf("the broker admits a revoked caller")
	case muster.KindOf(err) != muster.Denied:
		return err
	}
	return nil
}

// revokedCallerIsCutOff at once, and nobody else is; nodes can read why they
// are to refuse it; the name may have another identity.
func revokedCallerIsCutOff(t *testing.T, f fleet) {
	before, other := f.caller("alice"), f.caller("bob")
	alice, err := f.dialContext(before)
	if err != nil {
		t.Fatal(err)
	}
	bob, err := f.dialContext(other)
	if err != nil {
		t.Fatal(err)
	}
	me := f.node("revokes")
	r := f.revoke("alice")
	select {
	case <-alice.Done():
	case <-time.After(patience):
		t.Fatal("the revoked caller stays connected")
	}
	// In a cluster one server may learn of it later than another.
	f.until("the revoked caller", func() error { return f.refuses(before) })
	if len(r.Revoked) != 1 || r.Revoked[0].Name != "alice" || r.Revoked[0].Reason != "a test" {
		t.Errorf("revoked: %+v", r.Revoked)
	}
	f.until("the list", func() error { // a replica may hear of it a moment later than the leader
		list, err := f.published(me)
		if err == nil && list.Serial != r.Serial {
			err = fmt.Errorf("its serial is %d, want %d", list.Serial, r.Serial)
		}
		return err
	})
	if _, err := bob.Load(f.ctx()); err != nil {
		t.Errorf("another caller: %v", err)
	}
	if err := bob.Put(f.ctx(), commandTo(bob, "revokes", "0")); err != nil {
		t.Errorf("another caller: %v", err)
	}
	if got := f.take(me, "revokes", 1, always); !slices.Equal(got, []string{"0"}) {
		t.Errorf("the node got %v", got)
	}
	again := f.caller("alice")
	if _, err := f.dialContext(again); err != nil {
		t.Errorf("the name with another identity: %v", err)
	}
	if err := f.refuses(before); err != nil {
		t.Errorf("the revoked identity, after the name got another: %v", err)
	}
	// A newcomer knows of it from its invitation.
	joined := filepath.Join(t.TempDir(), "newcomer")
	if err := f.join(f.invite("newcomer"), joined); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(config.RevokedFile(joined)); err != nil || !strings.HasPrefix(string(text), `[{"issuer":`) {
		t.Errorf("a newcomer's list: %.20q, %v", text, err)
	}
	// One key of the name, and not the other.
	all, partial, err := app.Callers(f.dir)
	if err != nil || partial {
		t.Fatalf("callers: %v, partial %v", err, partial)
	}
	at := slices.IndexFunc(all, func(c app.Caller) bool { return c.Name == "alice" && c.Revoked.IsZero() })
	if at < 0 {
		t.Fatalf("callers: %+v", all)
	}
	third := f.caller("alice")
	f.revoke(all[at].Key)
	f.until("the revoked key", func() error { return f.refuses(again) })
	if _, err := f.dialContext(third); err != nil {
		t.Errorf("another key of the name: %v", err)
	}
	if _, err := app.RevokeCallers(f.ctx(), app.RevokeOptions{Dir: f.dir, Who: []string{"alcie"}}); muster.KindOf(err) != muster.NotFound {
		t.Errorf("a name that nobody has: %v", err)
	}
}

// published reads the list of the fleet's issuer as a node does.
func (f fleet) published(me *bus.Conn) (list aaa.SignedRevocations, err error) {
	f.t.Helper()
	ff, err := config.OpenFleet(f.dir)
	if err != nil {
		f.t.Fatal(err)
	}
	lists, err := me.Revoked(f.ctx())
	if err == nil && len(lists) != 1 {
		err = fmt.Errorf("there are %d lists", len(lists))
	}
	if err != nil {
		return list, err
	}
	return aaa.ReadRevocations(lists[0], ff.Fleet.ID, ff.Fleet.Issuers...)
}

// revocationOutlives what carries the messages, and a change of the layout.
func revocationOutlives(t *testing.T, f fleet) {
	carol := f.caller("carol")
	serial := f.revoke("carol").Serial
	f.restart()
	f.until("the revoked caller, after a restart", func() error { return f.refuses(carol) })
	f.until("another number of streams", func() error { // the service may still be at work on the layout
		return app.Reshard(f.ctx(), app.ReshardOptions{Dir: f.dir, Shards: 5})
	})
	list, err := f.published(f.again("outlived"))
	if err != nil || list.Serial != serial {
		t.Errorf("the list after a restart: %d, want %d; %v", list.Serial, serial, err)
	}
}

// clientOf connects as the caller of a context.
func (f fleet) clientOf(dir string) *client.Client {
	f.t.Helper()
	c, err := config.ReadContext(dir)
	if err != nil {
		f.t.Fatal(err)
	}
	cl, err := client.Connect(f.ctx(), client.Options{
		URLs: c.URLs, Credentials: c.Credentials.Reveal(), CA: c.CA, Prefix: c.Prefix, Identity: c.Identity.Reveal(), Name: "test",
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(cl.Close)
	return cl
}

// runAgent runs the agent of a node that has joined, until it is ended.
func (f fleet) runAgent(dir string) *daemon {
	f.t.Helper()
	return startDaemon(f.t, func(ctx context.Context, ready func()) error {
		return app.RunAgent(ctx, app.AgentOptions{StateDir: dir, Heartbeat: time.Second, Ready: ready})
	})
}

// sends a command that writes into a file, and returns its id.
func (f fleet) sends(cl *client.Client, node muster.NodeName, file string) muster.CommandID {
	f.t.Helper()
	input := marshal(f.t, map[string]any{"argv": []string{"/bin/sh", "-c", "echo >" + file}})
	r, err := cl.Send(f.ctx(), client.Request{Method: "shell.run", Input: input, Nodes: []muster.NodeName{node}})
	if err != nil {
		f.t.Fatal(err)
	}
	return r.ID
}

// becomes waits for the final state of a command.
func (f fleet) becomes(cl *client.Client, id muster.CommandID, node muster.NodeName, want muster.State) client.Status {
	f.t.Helper()
	var s client.Status
	f.until("the command "+string(id), func() error {
		all, err := cl.Command(f.ctx(), muster.Key{ID: id, Node: node})
		if err != nil || len(all) != 1 || !all[0].State.Final() {
			return fmt.Errorf("%+v, %w", all, err)
		}
		s = all[0]
		return nil
	})
	if s.State != want {
		f.t.Errorf("%s is %s (%s), want %s", id, s.State, s.Reason, want)
	}
	return s
}

// TestRevokedWhileAway: a node that was away knows who is revoked before it
// reads what waits for it, keeps the list without a broker, and takes no older
// one from whoever may write at the broker.
func TestRevokedWhileAway(t *testing.T) {
	f := startFleet(t, carrier{})
	const node = muster.NodeName("away")
	dir := filepath.Join(t.TempDir(), "node")
	o := invitation(f, node)
	o.Policy = "rules:\n  - {effect: allow, methods: [\"*\"]}\n"
	text, err := app.Invite(f.ctx(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.joinWith(text, dir); err != nil {
		t.Fatal(err)
	}
	boss := f.client()
	thief := f.clientOf(f.caller("alice"))
	f.runAgent(dir).end(t) // it has been there
	first, second := filepath.Join(dir, "stolen"), filepath.Join(dir, "mine")
	stolen, mine := f.sends(thief, node, first), f.sends(boss, node, second)
	if r := f.revoke("alice"); r.Nodes != 1 || r.Current != 0 {
		t.Errorf("%d of %d nodes have it, though the only one is away", r.Current, r.Nodes)
	}

	agent := f.runAgent(dir)
	f.becomes(boss, mine, node, muster.Done)
	if s := f.becomes(boss, stolen, node, muster.Refused); !strings.Contains(s.Reason, "revoked at") || !strings.Contains(s.Reason, "a test") {
		t.Errorf("the reason is %q", s.Reason)
	}
	if _, err := os.Stat(first); err == nil {
		t.Error("the command of the revoked caller ran")
	}
	if _, err := os.Stat(second); err != nil {
		t.Error("the command of another caller did not run")
	}
	f.until("the event", func() error {
		found := fmt.Errorf("there is none")
		err := boss.Events(f.ctx(), client.EventQuery{Type: "revoked-caller"}, func(e client.Event) error {
			if e.Data["caller"] == "alice" && e.Data["id"] == string(stolen) {
				found = nil
			}
			return nil
		})
		if err != nil {
			return err
		}
		return found
	})

	// A hostile broker, or operator, offers what was before.
	op := f.operator()
	old, err := op.Revoked(f.ctx())
	if err != nil || len(old) != 1 {
		t.Fatalf("%d lists, %v", len(old), err)
	}
	f.caller("bob")
	if r := f.revoke("bob"); r.Current != 1 {
		t.Errorf("%d of %d nodes have it, though the only one is there", r.Current, r.Nodes)
	}
	for name, lists := range map[string][]json.RawMessage{"an older list": old, "no list": nil} {
		if err := op.SetRevoked(f.ctx(), op.Settings().Fleet, lists); err != nil {
			t.Fatal(err)
		}
		if err := op.Tell(op.Subjects().Ping(), []byte(bus.RevokedPing+aaa.RevocationMark(lists))); err != nil {
			t.Fatal(err)
		}
		f.until(name, func() error {
			nodes, err := boss.Nodes(f.ctx())
			if err != nil || len(nodes) != 1 || !slices.ContainsFunc(nodes[0].Problems, func(p string) bool { return strings.Contains(p, "other lists of revoked callers") }) {
				return fmt.Errorf("no problem shows: %+v, %w", nodes, err)
			}
			return nil
		})
	}
	agent.end(t)
	kept, err := os.ReadFile(filepath.Join(dir, "revoked.json"))
	if err != nil {
		t.Fatal(err)
	}
	ff, err := config.OpenFleet(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	lists, err := aaa.SplitRevocations(kept)
	if err != nil || len(lists) != 1 {
		t.Fatalf("the node keeps %d lists, %v", len(lists), err)
	}
	if list, err := aaa.ReadRevocations(lists[0], ff.Fleet.ID, ff.Fleet.Issuers...); err != nil || len(list.Revoked) != 2 {
		t.Errorf("the node keeps %+v, %v", list, err)
	}
}

// TestRevokeAtAServerOfAnotherMake: the accounts of the server are not those of
// the fleet. The nodes have the list; the users are revoked by hand.
func TestRevokeAtAServerOfAnotherMake(t *testing.T) {
	t.Setenv("MUSTER_CONFIG", t.TempDir())
	create := func(name string) fleet {
		f := fleet{t, &world{top: t, dir: filepath.Join(t.TempDir(), name), ports: []int{freePort(t)}}}
		if _, err := app.Init(app.InitOptions{Dir: f.dir, Port: f.ports[0], Context: name}); err != nil {
			t.Fatal(err)
		}
		return f
	}
	theirs, ours := create("theirs"), create("ours")
	b, err := app.StartBroker(t.Context(), theirs.dir, fmt.Sprintf("127.0.0.1:%d", theirs.ports[0]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Stop)
	url, creds := fmt.Sprintf("nats://127.0.0.1:%d", theirs.ports[0]), filepath.Join(theirs.caller("service"), "nats.creds")
	var log lines
	startDaemon(t, func(ctx context.Context, ready func()) error {
		return app.RunService(ctx, app.ServiceOptions{Dir: ours.dir, BrokerURL: url, CredsFile: creds, Log: slog.New(slog.NewTextHandler(&log, nil))}, ready)
	})
	ours.caller("alice")
	r, err := app.RevokeCallers(ours.ctx(), app.RevokeOptions{Dir: ours.dir, Who: []string{"alice"}, BrokerURL: url, CredsFile: creds})
	if err != nil || r.Broker != "ok" || !r.ByHand || len(r.Revoked) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if !strings.Contains(log.text(), "revoke there by hand") {
		t.Errorf("the service does not say what is left to do: %s", log.text())
	}
}

// lines is a log that can be read while it is written.
type lines struct {
	mu sync.Mutex // guards b
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
