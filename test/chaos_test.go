package test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/test/lab"
)

// TestChaos kills senders, agents and the broker with -9, cuts links and fills
// disks at random, while commands of many kinds are sent to three nodes. Then
// it lets everything come back and reads what the commands themselves wrote:
// none is lost, none ran more often than it may, none overtook another of its
// lane, and each is in a final state that is true. A state of unknown is true only
// of a run whose agent was killed in its middle.
//
// SEED chooses the faults, DURATION how long they last (by default 60 s, and
// 20 s with a nats-server), BROKER one of the two brokers: embedded or
// external. Small disks need root on Linux.
func TestChaos(t *testing.T) {
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv("SEED"), "1"), 10, 64)
	if err != nil {
		t.Fatalf("SEED: %v", err)
	}
	brokers := map[string]string{"embedded": "60s", "external": "20s"}
	if chosen := os.Getenv("BROKER"); chosen != "" && brokers[chosen] == "" {
		t.Fatalf("BROKER is %q; expected embedded or external", chosen)
	}
	for broker, usual := range brokers {
		if chosen := os.Getenv("BROKER"); chosen != "" && chosen != broker {
			continue
		}
		t.Run(broker, func(t *testing.T) {
			length, err := time.ParseDuration(cmp.Or(os.Getenv("DURATION"), usual))
			if err != nil {
				t.Fatalf("DURATION: %v", err)
			}
			t.Logf("SEED=%d DURATION=%s BROKER=%s", seed, length, broker)
			c := newCampaign(t, seed, broker == "external")
			c.rage(length)
			c.recover()
			c.judge()
		})
	}
}

// programs is the folder of what is built here. It ends with the tests.
var programs string

// buildMuster builds the program once for all tests of this run.
var buildMuster = sync.OnceValues(func() (string, error) { return build("muster", "../cmd/muster") })

// buildServer builds the nats-server that this module depends on.
var buildServer = sync.OnceValues(func() (string, error) { return build("nats-server", "github.com/nats-io/nats-server/v2") })

func build(name, source string) (exe string, err error) {
	exe = filepath.Join(programs, name)
	out, err := exec.Command("go", "build", "-o", exe, source).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return exe, nil
}

// A campaign is one run of faults.
type campaign struct {
	t       *testing.T
	seed    uint64
	lab     *lab.Lab
	client  *client.Client
	senders []*sender
	disks   map[muster.NodeName]*lab.Disk // small ones; that of the broker under the empty name
	faults  map[string]int
	kills   map[muster.NodeName][]span // of its agent, in order

	interrupted map[interruption]int // commands that are unknown since
}

// sendersDisk is the disk of the outbox that all senders share.
const sendersDisk muster.NodeName = "senders"

// A span of time, in which something was done to a process.
type span struct{ from, to time.Time }

// An interruption is what the kill of an agent did to one lane.
type interruption struct {
	node muster.NodeName
	kill int    // an index of kills
	lane string // empty for what runs beside its lane
}

// most returns how many commands can have been in the middle of their run.
func (i interruption) most() int {
	if i.lane == "" {
		return 16
	}
	return 1
}

