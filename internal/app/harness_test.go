package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/broker"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/enrol"
	"github.com/musterfleet/muster/test/lab"
)

// patience is how long a test waits for what has to come: long enough for a machine
// that is busy with other things.
const patience = time.Minute

// A carrier is a way in which messages travel between the parts of muster.
type carrier struct {
	name      string
	inProcess bool // nodes and operators need no socket
	tls       bool
	servers   int // nats-servers of their own, in a cluster if several; 0 for the embedded broker
}

var carriers = []carrier{
	{name: "in process", inProcess: true},
	{name: "tcp"},
	{name: "tls", tls: true},
	{name: "server", tls: true, servers: 1},
	{name: "cluster", tls: true, servers: 3},
}

// A fleet is a running one.
type fleet struct {
	t *testing.T
	*world
}

// A world is the carrier of a fleet and the service that admits nodes.
type world struct {
	carrier
	top      *testing.T // what is started again outlives a promise
	dir      string
	ports    []int
	routes   []int          // ports of the cluster
	broker   *broker.Broker // in process
	nodes    []*server      // of the cluster, or the only one
	service  *daemon        // beside a server of its own
	embedded *daemon        // the embedded broker with its service
}

// A daemon is a part of muster that runs until it is told to stop.
type daemon struct {
	stop  context.CancelFunc
	ready chan struct{}
	ended chan error
}

func startDaemon(t *testing.T, run func(ctx context.Context, ready func()) error) *daemon {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	d := &daemon{cancel, make(chan struct{}), make(chan error, 1)}
	go func() { d.ended <- run(ctx, func() { close(d.ready) }) }()
	t.Cleanup(func() { d.end(t) })
	select {
	case <-d.ready:
	case err := <-d.ended:
		d.ended <- nil
		t.Fatal(err)
	case <-time.After(3 * patience): // a cluster needs its time
		t.Fatal("the fleet does not start")
	}
	return d
}

// end can be called again.
func (d *daemon) end(t *testing.T) {
	d.stop()
	if err := <-d.ended; err != nil {
		t.Error(err)
	}
	d.ended <- nil
}

// startFleet makes a fleet and starts it over the carrier.
func startFleet(t *testing.T, c carrier) fleet {
	t.Helper()
	t.Setenv("MUSTER_CONFIG", t.TempDir())
	t.Setenv("MUSTER_CONTEXT", "")
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	f := fleet{t, &world{carrier: c, top: t, dir: filepath.Join(t.TempDir(), "fleet")}}
	for range max(c.servers, 1) {
		f.ports = append(f.ports, freePort(t))
	}
	f.make()
	for i := range c.servers {
		f.nodes = append(f.nodes, newServer(t, f.world, i))
	}
	f.start()
	return f
}

// make makes the fleet's folder, whose addresses are the carrier's.
func (f fleet) make() {
	f.t.Helper()
	o := app.InitOptions{Dir: f.dir, Hosts: []string{"127.0.0.1"}, Port: f.ports[0]}
	if f.tls {
		o.Hosts = append(o.Hosts, "broker.test")
	}
	made, err := app.Init(o)
	if err != nil {
		f.t.Fatal(err)
	}
	file := filepath.Join(f.dir, "fleet.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		f.t.Fatal(err)
	}
	var kept []string
	for line := range strings.Lines(string(text)) {
		first := fmt.Sprintf("127.0.0.1:%d", f.ports[0])
		switch {
		case strings.Contains(line, "broker.test"): // it does not exist
		case strings.Contains(line, first):
			for _, port := range f.ports {
				kept = append(kept, strings.Replace(line, first, fmt.Sprintf("127.0.0.1:%d", port), 1))
			}
		default:
			kept = append(kept, line)
		}
	}
	if err := os.WriteFile(file, []byte(strings.Join(kept, "")), 0o600); err != nil {
		f.t.Fatal(err)
	}
	// Again, with these addresses.
	if err := app.AddOperator(app.OperatorOptions{Dir: f.dir, Name: made.Caller, Groups: []string{"admin"}, Out: made.ContextDir}); err != nil {
		f.t.Fatal(err)
	}
}

// start starts what was stopped, or never ran.
func (f fleet) start() {
	f.t.Helper()
	listen := fmt.Sprintf("127.0.0.1:%d", f.ports[0])
	for _, s := range f.nodes {
		s.start(f.t)
	}
	if f.inProcess {
		var err error
		if f.broker, err = app.StartBroker(f.t.Context(), f.dir, listen); err != nil {
			f.t.Fatal(err)
		}
		f.t.Cleanup(f.broker.Stop)
	}
	if f.service != nil {
		return // it waits for its server
	}
	replicas := min(f.servers, 3)
	log := slog.New(slog.NewTextHandler(f.t.Output(), nil))
	service := startDaemon(f.t, func(ctx context.Context, ready func()) error {
		if f.inProcess || f.servers > 0 {
			return app.RunService(ctx, app.ServiceOptions{Dir: f.dir, Replicas: replicas, Log: log}, ready)
		}
		return app.RunBroker(ctx, app.BrokerOptions{Dir: f.dir, Listen: listen, Log: log}, func(app.BrokerInfo) { ready() })
	})
	if f.inProcess || f.servers > 0 {
		f.service = service
	} else {
		f.embedded = service
	}
}

