package participant

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musterfleet/muster/internal/constellation"
	"github.com/musterfleet/muster/internal/methods/onsite"
	"github.com/musterfleet/muster/internal/order"
)

// A network is a segment in memory: everybody hears a multicast. A participant
// that is cut off hears and says nothing.
type network struct {
	mu   sync.Mutex
	up   map[order.Address]*wire
	cut  map[order.Address]bool
	tape []taped // all that was sent to one address, to be played again
	hub  bool    // a broker: agents and callers hear one another, and no multicast is heard
}

type taped struct {
	from, to order.Address
	frame    []byte
}

// A wire is the carrier of one participant.
type wire struct {
	net  *network
	addr order.Address
	in   chan taped
}

func newNetwork() *network {
	return &network{up: map[order.Address]*wire{}, cut: map[order.Address]bool{}}
}

// wire connects an address. It hears from now on, as a socket does before
// anybody reads from it.
func (n *network) wire(addr order.Address) *wire {
	n.mu.Lock()
	defer n.mu.Unlock()
	w := &wire{n, addr, make(chan taped, 10000)}
	n.up[addr] = w
	return w
}

func (w *wire) Scheme() string {
	if w.net.hub {
		return order.Hub
	}
	return ""
}

func (w *wire) Send(to order.Address, frame []byte) {
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	t := taped{w.addr, to, append([]byte(nil), frame...)}
	w.net.tape = append(w.net.tape, t)
	w.net.deliver(t)
}

// deliver hands a frame over. The mutex is held.
func (n *network) deliver(t taped) {
	if to := n.up[t.to]; to != nil && !n.cut[t.to] && !n.cut[t.from] {
		to.in <- t
	}
}

func (w *wire) Multicast(frame []byte) {
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	for addr := range w.net.up {
		if addr != w.addr && !w.net.hub {
			w.net.deliver(taped{w.addr, addr, append([]byte(nil), frame...)})
		}
	}
}

func (w *wire) Run(ctx context.Context, r Receiver) error {
	w.link(r)
	for {
		select {
		case <-ctx.Done():
			w.net.mu.Lock()
			delete(w.net.up, w.addr)
			w.net.mu.Unlock()
			return nil
		case t := <-w.in:
			r.Receive(t.from, t.frame)
		}
	}
}

// link makes all agents on a hub known to who calls.
func (w *wire) link(r Receiver) {
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	for addr := range w.net.up {
		if w.net.hub && strings.HasPrefix(string(w.addr), "op") && addr != w.addr {
			r.Link(addr)
		}
	}
}

func (n *network) cutOff(addr order.Address, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[addr] = cut
}

// replay sends everything again that was sent to an address.
func (n *network) replay(to order.Address) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for _, t := range n.tape {
		if t.to == to {
			n.deliver(t)
			count++
		}
	}
	return count
}

// A lab is a constellation with its agents.
type lab struct {
	t        *testing.T
	c        constellation.Constellation
	operator constellation.Operator
	dir      string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	c, o, err := constellation.Generate("lab", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &lab{t, c, o, t.TempDir()}
}

// A member is an agent that can be stopped and started.
type member struct {
	*Agent
	name    string
	journal *Journal
	stop    func()
}

// hint is an operator's, of where the broker is.
func (l *lab) hint() []byte {
	l.t.Helper()
	h := order.Hint{IssuedAt: 1, URLs: []string{"tls://broker.test:4222"}}
	data, err := order.SignHint(h, l.c.Key, l.operator.PrivateKey())
	if err != nil {
		l.t.Fatal(err)
	}
	return data
}

func (l *lab) start(name string, c Carrier, port int, more ...Carrier) *member {
	l.t.Helper()
	folder := filepath.Join(l.dir, name)
	j, err := OpenJournal(folder)
	if err != nil {
		l.t.Fatal(err)
	}
	var id [16]byte
	copy(id[:], name+"                ")
	a, err := NewAgent(AgentOptions{Cluster: l.c.Key, Operators: l.c.Operators, ID: id, Name: name, Labels: map[string]string{"name": name},
		Carriers: append(more, c), Port: uint16(port), LockFolder: filepath.Join(folder, "lock"), Journal: j,
		Facts: func() map[string]any { return map[string]any{"x": int64(1)} }, Host: onsite.Host{}, Program: "test",
		Hints: [][]byte{l.hint()}, HintFile: filepath.Join(folder, HintFile)})
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(l.t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := a.Run(ctx); err != nil {
			l.t.Error(err)
		}
	})
	m := &member{Agent: a, name: name, journal: j}
	m.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		if err := j.Close(); err != nil {
			l.t.Error(err)
		}
	})
	l.t.Cleanup(m.stop)
	return m
}

// A caller is an operator's program that can die.
type caller struct {
	*Operator
	die func()
}

func (l *lab) call(name string, c Carrier, port int, key ed25519.PrivateKey, more ...Carrier) *caller {
	l.t.Helper()
	cfg := order.Config{Name: name, Cluster: l.c.Key, Operators: l.c.Operators, TCPPort: uint16(port)}
	_, _ = rand.Read(cfg.ID[:])
	_, _ = rand.Read(cfg.Seed[:])
	o, err := NewOperator(OperatorOptions{Config: cfg, Key: key, Carriers: append(more, c)})
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(l.t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := o.Run(ctx); err != nil {
			l.t.Error(err)
		}
	})
	die := sync.OnceFunc(func() { cancel(); running.Wait() })
	l.t.Cleanup(die)
	return &caller{o, die}
}

// patience is how long a test in real time waits for what takes milliseconds.
const patience = time.Minute

// until waits for something that becomes true.
func (l *lab) until(what string, is func() bool) {
	l.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if is() {
			return
		}
	}
	l.t.Fatalf("after %s there is no %s", patience, what)
}
