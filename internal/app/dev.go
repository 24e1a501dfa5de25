package app

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/constellation"
	"github.com/musterfleet/muster/internal/enrol"
)

// DevOptions configure a fleet on one machine.
type DevOptions struct {
	Nodes        int    // default 3
	Dir          string // all state; a second start finds it again
	Exe          string // muster itself; default this program
	Out          io.Writer
	RestartAfter time.Duration // of an agent that died; default 10 s
	ContextName  string        // default "dev"; current when no other one is
	Log          *slog.Logger
}

// devPolicy is what the nodes of a development fleet begin with.
const devPolicy = `# Of 'muster dev': whoever this fleet's issuer signed for may do everything.
rules:
  - name: development
    effect: allow
    methods: ["*"]
`

const (
	maxDevNodes = 100
	// orderEntries is how many nodes the others keep connections to for Orders:
	// on loopback nobody multicasts, and one node may be killed to try something.
	orderEntries = 3
	stopGrace    = 10 * time.Second // from SIGTERM to SIGKILL
)

// RunDev runs a whole fleet on this machine until ctx ends: the broker in this
// process, each agent in one of its own. The agents end with this process,
// however it ends.
func RunDev(ctx context.Context, o DevOptions) error {
	d, err := newDev(o)
	if err != nil {
		return err
	}
	unlock, err := config.LockFile(filepath.Join(d.o.Dir, "dev.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if err := d.prepare(); err != nil {
		return err
	}
	if err := d.makeConstellation(); err != nil {
		return err
	}
	// The broker outlives the agents, so that they can take their leave.
	brokerCtx, stopBroker := context.WithCancel(context.WithoutCancel(ctx))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		defer cancel()
		ended <- RunBroker(brokerCtx, BrokerOptions{Dir: d.fleetDir(), Log: d.o.Log}, func(BrokerInfo) { close(ready) })
	}()
	select {
	case <-ready:
		err = d.runNodes(ctx)
	case <-ctx.Done():
	}
	stopBroker()
	if brokerErr := <-ended; brokerErr != nil {
		return brokerErr
	}
	return err
}

// A dev is one development fleet.
type dev struct {
	o          DevOptions
	current    string     // another context that is the current one, "" if ours is
	orderPorts []int      // of the first nodes: where Orders come in
	mu         sync.Mutex // held to write to Out
}

func newDev(o DevOptions) (*dev, error) {
	o.Nodes, o.RestartAfter = cmp.Or(o.Nodes, 3), cmp.Or(o.RestartAfter, 10*time.Second)
	o.ContextName, o.Log = cmp.Or(o.ContextName, "dev"), orDiscard(o.Log)
	if o.Out == nil {
		o.Out = io.Discard
	}
	if o.Nodes < 1 || o.Nodes > maxDevNodes {
		return nil, muster.Errorf(muster.Invalid, "%d nodes cannot be run; expected 1 to %d", o.Nodes, maxDevNodes)
	}
	var err error
	if o.Exe == "" {
		if o.Exe, err = os.Executable(); err != nil {
			return nil, muster.Errorf(muster.Unavailable, "find this program: %w", err)
		}
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, muster.Errorf(muster.Invalid, "the folder %q: %w", o.Dir, err)
	}
	d := &dev{o: o}
	for range min(orderEntries, o.Nodes) {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		d.orderPorts = append(d.orderPorts, port)
	}
	return d, nil
}

func (d *dev) fleetDir() string          { return filepath.Join(d.o.Dir, "fleet") }
func (d *dev) constellationFile() string { return filepath.Join(d.o.Dir, "constellation.json") }
func (d *dev) operatorFile() string      { return filepath.Join(d.o.Dir, "operator.json") }
func (d *dev) nodeName(k int) string     { return fmt.Sprintf("node%d", k) }
func (d *dev) nodeDir(k int) string      { return filepath.Join(d.o.Dir, "nodes", d.nodeName(k)) }
func (d *dev) print(f string, a ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, _ = fmt.Fprintf(d.o.Out, f, a...) // for people; the fleet runs without
}

