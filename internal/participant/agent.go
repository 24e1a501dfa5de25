package participant

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/filter"
	"github.com/musterfleet/muster/internal/methods/onsite"
	"github.com/musterfleet/muster/internal/order"
)

const (
	maxRunning   = 8                      // queries at once
	answerMargin = 150 * time.Millisecond // before a query's deadline it is ended, so that its answer comes in time
)

// AgentOptions say what an Agent is.
type AgentOptions struct {
	Cluster    string // the constellation's key
	Operators  []ed25519.PublicKey
	ID         [16]byte // see StableID
	Name       string
	Labels     map[string]string
	Facts      func() map[string]any // default onsite.GatherFacts; asked for at the start and by the method facts
	Hints      [][]byte              // signed, of where the broker is: the newest is told to newcomers
	HintFile   string                // keeps the newest; "" for none
	Carriers   []Carrier
	Port       uint16 // where long frames are taken
	LockFolder string // on a RAM disk, see LockFolder
	Journal    *Journal
	Host       onsite.Host // Node, Status and Facts are the agent's business
	Program    string      // and its version
	Log        func(message string)
	Changed    func(order.Status)  // told when the node's state changes; nil, or must not block
	Hinted     func(urls []string) // told of a newer hint; nil, or must not block
}

// An Agent is a participant that can be locked, and executes queries.
type Agent struct {
	o       AgentOptions
	loop    *Loop
	node    *order.Node // of the loop's goroutine
	host    onsite.Host
	facts   atomic.Pointer[map[string]any]
	status  atomic.Pointer[order.Status]
	broker  atomic.Pointer[string] // the address that this machine dials, "" if it dials none
	hint    atomic.Pointer[order.Hint]
	running chan struct{}
	started time.Time
}

// NewAgent makes an agent. Run has to follow.
func NewAgent(o AgentOptions) (*Agent, error) {
	if o.Journal == nil {
		return nil, muster.Errorf(muster.Internal, "an agent needs a journal")
	}
	a := &Agent{o: o, host: o.Host, running: make(chan struct{}, maxRunning), started: time.Now()}
	if a.o.Facts == nil {
		a.o.Facts = onsite.GatherFacts
	}
	a.host.Node, a.host.Status, a.host.Facts = o.Name, a.describe, a.gather
	a.host.Hint = a.takeHint
	a.gather()
	cfg := order.Config{ID: o.ID, Name: o.Name, Cluster: o.Cluster, Operators: o.Operators, TCPPort: o.Port, Selects: a.selects}
	_, _ = rand.Read(cfg.Seed[:]) // never fails
	cfg.Booted = bootedAt(time.Now())
	lock, err := a.restore(cfg)
	if err != nil {
		return nil, err
	}
	a.broker.Store(new(string))
	a.hint.Store(&order.Hint{})
	a.readHints()
	status := a.node.Status(time.Now())
	a.status.Store(&status)
	a.loop, err = New(Options{Node: a.node, Carriers: o.Carriers, Lock: lock, Execute: a.execute, Event: a.event, Log: o.Log})
	return a, err
}

// restore makes the node with the lock that an earlier process may have left,
// and returns the lock's file. With one that cannot be read the agent is there
// all the same, and relays; but it takes no Call for as long as a lease can last
// that was noted there.
func (a *Agent) restore(cfg order.Config) (string, error) {
	if a.o.LockFolder == "" {
		return "", muster.Errorf(muster.Internal, "an agent needs a folder for its lock")
	}
	if err := privateFolder(a.o.LockFolder); err != nil {
		return "", err
	}
	path := filepath.Join(a.o.LockFolder, order.NodeID(cfg.ID[:8]).String()+".lock")
	saved, err := ReadLock(path)
	if err == nil {
		a.node, err = order.New(cfg, time.Now(), saved)
	}
	if kind := muster.KindOf(err); kind == muster.Corrupt || kind == muster.Unavailable {
		cfg.HeldUntil = mayHoldUntil(path, time.Now())
		a.log("the lock of an earlier start cannot be read; another Order is taken from " + cfg.HeldUntil.Format(time.DateTime) + " on: " + err.Error())
		a.node, err = order.New(cfg, time.Now(), nil)
	}
	return path, err
}

// mayHoldUntil returns when the longest lease ends that can stand in a lock's
// file. A time of the file that is ahead of the clock says nothing.
func mayHoldUntil(path string, now time.Time) time.Time {
	written := now
	if info, err := os.Stat(path); err == nil && info.ModTime().Before(now) {
		written = info.ModTime()
	}
	return written.Add(order.MaxLease)
}

