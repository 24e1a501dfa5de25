package test

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/test/lab"
)

// TestChaos kills senders, agents and the broker with -9 and cuts links at
// random, while commands are sent to three nodes. Then it lets everything come
// back and reads what the commands themselves wrote: none is lost, none ran
// twice, none overtook another of its lane, and each is in a final state that
// is true.
//
// SEED chooses the faults, DURATION how long they last.
func TestChaos(t *testing.T) {
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv("SEED"), "1"), 10, 64)
	if err != nil {
		t.Fatalf("SEED: %v", err)
	}
	length, err := time.ParseDuration(cmp.Or(os.Getenv("DURATION"), "60s"))
	if err != nil {
		t.Fatalf("DURATION: %v", err)
	}
	t.Logf("SEED=%d DURATION=%s", seed, length)
	c := newCampaign(t, seed)
	c.rage(length)
	c.recover()
	c.judge()
}

// buildMuster builds the program once for all tests of this run.
var buildMuster = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "muster-test-")
	if err != nil {
		return "", err
	}
	exe := filepath.Join(dir, "muster")
	out, err := exec.Command("go", "build", "-o", exe, "../cmd/muster").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return exe, nil
})

// A campaign is one run of faults.
type campaign struct {
	t       *testing.T
	seed    uint64
	lab     *lab.Lab
	client  *client.Client
	senders []*sender
}

// A sender sends one command after the other to all nodes with one method,
// which leaves a line behind on each node for each run.
type sender struct {
	c      *campaign
	number int
	method string
	rand   *rand.Rand
	ids    []muster.CommandID // accepted, in the order of sending
	killed int
}

func newCampaign(t *testing.T, seed uint64) *campaign {
	exe, err := buildMuster()
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(exe, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := &campaign{t: t, seed: seed, lab: l}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			c.showLogs()
		}
	})
	if err := l.Broker.Start(); err != nil {
		t.Fatal(err)
	}
	c.client = c.connect()
	for _, name := range []muster.NodeName{"node1", "node2", "ship.node3"} {
		if _, err := l.AddNode(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	c.waitOnline()
	for i, m := range []string{"file.append", "shell.run"} {
		c.senders = append(c.senders, &sender{c: c, number: i, method: m, rand: rand.New(rand.NewPCG(seed, uint64(i)))})
	}
	return c
}

func (c *campaign) showLogs() {
	for _, p := range append([]*lab.Process{c.lab.Broker}, c.lab.Nodes[0].Process, c.lab.Nodes[1].Process, c.lab.Nodes[2].Process) {
		data, _ := os.ReadFile(p.Log()) // shown as far as it is there
		c.t.Logf("%s:\n%s", p.Log(), data[max(0, len(data)-3000):])
	}
}

// connect waits for the broker.
func (c *campaign) connect() *client.Client {
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	for {
		cl, err := c.lab.Client(ctx)
		if err == nil {
			c.t.Cleanup(cl.Close)
			return cl
		}
		if ctx.Err() != nil {
			c.t.Fatalf("no connection to the broker: %v", err)
		}
		pause(ctx, 100*time.Millisecond)
	}
}

// pause lets real time pass between looks at real processes.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (c *campaign) waitOnline() {
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	defer cancel()
	for ctx.Err() == nil {
		nodes, err := c.client.Nodes(ctx)
		online := 0
		for _, n := range nodes {
			if n.Online {
				online++
			}
		}
		if err == nil && online == len(c.lab.Nodes) {
			return
		}
		pause(ctx, 100*time.Millisecond)
	}
	c.t.Fatal("the nodes did not all come online")
}

// rage sends and breaks until the time is over.
func (c *campaign) rage(length time.Duration) {
	ctx, cancel := context.WithTimeout(c.t.Context(), length)
	defer cancel()
	var wg sync.WaitGroup
	for _, s := range c.senders {
		wg.Go(func() { s.run(ctx) })
	}
	wg.Go(func() { c.breakThings(ctx) })
	wg.Wait()
}

// breakThings chooses what breaks next, and mends it a little later.
func (c *campaign) breakThings(ctx context.Context) {
	r := rand.New(rand.NewPCG(c.seed, 99))
	for ctx.Err() == nil {
		n := c.lab.Nodes[r.IntN(len(c.lab.Nodes))]
		wait := time.Duration(r.IntN(1500)) * time.Millisecond
		var err error
		switch r.IntN(5) {
		case 0:
			err = c.lab.Broker.Kill()
			pause(ctx, wait)
			err = cmp.Or(err, c.lab.Broker.Start())
		case 1, 2:
			err = n.Kill()
			pause(ctx, wait)
			err = cmp.Or(err, n.Start())
		case 3:
			n.Link.Cut()
			pause(ctx, wait)
			n.Link.Heal()
		case 4:
			n.Link.Cut()
			err = n.Kill()
			n.Link.Heal()
			err = cmp.Or(err, n.Start())
		}
		if err != nil {
			c.t.Errorf("fault: %v", err)
		}
		pause(ctx, time.Duration(r.IntN(2000))*time.Millisecond)
	}
}

