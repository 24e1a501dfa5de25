// Package lab runs a fleet of real processes on this machine: a broker and
// agents that can be killed, and links that can be cut. The demonstration, the
// fault campaign and the benchmarks share it.
package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
)

// A Lab is a fleet in one folder.
type Lab struct {
	Exe    string // the muster binary
	Dir    string
	Port   int // of the broker, on loopback
	Broker *Process
	Nodes  []*Node
	// Service stands beside a broker that is a nats-server; nil for one that is
	// muster's own.
	Service *Process
	// AgentArgs are further arguments of the agents that are added from now on.
	AgentArgs []string

	release func() // of the port
}

// A Node is an agent with a link of its own to the broker.
type Node struct {
	Name muster.NodeName
	Dir  string // of its state
	Link *Link
	*Process
}

// New makes the fleet's folder. Nothing runs yet.
func New(exe, dir string) (*Lab, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	port, release, err := Port()
	if err != nil {
		return nil, err
	}
	l := &Lab{Exe: exe, Dir: dir, Port: port, release: release}
	if out, err := l.Muster(context.Background(), "init", "--state", l.fleet(), "--port", fmt.Sprint(port), "--host", "127.0.0.1").CombinedOutput(); err != nil {
		release()
		return nil, fmt.Errorf("muster init: %w\n%s", err, out)
	}
	l.Broker = l.process("broker", "broker", "--state", l.fleet())
	return l, nil
}

// UseServer makes the broker a nats-server, and muster's part of it a process
// of its own. Nothing may run yet.
func (l *Lab) UseServer(exe string) error {
	conf, err := l.Muster(context.Background(), "broker", "config", "--state", l.fleet()).Output()
	if err != nil {
		return fmt.Errorf("muster broker config: %w", err)
	}
	file := filepath.Join(l.Dir, "nats-server.conf")
	if err := os.WriteFile(file, conf, 0o600); err != nil {
		return err
	}
	creds, err := filepath.Glob(filepath.Join(l.Dir, "config", "muster", "contexts", "*", "*.creds"))
	if err != nil || len(creds) != 1 {
		return fmt.Errorf("credentials of the context: %q, %w", creds, err)
	}
	l.Broker = l.process("nats-server", "-c", file)
	l.Broker.exe = exe
	l.Service = l.process("service", "broker", "--state", l.fleet(), "--broker", fmt.Sprintf("nats://127.0.0.1:%d", l.Port), "--creds", creds[0])
	return l.Service.Start()
}

// Outbox is the folder in which senders of this lab keep what they send, and
// nothing else.
func (l *Lab) Outbox() string { return filepath.Join(l.Dir, "state", "muster", "outbox") }

// Store is the folder in which the broker keeps messages.
func (l *Lab) Store() string { return filepath.Join(l.fleet(), "jetstream") }

func (l *Lab) fleet() string { return filepath.Join(l.Dir, "fleet") }

// Environment makes a process use the lab's folders and nothing else.
func (l *Lab) Environment() []string {
	keep := []string{"PATH=" + os.Getenv("PATH"), "NO_COLOR=1", "LANG=C.UTF-8"}
	return append(keep, "HOME="+l.Dir,
		"XDG_CONFIG_HOME="+filepath.Join(l.Dir, "config"), "XDG_STATE_HOME="+filepath.Join(l.Dir, "state"),
		"XDG_RUNTIME_DIR="+filepath.Join(l.Dir, "run"))
}

// Muster prepares a run of the program with the lab's context.
func (l *Lab) Muster(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, l.Exe, args...)
	cmd.Env = l.Environment()
	cmd.Dir = l.Dir
	return cmd
}

// AddNode invites a node, lets it join, and starts it.
func (l *Lab) AddNode(ctx context.Context, name muster.NodeName) (*Node, error) {
	link, err := NewLink(fmt.Sprintf("127.0.0.1:%d", l.Port))
	if err != nil {
		return nil, err
	}
	n := &Node{Name: name, Dir: filepath.Join(l.Dir, "nodes", string(name)), Link: link}
	invite := l.Muster(ctx, "node", "invite", string(name), "--state", l.fleet(), "--allow-all")
	var complaint bytes.Buffer
	invite.Stderr = &complaint
	token, err := invite.Output()
	if err != nil {
		return nil, fmt.Errorf("muster node invite: %w\n%s", err, complaint.Bytes())
	}
	n.Process = l.process(string(name), append([]string{"agent", "--state", n.Dir, "--join", "-", "--broker", "nats://" + link.Addr()}, l.AgentArgs...)...)
	n.Process.stdin = string(token)
	l.Nodes = append(l.Nodes, n)
	return n, n.Start()
}

// Client connects to the fleet as its operator, in this process.
func (l *Lab) Client(ctx context.Context) (*client.Client, error) {
	o, err := l.options()
	if err != nil {
		return nil, err
	}
	return client.Connect(ctx, o)
}

