package bus

import (
	"strings"
	"testing"

	"github.com/musterfleet/muster"
)

// matches is the broker's rule: * is one token, > is one or more at the end.
func matches(pattern, subject string) bool {
	p, s := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, x := range p {
		switch {
		case i >= len(s):
			return false
		case x == ">":
			return true
		case x != "*" && x != s[i]:
			return false
		}
	}
	return len(p) == len(s)
}

func allowed(patterns []string, subject string) bool {
	for _, p := range patterns {
		if matches(p, subject) {
			return true
		}
	}
	return false
}

func TestSubjectRoundTrips(t *testing.T) {
	s := Subjects{Prefix: "eu.prod", Shards: 16}
	for _, n := range []muster.NodeName{"a", "a.b", "web-1.example.com", "command", "report.x"} {
		k := muster.Key{ID: "01J", Node: n}
		if got, ok := s.ReportKey(s.Report(k)); !ok || got != k {
			t.Errorf("report: %v %v", got, ok)
		}
		if got, stream, ok := s.OutputKey(s.Output(k, Stderr)); !ok || got != k || stream != Stderr {
			t.Errorf("output: %v %v %v", got, stream, ok)
		}
		if kind, got, ok := s.EventOf(s.Event("up", n)); !ok || got != n || kind != "up" {
			t.Errorf("event: %v %v %v", kind, got, ok)
		}
		for purpose, subject := range map[string]string{"node": s.Node("box", n), "alive": s.Alive("box", n), "dead": s.Dead("box", n), "control": s.Control("box", n)} {
			if got, ok := s.NodeOf(subject, purpose); !ok || got != n {
				t.Errorf("%s: %v %v", purpose, got, ok)
			}
		}
		if !matches(s.Commands(n), s.Command(n, muster.KindCommand, "shell.run")) {
			t.Errorf("%s does not match its own commands", n)
		}
	}
	for _, bad := range []string{"", "muster.report", "eu.prod.report.", "eu.prod.report.x", "eu.prod.event.x.y"} {
		if k, ok := s.ReportKey(bad); ok {
			t.Errorf("%q gives %v", bad, k)
		}
	}
}

func TestPermissions(t *testing.T) {
	nodes := []muster.NodeName{"a", "b", "a.b", "b.a", "a.b.c", "a.command", "a.command.x", "a-b", "a_b"}
	s := Subjects{Prefix: "muster", Shards: 16}
	key := func(n muster.NodeName) muster.Key { return muster.Key{ID: "01J", Node: n} }
	for _, me := range nodes {
		p := NodePermissions("muster", "box", me)
		for _, other := range nodes {
			mine := me == other
			publish := map[string]bool{
				s.Report(key(other)): mine, s.Output(key(other), Stdout): mine, s.Event("up", other): mine,
				s.Node("box", other): mine, s.Alive("box", other): mine, s.Dead("box", other): mine,
				s.Ordered("C1", "box", other): mine, s.Ordered("C1", "other", other): false, s.Order("C1", "box", other): false,
				NodeAPI + ".CONSUMER.CREATE." + s.CommandStream(other) + "." + consumerName("box", other) + "." + s.Commands(other): mine,
				NodeAPI + ".CONSUMER.CREATE." + s.CommandStream(other) + "." + consumerName("box", me) + "." + s.Commands(other):    mine,
				NodeAPI + ".CONSUMER.CREATE." + s.CommandStream(other) + "." + consumerName("box", me):                              false,
				NodeAPI + ".CONSUMER.DELETE." + s.CommandStream(other) + "." + consumerName("box", other):                           mine,
				NodeAPI + ".CONSUMER.MSG.NEXT." + s.CommandStream(other) + "." + consumerName("box", other):                         mine,
				"$JS.ACK." + s.CommandStream(other) + "." + consumerName("box", other) + ".1.1.1.1.1":                               mine,
				NodeAPI + ".DIRECT.GET." + StreamControl + "." + s.Control("box", other):                                            mine,
				s.Control("box", other): false, s.Command(other, muster.KindCommand, "shell.run"): false,
				s.Settings(): false, s.Sent("01J"): false, s.Enrol("t"): false, "muster.fleet.x.node." + string(other): false,
				"$JS.API.STREAM.PURGE." + StreamHistory: false, NodeAPI + ".DIRECT.GET." + StreamSettings + "." + s.Settings(): true,
				NodeInbox(other) + ".x": false,
			}
			for subject, want := range publish {
				if got := allowed(p.Publish, subject); got != want {
					t.Errorf("%s may publish %s: %v, want %v", me, subject, got, want)
				}
			}
			subscribe := map[string]bool{
				NodeInbox(other) + ".x.y": mine, s.Control("box", other): mine, s.Commands(other): false,
				s.Report(key(other)): false, s.Ping(): true, s.Order("C1", "box", other): mine, s.Order("C1", "other", other): false,
				s.Ordered("C1", "box", other): false, s.OrderedFrom("C1"): false, "_INBOX.x": false, "muster.>": false,
			}
			for subject, want := range subscribe {
				if got := allowed(p.Subscribe, subject); got != want {
					t.Errorf("%s may subscribe to %s: %v, want %v", me, subject, got, want)
				}
			}
			if !mine && matches(s.Commands(me), s.Command(other, muster.KindCommand, "shell.run")) && s.Shard(me) == s.Shard(other) {
				t.Errorf("the filter of %s matches a command of %s", me, other)
			}
			if !mine && encodeNode(me) == encodeNode(other) {
				t.Errorf("%s and %s have one consumer", me, other)
			}
		}
	}
	p := EnrolPermissions("muster", "t1")
	for subject, want := range map[string]bool{s.Enrol("t1"): true, s.Enrol("t2"): false, s.Node("box", "a"): false} {
		if got := allowed(p.Publish, subject); got != want {
			t.Errorf("a newcomer may publish %s: %v", subject, got)
		}
	}
}

