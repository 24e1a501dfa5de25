package order

import (
	"bytes"
	"crypto/ed25519"
	"slices"
	"strings"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/cbor"
)

// hintDomain begins what the signature of a hint covers.
const hintDomain = "muster/hint/0"

// Limits of a hint, besides MaxHint.
const (
	MaxHintURLs = 8
	maxHintURL  = 256 // bytes
)

// How often a node tells its hint, and looks at those of others.
const (
	hintFresh  = 3 // HELLOs to all that have a hint when it is new
	hintTurn   = 6 // after that each sixth has it
	checkBurst = 20
	checkRate  = 2 // signatures of hints that are not the node's own
)

// A Hint says where the broker of the constellation's fleet is. An operator has
// signed it: that a member says so is no reason to go there.
type Hint struct {
	IssuedAt int64 // Unix milliseconds; the newest counts
	URLs     []string
}

// String returns the addresses, with spaces between them.
func (h Hint) String() string { return strings.Join(h.URLs, " ") }

func (h Hint) valid() bool {
	return len(h.URLs) > 0 && len(h.URLs) <= MaxHintURLs && !slices.ContainsFunc(h.URLs, func(u string) bool {
		return u == "" || len(u) > maxHintURL || strings.ContainsFunc(u, func(r rune) bool { return r <= ' ' || r > '~' })
	})
}

// append appends the time and the addresses, the end of what is signed and the
// middle of what is sent.
func (h Hint) append(b []byte) []byte {
	return cbor.AppendTexts(cbor.AppendInt(b, h.IssuedAt), h.URLs)
}

func (h Hint) signed(cluster string) []byte {
	return h.append(cbor.AppendText(cbor.AppendText(cbor.AppendArray(nil, 4), hintDomain), cluster))
}

// SignHint returns a hint for a constellation in the form that HELLO has it, at
// most MaxHint bytes: see OpenHint. Addresses that do not fit are an error of
// kind Invalid.
func SignHint(h Hint, cluster string, key ed25519.PrivateKey) ([]byte, error) {
	if !h.valid() {
		return nil, muster.Errorf(muster.Invalid, "a hint has 1 to %d addresses of at most %d printable characters", MaxHintURLs, maxHintURL)
	}
	operator := OperatorID(key.Public().(ed25519.PublicKey))
	b := h.append(cbor.AppendBytes(cbor.AppendArray(nil, 4), operator[:]))
	b = cbor.AppendBytes(b, ed25519.Sign(key, h.signed(cluster)))
	if len(b) > MaxHint {
		return nil, muster.Errorf(muster.Invalid, "a hint with these addresses has %d bytes; %d are possible", len(b), MaxHint)
	}
	return b, nil
}

var errHint = muster.Errorf(muster.Denied, "the hint of the broker's address is not signed by an operator of this constellation")

// OpenHint reads what SignHint has made. One that none of the operators has
// signed for this very constellation is an error of kind Denied.
func OpenHint(data []byte, cluster string, operators []ed25519.PublicKey) (Hint, error) {
	if len(data) > MaxHint {
		return Hint{}, errHint
	}
	r := cbor.NewReader(data)
	r.Array(4)
	operator := readNodeID(r)
	h := Hint{IssuedAt: r.Int(), URLs: r.Texts(MaxHintURLs, maxHintURL)}
	var sig [ed25519.SignatureSize]byte
	r.Fixed(sig[:])
	if !r.End() || !h.valid() {
		return Hint{}, errHint
	}
	for _, key := range operators {
		if OperatorID(key) == operator && ed25519.Verify(key, h.signed(cluster), sig[:]) {
			return h, nil
		}
	}
	return Hint{}, errHint
}

// A told hint is the newest that a node has, as it passes it on.
type told struct {
	Hint
	data []byte
	turn int // HELLOs to all since it is there
}

// TakeHint has the node tell newcomers where the broker is, if the hint is newer
// than what it tells already. A wrong one is an error of kind Denied.
func (n *Node) TakeHint(data []byte) error {
	h, err := OpenHint(data, n.cfg.Cluster, n.cfg.Operators)
	if err == nil {
		n.prefer(h, data)
	}
	return err
}

// prefer keeps a hint that is good if it is the newest.
func (n *Node) prefer(h Hint, data []byte) {
	if len(n.hint.data) == 0 || h.IssuedAt > n.hint.IssuedAt {
		n.hint = told{Hint: h, data: bytes.Clone(data)}
		n.event(Event{Kind: Hinted, Data: n.hint.data})
	}
}

// Hint returns the newest hint that the node has, without addresses if it has none.
func (n *Node) Hint() Hint { return n.hint.Hint }

// hear looks at the hint of another. The node passes it on if it is the newest,
// so that one that an operator gave to few reaches all. One from the future is
// not taken: it would keep later ones away.
func (n *Node) hear(now time.Time, p *peer, data []byte) {
	if bytes.Equal(data, n.hint.data) {
		p.hint = n.hint.String()
		return
	}
	if !n.checks.take(now, checkBurst, checkRate) {
		return
	}
	h, err := OpenHint(data, n.cfg.Cluster, n.cfg.Operators)
	if err != nil || time.UnixMilli(h.IssuedAt).Sub(now) > maxSkew {
		p.hint = ""
		return
	}
	p.hint = h.String()
	n.prefer(h, data)
}

// tells returns the hint for a HELLO, nil if it has none. A newcomer gets it at
// once; to all it is repeated seldom, since it is longer than the rest.
func (n *Node) tells(to Address, newcomer bool) []byte {
	if len(n.hint.data) == 0 {
		return nil
	}
	if newcomer {
		return n.hint.data
	}
	if to == Multicast {
		n.hint.turn++
	}
	if n.hint.turn <= hintFresh || n.hint.turn%hintTurn == 0 {
		return n.hint.data
	}
	return nil
}
