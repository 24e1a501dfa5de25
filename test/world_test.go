package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server/ats"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/agent"
	"github.com/musterfleet/muster/internal/broker"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/method"
	"github.com/musterfleet/muster/internal/methods"
)

func TestMain(m *testing.M) {
	ats.Register() // outside of every bubble, or none becomes durably blocked
	var err error
	if programs, err = os.MkdirTemp("", "muster-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	ats.Unregister()
	if err := os.RemoveAll(programs); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// inBubble runs f in virtual time. nats.go pools timers, and one of a bubble must
// be met neither in the next nor outside, where its use is a panic.
func inBubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	emptyPools()
	defer emptyPools()
	synctest.Test(t, f)
}

// emptyPools collects garbage twice, which leaves nothing in a sync.Pool.
func emptyPools() {
	runtime.GC()
	runtime.GC()
}

// A world is a broker, a client and nodes in one bubble, without sockets.
type world struct {
	t      *testing.T
	dir    string
	issuer *aaa.Issuer
	id     []byte
	client *client.Client
	link   *link // of the client

	mu     sync.Mutex // guards the fields below
	broker *broker.Broker
}

const fleet = "testfleet"

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir()}
	var err error
	if w.issuer, err = aaa.GenerateIssuer(); err != nil {
		t.Fatal(err)
	}
	w.id = w.identity("alice", []aaa.Right{{Methods: []string{"*"}, Nodes: []string{"*"}}})
	w.startBroker()
	t.Cleanup(w.stopBroker)
	conn, err := bus.Dial(t.Context(), bus.Options{InProcess: w})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Setup(t.Context(), bus.LayoutOptions{Fleet: fleet, Shards: 2}); err != nil {
		t.Fatal(err)
	}
	w.link = w.newLink()
	w.client = w.connect(w.id)
	return w
}

func (w *world) identity(name string, rights []aaa.Right) []byte {
	w.t.Helper()
	seed, public, err := aaa.NewUserKey()
	if err != nil {
		w.t.Fatal(err)
	}
	token, err := w.issuer.Issue(aaa.CallerClaims{
		PublicKey: public, Name: name, Fleet: fleet, Groups: []string{"admin"}, Rights: rights,
		Expires: time.Now().Add(350 * 24 * time.Hour),
	}, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	id, err := aaa.NewIdentity(token, seed)
	if err != nil {
		w.t.Fatal(err)
	}
	return id.Marshal()
}

func (w *world) connect(id []byte) *client.Client {
	w.t.Helper()
	c, err := client.Connect(w.t.Context(), client.Options{InProcess: w.link, Identity: id, OutboxDir: filepath.Join(w.dir, "outbox")})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	return c
}

func (w *world) startBroker() {
	w.t.Helper()
	b, err := broker.Start(w.t.Context(), broker.Options{StoreDir: filepath.Join(w.dir, "jetstream")})
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broker = b
}

func (w *world) stopBroker() {
	w.mu.Lock()
	b := w.broker
	w.broker = nil
	w.mu.Unlock()
	if b != nil {
		b.Stop()
	}
}

// InProcessConn connects to the broker that runs now.
func (w *world) InProcessConn() (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broker == nil {
		return nil, errors.New("the broker is down")
	}
	return w.broker.InProcessConn()
}

// A link is a wire to the broker that a test can cut.
type link struct {
	w     *world
	over  *wire      // what it goes over; nil for no detour
	mu    sync.Mutex // guards the fields below
	cut   bool
	conns []net.Conn
}

func (w *world) newLink() *link { return &link{w: w} }

func (l *link) InProcessConn() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		return nil, errors.New("the link is cut")
	}
	connect := l.w.InProcessConn
	if l.over != nil {
		connect = l.over.InProcessConn
	}
	c, err := connect()
	if err == nil {
		l.conns = append(l.conns, c)
	}
	return c, err
}

func (l *link) setCut(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	if cut {
		for _, c := range l.conns {
			c.Close()
		}
		l.conns = nil
	}
}

// A probe is a method that records its runs and can be made to wait or fail.
type probe struct {
	name       muster.Method
	idempotent bool
	hold       chan struct{} // a run waits until it is closed; nil for none
	write      func(stdout io.Writer)
	fail       func(attempt int) error

	mu  sync.Mutex // guards ran
	ran []string
}

func (p *probe) Spec() method.Spec {
	open := json.RawMessage(`{"type":"object"}`)
	return method.Spec{Name: p.name, Description: "Records that it ran.", Idempotent: p.idempotent, TimeoutMS: -1, Input: open, Output: json.RawMessage(`true`)}
}

