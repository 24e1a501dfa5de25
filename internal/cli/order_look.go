package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/order"
	"github.com/musterfleet/muster/internal/participant"
)

// A neighbour is one that was heard of.
type neighbour struct {
	Name    string    `json:"name"`
	ID      string    `json:"id"`
	Address string    `json:"address"` // empty over the broker alone
	Via     string    `json:"via"`     // lan, nats or both
	State   string    `json:"state"`   // idle, call, order; caller for an operator
	Order   string    `json:"order,omitempty"`
	Holder  string    `json:"holder,omitempty"` // name of the operator, if it was heard of too
	Broker  string    `json:"broker,omitempty"`
	Reaches int       `json:"neighbours"` // how many it has itself
	Heard   time.Time `json:"heard"`
}

// neighbours makes peers readable, in the order of their names.
func neighbours(peers []order.Peer) []neighbour {
	holders := map[order.OrderID]string{}
	for _, p := range peers {
		if p.Role == order.RoleCaller && p.Order != (order.OrderID{}) {
			holders[p.Order] = p.Name
		}
	}
	var all []neighbour
	for _, p := range peers {
		n := neighbour{Name: p.Name, ID: p.ID.String(), Address: strings.TrimPrefix(string(p.Address), "tcp/"), Via: via(p),
			State: p.State.String(), Broker: p.BrokerHint, Reaches: p.Reaches, Heard: p.Heard}
		if p.Role == order.RoleCaller {
			n.State = order.CallerState.String()
		}
		if p.Order != (order.OrderID{}) {
			n.Order, n.Holder = p.Order.String(), holders[p.Order]
		}
		all = append(all, n)
	}
	slices.SortFunc(all, func(a, b neighbour) int { return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID)) })
	return all
}

func (n neighbour) label() string { return cmp.Or(n.Name, n.ID) }

func (n neighbour) state() cell {
	color := map[string]string{"idle": green, "call": yellow, "order": cyan, "caller": dim}[n.State]
	return cell{n.State, color}
}

func (n neighbour) shortOrder() string { return n.Order[:min(len(n.Order), 12)] }

// quiet is how long nobody new must be heard of before a look ends.
const quiet = time.Second

