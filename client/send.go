package client

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// A batch is one send, signed and ready: what the outbox keeps.
type batch struct {
	Sent     sent      `json:"sent"`
	Commands []command `json:"commands"`
	Chosen   bool      `json:"chosen,omitempty"` // the caller chose the id, so that another send may have it
}

// A sent record tells the operator's side what was sent to whom. Further ones
// of the same id list what the broker refused, and which nodes were removed.
type sent struct {
	ID       muster.CommandID  `json:"id"`
	Caller   string            `json:"caller"` // nobody verifies this
	Method   muster.Method     `json:"method"`
	Input    json.RawMessage   `json:"input,omitempty"`
	Nodes    []muster.NodeName `json:"nodes,omitempty"`
	Refused  []Refusal         `json:"refused,omitempty"`
	Gone     []muster.NodeName `json:"gone,omitempty"` // removed before they said how the command ended
	GoneAt   time.Time         `json:"gone_at,omitzero"`
	IssuedAt time.Time         `json:"issued_at"`
	Deadline time.Time         `json:"deadline"`
	// How it was to run, so that it can be sent again in the same way. Records
	// of older senders lack these.
	TimeoutMS  int64 `json:"timeout_ms,omitempty"`
	Retries    int   `json:"retries,omitempty"`
	NoSeq      bool  `json:"noseq,omitempty"`
	Idempotent bool  `json:"idempotent,omitempty"`
}

type command struct {
	Node  muster.NodeName `json:"node"`
	Kind  muster.Kind     `json:"kind"`
	Frame []byte          `json:"frame"`
}

// deadlineMargin is how long the broker keeps a command after its deadline, so
// that a node that is there can say itself that it expired.
const deadlineMargin = time.Minute

// NewID returns a new command id. Ids sort by time.
func NewID() muster.CommandID { return muster.CommandID(ulid.Make().String()) }

// Send signs a command for each node and returns when all are on disk: stored
// and synced by the broker or, when that is away and there is an outbox, kept
// there. Single commands may have been refused; the receipt names them.
func (c *Client) Send(ctx context.Context, r Request) (Receipt, error) {
	b, err := c.sign(r)
	if err != nil {
		return Receipt{}, err
	}
	receipt := Receipt{ID: b.Sent.ID, Nodes: b.Sent.Nodes, Deadline: b.Sent.Deadline}
	if c.outbox == nil {
		refused, _, err := c.publish(ctx, b)
		return receipt.less(refused), err
	}
	e, err := c.outbox.add(ctx, b)
	if err != nil {
		return Receipt{}, err
	}
	defer e.release()
	receipt.Deadline = e.deadline
	keeps := "the outbox keeps the send"
	if e.waited {
		keeps = "the outbox keeps the send since before, and nothing was added"
	}
	refused, kept, err := c.flushThrough(ctx, e)
	switch kind := muster.KindOf(err); {
	case err == nil || !kept:
	case kind == muster.Unavailable || kind == muster.Interrupted || ctx.Err() != nil:
		c.log.Debug("broker is away; the outbox keeps the send", "err", err)
		receipt.Outbox, receipt.Repeated = true, e.waited
		return receipt, nil
	case kind == muster.Full:
		err = muster.Errorf(kind, "%w; %s", err, keeps).
			WithHint("free disk space on the broker's machine; the next send, or 'muster outbox flush', sends this one first")
	default:
		err = muster.Errorf(kind, "%w; %s", err, keeps).
			WithHint("some of it may be sent; the next send, or 'muster outbox flush', goes on with it")
	}
	return receipt.less(refused), err
}

// less takes what was refused out of the list of accepted nodes.
func (r Receipt) less(refused []Refusal) Receipt {
	r.Refused = refused
	r.Nodes = slices.DeleteFunc(slices.Clone(r.Nodes), func(n muster.NodeName) bool {
		return slices.ContainsFunc(refused, func(f Refusal) bool { return f.Node == n })
	})
	return r
}

