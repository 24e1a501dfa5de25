package app_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/enrol"
)

// bounded makes a caller with rights.
func (f fleet) bounded(name string, rights ...aaa.Right) config.Context {
	f.t.Helper()
	dir := filepath.Join(f.t.TempDir(), name)
	if err := app.AddOperator(app.OperatorOptions{Dir: f.dir, Name: name, Rights: rights, Out: dir}); err != nil {
		f.t.Fatal(err)
	}
	c, err := config.ReadContext(dir)
	if err != nil {
		f.t.Fatal(err)
	}
	return c
}

// clientWith is that of a context without an outbox.
func (f fleet) clientWith(c config.Context) *client.Client {
	f.t.Helper()
	o := client.Options{URLs: c.URLs, Credentials: c.Credentials.Reveal(), CA: c.CA, Prefix: c.Prefix, Identity: c.Identity.Reveal()}
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

// connOf connects with a context, and tells what the broker complains of.
func (f fleet) connOf(c config.Context) (*bus.Conn, complaints) {
	f.t.Helper()
	userJWT, seed, err := config.ParseCreds(c.Credentials)
	if err != nil {
		f.t.Fatal(err)
	}
	heard := make(complaints, 1000)
	conn, err := bus.Dial(f.ctx(), bus.Options{
		InProcess: f.provider(), URLs: c.URLs, JWT: userJWT, Seed: string(seed.Reveal()), CA: c.CA, Prefix: c.Prefix,
		Inbox: enrol.CallerInbox(userJWT), Log: slog.New(heard),
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(conn.Close)
	return conn, heard
}

var eveRights = aaa.Right{Methods: []string{"echo"}, Nodes: []string{"eve.web1"}}

// callerKeepsToItsRights: a caller with bounded rights may send, withdraw and
// read, and nothing that is an administrator's.
func callerKeepsToItsRights(t *testing.T, f fleet) {
	const node, victim = muster.NodeName("eve.web1"), muster.NodeName("eve.victim")
	f.node(node)
	f.invite(victim)
	op := f.operator()
	s := op.Subjects()
	eve := f.bounded("eve", eveRights)
	cl := f.clientWith(eve)

	// What the program does with them.
	receipt, err := cl.Send(f.ctx(), client.Request{Method: "echo", Nodes: []muster.NodeName{node, victim}})
	if err != nil || len(receipt.Nodes) != 1 || len(receipt.Refused) != 1 || receipt.Refused[0].Node != victim ||
		muster.KindOf(receipt.Refused[0].Error) != muster.Denied {
		t.Errorf("send: %+v, %v", receipt, err)
	}
	f.waitQueue(op, node, 1)
	if n, err := cl.Cancel(f.ctx(), receipt.ID, []muster.NodeName{node}, ""); n != 1 || err != nil {
		t.Errorf("cancel: %d, %v", n, err)
	}
	if all, err := cl.History(f.ctx(), client.HistoryQuery{}); err != nil || len(all) == 0 {
		t.Errorf("history: %d, %v", len(all), err)
	}
	if all, err := cl.Nodes(f.ctx()); err != nil || len(all) == 0 {
		t.Errorf("nodes: %d, %v", len(all), err)
	}
	waiting := []client.Node{{Name: node}}
	if err := cl.CountWaiting(f.ctx(), waiting); err != nil {
		t.Errorf("length of a queue: %v", err)
	}
	if _, err := cl.DeadLetterCount(f.ctx()); err != nil {
		t.Errorf("count of dead letters: %v", err)
	}
	for _, c := range cl.Check(f.ctx()).Checks {
		if c.Level == "fail" && c.Name != "outbox" {
			t.Errorf("doctor: %+v", c)
		}
	}
	if err := cl.Events(f.ctx(), client.EventQuery{}, func(client.Event) error { return nil }); err != nil {
		t.Errorf("events: %v", err)
	}

	// What it is refused, with a reason and before a request would time out.
	before := time.Now()
	for name, try := range map[string]func() error{
		"label":        func() error { return cl.SetLabels(f.ctx(), victim, map[string]string{"pwned": "yes"}, nil) },
		"rm":           func() error { return cl.RemoveNode(f.ctx(), victim) },
		"dead letters": func() error { _, err := cl.DeadLetters(f.ctx(), ""); return err },
		"requeue":      func() error { return cl.Requeue(f.ctx(), 1) },
		"drop":         func() error { return cl.DropDeadLetter(f.ctx(), 1) },
	} {
		if err := try(); muster.KindOf(err) != muster.Denied {
			t.Errorf("%s: %v", name, err)
		}
	}
	if took := time.Since(before); took > patience/2 {
		t.Errorf("the refusals took %s", took)
	}

	// The same, and the rest, by NATS alone.
	conn, heard := f.connOf(eve)
	own := s.Command(node, muster.KindCommand, "echo")
	for _, subject := range []string{own, s.Sent("id1"), s.Control("box", node)} {
		if err := conn.Put(f.ctx(), bus.Outgoing{Subject: subject, Data: []byte("{}")}); err != nil {
			t.Errorf("its own %s: %v", subject, err)
		}
	}
	records := fleetRecords(t, f, eve)
	key := muster.Key{ID: "id1", Node: node}
	for _, subject := range append([]string{
		s.Command(victim, muster.KindCommand, "echo"), s.Command(node, muster.KindCommand, "shell.run"), s.Control("box", victim),
		s.Settings(), s.Report(key), s.Output(key, bus.Stdout), s.Event("started", node), s.Dead("box", node), s.Node("box", node), s.Alive("box", node),
		s.Prefix + ".sealed.0", s.Enrol("x"), s.Order("CALLER", "box", node), s.Ordered("CALLER", "box", node), s.Peers("box", node),
		records + "node." + string(victim), records + "remove." + string(victim), records + "invite.x",
		"$JS.ACK.MUSTER_COMMAND_0.x.1.1.1.1.1", bus.NodeInbox(node) + ".x", bus.EnrolInbox("x") + ".x", "_INBOX.x", "_INBOX_CALLER.other.x",
		"$SYS.REQ.ACCOUNT.PING.CONNZ", "other.subject",
	}, foreignAPI(s, node)...) {
		if err := conn.Tell(subject, []byte("{}")); err != nil {
			t.Fatal(err)
		}
		heard.expect(t, "publish", subject)
	}
	for _, subject := range []string{
		">", "_INBOX.>", "_INBOX_CALLER.>", "_INBOX_NODE.>", bus.NodeInbox(node) + ".>", "_INBOX_ENROL.>", "$JS.API.>", "$JS.EVENT.>",
		s.Prefix + ".>", s.Prefix + ".enrol.>", s.AnyPeers(), s.Ping(), s.OrderedFrom("CALLER"), s.Order(bus.AnyCaller, bus.AnyMailbox, node),
		own, s.Prefix + ".command.>", records + ">", s.Prefix + ".control.>", s.Prefix + ".report.>",
	} {
		stop, err := conn.Serve(subject, func(bus.Request) {})
		if err != nil {
			t.Fatal(err)
		}
		heard.expect(t, "subscribe to", subject)
		stop()
	}

	// Requests that lie: a permitted subject whose body names another stream.
	for _, stream := range []string{s.CommandStream(node), bus.StreamDead, bus.StreamControl} {
		body := map[string]any{"stream_name": stream, "config": map[string]any{"name": "x", "ack_policy": "explicit"}}
		reply := f.ask(conn, "$JS.API.CONSUMER.CREATE."+bus.StreamHistory+".x", marshal(t, body))
		if !strings.Contains(string(reply), `"error"`) {
			t.Errorf("a consumer of %s: %s", stream, reply)
		}
	}

	// All is as it was.
	nodes, err := f.client().Nodes(f.ctx())
	if err != nil {
		t.Fatal(err)
	}
	there := false
	for _, n := range nodes {
		there = there || n.Name == victim && n.Labels["pwned"] == ""
	}
	if !there {
		t.Errorf("%s is not there as it was: %+v", victim, nodes)
	}
}

// foreignAPI are the requests to JetStream that a caller may not make.
func foreignAPI(s bus.Subjects, node muster.NodeName) (all []string) {
	queue := s.CommandStream(node)
	for _, stream := range []string{
		queue, bus.StreamControl, bus.StreamSettings, bus.StreamHistory, bus.StreamOutput, bus.StreamDead, bus.StreamNodes, bus.StreamAlive, bus.StreamFleet,
	} {
		for _, verb := range []string{"CREATE", "UPDATE", "DELETE", "PURGE", "MSG.DELETE", "SNAPSHOT", "RESTORE", "LEADER.STEPDOWN", "PEER.REMOVE"} {
			all = append(all, "$JS.API.STREAM."+verb+"."+stream)
		}
		all = append(all, "$JS.API.CONSUMER.CREATE."+stream, "$JS.API.CONSUMER.DURABLE.CREATE."+stream+".x",
			"$JS.API.CONSUMER.NAMES."+stream, "$JS.API.CONSUMER.LIST."+stream, "$JS.API.CONSUMER.PAUSE."+stream+".x",
			"$JS.API.CONSUMER.LEADER.STEPDOWN."+stream+".x", "$JS.API.CONSUMER.UNPIN."+stream+".x", "$JS.API.CONSUMER.RESET."+stream+".x")
		if stream != bus.StreamFleet {
			all = append(all, "$JS.API.STREAM.MSG.GET."+stream)
		}
		all = append(all, "$JS.API.DIRECT.GET."+stream)
	}
	for _, stream := range []string{queue, bus.StreamControl, bus.StreamSettings, bus.StreamDead} {
		all = append(all, "$JS.API.CONSUMER.CREATE."+stream+".x", "$JS.API.CONSUMER.CREATE."+stream+".x."+s.Commands(node),
			"$JS.API.CONSUMER.MSG.NEXT."+stream+".x", "$JS.API.CONSUMER.DELETE."+stream+".x")
	}
	return append(all, "$JS.API.DIRECT.GET."+queue+"."+s.Command(node, muster.KindCommand, "echo"),
		"$JS.API.STREAM.NAMES", "$JS.API.INFO", "$JS.API.META.LEADER.STEPDOWN", "$JS.API.SERVER.REMOVE", "$JS.API.ACCOUNT.PURGE.x")
}

// fleetRecords is what begins the subjects of records: a caller can read it.
func fleetRecords(t *testing.T, f fleet, c config.Context) string {
	t.Helper()
	userJWT, _, err := config.ParseCreds(c.Credentials)
	if err != nil {
		t.Fatal(err)
	}
	nc := f.raw(c.URLs, c.Credentials.Reveal(), f.ca(), enrol.CallerInbox(userJWT))
	m, err := nc.Request("$JS.API.STREAM.INFO."+bus.StreamFleet, nil, patience)
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		Config struct {
			Subjects []string `json:"subjects"`
		} `json:"config"`
	}
	if err := json.Unmarshal(m.Data, &info); err != nil || len(info.Config.Subjects) != 1 {
		t.Fatalf("%s, %v", m.Data, err)
	}
	return strings.TrimSuffix(info.Config.Subjects[0], ">")
}

// aCallerWithoutBoundsAdministers: its credentials are an operator's, and those
// of bounded ones end with their time or their next context, not with the rest.
func aCallerWithoutBoundsAdministers(t *testing.T, f fleet) {
	const node = muster.NodeName("admin.web1")
	f.node(node)
	for _, rights := range [][]aaa.Right{nil, {eveRights, {Methods: []string{"*"}, Nodes: []string{"*"}}}} {
		cl := f.clientWith(f.bounded("root", rights...))
		if err := cl.SetLabels(f.ctx(), node, map[string]string{"a": fmt.Sprint(len(rights))}, nil); err != nil {
			t.Errorf("an administrator labels: %v", err)
		}
	}
	// Rights that cannot be said in subjects, and more of them than fit.
	for name, rights := range map[string][]aaa.Right{
		"glob": {{Methods: []string{"echo"}, Nodes: []string{"admin*"}}}, "all nodes": {{Methods: []string{"echo"}, Nodes: []string{"*"}}},
		"all methods": {{Methods: []string{"*"}, Nodes: []string{string(node)}}}, "many": manyRights(node, 100), "just as many as fit": manyRights(node, 3),
	} {
		cl := f.clientWith(f.bounded(strings.Repeat("bounded-", 6), rights...))
		if r, err := cl.Send(f.ctx(), client.Request{Method: "echo", Nodes: []muster.NodeName{node}}); err != nil || len(r.Refused) > 0 {
			t.Errorf("%s: send: %+v, %v", name, r, err)
		}
		if err := cl.SetLabels(f.ctx(), node, map[string]string{"pwned": "yes"}, nil); muster.KindOf(err) != muster.Denied {
			t.Errorf("%s: label: %v", name, err)
		}
	}
}

func manyRights(node muster.NodeName, more int) []aaa.Right {
	r := aaa.Right{Methods: []string{"echo", "shell.run"}, Nodes: []string{string(node)}}
	for i := range more {
		r.Nodes = append(r.Nodes, fmt.Sprintf("a-rather-long-name-of-a-node-%d.example.com", i))
	}
	return []aaa.Right{r}
}
