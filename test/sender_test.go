package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// A kind of command leaves a line behind on its node for each run: its id and,
// where time matters, the time in nanoseconds.
type kind struct {
	name   string
	args   []string // of 'muster send'
	script string   // of a shell, appended to by the line; empty for file.append
	every  bool     // goes to all nodes, not to one after the other
	pause  time.Duration

	disorder bool           // beside its lane
	runs     int            // at most, apart from interruptions
	repeats  bool           // may run again after an interruption
	cancel   bool           // it is cancelled by its sender
	output   int            // lines of output that a run writes
	states   []muster.State // final ones that may come, beside done and (see unexplained) unknown
}

// logLine writes the line of a run.
const (
	logLine = `echo "$MUSTER_COMMAND" >>%s`
	logTime = `echo "$MUSTER_COMMAND $(date +%%s%%N)" >>%s`
)

var kinds = []kind{
	{name: "append", runs: 1},
	{name: "shell", script: logLine, every: true, runs: 1},
	// It fails when it runs for the first time.
	{name: "again", args: []string{"--idempotent", "--retries", "8"}, pause: 1500 * time.Millisecond,
		script: logLine + `; test "$(grep -c "$MUSTER_COMMAND" %[1]s)" -ge 2`, runs: 9, repeats: true},
	{name: "beside", args: []string{"--noseq"}, script: logLine, every: true, pause: 300 * time.Millisecond, disorder: true, runs: 1},
	// A kill of the agent meets it in the middle, and a link is cut in its middle.
	{name: "slow", args: []string{"--noseq"}, script: logLine + "; sleep 1", every: true, pause: 300 * time.Millisecond, disorder: true, runs: 1},
	{name: "cancelled", args: []string{"--noseq"}, script: "sleep 0.5; " + logTime, every: true, pause: 300 * time.Millisecond,
		disorder: true, runs: 1, cancel: true, states: []muster.State{muster.Cancelled}},
	{name: "late", args: []string{"--noseq", "--deadline", "2s"}, script: logTime, pause: 300 * time.Millisecond,
		disorder: true, runs: 1, states: []muster.State{muster.Expired}},
	{name: "large", args: []string{"--noseq"}, script: logLine + "; seq 1 400000", pause: 2 * time.Second,
		disorder: true, runs: 1, output: 400000},
}

// lane is that of the method, empty for what runs beside it.
func (k *kind) lane() string {
	if slices.Contains(k.args, "--noseq") {
		return ""
	}
	return k.method()
}

func (k *kind) method() string {
	if k.script == "" {
		return "file.append"
	}
	return "shell.run"
}

// A sender sends one command of its kind after the other.
type sender struct {
	c      *campaign
	number int
	kind   *kind
	rand   *rand.Rand
	ids    []muster.CommandID // accepted, in the order of sending
	tally
}

// A tally counts runs of 'muster send'.
type tally struct {
	accepted int
	killed   int // or failed: asked again
	refused  int // for want of room in the outbox
	givenUp  int // refused and not asked again
	repeated int // accepted twice
	other    int // something else under an id that was accepted: refused
	aside    int // the same, kept in the outbox since the broker was away
	unsure   int // the same, refused or kept since the broker had no room
}

func (t *tally) add(u tally) {
	t.accepted += u.accepted
	t.killed += u.killed
	t.refused += u.refused
	t.givenUp += u.givenUp
	t.repeated += u.repeated
	t.other += u.other
	t.aside += u.aside
	t.unsure += u.unsure
}

// run sends until ctx ends.
func (s *sender) run(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		id := muster.CommandID(fmt.Sprintf("s%d-%06d", s.number, n))
		if !s.deliver(id) {
			continue
		}
		s.ids = append(s.ids, id)
		if s.kind.cancel {
			pause(ctx, time.Duration(s.rand.IntN(600))*time.Millisecond)
			s.cancel(id)
		}
		switch draw := s.rand.IntN(8); {
		case draw == 0: // as somebody who missed the answer
			if s.send(id, false) == accepted {
				s.repeated++
			}
		case draw == 1 || len(s.ids) == 1: // on a slow machine there are few draws
			s.sendOther(id)
		}
		pause(ctx, s.kind.pause)
	}
}

// deliver sends until the send is accepted. A sender that is killed is asked to
// send the same again under the same id, as a person or a script would. A send
// that was refused, and never asked for before, is given up: it must not run.
func (s *sender) deliver(id muster.CommandID) bool {
	for try := 0; ; try++ {
		switch s.send(id, true) {
		case accepted:
			s.accepted++
			return true
		case failed:
			s.killed++
		case refused:
			s.refused++
			pause(context.Background(), 50*time.Millisecond) // the disk is full for longer
			if try == 0 {
				s.givenUp++
				return false
			}
		}
	}
}

// A reply is what a run of 'muster send' says.
type reply int

const (
	accepted reply = iota
	refused        // there is no room in the outbox: nothing was sent
	failed         // it was killed, or does not know
)

// cancel withdraws what was sent. Whether it was in time, its state says.
func (s *sender) cancel(id muster.CommandID) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if out, err := s.c.lab.Muster(ctx, "command", "cancel", string(id)).CombinedOutput(); err != nil {
		s.c.t.Logf("cancel %s: %v: %s", id, err, out)
	}
}

// send runs 'muster send', and sometimes kills it if it may be killed.
func (s *sender) send(id muster.CommandID, mortal bool) reply {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	args := s.args(id, s.work(id))
	cmd := s.c.lab.Muster(ctx, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		s.c.t.Errorf("muster send: %v", err)
		return accepted
	}
	if mortal && s.rand.IntN(8) == 0 {
		pause(ctx, time.Duration(s.rand.IntN(120))*time.Millisecond)
		_ = cmd.Process.Kill() // it may have ended this moment
	}
	err := cmd.Wait()
	switch {
	case err == nil:
		return accepted
	case strings.Contains(out.String(), "write to the outbox") && strings.Contains(out.String(), "nothing was sent"):
		return refused
	case cmd.ProcessState.ExitCode() >= 0:
		s.c.t.Logf("send %s: %v: %s", id, err, out.String())
	}
	return failed
}

// sendOther asks for something else under an id that was accepted. It would leave
// a line that nobody accepted.
func (s *sender) sendOther(id muster.CommandID) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	work := []string{"shell.run", "--", "sh", "-c", "echo other-$MUSTER_COMMAND >>" + s.evidence(`"$MUSTER_NODE"`)}
	out, err := s.c.lab.Muster(ctx, s.args(id, work)...).CombinedOutput()
	switch text := string(out); {
	case err == nil && strings.Contains(text, `"outbox"`):
		s.aside++
	case err == nil:
		s.c.t.Errorf("something else is accepted under %s: %s", id, text)
	case strings.Contains(text, "the id is taken"):
		s.other++
	case !strings.Contains(text, "nothing was sent"):
		s.unsure++
		s.c.t.Logf("send something else under %s: %v: %s", id, err, text)
	}
}

func (s *sender) args(id muster.CommandID, work []string) []string {
	return slices.Concat([]string{"send", "-y", "-t", s.selector(id), "--id", string(id), "-o", "json"}, s.kind.args, work)
}

// work is the method of a command, and its arguments.
func (s *sender) work(id muster.CommandID) []string {
	if s.kind.script == "" {
		return []string{s.kind.method(), "path=" + s.evidence(s.selector(id)), "content=" + string(id) + "\n"}
	}
	return []string{s.kind.method(), "--", "sh", "-c", fmt.Sprintf(s.kind.script, s.evidence(`"$MUSTER_NODE"`))}
}

// selector chooses all nodes, or one after the other.
func (s *sender) selector(id muster.CommandID) string {
	if s.kind.every {
		return "node1 or node2 or ship.node3"
	}
	n, _ := strconv.Atoi(string(id[len(id)-6:])) // made by run
	return string(s.c.lab.Nodes[n%len(s.c.lab.Nodes)].Name)
}

// evidence is the file that a sender's commands write to on a node.
func (s *sender) evidence(node string) string {
	return filepath.Join(s.c.lab.Dir, fmt.Sprintf("evidence-%d-", s.number)) + node
}

// A trace is what the runs of one command left behind.
type trace struct {
	runs int
	last time.Time // zero where the kind writes no times
}

// read returns the traces on a node, and complains about inversions: a command
// whose line comes after that of one that was sent later.
func (s *sender) read(node muster.NodeName) (traces map[muster.CommandID]trace, lines int) {
	data, err := os.ReadFile(s.evidence(string(node)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // all may have come too late; wrong knows
		s.c.t.Error(err)
	}
	traces = make(map[muster.CommandID]trace)
	last := muster.CommandID("")
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		id := muster.CommandID(f[0])
		tr := traces[id]
		tr.runs++
		if len(f) > 1 {
			ns, _ := strconv.ParseInt(f[1], 10, 64) // written by date
			tr.last = time.Unix(0, ns)
		}
		traces[id] = tr
		if id < last && !s.kind.disorder {
			s.c.t.Errorf("%s ran after %s on %s: an inversion", id, last, node)
		}
		last = id
		lines++
	}
	return traces, lines
}

