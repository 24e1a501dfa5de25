package test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/test/lab"
)

// A gathering is a real fleet whose nodes take part in Orders, each on loopback
// with a port of its own.
type gathering struct {
	*lab.Lab
	t      *testing.T
	client *client.Client
	ports  []string
}

// gather starts a broker and nodes. With linked each knows the one before it on
// the network; without, only the broker connects them.
func gather(t *testing.T, nodes int, linked bool) *gathering {
	t.Helper()
	if testing.Short() {
		t.Skip("it runs real processes")
	}
	exe, err := buildMuster()
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(exe, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	g := &gathering{Lab: l, t: t}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := l.Broker.Start(); err != nil {
		t.Fatal(err)
	}
	c := &campaign{t: t, lab: l}
	c.client = c.connect()
	g.client = c.client
	keys := filepath.Join(l.Dir, "config", "muster")
	// As root, locks are kept in one folder of the machine, under ids made of this key.
	g.must("order", "keygen", "--key", fmt.Sprintf("lab%d", time.Now().UnixNano()), "--out", keys)
	for i := range nodes {
		port := port(t)
		l.AgentArgs = []string{"--constellation", filepath.Join(keys, "constellation.json"), "--order-listen", "127.0.0.1", "--order-port", port}
		if linked && i > 0 {
			l.AgentArgs = append(l.AgentArgs, "--order-peer", g.peer(i-1))
		}
		g.ports = append(g.ports, port)
		if _, err := l.AddNode(t.Context(), muster.NodeName(fmt.Sprintf("node%d", i+1))); err != nil {
			t.Fatal(err)
		}
	}
	c.waitOnline()
	return g
}

func (g *gathering) peer(i int) string { return "127.0.0.1:" + g.ports[i] }

// another prepares a run that does not see the sessions of other runs.
func (g *gathering) another(args ...string) *exec.Cmd {
	cmd := g.Muster(g.t.Context(), args...)
	cmd.Env = slices.DeleteFunc(cmd.Env, func(kv string) bool { return strings.HasPrefix(kv, "XDG_RUNTIME_DIR=") })
	cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR="+filepath.Join(g.Dir, "other"))
	return cmd
}

func (g *gathering) must(args ...string) string {
	g.t.Helper()
	out, err := g.another(args...).CombinedOutput()
	if err != nil {
		g.t.Fatalf("muster %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// neighbour is what 'order neighbours' says of an agent.
type neighbour struct{ Name, State, Via string }

func (g *gathering) neighbours(args ...string) []neighbour {
	g.t.Helper()
	out, err := g.another(append([]string{"order", "neighbours", "-o", "json"}, args...)...).Output()
	if err != nil {
		return nil // nobody was heard of in time
	}
	var all []neighbour
	if err := json.Unmarshal(out, &all); err != nil {
		g.t.Fatalf("%v in %s", err, out)
	}
	return slices.DeleteFunc(all, func(n neighbour) bool { return n.State == "caller" || n.Name == "" })
}

// until polls for something that must come true.
func (g *gathering) until(what string, is func() bool) {
	g.t.Helper()
	until(g.t, "there is "+what, is)
}

// A call is an open session whose lines come from the test.
type call struct {
	g     *gathering
	cmd   *exec.Cmd
	stdin io.WriteCloser
	ended chan error

	mu  sync.Mutex // guards out
	out strings.Builder
}

func (c *call) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(p)
}

func (c *call) count(what string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Count(c.out.String(), what)
}

func (g *gathering) call(args ...string) *call {
	g.t.Helper()
	c := &call{g: g, ended: make(chan error, 1)}
	c.cmd = g.Muster(context.Background(), append([]string{"order", "call", "--wait", "1m"}, args...)...)
	c.cmd.Stdout, c.cmd.Stderr = c, c
	var err error
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		g.t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	go func() { c.ended <- c.cmd.Wait() }()
	g.t.Cleanup(func() {
		_ = c.cmd.Process.Kill() // it has ended, mostly
		if g.t.Failed() {
			c.mu.Lock()
			defer c.mu.Unlock()
			g.t.Logf("the session printed:\n%s", c.out.String())
		}
	})
	return c
}

// convene opens a session of all machines. A call is made after a short look around,
// and who is too slow to answer it is not in it: then it is made again.
func (g *gathering) convene(machines int, args ...string) (c *call) {
	g.t.Helper()
	g.until("an order of all machines", func() bool {
		c = g.call(args...)
		g.until("an order", func() bool { return c.count(" joined, yours until ") == 1 })
		if c.count(fmt.Sprint(machines, " machines joined")) == 1 {
			return true
		}
		if err := c.leave(); err != nil {
			g.t.Errorf("a session ended with %v", err)
		}
		return false
	})
	return c
}

// everybody runs echo on all machines, and returns what was printed; who is too slow
// for the call is in the next one.
func (g *gathering) everybody(machines int, word string, args ...string) (out string) {
	g.t.Helper()
	g.until("a run on all machines", func() bool {
		said, err := g.another(append(append([]string{"order", "run", "--wait", "1m"}, args...), "--", "echo", word)...).CombinedOutput()
		out = string(said)
		return err == nil && strings.Count(out, "| "+word) == machines
	})
	return out
}

// ask has every member print a word, and waits for all answers.
func (c *call) ask(word string, members int) {
	c.g.t.Helper()
	if _, err := fmt.Fprintf(c.stdin, "run echo %s-$USER\n", word); err != nil {
		c.g.t.Fatal(err)
	}
	c.g.until(word+" of all members", func() bool { return c.count("| "+word) == members })
}

// leave closes the session's input.
func (c *call) leave() error {
	if err := c.stdin.Close(); err != nil {
		return err
	}
	return <-c.ended
}

// TestOrderOverBroker: nodes that cannot reach each other are called over the
// broker; another operator on the network is refused; commands of the fleet wait.
func TestOrderOverBroker(t *testing.T) {
	const nodes = 3
	g := gather(t, nodes, false)
	g.until("nodes over the broker", func() bool {
		all := g.neighbours("--via", "nats")
		return len(all) == nodes && !slices.ContainsFunc(all, func(n neighbour) bool { return n.Via != "nats" })
	})
	if out := g.everybody(nodes, "here", "--via", "nats"); !strings.Contains(out, "over nats: node1, node2, node3") {
		t.Fatalf("order run over the broker printed\n%s", out)
	}

	session := g.convene(nodes, "--via", "nats")
	rival := g.another("order", "run", "--wait", "1m", "--via", "lan", "--peer", g.peer(1), "--", "true")
	said, err := rival.CombinedOutput()
	if err == nil || !strings.Contains(string(said), "in order") {
		t.Errorf("another operator, on the network: %v\n%s", err, said)
	}

	receipt := shell(t, g.client, "echo done", nil)
	key := muster.Key{ID: receipt.ID}
	g.until("word of the node", func() bool {
		all, err := g.client.Command(t.Context(), key)
		return err == nil && len(all) == 1 && all[0].State == muster.Accepted && strings.Contains(all[0].Reason, "the node is in order")
	})
	g.until("problem of the node", func() bool { return strings.Contains(g.must("node", "show", "node1"), "commands wait") })
	if out, _ := g.another("status").Output(); !strings.Contains(string(out), "is in order") { // a problem, so that its code is not 0
		t.Errorf("muster status says nothing of the order:\n%s", out)
	}
	session.ask("one", nodes)
	if all, err := g.client.Command(t.Context(), key); err != nil || all[0].State != muster.Accepted {
		t.Errorf("the command did not wait: %+v, %v", all, err)
	}
	if err := session.leave(); err != nil {
		t.Errorf("the session ended with %v", err)
	}
	if s := final(t, g.client, receipt); s.State != muster.Done {
		t.Errorf("after the order the command is %s: %s", s.State, s.Reason)
	}
}

// TestOrderOutlivesBroker: an Order over both ways goes on when the broker is
// killed, beyond its lease; when the operator dies too, the lease ends.
func TestOrderOutlivesBroker(t *testing.T) {
	const nodes = 2
	g := gather(t, nodes, true)
	g.until("nodes over both", func() bool {
		all := g.neighbours("--via", "both", "--peer", g.peer(0), "--peer", g.peer(1))
		return len(all) == nodes && !slices.ContainsFunc(all, func(n neighbour) bool { return n.Via != "both" })
	})
	const lease = 15 * time.Second // renewed after a third
	session := g.convene(nodes, "--via", "both", "--peer", g.peer(0), "--lease", lease.String())
	session.ask("one", nodes)
	if err := g.Broker.Kill(); err != nil {
		t.Fatal(err)
	}
	session.ask("two", nodes)
	began := time.Now()
	g.until("end of the first lease", func() bool { return time.Since(began) > lease })
	session.ask("three", nodes)
	for _, n := range g.neighbours("--peer", g.peer(0), "--peer", g.peer(1)) {
		if n.State != "order" {
			t.Errorf("%s is %s after the broker died", n.Name, n.State)
		}
	}
	if err := session.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-session.ended
	g.until("end of the lease", func() bool {
		all := g.neighbours("--peer", g.peer(0), "--peer", g.peer(1))
		return len(all) == nodes && !slices.ContainsFunc(all, func(n neighbour) bool { return n.State != "idle" })
	})
	if out := g.everybody(nodes, "alone", "--via", "both", "--peer", g.peer(0)); !strings.Contains(out, "the broker does not answer") {
		t.Errorf("order run over both, without the broker, printed\n%s", out)
	}
	if out, err := g.another("order", "run", "--via", "nats", "--", "true").CombinedOutput(); err == nil || !strings.Contains(string(out), "--via lan needs no broker") {
		t.Errorf("order run over the broker, without it: %v\n%s", err, out)
	}
	if err := g.Broker.Start(); err != nil {
		t.Fatal(err)
	}
	g.until("an order over the broker again", func() bool {
		return g.another("order", "run", "--via", "nats", "--", "true").Run() == nil
	})
}
