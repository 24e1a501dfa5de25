package client

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/shirou/gopsutil/v4/disk"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/pki"
)

// DeadLetters lists the messages that nodes could not take for commands, of
// one node or, when node is empty, of all.
func (c *Client) DeadLetters(ctx context.Context, node muster.NodeName) ([]DeadLetter, error) {
	var all []DeadLetter
	err := c.with(ctx, func(conn *bus.Conn) error {
		all = nil
		if node == "" {
			node = ">"
		}
		q := bus.Query{Stream: bus.StreamDead, Filters: []string{conn.Subjects().Dead(bus.AnyMailbox, node)}}
		return conn.Read(ctx, q, func(m bus.Stored) error {
			all = append(all, deadLetter(conn.Subjects(), m))
			return nil
		})
	})
	return all, err
}

func deadLetter(s bus.Subjects, m bus.Stored) DeadLetter {
	node, _ := s.NodeOf(m.Subject, "dead")
	d := DeadLetter{Seq: m.Seq, Node: node, Time: m.Time, Size: len(m.Data), Data: m.Data}
	if r := m.Header[bus.HeaderReason]; len(r) > 0 {
		d.Reason = r[0]
	}
	return d
}

// Requeue puts a dead letter back into its node's queue and removes it from
// the dead letters.
func (c *Client) Requeue(ctx context.Context, seq uint64) error {
	return c.withDeadLetter(ctx, seq, func(conn *bus.Conn, d DeadLetter, m bus.Stored) error {
		var subject string
		if v := m.Header[bus.HeaderSubject]; len(v) > 0 {
			subject = v[0]
		}
		// The header was written by the node: it must name the node's own queue.
		subject, ok := conn.Subjects().Requeued(d.Node, subject)
		if !ok {
			return muster.Errorf(muster.Invalid, "dead letter %d does not say which queue of %s it came from", seq, d.Node)
		}
		return conn.Put(ctx, bus.Outgoing{Subject: subject, Data: m.Data, ID: fmt.Sprintf("requeue/%d", seq)})
	})
}

// DropDeadLetter removes a dead letter.
func (c *Client) DropDeadLetter(ctx context.Context, seq uint64) error {
	return c.withDeadLetter(ctx, seq, func(*bus.Conn, DeadLetter, bus.Stored) error { return nil })
}

// withDeadLetter finds a dead letter, calls f, and removes it if f succeeds.
func (c *Client) withDeadLetter(ctx context.Context, seq uint64, f func(*bus.Conn, DeadLetter, bus.Stored) error) error {
	return c.with(ctx, func(conn *bus.Conn) error {
		var found *bus.Stored
		q := bus.Query{Stream: bus.StreamDead, From: seq}
		err := conn.Read(ctx, q, func(m bus.Stored) error {
			if m.Seq == seq {
				found = &m
			}
			return errFinished
		})
		if err != nil && err != errFinished {
			return err
		}
		if found == nil {
			return muster.Errorf(muster.NotFound, "there is no dead letter %d", seq).WithHint("'muster deadletter ls' lists them")
		}
		if err := f(conn, deadLetter(conn.Subjects(), *found), *found); err != nil {
			return err
		}
		return conn.Delete(ctx, bus.StreamDead, seq)
	})
}

// A Check is one finding of Client.Check.
type Check struct {
	Name    string `json:"name"`
	Level   string `json:"level"` // "ok", "warn" or "fail"
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"` // what to do
}

// Health is the outcome of Client.Check.
type Health struct {
	Checks []Check `json:"checks"`
}

func (h *Health) add(name, level, hint, format string, args ...any) {
	h.Checks = append(h.Checks, Check{name, level, fmt.Sprintf(format, args...), hint})
}

// checkCertificate looks at what the broker showed, nil without TLS.
func checkCertificate(shown *x509.Certificate, h *Health) {
	switch {
	case shown == nil:
	case time.Until(shown.NotAfter) < pki.RenewBefore:
		h.add("certificate", "warn", "on the broker's machine: 'muster broker renew-certificate'",
			"the broker's certificate ends on %s; nodes and callers are out of reach then", shown.NotAfter.Format(time.DateTime))
	default:
		h.add("certificate", "ok", "", "the broker's, until %s", shown.NotAfter.Format(time.DateOnly))
	}
}

