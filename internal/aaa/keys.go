package aaa

import (
	"crypto/ed25519"
	"unicode"

	"github.com/nats-io/nkeys"

	"github.com/musterfleet/muster"
)

// Lengths of nkeys in characters: 35 bytes in base32, and one more for a seed,
// which has two bytes of prefix.
const (
	publicText = 56
	seedText   = 58
)

// A keyPair signs. The private key lives in a closure, where no printing
// reaches it.
type keyPair struct {
	public string // nkey
	seed   Secret // nkey
	sign   func([]byte) []byte
}

// parseSeed reads an nkey seed of one type. Errors never quote the seed.
func parseSeed(prefix nkeys.PrefixByte, seed Secret) (keyPair, error) {
	text := seed.Reveal()
	if len(text) != seedText {
		return keyPair{}, muster.Errorf(muster.Invalid, "%s seed has %d characters; expected %d", prefix, len(text), seedText)
	}
	kind, raw, err := nkeys.DecodeSeed(text)
	if err != nil {
		return keyPair{}, muster.Errorf(muster.Invalid, "%s seed cannot be read; expected an nkey seed such as S%s...", prefix, letter(prefix))
	}
	if kind != prefix {
		return keyPair{}, muster.Errorf(muster.Invalid, "seed is of type %s; expected type %s", kind, prefix)
	}
	private := ed25519.NewKeyFromSeed(raw)
	public, err := nkeys.Encode(prefix, private.Public().(ed25519.PublicKey))
	if err != nil {
		return keyPair{}, muster.Errorf(muster.Internal, "encode public key: %w", err)
	}
	sign := func(message []byte) []byte { return ed25519.Sign(private, message) }
	return keyPair{public: string(public), seed: seed, sign: sign}, nil
}

// newKeyPair makes a random key of one type.
func newKeyPair(prefix nkeys.PrefixByte) (keyPair, error) {
	seed, err := nkeys.EncodeSeed(prefix, RandomSecret().Reveal())
	if err != nil {
		return keyPair{}, muster.Errorf(muster.Internal, "make %s key: %w", prefix, err)
	}
	return parseSeed(prefix, NewSecret(seed))
}

// parsePublic reads a public nkey of one type. It is stricter than the
// library, which takes line breaks within and keys of other lengths.
func parsePublic(prefix nkeys.PrefixByte, text string) (ed25519.PublicKey, error) {
	if len(text) == publicText {
		if key, err := nkeys.Decode(prefix, []byte(text)); err == nil && len(key) == ed25519.PublicKeySize {
			return key, nil
		}
	}
	return nil, muster.Errorf(muster.Invalid, "%q is not a public key of type %s; expected %d characters that begin with %s",
		clip(text, 80), prefix, publicText, letter(prefix))
}

// letter returns what a public nkey of the type begins with.
func letter(prefix nkeys.PrefixByte) string {
	switch prefix {
	case nkeys.PrefixByteAccount:
		return "A"
	case nkeys.PrefixByteOperator:
		return "O"
	default:
		return "U"
	}
}

// NewUserKey makes a key for a caller, or for the NATS credentials of a node or
// caller. It returns the seed and the public key as nkeys (SU..., U...).
func NewUserKey() (seed Secret, public string, err error) {
	pair, err := newKeyPair(nkeys.PrefixByteUser)
	return pair.seed, pair.public, err
}

// PublicUserKey returns the public key of a user's seed.
func PublicUserKey(seed Secret) (string, error) {
	pair, err := parseSeed(nkeys.PrefixByteUser, seed)
	return pair.public, err
}

// checkName holds names that end up in logs, policies and tables.
func checkName(what, s string, limit int) error {
	switch {
	case s == "":
		return muster.Errorf(muster.Invalid, "%s is empty", what)
	case len(s) > limit:
		return muster.Errorf(muster.Invalid, "%s %q has %d bytes; at most %d are allowed", what, clip(s, 80), len(s), limit)
	}
	for i, r := range s {
		// Spaces other than ' ' and invisible characters are not graphic enough
		// to tell two names apart.
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return muster.Errorf(muster.Invalid, "%s %q: character %q at byte %d is not allowed", what, clip(s, 80), r, i+1)
		}
	}
	return nil
}

// checkFleet checks the id of a fleet: 1 to MaxFleet printable ASCII
// characters without a space.
func checkFleet(fleet string) error {
	if err := checkName("fleet id", fleet, MaxFleet); err != nil {
		return err
	}
	for i, r := range fleet {
		if r <= ' ' || r > '~' {
			return muster.Errorf(muster.Invalid, "fleet id %q: character %q at byte %d is not allowed", fleet, r, i+1)
		}
	}
	return nil
}

// MaxFleet is the longest fleet id in bytes.
const MaxFleet = 128

// clip keeps hostile text from filling a message or a line. It cuts between
// characters.
func clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && s[limit]&0xC0 == 0x80 {
		limit--
	}
	return s[:limit] + "..."
}

// IsUserKey reports whether the text is a public key of type user (U...).
func IsUserKey(text string) bool {
	_, err := parsePublic(nkeys.PrefixByteUser, text)
	return err == nil
}