// run sends until ctx ends. A sender that is killed is asked to send the same
// again under the same id, as a person or a script would.
func (s *sender) run(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		id := muster.CommandID(fmt.Sprintf("s%d-%06d", s.number, n))
		for !s.send(id) {
			s.killed++
		}
		s.ids = append(s.ids, id)
	}
}

// send runs 'muster send', sometimes kills it, and reports whether it said
// that the command is accepted.
func (s *sender) send(id muster.CommandID) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	args := []string{"send", "-y", "-t", s.selector(id), "--id", string(id), "-o", "json", s.method}
	if s.method == "shell.run" {
		args = append(args, "--", "sh", "-c", `echo "$MUSTER_COMMAND" >>`+s.evidence(`"$MUSTER_NODE"`))
	} else {
		args = append(args, "path="+s.evidence(s.selector(id)), "content="+string(id)+"\n")
	}
	cmd := s.c.lab.Muster(ctx, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		s.c.t.Errorf("muster send: %v", err)
		return true
	}
	if s.rand.IntN(8) == 0 {
		pause(ctx, time.Duration(s.rand.IntN(120))*time.Millisecond)
		_ = cmd.Process.Kill() // it may have ended this moment
	}
	err := cmd.Wait()
	if err != nil && cmd.ProcessState.ExitCode() >= 0 {
		s.c.t.Logf("send %s: %v: %s", id, err, out.String())
	}
	return err == nil
}

// selector chooses all nodes for a shell, which finds its own file on each, and
// one after the other for a method that is told the file.
func (s *sender) selector(id muster.CommandID) string {
	if s.method == "shell.run" {
		return "node1 or node2 or ship.node3"
	}
	n, _ := strconv.Atoi(string(id[len(id)-6:])) // made by run
	return string(s.c.lab.Nodes[n%len(s.c.lab.Nodes)].Name)
}

// evidence is the file that a sender's commands write to on a node.
func (s *sender) evidence(node string) string {
	return filepath.Join(s.c.lab.Dir, fmt.Sprintf("evidence-%d-", s.number)) + node
}

// recover mends everything and waits until every command is in a final state.
func (c *campaign) recover() {
	for _, n := range c.lab.Nodes {
		n.Link.Heal()
		if err := n.Start(); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := c.lab.Broker.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.client.Close()
	c.client = c.connect()
	if out, err := c.lab.Muster(c.t.Context(), "outbox", "flush").CombinedOutput(); err != nil {
		c.t.Fatalf("outbox flush: %v\n%s", err, out)
	}
	c.waitOnline()
	ctx, cancel := context.WithTimeout(c.t.Context(), 3*time.Minute)
	defer cancel()
	for {
		all, err := c.client.History(ctx, client.HistoryQuery{})
		open := 0
		for _, s := range all {
			if !s.State.Final() {
				open++
			}
		}
		if err == nil && open == 0 && len(all) > 0 {
			return
		}
		if ctx.Err() != nil {
			c.t.Fatalf("%d commands are in no final state: %v", open, err)
		}
		pause(ctx, 200*time.Millisecond)
	}
}

// judge compares what the commands wrote with what is said of them.
func (c *campaign) judge() {
	all, err := c.client.History(c.t.Context(), client.HistoryQuery{})
	if err != nil {
		c.t.Fatal(err)
	}
	states := make(map[muster.Key]client.Status)
	counts := make(map[muster.State]int)
	for _, s := range all {
		states[s.Key] = s
		counts[s.State]++
	}
	killed, lines := 0, 0
	for _, s := range c.senders {
		killed += s.killed
		for _, n := range c.lab.Nodes {
			lines += s.judge(n.Name, states)
		}
	}
	c.t.Logf("%d commands, %d lines of evidence, states %v, %d senders killed or failed", len(all), lines, counts, killed)
	if counts[muster.Done] == 0 {
		c.t.Error("nothing was done: the campaign shows nothing")
	}
}

// judge looks at one sender's commands on one node and returns how many ran.
func (s *sender) judge(node muster.NodeName, states map[muster.Key]client.Status) int {
	data, err := os.ReadFile(s.evidence(string(node)))
	if err != nil {
		s.c.t.Error(err)
	}
	ran := make(map[muster.CommandID]int)
	last := muster.CommandID("")
	lines := strings.Fields(string(data))
	for _, line := range lines {
		id := muster.CommandID(line)
		ran[id]++
		if ran[id] > 1 {
			s.c.t.Errorf("%s ran %d times on %s", id, ran[id], node)
		}
		if id < last {
			s.c.t.Errorf("%s ran after %s on %s: an inversion", id, last, node)
		}
		last = id
	}
	for _, id := range s.ids {
		if s.method != "shell.run" && s.selector(id) != string(node) {
			continue
		}
		st, known := states[muster.Key{ID: id, Node: node}]
		switch {
		case !known:
			s.c.t.Errorf("%s to %s was accepted and is not known: lost", id, node)
		case st.State == muster.Done && ran[id] != 1:
			s.c.t.Errorf("%s on %s is done, but ran %d times", id, node, ran[id])
		case st.State == muster.Unknown || st.State == muster.Done:
		default:
			s.c.t.Errorf("%s on %s is %s (%s); nothing here fails, expires or is refused", id, node, st.State, st.Reason)
		}
	}
	return len(lines)
}