// prepare makes the fleet if there is none, and the context that leads to it.
func (d *dev) prepare() error {
	free, err := d.chosen()
	if err != nil {
		return err
	}
	if !config.FleetExists(d.fleetDir()) {
		port, err := freePort()
		if err != nil {
			return err
		}
		_, err = Init(InitOptions{Dir: d.fleetDir(), Name: "dev", Port: port, Context: d.o.ContextName, Replace: true, Aside: !free})
		return err
	}
	fleet, err := config.OpenFleet(d.fleetDir())
	if err != nil {
		return err
	}
	dir, err := config.ContextDir(d.o.ContextName)
	if err != nil {
		return err
	}
	if c, err := config.ReadContext(dir); err != nil || c.Fleet != fleet.Fleet.ID || !lasts(c) {
		err := AddOperator(OperatorOptions{Dir: d.fleetDir(), Name: cmp.Or(os.Getenv("USER"), "admin"), Groups: []string{"admin"}, Out: dir})
		if err != nil {
			return err
		}
	}
	if !free {
		return nil
	}
	return config.SetCurrent(d.o.ContextName)
}

// chosen finds out which context is the current one. It is free when there is
// none: one that the user has chosen, maybe of a real fleet, stays.
func (d *dev) chosen() (free bool, err error) {
	name, by, err := config.Chosen()
	if err != nil || name == "" {
		return true, err
	}
	all, err := config.Contexts()
	if err != nil {
		return false, err
	}
	if by != "MUSTER_CONTEXT" && !slices.Contains(all, name) { // it is gone
		return true, nil
	}
	if name != d.o.ContextName {
		d.current = name
	}
	return false, nil
}

// lasts reports whether a context's identity is good for another day.
func lasts(c config.Context) bool {
	id, err := aaa.ParseIdentity(c.Identity.Reveal())
	if err != nil {
		return false
	}
	claims, err := id.Claims()
	return err == nil && time.Now().Add(24*time.Hour).Before(claims.Expires)
}

// freePort finds a port of loopback that nobody uses now, over TCP or UDP. It is below
// those that systems choose from: one of those would go to the next connection of
// any program until it is used, and whenever the fleet does not run.
func freePort() (int, error) {
	const first, all, tries = 10_000, 20_000, 100
	var failed error
	for range tries {
		port := first + mathrand.IntN(all)
		if failed = unused(net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); failed == nil {
			return port, nil
		}
	}
	return 0, muster.Errorf(muster.Unavailable, "find a free port: %w", failed)
}

// unused returns an error if somebody listens at an address.
func unused(address string) error {
	tcp, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = tcp.Close() }() // it was not used
	udp, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	return udp.Close()
}

