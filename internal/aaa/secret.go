package aaa

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"log/slog"
)

const redacted = "REDACTED"

// A Secret holds bytes that must not reach a log, a terminal or JSON by
// accident: each way of printing it gives REDACTED. [Secret.Reveal] is the one
// way to the bytes, so that a search for it finds all uses. The zero Secret is
// empty.
type Secret struct {
	// A function, because fmt cannot call methods of a value in an unexported
	// field and prints what it finds there: of bytes the content, of a pointer
	// the content too for some verbs, of a function its address.
	bytes func() []byte
}

var (
	_ fmt.Formatter  = Secret{}
	_ slog.LogValuer = Secret{}
)

// NewSecret returns a secret with a copy of b.
func NewSecret(b []byte) Secret {
	c := bytes.Clone(b)
	return Secret{func() []byte { return c }}
}

// SecretSize is the length in bytes of a secret made by RandomSecret.
const SecretSize = 32

// RandomSecret returns SecretSize unpredictable bytes.
func RandomSecret() Secret {
	b := make([]byte, SecretSize)
	rand.Read(b) // never fails: it ends the program instead
	return Secret{func() []byte { return b }}
}

// Reveal returns a copy of the bytes.
func (s Secret) Reveal() []byte {
	if s.bytes == nil {
		return nil
	}
	return bytes.Clone(s.bytes())
}

// Empty reports whether there is nothing to hide.
func (s Secret) Empty() bool { return s.bytes == nil || len(s.bytes()) == 0 }

// Equal reports whether both hold the same bytes. The time it takes depends on
// their lengths only.
func (s Secret) Equal(t Secret) bool {
	return subtle.ConstantTimeCompare(s.Reveal(), t.Reveal()) == 1
}

// String returns REDACTED.
func (Secret) String() string { return redacted }

// Format writes REDACTED for every verb, also %x and %#v.
func (Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, redacted) }

// MarshalText returns REDACTED. It serves JSON, YAML and loggers; there is no
// UnmarshalText, so that a redacted value is never taken for the secret.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue returns REDACTED.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }
