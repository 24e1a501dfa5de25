package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/delivery"
	"github.com/musterfleet/muster/internal/journal"
	"github.com/musterfleet/muster/internal/method"
)

// A recorder is a method that notes the order of its runs.
type recorder struct {
	hold chan struct{} // a run waits until it is closed or ended
	mu   sync.Mutex    // guards ran
	ran  []muster.CommandID
}

func (r *recorder) Spec() method.Spec {
	return method.Spec{Name: "test.note", Description: "Notes that it ran.", Input: json.RawMessage(`true`), Output: json.RawMessage(`true`)}
}

func (r *recorder) Invoke(ctx context.Context, in method.Invocation) (method.Outcome, error) {
	r.mu.Lock()
	r.ran = append(r.ran, in.Key.ID)
	r.mu.Unlock()
	if r.hold != nil {
		select {
		case <-r.hold:
		case <-ctx.Done():
			return method.Outcome{}, ctx.Err()
		}
	}
	return method.Outcome{}, nil
}

func (r *recorder) runs() []muster.CommandID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ran)
}

// A bench is a core with a journal and an audit log, and no broker.
type bench struct {
	*core
	t      *testing.T
	dir    string
	method *recorder
	audit  *fullDisk
	issuer *aaa.Issuer
	stop   func()
	mu     sync.Mutex // guards the fields below
	acked  []string
	aside  []string
}

func newBench(t *testing.T, hold chan struct{}) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), method: &recorder{hold: hold}}
	registry, err := method.NewRegistry(b.method)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	all, err := aaa.ParsePolicy("policy", []byte("rules: [{effect: allow, methods: ['*']}]"))
	if err != nil {
		t.Fatal(err)
	}
	if b.issuer, err = aaa.GenerateIssuer(); err != nil {
		t.Fatal(err)
	}
	verifier, err := aaa.NewVerifier("f", b.issuer.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Node: "n", Fleet: "f", Registry: registry, Policy: func() *aaa.Policy { return all }, Verifier: verifier, StateDir: b.dir}
	a := &Agent{o: o, log: log, reporter: newReporter(), events: openEvents("n", filepath.Join(b.dir, "events.json"), log)}
	var state delivery.State
	if a.journal, state, err = journal.Open(filepath.Join(b.dir, "journal.db"), time.Now()); err != nil {
		t.Fatal(err)
	}
	if a.audit, err = openAudit(filepath.Join(b.dir, "audit.log"), log, &a.problems); err != nil {
		t.Fatal(err)
	}
	b.audit = &fullDisk{File: a.audit.file.(*os.File), room: 1 << 30}
	a.audit.file = b.audit
	if a.spools, err = openSpools(filepath.Join(b.dir, "output"), 1<<20); err != nil {
		t.Fatal(err)
	}
	a.uploads = newUploads(a)
	a.uploads.ctx = t.Context()
	if err := a.openRevoked(); err != nil {
		t.Fatal(err)
	}
	a.core = newCore(a, state)
	b.core = a.core
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { a.core.run(ctx) })
	b.stop = sync.OnceFunc(func() {
		a.core.endRuns()
		cancel()
		wg.Wait()
	})
	t.Cleanup(func() {
		b.stop()
		_ = a.audit.close() // a test may have closed them
		_ = a.journal.Close()
	})
	return b
}

// room sets what the disk of the audit log takes, in the core's goroutine.
func (b *bench) room(n int) { b.post(func() { b.audit.room = n }) }

func (b *bench) command(id string) muster.Command {
	return muster.Command{ID: muster.CommandID(id), Node: "n", Method: "test.note", Input: json.RawMessage("{}"),
		IssuedAt: time.Now(), Deadline: time.Now().Add(time.Hour)}
}

// send delivers a command; its acknowledgement is noted under the name.
func (b *bench) send(id, name string) {
	b.deliver(b.parcel(b.command(id), 0, name))
}

