package order

import (
	"crypto/ed25519"
	"time"

	"golang.org/x/crypto/blake2b"

	"github.com/musterfleet/muster"
)

// domain begins everything that is signed, so that no signature made for this
// protocol means anything elsewhere.
const domain = "muster/op/0"

// Bounds of what a CALL may ask for.
const (
	MaxHold  = 15 * time.Second
	MinLease = 4 * time.Second // of a Caller; less would be over when all have heard of it
	MaxLease = 900 * time.Second
	maxSkew  = 30 * time.Second // between the caller's clock and a node's
)

// Flags of a CALL.
const FlagBreakGlass uint8 = 1 // precedes Calls without it

// A Signed is what the signature of a wave covers. The fields of a CALL and of
// the later kinds differ.
type Signed struct {
	Cluster  string
	Order    OrderID
	Seq      uint32
	Kind     Kind
	IssuedAt int64 // Unix milliseconds of the caller's clock

	// Of a CALL, which the operator's key signs.
	Hold     uint32 // milliseconds for which a node stays in Call
	Lease    uint32 // milliseconds for which it stays in Order
	Scope    string // selector of the nodes that are asked; empty: all
	Operator NodeID // OperatorID of the key
	Key      [ed25519.PublicKeySize]byte
	Flags    uint8

	// Of later kinds, which the order's key signs.
	Selector string   // of a QUERY: the members that are asked; empty: all
	Hash     [32]byte // of a QUERY: of its body

	Repeat uint8 // how often the wave was repeated
}

// number is what frames name the wave by.
func (s *Signed) number() uint32 { return uint32(s.Repeat)*firstRepeat + s.Seq }

// OperatorID returns the id by which a CALL names its operator's key: the
// first 8 bytes of its BLAKE2b-256 hash.
func OperatorID(key ed25519.PublicKey) NodeID {
	sum := blake2b.Sum256(key)
	return NodeID(sum[:8])
}

// Sign makes a wave of a signed part: a CALL with the operator's key, others
// with the order's. The query is the body of a QUERY, from EncodeQuery, and nil
// otherwise; its hash is filled in.
func Sign(s Signed, key ed25519.PrivateKey, query []byte) (Wave, error) {
	if s.Kind == KindQuery {
		s.Hash = blake2b.Sum256(query)
	}
	data := s.bytes()
	w := Wave{Order: s.Order, Seq: s.number(), Kind: s.Kind, Signed: data, Query: query}
	w.Sig = [ed25519.SignatureSize]byte(ed25519.Sign(key, data))
	return w, nil
}

var errSigned = muster.Errorf(muster.Invalid, "the signed part of a wave is malformed")

// Open reads the signed part of a wave and checks everything about it but the
// signature: its form, the limits, and that it speaks of this very wave and
// query.
func (w *Wave) Open() (Signed, error) {
	s, ok := w.parse()
	if !ok || s.Order != w.Order || s.Seq > MaxSeq || s.number() != w.Seq || s.Kind != w.Kind || len(s.Cluster) > MaxCluster {
		return Signed{}, errSigned
	}
	switch s.Kind {
	case KindCall:
		ok = s.Seq == 0 && s.Lease > 0 && int64(s.Hold) <= MaxHold.Milliseconds() && int64(s.Lease) <= MaxLease.Milliseconds() && len(s.Scope) <= MaxSelector
	case KindQuery:
		ok = s.Seq > 0 && len(s.Selector) <= MaxSelector && s.Hash == blake2b.Sum256(w.Query)
	default:
		ok = s.Seq > 0 && s.Selector == "" && s.Hash == [32]byte{}
	}
	if !ok {
		return Signed{}, errSigned
	}
	return s, nil
}

// Verify reports whether the key signed the wave.
func (w *Wave) Verify(key ed25519.PublicKey) bool {
	return len(key) == ed25519.PublicKeySize && ed25519.Verify(key, w.Signed, w.Sig[:])
}
