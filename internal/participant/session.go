package participant

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/order"
)

// Limits of what is said over a session's socket.
const (
	maxRequest  = 64 << 10 // bytes of a request: arguments in base64, and a selector
	maxReply    = 2 << 20  // bytes of one line of the answer: all members with their names
	sessionWait = 2 * time.Second
	maxGuests   = 16 // that are served at a time
)

// A request is one line of JSON, and the only one of its connection.
type request struct {
	Do       string `json:"do"` // holding, query, renew or release
	Selector string `json:"selector,omitempty"`
	Method   string `json:"method,omitempty"`
	Args     []byte `json:"args,omitempty"`
	WithinMS int64  `json:"within_ms,omitempty"`
}

// A reply is a line of JSON. Answers come as they do; a last reply with neither
// ends them.
type reply struct {
	Answer  *wireAnswer   `json:"answer,omitempty"`
	Error   *muster.Error `json:"error,omitempty"`
	Holding *wireHolding  `json:"holding,omitempty"`
	Silent  []wireWho     `json:"silent,omitempty"`
}

type wireWho struct {
	ID   string     `json:"id"`
	Name string     `json:"name,omitempty"`
	Code order.Code `json:"code"`

	Until time.Time `json:"until,omitzero"`
}

type wireAnswer struct {
	wireWho
	Data []byte `json:"data,omitempty"`
}

type wireHolding struct {
	Order   string    `json:"order"`
	LeaseMS int64     `json:"lease_ms"`
	Until   time.Time `json:"until"`
	Members []wireWho `json:"members"`
	Absent  []wireWho `json:"absent,omitempty"`
}

func toWire(all []Who) []wireWho {
	wire := make([]wireWho, 0, len(all))
	for _, w := range all {
		wire = append(wire, wireWho{w.ID.String(), w.Name, w.Code, w.Until})
	}
	return wire
}

var errReply = muster.Errorf(muster.Corrupt, "the open session answered with something else than was asked for")

func (w wireWho) who() (Who, error) {
	var id order.NodeID
	if len(w.ID) != hex.EncodedLen(len(id)) {
		return Who{}, errReply
	}
	if _, err := hex.Decode(id[:], []byte(w.ID)); err != nil {
		return Who{}, errReply
	}
	return Who{id, w.Name, w.Code, w.Until}, nil
}

func fromWire(wire []wireWho) ([]Who, error) {
	var all []Who
	for _, w := range wire {
		who, err := w.who()
		if err != nil {
			return nil, err
		}
		all = append(all, who)
	}
	return all, nil
}

func (h *wireHolding) holding() (Holding, error) {
	var id order.OrderID
	if h == nil || len(h.Order) != hex.EncodedLen(len(id)) {
		return Holding{}, errReply
	}
	_, err := hex.Decode(id[:], []byte(h.Order))
	if err != nil {
		return Holding{}, errReply
	}
	members, bad := fromWire(h.Members)
	absent, worse := fromWire(h.Absent)
	return Holding{id, time.Duration(h.LeaseMS) * time.Millisecond, h.Until, members, absent}, errors.Join(bad, worse)
}

// SessionFolder returns where sessions have their sockets: a folder of the user
// alone. getenv looks variables up as os.Getenv does; state is the user's folder
// of state, for where there is no XDG_RUNTIME_DIR.
func SessionFolder(getenv func(string) string, state string) string {
	if folder := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(folder) {
		return filepath.Join(folder, "muster")
	}
	return state
}

// A Session lets other processes of this user use an Order that is held here.
type Session struct {
	held     Held
	listener net.Listener
	released chan struct{} // closed when one of them releases it
	once     sync.Once
}