// parcel is what the broker delivers from a place of its stream.
func (b *bench) parcel(cmd muster.Command, seq uint64, name string) parcel {
	note := func(list *[]string) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		*list = append(*list, name)
		return nil
	}
	return parcel{
		cmd: cmd, caller: alice, stored: delivery.Mark{Stream: "s", Seq: seq},
		ack: func() error { return note(&b.acked) }, aside: func(error) { _ = note(&b.aside) },
	}
}

func (b *bench) cancelIt(id, of string) {
	b.t.Helper()
	c := b.command(id)
	c.Input, _ = json.Marshal(muster.Withdrawal{ID: muster.CommandID(of), Until: c.Deadline})
	if err := b.withdraw(c, alice); err != nil {
		b.t.Error(err)
	}
}

func (b *bench) expect(what string, acked []string, ran ...muster.CommandID) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Equal(b.acked, acked) {
		b.t.Errorf("%s: acknowledged %q, want %q", what, b.acked, acked)
	}
	if got := b.method.runs(); !slices.Equal(got, ran) {
		b.t.Errorf("%s: ran %q, want %q", what, got, ran)
	}
}

// While a decision cannot be written nothing follows from it: neither a run
// nor an acknowledgement. Afterwards all goes on, in order and once.
func TestNothingWithoutAudit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.send("a", "a")
		synctest.Wait()
		b.expect("with room", []string{"a"}, "a")
		b.room(0)
		b.send("b", "b")
		b.cancelIt("w", "c")
		b.send("c", "c")
		b.send("d", "d")
		time.Sleep(time.Minute)
		b.expect("without room", []string{"a"}, "a")
		if l := b.a.problems.list(); len(l) != 1 {
			t.Errorf("problems: %q", l)
		}
		b.send("b", "b again") // on a new connection
		b.send("a", "a again") // held too, for its place
		time.Sleep(time.Minute)
		b.expect("delivered again", []string{"a"}, "a")
		b.room(1 << 30)
		time.Sleep(2 * auditAgain)
		b.expect("with room again", []string{"a", "b again", "c", "d", "a again"}, "a", "b", "d")
		if l := b.a.problems.list(); len(l) != 0 {
			t.Errorf("problems: %q", l)
		}
		if got := verified(t, filepath.Join(b.dir, "audit.log")); got != 5 {
			t.Errorf("%d lines, want one for each of four commands and one withdrawal", got)
		}
	})
}

// A problem that could not be told is still news.
func TestHelloIsSaidAgain(t *testing.T) {
	b := newBench(t, nil)
	b.a.problems.set("topic", "something is wrong")
	refused := errors.New("no room")
	put := func(context.Context, bus.Outgoing) error { return refused }
	if err := b.a.hello(t.Context(), "s", put); err == nil || !b.a.problems.changed() {
		t.Errorf("%v; to be told again: %t", err, b.a.problems.changed())
	}
	refused = nil
	if err := b.a.hello(t.Context(), "s", put); err != nil || b.a.problems.changed() {
		t.Errorf("%v; to be told again: %t", err, b.a.problems.changed())
	}
}

// A decision that nothing in the inbox follows from waits, too.
func TestRecordWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		if err := b.record(t.Context(), decision("x")); err != nil {
			t.Fatal(err)
		}
		b.room(0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := b.record(ctx, decision("y")); err == nil {
			t.Error("said to be recorded on a full disk")
		}
	})
}

// Without room for a withdrawal no command is taken in, until the session has
// read the withdrawals again.
func TestMissedWithdrawal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.post(func() {
			b.inbox = delivery.New(delivery.Config{Node: "n", Withdrawals: 1, Share: 2}, delivery.State{}, time.Now())
		})
		b.listen()
		b.cancelIt("w1", "x1")
		b.cancelIt("w2", "x2")
		b.send("x2", "x2") // it was under way
		synctest.Wait()
		b.expect("x2 is withdrawn", nil)
		if b.a.withdrawn.seen("w2") {
			t.Error("the withdrawal that was not taken in would not be read again")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := b.reserve(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("there is room: %v", err)
		}
		time.Sleep(48 * time.Hour) // the first expires
		if err := b.reserve(t.Context()); !errors.Is(err, errMissed) {
			t.Errorf("got %v, want to be told to read again", err)
		}
		b.send("y", "y") // still under way
		b.listen()
		b.cancelIt("w2", "x2")
		b.send("x2", "x2")
		synctest.Wait()
		b.expect("after reading again", []string{"x2"})
		if err := b.reserve(ctx); err == nil {
			t.Error("there is room beside the withdrawal of x2")
		}
	})
}

