package app

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/constellation"
	"github.com/musterfleet/muster/internal/lan"
	"github.com/musterfleet/muster/internal/methods/onsite"
	"github.com/musterfleet/muster/internal/order"
	"github.com/musterfleet/muster/internal/participant"
	"github.com/musterfleet/muster/internal/seal"
)

// OrderOptions say how an agent takes part in Orders. Without a constellation it
// does not.
type OrderOptions struct {
	Constellation string     // file; default constellation.json in StateDir, then what constellation.Find says
	Interfaces    []string   // to multicast on; default all that are able
	Peers         []string   // HOST:PORT
	Listen        string     // an IP address, without multicast then
	Port          int        // default lan.DefaultPort, or any with Listen
	Allow         []string   // methods; nil: all
	PeerTimes     *PeerTimes // nil: the usual ones, which tests shorten
}

// orders is the part of an agent that Orders concern. All of its methods do
// nothing where the agent takes no part.
type orders struct {
	o       AgentOptions
	agent   *participant.Agent
	journal *participant.Journal
	failed  atomic.Bool   // the agent has stopped by itself
	again   chan struct{} // has one when the state changed
	redial  chan struct{} // has one when the broker's address changed
	repause chan struct{} // has one when an Order began or ended
	hub     *nodeHub
	peers   *peerBook
	hinted  chan struct{} // has one when an operator's hint of the broker's address is new

	cancel  context.CancelFunc
	running sync.WaitGroup
	err     error // of Run, to be read after running
}

