package cli

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/constellation"
	"github.com/musterfleet/muster/internal/lan"
	"github.com/musterfleet/muster/internal/order"
	"github.com/musterfleet/muster/internal/participant"
	"github.com/musterfleet/muster/internal/seal"
)

// orderFlags say which constellation, as whom, and over which network.
type orderFlags struct {
	constellation, operator string
	interfaces, peers       []string
	via                     string // one of the constants below
	port                    int
	wait                    durationFlag

	patient bool // --wait was given: all of it is waited
	looks   bool // the command only looks, and does not call
	// told reports, of a program beside an agent, whether that passes on what it
	// hears; nil of a program that hears for itself. See carrier.
	told func() bool
}

// The ways to the agents.
const (
	viaLAN  = "lan"
	viaNATS = "nats"
	viaBoth = "both"
)

const orderLong = `Operate machines without a broker: to repair the broker itself, where there is
none, or to be the only one who changes anything for a while.

The agents of a constellation share a file, and find each other on the local
network. An operator, who has a key, calls them to order. Whoever can be reached
joins, is locked to this one operator, and does what it asks for, until it lets
go or its lease ends. Machines are Idle, in Call (somebody is calling) or in
Order.

Agents are found by multicast. Where there is none, --peer names one or two of
them; the rest is reached through these. --via nats reaches the nodes of the
fleet over the broker of the context instead, wherever they are, and --via both
does both: then the order goes on if the broker dies in the middle of it. The
default is the local network alone, which needs nothing and works at night.

  constellation file  --constellation, $MUSTER_CONSTELLATION (a path, or the
                      JSON itself), constellation.json in ~/.config/muster,
                      /etc/muster
  operator's file     --operator, $MUSTER_OPERATOR, operator.json in
                      ~/.config/muster, /etc/muster`

func (p *program) orderCommand() *cobra.Command {
	f := &orderFlags{wait: durationFlag(5 * time.Second)}
	cmd := group(&cobra.Command{
		Use:   "order",
		Short: "Operate machines without a broker",
		Long:  orderLong,
		Example: `  muster order keygen                      # once; copy the constellation file
  muster order neighbours                  # who is there?
  muster order run -t 'web*' -- uptime     # call, run, let go
  muster order call                        # a session with a prompt
  muster order query broker tls://10.0.0.7:4222`,
	})
	fs := cmd.PersistentFlags()
	fs.StringVar(&f.constellation, "constellation", "", "file of the constellation")
	fs.StringVar(&f.operator, "operator", "", "file of the operator")
	fs.StringSliceVar(&f.interfaces, "interface", nil, "network interface to find agents on; can be repeated (default: all that are up, without loopback)")
	fs.StringSliceVar(&f.peers, "peer", nil, "HOST[:PORT] of an agent to reach the others through; can be repeated; no multicast then, unless there is --interface")
	fs.StringVar(&f.via, "via", viaLAN, "how to reach agents: lan, nats (the broker of the context), or both")
	fs.IntVar(&f.port, "port", lan.DefaultPort, "port of the constellation's agents, UDP and TCP")
	fs.Var(&f.wait, "wait", "how long to look for agents")
	cmd.AddCommand(p.orderKeygen(), p.orderHint(f), p.orderNeighbours(f), p.orderStatus(f), p.orderCall(f), p.orderRun(f), p.orderQuery(f),
		p.orderRenew(f), p.orderRelease(f), p.orderWatch(f))
	return cmd
}

// findFile returns the first of the usual places where a file is, "" without any.
func findFile(name string) string {
	var places []string
	if home, err := config.Home(); err == nil {
		places = append(places, home)
	}
	for _, dir := range append(places, "/etc/muster") {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return path // also one that cannot be read: the error says so
		}
	}
	return ""
}

const (
	constellationFile = "constellation.json"
	operatorFile      = "operator.json"
	operatorVariable  = "MUSTER_OPERATOR"
)

func (f *orderFlags) readConstellation(p *program) (constellation.Constellation, error) {
	path := f.constellation
	if path == "" && p.env(constellation.Variable) == "" {
		path = findFile(constellationFile)
	}
	c, err := constellation.Find(path, p.env)
	if path == "" && muster.KindOf(err) == muster.NotFound && p.env(constellation.Variable) == "" {
		return c, muster.Errorf(muster.NotFound, "no constellation is known here").
			WithHint("name its file with --constellation; 'muster order keygen' makes one")
	}
	return c, err
}

