package enrol

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// MaxFailures is how many wrong secrets void an invitation.
const MaxFailures = 10

// Limits of what is read from the wire.
const (
	maxRequest = 4 << 10
	maxAnswer  = 64 << 10
)

// An invitation is stored under invite.<token id>.
type invitation struct {
	Node     muster.NodeName `json:"node"`
	Secret   []byte          `json:"secret_sha256"`
	Expires  time.Time       `json:"expires"`
	Failures int             `json:"failures,omitempty"`
	UsedBy   string          `json:"used_by,omitempty"` // public key
	UsedAt   time.Time       `json:"used_at,omitzero"`
	Void     string          `json:"void,omitempty"` // why
}

// A removal is stored under remove.<node>. Whatever else stands there does not
// count.
type removal struct {
	By     string `json:"by,omitempty"`
	Reason string `json:"reason,omitempty"`
}

func isRemoval(data []byte) bool {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	var r *removal
	return d.Decode(&r) == nil && r != nil && !d.More()
}

// lastRemoval is the sequence of the newest order to remove the node, 0 for
// none.
func lastRemoval(ctx context.Context, conn *bus.Conn, node muster.NodeName) (uint64, error) {
	m, err := conn.Record(ctx, "remove."+string(node))
	switch {
	case muster.KindOf(err) == muster.NotFound:
		return 0, nil
	case err != nil:
		return 0, err
	case !isRemoval(m.Data):
		return 0, nil
	}
	return m.Seq, nil
}

// A NodeRecord is what operators say of a node, stored under node.<node>.
type NodeRecord struct {
	Mailbox string            `json:"mailbox,omitempty"` // see bus.NewMailbox
	Labels  map[string]string `json:"labels,omitempty"`
	Invited time.Time         `json:"invited,omitzero"`
}

// What a newcomer says and hears.
type (
	request struct {
		Secret    []byte `json:"secret"`
		PublicKey string `json:"public_key"`
	}
	answer struct {
		JWT   string        `json:"jwt,omitempty"`
		Error *muster.Error `json:"error,omitempty"`
	}
)

// get reads a record, and the sequence for put, which says what was written
// first. Without a record, it is 0.
func get(ctx context.Context, conn *bus.Conn, key string, into any) (seq uint64, err error) {
	m, err := conn.Record(ctx, key)
	if muster.KindOf(err) == muster.NotFound {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if err := json.Unmarshal(m.Data, into); err != nil {
		return 0, muster.Errorf(muster.Corrupt, "the record %s of the fleet cannot be read: %w", key, err)
	}
	return m.Seq, nil
}

// put writes a record if it still has the sequence, or fails with Conflict.
func put(ctx context.Context, conn *bus.Conn, key string, record any, seq uint64) error {
	data, err := json.Marshal(record)
	if err != nil {
		return muster.Errorf(muster.Internal, "write the record %s: %w", key, err)
	}
	return conn.PutRecord(ctx, key, data, seq)
}
