package bus

import (
	"context"
	"encoding/json"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/musterfleet/muster"
)

// A receipt of the broker promises that a command outlasts a power cut. That
// holds when its servers sync each write, which is a setting of theirs
// (sync_interval: always) that a NATS server tells nobody but users of its
// system account. The service is one, looks, and leaves what it saw among the
// fleet's records, for callers.

// SyncRequest is the subject on which a user of the system account asks all
// servers how they store.
const SyncRequest = "$SYS.REQ.SERVER.PING.JSZ"

// syncWait is how long servers of a cluster are waited for that do not answer.
const syncWait = 2 * time.Second

// maxServers bounds what is kept of the answers.
const maxServers = 100

// A ServerSync is how a server of the broker treats what it stores.
type ServerSync struct {
	Server string `json:"server"` // its name
	Always bool   `json:"always"` // synced before the receipt; else some time later
}

// A Durability is what was seen of the servers of the broker.
type Durability struct {
	Seen    time.Time    `json:"-"` // by the broker's clock
	Servers []ServerSync `json:"servers"`
	Silent  int          `json:"silent,omitempty"` // servers of the cluster that did not answer
}

// AskDurability asks the servers, as a user of the system account who may publish
// to SyncRequest.
func (c *Conn) AskDurability(ctx context.Context) (d Durability, err error) {
	inbox := c.nc.NewRespInbox()
	answers, err := c.nc.SubscribeSync(inbox)
	if err != nil {
		return d, natsError(err, "ask how the broker stores")
	}
	defer func() { _ = answers.Unsubscribe() }() // fails only when the connection has ended
	if err := c.nc.PublishRequest(SyncRequest, inbox, nil); err != nil {
		return d, natsError(err, "ask how the broker stores")
	}
	ctx, cancel := context.WithTimeout(ctx, syncWait)
	defer cancel()
	for size := 1; len(d.Servers) < min(size, maxServers); {
		m, err := answers.NextMsgWithContext(ctx)
		if err != nil && len(d.Servers) == 0 {
			return d, natsError(err, "ask how the broker stores")
		}
		if err != nil {
			d.Silent = size - len(d.Servers)
			return d, nil
		}
		if s, cluster, ok := parseSync(m); ok {
			d.Servers, size = append(d.Servers, s), max(size, cluster)
		}
	}
	return d, nil
}

// parseSync reads an answer, and how many servers the one who gave it knows of.
// It is not ok of a server that stores nothing.
func parseSync(m *nats.Msg) (s ServerSync, cluster int, ok bool) {
	var answer struct {
		Server struct{ Name string }
		Data   struct {
			Disabled bool
			Config   struct {
				Always bool `json:"sync_always"`
			}
			Cluster struct {
				Size int `json:"cluster_size"`
			} `json:"meta_cluster"`
		}
	}
	if json.Unmarshal(m.Data, &answer) != nil || answer.Server.Name == "" || answer.Data.Disabled {
		return s, 0, false
	}
	return ServerSync{answer.Server.Name, answer.Data.Config.Always}, answer.Data.Cluster.Size, true
}

const keyDurability = "durability"

// PutDurability keeps what was seen, for callers.
func (c *Conn) PutDurability(ctx context.Context, d Durability) error {
	data, err := json.Marshal(d)
	if err != nil {
		return muster.Errorf(muster.Internal, "keep how the broker stores: %w", err)
	}
	return c.AddRecord(ctx, keyDurability, data)
}

// Durability returns what was seen last, or an error of kind NotFound if nobody
// has looked.
func (c *Conn) Durability(ctx context.Context) (d Durability, err error) {
	m, err := c.Record(ctx, keyDurability)
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal(m.Data, &d); err != nil {
		return d, muster.Errorf(muster.Corrupt, "what is stored of the broker's servers cannot be read: %w", err)
	}
	d.Seen = m.Time
	return d, nil
}