// readOperator returns the operator of a constellation.
func (f *orderFlags) readOperator(p *program, c constellation.Constellation) (constellation.Operator, error) {
	path := cmp.Or(f.operator, p.env(operatorVariable), findFile(operatorFile))
	if path == "" {
		return constellation.Operator{}, muster.Errorf(muster.NotFound, "no operator's file is known here, and only an operator can call").
			WithHint("name it with --operator; 'muster order keygen' made it together with the constellation's")
	}
	o, err := constellation.ReadOperator(path)
	if err != nil {
		return o, err
	}
	if !f.knows(c, o) {
		return o, muster.Errorf(muster.Denied, "%s is not of an operator of the constellation %q", path, c.Key).
			WithHint("the agents would not obey; name another with --operator, or another --constellation")
	}
	return o, nil
}

func (f *orderFlags) knows(c constellation.Constellation, o constellation.Operator) bool {
	for _, key := range c.Operators {
		if key.Equal(o.PublicKey()) {
			return o.Key == c.Key
		}
	}
	return false
}

func (f *orderFlags) check(cmd *cobra.Command) error {
	f.patient = cmd.Flags().Changed("wait")
	if f.port < 1 || f.port > 65535 {
		return usagef(cmd, "--port %d is no port", f.port)
	}
	if f.via != viaLAN && f.via != viaNATS && f.via != viaBoth {
		return usagef(cmd, "--via is %s, %s or %s, not %q", viaLAN, viaNATS, viaBoth, f.via)
	}
	for i, peer := range f.peers {
		if _, _, err := net.SplitHostPort(peer); err != nil {
			f.peers[i] = net.JoinHostPort(strings.Trim(peer, "[]"), strconv.Itoa(f.port))
		}
	}
	return nil
}

// carriers opens the ways to the agents, and returns the port for long frames.
func (f *orderFlags) carriers(ctx context.Context, p *program, c constellation.Constellation) (all []participant.Carrier, port uint16, closing func(), err error) {
	closing = func() {}
	if f.via != viaLAN {
		hub, err := f.hub(ctx, p, c)
		if err != nil {
			return nil, 0, nil, err
		}
		all, closing = append(all, hub), hub.Close
	}
	if f.via != viaNATS {
		network, err := f.carrier(c)
		if err != nil {
			closing()
			return nil, 0, nil, err
		}
		before := closing
		all, port, closing = append(all, network), uint16(network.Port()), func() { before(); network.Close() }
	}
	return all, port, closing, nil
}

// hub opens the way over the broker. With the network beside it, the broker may
// be away.
func (f *orderFlags) hub(ctx context.Context, p *program, c constellation.Constellation) (*app.OrderHub, error) {
	name, _, err := p.contextName()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(f.wait))
	defer cancel()
	hub, err := app.OpenOrderHub(ctx, name, c, f.via == viaBoth, p.logger())
	if err != nil {
		return nil, muster.AsError(muster.Unavailable, err).WithHint("--via lan needs no broker")
	}
	if !hub.Online() {
		p.say("%s the broker does not answer; over the local network alone, until it does", p.errTerm.paint(yellow, "warning:"))
	}
	return hub, nil
}

// carrier opens the network. With an agent on this machine, which has the port,
// that agent is a way to the others. They answer a guest, too, but what they say
// to all goes to the port, and the guest hears what the agent passes on.
func (f *orderFlags) carrier(c constellation.Constellation) (*participant.LAN, error) {
	box, err := seal.New(c.Key, c.Secret.Reveal(), rand.Reader)
	if err != nil {
		return nil, err
	}
	o := lan.Options{Box: box, Port: f.port, Interfaces: f.interfaces, Peers: f.peers}
	if len(f.peers) > 0 && len(f.interfaces) == 0 {
		o.Port, o.Unicast = 0, true
		l, err := participant.OpenLAN(o)
		if err == nil {
			l.LookFar(!f.looks)
		}
		return l, err
	}
	l, err := participant.OpenLAN(o)
	if errors.Is(err, syscall.EADDRINUSE) {
		o.Port, o.GroupPort = 0, f.port
		o.Peers = append(o.Peers, net.JoinHostPort("127.0.0.1", strconv.Itoa(f.port)))
		if l, err = participant.OpenLAN(o); err == nil {
			f.told = l.LookOn()
		}
	}
	return l, err
}

