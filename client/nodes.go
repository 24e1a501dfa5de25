package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/filter"
)

// membership is what operators say of a node, among the fleet's records.
type membership struct {
	Mailbox string            `json:"mailbox,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Invited time.Time         `json:"invited,omitzero"`
}

// keyNode is the key of a node's membership.
func keyNode(n muster.NodeName) string { return "node." + string(n) }

// readMembership reads what operators say of a node, and its version.
func readMembership(ctx context.Context, conn *bus.Conn, node muster.NodeName) (m membership, seq uint64, err error) {
	stored, err := conn.Record(ctx, keyNode(node))
	switch {
	case muster.KindOf(err) == muster.NotFound:
		return m, 0, muster.Errorf(muster.NotFound, "node %s is not in the fleet", node).WithHint("'muster node ls' lists the nodes")
	case err != nil:
		return m, 0, err
	}
	if err := json.Unmarshal(stored.Data, &m); err != nil {
		return m, 0, muster.Errorf(muster.Corrupt, "what is stored of node %s cannot be read: %w", node, err)
	}
	return m, stored.Seq, nil
}

// mailbox returns the token in the subjects of a node. One that has not been
// invited, but was given credentials of another make, has none.
func mailbox(ctx context.Context, conn *bus.Conn, node muster.NodeName) (string, error) {
	m, _, err := readMembership(ctx, conn, node)
	if muster.KindOf(err) == muster.NotFound {
		err = nil
	}
	return cmp.Or(m.Mailbox, bus.OpenMailbox), err
}

// Bounds of the wait for answers to a ping: some round trips of the slowest
// node that is expected to answer.
const (
	pingWait  = 250 * time.Millisecond
	pingTrips = 4
	pingMost  = 5 * time.Second
	// aliveFor is how recent a sign of life must be for an answer to be
	// expected: some heartbeats.
	aliveFor = 45 * time.Second
)

// Nodes lists the fleet, sorted by name, and asks who is there now.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	var all []Node
	err := c.with(ctx, func(conn *bus.Conn) error {
		nodes, err := inventory(ctx, conn)
		if err != nil {
			return err
		}
		if err := ping(ctx, conn, nodes); err != nil {
			return err
		}
		all = all[:0]
		for _, n := range nodes {
			all = append(all, *n)
		}
		slices.SortFunc(all, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
		return nil
	})
	return all, err
}

// inventory joins what nodes and operators have stored.
func inventory(ctx context.Context, conn *bus.Conn) (map[muster.NodeName]*Node, error) {
	nodes := make(map[muster.NodeName]*Node)
	get := func(name muster.NodeName) *Node {
		if nodes[name] == nil {
			nodes[name] = &Node{Name: name}
		}
		return nodes[name]
	}
	s := conn.Subjects()
	err := lastValues(ctx, conn, bus.StreamNodes, s.Node(bus.AnyMailbox, ">"), func(m bus.Stored, h muster.Hello) {
		name, ok := s.NodeOf(m.Subject, "node")
		if !ok || name.Validate() != nil || h.Node != name {
			return // not what an agent writes
		}
		n := get(name)
		n.LastSeen, n.Version, n.Instance, n.Started = m.Time, h.Version, h.Instance, h.Started
		n.Facts, n.Methods, n.Problems = h.Facts, h.Methods, h.Problems
	})
	if err != nil {
		return nil, err
	}
	err = conn.Records(ctx, keyNode(">"), false, func(m bus.Stored) error {
		var rec membership
		name := muster.NodeName(strings.TrimPrefix(m.Subject, keyNode("")))
		if name.Validate() == nil && json.Unmarshal(m.Data, &rec) == nil {
			n := get(name)
			n.Labels, n.Invited = rec.Labels, rec.Invited
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = heartbeats(ctx, conn, nodes)
	return nodes, err
}

// heartbeats adds the last sign of life of each node. They are kept in memory:
// after a start of the broker there are none, and for a moment no stream.
func heartbeats(ctx context.Context, conn *bus.Conn, nodes map[muster.NodeName]*Node) error {
	s := conn.Subjects()
	err := lastValues(ctx, conn, bus.StreamAlive, s.Alive(bus.AnyMailbox, ">"), func(m bus.Stored, b muster.Beat) {
		name, ok := s.NodeOf(m.Subject, "alive")
		if n := nodes[name]; ok && n != nil && b.Node == name {
			n.LastSeen = m.Time
			n.Queue, n.Running, n.Revoked = b.Queue, b.Running, b.Revoked
			n.Online = !b.Leaving && time.Since(m.Time) < aliveFor
			n.RTT = time.Duration(max(min(b.RTT, 60_000), 0) * float64(time.Millisecond))
		}
	})
	if muster.KindOf(err) == muster.NotFound {
		return nil
	}
	return err
}

// ping asks who is there now. It waits for those of whom there was a recent
// sign of life, and not for the others.
func ping(ctx context.Context, conn *bus.Conn, nodes map[muster.NodeName]*Node) error {
	expected, wait := 0, pingWait
	for _, n := range nodes {
		if n.Online {
			expected++
			wait = max(wait, pingWait+pingTrips*n.RTT)
		}
		n.Online, n.RTT = false, 0
	}
	if len(nodes) == 0 {
		return nil
	}
	wait = min(wait, pingMost)
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	asked := time.Now()
	s, question := conn.Subjects(), rand.Text()
	return conn.AskAll(ctx, s.Ping(), []byte(question), s.Alive(bus.AnyMailbox, ">"), func(data []byte) bool {
		var b muster.Beat
		if json.Unmarshal(data, &b) != nil || b.Ping != question {
			return true
		}
		if n := nodes[b.Node]; n != nil && !n.Online {
			now := time.Now()
			n.Online, n.LastSeen, n.Queue, n.Running, n.Instance = true, now, b.Queue, b.Running, b.Instance
			n.Revoked = b.Revoked
			n.RTT = now.Sub(asked)
			n.ClockOff = b.Time.Sub(asked.Add(n.RTT / 2))
			expected--
		}
		return expected != 0
	})
}

// Select returns the nodes that an expression matches, sorted by name. No match
// is an error of kind NothingFound. While the broker is away, an expression
// that only names nodes still selects them, for a send by the outbox.
func (c *Client) Select(ctx context.Context, expr string) ([]Node, error) {
	f, err := filter.Parse(expr)
	if err != nil {
		return nil, err
	}
	all, err := c.Nodes(ctx)
	if names, ok := f.Names(); ok && c.outbox != nil && muster.KindOf(err) == muster.Unavailable {
		err = nil
		for _, n := range names {
			all = append(all, Node{Name: n})
		}
	}
	if err != nil {
		return nil, err
	}
	chosen := slices.DeleteFunc(all, func(n Node) bool {
		return !f.Match(filter.Subject{Name: n.Name, Labels: n.Labels, Facts: n.Facts})
	})
	if len(chosen) == 0 {
		return nil, muster.Errorf(muster.NothingFound, "no node matches %s", f).
			WithHint("'muster node ls' lists the nodes with their labels")
	}
	return chosen, nil
}

// SetLabels changes labels of a node.
func (c *Client) SetLabels(ctx context.Context, node muster.NodeName, set map[string]string, remove []string) error {
	return c.with(ctx, func(conn *bus.Conn) error {
		m, seq, err := readMembership(ctx, conn, node)
		if err != nil {
			return err
		}
		if m.Labels == nil {
			m.Labels = make(map[string]string)
		}
		for k, v := range set {
			m.Labels[k] = v
		}
		for _, k := range remove {
			delete(m.Labels, k)
		}
		data, err := json.Marshal(m)
		if err != nil {
			return err
		}
		err = conn.PutRecord(ctx, keyNode(node), data, seq)
		if muster.KindOf(err) == muster.Conflict {
			return muster.Errorf(muster.Conflict, "store labels of %s: %w", node, err).WithHint("somebody else may have changed them; try again")
		}
		return err
	})
}

// RemoveNode takes a node out of the fleet: its credentials are revoked, its
// queue is emptied, and it is forgotten. Its history stays, and says of what did
// not end that the node is gone.
func (c *Client) RemoveNode(ctx context.Context, node muster.NodeName) error {
	return c.with(ctx, func(conn *bus.Conn) error {
		if err := conn.AddRecord(ctx, "remove."+string(node), []byte("{}")); err != nil {
			return err
		}
		if err := c.recordGone(ctx, conn, node); err != nil {
			return err
		}
		s := conn.Subjects()
		for stream, subject := range map[string]string{
			bus.StreamNodes: s.Node(bus.AnyMailbox, node), bus.StreamAlive: s.Alive(bus.AnyMailbox, node),
			bus.StreamControl: s.Control(bus.AnyMailbox, node),
		} {
			if err := conn.Purge(ctx, stream, subject); err != nil {
				return err
			}
		}
		if err := conn.PurgeQueue(ctx, node); err != nil {
			return err
		}
		return conn.PurgeRecord(ctx, keyNode(node))
	})
}

// recordGone notes of what a node has not ended that it will not say more.
func (c *Client) recordGone(ctx context.Context, conn *bus.Conn, node muster.NodeName) error {
	all, err := c.History(ctx, HistoryQuery{Node: node})
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	for _, s := range all {
		if s.State.Final() && !s.Inferred {
			continue
		}
		r := sent{ID: s.ID, Method: s.Method, IssuedAt: s.Sent, Deadline: s.Deadline, Gone: []muster.NodeName{node}, GoneAt: now}
		data, err := json.Marshal(r)
		if err != nil {
			return err
		}
		m := bus.Outgoing{Subject: conn.Subjects().Sent(s.ID), ID: string(s.ID) + "/gone/" + string(node), Data: data}
		if err := conn.Put(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// QueueLength returns the number of commands that the broker keeps for a node.
func (c *Client) QueueLength(ctx context.Context, node muster.NodeName) (n int, err error) {
	err = c.with(ctx, func(conn *bus.Conn) error { n, err = conn.Queue(ctx, node); return err })
	return n, err
}
