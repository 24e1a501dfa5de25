package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/bus"
)

// put stores bytes in a node's queue, as somebody could who may publish there.
func (w *world) put(n muster.NodeName, m muster.Method, data []byte) {
	w.t.Helper()
	conn, err := bus.Dial(w.t.Context(), bus.Options{InProcess: w})
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Load(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	if err := conn.Put(w.t.Context(), bus.Outgoing{Subject: conn.Subjects().Command(n, muster.KindCommand, m), Data: data}); err != nil {
		w.t.Fatal(err)
	}
}

// sign makes a frame for a node.
func (w *world) sign(id []byte, c muster.Command) []byte {
	w.t.Helper()
	identity, err := aaa.ParseIdentity(id)
	if err != nil {
		w.t.Fatal(err)
	}
	signer, err := aaa.NewSigner(identity)
	if err != nil {
		w.t.Fatal(err)
	}
	f, err := signer.Sign(c)
	if err != nil {
		w.t.Fatal(err)
	}
	data, err := f.Encode()
	if err != nil {
		w.t.Fatal(err)
	}
	return data
}

func envelope(id muster.CommandID, n muster.NodeName, m muster.Method, input string) muster.Command {
	now := time.Now().UTC()
	return muster.Command{
		Version: muster.EnvelopeVersion, Fleet: fleet, ID: id, Node: n, Kind: muster.KindCommand, Method: m,
		Input: json.RawMessage(input), IssuedAt: now, Deadline: now.Add(time.Hour),
	}
}

// audit returns the decisions in a node's audit log, and checks its chain.
func (n *node) audit() []aaa.Record {
	n.w.t.Helper()
	data, err := os.ReadFile(filepath.Join(n.w.dir, string(n.name), "audit.log"))
	if err != nil {
		n.w.t.Fatal(err)
	}
	if err := new(aaa.AuditCheck).Read(strings.NewReader(string(data))); err != nil {
		n.w.t.Errorf("audit log: %v", err)
	}
	var all []aaa.Record
	for line := range strings.Lines(string(data)) {
		var r aaa.Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			n.w.t.Errorf("audit line %q: %v", line, err)
		}
		all = append(all, r)
	}
	return all
}

// Whatever arrives, the agent lives on and the next command runs; what is not
// genuine is set aside and reported under nobody's name.
func TestHostileMessages(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		p := &probe{name: "test.probe"}
		n := w.node("n1", p)
		time.Sleep(time.Second)
		genuine := w.sign(w.id, envelope("genuine", "n1", "test.probe", `{"What":"genuine"}`))
		changed := []byte(strings.Replace(string(genuine), `"signature":"`, `"signature":"AAAA`, 1))
		hostile := [][]byte{nil, []byte("garbage"), {0x01, 0xff}, []byte(`{}`), []byte(`{"caller":1}`), changed,
			[]byte(strings.Repeat("[", 100000)), make([]byte, 900<<10)}
		for _, h := range hostile {
			w.put("n1", "test.probe", h)
		}
		w.put("n1", "test.probe", w.sign(w.id, envelope("other", "n2", "test.probe", `{"What":"for another node"}`)))
		w.put("n1", "test.probe", genuine)
		w.put("n1", "test.probe", genuine) // a replay
		after := w.send("test.probe", "after", nil, "n1")
		time.Sleep(time.Minute)
		w.expect(after, "n1", muster.Done)
		if got := p.runs(); !slices.Equal(got, []string{"genuine", "after"}) {
			t.Errorf("ran %v", got)
		}
		dead, err := w.client.DeadLetters(t.Context(), "n1")
		if err != nil || len(dead) != len(hostile)+1 {
			t.Fatalf("got %d dead letters, want %d: %v", len(dead), len(hostile)+1, err)
		}
		for _, d := range dead {
			if d.Reason == "" {
				t.Error("a dead letter has no reason")
			}
		}
		if _, err := w.client.Command(t.Context(), muster.Key{ID: "other"}); muster.KindOf(err) != muster.NotFound {
			t.Errorf("a message for another node was reported: %v", err)
		}
		counts := make(map[aaa.Verdict]int)
		for _, r := range n.audit() {
			counts[r.Verdict]++
		}
		if counts[aaa.Allowed] != 2 || counts[aaa.Unauthentic] != len(hostile) || counts[aaa.Replayed] != 1 {
			t.Errorf("audit: got %v", counts)
		}
		// A replay after a restart of the agent does nothing either.
		n.stop()
		n.start()
		time.Sleep(time.Second)
		w.put("n1", "test.probe", genuine)
		time.Sleep(time.Minute)
		if got := p.runs(); len(got) != 2 {
			t.Errorf("after a restart a replay ran: %v", got)
		}
		// What was set aside can be queued again, and is set aside again.
		if err := w.client.Requeue(t.Context(), dead[1].Seq); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		again, err := w.client.DeadLetters(t.Context(), "n1")
		if err != nil || len(again) != len(dead) || again[len(again)-1].Seq == dead[len(dead)-1].Seq {
			t.Errorf("after requeueing: %d dead letters, %v", len(again), err)
		}
	})
}

