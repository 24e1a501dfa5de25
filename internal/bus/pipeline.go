package bus

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/musterfleet/muster"
)

// Outgoing is a message for a stream.
type Outgoing struct {
	Subject string
	ID      string // for the broker's deduplication; empty for none
	Data    []byte
	TTL     time.Duration // the broker removes it after this; 0 for never
	Header  map[string]string
}

// A Pipeline stores messages in the order in which they are given to it,
// without waiting for one receipt before the next message. What it stores is
// always a prefix of what it was given, but for messages that the broker
// refused by itself; on the first sign of trouble it closes the connection,
// and its owner continues on a new one with the first that was not stored.
type Pipeline struct {
	c      *Conn
	inbox  string
	sub    *nats.Subscription
	window chan struct{} // a token for each message under way
	tick   *time.Ticker
	ended  chan struct{}
	forget func() // what the broker does not permit

	calls sync.Mutex // held while done is called, so that calls keep their order

	mu      sync.Mutex // guards the fields below
	next    uint64
	pending map[uint64]flight
	unheard int       // of the pending, those on whose subject no stream listens
	heard   time.Time // of the last receipt, or of the first message after silence
	closed  bool
}

// A flight is a message under way.
type flight struct {
	subject string
	done    func(error)
}

// pipelineWindow is how many messages are under way at once.
const pipelineWindow = 512

// A broker that is silent for receiptTimeout, and receiptEach for each message under
// way, gives no receipts any more. It gives those of messages that came together when
// the last of them is synced, one after the other: on a slow disk that takes long,
// though nothing is wrong.
const (
	receiptTimeout = 15 * time.Second
	receiptEach    = 250 * time.Millisecond
)

// Pipeline opens one on the connection, with which it ends.
func (c *Conn) Pipeline() (*Pipeline, error) {
	size := pipelineWindow
	if c.settings.Replicas > 1 {
		size = 1
	}
	p := &Pipeline{
		c: c, inbox: c.nc.NewRespInbox() + ".",
		window: make(chan struct{}, size), pending: make(map[uint64]flight),
		tick: time.NewTicker(receiptTimeout / 3), ended: make(chan struct{}),
	}
	var err error
	p.sub, err = c.nc.Subscribe(p.inbox+"*", p.receipt)
	if err != nil {
		p.tick.Stop()
		return nil, natsError(err, "open pipeline")
	}
	p.forget = c.onDenied(p.deny)
	go p.watch()
	return p, nil
}

// Publish gives a message to the pipeline; done is called once, with nil when
// the broker has stored it. Publish blocks while the window is full. After the
// connection has ended, done is called at once with an error of kind
// Unavailable. done must not block.
func (p *Pipeline) Publish(m Outgoing, done func(error)) {
	select {
	case p.window <- struct{}{}:
	case <-p.c.done:
		<-p.ended // those before it are told first
		done(errGone)
		return
	}
	p.mu.Lock()
	if p.closed || p.unheard > 0 {
		p.mu.Unlock()
		<-p.ended
		done(errGone)
		return
	}
	if len(p.pending) == 0 {
		p.heard = time.Now()
	}
	n := p.next
	p.next++
	p.pending[n] = flight{m.Subject, done}
	// Under the lock: the order of sequence numbers is the order on the wire.
	err := p.c.nc.PublishMsg(p.message(m, n))
	refused := errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, nats.ErrBadSubject)
	if refused {
		delete(p.pending, n)
	}
	p.mu.Unlock()
	switch {
	case refused: // this message, by itself: a new connection would not help it
		<-p.window
		done(muster.Errorf(muster.Invalid, "the message for %s cannot be sent: %w", m.Subject, err))
	case err != nil:
		p.c.nc.Close() // the rest would overtake this one
	}
}

var errGone = muster.Errorf(muster.Unavailable, "the connection to the broker was lost before the message was stored")

func (p *Pipeline) message(m Outgoing, n uint64) *nats.Msg {
	msg := &nats.Msg{Subject: m.Subject, Reply: p.inbox + strconv.FormatUint(n, 36), Data: m.Data}
	if m.ID != "" || m.TTL > 0 || len(m.Header) > 0 {
		msg.Header = make(nats.Header, len(m.Header)+2)
	}
	if m.ID != "" {
		msg.Header.Set("Nats-Msg-Id", m.ID)
	}
	if m.TTL > 0 {
		msg.Header.Set("Nats-TTL", ttl(m.TTL).String())
	}
	for k, v := range m.Header {
		msg.Header.Set(k, v)
	}
	return msg
}

// ttl rounds up to whole seconds, which the broker wants: the node is exact.
func ttl(d time.Duration) time.Duration { return (d + time.Second - 1).Truncate(time.Second) }

