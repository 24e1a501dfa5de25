package order

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A cosmos is one state of a small constellation: three agents, two callers,
// and the frames that are under way. The search tries each order of events.
type cosmos struct {
	now     time.Time
	parts   []*participant
	flight  []flying
	losses  int
	ran     map[string]bool // queries that were run, by node
	problem string
}

type participant struct {
	node   *Node
	caller *Caller
	called time.Time // of a Call that is not decided
	begun  bool      // it has called
	asked  bool      // a query was sent
	digest [32]byte
}

type flying struct {
	from, to int
	frame    Frame
	digest   [32]byte
}

const agentsExplored, callersExplored = 3, 2

// genesis returns the constellation when its members have found each other. The
// first caller calls at once, and as many more as are asked for.
func genesis(t *testing.T, broken flaws, callers int) *cosmos {
	c := &cosmos{now: t0, ran: map[string]bool{}}
	w := newWorld(1, faults{}, broken)
	for i := range agentsExplored + callersExplored {
		cfg := Config{ID: [16]byte{byte(i + 1)}, Cluster: "muster", Operators: operators(), Seed: [32]byte{byte(i + 1)}}
		p := &participant{}
		var err error
		if i < agentsExplored {
			p.node, err = New(cfg, c.now, nil)
		} else if p.caller, err = NewCaller(cfg, operatorKeys[i], c.now); err == nil {
			p.node = p.caller.Node
		}
		if err != nil {
			t.Fatal(err)
		}
		p.node.flaws = w.flaws
		c.parts = append(c.parts, p)
	}
	for i := range c.parts {
		c.change(i, func(p *participant) { p.node.Tick(c.now) })
	}
	for len(c.flight) > 0 {
		c.deliver(0)
	}
	c.now = c.now.Add(time.Second)
	for i := range callers {
		c.change(agentsExplored+i, func(p *participant) { p.call(c.now) })
	}
	return c
}

func address(i int) Address { return Address(strconv.Itoa(i)) }

// fork returns a copy. Participants are copied when they change.
func (c *cosmos) fork() *cosmos {
	d := *c
	d.parts, d.flight, d.ran = slices.Clone(c.parts), slices.Clone(c.flight), maps.Clone(c.ran)
	return &d
}

// change lets a copy of one participant do something.
func (c *cosmos) change(i int, do func(*participant)) {
	p := *c.parts[i]
	if p.caller != nil {
		p.caller = deepCopy(p.caller)
		p.node = p.caller.Node
	} else {
		p.node = deepCopy(p.node)
	}
	c.parts[i] = &p
	do(&p)
	for r := p.node.Ready(); !r.Empty(); r = p.node.Ready() {
		for _, e := range r.Events {
			if e.Kind == CallWon || e.Kind == CallLost {
				p.called = time.Time{}
			}
		}
		for _, q := range r.Executes {
			c.execute(i, &p, q)
		}
		for _, s := range r.Sends {
			c.send(i, s)
		}
	}
	p.digest = [32]byte{}
}

func (c *cosmos) execute(i int, p *participant, q Query) {
	name := fmt.Sprint(i, q.Order, q.Seq)
	if s := p.node.Status(c.now); c.ran[name] || s.State != Ordered || s.Order != q.Order {
		c.problem = "I5: a query runs again, or outside of its Order"
	}
	c.ran[name] = true
	p.node.Finished(c.now, q.Order, q.Seq, OK, nil)
}

func (c *cosmos) send(from int, s Send) {
	for to := range c.parts {
		_, hello := s.Frame.Body.(*Hello)
		if to != from && (s.To == address(to) || s.To == Multicast && c.now.Equal(t0)) && !(hello && c.now.After(t0)) {
			f := flying{from: from, to: to, frame: s.Frame}
			f.digest = sha256.Sum256(digest([]byte{byte(from), byte(to), byte(s.Frame.Body.Type())}, reflect.ValueOf(s.Frame.Body), c.now))
			c.flight = append(c.flight, f)
		}
	}
}

func (c *cosmos) deliver(i int) {
	f := c.flight[i]
	c.flight = slices.Delete(c.flight, i, i+1)
	c.change(f.to, func(p *participant) { p.node.Receive(c.now, address(f.from), f.frame) })
}

// next lets time pass until a timer is due, whatever is still under way.
func (c *cosmos) next() {
	var at time.Time
	for _, p := range c.parts {
		at = earlier(at, p.node.Next())
	}
	c.now = later(c.now, at)
	for i, p := range c.parts {
		if !p.node.Next().After(c.now) {
			c.change(i, func(p *participant) { p.node.Tick(c.now) })
		}
		p.digest = [32]byte{} // times are relative
	}
}

// check looks for a violation of a safety invariant, or of the time of a Call.
func (c *cosmos) check() string {
	believed := map[NodeID]bool{}
	for _, p := range c.parts {
		if !p.called.IsZero() && c.now.Sub(p.called) > decisionTime {
			return "I4: a Call is not decided"
		}
		if p.caller == nil {
			continue
		}
		for _, m := range p.caller.Members(c.now) {
			if believed[m.ID] {
				return "I2: two callers have one member"
			}
			believed[m.ID] = true
			s := c.parts[m.ID[0]-1].node.Status(c.now)
			if s.State != Ordered || s.Order != p.caller.Order() {
				return "I3: a believed member is in state " + s.State.String() + " of another Order"
			}
		}
	}
	return c.problem
}