// look listens for --wait if that was given, else until nobody new was heard of
// for a while.
func (f *orderFlags) look(ctx context.Context, o *participant.Operator) ([]neighbour, error) {
	wait, cancel := context.WithTimeout(ctx, time.Duration(f.wait))
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var peers []order.Peer
	known, last := 0, time.Now()
	for wait.Err() == nil && (f.patient || known == 0 || time.Since(last) < quiet) {
		all, err := o.Peers(wait)
		if err != nil {
			break
		}
		named := 0
		for _, p := range all {
			if p.Name != "" {
				named++
			}
		}
		if peers = all; named != known {
			known, last = named, time.Now()
		}
		select {
		case <-wait.Done():
		case <-tick.C:
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if len(peers) == 0 {
		return nil, muster.Errorf(muster.NothingFound, "no agent of this constellation was heard of within %s", short(time.Duration(f.wait))).
			WithHint("%s", f.lonely())
	}
	return neighbours(peers), nil
}

// sayUnseen tells that there are more than the agents that --peer names.
func (f *orderFlags) sayUnseen(p *program, all []neighbour) {
	if len(f.peers) == 0 || len(f.interfaces) > 0 || p.format != "table" {
		return
	}
	if text := unseen(all); text != "" {
		p.say("%s", text)
	}
}

// unseen speaks of the agent that has the most neighbours besides those that were
// heard of. Which ones they are it does not say: of several agents the number is
// the least that there can be.
func unseen(all []neighbour) string {
	agents := slices.DeleteFunc(slices.Clone(all), func(n neighbour) bool { return n.State == order.CallerState.String() })
	who, more := "", 0
	for _, n := range agents {
		if hidden := n.Reaches - (len(agents) - 1); hidden > more {
			who, more = clean(n.label()), hidden
		}
	}
	switch more {
	case 0:
		return ""
	case 1:
		return who + " has 1 neighbour that is not shown; it takes part all the same"
	}
	return fmt.Sprintf("%s has %d neighbours that are not shown; they take part all the same", who, more)
}

// looking gives f what was heard of.
func (p *program) looking(cmd *cobra.Command, f *orderFlags, do func(ctx context.Context, o *participant.Operator) error) error {
	if err := f.check(cmd); err != nil {
		return err
	}
	c, err := f.readConstellation(p)
	if err != nil {
		return err
	}
	return p.onNetwork(cmd.Context(), f, c, nil, do)
}

func (p *program) orderNeighbours(f *orderFlags) *cobra.Command {
	return &cobra.Command{
		Use:     "neighbours",
		Aliases: []string{"neighbors", "ls"},
		Short:   "Show who is there",
		Long: `Show who answers on the network, what state they are in, and which broker they
have. No operator's file is needed.

With multicast all of the network are heard of, with --peer those that are named
and what these have heard of; of further ones the number is told. Agents say who
they are every 10 seconds; eight answer a newcomer at once. --wait 12s hears of
all, in a network of up to 100.`,
		Example: `  muster order neighbours
  muster order neighbours --wait 12s
  muster order neighbours --peer 10.0.0.5 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.looking(cmd, f, func(ctx context.Context, o *participant.Operator) error {
				all, err := f.look(ctx, o)
				if err != nil {
					return err
				}
				f.sayUnseen(p, all)
				return list(p, all, func() *table {
					t := newTable("NAME", "ID", "ADDRESS", "VIA", "STATE", "ORDER", "BROKER", "HEARD")
					for _, n := range all {
						t.row(n.Name, n.ID, n.Address, n.Via, n.state(), n.shortOrder(), n.Broker, ago(p.now(), n.Heard))
					}
					return t
				})
			})
		},
	}
}

// A constellationStatus is what 'order status' shows.
type constellationStatus struct {
	Session *sessionStatus `json:"session,omitempty"` // that is open on this machine
	Agents  []neighbour    `json:"agents"`
	Callers []neighbour    `json:"operators"`
}

type sessionStatus struct {
	Order   string    `json:"order"`
	Until   time.Time `json:"until"` // when the lease ends if nothing renews it
	LeaseMS int64     `json:"lease_ms"`
	Members []string  `json:"members"`
}

func (p *program) orderStatus(f *orderFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show which machines are in order, and whose",
		Long: `Show the state of each agent that is heard of: idle, call (somebody is calling),
or order (locked), and the operator who holds it, as far as that one is heard of
too: BY is the name that its program says, and - when it has ended or is too far
away. The states are those of each agent's last word, which it says within a
second of a change, and in networks of more than 50 agents within 10 ms for
each. A session that is open on this machine is shown with the end of its lease.

To ask the members themselves: 'muster order query status'.`,
		Example: `  muster order status
  muster order status -o json | jq '.agents[] | select(.state == "order")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.looking(cmd, f, func(ctx context.Context, o *participant.Operator) error {
				all, err := f.look(ctx, o)
				if err != nil {
					return err
				}
				f.sayUnseen(p, all)
				s := constellationStatus{Session: p.openSession(ctx, f), Agents: []neighbour{}, Callers: []neighbour{}}
				for _, n := range all {
					if n.State == order.CallerState.String() {
						s.Callers = append(s.Callers, n)
					} else {
						s.Agents = append(s.Agents, n)
					}
				}
				return show(p, s, func(w io.Writer) error { return p.statusText(w, s) })
			})
		},
	}
}

// openSession returns the session that is open on this machine, nil if none is.
func (p *program) openSession(ctx context.Context, f *orderFlags) *sessionStatus {
	guest, err := p.guest(f)
	if err != nil {
		return nil // whoever only looks needs no operator's file
	}
	h, err := guest.Holding(ctx)
	if err != nil {
		return nil // it ends just now
	}
	s := &sessionStatus{Order: h.Order.String(), Until: h.Until, LeaseMS: h.Lease.Milliseconds(), Members: []string{}}
	for _, m := range h.Members {
		s.Members = append(s.Members, m.Label())
	}
	return s
}

func (p *program) statusText(w io.Writer, s constellationStatus) error {
	if s.Session != nil {
		fmt.Fprintf(w, "open session: order %s with %s, lease until %s\n", s.Session.Order[:12], machines(len(s.Session.Members)), clock(s.Session.Until))
	}
	t := newTable("NODE", "STATE", "ORDER", "BY", "HEARD")
	for _, n := range s.Agents {
		t.row(n.label(), n.state(), n.shortOrder(), n.Holder, ago(p.now(), n.Heard))
	}
	if err := t.write(w, p.outTerm); err != nil {
		return err
	}
	for _, line := range operatorLines(s) {
		fmt.Fprintln(w, line)
	}
	return nil
}

// operatorLines tell of the operators that call or hold machines. Others only look,
// as whoever asks does; and the last word of one that has ended stays for a while.
func operatorLines(s constellationStatus) (lines []string) {
	for _, n := range s.Callers {
		if n.Order == "" {
			continue
		}
		what := "was last heard of in order " + n.shortOrder() + ", which none of these machines is in"
		for _, a := range s.Agents {
			switch {
			case a.Order != n.Order:
			case a.State == "order":
				what = "holds order " + n.shortOrder()
			case a.State == "call" && !strings.HasPrefix(what, "holds"):
				what = "calls to order " + n.shortOrder()
			}
		}
		lines = append(lines, "operator "+clean(n.label())+" "+what)
	}
	return lines
}