// receipt takes the broker's answer to one message.
func (p *Pipeline) receipt(m *nats.Msg) {
	n, err := strconv.ParseUint(strings.TrimPrefix(m.Subject, p.inbox), 36, 64)
	if err != nil {
		return
	}
	p.calls.Lock()
	defer p.calls.Unlock()
	f := p.heardOf(n, m.Header.Get("Status") == "503")
	if f == nil {
		return
	}
	<-p.window
	err = receiptError(m.Data)
	if muster.KindOf(err) == muster.Unavailable {
		p.c.nc.Close() // it will be tried again, and must not come after its successors
	}
	f(err)
}

// heardOf notes an answer and returns what to call with it. When no stream
// listens nothing was stored, but what follows might be: nothing more is sent,
// and the connection ends as soon as all that is under way is answered. (At
// once, it would be unknown of what was stored before, which would be stored
// again where commands have moved to.)
func (p *Pipeline) heardOf(n uint64, nobody bool) func(error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.pending[n].done
	p.heard = time.Now()
	if nobody {
		p.unheard++
		f = nil
	} else {
		delete(p.pending, n)
	}
	if p.unheard > 0 && p.unheard == len(p.pending) {
		p.c.nc.Close()
	}
	return f
}

// deny ends the wait for messages on a subject that is not permitted. Each is
// refused by itself: it does not get in the way of the others.
func (p *Pipeline) deny(subject string) {
	p.calls.Lock()
	defer p.calls.Unlock()
	p.mu.Lock()
	var refused []flight
	for _, n := range slices.Sorted(maps.Keys(p.pending)) {
		if f := p.pending[n]; f.subject == subject {
			refused = append(refused, f)
			delete(p.pending, n)
		}
	}
	p.heard = time.Now()
	if p.unheard > 0 && p.unheard == len(p.pending) {
		p.c.nc.Close()
	}
	p.mu.Unlock()
	for _, f := range refused {
		<-p.window
		f.done(deniedError(subject))
	}
}

// receiptError reads the broker's receipt.
func receiptError(data []byte) error {
	var r struct {
		Stream string `json:"stream"`
		Error  *struct {
			Code        int    `json:"code"`
			ErrCode     int    `json:"err_code"`
			Description string `json:"description"`
		} `json:"error"`
	}
	switch err := json.Unmarshal(data, &r); {
	case err != nil || (r.Error == nil && r.Stream == ""):
		return muster.Errorf(muster.Unavailable, "the broker's receipt cannot be read: %.100q", data)
	case r.Error == nil:
		return nil
	case r.Error.ErrCode == 10054:
		return muster.Errorf(muster.Invalid, "the message is too large: %s", r.Error.Description)
	case r.Error.ErrCode == codeStreamFull || r.Error.Code == 400 && strings.Contains(r.Error.Description, "maximum"):
		return muster.Errorf(muster.Full, "the queue is full: %s", r.Error.Description).
			WithHint("its node is away or slow; wait, cancel what is not needed, or raise the limit")
	case r.Error.ErrCode == 10002, strings.Contains(r.Error.Description, "insufficient"), strings.Contains(r.Error.Description, "no space"):
		return muster.Errorf(muster.Full, "the broker has no room: %s", r.Error.Description).
			WithHint("free disk space on the broker's machine")
	default:
		return muster.Errorf(muster.Unavailable, "the broker did not store the message: %s (%d)", r.Error.Description, r.Error.ErrCode)
	}
}

// watch ends the pipeline with the connection, and the connection when the
// broker is silent while messages are under way.
func (p *Pipeline) watch() {
	defer close(p.ended)
	defer p.forget()
	defer p.tick.Stop()
	for {
		select {
		case <-p.c.done:
			p.fail()
			return
		case <-p.tick.C:
			p.mu.Lock()
			limit := receiptTimeout + time.Duration(len(p.pending))*receiptEach
			silent := len(p.pending) > 0 && time.Since(p.heard) > limit
			p.mu.Unlock()
			if silent {
				p.c.log.Warn("broker gives no receipts; connecting anew", "component", "bus", "after", limit)
				p.c.nc.Close()
			}
		}
	}
}

// fail tells every waiting message, in order, that it was not stored as far as
// is known.
func (p *Pipeline) fail() {
	p.calls.Lock()
	defer p.calls.Unlock()
	p.mu.Lock()
	p.closed = true
	failed := p.pending
	p.pending = nil
	p.mu.Unlock()
	for _, n := range slices.Sorted(maps.Keys(failed)) {
		failed[n].done(errGone)
	}
}

// Wait returns when the pipeline has ended, which is after every done was
// called. The connection must be closed before, or have failed.
func (p *Pipeline) Wait() { <-p.ended }