// key names the state: two with the same behave alike from here on.
func (c *cosmos) key() [32]byte {
	var b []byte
	for i, p := range c.parts {
		if p.digest == [32]byte{} {
			d := digest(nil, reflect.ValueOf(p.node), c.now)
			if p.caller != nil {
				d = digest(d, reflect.ValueOf(p.caller), c.now)
			}
			q := *p
			q.digest = sha256.Sum256(d)
			c.parts[i] = &q
		}
		b = append(b, c.parts[i].digest[:]...)
		b = append(b, fmt.Sprint(p.begun, p.asked)...)
	}
	var all []string
	for _, f := range c.flight {
		all = append(all, string(f.digest[:]))
	}
	slices.Sort(all)
	b = append(b, strings.Join(all, "")...)
	b = append(b, byte(c.losses))
	for _, s := range slices.Sorted(maps.Keys(c.ran)) {
		b = append(b, s...)
	}
	return sha256.Sum256(b)
}

// successors returns all states that one event leads to: the arrival or the
// loss of any frame, the next timer, the Call of who has not called, or a query
// or a RELEASE of whoever holds an Order.
func (c *cosmos) successors(losses int) []*cosmos {
	var all []*cosmos
	try := func(do func(*cosmos)) {
		d := c.fork()
		do(d)
		all = append(all, d)
	}
	for i, f := range c.flight {
		if slices.ContainsFunc(c.flight[:i], func(o flying) bool { return o.digest == f.digest }) {
			continue // the same frame twice
		}
		try(func(d *cosmos) { d.deliver(i) })
		if c.losses < losses {
			try(func(d *cosmos) {
				d.flight = slices.Delete(d.flight, i, i+1)
				d.losses++
			})
		}
	}
	try(func(d *cosmos) { d.next() })
	for i, p := range c.parts {
		if p.caller != nil && !p.begun && p.node.Neighbours() > 0 {
			try(func(d *cosmos) { d.change(i, func(p *participant) { p.call(d.now) }) })
		}
		if p.caller != nil && len(p.caller.Members(c.now)) > 0 {
			if !p.asked {
				try(func(d *cosmos) { d.change(i, func(p *participant) { p.query(d.now) }) })
			}
			try(func(d *cosmos) { d.change(i, func(p *participant) { p.release(d.now) }) })
		}
	}
	return all
}

func (p *participant) call(now time.Time) {
	p.begun, p.called = true, now
	// The last one is the stronger, whatever its id.
	last := p.node.ID()[0] == agentsExplored+callersExplored
	if _, err := p.caller.Call(now, CallOptions{Lease: 20 * time.Second, BreakGlass: last}); err != nil {
		panic(err)
	}
}

func (p *participant) query(now time.Time) {
	p.asked = true
	if _, err := p.caller.Query(now, "", "node.status", nil, 0); err != nil {
		panic(err)
	}
}

func (p *participant) release(now time.Time) {
	if _, err := p.caller.Release(now); err != nil {
		panic(err)
	}
}

// An explorer searches from states along one run, each to the same depth.
type explorer struct {
	depth, losses int
	seen          map[[32]byte]int // to the depth that was left
	transitions   int
	problem       string
}

// from tries everything that can happen within so many events.
func (x *explorer) from(c *cosmos, left int) {
	if x.problem = c.check(); x.problem != "" || left == 0 {
		return
	}
	key := c.key()
	if done, ok := x.seen[key]; ok && done >= left {
		return
	}
	x.seen[key] = left
	for _, d := range c.successors(x.losses) {
		x.transitions++
		if x.from(d, left-1); x.problem != "" {
			return
		}
	}
}

// run follows an orderly run and searches from each state on it.
func (x *explorer) run(c *cosmos) (steps int) {
	for ; c.now.Sub(t0) < 25*time.Second && x.problem == ""; steps++ {
		d := c.fork()
		d.losses = 0
		x.from(d, x.depth)
		c = c.fork()
		c.orderly()
	}
	return steps
}

// orderly does what comes next when frames arrive as they were sent, timers
// wait for them, who holds an Order asks one query, and who has not called does
// so then.
func (c *cosmos) orderly() {
	for i, p := range c.parts {
		switch {
		case len(c.flight) > 0:
			c.deliver(0)
			return
		case p.caller == nil:
		case !p.asked && len(p.caller.Members(c.now)) > 0:
			c.change(i, func(p *participant) { p.query(c.now) })
			return
		case !p.begun:
			c.change(i, func(p *participant) { p.call(c.now) })
			return
		}
	}
	c.next()
}

// TestExplore tries all interleavings of arrivals, losses, timers and requests
// of two callers among three nodes, within a number of events from each state of
// two orderly runs, one with the second Call at once and one with it against an
// Order. The number is MUSTER_ORDER_DEPTH, with at most two losses.
func TestExplore(t *testing.T) {
	t.Parallel()
	depth := 2
	if raceDetector {
		depth = 1
	}
	if v := os.Getenv("MUSTER_ORDER_DEPTH"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatal(err)
		}
		depth = n
	}
	x := &explorer{depth: depth, losses: 2, seen: map[[32]byte]int{}}
	steps := x.run(genesis(t, flaws{}, 1)) + x.run(genesis(t, flaws{}, 2))
	if x.problem != "" {
		t.Fatal(x.problem)
	}
	t.Logf("depth %d from each of %d states: %d states, %d transitions", depth, steps, len(x.seen), x.transitions)
}

// TestExploreCanFail: the search notices broken rules.
func TestExploreCanFail(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]flaws{
		"the caller's lease outlasts the node": {longBelief: true},
		"an Order can be pre-empted":           {preemptOrders: true},
		"one phase instead of two":             {onePhase: true},
	} {
		x := &explorer{depth: 2, losses: 2, seen: map[[32]byte]int{}}
		x.run(genesis(t, broken, 1))
		if x.problem == "" {
			t.Errorf("%s: not noticed among %d states", name, len(x.seen))
		}
		t.Logf("%s: %s, after %d transitions", name, x.problem, x.transitions)
	}
}
