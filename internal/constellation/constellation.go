// Package constellation reads and makes the file that agents of one constellation
// share, and the file that makes somebody its operator.
//
// Who has the constellation's file can talk to its agents and see them; who has
// an operator's file can call them to order. Both are JSON with mode 0600:
//
//	{"key": "lab", "secret": "<32 bytes>", "operator": "<ed25519 public key>"}
//	{"key": "lab", "seed": "<32 bytes>"}
//
// Bytes are base64 with padding. Where there are several operators, "operator"
// is an array. The constellation's file may have a "hint" too, which tells where
// the broker is and is signed by an operator.
package constellation

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/musterfleet/muster"
)

// Limits of what is read.
const (
	MaxFile      = 8 << 10 // bytes of a file
	MaxKey       = 32      // bytes of a cluster key
	MaxOperators = 64
	MaxHint      = 1024 // bytes of a hint
	SecretSize   = 32
)

// A Secret is 32 bytes that nothing prints or marshals: see Reveal. It stands
// behind two pointers, since package fmt asks no method of what is in unexported
// fields, and for a verb that does not fit follows the first pointer.
type Secret struct{ bytes **[SecretSize]byte }

func newSecret(b *[SecretSize]byte) Secret { return Secret{&b} }

// Reveal returns a copy of the bytes, or nil when there are none.
func (s Secret) Reveal() []byte {
	if s.bytes == nil {
		return nil
	}
	return bytes.Clone((*s.bytes)[:])
}

// Format hides the secret from every verb of package fmt.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }

// MarshalText hides the secret from encoders.
func (Secret) MarshalText() ([]byte, error) { return []byte("[secret]"), nil }

// A Constellation is what its agents share.
type Constellation struct {
	Key       string              // its name on the wire, 1 to MaxKey bytes
	Secret    Secret              // seals what its agents say
	Operators []ed25519.PublicKey // who may call to order; at least one
	Hint      []byte              // where the broker is, signed: see package order; nil: nothing is said
}

// An Operator is what one who may call a constellation to order has.
type Operator struct {
	Key  string // of the constellation
	Seed Secret // of the ed25519 key
}

// PrivateKey returns the key that signs calls.
func (o Operator) PrivateKey() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(o.Seed.Reveal()) }

// PublicKey returns the key that the constellation's file names.
func (o Operator) PublicKey() ed25519.PublicKey {
	return o.PrivateKey().Public().(ed25519.PublicKey)
}

// Generate makes a constellation and its first operator, with the randomness of
// the reader: crypto/rand.Reader outside tests.
func Generate(key string, random io.Reader) (Constellation, Operator, error) {
	if err := validateKey(key); err != nil {
		return Constellation{}, Operator{}, err
	}
	var secret, seed [SecretSize]byte
	for _, b := range []*[SecretSize]byte{&secret, &seed} {
		if _, err := io.ReadFull(random, b[:]); err != nil {
			return Constellation{}, Operator{}, muster.Errorf(muster.Unavailable, "read random bytes: %w", err)
		}
	}
	o := Operator{Key: key, Seed: newSecret(&seed)}
	return Constellation{Key: key, Secret: newSecret(&secret), Operators: []ed25519.PublicKey{o.PublicKey()}}, o, nil
}

// Encode returns the file's content, with the secret in clear.
func (c Constellation) Encode() []byte {
	var operators []string
	for _, key := range c.Operators {
		operators = append(operators, quoteBinary(key))
	}
	list := strings.Join(operators, ",")
	if len(operators) > 1 {
		list = "[" + list + "]"
	}
	hint := ""
	if c.Hint != nil {
		hint = `,"hint":` + quoteBinary(c.Hint)
	}
	return []byte(`{"key":` + quote(c.Key) + `,"secret":` + quoteBinary(c.Secret.Reveal()) + `,"operator":` + list + hint + "}\n")
}

// Encode returns the file's content, with the seed in clear.
func (o Operator) Encode() []byte {
	return []byte(`{"key":` + quote(o.Key) + `,"seed":` + quoteBinary(o.Seed.Reveal()) + "}\n")
}

func quoteBinary(data []byte) string { return quote(base64.StdEncoding.EncodeToString(data)) }

// Parse reads the content of a constellation's file.
func Parse(data []byte) (Constellation, error) {
	fields, err := object(data, "hint", "key", "secret", "operator", "hint")
	if err != nil {
		return Constellation{}, err
	}
	var c Constellation
	if c.Key, err = parseKey(fields["key"]); err != nil {
		return Constellation{}, err
	}
	if c.Secret, err = parseSecret("secret", fields["secret"]); err != nil {
		return Constellation{}, err
	}
	if c.Operators, err = parseOperators(fields["operator"]); err != nil {
		return Constellation{}, err
	}
	if hint, there := fields["hint"]; there {
		c.Hint, err = parseHint(hint)
	}
	return c, err
}

// ParseOperator reads the content of an operator's file.
func ParseOperator(data []byte) (Operator, error) {
	fields, err := object(data, "", "key", "seed")
	if err != nil {
		return Operator{}, err
	}
	var o Operator
	if o.Key, err = parseKey(fields["key"]); err != nil {
		return Operator{}, err
	}
	if o.Seed, err = parseSecret("seed", fields["seed"]); err != nil {
		return Operator{}, err
	}
	return o, nil
}

func parseKey(v value) (string, error) {
	key, err := v.text("key")
	if err != nil {
		return "", err
	}
	return key, validateKey(key)
}

func validateKey(key string) error {
	if key == "" || len(key) > MaxKey || !utf8.ValidString(key) {
		return muster.Errorf(muster.Invalid, "key: want 1 to %d bytes of UTF-8 text", MaxKey)
	}
	return nil
}

func parseSecret(name string, v value) (Secret, error) {
	s, err := v.text(name)
	if err != nil {
		return Secret{}, err
	}
	data, err := binary(name, s)
	if err != nil {
		return Secret{}, err
	}
	return newSecret((*[SecretSize]byte)(data)), nil
}

// parseHint reads bytes that whoever uses them looks at.
func parseHint(v value) ([]byte, error) {
	text, err := v.text("hint")
	if err != nil {
		return nil, err
	}
	data, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(data) == 0 || len(data) > MaxHint {
		return nil, muster.Errorf(muster.Invalid, "hint: want 1 to %d bytes in base64", MaxHint)
	}
	return data, nil
}

// parseOperators reads one public key, or an array of them.
func parseOperators(v value) ([]ed25519.PublicKey, error) {
	if len(v.texts) == 0 || len(v.texts) > MaxOperators {
		return nil, muster.Errorf(muster.Invalid, "operator: want 1 to %d public keys", MaxOperators)
	}
	var keys []ed25519.PublicKey
	for _, text := range v.texts {
		key, err := binary("operator", text)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// binary reads 32 bytes of base64: all that these files have. It does not say
// what it found, which may be a secret.
func binary(name, text string) ([]byte, error) {
	data, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(data) != SecretSize || len(text) != base64.StdEncoding.EncodedLen(SecretSize) {
		return nil, muster.Errorf(muster.Invalid, "%s: want %d bytes in base64", name, SecretSize)
	}
	return data, nil
}
