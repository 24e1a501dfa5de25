package app

import (
	"context"
	"crypto/rand"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/constellation"
	"github.com/musterfleet/muster/internal/enrol"
	"github.com/musterfleet/muster/internal/order"
	"github.com/musterfleet/muster/internal/participant"
	"github.com/musterfleet/muster/internal/seal"
)

// Orders over the broker. Frames are sealed as on a LAN, nobody stores them, and
// a wave is a star: a caller sends to each node itself, and nodes to callers
// only. A caller is known by a random token in the subjects, for as long as its
// program runs.

// A nodeHub is the carrier of a node. It has its place in the agent from the
// start, and carries frames while there is a session with the broker.
type nodeHub struct {
	box      *seal.Box
	node     muster.NodeName
	log      *slog.Logger
	receiver atomic.Pointer[participant.Receiver]

	mu      sync.Mutex // guards what follows
	conn    *bus.Conn  // nil without a session
	callers map[string]time.Time
}

var _ participant.Carrier = (*nodeHub)(nil)

// Callers that are told of this node's state: those heard of lately.
const (
	maxCallers = 64
	callerLife = 3 * time.Minute // more than the longest pause between HELLOs of a fleet of 1,000
)

func newNodeHub(box *seal.Box, node string, log *slog.Logger) *nodeHub {
	return &nodeHub{box: box, node: muster.NodeName(node), log: log, callers: map[string]time.Time{}}
}

// Scheme returns what the addresses of the carrier begin with; a caller's token follows.
func (h *nodeHub) Scheme() string { return order.Hub }

// Send sends to one caller.
func (h *nodeHub) Send(to order.Address, frame []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.send(string(to), frame)
}

// Multicast sends to the callers that were heard of lately.
func (h *nodeHub) Multicast(frame []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for caller, heard := range h.callers {
		if time.Since(heard) > callerLife {
			delete(h.callers, caller)
			continue
		}
		h.send(caller, frame)
	}
}

// send is called with the mutex held. What cannot be sent is lost.
func (h *nodeHub) send(caller string, frame []byte) {
	if h.conn == nil || !isCaller(caller) {
		return
	}
	sealed, err := h.box.Seal(nil, frame)
	if err == nil {
		err = h.conn.Tell(h.conn.Subjects().Ordered(caller, h.conn.Mailbox(), h.node), sealed)
	}
	if err != nil {
		h.log.Debug("a frame was not sent over the broker", "err", err)
	}
}

// isCaller reports whether a text can be a caller's token, and so stand in a subject.
func isCaller(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") == ""
}

// Run lets frames through until the context ends.
func (h *nodeHub) Run(ctx context.Context, r participant.Receiver) error {
	h.receiver.Store(&r)
	<-ctx.Done()
	h.receiver.Store(nil)
	return nil
}

// during carries frames for one session with the broker, until the context ends.
func (h *nodeHub) during(ctx context.Context, conn *bus.Conn) {
	s := conn.Subjects()
	stop, err := conn.Serve(s.Order(bus.AnyCaller, conn.Mailbox(), h.node), func(r bus.Request) {
		if caller, ok := s.CallerOf(r.Subject); ok {
			h.receive(caller, r.Data)
		}
	})
	if err != nil {
		h.log.Warn("this node takes no part in Orders over the broker in this session", "err", err)
		return
	}
	h.use(conn)
	<-ctx.Done()
	h.use(nil)
	stop()
}

func (h *nodeHub) use(conn *bus.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conn = conn
}

func (h *nodeHub) receive(caller string, envelope []byte) {
	r := h.receiver.Load()
	if r == nil || !isCaller(caller) {
		return
	}
	frame, err := h.box.Open(nil, envelope)
	if err != nil {
		return // of another constellation, or of nobody
	}
	h.heard(caller)
	(*r).Receive(order.Address(caller), frame)
}

func (h *nodeHub) heard(caller string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, known := h.callers[caller]; known || len(h.callers) < maxCallers {
		h.callers[caller] = time.Now()
	}
}

// An OrderHub is the carrier of an operator over the broker of its context. An
// address is a node's mailbox, a dot, and the node's name.
type OrderHub struct {
	box   *seal.Box
	token string
	dial  func(context.Context) (*bus.Conn, error)
	log   *slog.Logger
	first *bus.Conn // until Run takes it

	mu   sync.Mutex // guards conn
	conn *bus.Conn  // nil while the broker is away
}

var _ participant.Carrier = (*OrderHub)(nil)

// Pauses of an OrderHub.
const (
	hubRedial = time.Second
	hubList   = 15 * time.Second // between looks at which nodes the fleet has
	hubBatch  = 100              // nodes that are made known at once
	hubBreath = 5 * time.Millisecond
)

