// The demonstration: a fleet of an embedded broker and three nodes, each a
// process of its own on this machine. Commands are sent to all of them while
// one is killed with -9 and one is cut off; both come back. What the commands
// wrote on each node is then compared with what muster says of them.
//
// It exits with 0 only if no command was lost, ran twice or overtook another,
// and every report is true.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/test/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 50*time.Second)
	defer cancel()
	if err := run(ctx, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// A demo is one demonstration.
type demo struct {
	ctx    context.Context
	lab    *lab.Lab
	client *client.Client
	sent   int
}

const selector = "node1 or node2 or node3"

func run(ctx context.Context, exe string) (err error) {
	exe, err = filepath.Abs(exe)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "muster-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l, err := lab.New(exe, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	d := &demo{ctx: ctx, lab: l}
	for _, step := range []func() error{d.start, d.everyoneThere, d.twoAway, d.back} {
		if err := step(); err != nil {
			return err
		}
	}
	defer d.client.Close()
	return d.judge()
}

func say(format string, args ...any) { fmt.Printf("\n== "+format+"\n", args...) }

func (d *demo) start() error {
	say("a fleet on this machine: one broker, three nodes, each a process")
	if err := d.lab.Broker.Start(); err != nil {
		return err
	}
	if err := d.until("the broker answers", func() (ok bool, err error) {
		d.client, err = d.lab.Client(d.ctx)
		return err == nil, err
	}); err != nil {
		return err
	}
	for _, name := range []muster.NodeName{"node1", "node2", "node3"} {
		n, err := d.lab.AddNode(d.ctx, name)
		if err != nil {
			return err
		}
		fmt.Printf("%s is process %d\n", name, n.PID())
	}
	if err := d.online(3); err != nil {
		return err
	}
	return d.muster("node", "ls")
}

func (d *demo) everyoneThere() error {
	say("a command that answers now")
	if err := d.muster("run", "-t", selector, "--wait-all", "--", "uname", "-sr"); err != nil {
		return err
	}
	say("five commands to each node")
	return d.send(5)
}

func (d *demo) twoAway() error {
	n2, n3 := d.lab.Nodes[1], d.lab.Nodes[2]
	say("node2 (process %d) is killed with -9, node3 is cut off from the broker", n2.PID())
	if err := n2.Kill(); err != nil {
		return err
	}
	n3.Link.Cut()
	if err := d.online(1); err != nil {
		return err
	}
	if err := d.muster("node", "ls"); err != nil {
		return err
	}
	say("ten more commands to each node, the absent ones too")
	if err := d.send(10); err != nil {
		return err
	}
	return d.muster("command", "ls", "-n", "9")
}

func (d *demo) back() error {
	say("node2 is started again, node3's link is mended")
	if err := d.lab.Nodes[1].Start(); err != nil {
		return err
	}
	d.lab.Nodes[2].Link.Heal()
	return d.until("every command has ended", func() (bool, error) {
		all, err := d.statuses()
		return len(all) == 3*d.sent && !slices.ContainsFunc(all, func(s client.Status) bool { return !s.State.Final() }), err
	})
}

// send sends commands that leave their number in a file on their node.
func (d *demo) send(n int) error {
	began := time.Now()
	for range n {
		d.sent++
		script := fmt.Sprintf(`echo %d >>"%s/evidence-$MUSTER_NODE"`, d.sent, d.lab.Dir)
		cmd := d.lab.Muster(d.ctx, "send", "--id", fmt.Sprintf("demo-%03d", d.sent), "-y", "-t", selector, "shell.run", "--", "sh", "-c", script)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("muster send: %w\n%s", err, out)
		}
	}
	fmt.Printf("muster send: %d sends accepted, %d commands, in %s\n", n, 3*n, time.Since(began).Round(time.Millisecond))
	return nil
}

// muster runs the program and shows what it prints.
func (d *demo) muster(args ...string) error {
	fmt.Println("$ muster", strings.Join(args, " "))
	cmd := d.lab.Muster(d.ctx, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	return cmd.Run()
}

// until looks again and again until a condition holds.
func (d *demo) until(what string, holds func() (bool, error)) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := holds()
		if ok {
			return nil
		}
		select {
		case <-tick.C:
		case <-d.ctx.Done():
			return fmt.Errorf("waited in vain until %s: %w", what, errors.Join(err, d.ctx.Err()))
		}
	}
}

func (d *demo) online(want int) error {
	return d.until(fmt.Sprintf("%d nodes are online", want), func() (bool, error) {
		nodes, err := d.client.Nodes(d.ctx)
		online := 0
		for _, n := range nodes {
			if n.Online {
				online++
			}
		}
		return online == want, err
	})
}

func (d *demo) statuses() ([]client.Status, error) {
	all, err := d.client.History(d.ctx, client.HistoryQuery{})
	return slices.DeleteFunc(all, func(s client.Status) bool { return !strings.HasPrefix(string(s.ID), "demo-") }), err
}

// judge prints what was found on the nodes, and fails unless it is what was
// promised.
func (d *demo) judge() error {
	all, err := d.statuses()
	if err != nil {
		return err
	}
	say("evidence: the numbers that the commands wrote on each node")
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tSENT\tRAN\tTWICE\tOUT OF ORDER\tDONE\tUNKNOWN\tVERDICT")
	good := true
	for _, n := range d.lab.Nodes {
		data, err := os.ReadFile(filepath.Join(d.lab.Dir, "evidence-"+string(n.Name)))
		if err != nil {
			return err
		}
		ran, twice, disorder := count(data)
		done, unknown, untrue := reported(all, n.Name, ran)
		verdict := "kept"
		if done+unknown != d.sent || twice+disorder+untrue > 0 {
			verdict, good = "BROKEN", false
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\n", n.Name, d.sent, len(ran), twice, disorder, done, unknown, verdict)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if !good {
		return errors.New("the promise was not kept")
	}
	fmt.Println(`
No command was lost, none ran twice, none overtook another. UNKNOWN is a command
that was running when its node was killed: it must not run twice, so it is not
tried again, and its report says so.`)
	return nil
}

// reported counts what is said of a node's commands. Untrue are those that are
// said to be done, but left no evidence.
func reported(all []client.Status, node muster.NodeName, ran map[int]bool) (done, unknown, untrue int) {
	for _, s := range all {
		var n int
		if _, err := fmt.Sscanf(string(s.ID), "demo-%d", &n); err != nil || s.Node != node {
			continue
		}
		switch {
		case s.State == muster.Unknown:
			unknown++
		case s.State == muster.Done && ran[n]:
			done++
		case s.State == muster.Done:
			untrue++
		}
	}
	return done, unknown, untrue
}

// count reads numbers, one a line, as the commands appended them.
func count(data []byte) (seen map[int]bool, twice, disorder int) {
	seen = make(map[int]bool)
	last := 0
	for line := range bytes.Lines(data) {
		var n int
		if _, err := fmt.Sscan(string(line), &n); err != nil {
			disorder++
			continue
		}
		if seen[n] {
			twice++
		}
		if n < last {
			disorder++
		}
		seen[n], last = true, n
	}
	return seen, twice, disorder
}
