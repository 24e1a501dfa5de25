// Package rendezvous is how agents of one constellation learn from the broker
// where others of them can be reached when it is gone.
//
//	Request    what an agent says of itself, to the service at the broker
//	Directory  the service's list of agents, by constellation
//	Answer     some of the others, which the agent keeps
//	Saved      the agent's file of them
//
// A constellation is known by its Tag, which only those can name who have its
// secret. All that is learnt is a hint of where to dial, and no more: whoever
// answers there has to authenticate as anybody else does.
//
// What travels is JSON in one spelling: what is not written exactly as Encode
// writes it is refused, with unknown and repeated keys and all else that two
// readers could understand in two ways.
package rendezvous

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"slices"

	"github.com/musterfleet/muster"
)

// Limits of what is said and kept.
const (
	MaxAddresses = 4       // of one agent
	MaxPeers     = 16      // that one agent is told of, and keeps
	MaxMessage   = 8 << 10 // bytes of a request, an answer or a file
)

// A Tag names a constellation to the broker, which learns nothing of its secret
// from it.
type Tag [16]byte

// An ID is the first part of an agent's order id, as in frames.
type ID [8]byte

// tagLabel keeps tags apart from any other use of the secret.
const tagLabel = "muster-rendezvous-v0\x00"

// NewTag returns the tag of the constellation with the cluster key and secret:
// HMAC-SHA256 over them, cut.
func NewTag(cluster string, secret []byte) Tag {
	m := hmac.New(sha256.New, secret)
	m.Write([]byte(tagLabel + cluster))
	return Tag(m.Sum(nil)[:len(Tag{})])
}

// MarshalText writes it in hex.
func (t Tag) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, t[:]), nil }

// UnmarshalText reads what MarshalText writes.
func (t *Tag) UnmarshalText(text []byte) error { return unhex(t[:], text) }

// MarshalText writes it in hex.
func (id ID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText reads what MarshalText writes.
func (id *ID) UnmarshalText(text []byte) error { return unhex(id[:], text) }

func unhex(into, text []byte) error {
	if len(text) != hex.EncodedLen(len(into)) {
		return muster.Errorf(muster.Invalid, "%d characters of hex; expected %d", len(text), hex.EncodedLen(len(into)))
	}
	_, err := hex.Decode(into, text)
	return err
}

// A Peer is where an agent's port for Orders may be reached.
type Peer struct {
	ID ID               `json:"id"`
	At []netip.AddrPort `json:"at"` // the best first
}

func (p Peer) valid() bool {
	return len(p.At) > 0 && len(p.At) <= MaxAddresses && !slices.ContainsFunc(p.At, func(a netip.AddrPort) bool { return !Dialable(a, true) })
}

// Dialable reports whether an address can be that of one other machine. Those of
// this very machine count if loopback is true. Addresses that mean something
// else on each link, or more than one machine, do not.
func Dialable(a netip.AddrPort, loopback bool) bool {
	ip := a.Addr()
	switch {
	case a.Port() == 0, !ip.IsValid(), ip.Is4In6(), ip.Zone() != "":
		return false
	case ip.IsLoopback():
		return loopback
	case ip.Is4():
		first := ip.As4()[0]
		return first != 0 && first < 224 && !ip.IsLinkLocalUnicast() // above are multicast, reserved, broadcast
	}
	return !ip.IsUnspecified() && !ip.IsMulticast() && !ip.IsLinkLocalUnicast()
}

// A Request is what an agent says of itself when it asks for others.
type Request struct {
	Tag Tag `json:"tag"`
	Peer
}

// An Answer names others of the constellation, the most useful first.
type Answer struct {
	// Settled is false for a while after the service's start, when it has not
	// heard of all yet: ask again soon, and forget nobody.
	Settled bool   `json:"settled"`
	Peers   []Peer `json:"peers"`
}

// Saved is what an agent keeps.
type Saved struct {
	Tag   Tag    `json:"tag"`
	Peers []Peer `json:"peers"`
}

// A message is what Encode and Decode know.
type message interface{ valid() bool }

func (r Request) valid() bool { return r.Peer.valid() }
func (a Answer) valid() bool  { return validPeers(a.Peers) }
func (s Saved) valid() bool   { return validPeers(s.Peers) }

func validPeers(all []Peer) bool {
	return all != nil && len(all) <= MaxPeers && !slices.ContainsFunc(all, func(p Peer) bool { return !p.valid() })
}

// Encode writes a Request, an Answer or a Saved.
func Encode[T message](m T) ([]byte, error) {
	data, err := json.Marshal(m)
	if err != nil || !m.valid() {
		return nil, muster.Errorf(muster.Internal, "write a %T that is not valid: %w", m, err)
	}
	return data, nil
}

// Decode reads what Encode writes. Its error is of kind Invalid.
func Decode[T message](data []byte) (T, error) {
	var m, none T
	if len(data) > MaxMessage {
		return none, muster.Errorf(muster.Invalid, "%d bytes; at most %d are read", len(data), MaxMessage)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return none, muster.Errorf(muster.Invalid, "it is not a %T: %w", m, err)
	}
	again, err := Encode(m)
	if err != nil || !bytes.Equal(again, data) {
		return none, muster.Errorf(muster.Invalid, "it is not a %T that is valid and written as it is to be", m)
	}
	return m, nil
}

// Merge returns what an agent keeps: what it is told now, and as long as the
// service is not settled what it knew, too. Itself, addresses that it may not
// dial, and all beyond MaxPeers are left out.
func Merge(known []Peer, told Answer, self ID, loopback bool) []Peer {
	all := told.Peers
	if !told.Settled {
		all = slices.Concat(all, known)
	}
	kept := []Peer{}
	for _, p := range all {
		p.At = slices.DeleteFunc(slices.Clone(p.At), func(a netip.AddrPort) bool { return !Dialable(a, loopback) })
		double := slices.ContainsFunc(kept, func(k Peer) bool { return k.ID == p.ID })
		if p.ID != self && len(p.At) > 0 && !double && len(kept) < MaxPeers {
			kept = append(kept, p)
		}
	}
	return kept
}