func (c *Client) sign(r Request) (batch, error) {
	if c.signer == nil {
		return batch{}, muster.Errorf(muster.Denied, "there is no identity to sign commands with").
			WithHint("give the context an identity file, or make one with 'muster init'")
	}
	if len(r.Nodes) == 0 {
		return batch{}, muster.Errorf(muster.NothingFound, "no node is chosen")
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	s := sent{
		ID: cmp.Or(r.ID, NewID()), Caller: c.caller, Method: r.Method, Input: r.Input,
		IssuedAt: now, Deadline: r.Deadline.UTC(),
		TimeoutMS: r.Timeout.Milliseconds(), Retries: r.Retries, NoSeq: r.NoSeq, Idempotent: r.Idempotent,
	}
	if r.Timeout < 0 {
		s.TimeoutMS = -1
	}
	if r.Deadline.IsZero() {
		s.Deadline = now.Add(DefaultLifetime)
	}
	if s.Deadline.After(c.until) {
		return batch{}, muster.Errorf(muster.Invalid, "your identity expires on %s, before the deadline %s: nodes would refuse the command",
			c.until.Format(time.DateTime), s.Deadline.Format(time.DateTime)).WithHint("choose an earlier --deadline, or have the identity renewed")
	}
	s.Nodes = slices.Clone(r.Nodes)
	slices.Sort(s.Nodes)
	s.Nodes = slices.Compact(s.Nodes)
	b := batch{Sent: s, Chosen: r.ID != ""}
	for _, n := range s.Nodes {
		frame, err := c.frame(c.envelope(s, n))
		if err != nil {
			return batch{}, err
		}
		b.Commands = append(b.Commands, command{n, muster.KindCommand, frame})
	}
	return b, nil
}

func (c *Client) envelope(s sent, n muster.NodeName) muster.Command {
	e := muster.Command{
		Version: muster.EnvelopeVersion, Fleet: c.signer.Fleet(), ID: s.ID, Node: n, Kind: muster.KindCommand,
		Method: s.Method, Input: s.Input, IssuedAt: s.IssuedAt, Deadline: s.Deadline,
		TimeoutMS: s.TimeoutMS, Retries: s.Retries, NoSeq: s.NoSeq, Idempotent: s.Idempotent,
	}
	if len(e.Input) == 0 {
		e.Input = json.RawMessage("{}")
	}
	return e
}

func (c *Client) frame(e muster.Command) ([]byte, error) {
	if err := e.Validate(); err != nil {
		return nil, err
	}
	f, err := c.signer.Sign(e)
	if err != nil {
		return nil, err
	}
	return f.Encode()
}

// publish stores a batch with the broker, continuing after each loss of the
// connection with the first message that was not stored. Begun says that some
// of it was given to the broker.
func (c *Client) publish(ctx context.Context, b batch) (refused []Refusal, begun bool, err error) {
	results := make([]error, 1+len(b.Commands))
	for i := range results {
		results[i] = errNotSent
	}
	claimed := !b.Chosen
	for attempt := 0; ; attempt++ {
		conn, p, err := c.connection(ctx)
		if err == nil && !claimed {
			err = claim(ctx, conn, b)
			claimed = err == nil
		}
		if err == nil {
			if !time.Now().Before(b.Sent.Deadline) {
				expire(results)
			}
			begun = true
			if err = publishOnce(ctx, conn.Subjects(), p, b, results); err == nil {
				break
			}
		}
		if c.outbox != nil && attempt > 0 || muster.KindOf(err) != muster.Unavailable || !pause(ctx, attempt) {
			return nil, begun, err
		}
	}
	for i, err := range results[1:] {
		if err != nil {
			refused = append(refused, Refusal{b.Commands[i].Node, refusal(err, b.Sent.Method, b.Commands[i].Node)})
		}
	}
	if results[0] != nil {
		return refused, begun, results[0]
	}
	return refused, begun, c.recordRefusals(ctx, b.Sent, refused)
}

// refusal is why the broker did not take a command. What it does not permit it
// names by the subject, which tells a person nothing.
func refusal(err error, m muster.Method, n muster.NodeName) *muster.Error {
	if muster.KindOf(err) != muster.Denied {
		return muster.AsError(muster.Unavailable, err)
	}
	return muster.Errorf(muster.Denied, "your context may not use %s on %s", m, n).
		WithHint("ask for a context that may: 'muster context make NAME --method %s --node %s --out FOLDER' where the fleet was made", m, n)
}

// expire gives up what was not sent before its deadline. The sent record is
// stored all the same: from it everybody sees that the commands expired.
func expire(results []error) {
	for i, err := range results[1:] {
		if muster.KindOf(err) == muster.Unavailable {
			results[1+i] = nil
		}
	}
}

var errNotSent = muster.Errorf(muster.Unavailable, "not sent")

// publishOnce gives everything that is not decided to the pipeline and waits.
// It returns an error of kind Unavailable when the connection was lost.
func publishOnce(ctx context.Context, subjects bus.Subjects, p *bus.Pipeline, b batch, results []error) error {
	type decided struct {
		i   int
		err error
	}
	done := make(chan decided, len(results))
	n := 0
	for i := range results {
		if muster.KindOf(results[i]) != muster.Unavailable {
			continue
		}
		m, err := outgoing(subjects, b, i)
		if err != nil {
			return err
		}
		n++
		p.Publish(m, func(err error) { done <- decided{i, err} })
	}
	var lost error
	for range n {
		select {
		case d := <-done:
			results[d.i] = d.err
			if muster.KindOf(d.err) == muster.Unavailable {
				lost = d.err
			}
		case <-ctx.Done():
			return muster.Errorf(muster.Interrupted, "send: %w", ctx.Err())
		}
	}
	return lost
}

// outgoing is message i of a batch: the sent record first, so that nothing is
// under way that the operator's side does not know of.
func outgoing(subjects bus.Subjects, b batch, i int) (bus.Outgoing, error) {
	if i == 0 {
		data, err := json.Marshal(b.Sent)
		return bus.Outgoing{Subject: subjects.Sent(b.Sent.ID), ID: string(b.Sent.ID) + "/sent/" + issue(b.Sent), Data: data}, err
	}
	cmd := b.Commands[i-1]
	return bus.Outgoing{
		Subject: subjects.Command(cmd.Node, cmd.Kind, b.Sent.Method), Data: cmd.Frame,
		ID:  b.Sent.messageID(cmd.Node),
		TTL: max(time.Until(b.Sent.Deadline)+deadlineMargin, time.Second),
	}, nil
}

// issue tells sends of one id apart, of which the later may add nodes.
func issue(s sent) string { return fmt.Sprintf("%d", s.IssuedAt.UnixMilli()) }

func (c *Client) recordRefusals(ctx context.Context, s sent, refused []Refusal) error {
	if len(refused) == 0 {
		return nil
	}
	s.Nodes, s.Input, s.Refused = nil, nil, refused
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return c.with(ctx, func(conn *bus.Conn) error {
		return conn.Put(ctx, bus.Outgoing{Subject: conn.Subjects().Sent(s.ID), ID: string(s.ID) + "/refused/" + issue(s), Data: data})
	})
}