// Refusals reach the caller with their reason, and leave an audit line.
func TestRefusals(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.node("n1")
		policy, err := aaa.ParsePolicy("policy.yaml", []byte("rules:\n- name: echo only\n  effect: allow\n  methods: [echo]\n"))
		if err != nil {
			t.Fatal(err)
		}
		n.policy.Store(policy)
		time.Sleep(time.Second)
		send := func(m muster.Method, input string) client.Receipt {
			t.Helper()
			r, err := w.client.Send(t.Context(), client.Request{Method: m, Input: json.RawMessage(input), Nodes: []muster.NodeName{"n1"}})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		allowed := send("echo", `{"message":"x"}`)
		denied := send("shell.run", `{"argv":["true"]}`)
		wrong := send("echo", `{"text":"x"}`)
		n2 := w.node("n2")
		unknown := w.send("no.such", "x", nil, "n2")
		limited := w.connect(w.identity("bob", []aaa.Right{{Methods: []string{"file.*"}, Nodes: []string{"*"}}}))
		bob, err := limited.Send(t.Context(), client.Request{Method: "echo", Input: json.RawMessage(`{"message":1}`), Nodes: []muster.NodeName{"n2"}})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		w.expect(allowed, "n1", muster.Done)
		for what, r := range map[string]client.Receipt{"no rule": denied, "wrong input": wrong} {
			if s := w.expect(r, "n1", muster.Refused); s.Reason == "" {
				t.Errorf("%s: refused without a reason", what)
			}
		}
		w.expect(unknown, "n2", muster.Refused)
		w.expect(bob, "n2", muster.Refused)
		verdicts := func(n *node) (all []string) {
			for _, r := range n.audit() {
				all = append(all, fmt.Sprint(r.Caller, " ", r.Method, " ", r.Verdict))
			}
			return all
		}
		if got, want := verdicts(n), []string{"alice echo allowed", "alice shell.run denied", "alice echo allowed"}; !slices.Equal(got, want) {
			t.Errorf("audit of n1: got %q, want %q", got, want)
		}
		if got, want := verdicts(n2), []string{"alice no.such allowed", "bob echo denied"}; !slices.Equal(got, want) {
			t.Errorf("audit of n2: got %q, want %q", got, want)
		}
	})
}

// A full lane refuses its sender; nothing that was accepted is dropped for it.
func TestFullLane(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		conn, err := bus.Dial(t.Context(), bus.Options{InProcess: w})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.Setup(t.Context(), bus.LayoutOptions{Fleet: fleet, LaneLimit: 3}); err != nil {
			t.Fatal(err)
		}
		var accepted []client.Receipt
		for i := range 3 {
			accepted = append(accepted, w.send("test.probe", fmt.Sprint(i), nil, "n1"))
		}
		r := w.send("test.probe", "too many", nil, "n1")
		if len(r.Refused) != 1 || r.Refused[0].Error.Kind != muster.Full || len(r.Nodes) != 0 {
			t.Fatalf("the fourth command: got %+v, want a refusal", r)
		}
		w.expect(r, "n1", muster.Refused)
		p := &probe{name: "test.probe"}
		w.node("n1", p)
		time.Sleep(time.Minute)
		for _, a := range accepted {
			w.expect(a, "n1", muster.Done)
		}
		if got := p.runs(); !slices.Equal(got, []string{"0", "1", "2"}) {
			t.Errorf("ran %v", got)
		}
	})
}
