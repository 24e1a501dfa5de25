package app_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/app"
)

// TestRemovedBeforeARestart: a server of one's own begins with what its
// configuration says, which is older than the last removal. The service says it
// again, also when nobody of the nodes' account is there yet.
func TestRemovedBeforeARestart(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a nats-server; -short")
	}
	const node = muster.NodeName("removed")
	f := startFleet(t, carrier{tls: true, servers: 1})
	dir := filepath.Join(t.TempDir(), "node")
	if err := f.join(f.invite(node), dir); err != nil {
		t.Fatal(err)
	}
	if err := f.client().RemoveNode(f.ctx(), node); err != nil {
		t.Fatal(err)
	}
	refused := func() error {
		conn, _, err := f.dial(dir)
		if err == nil {
			conn.Close()
			return errors.New("it is admitted")
		}
		if muster.KindOf(err) != muster.Denied {
			return err
		}
		return nil
	}
	f.until("the removal", refused)
	before := time.Now()
	f.restart()
	f.until("the service", func() error {
		op, err := f.tryOperator()
		if err != nil {
			return err
		}
		defer op.Close()
		d, err := op.Durability(f.ctx())
		if err == nil && !d.Seen.After(before) {
			err = errors.New("it is not back")
		}
		return err
	})
	if err := refused(); err != nil {
		t.Error(err)
	}
}

// TestServerThatIsAway: that a server of one's own does not answer says nothing of
// its accounts. Nobody is asked to revoke by hand, and what it has to know is not
// taken for said.
func TestServerThatIsAway(t *testing.T) {
	f := startFleet(t, carrier{})
	creds := filepath.Join(f.caller("service"), "nats.creds")
	f.embedded.end(t)
	var log lines
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		o := app.ServiceOptions{Dir: f.dir, CredsFile: creds, Log: slog.New(slog.NewTextHandler(&log, nil))}
		ended <- app.RunService(ctx, o, func() { t.Error("it is ready") })
	}()
	f.until("an attempt", func() error {
		if !strings.Contains(log.text(), "it tries again") {
			return errors.New("there was none")
		}
		return nil
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if strings.Contains(log.text(), "revoke there by hand") {
		t.Errorf("got %s", log.text())
	}
}