func TestReceiptError(t *testing.T) {
	for receipt, want := range map[string]muster.ErrorKind{
		`{"stream":"S","seq":1}`:                  "",
		`{"stream":"S","seq":1,"duplicate":true}`: "",
		`{"error":{"code":503,"err_code":10077,"description":"maximum messages per subject exceeded"},"stream":"S","seq":0}`: muster.Full,
		`{"error":{"code":400,"err_code":10054,"description":"message size exceeds maximum allowed"},"stream":"S"}`:          muster.Invalid,
		`{"error":{"code":503,"err_code":10023,"description":"insufficient resources"}}`:                                     muster.Full,
		`{"error":{"code":503,"err_code":10008,"description":"JetStream system temporarily unavailable"}}`:                   muster.Unavailable,
		``: muster.Unavailable, `{}`: muster.Unavailable, `null`: muster.Unavailable,
	} {
		if got := muster.KindOf(receiptError([]byte(receipt))); got != want {
			t.Errorf("%s: %q, want %q", receipt, got, want)
		}
	}
}

func FuzzReceiptError(f *testing.F) {
	f.Add([]byte(`{"error":{"code":400}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := receiptError(data); err != nil && muster.KindOf(err) == muster.Internal {
			t.Errorf("%q: %v", data, err)
		}
	})
}

func FuzzSubjects(f *testing.F) {
	f.Add("muster.report.01J.a.b")
	f.Add("muster.output.01J.stdout.a.b")
	f.Fuzz(func(t *testing.T, subject string) {
		s := Subjects{Prefix: DefaultPrefix, Shards: 16}
		if k, ok := s.ReportKey(subject); ok && s.Report(k) != subject {
			t.Errorf("%q becomes %v", subject, k)
		}
		if k, stream, ok := s.OutputKey(subject); ok && s.Output(k, stream) != subject {
			t.Errorf("%q becomes %v", subject, k)
		}
		if kind, n, ok := s.EventOf(subject); ok && s.Event(kind, n) != subject {
			t.Errorf("%q becomes %v %v", subject, kind, n)
		}
		if box, n, ok := s.MemberOf(subject); ok && s.Ordered(strings.Split(subject, ".")[2], box, n) != subject {
			t.Errorf("%q becomes %v %v", subject, box, n)
		}
		if n, ok := s.NodeOf(subject, "node"); ok {
			if box := strings.Split(subject, ".")[2]; s.Node(box, n) != subject {
				t.Errorf("%q becomes %v", subject, n)
			}
		}
	})
}

// Nobody says that another is there.
func FuzzBeatOf(f *testing.F) {
	s := Subjects{Prefix: DefaultPrefix, Shards: 16}
	f.Add(s.Alive("box", "a.b"), []byte(`{"node":"a.b","ping":"x"}`))
	f.Add(s.Alive("box", "a.b"), []byte(`{"node":"c"}`))
	f.Fuzz(func(t *testing.T, subject string, data []byte) {
		if b, ok := s.BeatOf(subject, data); ok {
			if n, of := s.NodeOf(subject, "alive"); !of || b.Node != n {
				t.Errorf("%q says %q", subject, data)
			}
		}
	})
}