// checkIdentity looks at the identity that signs; refused says that the broker
// does not take the credentials that were made with it.
func (c *Client) checkIdentity(h *Health, refused bool) {
	left := time.Until(c.until)
	switch {
	case c.signer == nil:
		h.add("identity", "fail", "give the context an identity file", "there is no identity to sign commands with")
	case left < 0:
		h.add("identity", "fail", "have it renewed where the fleet was made: 'muster context make'", "the identity of %s expired on %s", c.caller, c.until.Format(time.DateTime))
	case left < 14*24*time.Hour:
		h.add("identity", "warn", "have it renewed where the fleet was made: 'muster context make'; deadlines cannot be later", "the identity of %s expires on %s", c.caller, c.until.Format(time.DateTime))
	case refused:
		h.add("identity", "warn", "see what is said of the broker", "that of %s has not expired (valid until %s), but the broker refuses the credentials made with it", c.caller, c.until.Format(time.DateOnly))
	default:
		h.add("identity", "ok", "", "%s, until %s", c.caller, c.until.Format(time.DateOnly))
	}
	c.checkOutbox(h)
}

func (c *Client) checkOutbox(h *Health) {
	all, err := c.Outbox()
	if err != nil {
		h.add("outbox", "fail", "see the folder's permissions and disk", "%v", err)
		return
	}
	waiting := 0
	for _, w := range all {
		if w.Unreadable == "" {
			waiting++
			continue
		}
		h.add("outbox", "fail", "send again what it was, and remove the file", "a send was not sent, since it cannot be read: %s", w.Unreadable)
	}
	if waiting > 0 {
		h.add("outbox", "warn", "'muster outbox flush' sends them when the broker is there", "%s for the broker", count(waiting, "send waits", "sends wait"))
	}
}

// count says how many there are of what has two forms.
func count[N int | uint64](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// diskLeast is the free space below which a disk is reported.
const diskLeast = 100 << 20

// checkDisk looks at the room for the outbox.
func (c *Client) checkDisk(ctx context.Context, h *Health) {
	if c.outbox == nil {
		return
	}
	usage, err := disk.UsageWithContext(ctx, c.outbox.dir)
	switch {
	case err != nil:
		h.add("disk", "warn", "see the folder's permissions", "%s: %v", c.outbox.dir, err)
	case usage.Free < diskLeast:
		h.add("disk", "fail", "free some space: a send is accepted only when it is on disk", "%d MiB are left for the outbox in %s", usage.Free>>20, c.outbox.dir)
	default:
		h.add("disk", "ok", "", "%.1f GiB are left for the outbox", float64(usage.Free)/(1<<30))
	}
}

func (c *Client) checkStreams(ctx context.Context, conn *bus.Conn, h *Health) {
	states, err := conn.StreamStates(ctx)
	if err != nil {
		h.add("streams", "warn", "the credentials may not allow it", "%v", err)
		return
	}
	var messages, bytes uint64
	for _, s := range states {
		messages, bytes = messages+s.Messages, bytes+s.Bytes
		if s.Name == bus.StreamDead && s.Messages > 0 {
			h.add("dead letters", "warn", "'muster deadletter ls' shows them", "%s not be read by their nodes", count(s.Messages, "message could", "messages could"))
		}
	}
	h.add("streams", "ok", "", "%d messages, %.1f MiB in %d streams", messages, float64(bytes)/(1<<20), len(states))
}

func (c *Client) checkNodes(ctx context.Context, conn *bus.Conn, h *Health) {
	nodes, err := c.Nodes(ctx)
	if err != nil {
		h.add("nodes", "fail", "", "%v", err)
		return
	}
	online := 0
	for _, n := range nodes {
		if n.Online {
			online++
		}
		for _, p := range n.Problems {
			h.add("node "+string(n.Name), "warn", "see the log of its agent", "%s", p)
		}
	}
	checkNodeClocks(h, nodes)
	h.add("nodes", "ok", "", "%d of %d answer", online, len(nodes))
	if lists, err := conn.Revoked(ctx); err != nil {
		h.add("revoked", "warn", "try again", "%v", err)
	} else {
		checkRevoked(lists, nodes, h)
	}
}
