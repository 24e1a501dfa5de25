package client

import (
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterfleet/muster"
)

// deadHost is a broker whose connections open and then nothing comes.
type deadHost struct {
	dialled int
	heard   sync.WaitGroup
}

func (d *deadHost) InProcessConn() (net.Conn, error) {
	d.dialled++
	here, there := net.Pipe()
	d.heard.Go(func() { _, _ = io.Copy(io.Discard, there) }) // ends with the connection
	return here, nil
}

// What a person asks for makes several attempts to connect: only the first
// waits for a host that is dead.
func TestDeadHostIsWaitedForOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &deadHost{}
		defer host.heard.Wait()
		c, err := Connect(t.Context(), Options{OutboxDir: t.TempDir(), InProcess: host})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		began := time.Now()
		for range 5 {
			if _, err := c.Nodes(t.Context()); muster.KindOf(err) != muster.Unavailable {
				t.Fatalf("nodes of a dead host: %v", err)
			}
		}
		if took := time.Since(began); host.dialled != 1 || took > 6*time.Second {
			t.Errorf("%d attempts in %s", host.dialled, took)
		}
		time.Sleep(retryAfter)
		if _, err := c.Nodes(t.Context()); err == nil || host.dialled != 2 {
			t.Errorf("later: %d attempts, %v", host.dialled, err)
		}
	})
}