// operatorName is what others see of this operator.
func operatorName() string {
	name, host := "somebody", "somewhere"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	name += "@" + host
	return name[:min(len(name), order.MaxName)]
}

// onNetwork runs f with a place on the constellation's network. It takes part
// until f returns, whatever becomes of ctx: letting go needs the network too.
func (p *program) onNetwork(ctx context.Context, f *orderFlags, c constellation.Constellation, key ed25519.PrivateKey, do func(context.Context, *participant.Operator) error) error {
	f.looks = key == nil
	carriers, port, closing, err := f.carriers(ctx, p, c)
	if err != nil {
		return err
	}
	cfg := order.Config{Name: operatorName(), Cluster: c.Key, Operators: c.Operators, TCPPort: port}
	_, _ = rand.Read(cfg.ID[:]) // never fails
	_, _ = rand.Read(cfg.Seed[:])
	o, err := participant.NewOperator(participant.OperatorOptions{Config: cfg, Key: key, Carriers: carriers, Settle: f.settle(),
		Log: func(message string) { p.logger().Debug(message) }})
	if err != nil {
		closing()
		return err
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- o.Run(life) }()
	err = do(ctx, o)
	end()
	return errors.Join(err, <-ended)
}

// settle is how long to wait for further agents when one has answered: over the
// broker some are far away. 0 is the default.
func (f *orderFlags) settle() time.Duration {
	if f.via == viaLAN {
		return 0
	}
	return 300 * time.Millisecond
}

// ways says over what each member is reached. Whoever is no neighbour is reached
// through others of its network.
func (f *orderFlags) ways(ctx context.Context, p *program, o *participant.Operator, members []participant.Who) {
	peers, err := o.Peers(ctx)
	if f.via == viaLAN || err != nil {
		return
	}
	over := map[string][]participant.Who{}
	for _, m := range members {
		way := viaLAN
		if i := slices.IndexFunc(peers, func(p order.Peer) bool { return p.ID == m.ID }); i >= 0 {
			way = via(peers[i])
		}
		over[way] = append(over[way], m)
	}
	for _, way := range []string{viaLAN, viaNATS, viaBoth} {
		if all := over[way]; len(all) > maxShown {
			p.say("over %s: %s", way, machines(len(all)))
		} else if len(all) > 0 {
			p.say("over %s: %s", way, clean(whoIs(all)))
		}
	}
}

// via is over what a peer is reached.
func via(p order.Peer) string {
	switch {
	case p.Hub == "":
		return viaLAN
	case p.Address == "":
		return viaNATS
	}
	return viaBoth
}

// entry waits for an agent that takes calls.
func (f *orderFlags) entry(ctx context.Context, o *participant.Operator) error {
	wait, cancel := context.WithTimeout(ctx, time.Duration(f.wait))
	defer cancel()
	err := o.Entry(wait)
	if err == nil || ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}
	return muster.Errorf(muster.Unavailable, "no agent of this constellation answers within %s", short(time.Duration(f.wait))).WithHint("%s", f.lonely())
}

// lonely says what to try when nobody is there.
func (f *orderFlags) lonely() string {
	if f.via == viaNATS {
		return "nodes need the same constellation file, and credentials of this version: 'muster node ls' shows which are there"
	}
	if len(f.peers) > 0 {
		return "does an agent run at " + strings.Join(f.peers, " or ") + ", with the same constellation file? Both UDP and TCP are needed"
	}
	return "is multicast possible here? --peer HOST names an agent, --interface a network; agents need the same constellation file"
}

// sessionPath is where the session of an operator has its socket.
func (p *program) sessionPath(o constellation.Operator) (string, error) {
	state, err := config.StateHome()
	if err != nil {
		return "", err
	}
	return filepath.Join(participant.SessionFolder(p.env, state), "order-"+order.OperatorID(o.PublicKey()).String()+".sock"), nil
}

// shortOrder is the beginning of an order's id, as people see it.
func shortOrder(id order.OrderID) string {
	if (id == order.OrderID{}) {
		return ""
	}
	return id.String()[:12]
}

// clock is a time of today, for a person.
func clock(t time.Time) string { return t.Local().Format("15:04:05") }

// whoIs returns the names of machines in a line.
func whoIs(all []participant.Who) string {
	var names []string
	for _, w := range all {
		names = append(names, w.Label())
	}
	return strings.Join(names, ", ")
}

func machines(n int) string { return plural(n, "machine") }