// A caller cannot make a node deaf with cancels of what it never sent: without
// any right on the node they are refused, with one they have a share.
func TestWithdrawalsOfAStranger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		eve := aaa.Caller{Name: "eve", Rights: []aaa.Right{{Methods: []string{"test.*"}, Nodes: []string{"nosuch"}}}}
		cancel := func(caller aaa.Caller, i int, until time.Duration) error {
			c := b.command(fmt.Sprintf("w%d", i))
			c.Deadline = time.Now().Add(399 * 24 * time.Hour)
			c.Input, _ = json.Marshal(muster.Withdrawal{ID: muster.CommandID(fmt.Sprintf("x%d", i)), Until: c.Deadline.Add(until)})
			return b.withdraw(c, caller)
		}
		if err := cancel(eve, 0, 0); muster.KindOf(err) != muster.Denied {
			t.Errorf("without a right: %v", err)
		}
		eve.Rights[0].Nodes[0] = "n"
		if err := cancel(eve, 0, time.Second); muster.KindOf(err) != muster.Invalid {
			t.Errorf("beyond its own deadline: %v", err)
		}
		for i := range 12_000 {
			if err := cancel(eve, i, 0); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if err := b.reserve(t.Context()); err != nil {
			t.Error(err)
		}
		b.send("a", "a")
		synctest.Wait()
		b.expect("after 12,000 cancels of one caller", []string{"a"}, "a")
	})
}

// A node with little room says so.
func TestShortageIsAProblem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.post(func() {
			b.inbox = delivery.New(delivery.Config{Node: "n", Withdrawals: 5, Share: 5}, delivery.State{}, time.Now())
		})
		for i := range 4 {
			if l := b.a.problems.list(); len(l) != 0 {
				t.Errorf("problems with %d: %q", i, l)
			}
			b.cancelIt(fmt.Sprintf("w%d", i), fmt.Sprintf("x%d", i))
			synctest.Wait()
		}
		if l := b.a.problems.list(); len(l) != 1 {
			t.Errorf("problems: %q", l)
		}
	})
}

// What the broker delivers again is not audited again; what somebody stored
// again is, and does not run; another command under a known id is set aside.
func TestKnownIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		cmd := b.command("a")
		verdicts := func() string {
			synctest.Wait()
			data, err := os.ReadFile(filepath.Join(b.dir, "audit.log"))
			if err != nil {
				t.Fatal(err)
			}
			var all []string
			for line := range strings.Lines(string(data)) {
				rec, _, err := aaa.ReadAuditLine([]byte(line))
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, string(rec.Verdict))
			}
			return strings.Join(all, " ")
		}
		b.deliver(b.parcel(cmd, 7, "first"))
		for range 3 {
			b.deliver(b.parcel(cmd, 7, "delivered again"))
		}
		if got := verdicts(); got != "allowed" {
			t.Errorf("audited: %s", got)
		}
		later := cmd
		later.IssuedAt, later.Deadline = cmd.IssuedAt.Add(time.Second), cmd.Deadline.Add(time.Second)
		b.deliver(b.parcel(later, 8, "stored again"))
		b.deliver(b.parcel(later, 8, "delivered again"))
		if got := verdicts(); got != "allowed replayed" {
			t.Errorf("audited: %s", got)
		}
		other := cmd
		other.Input = json.RawMessage(`{"other":1}`)
		b.deliver(b.parcel(other, 9, "another"))
		synctest.Wait()
		b.expect("in the end", []string{"first", "delivered again", "delivered again", "delivered again", "stored again", "delivered again"}, "a")
		b.mu.Lock()
		defer b.mu.Unlock()
		if !slices.Equal(b.aside, []string{"another"}) {
			t.Errorf("set aside: %q", b.aside)
		}
	})
}