func (p *probe) Invoke(ctx context.Context, in method.Invocation) (method.Outcome, error) {
	var input struct{ What string }
	if err := json.Unmarshal(in.Input, &input); err != nil {
		return method.Outcome{}, err
	}
	p.mu.Lock()
	p.ran = append(p.ran, input.What)
	hold := p.hold
	p.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return method.Outcome{}, ctx.Err()
		}
	}
	if p.write != nil {
		p.write(in.Stdout)
	}
	if p.fail != nil {
		if err := p.fail(in.Attempt); err != nil {
			return method.Outcome{}, err
		}
	}
	return method.Outcome{Output: in.Input}, nil
}

func (p *probe) runs() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.ran)
}

// A node is an agent that a test starts and stops.
type node struct {
	w       *world
	name    muster.NodeName
	link    *link
	policy  atomic.Pointer[aaa.Policy]
	probes  []*probe
	stop    func()
	paused  atomic.Pointer[string]
	repause chan struct{}
}

func (w *world) node(name muster.NodeName, probes ...*probe) *node {
	w.t.Helper()
	return w.nodeOver(nil, name, probes...)
}

// nodeOver is a node whose link goes over a wire.
func (w *world) nodeOver(over *wire, name muster.NodeName, probes ...*probe) *node {
	w.t.Helper()
	all, err := aaa.ParsePolicy("policy", []byte("rules: [{effect: allow, methods: ['*']}]"))
	if err != nil {
		w.t.Fatal(err)
	}
	n := &node{w: w, name: name, link: &link{w: w, over: over}, probes: probes, repause: make(chan struct{}, 1)}
	n.policy.Store(all)
	n.start()
	w.t.Cleanup(func() { n.stop() })
	return n
}

func (n *node) start() {
	n.w.t.Helper()
	list := methods.Builtin(methods.Options{})
	for _, p := range n.probes {
		list = append(list, p)
	}
	registry, err := method.NewRegistry(list...)
	if err != nil {
		n.w.t.Fatal(err)
	}
	verifier, err := aaa.NewVerifier(fleet, n.w.issuer.PublicKey())
	if err != nil {
		n.w.t.Fatal(err)
	}
	a, err := agent.New(agent.Options{
		Node: n.name, Fleet: fleet, Version: "test", Registry: registry, Verifier: verifier,
		StateDir: filepath.Join(n.w.dir, string(n.name)),
		Policy:   func() *aaa.Policy { return n.policy.Load() },
		Paused:   n.whyPaused, Repause: n.repause,
		Dial: func(ctx context.Context) (*bus.Conn, error) {
			return bus.Dial(ctx, bus.Options{InProcess: n.link, Inbox: bus.NodeInbox(n.name)})
		},
	})
	if err != nil {
		n.w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			n.w.t.Errorf("agent %s: %v", n.name, err)
		}
	})
}

// pause keeps the node from beginning runs, or with an empty reason no more.
func (n *node) pause(reason string) {
	n.paused.Store(&reason)
	n.repause <- struct{}{}
}

func (n *node) whyPaused() string {
	if reason := n.paused.Load(); reason != nil {
		return *reason
	}
	return ""
}

// send sends one command of a method to the nodes.
func (w *world) send(m muster.Method, what string, change func(*client.Request), nodes ...muster.NodeName) client.Receipt {
	w.t.Helper()
	input, _ := json.Marshal(map[string]string{"What": what})
	r := client.Request{Method: m, Input: input, Nodes: nodes}
	if change != nil {
		change(&r)
	}
	receipt, err := w.client.Send(w.t.Context(), r)
	if err != nil {
		w.t.Fatalf("send %s: %v", what, err)
	}
	return receipt
}

// status returns the state of one command.
func (w *world) status(r client.Receipt, n muster.NodeName) client.Status {
	w.t.Helper()
	all, err := w.client.Command(w.t.Context(), muster.Key{ID: r.ID, Node: n})
	if err != nil || len(all) != 1 {
		w.t.Fatalf("command %s@%s: %v, %d found", r.ID, n, err, len(all))
	}
	return all[0]
}

func (w *world) expect(r client.Receipt, n muster.NodeName, want muster.State) client.Status {
	w.t.Helper()
	s := w.status(r, n)
	if s.State != want {
		w.t.Errorf("command on %s: got state %s (%s), want %s", n, s.State, s.Reason, want)
	}
	return s
}
