// Package seal puts frames of the order protocol into envelopes that only the
// holders of one constellation's secret can open, and takes them out again.
//
// An envelope (version 0) is
//
//	0x00 | length of header | header | payload
//
// The header is the CBOR array [cluster key, 32-byte nonce, length of payload],
// in its one deterministic encoding. BLAKE2b of 56 bytes, keyed with the secret,
// over a label and everything before the payload gives the key (32 bytes) and the
// nonce (24 bytes) of an XSalsa20-Poly1305 secretbox, which is the payload. So
// all 32 bytes of the nonce count, and the header is authenticated.
//
// The package has no state between envelopes: who replays one is the business of
// the caller, and what is inside is opaque.
package seal

import (
	"fmt"
	"hash"
	"io"
	"sync"
	"unicode/utf8"

	"golang.org/x/crypto/blake2b"
	"golang.org/x/crypto/nacl/secretbox"

	"github.com/musterfleet/muster"
)

// Sizes in bytes.
const (
	SecretSize  = 32
	MaxCluster  = 32                        // of a cluster key
	MaxHeader   = 256                       // of all that stands before the payload
	MaxEnvelope = 64 << 10                  // of a whole envelope
	NonceSize   = 32                        // of version 0
	maxOverhead = 74 + 16                   // two bytes, the longest header, the tag
	MaxContent  = MaxEnvelope - maxOverhead // of what is sealed
)

// What an envelope begins with.
const (
	version  = 0
	original = 1 // what the first program of this protocol wrote
)

// originalNonceSize is the length of the nonce in an original envelope.
const originalNonceSize = 24

// label keeps keys of this use apart from any other use of the secret.
var label = []byte("muster-envelope-v0")

// Sizes of what secretbox takes.
const (
	keySize      = 32
	boxNonceSize = 24
)

// Why an envelope is refused. They are values, since refusing happens at the
// rate at which strangers send.
var (
	ErrMalformed = muster.Errorf(muster.Invalid, "not an envelope")
	ErrVersion   = muster.Errorf(muster.Unsupported, "an envelope of another version")
	ErrCluster   = muster.Errorf(muster.Denied, "an envelope of another constellation")
	ErrForged    = muster.Errorf(muster.Denied, "an envelope that was not sealed with this constellation's secret")
	ErrTooLarge  = muster.Errorf(muster.Invalid, "more than an envelope of %d bytes can hold", MaxEnvelope)
)

// A Box seals and opens the envelopes of one constellation. It may be used from
// several goroutines if its source of nonces may.
type Box struct {
	cluster string
	secret  [SecretSize]byte
	nonces  io.Reader
	keys    *keys
}

// Keys are derived with one hash, since one for each envelope would be most of
// what a small agent leaves to its collector of garbage.
type keys struct {
	mu   sync.Mutex // guards all
	hash hash.Hash
	sum  [keySize + boxNonceSize]byte
}

// New returns the box of a constellation: its key, at most MaxCluster bytes of
// text, and its secret of SecretSize bytes. Nonces are read from the last
// parameter, which is crypto/rand.Reader outside tests.
func New(cluster string, secret []byte, nonces io.Reader) (*Box, error) {
	if cluster == "" || len(cluster) > MaxCluster || !utf8.ValidString(cluster) {
		return nil, muster.Errorf(muster.Invalid, "a cluster key has 1 to %d bytes of UTF-8 text", MaxCluster)
	}
	if len(secret) != SecretSize {
		return nil, muster.Errorf(muster.Invalid, "a constellation's secret has %d bytes, not %d", SecretSize, len(secret))
	}
	k := &keys{}
	var err error
	if k.hash, err = blake2b.New(len(k.sum), secret); err != nil {
		return nil, muster.Errorf(muster.Internal, "a keyed hash: %w", err)
	}
	return &Box{cluster: cluster, secret: [SecretSize]byte(secret), nonces: nonces, keys: k}, nil
}

// Format hides the secret from every verb of package fmt.
func (b Box) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[sealed]") }

// Seal appends an envelope with the content to dst, which must not overlap it.
// It fails with ErrTooLarge, or when there is no nonce to be had.
func (b *Box) Seal(dst, content []byte) ([]byte, error) {
	if len(content) > MaxContent {
		return dst, ErrTooLarge
	}
	start := len(dst)
	out := append(dst, version, 0)
	out = append(out, 0x83) // array of three
	out = appendHead(out, 0x60, len(b.cluster))
	out = append(out, b.cluster...)
	out = appendHead(out, 0x40, NonceSize)
	var zero [NonceSize]byte
	out = append(out, zero[:]...)
	if _, err := io.ReadFull(b.nonces, out[len(out)-NonceSize:]); err != nil {
		return dst, muster.Errorf(muster.Unavailable, "nonce: %w", err)
	}
	out = appendHead(out, 0x00, len(content)+secretbox.Overhead)
	out[start+1] = byte(len(out) - start - 2)
	key, nonce := b.derive(out[start:])
	return secretbox.Seal(out, content, &nonce, &key), nil
}

