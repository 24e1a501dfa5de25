package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"slices"
	"strings"
	"sync"
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

// How long an answer to a ping is waited for: a moment, and some round trips
// between here, the broker and the node, as last measured. More of them for a
// node whose heartbeats are on time, since a link that loses packets repeats
// them ever later; few for one that is overdue, and has probably gone. Whoever
// was silent for longer is not waited for.
const (
	pingWait     = 250 * time.Millisecond
	pingMost     = 5 * time.Second
	freshFor     = 25 * time.Second // a heartbeat, and what a slow link adds
	freshTrips   = 8
	overdueFor   = 45 * time.Second
	overdueTrips = 2
)

// presence is what a node's last heartbeat says.
type presence struct {
	age     time.Duration // by our clock and the broker's
	rtt     time.Duration // between node and broker
	leaving bool
}

// expected reports whether there should be an answer.
func (p presence) expected() bool { return !p.leaving && p.age < overdueFor }

// patience is how long an answer is waited for, when it takes the time here to
// the broker and back.
func (p presence) patience(here time.Duration) time.Duration {
	trips := time.Duration(overdueTrips)
	if p.expected() && p.age < freshFor {
		trips = freshTrips
	}
	return min(pingWait+trips*(here+p.rtt), pingMost)
}

// Nodes lists the fleet, sorted by name, and asks who is there now.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	var all []Node
	err := c.with(ctx, func(conn *bus.Conn) error {
		s, err := look(ctx, conn)
		if err != nil {
			return err
		}
		if err := s.ping(ctx, conn); err != nil {
			return err
		}
		all = all[:0]
		for _, n := range s.nodes {
			all = append(all, *n)
		}
		slices.SortFunc(all, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
		return nil
	})
	return all, err
}

// A survey is the fleet as it is stored, and what is needed to ask it.
type survey struct {
	nodes map[muster.NodeName]*Node
	beats map[muster.NodeName]presence
	rtt   time.Duration // to the broker
}

// look reads all that is stored of nodes at once: on a slow link each question
// takes its time.
func look(ctx context.Context, conn *bus.Conn) (*survey, error) {
	s := &survey{make(map[muster.NodeName]*Node), make(map[muster.NodeName]presence), 0}
	var hellos, members, beats []func() // applied in this order, by this goroutine
	errs := make([]error, 4)
	var wg sync.WaitGroup
	wg.Go(func() { hellos, errs[0] = s.hellos(ctx, conn) })
	wg.Go(func() { members, errs[1] = s.members(ctx, conn) })
	wg.Go(func() { beats, errs[2] = s.heartbeats(ctx, conn) })
	wg.Go(func() { s.rtt, errs[3] = conn.RTT() })
	wg.Wait()
	if err := cmp.Or(errs...); err != nil {
		return nil, err
	}
	for _, apply := range slices.Concat(hellos, members, beats) {
		apply()
	}
	return s, nil
}

// node returns the node of a name, which is new at its first record.
func (s *survey) node(name muster.NodeName) *Node {
	if s.nodes[name] == nil {
		s.nodes[name] = &Node{Name: name}
	}
	return s.nodes[name]
}

// hellos reads what nodes say of themselves.
func (s *survey) hellos(ctx context.Context, conn *bus.Conn) (apply []func(), err error) {
	subjects := conn.Subjects()
	err = lastValues(ctx, conn, bus.StreamNodes, subjects.Node(bus.AnyMailbox, ">"), func(m bus.Stored, h muster.Hello) {
		name, ok := subjects.NodeOf(m.Subject, "node")
		if !ok || name.Validate() != nil || h.Node != name {
			return // not what an agent writes
		}
		apply = append(apply, func() {
			n := s.node(name)
			n.LastSeen, n.Version, n.Instance, n.Started = m.Time, h.Version, h.Instance, h.Started
			n.Facts, n.Methods, n.Problems = h.Facts, h.Methods, h.Problems
		})
	})
	return apply, err
}

// members reads what operators say of nodes.
func (s *survey) members(ctx context.Context, conn *bus.Conn) (apply []func(), err error) {
	err = conn.Records(ctx, keyNode(">"), false, func(m bus.Stored) error {
		var rec membership
		name := muster.NodeName(strings.TrimPrefix(m.Subject, keyNode("")))
		if name.Validate() == nil && json.Unmarshal(m.Data, &rec) == nil {
			apply = append(apply, func() {
				n := s.node(name)
				n.Labels, n.Invited = rec.Labels, rec.Invited
			})
		}
		return nil
	})
	return apply, err
}

