package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/enrol"
)

const patience = 20 * time.Second

// A fleet is a running one, with TLS.
type fleet struct {
	t   *testing.T
	dir string
}

// onBoth runs a test against the embedded broker and a separate nats-server.
func onBoth(t *testing.T, test func(t *testing.T, f fleet)) {
	t.Run("embedded", func(t *testing.T) { test(t, startFleet(t, false)) })
	t.Run("separate", func(t *testing.T) {
		if testing.Short() {
			t.Skip("builds a nats-server; -short")
		}
		test(t, startFleet(t, true))
	})
}

func startFleet(t *testing.T, separate bool) fleet {
	t.Helper()
	t.Setenv("MUSTER_CONFIG", t.TempDir())
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	f := fleet{t, filepath.Join(t.TempDir(), "fleet")}
	if _, err := app.Init(app.InitOptions{Dir: f.dir, Hosts: []string{"127.0.0.1", "broker.test"}, Port: freePort(t)}); err != nil {
		t.Fatal(err)
	}
	// Only the first address exists.
	file := filepath.Join(f.dir, "fleet.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, "broker.test") {
			kept = append(kept, line)
		}
	}
	if err := os.WriteFile(file, []byte(strings.Join(kept, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	if separate {
		startServer(t, f.dir)
		go func() {
			ended <- app.RunService(ctx, app.ServiceOptions{Dir: f.dir}, func() { close(ready) })
		}()
	} else {
		go func() {
			listen := "" // what fleet.yaml says, but on loopback alone
			if ff, err := config.OpenFleet(f.dir); err == nil {
				listen = strings.TrimPrefix(ff.Fleet.URLs[0], "tls://")
			}
			ended <- app.RunBroker(ctx, app.BrokerOptions{Dir: f.dir, Listen: listen}, func(app.BrokerInfo) { close(ready) })
		}()
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	case <-time.After(patience):
		t.Fatal("the fleet does not start")
	}
	return f
}

// serverDir is where server builds.
var serverDir string

var server = sync.OnceValues(func() (string, error) {
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

// startServer runs a nats-server with the configuration of the fleet.
func startServer(t *testing.T, dir string) {
	t.Helper()
	exe, err := server()
	if err != nil {
		t.Fatal(err)
	}
	text, err := app.ServerConfig(dir)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), "0.0.0.0", "127.0.0.1", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-c", file)
	var log strings.Builder
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
}

// TestMain is also the program that RunDev starts, as an agent.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "agent" {
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

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (f fleet) ctx() context.Context {
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	f.t.Cleanup(cancel)
	return ctx
}

func (f fleet) invite(node muster.NodeName) aaa.Token {
	f.t.Helper()
	text, err := app.Invite(f.ctx(), app.InviteOptions{Dir: f.dir, Invitation: enrol.Invitation{Node: node, Labels: map[string]string{"k": "v"}}})
	if err != nil {
		f.t.Fatal(err)
	}
	token, err := aaa.ParseToken(text)
	if err != nil {
		f.t.Fatal(err)
	}
	return token
}

func (f fleet) join(token aaa.Token, dir string) error {
	return enrol.Join(f.ctx(), token, dir, time.Now(), nil)
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
		URLs: n.Node.URLs, JWT: userJWT, Seed: string(seed.Reveal()), CA: n.CA, Prefix: n.Node.Prefix,
		Inbox: bus.NodeInbox(muster.NodeName(n.Node.Node)), API: bus.NodeAPI, Log: slog.New(heard),
	})
	if err == nil {
		f.t.Cleanup(conn.Close)
	}
	return conn, heard, err
}

// operator connects as one.
func (f fleet) operator() *bus.Conn {
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
	conn, err := bus.Dial(f.ctx(), bus.Options{URLs: ff.Fleet.URLs, JWT: userJWT, Seed: string(seed.Reveal()), CA: c.CA, Prefix: c.Prefix})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(conn.Close)
	if _, err := conn.Load(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
	return conn
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
	timer := time.NewTimer(5 * time.Second)
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