// restart stops what carries the messages, without a warning where it is a
// process, and starts it again. A service beside it goes on.
func (f fleet) restart() {
	f.t.Helper()
	switch {
	case f.inProcess:
		f.broker.Stop()
	case f.servers > 0:
		for _, s := range f.nodes {
			s.kill(f.t)
		}
	default:
		f.embedded.end(f.t)
	}
	fleet{f.top, f.world}.start()
}

// until tries again until it works.
func (f fleet) until(what string, try func() error) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 2*patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			f.t.Fatalf("%s: %v", what, err)
		}
	}
}

// serverDir is where server builds.
var serverDir string

var buildServer = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "muster-test-")
	if err != nil {
		return "", err
	}
	serverDir = dir
	exe := filepath.Join(dir, "nats-server")
	out, err := exec.Command("go", "build", "-o", exe, "github.com/nats-io/nats-server/v2").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return exe, nil
})

// A server is a nats-server with the configuration of the fleet.
type server struct {
	name string // in the cluster
	file string // its configuration
	cmd  *exec.Cmd
	log  strings.Builder
}

// newServer configures number i of the world's servers.
func newServer(t *testing.T, w *world, i int) *server {
	t.Helper()
	text, err := app.ServerConfig(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{name: fmt.Sprint("server-", i), file: filepath.Join(t.TempDir(), "nats.conf")}
	var own []string
	for line := range strings.Lines(string(text)) {
		switch key, _, _ := strings.Cut(strings.TrimSpace(line), ":"); key {
		case "server_name":
			line = fmt.Sprintf("server_name: %q\n", s.name)
		case "listen":
			line = fmt.Sprintf("listen: \"127.0.0.1:%d\"\n", w.ports[i])
		case "store_dir":
			line = fmt.Sprintf("store_dir: %q\n", filepath.Join(t.TempDir(), "jetstream"))
		case "dir":
			line = fmt.Sprintf("dir: %q\n", filepath.Join(t.TempDir(), "accounts"))
		}
		own = append(own, line)
	}
	if w.servers > 1 {
		own = append(own, w.clusterConfig(t, i))
	}
	if err := os.WriteFile(s.file, []byte(strings.Join(own, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.end(syscall.SIGTERM)
		if t.Failed() {
			t.Log(s.log.String())
		}
	})
	return s
}

// clusterConfig joins server i with the others.
func (w *world) clusterConfig(t *testing.T, i int) string {
	t.Helper()
	for len(w.routes) < w.servers {
		w.routes = append(w.routes, freePort(t))
	}
	var routes []string
	for _, port := range w.routes {
		routes = append(routes, fmt.Sprintf("\"nats://127.0.0.1:%d\"", port))
	}
	return fmt.Sprintf("cluster {\n  name: test\n  listen: \"127.0.0.1:%d\"\n  routes: [%s]\n}\n", w.routes[i], strings.Join(routes, ", "))
}

func (s *server) start(t *testing.T) {
	t.Helper()
	exe, err := buildServer()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd = exec.Command(exe, "-c", s.file)
	s.cmd.Stderr = &s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// kill ends the server without a warning.
func (s *server) kill(t *testing.T) {
	t.Helper()
	s.end(syscall.SIGKILL)
}

// end can be called again.
func (s *server) end(signal syscall.Signal) {
	if s.cmd != nil {
		_ = s.cmd.Process.Signal(signal) // it may have ended
		_ = s.cmd.Wait()                 // how it ends is of no interest
		s.cmd = nil
	}
}

// TestMain is also the program that RunDev starts, as an agent.
func TestMain(m *testing.M) {
	if len(os.Args) >= 4 && os.Args[1] == "agent" { // --state DIR, and flags for Orders, which these tests leave out
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		err := app.RunAgent(ctx, app.AgentOptions{StateDir: os.Args[3], Log: log})
		if err != nil {
			log.Error("agent", "err", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if serverDir != "" {
		_ = os.RemoveAll(serverDir) // the system cleans it up otherwise
	}
	os.Exit(code)
}

// freePort returns a port of loopback that is free for TCP and UDP, and the test's
// until it ends.
func freePort(t *testing.T) int {
	t.Helper()
	port, release, err := lab.Port()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return port
}

func (f fleet) ctx() context.Context {
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	f.t.Cleanup(cancel)
	return ctx
}

func invitation(f fleet, node muster.NodeName) app.InviteOptions {
	return app.InviteOptions{Dir: f.dir, Invitation: enrol.Invitation{Node: node, Labels: map[string]string{"k": "v"}}}
}

func (f fleet) invite(node muster.NodeName) aaa.Token {
	f.t.Helper()
	var text string
	err := f.available(func() (err error) { text, err = app.Invite(f.ctx(), invitation(f, node)); return err })
	if err != nil {
		f.t.Fatal(err)
	}
	token, err := aaa.ParseToken(text)
	if err != nil {
		f.t.Fatal(err)
	}
	return token
}

func (f fleet) joinWith(text, dir string) error {
	token, err := aaa.ParseToken(text)
	if err != nil {
		return err
	}
	return f.join(token, dir)
}

func (f fleet) join(token aaa.Token, dir string) error {
	return f.available(func() error { return enrol.Join(f.ctx(), token, dir, time.Now(), nil) })
}

// available tries again what is unavailable, as users do, and agents that join: a
// cluster on a busy machine chooses leaders now and then.
func (f fleet) available(try func() error) (err error) {
	f.t.Helper()
	f.until("an answer", func() error {
		if err = try(); muster.KindOf(err) == muster.Unavailable {
			return err
		}
		return nil
	})
	return err
}

// dial connects as a node, and passes on what the broker complains of.
func (f fleet) dial(dir string) (*bus.Conn, complaints, error) {
	n, err := config.OpenNode(dir)
	if err != nil {
		f.t.Fatal(err)
	}
	userJWT, seed, err := config.ParseCreds(n.Credentials)
	if err != nil {
		f.t.Fatal(err)
	}
	heard := make(complaints, 100)
	conn, err := bus.Dial(f.ctx(), bus.Options{
		InProcess: f.provider(), URLs: n.Node.URLs, JWT: userJWT, Seed: string(seed.Reveal()), CA: n.CA, Prefix: n.Node.Prefix,
		Inbox: bus.NodeInbox(muster.NodeName(n.Node.Node)), Log: slog.New(heard),
		Mailbox: enrol.MailboxOf(userJWT, n.Node.Prefix, muster.NodeName(n.Node.Node)),
	})
	if err == nil {
		f.t.Cleanup(conn.Close)
	}
	return conn, heard, err
}

// provider is nil unless the carrier is within the process.
func (f fleet) provider() nats.InProcessConnProvider {
	if f.inProcess {
		return f.broker
	}
	return nil
}

// node joins as a new node and connects.
func (f fleet) node(name muster.NodeName) *bus.Conn {
	f.t.Helper()
	dir := filepath.Join(f.t.TempDir(), "node")
	if err := f.join(f.invite(name), dir); err != nil {
		f.t.Fatal(err)
	}
	var conn *bus.Conn
	err := f.available(func() (err error) {
		if conn, _, err = f.dial(dir); err == nil {
			_, err = conn.Load(f.ctx())
		}
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return conn
}

// operator connects as one.
func (f fleet) operator() *bus.Conn {
	f.t.Helper()
	var conn *bus.Conn
	err := f.available(func() (err error) { conn, err = f.tryOperator(); return err })
	if err != nil {
		f.t.Fatal(err)
	}
	return conn
}

func (f fleet) tryOperator() (*bus.Conn, error) {
	f.t.Helper()
	c, err := config.OpenContext("")
	if err != nil {
		f.t.Fatal(err)
	}
	userJWT, seed, err := config.ParseCreds(c.Credentials)
	if err != nil {
		f.t.Fatal(err)
	}
	ff, err := config.OpenFleet(f.dir)
	if err != nil {
		f.t.Fatal(err)
	}
	conn, err := bus.Dial(f.ctx(), bus.Options{InProcess: f.provider(), URLs: ff.Fleet.URLs, JWT: userJWT, Seed: string(seed.Reveal()), CA: c.CA, Prefix: c.Prefix})
	if err != nil {
		return nil, err
	}
	f.t.Cleanup(conn.Close)
	_, err = conn.Load(f.ctx())
	return conn, err
}

// complaints is a log handler that keeps the errors.
type complaints chan string

func (c complaints) Enabled(context.Context, slog.Level) bool { return true }
func (c complaints) WithAttrs([]slog.Attr) slog.Handler       { return c }
func (c complaints) WithGroup(string) slog.Handler            { return c }
func (c complaints) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "err" {
			c <- fmt.Sprint(a.Value.Any())
		}
		return true
	})
	return nil
}

// expect waits for the complaint about a subject.
func (c complaints) expect(t *testing.T, what, subject string) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case text := <-c:
			if strings.Contains(strings.ToLower(text), "permissions violation") && strings.Contains(text, `"`+subject+`"`) {
				return
			}
		case <-timer.C:
			t.Errorf("%s %s: nothing refused it", what, subject)
			return
		}
	}
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
