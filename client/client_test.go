package client

import (
	"bufio"
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

// denyingHost is a broker that knows nobody.
type denyingHost struct{ served sync.WaitGroup }

func (d *denyingHost) InProcessConn() (net.Conn, error) {
	here, there := net.Pipe()
	d.served.Go(func() {
		defer there.Close()
		_, _ = io.WriteString(there, "INFO {\"server_id\":\"x\",\"version\":\"2.12.0\",\"max_payload\":1048576,\"proto\":1,\"headers\":true}\r\n")
		r := bufio.NewReader(there)
		for line := ""; line != "PING\r\n"; { // it follows CONNECT
			var err error
			if line, err = r.ReadString('\n'); err != nil {
				return
			}
		}
		_, _ = io.WriteString(there, "-ERR 'Authorization Violation'\r\n")
	})
	return here, nil
}

// What is an error for its sender is not executed later: a send that fails for
// good, before the broker got anything of it, does not stay in the outbox. One
// of before, which was accepted then, does.
func TestFailedSendIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &denyingHost{}
		defer host.served.Wait()
		c, err := Connect(t.Context(), Options{OutboxDir: t.TempDir(), InProcess: host})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		b := batch{Sent: sent{ID: "x", Deadline: time.Now().Add(time.Hour)}, Commands: []command{{Node: "n", Frame: []byte("f")}}}
		entry, err := c.outbox.add(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		if _, kept, err := c.flushThrough(t.Context(), entry); kept || muster.KindOf(err) != muster.Denied {
			t.Errorf("kept %v, %v", kept, err)
		}
		if _, err := c.outbox.add(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if entry, err = c.outbox.add(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if _, kept, err := c.flushThrough(t.Context(), entry); kept || muster.KindOf(err) != muster.Denied {
			t.Errorf("behind another: kept %v, %v", kept, err)
		}
		if all, err := c.Outbox(); err != nil || len(all) != 1 {
			t.Errorf("%+v, %v", all, err)
		}
		entry.waited = true // as a repetition of what was accepted before
		entry.name = onlyName(t, c.outbox)
		if _, kept, err := c.flushThrough(t.Context(), entry); !kept || muster.KindOf(err) != muster.Denied {
			t.Errorf("a repetition: kept %v, %v", kept, err)
		}
		onlyName(t, c.outbox)
	})
}

func onlyName(t *testing.T, o *outbox) string {
	t.Helper()
	names, err := o.list(outboxSuffix)
	if err != nil || len(names) != 1 {
		t.Fatalf("%q are in the outbox, %v", names, err)
	}
	return names[0]
}
