package app_test

import (
	"encoding/json"
	"testing"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/bus"
)

// TestNobodyAnswersForAnother: a node that was taken over may say that it is there
// itself, and not that another one is, or has the list of revoked callers.
func TestNobodyAnswersForAnother(t *testing.T) {
	const me, victim = muster.NodeName("me"), muster.NodeName("victim")
	f := startFleet(t, carrier{inProcess: true})
	conn := f.node(me)
	f.node(victim) // which says nothing
	stop, err := conn.Serve(conn.Subjects().Ping(), func(r bus.Request) {
		mark, _ := bus.NewsOfRevoked(string(r.Data))
		for _, node := range []muster.NodeName{victim, me} {
			beat, err := json.Marshal(muster.Beat{Node: node, Ping: string(r.Data), Revoked: mark})
			if err == nil {
				err = conn.Tell(conn.Subjects().Alive(conn.Mailbox(), me), beat)
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	nodes, err := f.client().Nodes(f.ctx())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if n.Online != (n.Name == me) {
			t.Errorf("%s is online: %t", n.Name, n.Online)
		}
	}
	f.caller("thief")
	r, err := app.RevokeCallers(f.ctx(), app.RevokeOptions{Dir: f.dir, Who: []string{"thief"}})
	if err != nil || r.Broker != "ok" || r.Nodes != 2 || r.Current != 1 {
		t.Errorf("%d of %d have the list, broker %q, %v; want one of two", r.Current, r.Nodes, r.Broker, err)
	}
}
