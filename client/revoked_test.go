package client

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/musterfleet/muster/internal/aaa"
)

func TestCheckRevoked(t *testing.T) {
	lists := []json.RawMessage{json.RawMessage(`{}`)}
	mark := aaa.RevocationMark(lists)
	nodes := []Node{{Online: true, Revoked: mark}, {Online: true, Revoked: mark}, {Revoked: "older"}}
	behind := append(nodes, Node{Online: true, Revoked: "older"})
	for name, c := range map[string]struct {
		lists []json.RawMessage
		nodes []Node
		want  string
	}{
		"no list":            {nil, nodes, ""},
		"all that are there": {lists, nodes, "ok the current list of revoked callers is at 2 of 2 nodes"},
		"one is behind":      {lists, behind, "warn the current list of revoked callers is at 2 of 3 nodes"},
	} {
		var h Health
		checkRevoked(c.lists, c.nodes, &h)
		got := ""
		for _, x := range h.Checks {
			got += x.Level + " " + x.Message
		}
		if !strings.HasPrefix(got, c.want) || (got == "") != (c.want == "") {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