// heartbeats reads the last sign of life of each node. They are kept in memory:
// after a start of the broker there are none, and for a moment no stream.
func (s *survey) heartbeats(ctx context.Context, conn *bus.Conn) (apply []func(), err error) {
	subjects := conn.Subjects()
	err = lastValues(ctx, conn, bus.StreamAlive, subjects.Alive(bus.AnyMailbox, ">"), func(m bus.Stored, b muster.Beat) {
		name, ok := subjects.NodeOf(m.Subject, "alive")
		if !ok || b.Node != name {
			return
		}
		apply = append(apply, func() {
			n := s.nodes[name]
			if n == nil {
				return
			}
			n.LastSeen, n.Queue, n.Running, n.Revoked = m.Time, b.Queue, b.Running, b.Revoked
			s.beats[name] = presence{
				age: time.Since(m.Time), leaving: b.Leaving,
				rtt: time.Duration(max(min(b.RTT, 60_000), 0) * float64(time.Millisecond)),
			}
		})
	})
	if muster.KindOf(err) == muster.NotFound {
		return nil, nil
	}
	return apply, err
}

// Away returns those of the nodes that take their leave or whose heartbeats do
// not come, and when each was last heard of, by the broker's clock; zero where
// that is not known. Nobody is asked, so that it takes the network little.
func (c *Client) Away(ctx context.Context, nodes []muster.NodeName) (map[muster.NodeName]time.Time, error) {
	away := make(map[muster.NodeName]time.Time, len(nodes))
	err := c.with(ctx, func(conn *bus.Conn) error {
		s := &survey{nodes: make(map[muster.NodeName]*Node), beats: make(map[muster.NodeName]presence)}
		for _, name := range nodes {
			s.node(name)
		}
		beats, err := s.heartbeats(ctx, conn)
		if err != nil {
			return err
		}
		for _, apply := range beats {
			apply()
		}
		for name, n := range s.nodes {
			if p, heard := s.beats[name]; !heard || !p.expected() {
				away[name] = n.LastSeen
			}
		}
		return nil
	})
	return away, err
}

// ping asks who is there now.
func (s *survey) ping(ctx context.Context, conn *bus.Conn) error {
	if len(s.nodes) == 0 {
		return nil
	}
	asking, stop := context.WithCancel(ctx)
	defer stop()
	// Without recent heartbeats, which clocks that differ make old, each node
	// may be there.
	wait, known := s.left()
	if !known {
		wait = s.longest()
	}
	asked := time.Now()
	over := time.AfterFunc(wait, stop)
	defer over.Stop()
	subjects, question := conn.Subjects(), rand.Text()
	err := conn.AskAll(asking, subjects.Ping(), []byte(question), subjects.Alive(bus.AnyMailbox, ">"), func(subject string, data []byte) bool {
		b, ok := subjects.BeatOf(subject, data)
		if !ok || b.Ping != question {
			return true
		}
		n := s.nodes[b.Node]
		if n == nil || n.Online {
			return true
		}
		now := time.Now()
		n.Online, n.LastSeen, n.Queue, n.Running, n.Instance = true, now, b.Queue, b.Running, b.Instance
		n.RTT, n.Revoked = now.Sub(asked), b.Revoked
		n.ClockOff = b.Time.Sub(asked.Add(n.RTT / 2))
		if !known {
			return true
		}
		left, more := s.left()
		if more {
			over.Reset(left - n.RTT)
		}
		return more
	})
	if asking.Err() != nil && ctx.Err() == nil {
		return nil // the time is up: who has not answered is away
	}
	return err
}

// longest is how long answers are waited for when none is expected.
func (s *survey) longest() time.Duration {
	longest := presence{leaving: true}.patience(s.rtt)
	for _, p := range s.beats {
		longest = max(longest, p.patience(s.rtt))
	}
	return longest
}

// left is how long from the question on those are waited for who are expected
// to answer and have not, and whether there are any.
func (s *survey) left() (longest time.Duration, more bool) {
	for name, p := range s.beats {
		if p.expected() && !s.nodes[name].Online {
			longest, more = max(longest, p.patience(s.rtt)), true
		}
	}
	return longest, more
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