// judge looks at one sender's commands on one node, counts their states, takes them
// out of states, and returns how many lines there are.
func (s *sender) judge(node muster.NodeName, states map[muster.Key]client.Status, decided map[muster.Key]bool, of map[muster.State]int) int {
	traces, lines := s.read(node)
	for _, id := range s.ids {
		if !s.kind.every && s.selector(id) != string(node) {
			continue
		}
		st, known := states[muster.Key{ID: id, Node: node}]
		if !known {
			s.c.t.Errorf("%s to %s was accepted and is not known: lost", id, node)
			continue
		}
		delete(states, st.Key)
		of[st.State]++
		if traces[id].runs > 0 && !decided[st.Key] {
			s.c.t.Errorf("%s ran on %s, and its audit log does not know of it", id, node)
		}
		if wrong := s.wrong(st, traces[id]); wrong != "" {
			s.c.t.Errorf("%s on %s is %s (%s), but %s; %+v", id, node, st.State, st.Reason, wrong, st.History)
		}
		delete(traces, id)
	}
	for id := range traces {
		s.c.t.Errorf("%s ran on %s, and was not accepted for it", id, node)
	}
	return lines
}

// wrong says in which way a state is not true, or nothing.
func (s *sender) wrong(st client.Status, tr trace) string {
	begun, final := 0, st.History[len(st.History)-1]
	var began time.Time
	for _, h := range st.History {
		if h.State == muster.Running {
			begun++
			began = h.Time
		}
	}
	switch state := st.State; {
	case tr.runs > begun:
		return fmt.Sprintf("it ran %d times and %d starts are noted", tr.runs, begun)
	case tr.runs > s.kind.runs && !s.kind.repeats:
		return fmt.Sprintf("it ran %d times", tr.runs)
	case began.After(st.Deadline):
		return "it was started after its deadline"
	case state == muster.Done && tr.runs < min(2, s.kind.runs):
		return fmt.Sprintf("it ran %d times", tr.runs)
	case state == muster.Done && s.kind.output > 0:
		return s.incomplete(st)
	case state == muster.Done:
	case state == muster.Unknown:
		return s.unexplained(st)
	case !slices.Contains(s.kind.states, state):
		return "nothing of this kind ends so"
	case state == muster.Cancelled && tr.last.After(final.Time):
		return fmt.Sprintf("it ran on until %s", tr.last)
	case state == muster.Expired && tr.runs > 0:
		return "it ran"
	}
	return ""
}

// unexplained says why a command cannot be unknown, or nothing: it must be one that
// does not run twice, and its agent must have been killed between its start and
// its end.
func (s *sender) unexplained(st client.Status) string {
	n := len(st.History)
	if s.kind.repeats {
		return "it may run again"
	}
	if n < 2 || st.History[n-2].State != muster.Running {
		return "nothing says that it ran before"
	}
	began, ended := st.History[n-2].Time, st.History[n-1].Time
	kills := s.c.kills[st.Node]
	i := slices.IndexFunc(kills, func(k span) bool { return !k.to.Before(began) })
	if i < 0 || kills[i].from.After(ended) {
		return "its agent was not killed meanwhile"
	}
	s.c.interrupted[interruption{st.Node, i, s.kind.lane()}]++
	return ""
}

// incomplete compares the bytes that the broker has with what the run wrote. A
// node whose disk was full may have dropped the rest, if it says so.
func (s *sender) incomplete(st client.Status) string {
	ctx, cancel := context.WithTimeout(s.c.t.Context(), patience)
	defer cancel()
	var got, want bytes.Buffer
	if err := s.c.client.Output(ctx, st, "stdout", &got); err != nil {
		return "its output is not there: " + err.Error()
	}
	for i := range s.kind.output {
		fmt.Fprintln(&want, i+1)
	}
	kept := int64(want.Len()) - st.Result.Stdout.Truncated
	if len(s.c.disks) == 0 && kept != int64(want.Len()) || kept != int64(got.Len()) || !bytes.HasPrefix(want.Bytes(), got.Bytes()) {
		return fmt.Sprintf("%d bytes of %d are stored, %d of them dropped, or they differ", got.Len(), want.Len(), st.Result.Stdout.Truncated)
	}
	return ""
}