// While the audit log is full two commands of one id are held, both of them.
func TestHeldConflict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.room(0)
		cmd := b.command("a")
		other := cmd
		other.Retries = 1
		b.deliver(b.parcel(cmd, 1, "first"))
		b.deliver(b.parcel(other, 2, "other"))
		b.deliver(b.parcel(cmd, 1, "first again"))
		b.room(1 << 30)
		time.Sleep(2 * auditAgain)
		b.expect("with room again", []string{"first again"}, "a")
		b.mu.Lock()
		defer b.mu.Unlock()
		if !slices.Equal(b.aside, []string{"other"}) {
			t.Errorf("set aside: %q", b.aside)
		}
	})
}

// An agent stops also when its journal cannot be written, and says nothing of
// what the journal does not have.
func TestStopWithoutJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, make(chan struct{}))
		b.send("a", "a")
		synctest.Wait()
		b.expect("running", []string{"a"}, "a")
		if queued, running := b.load(); queued != 1 || running != 1 {
			t.Errorf("load: %d and %d, want 1 and 1", queued, running)
		}
		if err := b.a.journal.Close(); err != nil { // from now on it fails
			t.Fatal(err)
		}
		b.send("b", "b")
		time.Sleep(time.Minute)
		b.expect("without a journal", []string{"a"}, "a")
		if queued, _ := b.load(); queued != 1 {
			t.Errorf("load while the journal fails: %d", queued)
		}
		began := time.Now()
		b.stop()
		if d := time.Since(began); d > 2*goodbyeTime {
			t.Errorf("it took %s to stop", d)
		}
		b.expect("stopped", []string{"a"}, "a")
	})
}

// Runs that do not end by themselves are ended with the agent, and their
// outcome is in the journal.
func TestEndRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, make(chan struct{}))
		b.send("a", "a")
		b.send("b", "b") // behind it, for the next agent
		synctest.Wait()
		b.stop()
		b.expect("stopped", []string{"a", "b"}, "a")
		if err := b.a.journal.Close(); err != nil {
			t.Fatal(err)
		}
		_, state, err := journal.Open(filepath.Join(b.dir, "journal.db"), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range state.Records {
			got = append(got, fmt.Sprint(r.Command.ID, " ", r.Report.State()))
		}
		slices.Sort(got)
		if want := []string{"a failed", "b accepted"}; !slices.Equal(got, want) {
			t.Errorf("journal: got %q, want %q", got, want)
		}
	})
}

// A full inbox makes its reader wait until something is over.
func TestReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		b := newBench(t, hold)
		b.post(func() { b.inbox = delivery.New(delivery.Config{Node: "n", Capacity: 1}, delivery.State{}, time.Now()) })
		synctest.Wait()
		if err := b.reserve(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.send("a", "a")
		synctest.Wait()
		done := make(chan error, 1)
		go func() { done <- b.reserve(t.Context()) }()
		synctest.Wait()
		close(hold)
		synctest.Wait()
		select {
		case <-done:
			t.Error("room before the report is stored")
		default:
		}
		b.a.reported(t.Context(), muster.Report{ID: "a", Node: "n", Seq: 3}, nil)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A method that panics fails, and the agent lives.
func TestPanickingMethod(t *testing.T) {
	a := &Agent{log: slog.New(slog.DiscardHandler)}
	_, err := a.safely(t.Context(), panicking{}, method.Invocation{})
	if muster.KindOf(err) != muster.Internal {
		t.Errorf("got %v", err)
	}
}

type panicking struct{}

func (panicking) Spec() method.Spec { return method.Spec{Name: "test.panic"} }
func (panicking) Invoke(context.Context, method.Invocation) (method.Outcome, error) {
	panic(syscall.EFAULT)
}

func outgoing(subject string) bus.Outgoing { return bus.Outgoing{Subject: subject} }

var alice = aaa.Caller{Name: "alice", Rights: []aaa.Right{{Methods: []string{"*"}, Nodes: []string{"*"}}}}
