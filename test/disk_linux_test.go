package test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/test/lab"
)

// smallFleet is a broker and one node, each with a small disk.
func smallFleet(t *testing.T) *campaign {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	exe, err := buildMuster()
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(exe, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := &campaign{t: t, lab: l, disks: make(map[muster.NodeName]*lab.Disk)}
	t.Cleanup(c.close)
	c.smallDisk("", l.Store(), 8<<30)
	c.smallDisk("node1", filepath.Join(l.Dir, "nodes", "node1"), 256<<20)
	if len(c.disks) != 2 {
		t.Skip("mounting a small disk is not allowed here")
	}
	if err := l.Broker.Start(); err != nil {
		t.Fatal(err)
	}
	c.client = c.connect()
	if _, err := l.AddNode(t.Context(), "node1"); err != nil {
		t.Fatal(err)
	}
	c.waitOnline()
	return c
}

// A node whose disk is full accepts nothing, loses nothing and says so: the
// command stays with the broker, and runs once when there is room again.
func TestFullDisk(t *testing.T) {
	c := smallFleet(t)
	l, n := c.lab, c.lab.Nodes[0]
	if err := c.disks["node1"].Fill(); err != nil {
		t.Fatal(err)
	}
	evidence := filepath.Join(l.Dir, "evidence")
	var last = shell(t, c.client, "echo 0 >>"+evidence, nil)
	for _, i := range []string{"1", "2", "3", "4", "5", "6", "7", "8", "9"} {
		last = shell(t, c.client, "echo "+i+" >>"+evidence, nil)
	}
	until(t, "the agent has noticed", func() bool {
		log, err := os.ReadFile(n.Log())
		return err == nil && (strings.Contains(string(log), "journal cannot be written") || strings.Contains(string(log), "audit log cannot be written"))
	})
	if all, err := c.client.Command(t.Context(), muster.Key{ID: last.ID}); err != nil || all[0].State != muster.Queued {
		t.Errorf("with a full disk: got %+v, %v; want queued", all, err)
	}
	until(t, "the problem shows", func() bool {
		nodes, err := c.client.Nodes(t.Context())
		return err == nil && len(nodes) == 1 && slices.ContainsFunc(nodes[0].Problems, func(p string) bool { return strings.Contains(p, "cannot be written") })
	})
	if err := c.disks["node1"].Free(); err != nil {
		t.Fatal(err)
	}
	if s := final(t, c.client, last); s.State != muster.Done {
		t.Errorf("with room again: got %s (%s), want done", s.State, s.Reason)
	}
	data, err := os.ReadFile(evidence)
	if want := "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n"; err != nil || string(data) != want {
		t.Errorf("evidence: got %q, %v; want %q", data, err, want)
	}
}

// A broker whose disk is full says so to senders, and everybody else goes on
// when it has room again: whether it noticed in time, or met the full disk.
func TestFullDiskOfTheBroker(t *testing.T) {
	c := smallFleet(t)
	evidence := filepath.Join(c.lab.Dir, "evidence")
	send := func(what string) (string, error) {
		out, err := c.lab.Muster(t.Context(), "send", "-t", "node1", "--id", what, "shell.run", "--", "sh", "-c", "echo "+what+" >>"+evidence).CombinedOutput()
		return string(out), err
	}
	if out, err := send("a"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := c.disks[""].Fill(); err != nil {
		t.Fatal(err)
	}
	broker := func(text string) func() bool {
		return func() bool {
			log, err := os.ReadFile(c.lab.Broker.Log())
			return err == nil && bytes.Contains(log, []byte(text))
		}
	}
	until(t, "the broker has noticed", broker("the disk has no room"))
	out, err := send("b")
	if err == nil || !strings.Contains(out, "the broker has no room") || !strings.Contains(out, "free disk space") {
		t.Errorf("with a full disk: %v: %s", err, out)
	}
	if err := c.disks[""].Free(); err != nil {
		t.Fatal(err)
	}
	until(t, "the broker has room", broker("the disk has room again"))
	until(t, "a send is accepted", func() bool { _, err := send("c"); return err == nil })
	// Perhaps by the outbox alone, since the broker starts its server again.
	until(t, "nothing waits in the outbox", func() bool { return c.lab.Muster(t.Context(), "outbox", "flush").Run() == nil })
	for _, id := range []muster.CommandID{"a", "b", "c"} {
		if s := final(t, c.client, client.Receipt{ID: id}); s.State != muster.Done {
			t.Errorf("%s is %s (%s)", id, s.State, s.Reason)
		}
	}
	data, err := os.ReadFile(evidence)
	if err != nil || string(data) != "a\nb\nc\n" {
		t.Errorf("evidence: %q, %v", data, err)
	}
}
