package app_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

func TestNodeKeepsToItself(t *testing.T) {
	onBoth(t, func(t *testing.T, f fleet) {
		const me, other = muster.NodeName("a.b"), muster.NodeName("a.b.c")
		dir := filepath.Join(t.TempDir(), "node")
		if err := f.join(f.invite(me), dir); err != nil {
			t.Fatal(err)
		}
		op := f.operator()
		s := op.Subjects()
		// The other's withdrawals and commands exist, so that there is something to steal.
		for _, m := range []bus.Outgoing{
			{Subject: s.Control(other), Data: []byte("secret")}, {Subject: s.Control(me), Data: []byte("mine")},
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
			s.Report(key), s.Output(key, bus.Stdout), s.Event("started", me), s.Alive(me), s.Node(me), s.Dead(me),
		} {
			if err := conn.Put(f.ctx(), bus.Outgoing{Subject: subject, Data: []byte("{}")}); err != nil {
				t.Errorf("its own %s: %v", subject, err)
			}
		}
		if m, err := conn.Last(f.ctx(), bus.StreamControl, s.Control(me)); err != nil || string(m.Data) != "mine" {
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

		// What it may not publish.
		foreign := muster.Key{ID: "id1", Node: other}
		stream := s.CommandStream(other)
		for _, subject := range []string{
			s.Report(foreign), s.Output(foreign, bus.Stdout), s.Event("started", other), s.Alive(other), s.Node(other), s.Dead(other),
			s.Command(other, muster.KindCommand, "echo"), s.Command(me, muster.KindCommand, "echo"),
			s.Control(other), s.Control(me), s.Settings(), s.Sent("id1"), s.Ping(), s.Enrol("x"),
			"$KV." + bus.BucketFleet + ".node." + string(me),
			"$JS.API.CONSUMER.CREATE." + stream + ".a=b." + s.Commands(other),
			"$JS.API.CONSUMER.CREATE." + stream + ".a=b=c." + s.Commands(other),
			"$JS.API.CONSUMER.CREATE." + stream + ".a=b",
			"$JS.API.CONSUMER.CREATE." + stream,
			"$JS.API.CONSUMER.DURABLE.CREATE." + stream + ".a=b",
			"$JS.API.CONSUMER.MSG.NEXT." + stream + ".a=b=c",
			"$JS.API.CONSUMER.DELETE." + stream + ".a=b=c",
			"$JS.ACK." + stream + ".a=b=c.1.1.1.1.1",
			"$JS.API.DIRECT.GET." + bus.StreamControl + "." + s.Control(other),
			"$JS.API.DIRECT.GET." + bus.StreamControl,
			"$JS.API.STREAM.MSG.GET." + bus.StreamControl,
			"$JS.API.STREAM.PURGE." + stream,
			"$JS.API.STREAM.DELETE." + stream,
			bus.NodeInbox(other) + ".x", "_INBOX.x",
		} {
			if err := conn.Tell(subject, []byte("{}")); err != nil {
				t.Fatal(err)
			}
			heard.expect(t, "publish", subject)
		}

		// What it may not hear.
		for _, subject := range []string{
			s.Control(other), s.Prefix + ".control.*", s.Prefix + ".>", ">", "_INBOX.>", "_INBOX_NODE.>",
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
		mine := "$JS.API.CONSUMER.CREATE." + s.CommandStream(me) + ".a=b." + s.Commands(me)
		for name, c := range map[string]struct {
			subject string
			body    any
		}{
			"another's filter": {mine, consumer(s.CommandStream(me), map[string]any{"name": "a=b", "filter_subject": s.Commands(other)})},
			"no filter":        {mine, consumer(s.CommandStream(me), map[string]any{"name": "a=b"})},
			"several filters":  {mine, consumer(s.CommandStream(me), map[string]any{"name": "a=b", "filter_subjects": []string{s.Commands(me), s.Commands(other)}})},
			"both filters": {mine, consumer(s.CommandStream(me), map[string]any{
				"name": "a=b", "filter_subject": s.Commands(me), "filter_subjects": []string{s.Commands(other)},
			})},
			"another's name":   {mine, consumer(s.CommandStream(me), map[string]any{"name": "a=b=c", "filter_subject": s.Commands(me)})},
			"another's stream": {mine, consumer(bus.StreamControl, map[string]any{"name": "a=b", "filter_subject": s.Commands(me)})},
		} {
			reply, err := conn.Ask(f.ctx(), c.subject, marshal(t, c.body))
			if err != nil || !strings.Contains(string(reply), `"error"`) {
				t.Errorf("consumer with %s: %s, %v", name, reply, err)
			}
		}
		for _, body := range []string{`{"seq":1}`, `{"last_by_subj":"` + s.Control(other) + `"}`, `{"multi_last":["` + s.Control(other) + `"]}`} {
			ctx, cancel := context.WithTimeout(f.ctx(), time.Second)
			reply, err := conn.Ask(ctx, "$JS.API.DIRECT.GET."+bus.StreamControl+"."+s.Control(me), []byte(body))
			cancel()
			if strings.Contains(string(reply), "secret") {
				t.Errorf("direct get with %s gave %q, %v", body, reply, err)
			}
		}
	})
}

func consumer(stream string, config map[string]any) any {
	config["ack_policy"] = "explicit"
	return map[string]any{"stream_name": stream, "config": config, "action": ""}
}