// ListenSession opens the socket of a session. That of one that has died is
// replaced; one that lives is an error of kind Conflict. Serve has to follow.
func ListenSession(path string, held Held) (*Session, error) {
	if err := privateFolder(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if c, err := net.DialTimeout("unix", path, sessionWait); err == nil {
		_ = c.Close() // nothing was said
		return nil, muster.Errorf(muster.Conflict, "a session of this operator is open on this machine already").
			WithHint("'muster order run', 'query' and 'release' use it; 'muster order status' shows it")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, muster.Errorf(muster.Unavailable, "replace the socket of a session that ended: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, muster.Errorf(muster.Unavailable, "open the session's socket: %w", err)
	}
	return &Session{held: held, listener: l, released: make(chan struct{})}, nil
}

// Released is closed when another process releases the Order. Serve, when its
// context ends then, waits until that is done.
func (s *Session) Released() <-chan struct{} { return s.released }

// Serve answers other processes until the context ends, and takes the socket away.
func (s *Session) Serve(ctx context.Context) {
	var guests sync.WaitGroup
	defer guests.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = s.listener.Close() }) // removes the socket's file
	defer stop()
	room := make(chan struct{}, maxGuests)
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		room <- struct{}{}
		guests.Go(func() {
			defer func() { <-room }()
			s.serve(ctx, c)
		})
	}
}

// Close gives up a session that will not be served.
func (s *Session) Close() { _ = s.listener.Close() }

func (s *Session) serve(ctx context.Context, c net.Conn) {
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(sessionWait)) // a closed connection fails at the read
	line, err := readLine(bufio.NewReader(c), maxRequest)
	if err != nil {
		return // ListenSession looks who is there, and says nothing
	}
	send := func(r reply) {
		if b, err := json.Marshal(r); err == nil {
			_ = c.SetWriteDeadline(time.Now().Add(sessionWait))
			_, _ = c.Write(append(b, '\n')) // whoever hangs up does not read on
		}
	}
	last, err := s.answer(ctx, line, send)
	if err != nil {
		last = reply{Error: muster.AsError(muster.Internal, err)}
	}
	send(last)
}

// answer carries out a request.
func (s *Session) answer(ctx context.Context, line []byte, send func(reply)) (last reply, err error) {
	r, err := parseRequest(line)
	if err != nil {
		return reply{}, err
	}
	var silent []Who
	var h Holding
	switch r.Do {
	case "holding":
		h, err = s.held.Holding(ctx)
	case "query":
		q := Query{Selector: r.Selector, Method: r.Method, Args: r.Args, Within: time.Duration(r.WithinMS) * time.Millisecond}
		silent, err = s.held.Query(ctx, q, func(a Answer) {
			send(reply{Answer: &wireAnswer{wireWho{ID: a.ID.String(), Name: a.Name, Code: a.Code}, a.Data}})
		})
		return reply{Silent: toWire(silent)}, err
	case "renew":
		h, silent, err = s.held.Renew(ctx)
	case "release":
		s.once.Do(func() { close(s.released) })
		silent, err = s.held.Release(context.WithoutCancel(ctx))
		return reply{Silent: toWire(silent)}, err
	}
	return reply{Silent: toWire(silent), Holding: &wireHolding{h.Order.String(), h.Lease.Milliseconds(), h.Until, toWire(h.Members), toWire(h.Absent)}}, err
}

func parseRequest(line []byte) (request, error) {
	var r request
	if err := json.Unmarshal(line, &r); err != nil {
		return request{}, muster.Errorf(muster.Invalid, "the request is not JSON: %w", err)
	}
	switch {
	case r.Do != "holding" && r.Do != "query" && r.Do != "renew" && r.Do != "release":
		return request{}, muster.Errorf(muster.Invalid, "the session cannot %.40q", r.Do).WithHint("is it of another version of muster?")
	case r.WithinMS < 0 || r.WithinMS > maxWithin.Milliseconds():
		return request{}, muster.Errorf(muster.Invalid, "a query has at most %s", maxWithin)
	}
	return r, nil
}

