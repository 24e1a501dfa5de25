package client

import (
	"encoding/json"

	"github.com/musterfleet/muster/internal/aaa"
)

// checkRevoked looks whether the nodes that answer have the lists of revoked
// callers that are published.
func checkRevoked(published []json.RawMessage, nodes []Node, h *Health) {
	mark, online, current := aaa.RevocationMark(published), 0, 0
	for _, n := range nodes {
		if n.Online {
			online++
		}
		if n.Online && n.Revoked == mark {
			current++
		}
	}
	switch {
	case len(published) == 0:
	case current < online:
		h.add("revoked", "warn", "see their problems in 'muster node ls', and the version of muster there", "the current list of revoked callers is at %d of %d nodes that answer", current, online)
	default:
		h.add("revoked", "ok", "", "the current list of revoked callers is at %d of %d nodes that answer", current, online)
	}
}