// OpenOrderHub connects with the credentials of a context. Run, or Close, has to
// follow. With patient the broker may be away, which is logged: it is tried
// again while Run runs.
func OpenOrderHub(ctx context.Context, contextName string, c constellation.Constellation, patient bool, log *slog.Logger) (*OrderHub, error) {
	box, err := seal.New(c.Key, c.Secret.Reveal(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cc, err := config.OpenContext(contextName)
	if err != nil {
		return nil, err
	}
	userJWT, seed, err := config.ParseCreds(cc.Credentials)
	if err != nil {
		return nil, err
	}
	if enrol.CallerInbox(userJWT) != "" {
		return nil, muster.Errorf(muster.Denied, "Orders by way of the broker are for administrators; the rights in the context %s are bounded", cc.Name).
			WithHint("use a context that was made without --method and --node, or reach the machines over the LAN")
	}
	o := bus.Options{URLs: cc.URLs, Name: "muster order", JWT: userJWT, Seed: string(seed.Reveal()), CA: cc.CA, Prefix: cc.Prefix, Log: log}
	h := &OrderHub{box: box, token: bus.NewMailbox(), log: log, dial: func(ctx context.Context) (*bus.Conn, error) { return bus.Dial(ctx, o) }}
	if h.first, err = h.dial(ctx); err != nil && !patient {
		return nil, err
	}
	return h, nil
}

// Online reports whether the broker has answered at the opening.
func (h *OrderHub) Online() bool { return h.first != nil }

// Close gives up a carrier that will not run.
func (h *OrderHub) Close() {
	if h.first != nil {
		h.first.Close()
	}
}

// Scheme returns what the addresses of the carrier begin with.
func (h *OrderHub) Scheme() string { return order.Hub }

// Send sends to one node.
func (h *OrderHub) Send(to order.Address, frame []byte) {
	mailbox, node, ok := strings.Cut(string(to), ".")
	h.mu.Lock()
	defer h.mu.Unlock()
	if !ok || h.conn == nil {
		return
	}
	sealed, err := h.box.Seal(nil, frame)
	if err == nil {
		err = h.conn.Tell(h.conn.Subjects().Order(h.token, mailbox, muster.NodeName(node)), sealed)
	}
	if err != nil {
		h.log.Debug("a frame was not sent over the broker", "err", err)
	}
}

// Multicast does nothing: each node is a link, which gets HELLOs of its own.
func (h *OrderHub) Multicast([]byte) {}

// Run brings frames until the context ends, and connects again when the broker
// was away.
func (h *OrderHub) Run(ctx context.Context, r participant.Receiver) error {
	for conn := h.first; ctx.Err() == nil; conn = nil {
		if err := h.connected(ctx, conn, r); ctx.Err() == nil {
			h.log.Debug("no session with the broker", "err", err)
			pause(ctx, hubRedial)
		}
	}
	return nil
}

// connected dials, unless there is a connection, and uses it until it ends.
func (h *OrderHub) connected(ctx context.Context, conn *bus.Conn, r participant.Receiver) error {
	if conn == nil {
		var err error
		if conn, err = h.dial(ctx); err != nil {
			return err
		}
	}
	defer conn.Close()
	return h.session(ctx, conn, r)
}

// session carries frames over one connection until it ends.
func (h *OrderHub) session(ctx context.Context, conn *bus.Conn, r participant.Receiver) error {
	stopWatch := context.AfterFunc(ctx, conn.Close)
	defer stopWatch()
	s := conn.Subjects()
	stop, err := conn.Serve(s.OrderedFrom(h.token), func(m bus.Request) {
		mailbox, node, ok := s.MemberOf(m.Subject)
		frame, err := h.box.Open(nil, m.Data)
		if ok && err == nil {
			r.Receive(order.Address(mailbox+"."+string(node)), frame)
		}
	})
	if err != nil {
		return err
	}
	defer stop()
	h.use(conn)
	defer h.use(nil)
	for {
		if err := h.link(ctx, conn, r); err != nil {
			return err
		}
		select {
		case <-conn.Done():
			return muster.Errorf(muster.Unavailable, "the connection to the broker was lost")
		case <-time.After(hubList):
		}
	}
}

func (h *OrderHub) use(conn *bus.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conn = conn
}

// link makes the nodes of the fleet neighbours. Those that take no part do not
// answer.
func (h *OrderHub) link(ctx context.Context, conn *bus.Conn, r participant.Receiver) error {
	s, n := conn.Subjects(), 0
	q := bus.Query{Stream: bus.StreamNodes, Filters: []string{s.Node(bus.AnyMailbox, ">")}, Last: true}
	return conn.Read(ctx, q, func(m bus.Stored) error {
		mailbox, node, ok := s.BoxOf(m.Subject, "node")
		if !ok {
			return nil
		}
		r.Link(order.Address(mailbox + "." + string(node)))
		if n++; n%hubBatch == 0 && !pause(ctx, hubBreath) {
			return ctx.Err() // the participant has room for some hundreds at a time
		}
		return nil
	})
}