// Open appends the content of an envelope to dst, which must not overlap it. The
// envelope must be there whole and nothing after it. The error is one of this
// package's variables; dst is then returned as it was.
func (b *Box) Open(dst, envelope []byte) ([]byte, error) {
	h, err := b.header(envelope, version)
	if err != nil {
		return dst, err
	}
	key, nonce := b.derive(envelope[:h.end])
	return open(dst, envelope[h.end:], &nonce, &key)
}

// OpenOriginal is Open for the envelopes that the first program of this protocol
// wrote: version 1, a nonce of 24 bytes, and the raw secret as the key. Their
// header is not authenticated. Nothing seals such envelopes.
func (b *Box) OpenOriginal(dst, envelope []byte) ([]byte, error) {
	h, err := b.header(envelope, original)
	if err != nil {
		return dst, err
	}
	nonce := [24]byte(h.nonce)
	return open(dst, envelope[h.end:], &nonce, &b.secret)
}

func open(dst, payload []byte, nonce *[24]byte, key *[SecretSize]byte) ([]byte, error) {
	out, ok := secretbox.Open(dst, payload, nonce, key)
	if !ok {
		return dst, ErrForged
	}
	return out, nil
}

// header reads the header of a whole envelope of this box's constellation.
func (b *Box) header(envelope []byte, want byte) (header, error) {
	if len(envelope) > 0 && envelope[0] != want {
		return header{}, ErrVersion
	}
	h, ok, err := parse(envelope)
	switch {
	case err != nil:
		return header{}, err
	case !ok || len(envelope) != h.end+h.payload:
		return header{}, ErrMalformed
	case string(h.cluster) != b.cluster:
		return header{}, ErrCluster
	}
	return h, nil
}

// derive returns the key and the nonce of the secretbox that follows a header.
func (b *Box) derive(header []byte) (key [keySize]byte, nonce [boxNonceSize]byte) {
	k := b.keys
	k.mu.Lock()
	defer k.mu.Unlock()
	k.hash.Reset()
	k.hash.Write(label)
	k.hash.Write(header)
	k.hash.Sum(k.sum[:0])
	return [keySize]byte(k.sum[:]), [boxNonceSize]byte(k.sum[keySize:])
}

// Size returns how many bytes the whole envelope of version 0 has that begins
// with start: 0 while that cannot be known yet, for which MaxHeader bytes are
// always enough. What it says is not authenticated.
func Size(start []byte) (int, error) {
	if len(start) > 0 && start[0] != version {
		return 0, ErrVersion
	}
	h, ok, err := parse(start)
	if err != nil || !ok {
		return 0, err
	}
	return h.end + h.payload, nil
}

// A header is what stands before the payload.
type header struct {
	cluster, nonce []byte
	payload        int // length in bytes
	end            int // where the payload begins
}

// parse reads the header that data begins with; ok is false while data is too
// short for it. It accepts only the deterministic encoding, so that an envelope
// has no second form.
func parse(data []byte) (h header, ok bool, err error) {
	if len(data) < 2 {
		return h, false, nil
	}
	h.end = 2 + int(data[1])
	if h.end > MaxHeader {
		return h, false, ErrMalformed
	}
	if len(data) < h.end {
		return h, false, nil
	}
	nonceSize := NonceSize
	if data[0] == original {
		nonceSize = originalNonceSize
	}
	r := reader{data[2:h.end], true}
	r.expect(0x83)
	h.cluster = r.take(r.head(0x60))
	size := r.head(0x40)
	h.nonce = r.take(size)
	h.payload = r.head(0x00)
	if !r.ok || len(r.rest) != 0 || len(h.cluster) > MaxCluster || size != nonceSize || h.payload < secretbox.Overhead {
		return h, false, ErrMalformed
	}
	if h.end+h.payload > MaxEnvelope {
		return h, false, ErrTooLarge
	}
	return h, true, nil
}

// A reader takes CBOR apart. After the first mistake it yields nothing more.
type reader struct {
	rest []byte
	ok   bool
}

func (r *reader) take(n int) []byte {
	if !r.ok || n > len(r.rest) {
		r.ok = false
		return nil
	}
	taken := r.rest[:n]
	r.rest = r.rest[n:]
	return taken
}

func (r *reader) expect(b byte) {
	if got := r.take(1); r.ok && got[0] != b {
		r.ok = false
	}
}

// head reads the head of an item of the major type, which has to be the shortest
// for its number, and returns the number, below 65,536.
func (r *reader) head(major byte) int {
	first := r.take(1)
	if !r.ok {
		return 0
	}
	small := first[0] ^ major // above 31 when the type is another
	n, more, least := int(small), 0, 0
	switch {
	case small == 24:
		n, more, least = 0, 1, 24
	case small == 25:
		n, more, least = 0, 2, 256
	case small > 25:
		r.ok = false
	}
	for _, b := range r.take(more) {
		n = n<<8 | int(b)
	}
	if n < least {
		r.ok = false
	}
	return n
}

// appendHead appends the shortest head of an item with a number below 65,536.
func appendHead(dst []byte, major byte, n int) []byte {
	switch {
	case n < 24:
		return append(dst, major|byte(n))
	case n < 256:
		return append(dst, major|24, byte(n))
	}
	return append(dst, major|25, byte(n>>8), byte(n))
}
