package app_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
)

// A NATS server publishes the answer to a request on whatever reply subject
// the request names. These tests are of what a hostile node, or newcomer, can
// reach on that way.

// raw connects with credentials and no more than NATS itself.
func (f fleet) raw(urls []string, creds []byte, ca, inbox string) *nats.Conn {
	f.t.Helper()
	opts := []nats.Option{nats.UserCredentialBytes(creds), nats.CustomInboxPrefix(inbox), nats.Timeout(patience)}
	if ca != "" {
		opts = append(opts, nats.RootCAs(ca))
	}
	if f.inProcess {
		opts = append(opts, nats.InProcessServer(f.broker))
	}
	nc, err := nats.Connect(strings.Join(urls, ","), opts...)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(nc.Close)
	return nc
}

// ca is the file of the fleet's authority, empty for a fleet without TLS.
func (f fleet) ca() string {
	if !f.tls {
		return ""
	}
	return filepath.Join(f.dir, "tls", "ca.pem")
}

// settled waits until the broker has done what the node has asked for: it
// works on the requests of a connection to one stream in order.
func settled(t *testing.T, nc *nats.Conn, subject string) {
	t.Helper()
	if _, err := nc.Request(subject, []byte("{}"), patience); err != nil {
		t.Fatal(err)
	}
}