// Run works until the context ends, or a carrier fails.
func (a *Agent) Run(ctx context.Context) error { return a.loop.Run(ctx) }

// Status returns what the node is doing.
func (a *Agent) Status() order.Status {
	s := *a.status.Load()
	if s.State != order.Idle && !time.Now().Before(s.Until) {
		return order.Status{}
	}
	return s
}

// Peers returns what is known of the others.
func (a *Agent) Peers(ctx context.Context) ([]order.Peer, error) {
	var peers []order.Peer
	err := a.loop.Do(ctx, func(time.Time) { peers = a.node.Peers() })
	return peers, err
}

// SetBroker says which broker this machine dials, for those who ask.
func (a *Agent) SetBroker(url string) { a.broker.Store(&url) }

// gather looks at the machine again.
func (a *Agent) gather() map[string]any {
	facts := a.o.Facts()
	a.facts.Store(&facts)
	return facts
}

// selects matches a selector against what is in memory.
func (a *Agent) selects(selector string) bool {
	f, err := filter.Parse(selector)
	if err != nil {
		return false
	}
	return f.Match(filter.Subject{Name: muster.NodeName(a.o.Name), Labels: a.o.Labels, Facts: *a.facts.Load()})
}

func (a *Agent) describe() onsite.Status {
	s := a.Status()
	d := onsite.Status{Program: a.o.Program, State: s.State.String(), Until: s.Until, Uptime: time.Since(a.started)}
	if s.State != order.Idle {
		d.Order = s.Order.String()
	}
	if url := *a.broker.Load(); url != "" {
		d.Broker = []string{url}
	} else {
		d.Broker = a.Hint()
	}
	if dropped := a.loop.Dropped(); dropped > 0 {
		d.Problems = append(d.Problems, "frames were dropped for lack of room")
	}
	return d
}

// execute runs a query, between two lines of the journal.
func (a *Agent) execute(ctx context.Context, q order.Query) (order.Code, []byte) {
	select {
	case a.running <- struct{}{}:
		defer func() { <-a.running }()
	default:
		return order.Failed, a.answer("too many queries run already")
	}
	if err := a.o.Journal.Runs(q); err != nil {
		a.log(err.Error())
		return order.Failed, a.answer("it was not run, since it cannot be logged: " + err.Error())
	}
	begun := time.Now()
	ctx, cancel := context.WithDeadline(ctx, q.Deadline.Add(-answerMargin))
	defer cancel()
	code, data := a.host.Execute(ctx, q.Method, q.Args)
	if err := a.o.Journal.Ran(q, code, time.Since(begun)); err != nil {
		a.log(err.Error())
	}
	a.log("query " + q.Method + " of order " + q.Order.String() + ": " + code.String())
	return code, data
}

func (a *Agent) answer(message string) []byte {
	return onsite.Answer{Node: a.o.Name, Message: message}.Encode()
}

// event keeps the state for others to read, and tells people.
func (a *Agent) event(e order.Event) {
	if text := a.explain(e); text != "" {
		a.log(text)
	}
	switch e.Kind {
	case order.Called, order.Locked, order.Extended, order.Freed:
		s := a.node.Status(time.Now())
		a.status.Store(&s)
		if a.o.Changed != nil {
			a.o.Changed(s)
		}
	case order.Hinted:
		a.hinted(e.Data)
	}
}

func (a *Agent) explain(e order.Event) string {
	switch e.Kind {
	case order.NeighbourUp:
		return "neighbour " + a.nameOf(e.Node) + " is there"
	case order.NeighbourDown:
		return "neighbour " + a.nameOf(e.Node) + " does not answer any more"
	case order.Called:
		return "call " + e.Order.String() + " by operator " + e.Operator.String()
	case order.Locked:
		return "order " + e.Order.String() + " by operator " + e.Operator.String() + " holds until " + e.Until.Format(time.TimeOnly)
	case order.Extended:
		return "order " + e.Order.String() + " holds until " + e.Until.Format(time.TimeOnly)
	case order.Freed:
		return "order " + e.Order.String() + " is over"
	case order.Conflicted:
		return "call " + e.Order.String() + " is in conflict with " + e.Rival.String()
	}
	return ""
}

// nameOf returns the name and id of a peer. It is called by the loop's goroutine.
func (a *Agent) nameOf(id order.NodeID) string {
	p, _ := a.node.Peer(id)
	if p.Name == "" {
		return id.String()
	}
	return p.Name + " (" + id.String() + ", " + string(p.Address) + ")"
}

func (a *Agent) log(message string) {
	if a.o.Log != nil {
		a.o.Log(message)
	}
}

// Name returns the agent's name.
func (a *Agent) Name() string { return a.o.Name }