// startOrders begins to take part, if there is a constellation.
func startOrders(ctx context.Context, o AgentOptions) (*orders, error) {
	s := &orders{o: o, again: make(chan struct{}, 1), redial: make(chan struct{}, 1), repause: make(chan struct{}, 1), hinted: make(chan struct{}, 1), cancel: func() {}}
	c, err := findConstellation(o)
	if muster.KindOf(err) == muster.NotFound && o.Order.Constellation == "" {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.prepare(c); err != nil {
		return nil, err
	}
	ctx, s.cancel = context.WithCancel(ctx)
	s.running.Go(func() {
		if s.err = s.agent.Run(ctx); s.err != nil {
			o.Log.Error("this node takes no part in Orders any more", "component", "order", "err", s.err)
			s.failed.Store(true) // or a lock could hold on that nobody can end
			s.changed(order.Status{})
		}
	})
	s.running.Go(func() { s.peers.run(ctx) })
	return s, nil
}

func findConstellation(o AgentOptions) (constellation.Constellation, error) {
	path := o.Order.Constellation
	if own := filepath.Join(o.StateDir, "constellation.json"); path == "" {
		if _, err := os.Stat(own); err == nil {
			path = own
		}
	}
	return constellation.Find(path, os.Getenv)
}

// prepare opens everything that the agent needs.
func (s *orders) prepare(c constellation.Constellation) error {
	name, err := nodeName(s.o)
	if err != nil {
		return err
	}
	box, err := seal.New(c.Key, c.Secret.Reveal(), rand.Reader)
	if err != nil {
		return err
	}
	id, err := participant.StableID(s.o.StateDir, c.Key, "agent", name)
	if err != nil {
		return err
	}
	port := s.o.Order.Port
	if s.o.Order.Listen == "" {
		port = cmp.Or(port, lan.DefaultPort)
	}
	network, err := participant.OpenLAN(lan.Options{Box: box, Host: s.o.Order.Listen, Port: port, Interfaces: s.o.Order.Interfaces, Peers: s.o.Order.Peers})
	if err != nil {
		return err
	}
	network.PassOn()
	if s.journal, err = participant.OpenJournal(s.o.StateDir); err != nil {
		network.Close()
		return err
	}
	log := s.o.Log.With("component", "order")
	s.hub = newNodeHub(box, name, log)
	s.agent, err = participant.NewAgent(participant.AgentOptions{
		Cluster: c.Key, Operators: c.Operators, ID: id, Name: name, Carriers: []participant.Carrier{network, s.hub}, Port: uint16(network.Port()),
		LockFolder: participant.LockFolder(os.Getenv), Journal: s.journal, Program: "muster " + cmp.Or(s.o.Version, buildVersion()),
		Host:    onsite.Host{Allow: s.o.Order.Allow, BrokerFile: filepath.Join(s.o.StateDir, onsite.BrokerFile), Repointed: s.repointed},
		Log:     func(message string) { log.Info(message) },
		Changed: s.changed,
		Hints:   [][]byte{c.Hint}, HintFile: filepath.Join(s.o.StateDir, participant.HintFile),
		Hinted: func([]string) { nudge(s.hinted) },
	})
	if err != nil {
		network.Close()
		return errors.Join(err, s.journal.Close())
	}
	s.peers = openPeerBook(s.o, name, c, order.NodeID(id[:8]), network.Port(), log)
	s.peers.visit = network.Visit
	s.peers.heard = func(ctx context.Context) []order.Peer {
		heard, _ := s.agent.Peers(ctx) // fails at the end only
		return heard
	}
	s.peers.occupied = func() bool { _, held := s.held(); return held }
	log.Info("this node takes part in Orders", "constellation", c.Key, "id", order.NodeID(id[:8]), "at", net.JoinHostPort(s.o.Order.Listen, strconv.Itoa(network.Port())))
	return nil
}

// nodeName is what the fleet calls this node, or will; else the host's name.
func nodeName(o AgentOptions) (string, error) {
	if o.Node != "" {
		return o.Node, nil
	}
	if n, err := config.OpenNode(o.StateDir); err == nil {
		return n.Node.Node, nil
	}
	if o.Token != "" {
		token, err := aaa.ParseToken(o.Token)
		return string(token.Node), err
	}
	name, err := os.Hostname()
	if err != nil {
		return "", muster.Errorf(muster.Unavailable, "find the host's name: %w", err)
	}
	return name, nil
}

// stop ends it, and waits.
func (s *orders) stop() error {
	s.cancel()
	s.running.Wait()
	if s.journal == nil {
		return nil
	}
	return s.journal.Close()
}

// changed has the node say hello with its new state, and go on or wait.
func (s *orders) changed(order.Status) {
	nudge(s.again)
	nudge(s.repause)
}

// repointed has the agent dial the new address.
func (s *orders) repointed() {
	s.dials(brokerURLs(s.o, nil))
	nudge(s.redial)
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// held returns the Order that this node is in.
func (s *orders) held() (order.Status, bool) {
	if s.agent == nil || s.failed.Load() {
		return order.Status{}, false
	}
	status := s.agent.Status()
	return status, status.State == order.Ordered
}

// problems says that somebody has this node in an Order.
func (s *orders) problems() []string {
	status, held := s.held()
	if !held {
		return nil
	}
	return []string{"it is in order " + status.Order.String() + " of operator " + status.Operator.String() + " until " +
		status.Until.UTC().Format(time.RFC3339) + ", unless that is renewed; commands wait"}
}

// paused is why the node begins no run: an Order is for its operator alone.
func (s *orders) paused() string {
	status, held := s.held()
	if !held {
		return ""
	}
	return "it waits: the node is in order " + status.Order.String()[:12] + " of operator " + status.Operator.String()
}

// during carries frames of Orders for one session with the broker, and learns of
// others.
func (s *orders) during(ctx context.Context, conn *bus.Conn) {
	if s.agent == nil {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { s.hub.during(ctx, conn) })
	s.peers.during(ctx, conn)
	both.Wait()
}

// online is told when a session with the broker begins and ends.
func (s *orders) online(is bool) {
	if s.agent != nil {
		s.peers.set(is)
	}
}

// dials tells operators who ask which broker this node has.
func (s *orders) dials(urls []string) {
	if s.agent != nil && len(urls) > 0 {
		s.agent.SetBroker(urls[0])
	}
}

// hints returns where an operator of the constellation says that the broker is,
// of a secure broker only if it has to be one.
func (s *orders) hints(secure bool) []string {
	if s.agent == nil {
		return nil
	}
	var urls []string
	for _, u := range s.agent.Hint() {
		encrypted := strings.HasPrefix(u, "tls://") || strings.HasPrefix(u, "wss://")
		if err := config.ValidateURL(u); err != nil || secure && !encrypted {
			s.o.Log.Warn("an operator's hint of the broker's address cannot be used", "component", "order", "url", u, "secure", secure, "err", err)
			continue
		}
		urls = append(urls, u)
	}
	return urls
}

// tell publishes what Orders had this node do, during a session with the broker.
func (s *orders) tell(ctx context.Context, publish func(muster.Event) error) {
	if s.journal == nil {
		return
	}
	for {
		err := s.journal.Publish(func(line string) error { return publish(journalEvent(s.agent.Name(), line)) })
		if err != nil && ctx.Err() == nil {
			s.o.Log.Warn("what an Order did is not published yet", "component", "order", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.journal.Added():
		}
	}
}

// journalEvent makes an event of a line, whose time is its first word.
func journalEvent(node, line string) muster.Event {
	stamp, rest, _ := strings.Cut(line, " ")
	at, err := time.Parse(time.RFC3339Nano, stamp)
	if err != nil {
		at, rest = time.Now(), line
	}
	return muster.Event{Time: at, Node: muster.NodeName(node), Type: "order", Message: rest}
}

// brokerURLs are the addresses that an Order has set, else those that the node
// joined with.
func brokerURLs(o AgentOptions, joined []string) []string {
	urls, err := onsite.ReadBroker(filepath.Join(o.StateDir, onsite.BrokerFile))
	for _, u := range urls {
		err = errors.Join(err, config.ValidateURL(u))
	}
	if err != nil {
		o.Log.Warn("the broker's addresses that an Order set cannot be used", "component", "app", "err", err)
	}
	if err != nil || len(urls) == 0 {
		return joined
	}
	return urls
}
