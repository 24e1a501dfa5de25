// Package agent is the node's side: it verifies commands, asks the policy,
// journals, runs methods, and reports.
//
// One goroutine, the core, owns the delivery.Inbox and the journal: whatever
// happens reaches it through a mailbox, so that while one transaction is being
// synced, what arrives meanwhile is gathered for the next. Around it are
//
//	session   one connection to the broker: queue, withdrawals, heartbeat
//	reporter  reports that are not yet stored with the broker
//	runs      one goroutine for each command that runs
//	uploads   output that is too large for a report
//
// The caller wires it: which methods there are, how the broker is dialled,
// what the policy says.
package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/delivery"
	"github.com/musterfleet/muster/internal/journal"
	"github.com/musterfleet/muster/internal/method"
)

// What Options leaves out.
const (
	DefaultHeartbeat = 15 * time.Second
	DefaultMaxOutput = 256 << 20 // bytes of each stream of a run
)

// Options configure an Agent.
type Options struct {
	Node     muster.NodeName
	Fleet    string // id of the fleet
	Version  string // of this program, as shown to operators
	Dial     func(context.Context) (*bus.Conn, error)
	StateDir string // journal.db, audit.log, events.json, revoked.json and output/ are kept here
	Registry *method.Registry
	Plugins  []method.Spec // third-party methods, published so that operators know them
	Verifier *aaa.Verifier
	Policy   func() *aaa.Policy // asked for each command and heartbeat, by several goroutines; nil denies everything
	Facts    func(context.Context) (map[string]any, []error)
	// EndOrphans ends the processes that an earlier agent left behind, which
	// are known by a NAME=VALUE of their environment. Nil where that is not
	// possible.
	EndOrphans func(ctx context.Context, tag string) ([]method.Orphan, error)
	Heartbeat  time.Duration // default DefaultHeartbeat
	MaxOutput  int64         // bytes kept of each stream of a run, default DefaultMaxOutput
	Log        *slog.Logger
	Online     func(bool) // told when a session begins and ends; may be nil
	// Problems are asked for at each hello, beside the agent's own; Again has
	// something to receive when they changed. Both may be nil.
	Problems func() []string
	Again    <-chan struct{}
	// Redial has something to receive when the broker's address changed: the
	// session ends, and the next one begins at once. May be nil.
	Redial <-chan struct{}
	// Tell runs during each session, to publish events that are kept elsewhere,
	// until the context ends. May be nil.
	Tell func(ctx context.Context, publish func(muster.Event) error)
	// During runs during each session, with its connection, until the context
	// ends. May be nil.
	During func(ctx context.Context, conn *bus.Conn)
	// Paused is asked for the reason for which no run may begin now, empty for
	// none, at the start and whenever Repause has something to receive. Both may
	// be nil.
	Paused  func() string
	Repause <-chan struct{}
}

func (o *Options) validate() error {
	switch {
	case o.Node.Validate() != nil:
		return o.Node.Validate()
	case o.Fleet == "" || o.Dial == nil || o.StateDir == "" || o.Registry == nil || o.Verifier == nil || o.Policy == nil:
		return muster.Errorf(muster.Internal, "agent: Fleet, Dial, StateDir, Registry, Verifier and Policy must be set")
	}
	o.Heartbeat = cmp.Or(o.Heartbeat, DefaultHeartbeat)
	o.MaxOutput = cmp.Or(o.MaxOutput, DefaultMaxOutput)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Online == nil {
		o.Online = func(bool) {}
	}
	return nil
}

// An Agent runs once.
type Agent struct {
	o         Options
	log       *slog.Logger
	instance  string // of this process; new at each start
	started   time.Time
	journal   *journal.Journal
	audit     *auditLog
	spools    *spools
	core      *core
	reporter  *reporter
	uploads   *uploads
	events    *events
	plugins   []json.RawMessage // specs of third-party methods
	problems  problems
	withdrawn recent
	revoked   revoked
	known     atomic.Pointer[bus.Subjects] // of the last session
	rtt       atomic.Int64                 // to the broker, nanoseconds
}

// New checks the options. Nothing happens before Run.
func New(o Options) (*Agent, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	a := &Agent{o: o, log: o.Log.With("component", "agent", "node", o.Node), instance: newID()}
	for _, spec := range o.Plugins {
		data, err := json.Marshal(spec)
		if err != nil {
			return nil, muster.Errorf(muster.Invalid, "agent: method %s: %w", spec.Name, err)
		}
		a.plugins = append(a.plugins, data)
	}
	return a, nil
}

// Run works until ctx ends, then ends what runs, says goodbye and returns nil.
// It returns an error only when it cannot begin: an unreadable journal is set
// aside and no reason to stop, one in use by another agent is.
func (a *Agent) Run(ctx context.Context) error {
	a.started = time.Now()
	state, err := a.open(ctx)
	if err != nil {
		return err
	}
	// What runs is ended in stages, so that its outcome is still journalled
	// and, if the broker is there, reported.
	coreCtx, stopCore := context.WithCancel(context.WithoutCancel(ctx))
	busCtx, stopBus := context.WithCancel(context.WithoutCancel(ctx))
	a.uploads.ctx = busCtx
	a.core = newCore(a, state)
	var inner, outer sync.WaitGroup
	inner.Go(func() { a.core.run(coreCtx) })
	outer.Go(func() { a.sessions(busCtx) })
	a.uploads.resume(busCtx)
	<-ctx.Done()
	a.core.endRuns()
	a.settle()
	// The session asks the core for its load until it has ended.
	stopBus()
	outer.Wait()
	a.uploads.wait()
	stopCore()
	inner.Wait()
	return errors.Join(a.audit.close(), a.journal.Close())
}