// newest reads the newest message of every subject of every stream.
func newest(t *testing.T, op *bus.Conn, f fleet) map[string]string {
	t.Helper()
	all := map[string]string{}
	states, err := op.StreamStates(f.ctx())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range states {
		all["stream "+s.Name] = "" // it is there
		if strings.HasPrefix(s.Name, "MUSTER_COMMAND_") {
			continue // a work queue has one reader
		}
		err := op.Read(f.ctx(), bus.Query{Stream: s.Name, Last: true}, func(m bus.Stored) error {
			all[m.Subject] = string(m.Data)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if m, err := op.Last(f.ctx(), op.Subjects().CommandStream("good"), op.Subjects().Command("good", muster.KindCommand, "echo")); err == nil {
		all[m.Subject] = string(m.Data)
	}
	return all
}

// noDetourToOthers: whatever a node asks for, and wherever it wants the answer,
// nothing of others changes.
func noDetourToOthers(t *testing.T, f fleet) {
	if f.servers > 1 {
		t.Skip("permissions are those of one server, and a cluster takes a minute to make and delete so many consumers")
	}
	const me, other = muster.NodeName("bad"), muster.NodeName("good")
	dir := filepath.Join(t.TempDir(), "node")
	if err := f.join(f.invite(me), dir); err != nil {
		t.Fatal(err)
	}
	f.invite(other)
	op := f.operator()
	s := op.Subjects()
	cl := f.client()
	if err := cl.SetLabels(f.ctx(), other, map[string]string{"role": "web"}, nil); err != nil {
		t.Fatal(err)
	}
	for _, n := range []muster.NodeName{me, other} {
		m := bus.Outgoing{Subject: s.Command(n, muster.KindCommand, "echo"), Data: []byte(`{"mine":1}`)}
		if err := op.Put(f.ctx(), m); err != nil {
			t.Fatal(err)
		}
	}
	hello, _ := json.Marshal(muster.Hello{Node: other, Version: "v1"})                                      // plain fields
	event, _ := json.Marshal(muster.Event{Node: other, Type: "started", Time: time.Now(), Message: "here"}) // plain fields
	for _, m := range []bus.Outgoing{
		{Subject: s.Node("OTHER", other), Data: hello}, {Subject: s.Control("OTHER", other), Data: []byte("[]")},
		{Subject: s.Event("started", other), Data: event},
	} {
		if err := op.Put(f.ctx(), m); err != nil {
			t.Fatal(err)
		}
	}

	n, err := config.OpenNode(dir)
	if err != nil {
		t.Fatal(err)
	}
	nc := f.raw(n.Node.URLs, n.Credentials.Reveal(), f.ca(), bus.NodeInbox(me))
	before := newest(t, op, f)
	nodesBefore := f.describe(cl)
	replies := []string{
		s.Settings(), s.Control("x", other), s.Node("x", other), s.Alive("x", other), s.Dead("x", other),
		s.Prefix + ".fleet.x.node." + string(other), s.Prefix + ".fleet.x.remove." + string(other),
		s.Event("started", other), s.Report(muster.Key{ID: "id1", Node: other}), s.Sent("id1"),
		s.Output(muster.Key{ID: "id1", Node: other}, bus.Stdout), s.Ping(), s.Enrol("x"),
		s.Order("CALLER", "OTHER", other), s.Ordered("CALLER", "OTHER", other), s.Peers("OTHER", other),
	}
	for _, stream := range []string{bus.StreamHistory, bus.StreamFleet, bus.StreamControl, s.CommandStream(other), bus.StreamSettings} {
		for _, api := range []string{"$JS.API", bus.NodeAPI} {
			for _, verb := range []string{"PURGE", "DELETE", "MSG.DELETE", "UPDATE", "SNAPSHOT"} {
				replies = append(replies, api+".STREAM."+verb+"."+stream)
			}
			replies = append(replies, api+".CONSUMER.DELETE."+stream+".good", api+".CONSUMER.CREATE."+stream)
		}
	}
	own := s.Report(muster.Key{ID: "mine", Node: me})
	box := mailboxOf(t, dir)
	name := box + "=bad"
	mine := bus.NodeAPI + ".CONSUMER.CREATE." + s.CommandStream(me) + "." + name
	for _, reply := range replies {
		// The receipt of a message, an answer of the API, the next command
		// pulled, and commands pushed.
		asks := map[string][]byte{
			own:              []byte(`{}`),
			s.Peers(box, me): asking(t, 1, 1),
			bus.NodeAPI + ".CONSUMER.INFO." + s.CommandStream(me) + "." + name:          nil,
			bus.NodeAPI + ".CONSUMER.MSG.NEXT." + s.CommandStream(me) + "." + name:      []byte(`{"no_wait":true}`),
			bus.NodeAPI + ".DIRECT.GET." + bus.StreamControl + "." + s.Control(box, me): nil,
			mine + "." + s.Commands(me): marshal(t, consumer(s.CommandStream(me), map[string]any{
				"name": name, "filter_subject": s.Commands(me), "deliver_subject": reply,
			})),
		}
		for subject, body := range asks {
			if err := nc.PublishRequest(subject, reply, body); err != nil {
				t.Fatal(err)
			}
		}
		settled(t, nc, own)
		f.until("the end of a consumer", func() error { // in a cluster some requests get no answer
			_, err := nc.Request(bus.NodeAPI+".CONSUMER.DELETE."+s.CommandStream(me)+"."+name, nil, time.Second)
			return err
		})
	}
	after := newest(t, op, f)
	for subject, was := range before {
		if is, there := after[subject]; !there || is != was {
			harmless := strings.HasPrefix(subject, s.Event("started", other)) // told apart by readers, below
			if !harmless {
				t.Errorf("%s was %q and is %q", subject, was, is)
			}
		}
	}
	if got := f.describe(cl); !maps.Equal(got, nodesBefore) {
		t.Errorf("operators saw\n%v\nand see\n%v", nodesBefore, got)
	}
}

// describe is what operators are told of nodes and of what they did.
func (f fleet) describe(cl *client.Client) map[string]string {
	f.t.Helper()
	all := map[string]string{}
	nodes, err := cl.Nodes(f.ctx())
	if err != nil {
		f.t.Fatal(err)
	}
	for _, n := range nodes {
		if n.Name != "bad" {
			all["node "+string(n.Name)] = fmt.Sprint(n.Version, n.Labels, n.Problems)
		}
	}
	count := 0
	err = cl.Events(f.ctx(), client.EventQuery{}, func(e client.Event) error {
		if e.Node != "bad" {
			count++
			all[fmt.Sprint("event ", count)] = e.Message
		}
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
	history, err := cl.History(f.ctx(), client.HistoryQuery{})
	if err != nil {
		f.t.Fatal(err)
	}
	for _, s := range history {
		if s.Node != "bad" {
			all["command "+s.Key.String()] = string(s.State)
		}
	}
	return all
}

// client is that of the fleet's first operator.
func (f fleet) client() *client.Client {
	f.t.Helper()
	o, err := app.ClientOptions("")
	if err != nil {
		f.t.Fatal(err)
	}
	ff, err := config.OpenFleet(f.dir)
	if err != nil {
		f.t.Fatal(err)
	}
	o.OutboxDir, o.URLs = "", ff.Fleet.URLs
	if f.inProcess {
		o.InProcess = f.broker
	}
	cl, err := client.Connect(f.ctx(), o)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(cl.Close)
	return cl
}

// The service that admits newcomers may publish anything. It must answer to
// nothing but the newcomer's own inbox.
func serviceIsNoDetour(t *testing.T, f fleet) {
	token := f.invite("n")
	op := f.operator()
	before := newest(t, op, f)
	nc := f.raw(token.URLs, token.Creds.Reveal(), f.ca(), bus.EnrolInbox(token.ID))
	for _, reply := range []string{
		"$JS.API.STREAM.PURGE." + bus.StreamFleet, op.Subjects().Prefix + ".fleet.x.remove.m", op.Subjects().Sent("id1"),
		bus.EnrolInbox("other") + ".x", bus.EnrolInbox(token.ID),
	} {
		if err := nc.PublishRequest(op.Subjects().Enrol(token.ID), reply, []byte(`{"secret":"eA=="}`)); err != nil {
			t.Fatal(err)
		}
	}
	// The service works on requests in order.
	if m, err := nc.RequestWithContext(f.ctx(), op.Subjects().Enrol(token.ID), []byte(`{}`)); err != nil || !strings.Contains(string(m.Data), "cannot be read") {
		t.Fatalf("%v, %v", m, err)
	}
	if after := newest(t, op, f); !maps.Equal(before, after) {
		t.Errorf("the broker held\n%v\nand holds\n%v", before, after)
	}
}
