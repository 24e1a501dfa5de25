package app

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/agent"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/enrol"
	"github.com/musterfleet/muster/internal/facts"
	"github.com/musterfleet/muster/internal/method"
	"github.com/musterfleet/muster/internal/methods"
)

// AgentOptions configure a node's agent.
type AgentOptions struct {
	StateDir string // also the node's folder, made when it joins
	Token    string // to join with; ignored when the node has joined

	// Without a node's folder all of these are needed; with one, those that
	// are set replace what it says.
	BrokerURL string
	CredsFile string
	Node      string
	Fleet     string
	Issuers   []string

	PolicyFile string // default policy.yaml in StateDir
	FactsDir   string
	MethodDirs []string
	Heartbeat  time.Duration
	MaxOutput  int64
	Order      OrderOptions
	Version    string // of muster; default what the build says
	Log        *slog.Logger
	Ready      func() // nil, or called when the first session with the broker begins
}

// RunAgent runs a node's agent until ctx ends, or the process does that is at
// the other end of the pipe named by ParentVariable. It joins the fleet first
// when it has a token and has not joined yet.
func RunAgent(ctx context.Context, o AgentOptions) error {
	o.Log = orDiscard(o.Log)
	if o.StateDir == "" {
		return muster.Errorf(muster.Invalid, "the agent needs a folder for its state").WithHint("name one with --state")
	}
	ctx, stop, err := untilParentEnds(ctx)
	if err != nil {
		return err
	}
	defer stop()
	unlock, err := config.LockFile(filepath.Join(o.StateDir, "agent.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	// Orders do without the fleet: they begin before this node has joined, which
	// may have to wait for the broker.
	orders, err := startOrders(ctx, o)
	if err != nil {
		return err
	}
	return errors.Join(runNode(ctx, o, orders), orders.stop())
}

// runNode joins, and then serves the fleet until ctx ends.
func runNode(ctx context.Context, o AgentOptions, orders *orders) error {
	if err := join(ctx, o, orders); err != nil {
		return err
	}
	node, err := nodeFolder(o)
	if err != nil {
		return err
	}
	a, err := newAgent(ctx, o, node, orders)
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// untilParentEnds returns a context that ends with the parent process, if that
// gave this one a pipe. stop releases it.
func untilParentEnds(ctx context.Context) (_ context.Context, stop func(), err error) {
	pipe, err := parentPipe()
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	if pipe == nil {
		return ctx, cancel, nil
	}
	var watch sync.WaitGroup
	watch.Go(func() {
		_, _ = io.Copy(io.Discard, pipe) // however it ends, the parent is gone
		cancel()
	})
	return ctx, func() {
		cancel()
		_ = pipe.Close() // ends the copy
		watch.Wait()
	}, nil
}

// join makes the node's folder with the token, as soon as the broker can be
// reached: where the token says that it is, or else where an operator of the
// constellation does. The certificate that the token asks for is asked for there, too.
func join(ctx context.Context, o AgentOptions, orders *orders) error {
	if o.Token == "" {
		return nil
	}
	token, err := aaa.ParseToken(o.Token)
	if err != nil {
		return err
	}
	if config.NodeExists(o.StateDir) {
		n, err := config.OpenNode(o.StateDir)
		if err != nil {
			return err
		}
		if n.Node.Node != string(token.Node) || n.Node.Fleet != token.Fleet {
			return muster.Errorf(muster.Conflict, "this is node %s already; the token is for %s", n.Node.Node, token.Node).
				WithHint("choose another folder with --state")
		}
		if !refused(ctx, o, n) {
			o.Log.Info("this node has joined already; the token is ignored", "component", "app", "node", token.Node)
			return nil
		}
		o.Log.Info("the broker refuses this node, which may have been removed; it joins again", "component", "app", "node", token.Node)
	}
	if file := config.PolicyFile(o.StateDir); keepsPolicy(file, token.Policy) {
		o.Log.Warn("this node has a policy of its own, which stays; the one that came with the token is not used", "component", "app", "node", token.Node, "file", file)
	}
	for wait := time.Second; ; wait = min(2*wait, 30*time.Second) {
		err := enrol.Rejoin(ctx, token, o.StateDir, time.Now(), o.Log)
		if hints := orders.hints(token.CAPEM != ""); away(err) && len(hints) > 0 && ctx.Err() == nil {
			o.Log.Info("joining at the address that an operator has signed", "component", "app", "node", token.Node, "urls", hints)
			hinted := token
			hinted.URLs = hints
			err = enrol.Rejoin(ctx, hinted, o.StateDir, time.Now(), o.Log)
		}
		if !away(err) {
			return err
		}
		o.Log.Warn("cannot join yet; trying again", "component", "app", "node", token.Node, "in", wait, "err", err)
		if !pauseOr(ctx, wait, orders.hinted) {
			return muster.Errorf(muster.Interrupted, "stopped before this node could join: %w", err)
		}
	}
}

// keepsPolicy reports whether the file is there and is not what a token brings.
func keepsPolicy(file, brought string) bool {
	own, err := os.ReadFile(file)
	return brought != "" && !errors.Is(err, os.ErrNotExist) && string(own) != brought
}

// refused reports whether the broker is there and refuses the credentials of a
// node that has joined.
func refused(ctx context.Context, o AgentOptions, n config.NodeFolder) bool {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	dial, err := dialNode(o, n)
	if err != nil {
		return false
	}
	conn, err := dial(ctx)
	if err == nil {
		conn.Close()
	}
	return muster.KindOf(err) == muster.Denied
}

// dialNode returns what connects a node to its broker.
func dialNode(o AgentOptions, n config.NodeFolder) (func(context.Context) (*bus.Conn, error), error) {
	userJWT, seed, err := config.ParseCreds(n.Credentials)
	if err != nil {
		return nil, err
	}
	name := muster.NodeName(n.Node.Node)
	options := bus.Options{
		Name: "agent " + string(name), JWT: userJWT, Seed: string(seed.Reveal()),
		CA: n.CA, Prefix: n.Node.Prefix, Inbox: bus.NodeInbox(name), Log: o.Log,
		Mailbox: enrol.MailboxOf(userJWT, n.Node.Prefix, name),
	}
	return func(ctx context.Context) (*bus.Conn, error) {
		now := options
		now.URLs = brokerURLs(o, n.Node.URLs) // an Order may have changed them
		return bus.Dial(ctx, now)
	}, nil
}

// A gate dials less and less often once the broker refuses this node. It does
// not give up: whoever runs the fleet may let the node in again, and nobody may
// be near the machine to start its agent.
type gate struct {
	node    muster.NodeName
	dial    func(context.Context) (*bus.Conn, error)
	refused int // in a row
}

// The first refusals may be of a broker that has just started.
const (
	patientFor  = 3
	refusedWait = 15 * time.Second
	refusedMost = 5 * time.Minute
)

// wait is how long to wait before the next attempt.
func (g *gate) wait() time.Duration {
	if g.refused <= patientFor {
		return 0
	}
	return min(refusedWait<<min(g.refused-patientFor-1, 10), refusedMost)
}

// open dials. One goroutine at a time may call it.
func (g *gate) open(ctx context.Context) (*bus.Conn, error) {
	if wait := g.wait(); wait > 0 && !pause(ctx, wait) {
		return nil, ctx.Err()
	}
	conn, err := g.dial(ctx)
	if muster.KindOf(err) != muster.Denied {
		g.refused = 0
		return conn, err
	}
	g.refused++
	text := "%w; if this node was removed from the fleet, stop its agent, or invite it again with 'muster node invite %s' and start the agent with --join"
	if wait := g.wait(); wait > 0 {
		return nil, muster.Errorf(muster.Denied, text+"; the next attempt is in %s or more", err, g.node, wait)
	}
	return nil, muster.Errorf(muster.Denied, text, err, g.node)
}

// away reports whether an error says that nobody was there.
func away(err error) bool {
	kind := muster.KindOf(err)
	return kind == muster.Unavailable || kind == muster.TimedOut
}

// nodeFolder reads who this node is, from its folder and the options.
func nodeFolder(o AgentOptions) (config.NodeFolder, error) {
	n, err := config.OpenNode(o.StateDir)
	if muster.KindOf(err) == muster.NotFound && !config.NodeExists(o.StateDir) && o.BrokerURL != "" {
		n.Node.Prefix, err = bus.DefaultPrefix, nil
	}
	if err != nil {
		return n, err
	}
	n.Node.Node, n.Node.Fleet = cmp.Or(o.Node, n.Node.Node), cmp.Or(o.Fleet, n.Node.Fleet)
	if len(o.Issuers) > 0 {
		n.Node.Issuers = o.Issuers
	}
	if o.BrokerURL != "" {
		if err := config.ValidateURL(o.BrokerURL); err != nil {
			return n, err
		}
		n.Node.URLs = []string{o.BrokerURL}
	}
	if o.CredsFile != "" {
		if n.Credentials, err = config.ReadCreds(o.CredsFile); err != nil {
			return n, err
		}
	}
	if n.Node.Node == "" || n.Node.Fleet == "" || len(n.Node.Issuers) == 0 || n.Credentials.Empty() {
		return n, muster.Errorf(muster.Invalid, "an agent that has not joined needs a broker, credentials, node, fleet and issuer").
			WithHint("it is simpler to join: 'muster node invite NAME' makes a token")
	}
	return n, muster.NodeName(n.Node.Node).Validate()
}

func newAgent(ctx context.Context, o AgentOptions, n config.NodeFolder, orders *orders) (*agent.Agent, error) {
	verifier, err := aaa.NewVerifier(n.Node.Fleet, n.Node.Issuers...)
	if err != nil {
		return nil, err
	}
	dial, err := dialNode(o, n)
	if err != nil {
		return nil, err
	}
	name := muster.NodeName(n.Node.Node)
	entrance := &gate{node: name, dial: dial}
	version := cmp.Or(o.Version, buildVersion())
	gather := func(ctx context.Context) (map[string]any, []error) {
		return facts.Gather(ctx, facts.Options{Dir: o.FactsDir})
	}
	registry, plugins, err := newRegistry(ctx, o, name, version, gather)
	if err != nil {
		return nil, err
	}
	urls := brokerURLs(o, n.Node.URLs)
	if !slices.Equal(urls, n.Node.URLs) {
		o.Log.Info("the broker's addresses are those that an Order set", "component", "app", "urls", urls)
	}
	orders.dials(urls)
	policy := &policyFile{path: cmp.Or(o.PolicyFile, config.PolicyFile(o.StateDir)), log: o.Log}
	policy.current() // what is wrong with it is news now, not at the first command
	var once sync.Once
	return agent.New(agent.Options{
		Node: name, Fleet: n.Node.Fleet, Version: version,
		Dial:     entrance.open,
		StateDir: o.StateDir, Registry: registry, Plugins: plugins,
		Verifier: verifier, Policy: policy.current, Facts: gather, EndOrphans: methods.EndTagged,
		Heartbeat: o.Heartbeat, MaxOutput: o.MaxOutput, Log: o.Log,
		Problems: orders.problems, Again: orders.again, Redial: orders.redial, Tell: orders.tell,
		During: orders.during, Paused: orders.paused, Repause: orders.repause,
		Online: func(online bool) {
			orders.online(online)
			if online && o.Ready != nil {
				once.Do(o.Ready)
			}
		},
	})
}

// newRegistry makes the methods of this node. A plug-in that is wrong is left
// out and logged.
func newRegistry(ctx context.Context, o AgentOptions, node muster.NodeName, version string,
	gather func(context.Context) (map[string]any, []error),
) (*method.Registry, []method.Spec, error) {
	all := methods.Builtin(methods.Options{
		Hello: func() methods.Hello { return methods.Hello{Node: node, Version: version, Time: time.Now()} },
		Facts: func(ctx context.Context) (map[string]any, error) {
			found, errs := gather(ctx)
			for _, err := range errs {
				o.Log.Warn("a fact is missing", "component", "app", "err", err)
			}
			return found, ctx.Err()
		},
	})
	plugins, errs := methods.Plugins(ctx, o.MethodDirs, o.Log)
	for _, err := range errs {
		o.Log.Error("a method cannot be used", "component", "app", "err", err)
	}
	var specs []method.Spec
	for _, p := range plugins {
		specs = append(specs, p.Spec())
	}
	registry, err := method.NewRegistry(append(all, plugins...)...)
	return registry, specs, err
}

func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// appendTo opens a log.
func appendTo(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, muster.Errorf(muster.Unavailable, "open the log %s: %w", path, err)
	}
	return f, nil
}
