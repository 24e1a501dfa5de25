package test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/test/lab"
)

// realFleet runs a broker and one node as processes.
func realFleet(t *testing.T) (*lab.Lab, *lab.Node, *client.Client) {
	t.Helper()
	exe, err := buildMuster()
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(exe, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := &campaign{t: t, lab: l}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := l.Broker.Start(); err != nil {
		t.Fatal(err)
	}
	c.client = c.connect()
	n, err := l.AddNode(t.Context(), "node1")
	if err != nil {
		t.Fatal(err)
	}
	c.waitOnline()
	return l, n, c.client
}

func shell(t *testing.T, c *client.Client, script string, change func(*client.Request)) client.Receipt {
	t.Helper()
	input, _ := json.Marshal(map[string]string{"shell": script})
	r := client.Request{Method: "shell.run", Input: input, Nodes: []muster.NodeName{"node1"}}
	if change != nil {
		change(&r)
	}
	receipt, err := c.Send(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return receipt
}

// final follows a send to its end and returns its only command.
func final(t *testing.T, c *client.Client, r client.Receipt) client.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.Follow(ctx, r.ID, func(client.Update) error { return nil }); err != nil {
		t.Fatalf("follow: %v", err)
	}
	all, err := c.Command(ctx, muster.Key{ID: r.ID})
	if err != nil || len(all) != 1 {
		t.Fatalf("command: %v, %d found", err, len(all))
	}
	return all[0]
}

// patience is how long a test waits for what must come. It says nothing of how fast
// that is: only a test that fails waits so long.
const patience = 5 * time.Minute

// until looks again and again for a condition of real processes.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for !holds() {
		if ctx.Err() != nil {
			t.Fatalf("waited in vain until %s", what)
		}
		pause(ctx, 20*time.Millisecond)
	}
}

// readPID reads a process id that a command wrote.
func readPID(path string) int {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(data))) // 0 while it is being written
	return pid
}

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(stat, []byte(") Z ")) && !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// ended waits for the end of a process that was killed: it takes a moment.
func ended(t *testing.T, pid int) {
	t.Helper()
	until(t, fmt.Sprintf("process %d of the command has ended", pid), func() bool { return !alive(pid) })
}

// An agent that is killed in the middle of a run reports it as unknown, with
// what it had written and with its processes ended, also those that left its
// process group; an idempotent one runs again.
func TestKilledInTheMiddle(t *testing.T) {
	l, n, c := realFleet(t)
	pidFile := filepath.Join(l.Dir, "child")
	script := `echo before; setsid sh -c 'echo $$ > ` + pidFile + `.new; mv ` + pidFile + `.new ` + pidFile + `; exec sleep 100000' & wait`
	lost := shell(t, c, script, nil)
	until(t, "the run has begun", func() bool { return readPID(pidFile) > 0 })
	child := readPID(pidFile)
	otherFile := filepath.Join(l.Dir, "other")
	other := shell(t, c, `setsid sh -c 'echo $$ > `+otherFile+`.new; mv `+otherFile+`.new `+otherFile+`; exec sleep 100000' & wait`,
		func(r *client.Request) { r.NoSeq = true })
	until(t, "the other run has begun", func() bool { return readPID(otherFile) > 0 })
	again := shell(t, c, `echo run >>`+filepath.Join(l.Dir, "again")+`; test $(wc -l <`+filepath.Join(l.Dir, "again")+`) -ge 2 || sleep 100000`,
		func(r *client.Request) { r.Idempotent, r.NoSeq = true, true })
	until(t, "the second run has begun", func() bool { _, err := os.Stat(filepath.Join(l.Dir, "again")); return err == nil })
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	s := final(t, c, lost)
	if s.State != muster.Unknown || s.Result == nil || string(s.Result.Stdout.Inline) != "before\n" {
		t.Fatalf("got %s with result %+v, want unknown with the output so far", s.State, s.Result)
	}
	ended(t, child)
	ended(t, readPID(otherFile))
	// Each has its own: perhaps that of the shell which the death of the agent
	// was about to end, so that only the difference is certain.
	o := final(t, c, other)
	if o.Result == nil || o.Result.Child == nil || o.Result.Child.Ended == 0 || s.Result.Child == nil || o.Result.Child.PID == s.Result.Child.PID {
		t.Errorf("of the processes %d and %d is known: %+v and %+v", child, readPID(otherFile), s.Result, o.Result)
	}
	if s := final(t, c, again); s.State != muster.Done {
		t.Errorf("the idempotent command: got %s (%s), want done", s.State, s.Reason)
	}
}

// Cancel and the time limit end the whole process group.
func TestRunIsEnded(t *testing.T) {
	l, _, c := realFleet(t)
	for name, want := range map[string]muster.State{"cancel": muster.Cancelled, "timeout": muster.Failure} {
		pidFile := filepath.Join(l.Dir, name)
		r := shell(t, c, `sleep 100000 & echo $! > `+pidFile+`.new; mv `+pidFile+`.new `+pidFile+`; wait`, func(r *client.Request) {
			if name == "timeout" {
				r.Timeout = 5 * time.Second // within which it begins
			}
		})
		until(t, "the run has begun", func() bool { return readPID(pidFile) > 0 })
		if name == "cancel" {
			if _, err := c.Cancel(t.Context(), r.ID, nil, ""); err != nil {
				t.Fatal(err)
			}
		}
		if s := final(t, c, r); s.State != want {
			t.Errorf("%s: got %s (%s), want %s", name, s.State, s.Reason, want)
		}
		ended(t, readPID(pidFile))
	}
}

