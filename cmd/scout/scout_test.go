package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/musterfleet/muster/internal/constellation"
	"github.com/musterfleet/muster/internal/lan"
	"github.com/musterfleet/muster/internal/methods/onsite"
	"github.com/musterfleet/muster/internal/order"
	"github.com/musterfleet/muster/internal/participant"
	"github.com/musterfleet/muster/internal/seal"
)

// asScout has this test's program be scout.
const asScout = "MUSTER_TEST_AS_SCOUT"

func TestMain(m *testing.M) {
	if os.Getenv(asScout) != "" {
		main()
	}
	os.Exit(m.Run())
}

func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asScout+"=1", constellation.Variable+"=")
	return cmd
}

// A world is a constellation with scouts on loopback.
type world struct {
	t        *testing.T
	dir      string
	c        constellation.Constellation
	operator constellation.Operator
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("signals")
	}
	w := &world{t: t, dir: t.TempDir()}
	var err error
	if w.c, w.operator, err = constellation.Generate("test", rand.Reader); err != nil {
		t.Fatal(err)
	}
	if err := w.c.Write(w.file()); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) file() string { return filepath.Join(w.dir, "c.json") }

// lastPort is the last that freePort returned.
var lastPort atomic.Int32

// freePort returns a port of loopback that is free for UDP and TCP. It is below
// those that systems choose from, and not from the numbers that tests of other
// packages use: so nobody takes it before it is used, or while it is free again.
func freePort(t *testing.T) int {
	t.Helper()
	const first, all = 15_000, 5_000
	lastPort.CompareAndSwap(0, int32(os.Getpid()))
	for range all {
		port := first + int(lastPort.Add(1))%all
		address := "127.0.0.1:" + strconv.Itoa(port)
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		_ = l.Close() // it was not used
		if u, err := net.ListenPacket("udp", address); err == nil {
			_ = u.Close() // nor was this
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// A scout is a process.
type scout struct {
	*exec.Cmd
	port int
	log  *bytes.Buffer
	wait func() error
}

func (w *world) start(name string, port int, peers ...int) *scout {
	w.t.Helper()
	args := []string{"--constellation", w.file(), "--name", name, "--listen", "127.0.0.1", "--port", strconv.Itoa(port),
		"--state", filepath.Join(w.dir, name), "--lock-dir", filepath.Join(w.dir, name, "lock"), "--label", "role=" + name}
	for _, p := range peers {
		args = append(args, "--peer", "127.0.0.1:"+strconv.Itoa(p))
	}
	s := &scout{Cmd: command(w.t, args...), port: port, log: &bytes.Buffer{}}
	s.Stderr = s.log
	if err := s.Start(); err != nil {
		w.t.Fatal(err)
	}
	s.wait = sync.OnceValue(s.Wait)
	w.t.Cleanup(func() {
		_ = s.Process.Kill() // it may have ended
		_ = s.wait()
		if w.t.Failed() {
			w.t.Logf("%s:\n%s", name, s.log)
		}
	})
	return s
}

// operate makes an operator that enters by the ports.
func (w *world) operate(ports ...int) *participant.Operator {
	w.t.Helper()
	box, err := seal.New(w.c.Key, w.c.Secret.Reveal(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	var peers []string
	for _, p := range ports {
		peers = append(peers, "127.0.0.1:"+strconv.Itoa(p))
	}
	network, err := participant.OpenLAN(lan.Options{Box: box, Host: "127.0.0.1", Unicast: true, Peers: peers})
	if err != nil {
		w.t.Fatal(err)
	}
	cfg := order.Config{Name: "operator", Cluster: w.c.Key, Operators: w.c.Operators, TCPPort: uint16(network.Port())}
	_, _ = rand.Read(cfg.ID[:])
	_, _ = rand.Read(cfg.Seed[:])
	o, err := participant.NewOperator(participant.OperatorOptions{Config: cfg, Key: w.operator.PrivateKey(), Carriers: []participant.Carrier{network}})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := o.Run(ctx); err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(func() { cancel(); running.Wait() })
	return o
}

const patience = time.Minute

// called calls until as many members join, since scouts find one another in the
// course of time.
func (w *world) called(o *participant.Operator, members int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	if err := o.Entry(ctx); err != nil {
		w.t.Fatal(err)
	}
	for {
		h, err := o.Call(ctx, participant.CallOptions{CallOptions: order.CallOptions{Lease: 30 * time.Second}})
		if err == nil && len(h.Members) == members {
			return
		}
		if err == nil {
			_, err = o.Release(ctx)
		}
		if ctx.Err() != nil {
			w.t.Fatalf("after %s there are %d members, want %d: %v", patience, len(h.Members), members, err)
		}
		time.Sleep(50 * time.Millisecond) // an operator may call twice a second
	}
}

// run has all members print something, and returns who did.
func (w *world) run(o *participant.Operator) []string {
	w.t.Helper()
	var names []string
	_, err := o.Query(w.t.Context(), participant.Query{Method: "script", Args: onsite.Script{Argv: []string{"echo", "hello"}}.Encode()}, func(a participant.Answer) {
		answer, err := onsite.DecodeAnswer(a.Data)
		if err != nil {
			w.t.Error(err)
			return
		}
		if out, err := onsite.DecodeOutput(answer.Result); err != nil || string(out.Stdout) != "hello\n" {
			w.t.Errorf("%s: %+v, %v", answer.Node, out, err)
		}
		names = append(names, answer.Node)
	})
	if err != nil {
		w.t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

func TestTheEntryIsKilledAndAnotherServes(t *testing.T) {
	w := newWorld(t)
	a, b := freePort(t), freePort(t)
	first := w.start("a", a, b)
	w.start("b", b, a)
	w.start("c", freePort(t), a, b)
	o := w.operate(a)
	w.called(o, 3)
	if names := w.run(o); !slices.Equal(names, []string{"a", "b", "c"}) {
		t.Fatalf("%v answered", names)
	}
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.wait() // it was killed
	// The first operator's way in is gone with the entry. Its Order ends with the
	// leases; a stranger to it gets in by b, and is told that b and c are taken.
	other := w.operate(b)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := other.Entry(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Call(ctx, participant.CallOptions{}); err == nil {
		t.Fatal("two Orders hold the same machines")
	}
	first = w.start("a", a, b)
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if names := w.run(o); slices.Equal(names, []string{"a", "b", "c"}) {
			break // its lock was kept, and the operator found it again
		}
		if time.Now().After(end) {
			t.Fatal("a does not come back into its Order")
		}
	}
	if _, err := o.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.called(other, 3)
	if err := first.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := first.wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

func TestGarbageLeavesAScoutDeafToNobody(t *testing.T) {
	w := newWorld(t)
	port := freePort(t)
	s := w.start("a", port)
	address := "127.0.0.1:" + strconv.Itoa(port)
	o := w.operate(port)
	w.called(o, 1)
	garbage := [][]byte{{0x01, 0xff}, {0x00}, {0x00, 0xff}, {0x00, 0x2b, 0x83}, bytes.Repeat([]byte{0xff}, 1400), {0x9f, 0x9f, 0x9f}, {0x01, 0x01, 0x01}}
	u, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for range 200 {
		for _, g := range garbage {
			if _, err := u.Write(g); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, g := range garbage {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(g) // it may be closed at once, which is as good
		_ = c.Close()
	}
	if names := w.run(o); !slices.Equal(names, []string{"a"}) {
		t.Errorf("%v answered", names)
	}
	if _, err := o.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.called(w.operate(port), 1)
	if s.ProcessState != nil {
		t.Error("the scout has ended")
	}
}

func TestArguments(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--version"}, 0, "scout "},
		{[]string{"--help"}, 0, "--constellation FILE"},
		{[]string{"--name", "x", "--constellation", "/nowhere.json"}, 1, "/nowhere.json"},
		{[]string{"--name", "x"}, 1, "hint: name its file"},
		{[]string{"--frob"}, 2, `unknown argument "--frob"`},
		{[]string{"--port"}, 2, "--port needs a value"},
		{[]string{"--port=abc"}, 2, `--port "abc"`},
		{[]string{"--label", "x"}, 2, "KEY=VALUE"},
		{[]string{"--allow", "status,reboot"}, 2, `no method "reboot"`},
		{[]string{"--name", "a b"}, 2, "a b"},
	} {
		cmd := command(t, c.args...)
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(string(out), c.says) {
			t.Errorf("scout %q: exit code %d, %v, %s", c.args, code, err, out)
		}
	}
}