// maxWithin is the longest time for a query's answers.
const maxWithin = 15 * time.Minute

var errLine = muster.Errorf(muster.Full, "a line of the session's socket is too long")

// readLine reads to the end of a line of at most so many bytes.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > limit:
			return nil, errLine
		case err == nil:
			return line, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

// A Guest uses an Order that another process of this machine holds.
type Guest struct{ path string }

var _ Held = (*Guest)(nil)

// JoinSession returns the session with a socket, nil when there is none.
func JoinSession(path string) *Guest {
	c, err := net.DialTimeout("unix", path, sessionWait)
	if err != nil {
		return nil
	}
	_ = c.Close() // nothing was said
	return &Guest{path}
}

// ask sends a request, calls each with every answer, and returns the last reply.
func (g *Guest) ask(ctx context.Context, r request, each func(Answer)) (reply, error) {
	c, err := (&net.Dialer{Timeout: sessionWait}).DialContext(ctx, "unix", g.path)
	if err != nil {
		return reply{}, muster.Errorf(muster.Unavailable, "the session has ended: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	b, err := json.Marshal(r)
	if err != nil {
		return reply{}, muster.Errorf(muster.Internal, "encode a request: %w", err)
	}
	if len(b) > maxRequest {
		return reply{}, muster.Errorf(muster.Full, "the request has %d bytes; a session takes %d", len(b), maxRequest)
	}
	if _, err := c.Write(append(b, '\n')); err != nil {
		return reply{}, g.broken(ctx, err)
	}
	lines := bufio.NewReader(c)
	for {
		line, err := readLine(lines, maxReply)
		if err != nil {
			return reply{}, g.broken(ctx, err)
		}
		r, a, err := parseReply(line)
		if err != nil {
			return reply{}, err
		}
		if a == nil {
			return r, nil
		}
		if each != nil {
			each(*a)
		}
	}
}

// parseReply reads a reply, which is an answer or the last one.
func parseReply(line []byte) (reply, *Answer, error) {
	var r reply
	if json.Unmarshal(line, &r) != nil {
		return reply{}, nil, errReply
	}
	switch {
	case r.Error != nil:
		return reply{}, nil, r.Error
	case r.Answer != nil:
		who, err := r.Answer.who()
		return r, &Answer{who, r.Answer.Data}, err
	}
	return r, nil, nil
}

func (g *Guest) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, io.EOF) {
		return muster.Errorf(muster.Interrupted, "the session ended before it answered")
	}
	return muster.Errorf(muster.Unavailable, "the session broke off: %w", err)
}

// Holding returns the session's Order.
func (g *Guest) Holding(ctx context.Context) (Holding, error) {
	r, err := g.ask(ctx, request{Do: "holding"}, nil)
	if err != nil {
		return Holding{}, err
	}
	return r.Holding.holding()
}

// Query runs a method on members of the session's Order.
func (g *Guest) Query(ctx context.Context, q Query, each func(Answer)) ([]Who, error) {
	r, err := g.ask(ctx, request{Do: "query", Selector: q.Selector, Method: q.Method, Args: q.Args, WithinMS: q.Within.Milliseconds()}, each)
	if err != nil {
		return nil, err
	}
	return fromWire(r.Silent)
}

// Renew extends the lease of the session's Order.
func (g *Guest) Renew(ctx context.Context) (Holding, []Who, error) {
	r, err := g.ask(ctx, request{Do: "renew"}, nil)
	if err != nil {
		return Holding{}, nil, err
	}
	h, err := r.Holding.holding()
	silent, bad := fromWire(r.Silent)
	return h, silent, errors.Join(err, bad)
}

// Release ends the session's Order, and with it the session.
func (g *Guest) Release(ctx context.Context) ([]Who, error) {
	r, err := g.ask(ctx, request{Do: "release"}, nil)
	if err != nil {
		return nil, err
	}
	return fromWire(r.Silent)
}