// Output that is far larger than a report arrives whole, stdout and stderr
// apart, also when the link is cut in the middle.
func TestLargeOutput(t *testing.T) {
	_, n, c := realFleet(t)
	r := shell(t, c, `seq 1 1000000; echo complaint >&2`, nil)
	var out, errs bytes.Buffer
	cut := false
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := c.Follow(ctx, r.ID, func(u client.Update) error {
		if u.Chunk == nil {
			return nil
		}
		to := &out
		if u.Chunk.Stream == "stderr" {
			to = &errs
		}
		if u.Chunk.Offset != int64(to.Len()) {
			t.Errorf("a chunk of %s begins at %d, want %d", u.Chunk.Stream, u.Chunk.Offset, to.Len())
		}
		to.Write(u.Chunk.Data)
		if !cut {
			cut = true
			n.Link.Cut()
			n.Link.Heal()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	for i := range 1000000 {
		fmt.Fprintln(&want, i+1)
	}
	if sha256.Sum256(out.Bytes()) != sha256.Sum256(want.Bytes()) {
		t.Errorf("stdout: got %d bytes that differ from the %d wanted", out.Len(), want.Len())
	}
	if errs.String() != "complaint\n" {
		t.Errorf("stderr: got %q", errs.String())
	}
	all, err := c.Command(ctx, muster.Key{ID: r.ID})
	if err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := c.Output(ctx, all[0], "stdout", &again); err != nil || !bytes.Equal(again.Bytes(), want.Bytes()) {
		t.Errorf("read again: %d bytes, %v", again.Len(), err)
	}
}

// A journal that is damaged while the agent is away is set aside, and one that
// is gone is noticed; both are reported, and what was issued before and must not
// run twice becomes unknown.
func TestLostJournal(t *testing.T) {
	t.Run("journal-unreadable", func(t *testing.T) {
		n := lostJournal(t, "journal-unreadable", func(path string) error {
			return os.WriteFile(path, bytes.Repeat([]byte("not a journal "), 5000), 0o600)
		})
		aside, err := filepath.Glob(filepath.Join(n.Dir, "journal.db.unreadable-*"))
		if err != nil || len(aside) != 1 {
			t.Errorf("the damaged file is not set aside: %v, %v", aside, err)
		}
	})
	t.Run("journal-missing", func(t *testing.T) { lostJournal(t, "journal-missing", os.Remove) })
}

func lostJournal(t *testing.T, event string, lose func(path string) error) *lab.Node {
	t.Helper()
	_, n, c := realFleet(t)
	if s := final(t, c, shell(t, c, "true", nil)); s.State != muster.Done {
		t.Fatalf("got %s", s.State)
	}
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	before := shell(t, c, "true", nil)
	if err := lose(filepath.Join(n.Dir, "journal.db")); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	if s := final(t, c, before); s.State != muster.Unknown {
		t.Errorf("issued before the loss: got %s (%s), want unknown", s.State, s.Reason)
	}
	if s := final(t, c, shell(t, c, "true", nil)); s.State != muster.Done {
		t.Errorf("issued after the loss: got %s (%s), want done", s.State, s.Reason)
	}
	var events []client.Event
	if err := c.Events(t.Context(), client.EventQuery{Type: event}, func(e client.Event) error { events = append(events, e); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(events) != 1 || events[0].Type != event {
		t.Errorf("events: %+v", events)
	}
	nodes, err := c.Nodes(t.Context())
	if err != nil || len(nodes) != 1 || len(nodes[0].Problems) == 0 {
		t.Errorf("the node shows no problem: %+v, %v", nodes, err)
	}
	return n
}

// A change of the number of command streams that is killed again and again,
// while commands are sent, is completed by the next one. Each command runs
// once, in order.
func TestReshardIsKilled(t *testing.T) {
	l, _, c := realFleet(t)
	done := filepath.Join(l.Dir, "done")
	stop, sent := make(chan struct{}), make(chan []client.Receipt)
	go func() {
		var all []client.Receipt
		defer func() { sent <- all }()
		for i := 0; ; i++ {
			input, _ := json.Marshal(map[string]string{"shell": fmt.Sprintf("echo %d >>%s", i, done)})
			r, err := c.Send(t.Context(), client.Request{Method: "shell.run", Input: input, Nodes: []muster.NodeName{"node1"}})
			if err != nil || len(r.Refused) > 0 {
				t.Errorf("command %d: %v %v", i, err, r.Refused)
				return
			}
			all = append(all, r)
			select {
			case <-stop:
				return
			default:
			}
			if i%20 == 19 { // the sender is faster than the node
				if err := c.Follow(t.Context(), r.ID, func(client.Update) error { return nil }); err != nil {
					t.Errorf("follow command %d: %v", i, err)
				}
			}
		}
	}()
	reshard := func(ctx context.Context, shards int) ([]byte, error) {
		return l.Muster(ctx, "broker", "reshard", "--state", filepath.Join(l.Dir, "fleet"), strconv.Itoa(shards)).CombinedOutput()
	}
	killed := 0
	for i := range 8 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(40+40*i)*time.Millisecond)
		if _, err := reshard(ctx, 2+i%3); err != nil { // killed when ctx ends
			killed++
		}
		cancel()
	}
	if err := l.Broker.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := l.Broker.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "the streams are changed", func() bool { _, err := reshard(t.Context(), 5); return err == nil })
	close(stop)
	all := <-sent
	if s := final(t, c, all[len(all)-1]); s.State != muster.Done {
		t.Errorf("the last command: got %s", s.State)
	}
	text, err := os.ReadFile(done)
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for i := range all {
		fmt.Fprintln(&want, i)
	}
	if string(text) != want.String() {
		t.Errorf("of %d commands these ran: %q", len(all), text)
	}
	t.Logf("%d commands, %d changes killed", len(all), killed)
}