// goodbyeTime bounds how long a stopping agent waits for its last reports.
const goodbyeTime = 3 * time.Second

// settle gives the last reports time to reach the broker, if it is there.
func (a *Agent) settle() {
	end := time.NewTimer(goodbyeTime)
	defer end.Stop()
	for a.reporter.online() && !a.reporter.idle() {
		select {
		case <-a.reporter.changed():
		case <-end.C:
			return
		}
	}
}

// open reads what an earlier agent left: the journal, its output, its
// processes.
func (a *Agent) open(ctx context.Context) (delivery.State, error) {
	j, state, err := journal.Open(filepath.Join(a.o.StateDir, "journal.db"), time.Now())
	if err != nil {
		return state, err
	}
	a.journal = j
	a.events = openEvents(a.o.Node, filepath.Join(a.o.StateDir, "events.json"), a.log)
	if err := a.openRevoked(); err != nil {
		_ = j.Close() // the first error counts
		return state, err
	}
	a.reporter = newReporter()
	if a.audit, err = openAudit(filepath.Join(a.o.StateDir, "audit.log"), a.log, &a.problems); err != nil {
		_ = j.Close() // the first error counts
		return state, err
	}
	a.audit.secrets = a.o.Registry.Secrets
	if a.spools, err = openSpools(filepath.Join(a.o.StateDir, "output"), a.o.MaxOutput); err != nil {
		_ = j.Close()
		return state, err
	}
	a.uploads = newUploads(a)
	if j.Cause != nil {
		a.journalLost(j)
	}
	a.endOrphans(ctx, state)
	return state, nil
}

// journalLost says that an earlier journal was unreadable, or gone.
func (a *Agent) journalLost(j *journal.Journal) {
	kind, what := "journal-missing", "its journal was missing"
	if j.SetAside != "" {
		kind, what = "journal-unreadable", "its journal was unreadable and is set aside as "+j.SetAside
	}
	a.log.Error("the journal was lost", "file", j.SetAside, "err", j.Cause)
	a.events.add(kind, what+"; commands issued before now that must not run twice are reported as unknown",
		map[string]string{"file": j.SetAside, "cause": j.Cause.Error()})
	a.problems.add(what + " when it was started at " + a.started.UTC().Format(time.RFC3339))
}

// paused is the reason for which no run may begin, empty for none.
func (a *Agent) paused() string {
	if a.o.Paused == nil {
		return ""
	}
	return a.o.Paused()
}

// policy is the policy in force. That it cannot be read is a problem of the node
// until it is repaired.
func (a *Agent) policy() *aaa.Policy {
	p := a.o.Policy()
	text := ""
	if fault := p.Fault(); fault != "" {
		text = "its policy cannot be read, and every command is refused until it can: " + fault
	}
	a.problems.set("policy", text)
	return p
}

func (a *Agent) setSubjects(s bus.Subjects) { a.known.Store(&s) }

// subjects are those of the last session. Who asks has a session, or waits for
// one before the answer is used.
func (a *Agent) subjects() bus.Subjects {
	if s := a.known.Load(); s != nil {
		return *s
	}
	return bus.Subjects{Prefix: bus.DefaultPrefix, Shards: 1}
}

// tag is the variable by which the processes of this node are known.
func (a *Agent) tag() string { return "MUSTER_AGENT=" + a.o.Fleet + "/" + string(a.o.Node) }

// endOrphans ends what an earlier agent left running and adds to each
// interrupted command what is known of it.
func (a *Agent) endOrphans(ctx context.Context, state delivery.State) {
	var ended []method.Orphan
	if a.o.EndOrphans != nil {
		var err error
		if ended, err = a.o.EndOrphans(ctx, a.tag()); err != nil {
			a.log.Error("processes of interrupted commands could not all be ended", "err", err)
			a.events.add("orphans", "processes of interrupted commands could not all be ended: "+err.Error(), nil)
		}
	}
	for i := range state.Records {
		r := &state.Records[i]
		if r.Report.State() != muster.Running {
			continue
		}
		result := a.spools.recover(r.Command.ID)
		result.Child = childOf(r.Command.ID, ended)
		r.Report.Result = &result
	}
}

// childOf returns what is known of the processes of a command: the oldest of
// them, and how many there were; nil when there was none.
func childOf(id muster.CommandID, ended []method.Orphan) *muster.Child {
	var child *muster.Child
	n := 0
	for _, o := range ended {
		if o.Command != id {
			continue
		}
		n++
		if child == nil || o.Started.Before(child.Started) {
			child = &muster.Child{PID: o.PID, Started: o.Started}
		}
	}
	if child != nil {
		child.Ended = n
	}
	return child
}
