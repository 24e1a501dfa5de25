package app_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/enrol"
)

// nodeKeepsToItself: the broker gives a node nothing of others, and takes
// nothing in their names.
func nodeKeepsToItself(t *testing.T, f fleet) {
	const me, other, otherBox = muster.NodeName("a.b"), muster.NodeName("a.b.c"), "SECRET"
	dir := filepath.Join(t.TempDir(), "node")
	if err := f.join(f.invite(me), dir); err != nil {
		t.Fatal(err)
	}
	op := f.operator()
	s := op.Subjects()
	box := mailboxOf(t, dir)
	// The other's withdrawals and commands exist, so that there is something to steal.
	for _, m := range []bus.Outgoing{
		{Subject: s.Control(otherBox, other), Data: []byte("secret")}, {Subject: s.Control(box, me), Data: []byte("mine")},
		{Subject: s.Command(other, muster.KindCommand, "echo"), Data: []byte("secret")},
		{Subject: s.Command(me, muster.KindCommand, "echo"), Data: []byte("mine")},
	} {
		if err := op.Put(f.ctx(), m); err != nil {
			t.Fatal(err)
		}
	}
	conn, heard, err := f.dial(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Load(f.ctx()); err != nil {
		t.Fatal(err)
	}

	// What it may do.
	key := muster.Key{ID: "id1", Node: me}
	for _, subject := range []string{
		s.Report(key), s.Output(key, bus.Stdout), s.Event("started", me), s.Alive(box, me), s.Node(box, me), s.Dead(box, me),
	} {
		if err := conn.Put(f.ctx(), bus.Outgoing{Subject: subject, Data: []byte("{}")}); err != nil {
			t.Errorf("its own %s: %v", subject, err)
		}
	}
	if m, err := conn.Last(f.ctx(), bus.StreamControl, s.Control(box, me)); err != nil || string(m.Data) != "mine" {
		t.Errorf("its own withdrawals: %q, %v", m.Data, err)
	}
	ctx, cancel := context.WithCancel(f.ctx())
	var got []string
	err = conn.Commands(ctx, me, func(m bus.Message) error {
		got = append(got, string(m.Data))
		cancel()
		return nil
	})
	if len(got) != 1 || got[0] != "mine" {
		t.Errorf("its own commands: %q, %v", got, err)
	}

	frames := make(chan string, 10)
	stop, err := conn.Serve(s.Order(bus.AnyCaller, box, me), func(r bus.Request) { keep(frames, string(r.Data)) })
	if err != nil {
		t.Fatal(err)
	}
	answers := make(chan string, 10)
	stopAnswers, err := op.Serve(s.OrderedFrom("CALLER"), func(r bus.Request) { keep(answers, r.Subject+" "+string(r.Data)) })
	if err != nil {
		t.Fatal(err)
	}
	first := f.firstOf(frames, func() error {
		for _, to := range []string{s.Order("CALLER", otherBox, other), s.Order("CALLER", otherBox, me), s.Order("CALLER", box, me)} {
			if err := op.Tell(to, []byte(to)); err != nil {
				return err
			}
		}
		return nil
	})
	if first != s.Order("CALLER", box, me) {
		t.Errorf("the first frame of an Order that it hears is %q", first)
	}
	first = f.firstOf(answers, func() error { return conn.Tell(s.Ordered("CALLER", box, me), []byte("frame")) })
	if first != s.Ordered("CALLER", box, me)+" frame" {
		t.Errorf("the caller of an Order hears %q", first)
	}
	stop()
	stopAnswers()

	// What it asks the service reaches that in its own name.
	told(f, conn, me, 1, 1)

	// What it may not publish.
	foreign := muster.Key{ID: "id1", Node: other}
	stream := s.CommandStream(other)
	for _, subject := range []string{
		s.Report(foreign), s.Output(foreign, bus.Stdout), s.Event("started", other), s.Alive(otherBox, other), s.Node(otherBox, other), s.Dead(otherBox, other),
		s.Command(other, muster.KindCommand, "echo"), s.Command(me, muster.KindCommand, "echo"),
		s.Control(otherBox, other), s.Control(box, me), s.Settings(), s.Sent("id1"), s.Ping(), s.Enrol("x"),
		s.Prefix + ".fleet.x.node." + string(me),
		s.Ordered("CALLER", otherBox, other), s.Ordered("CALLER", box, other), s.Order("CALLER", otherBox, other), s.Order("CALLER", box, me),
		s.Peers(otherBox, other), s.Peers(box, other), s.Peers(otherBox, me),
		bus.NodeAPI + ".CONSUMER.CREATE." + stream + "." + box + "=a=b." + s.Commands(other),
		bus.NodeAPI + ".CONSUMER.CREATE." + stream + "." + otherBox + "=a=b=c." + s.Commands(other),
		bus.NodeAPI + ".CONSUMER.CREATE." + stream + "." + box + "=a=b",
		bus.NodeAPI + ".CONSUMER.CREATE." + stream,
		bus.NodeAPI + ".CONSUMER.DURABLE.CREATE." + stream + "." + box + "=a=b",
		bus.NodeAPI + ".CONSUMER.MSG.NEXT." + stream + "." + otherBox + "=a=b=c",
		bus.NodeAPI + ".CONSUMER.DELETE." + stream + "." + otherBox + "=a=b=c",
		"$JS.ACK." + stream + "." + otherBox + "=a=b=c.1.1.1.1.1",
		bus.NodeAPI + ".DIRECT.GET." + bus.StreamControl + "." + s.Control(otherBox, other),
		bus.NodeAPI + ".DIRECT.GET." + bus.StreamControl,
		bus.NodeAPI + ".STREAM.MSG.GET." + bus.StreamControl,
		bus.NodeAPI + ".STREAM.PURGE." + stream,
		bus.NodeAPI + ".STREAM.DELETE." + stream,
		bus.NodeInbox(other) + ".x", "_INBOX.x",
	} {
		if err := conn.Tell(subject, []byte("{}")); err != nil {
			t.Fatal(err)
		}
		heard.expect(t, "publish", subject)
	}

	// What it may not hear.
	for _, subject := range []string{
		s.Control(otherBox, other), s.Control(bus.AnyMailbox, other), s.Control(bus.AnyMailbox, me), s.Prefix + ".control.>", s.Prefix + ".>", ">", "_INBOX.>", "_INBOX_NODE.>",
		s.Order("CALLER", otherBox, other), s.Order(bus.AnyCaller, bus.AnyMailbox, me), s.Ordered("CALLER", box, me), s.OrderedFrom("CALLER"),
		s.Peers(otherBox, other), s.Peers(box, me), s.AnyPeers(),
		bus.NodeInbox(other) + ".>", s.Command(other, muster.KindCommand, "echo"), s.Report(foreign), "$JS.API.>", "$KV.>",
	} {
		stop, err := conn.Serve(subject, func(bus.Request) {})
		if err != nil {
			t.Fatal(err)
		}
		heard.expect(t, "subscribe to", subject)
		stop()
	}

	// Requests that lie: the subject is its own, the body asks for more.
	mine := bus.NodeAPI + ".CONSUMER.CREATE." + s.CommandStream(me) + "." + box + "=a=b." + s.Commands(me)
	for name, c := range map[string]struct {
		subject string
		body    any
	}{
		"another's filter": {mine, consumer(s.CommandStream(me), map[string]any{"name": box + "=a=b", "filter_subject": s.Commands(other)})},
		"no filter":        {mine, consumer(s.CommandStream(me), map[string]any{"name": box + "=a=b"})},
		"several filters":  {mine, consumer(s.CommandStream(me), map[string]any{"name": box + "=a=b", "filter_subjects": []string{s.Commands(me), s.Commands(other)}})},
		"both filters": {mine, consumer(s.CommandStream(me), map[string]any{
			"name": box + "=a=b", "filter_subject": s.Commands(me), "filter_subjects": []string{s.Commands(other)},
		})},
		"another's name":   {mine, consumer(s.CommandStream(me), map[string]any{"name": otherBox + "=a=b=c", "filter_subject": s.Commands(me)})},
		"another's stream": {mine, consumer(bus.StreamControl, map[string]any{"name": box + "=a=b", "filter_subject": s.Commands(me)})},
	} {
		if reply := f.ask(conn, c.subject, marshal(t, c.body)); !strings.Contains(string(reply), `"error"`) {
			t.Errorf("consumer with %s: %s", name, reply)
		}
	}
	for _, body := range []string{`{"seq":1}`, `{"last_by_subj":"` + s.Control(otherBox, other) + `"}`, `{"multi_last":["` + s.Control(otherBox, other) + `"]}`} {
		ctx, cancel := context.WithTimeout(f.ctx(), time.Second)
		reply, err := conn.Ask(ctx, bus.NodeAPI+".DIRECT.GET."+bus.StreamControl+"."+s.Control(box, me), []byte(body))
		cancel()
		if strings.Contains(string(reply), "secret") {
			t.Errorf("direct get with %s gave %q, %v", body, reply, err)
		}
	}
}

// keep keeps a text if there is room.
func keep(c chan<- string, text string) {
	select {
	case c <- text:
	default:
	}
}

// firstOf has something said again until something is heard of it: what is said at
// once may be on its way through a cluster before the interest in it is.
func (f fleet) firstOf(heard <-chan string, say func() error) (first string) {
	f.t.Helper()
	f.until("something to hear", func() error {
		if err := say(); err != nil {
			return err
		}
		select {
		case first = <-heard:
			return nil
		case <-time.After(time.Second):
			return errors.New("nothing came")
		}
	})
	return first
}

// ask asks again until there is an answer: a cluster may have no leader for a
// moment, and nobody answers then.
func (f fleet) ask(c *bus.Conn, subject string, data []byte) (reply []byte) {
	f.t.Helper()
	f.until("an answer to "+subject, func() (err error) {
		ctx, cancel := context.WithTimeout(f.ctx(), 5*time.Second)
		defer cancel()
		reply, err = c.Ask(ctx, subject, data)
		return err
	})
	return reply
}

// mailboxOf reads the mailbox of a node that has joined.
func mailboxOf(t *testing.T, dir string) string {
	t.Helper()
	n, err := config.OpenNode(dir)
	if err != nil {
		t.Fatal(err)
	}
	userJWT, _, err := config.ParseCreds(n.Credentials)
	if err != nil {
		t.Fatal(err)
	}
	box := enrol.MailboxOf(userJWT, n.Node.Prefix, muster.NodeName(n.Node.Node))
	if box == bus.OpenMailbox {
		t.Fatal("the node has no mailbox of its own")
	}
	return box
}

func consumer(stream string, config map[string]any) any {
	config["ack_policy"] = "explicit"
	return map[string]any{"stream_name": stream, "config": config, "action": ""}
}