// Conn is the operator's bare connection to the broker.
func (l *Lab) Conn(ctx context.Context) (*bus.Conn, error) {
	o, err := l.options()
	if err != nil {
		return nil, err
	}
	userJWT, seed, err := config.ParseCreds(aaa.NewSecret(o.Credentials))
	if err != nil {
		return nil, err
	}
	conn, err := bus.Dial(ctx, bus.Options{URLs: o.URLs, CA: o.CA, Prefix: o.Prefix, JWT: userJWT, Seed: string(seed.Reveal())})
	if err != nil {
		return nil, err
	}
	if _, err := conn.Load(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// options are those of the fleet's operator, without an outbox.
func (l *Lab) options() (client.Options, error) {
	for _, kv := range l.Environment() {
		k, v, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(k, "XDG_") {
			if err := os.Setenv(k, v); err != nil {
				return client.Options{}, err
			}
		}
	}
	o, err := app.ClientOptions("")
	o.OutboxDir = ""
	return o, err
}

// Close ends everything that the lab started.
func (l *Lab) Close() error {
	defer l.release()
	var errs []error
	for _, n := range l.Nodes {
		errs = append(errs, n.Stop())
		n.Link.Close()
	}
	if l.Service != nil {
		errs = append(errs, l.Service.Stop())
	}
	return errors.Join(append(errs, l.Broker.Stop())...)
}

// A Process is a program that the lab runs again and again.
type Process struct {
	lab   *Lab
	name  string
	exe   string // empty for muster
	args  []string
	stdin string

	mu      sync.Mutex // guards the fields below
	cmd     *exec.Cmd
	done    chan struct{}
	crashes int
}

func (l *Lab) process(name string, args ...string) *Process {
	return &Process{lab: l, name: name, args: args}
}

// Log is the file that collects what the process prints.
func (p *Process) Log() string { return filepath.Join(p.lab.Dir, p.name+".log") }

// Start runs the process, unless it runs. One that has ended by itself is run
// again.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		select {
		case <-p.done:
			p.cmd = nil
			p.crashes++
		default:
			return nil
		}
	}
	log, err := os.OpenFile(p.Log(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := p.lab.Muster(context.Background(), p.args...)
	if p.exe != "" {
		cmd.Path = p.exe
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(p.stdin), log, log
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	p.cmd, p.done = cmd, done
	go func() {
		_ = cmd.Wait() // killed, mostly
		close(done)
	}()
	return nil
}

// Crashes returns how often Start found that the process had ended by itself.
func (p *Process) Crashes() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.crashes
}

// PID returns the process id, 0 when it does not run.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// patience is how long a process may take to end: far more than it needs, since
// another machine may be slower, or busy.
const patience = 5 * time.Minute

// Kill ends the process with SIGKILL and waits for its end.
func (p *Process) Kill() error { return p.end(syscall.SIGKILL) }

// Stop asks the process to end, and kills it when it does not.
func (p *Process) Stop() error { return p.end(syscall.SIGTERM) }

func (p *Process) end(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return nil
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	var err error
	select {
	case <-p.done:
	case <-timer.C:
		err = fmt.Errorf("%s did not end within %s after %s", p.name, patience, sig)
		_ = p.cmd.Process.Kill() // it may have ended this moment
		<-p.done
	}
	p.cmd = nil
	return err
}

// A Link is a wire to the broker: a proxy on loopback that can be cut and can
// delay.
type Link struct {
	target   string
	listener net.Listener
	wg       sync.WaitGroup

	mu    sync.Mutex // guards the fields below
	cut   bool
	delay time.Duration // each way
	conns map[net.Conn]bool
}

// NewLink listens for one node.
func NewLink(target string) (*Link, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &Link{target: target, listener: ln, conns: make(map[net.Conn]bool)}
	l.wg.Go(l.accept)
	return l, nil
}

// Addr is where the node finds the link.
func (l *Link) Addr() string { return l.listener.Addr().String() }

// SetDelay delays what is sent from now on, each way.
func (l *Link) SetDelay(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay = d
}

// Cut breaks all connections and refuses new ones, until Heal.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
	for c := range l.conns {
		c.Close()
	}
}

// Heal lets connections through again.
func (l *Link) Heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = false
}

// Close ends the link.
func (l *Link) Close() {
	l.listener.Close()
	l.Cut()
	l.wg.Wait()
}

func (l *Link) accept() {
	for {
		c, err := l.listener.Accept()
		if err != nil {
			return
		}
		l.wg.Go(func() { l.join(c) })
	}
}

// join copies both ways until one side ends.
func (l *Link) join(node net.Conn) {
	defer node.Close()
	if !l.register(node) {
		return
	}
	defer l.forget(node)
	server, err := net.Dial("tcp", l.target)
	if err != nil {
		return
	}
	defer server.Close()
	if !l.register(server) {
		return
	}
	defer l.forget(server)
	var wg sync.WaitGroup
	wg.Go(func() { l.copy(server, node) })
	wg.Go(func() { l.copy(node, server) })
	wg.Wait()
}

func (l *Link) register(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		return false
	}
	l.conns[c] = true
	return true
}

func (l *Link) forget(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

// A parcel is what was read, and when it may be written.
type parcel struct {
	data []byte
	due  time.Time
}

// copy moves bytes with the link's delay, in order. Reading does not wait for
// writing, as on a long wire.
func (l *Link) copy(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	parcels := make(chan parcel, 4096)
	var wg sync.WaitGroup
	wg.Go(func() {
		for p := range parcels {
			time.Sleep(time.Until(p.due)) // the delay of the wire
			if _, err := to.Write(p.data); err != nil {
				from.Close()
			}
		}
	})
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			l.mu.Lock()
			due := time.Now().Add(l.delay)
			l.mu.Unlock()
			parcels <- parcel{bytes.Clone(buf[:n]), due}
		}
		if err != nil {
			break
		}
	}
	close(parcels)
	wg.Wait()
}