func newCampaign(t *testing.T, seed uint64, external bool) *campaign {
	exe, err := buildMuster()
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(exe, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := &campaign{
		t: t, seed: seed, lab: l, disks: make(map[muster.NodeName]*lab.Disk), faults: make(map[string]int),
		kills: make(map[muster.NodeName][]span), interrupted: make(map[interruption]int),
	}
	t.Cleanup(c.close)
	c.smallDisk("", l.Store(), 8<<30)
	c.smallDisk(sendersDisk, l.Outbox(), 16<<20)
	if external {
		server, err := buildServer()
		if err != nil {
			t.Fatal(err)
		}
		if err := l.UseServer(server); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Broker.Start(); err != nil {
		t.Fatal(err)
	}
	c.client = c.connect()
	for _, name := range []muster.NodeName{"node1", "node2", "ship.node3"} {
		c.smallDisk(name, filepath.Join(l.Dir, "nodes", string(name)), 256<<20)
		if _, err := l.AddNode(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	c.waitOnline()
	for i := range kinds {
		c.senders = append(c.senders, &sender{c: c, number: i, kind: &kinds[i], rand: rand.New(rand.NewPCG(seed, uint64(i)))})
	}
	return c
}

// smallDisk puts a folder on a disk of its own, where that is possible.
func (c *campaign) smallDisk(name muster.NodeName, dir string, size int64) {
	if os.Geteuid() != 0 {
		c.t.Logf("%s: no full disks: mounting needs root", dir)
		return
	}
	d, err := lab.NewDisk(dir, size)
	if err != nil {
		c.t.Logf("%s: no full disks: %v", dir, err)
		return
	}
	c.disks[name] = d
}

// close ends all processes before the disks that they use.
func (c *campaign) close() {
	if err := c.lab.Close(); err != nil {
		c.t.Error(err)
	}
	if c.t.Failed() {
		c.showLogs()
	}
	for _, d := range c.disks {
		if err := d.Close(); err != nil {
			c.t.Error(err)
		}
	}
}

func (c *campaign) showLogs() {
	all := []*lab.Process{c.lab.Broker}
	for _, n := range c.lab.Nodes {
		all = append(all, n.Process)
	}
	for _, p := range all {
		data, _ := os.ReadFile(p.Log()) // shown as far as it is there
		c.t.Logf("%s:\n%s", p.Log(), data[max(0, len(data)-3000):])
	}
}

// connect waits for the broker.
func (c *campaign) connect() *client.Client {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
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
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	for ctx.Err() == nil {
		if err := c.supervise(); err != nil {
			c.t.Fatal(err)
		}
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
		switch fault := r.IntN(9); fault {
		case 0:
			c.faults["broker killed"]++
			err = c.lab.Broker.Kill()
			pause(ctx, wait)
		case 1, 2:
			c.faults["agent killed"]++
			err = c.kill(n)
			pause(ctx, wait)
		case 3, 4:
			c.faults["link cut"]++
			n.Link.Cut()
			pause(ctx, wait)
			n.Link.Heal()
		case 5:
			c.faults["agent killed behind a cut link"]++
			n.Link.Cut()
			err = c.kill(n)
			n.Link.Heal()
		case 6:
			err = c.fillDisk(ctx, "disk of a node full", n.Name, 2*wait)
		case 7:
			err = c.fillDisk(ctx, "disk of the broker full", "", 2*wait)
			if c.lab.Service != nil { // a nats-server writes no more after that
				err = cmp.Or(err, c.lab.Broker.Kill())
			}
		case 8:
			err = c.fillDisk(ctx, "disk of the senders full", sendersDisk, wait)
		}
		if err := cmp.Or(err, c.supervise()); err != nil {
			c.t.Errorf("fault: %v", err)
		}
		pause(ctx, time.Duration(r.IntN(2000))*time.Millisecond)
	}
}

// kill ends an agent, and notes when: what ran then may have become unknown.
func (c *campaign) kill(n *lab.Node) error {
	from := time.Now()
	err := n.Kill()
	c.kills[n.Name] = append(c.kills[n.Name], span{from, time.Now()})
	return err
}

// fillDisk leaves a disk without room for a while.
func (c *campaign) fillDisk(ctx context.Context, what string, of muster.NodeName, wait time.Duration) error {
	d := c.disks[of]
	if d == nil {
		return nil
	}
	c.faults[what]++
	err := d.Fill()
	pause(ctx, wait)
	return cmp.Or(err, d.Free())
}

// supervise starts what does not run, as a machine does with its services.
func (c *campaign) supervise() error {
	all := []*lab.Process{c.lab.Broker}
	if c.lab.Service != nil {
		all = append(all, c.lab.Service)
	}
	for _, n := range c.lab.Nodes {
		all = append(all, n.Process)
	}
	var err error
	for _, p := range all {
		err = cmp.Or(err, p.Start())
	}
	return err
}

// recover mends everything and waits until every command is in a final state.
func (c *campaign) recover() {
	began := time.Now()
	for _, n := range c.lab.Nodes {
		n.Link.Heal()
	}
	if err := c.supervise(); err != nil {
		c.t.Fatal(err)
	}
	c.client.Close()
	c.client = c.connect()
	// A broker whose disk was full may just be starting its server again. What is set
	// aside, judge counts.
	var said string
	until(c.t, "the outbox is flushed", func() bool {
		out, err := c.lab.Muster(c.t.Context(), "outbox", "flush").CombinedOutput()
		if again := string(out); err != nil && again != said {
			said = again
			c.t.Logf("outbox flush: %v\n%s", err, said)
		}
		return err == nil || strings.Contains(string(out), "the id is taken")
	})
	c.waitOnline()
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*patience)
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
			c.t.Logf("all is final %s after the last fault", time.Since(began).Round(time.Millisecond))
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
	decided := make(map[muster.Key]bool)
	for _, n := range c.lab.Nodes {
		c.readAudit(n, decided)
	}
	c.compareEvents()
	var asked tally
	for _, s := range c.senders {
		asked.add(s.tally)
		of := make(map[muster.State]int)
		lines := 0
		for _, n := range c.lab.Nodes {
			lines += s.judge(n.Name, states, decided, of)
		}
		c.t.Logf("%-11s %5d lines of evidence, %v", s.kind.name, lines, of)
	}
	for key := range states { // those of the senders were taken out
		c.t.Errorf("%s is known, and was not accepted", key)
	}
	c.judgeInterruptions(counts[muster.Unknown], len(all))
	c.judgeOutbox(asked)
	if asked.refused > 0 && c.faults["disk of the senders full"] == 0 {
		c.t.Errorf("%d sends were refused for a full disk that there was not", asked.refused)
	}
	for _, n := range c.lab.Nodes {
		if crashes := n.Crashes(); crashes > 0 {
			c.t.Errorf("the agent of %s ended by itself %d times", n.Name, crashes)
		}
	}
	c.t.Logf("%d commands, states %v, faults %v", len(all), counts, c.faults)
	c.t.Logf("sends: %+v", asked)
	if counts[muster.Done] == 0 {
		c.t.Error("nothing was done: the campaign shows nothing")
	}
}

// judgeInterruptions compares the commands that are unknown with what the kills of
// agents can have interrupted at most.
func (c *campaign) judgeInterruptions(unknown, all int) {
	for i, n := range c.interrupted {
		if n > i.most() {
			c.t.Errorf("kill %d of %s made %d commands of lane %q unknown; at most %d can run at once", i.kill, i.node, n, i.lane, i.most())
		}
	}
	kills := 0
	for _, k := range c.kills {
		kills += len(k)
	}
	lanes := 2 // shell.run and file.append
	most := kills * (lanes + interruption{}.most())
	c.t.Logf("%d of %d commands (%.2f %%) are unknown after %d kills of agents; at most %d can be", unknown, all, 100*float64(unknown)/float64(max(all, 1)), kills, most)
	if unknown > most {
		c.t.Errorf("%d commands are unknown, at most %d can be", unknown, most)
	}
}

// judgeOutbox looks for what was set aside since its id is that of another send,
// and for nothing else.
func (c *campaign) judgeOutbox(asked tally) {
	out, err := c.lab.Muster(c.t.Context(), "outbox", "ls", "-o", "json").Output()
	var left []client.Waiting
	if err == nil {
		err = json.Unmarshal(out, &left)
	}
	if err != nil {
		c.t.Errorf("outbox ls: %v\n%s", err, out)
	}
	for _, w := range left {
		if w.Unreadable == "" {
			c.t.Errorf("%s is still in the outbox", w.ID)
		}
	}
	if len(left) < asked.aside || len(left) > asked.aside+asked.unsure {
		c.t.Errorf("%d sends are set aside, %d were kept under a taken id, and of %d it is not known", len(left), asked.aside, asked.unsure)
	}
	if asked.other == 0 {
		c.t.Error("nothing was refused under a taken id: the campaign shows nothing of that")
	}
}

// readAudit notes what a node allowed, and checks the chain of its decisions.
func (c *campaign) readAudit(n *lab.Node, decided map[muster.Key]bool) {
	data, err := auditLines(n)
	if err == nil {
		var chain aaa.AuditCheck
		err = chain.Read(bytes.NewReader(data))
	}
	if err != nil {
		c.t.Errorf("audit log of %s: %v", n.Name, err)
	}
	for line := range bytes.Lines(data) {
		var r aaa.Record
		if json.Unmarshal(line, &r) == nil && r.Verdict == aaa.Allowed {
			decided[muster.Key{ID: r.ID, Node: n.Name}] = true
		}
	}
}

// auditLines returns what is in the files of a node's audit log, the oldest
// first.
func auditLines(n *lab.Node) ([]byte, error) {
	older, err := filepath.Glob(filepath.Join(n.Dir, "audit.log.[0-9]"))
	if err != nil {
		return nil, err
	}
	slices.Reverse(older)
	var all []byte
	for _, name := range append(older, filepath.Join(n.Dir, "audit.log")) {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		all = append(all, data...)
	}
	return all, nil
}

// compareEvents waits until each line of the audit logs is an event.
func (c *campaign) compareEvents() {
	missing := make(map[string]bool)
	for _, n := range c.lab.Nodes {
		data, _ := auditLines(n) // readAudit has complained
		for line := range strings.Lines(string(data)) {
			missing[strings.TrimSuffix(line, "\n")] = true
		}
	}
	lines := len(missing)
	until(c.t, "all decisions are events", func() bool {
		err := c.client.Events(c.t.Context(), client.EventQuery{Type: muster.EventAudit}, func(e client.Event) error {
			delete(missing, e.Data["line"])
			return nil
		})
		return err == nil && len(missing) == 0
	})
	c.t.Logf("%d decisions, each a line and an event", lines)
}
