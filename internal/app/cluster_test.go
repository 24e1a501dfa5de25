//go:build unix

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
	"testing"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/bus"
)

// leader is the server of the cluster that leads a stream. It may just be chosen.
func (f fleet) leader(op *bus.Conn, stream string) (leader *server) {
	f.t.Helper()
	f.until("the leader of "+stream, func() error {
		reply := f.ask(op, "$JS.API.STREAM.INFO."+stream, nil)
		var info struct {
			Cluster struct{ Leader string }
		}
		if err := json.Unmarshal(reply, &info); err != nil {
			return err
		}
		i := slices.IndexFunc(f.nodes, func(s *server) bool { return s.name == info.Cluster.Leader })
		if i < 0 {
			return fmt.Errorf("there is none: %s", reply)
		}
		leader = f.nodes[i]
		return nil
	})
	return leader
}

// TestLeaderIsKilled in the middle of a stream of commands to one lane: each
// runs once, in order, and all are reported.
func TestLeaderIsKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a nats-server; -short")
	}
	const node, n = muster.NodeName("worker"), 120
	f := startFleet(t, carrier{tls: true, servers: 3})
	dir, done := filepath.Join(t.TempDir(), "node"), filepath.Join(t.TempDir(), "done")
	o := invitation(f, node)
	o.Policy = "rules:\n  - name: all\n    effect: allow\n    methods: [\"*\"]\n"
	token, err := app.Invite(f.ctx(), o)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	startDaemon(t, func(ctx context.Context, ready func()) error {
		return app.RunAgent(ctx, app.AgentOptions{StateDir: dir, Token: token, Log: log, Ready: ready})
	})
	options, err := app.ClientOptions("")
	if err != nil {
		t.Fatal(err)
	}
	options.OutboxDir = ""                                       // then it tries until the broker has it
	ctx, cancel := context.WithTimeout(t.Context(), 10*patience) // a slow disk syncs more than a thousand times
	defer cancel()
	c, err := client.Connect(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	op := f.operator()
	stream := op.Subjects().CommandStream(node)
	var last muster.CommandID
	for i := range n {
		if i == n/3 {
			f.leader(op, stream).kill(t)
		}
		input, err := json.Marshal(map[string]string{"shell": fmt.Sprintf("echo %d >>%s", i, done)})
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.Send(ctx, client.Request{Method: "shell.run", Input: input, Nodes: []muster.NodeName{node}})
		if err != nil || len(r.Refused) > 0 {
			t.Fatalf("command %d: %v %v", i, err, r.Refused)
		}
		last = r.ID
	}
	if err := c.Follow(ctx, last, func(client.Update) error { return nil }); err != nil {
		t.Fatalf("the last command: %v", err)
	}
	f.until("all are reported", func() error { // a replica may be behind
		all, err := c.History(ctx, client.HistoryQuery{Node: node})
		if err != nil {
			return err
		}
		open := slices.DeleteFunc(slices.Clone(all), func(s client.Status) bool { return s.State == muster.Done })
		if len(open) > 0 || len(all) != n {
			return fmt.Errorf("%d commands, of which are not done: %d", len(all), len(open))
		}
		return nil
	})
	text, err := os.ReadFile(done)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(string(text)); !slices.Equal(got, numbers(0, n)) {
		t.Errorf("ran: %v", got)
	}
}