// runNodes joins and runs all agents until ctx ends.
func (d *dev) runNodes(ctx context.Context) error {
	for k := 1; k <= d.o.Nodes; k++ {
		if err := d.join(ctx, k); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	d.print("%-10s %-8s %s\n", "NODE", "PID", "FOLDER")
	for k := 1; k <= d.o.Nodes; k++ {
		c, err := d.start(ctx, k)
		if err != nil {
			return err
		}
		d.print("%-10s %-8d %s\n", d.nodeName(k), c.cmd.Process.Pid, d.nodeDir(k))
		running.Go(func() { d.supervise(ctx, k, c) })
	}
	d.tips()
	<-ctx.Done()
	return nil
}

// tips say what can be done with the fleet.
func (d *dev) tips() {
	context, muster := fmt.Sprintf("The context %q leads here.", d.o.ContextName), "muster"
	if d.current != "" {
		context = fmt.Sprintf("The context %q leads here; the current one is %q and stays that.", d.o.ContextName, d.current)
		muster += " --context " + d.o.ContextName
	}
	d.print(`
%s

Try, in another terminal:

  %[2]s node ls
  %[2]s run -t all -- uname -a
  %[2]s run -t role=web -- uptime

and without the broker:

  muster order neighbours --constellation %[3]s --peer 127.0.0.1:%[4]d

Ctrl-C ends it; the state stays in %[5]s.
`, context, muster, d.constellationFile(), d.orderPorts[0], d.o.Dir)
}

// orderFlags have a node take part in Orders, on loopback alone.
func (d *dev) orderFlags(k int) []string {
	flags := []string{"--constellation", d.constellationFile(), "--order-listen", "127.0.0.1"}
	for i, port := range d.orderPorts {
		if i+1 == k {
			flags = append(flags, "--order-port", strconv.Itoa(port))
		} else {
			flags = append(flags, "--order-peer", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		}
	}
	return flags
}

// makeConstellation makes the files of a constellation of this fleet's own.
func (d *dev) makeConstellation() error {
	_, err := os.Stat(d.constellationFile())
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	c, operator, err := constellation.Generate("dev", rand.Reader)
	if err != nil {
		return err
	}
	if err := operator.Write(d.operatorFile()); err != nil {
		return err
	}
	return c.Write(d.constellationFile()) // last: it stands for both
}

func (d *dev) join(ctx context.Context, k int) error {
	if config.NodeExists(d.nodeDir(k)) {
		return nil
	}
	role := "web"
	if k%2 == 0 {
		role = "db"
	}
	token, err := invite(ctx, InviteOptions{Dir: d.fleetDir(), Log: d.o.Log, Invitation: enrol.Invitation{
		Node: muster.NodeName(d.nodeName(k)), TTL: time.Hour, Policy: devPolicy, Labels: map[string]string{"role": role},
	}})
	if err != nil {
		return err
	}
	return enrol.Join(ctx, token, d.nodeDir(k), time.Now(), d.o.Log)
}

// A child is one agent process.
type child struct {
	cmd   *exec.Cmd
	alive *os.File // our end of the pipe by which it knows that we live
	log   *os.File
}

func (d *dev) start(ctx context.Context, k int) (*child, error) {
	log, err := appendTo(filepath.Join(d.nodeDir(k), "agent.log"))
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		_ = log.Close() // nothing was written
		return nil, muster.Errorf(muster.Unavailable, "start %s: %w", d.nodeName(k), err)
	}
	c := &child{alive: w, log: log}
	c.cmd = exec.CommandContext(ctx, d.o.Exe, append([]string{"agent", "--state", d.nodeDir(k)}, d.orderFlags(k)...)...)
	c.cmd.Stdout, c.cmd.Stderr = log, log
	c.cmd.ExtraFiles = []*os.File{r} // descriptor 3
	c.cmd.Env = append(d.environment(), ParentVariable+"=3")
	c.cmd.Cancel = func() error { return c.cmd.Process.Signal(syscall.SIGTERM) }
	c.cmd.WaitDelay = stopGrace
	ownGroup(c.cmd) // Ctrl-C is for us; we tell the children
	err = c.cmd.Start()
	_ = r.Close() // the child has its own
	if err != nil {
		c.close()
		return nil, muster.Errorf(muster.Unavailable, "start %s: %w", d.nodeName(k), err)
	}
	return c, nil
}

// environment is ours, but for the settings of this machine: those are of its
// own agent, and could lead these to another broker.
func (d *dev) environment() []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "MUSTER_") })
	return append(env, "MUSTER_CONFIG="+filepath.Join(d.o.Dir, "config"))
}

func (c *child) close() {
	_ = c.alive.Close() // nothing is written to it
	_ = c.log.Close()   // written by the child
}

// supervise waits for the child and starts it again, until ctx ends.
func (d *dev) supervise(ctx context.Context, k int, c *child) {
	for {
		var err error
		if c != nil {
			err = c.cmd.Wait()
			c.close()
		}
		if ctx.Err() != nil {
			return
		}
		d.print("%s ended (%v); it is started again in %s\n", d.nodeName(k), cmp.Or(err, errEnded), d.o.RestartAfter)
		if !pause(ctx, d.o.RestartAfter) {
			return
		}
		if c, err = d.start(ctx, k); err != nil {
			c = nil
			d.o.Log.Error("an agent does not start", "component", "app", "node", d.nodeName(k), "err", err)
			continue
		}
		d.print("%s started again, pid %d\n", d.nodeName(k), c.cmd.Process.Pid)
	}
}

var errEnded error = muster.Errorf(muster.Failed, "it stopped by itself")
