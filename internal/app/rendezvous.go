package app

import (
	"log/slog"
	"sync"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/rendezvous"
)

// A meeting is the service's side of how agents learn of each other: it answers
// those that ask, from memory, over one connection. A new one knows nobody: what
// another knew may be long past, since nobody could ask while the broker was away.
type meeting struct {
	log *slog.Logger

	mu        sync.Mutex // guards directory
	directory *rendezvous.Directory
}

func newMeeting(now time.Time, log *slog.Logger) *meeting {
	return &meeting{log: log, directory: rendezvous.NewDirectory(now)}
}

// serve answers until the connection ends, or stop is called.
func (m *meeting) serve(conn *bus.Conn) (stop func(), err error) {
	s := conn.Subjects()
	return conn.Serve(s.AnyPeers(), func(r bus.Request) {
		_, node, ok := s.BoxOf(r.Subject, "peers")
		// This service may publish to subjects that the node may not.
		if !ok || !bus.Foreign(r.Reply) && !bus.InboxOf(node, r.Reply) {
			return
		}
		answer, err := m.ask(time.Now(), node, r.Data)
		if err == nil {
			err = r.Respond(answer)
		}
		if err != nil {
			m.log.Debug("a node that asks for peers gets none", "component", "app", "node", node, "err", err)
		}
	})
}

func (m *meeting) ask(now time.Time, node muster.NodeName, data []byte) ([]byte, error) {
	r, err := rendezvous.Decode[rendezvous.Request](data)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	answer, err := m.directory.Ask(now, string(node), r)
	m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return rendezvous.Encode(answer)
}

// forget has a node that was removed named to nobody any more.
func (m *meeting) forget(node muster.NodeName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.directory.Forget(string(node))
}
