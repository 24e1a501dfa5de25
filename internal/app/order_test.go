package app_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/constellation"
	"github.com/musterfleet/muster/internal/lan"
	"github.com/musterfleet/muster/internal/methods/onsite"
	"github.com/musterfleet/muster/internal/order"
	"github.com/musterfleet/muster/internal/participant"
	"github.com/musterfleet/muster/internal/seal"
)

// TestTheBrokerIsAwayAndAnOrderTellsWhereItIs: a node whose broker has moved is
// found without it, told the new address, dials it, and publishes what was done.
func TestTheBrokerIsAwayAndAnOrderTellsWhereItIs(t *testing.T) {
	f := startFleet(t, carrier{})
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	dir := filepath.Join(t.TempDir(), "n1")
	if err := f.join(f.invite("n1"), dir); err != nil {
		t.Fatal(err)
	}
	n, err := config.OpenNode(dir)
	if err != nil {
		t.Fatal(err)
	}
	right := n.Node.URLs
	n.Node.URLs = []string{"tls://127.0.0.1:" + strconv.Itoa(freePort(t))}
	if err := config.WriteNode(dir, n); err != nil {
		t.Fatal(err)
	}
	c, key, err := constellation.Generate("test", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Write(filepath.Join(dir, "constellation.json")); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	ctx, cancel := context.WithCancel(t.Context())
	connected := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		err := app.RunAgent(ctx, app.AgentOptions{StateDir: dir, Ready: func() { close(connected) }, Order: app.OrderOptions{Listen: "127.0.0.1", Port: port}})
		if err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })

	o := operate(t, c, key, port)
	if err := o.Entry(f.ctx()); err != nil {
		t.Fatal(err)
	}
	if h, err := o.Call(f.ctx(), participant.CallOptions{}); err != nil || len(h.Members) != 1 {
		t.Fatalf("%+v, %v", h, err)
	}
	select {
	case <-connected:
		t.Fatal("the node is connected to a broker that is not there")
	default:
	}
	_, err = o.Query(f.ctx(), participant.Query{Method: "broker", Args: onsite.Broker{URLs: right}.Encode()}, func(a participant.Answer) {
		if answer, err := onsite.DecodeAnswer(a.Data); err != nil || a.Code != order.OK {
			t.Errorf("%+v, %v", answer, err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-connected:
	case <-time.After(patience):
		t.Fatal("the node does not dial the address that it was told")
	}
	conn := f.operator()
	await(t, "event of what was done", func() bool {
		last, err := conn.Last(f.ctx(), bus.StreamHistory, conn.Subjects().Event("order", "n1"))
		return err == nil && strings.Contains(string(last.Data), "broker") && strings.Contains(string(last.Data), "code=ok")
	})
	await(t, "word of the Order among the node's problems", func() bool {
		last, err := conn.Last(f.ctx(), bus.StreamNodes, conn.Subjects().Node(mailboxOf(t, dir), "n1"))
		return err == nil && strings.Contains(string(last.Data), "it is in order")
	})
	peers, err := o.Peers(f.ctx())
	if err != nil || len(peers) != 1 || peers[0].Name != "n1" {
		t.Errorf("%+v, %v", peers, err)
	}
	if _, err := o.Release(f.ctx()); err != nil {
		t.Error(err)
	}
}

// TestAnOrderOverTheBroker: a node is called over its session with the broker, by
// who has its constellation; the Order lives on when the broker is started again.
func TestAnOrderOverTheBroker(t *testing.T) {
	f := startFleet(t, carrier{})
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	c, key, err := constellation.Generate(fmt.Sprintf("t%d", time.Now().UnixNano()), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "n1")
	if err := f.join(f.invite("n1"), dir); err != nil {
		t.Fatal(err)
	}
	if err := c.Write(filepath.Join(dir, "constellation.json")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	connected := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		err := app.RunAgent(ctx, app.AgentOptions{StateDir: dir, Ready: func() { close(connected) }, Order: app.OrderOptions{Listen: "127.0.0.1"}})
		if err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	select {
	case <-connected:
	case <-time.After(patience):
		t.Fatal("the node does not connect")
	}

	over := func(c constellation.Constellation, key constellation.Operator) *participant.Operator {
		hub, err := app.OpenOrderHub(f.ctx(), "", c, false, slog.New(slog.NewTextHandler(t.Output(), nil)))
		if err != nil {
			t.Fatal(err)
		}
		return operateOver(t, c, key, hub, 0)
	}
	o := over(c, key)
	if err := o.Entry(f.ctx()); err != nil {
		t.Fatal(err)
	}
	if h, err := o.Call(f.ctx(), participant.CallOptions{}); err != nil || len(h.Members) != 1 {
		t.Fatalf("%+v, %v", h, err)
	}
	strange, strangeKey, err := constellation.Generate("strange", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(f.ctx(), time.Second)
	defer stop()
	if err := over(strange, strangeKey).Entry(short); muster.KindOf(err) != muster.Unavailable {
		t.Errorf("who has another constellation finds a node: %v", err)
	}

	f.restart()
	await(t, "answer over the broker that was started again", func() bool {
		answers := 0
		silent, err := o.Query(f.ctx(), participant.Query{Method: "status", Within: time.Second}, func(participant.Answer) { answers++ })
		return err == nil && answers == 1 && len(silent) == 0
	})
	if silent, err := o.Release(f.ctx()); err != nil || len(silent) > 0 {
		t.Errorf("%v did not hear the release: %v", silent, err)
	}
}

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Errorf("after %s there is no %s", patience, what)
}

func operate(t *testing.T, c constellation.Constellation, key constellation.Operator, port int) *participant.Operator {
	t.Helper()
	box, err := seal.New(c.Key, c.Secret.Reveal(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	network, err := participant.OpenLAN(lan.Options{Box: box, Host: "127.0.0.1", Unicast: true, Peers: []string{net.JoinHostPort("127.0.0.1", strconv.Itoa(port))}})
	if err != nil {
		t.Fatal(err)
	}
	return operateOver(t, c, key, network, network.Port())
}

func operateOver(t *testing.T, c constellation.Constellation, key constellation.Operator, carrier participant.Carrier, port int) *participant.Operator {
	t.Helper()
	cfg := order.Config{Name: "operator", Cluster: c.Key, Operators: c.Operators, TCPPort: uint16(port)}
	_, _ = rand.Read(cfg.ID[:])
	_, _ = rand.Read(cfg.Seed[:])
	o, err := participant.NewOperator(participant.OperatorOptions{Config: cfg, Key: key.PrivateKey(), Carriers: []participant.Carrier{carrier}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := o.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return o
}

func TestAnAgentWhoseConstellationIsWrongSaysSo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.json")
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := app.RunAgent(t.Context(), app.AgentOptions{StateDir: t.TempDir(), Order: app.OrderOptions{Constellation: file}})
	if muster.KindOf(err) != muster.Invalid || !strings.Contains(err.Error(), "c.json") {
		t.Error(err)
	}
}