// A change is one line of 'order watch'.
type change struct {
	Time   time.Time `json:"time"`
	Node   string    `json:"node"`
	ID     string    `json:"id"`
	Event  string    `json:"event"` // up, down, called, locked, freed, operator_up, operator_down
	Order  string    `json:"order,omitempty"`
	Holder string    `json:"holder,omitempty"`
}

func (c change) text() string {
	of := ""
	if c.Order != "" {
		of = " order " + c.Order[:min(len(c.Order), 12)]
	}
	if c.Holder != "" {
		of += " of " + clean(c.Holder)
	}
	return strings.ReplaceAll(c.Event, "_", " ") + of
}

func (p *program) orderWatch(f *orderFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "watch",
		Short: "Print what changes in the constellation",
		Long: `Print what changes, until Ctrl-C: who comes and goes (up, down), who is called,
locked to an order and freed. Agents say so within a second of the change, and
in networks of more than 50 agents within 10 ms for each; what is over sooner
may not be seen at all. With -o json and jsonl each change is one line of JSON.`,
		Example: `  muster order watch
  muster order watch -o jsonl | jq -r 'select(.event == "locked") | .node'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.looking(cmd, f, func(ctx context.Context, o *participant.Operator) error {
				deaf := !f.hears(ctx)
				if deaf {
					p.say("%s an agent has port %d of this machine and does not pass on what it hears, so that changes of others are not heard here", p.errTerm.paint(yellow, "warning:"), f.port)
					p.say("%s watch from a machine with 'muster agent', or without an agent", p.errTerm.paint(cyan, "hint:"))
				}
				return p.watchChanges(ctx, o, deaf)
			})
		},
	}
}

// tellWait is how long an agent on this machine has to say that it passes on what it
// hears.
const tellWait = 2 * time.Second

// hears waits until it is known whether the multicasts of others are heard, and
// reports that.
func (f *orderFlags) hears(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, tellWait)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for f.told != nil && !f.told() {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// watchPause is the time between looks at what was heard of.
const watchPause = 100 * time.Millisecond

func (p *program) watchChanges(ctx context.Context, o *participant.Operator, deaf bool) error {
	tick := time.NewTicker(watchPause)
	defer tick.Stop()
	known := map[string]neighbour{}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		peers, err := o.Peers(ctx)
		if err != nil {
			return err
		}
		for _, c := range changes(known, neighbours(peers)) {
			if deaf && strings.HasSuffix(c.Event, "down") {
				continue // not gone, but not heard
			}
			c.Time = p.now()
			if err := p.printChange(c); err != nil {
				return err
			}
		}
	}
}

func (p *program) printChange(c change) error {
	switch p.format {
	case "json", "jsonl":
		return p.line(c)
	case "yaml":
		return p.data([]change{c}) // the parts together are one list
	}
	_, err := fmt.Fprintf(p.stdout, "%s  %s  %s\n", clock(c.Time), p.outTerm.paint(nodeColor(c.Node), clean(c.Node)), c.text())
	return err
}

// changes compares what was known with what is, and makes it known.
func changes(known map[string]neighbour, now []neighbour) []change {
	var all []change
	there := map[string]bool{}
	for _, n := range now {
		if n.Name == "" {
			continue // it has proved to be there, and not said yet who it is
		}
		there[n.ID] = true
		before, old := known[n.ID]
		known[n.ID] = n
		c := change{Node: n.label(), ID: n.ID, Order: n.Order, Holder: n.Holder}
		if !old {
			up := c
			up.Event, up.Order, up.Holder = "up", "", ""
			if n.State == "caller" {
				up.Event = "operator_up"
			}
			all = append(all, up)
			before.State = "idle"
		}
		if n.State == before.State && n.Order == before.Order {
			continue
		}
		switch n.State {
		case "call":
			c.Event = "called"
		case "order":
			c.Event = "locked"
		case "idle":
			c.Event, c.Order, c.Holder = "freed", before.Order, before.Holder
		default:
			continue
		}
		all = append(all, c)
	}
	for id, n := range known {
		if there[id] {
			continue
		}
		delete(known, id)
		c := change{Node: n.label(), ID: id, Event: "down"}
		if n.State == "caller" {
			c.Event = "operator_down"
		}
		all = append(all, c)
	}
	slices.SortStableFunc(all, func(a, b change) int { return strings.Compare(a.Node, b.Node) })
	return all
}
