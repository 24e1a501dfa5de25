package aaa

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/musterfleet/muster"
)

// ErrUnauthentic is in the chain of an error when a frame cannot be attributed
// to any caller of the fleet: nobody is to be blamed or told, and nothing that
// the frame says is known to be true.
var ErrUnauthentic = errors.New("not signed by a caller of this fleet")

// Limits of a Verifier.
const (
	MaxIssuers = 8               // trusted at a time
	MaxAhead   = 5 * time.Minute // a command may be issued that much in the future
	MaxCached  = 1024            // callers' JWTs kept decoded
)

var commandShape = shapeOf[muster.Command]()

// A Verifier tells who signed a frame. It may be used by several goroutines.
type Verifier struct {
	fleet   string
	issuers []trustedKey

	mu      sync.Mutex                         // guards the fields below
	cache   map[[sha256.Size]byte]*knownCaller // callers' JWTs
	revoked map[string]SignedRevocations       // in force, by issuer; replaced as a whole
}

type trustedKey struct {
	text string
	key  ed25519.PublicKey
}

// A knownCaller is a JWT that an issuer of the fleet signed. Nothing in it
// depends on the time: whether it is valid now is asked at each use.
type knownCaller struct {
	caller    Caller
	key       ed25519.PublicKey
	notBefore time.Time // zero when the JWT does not say
}

// NewVerifier returns a verifier for a fleet that trusts the given issuers
// (public nkeys, A...): one, or more while the issuer's key is being replaced.
func NewVerifier(fleet string, issuers ...string) (*Verifier, error) {
	if err := checkFleet(fleet); err != nil {
		return nil, err
	}
	if len(issuers) == 0 || len(issuers) > MaxIssuers {
		return nil, muster.Errorf(muster.Invalid, "fleet %q has %d issuers; expected 1 to %d", fleet, len(issuers), MaxIssuers)
	}
	v := &Verifier{fleet: fleet, cache: map[[sha256.Size]byte]*knownCaller{}}
	for _, text := range issuers {
		key, err := parsePublic(nkeys.PrefixByteAccount, text)
		if err != nil {
			return nil, muster.Errorf(muster.Invalid, "issuer: %w", err)
		}
		v.issuers = append(v.issuers, trustedKey{text, key})
	}
	return v, nil
}

// Verify returns the command in a frame and who signed it, when the frame is
// right in every respect that can be judged without memory of commands:
// signatures, fleet, node, validity of JWT and command at the given time, and
// that no list in force (see Revoke) revokes the JWT. Whether the command's
// id was seen before, and whether its deadline passed, the caller of Verify
// judges.
//
// With an error, errors.Is(err, ErrUnauthentic) tells a frame that nobody
// answers for from one that its caller can be told about. In the second case
// the Caller is set, and the Command too when it could be read; neither is a
// reason to do anything but to report.
func (v *Verifier) Verify(frame []byte, node muster.NodeName, now time.Time) (muster.Command, Caller, error) {
	f, err := DecodeFrame(frame)
	if err != nil {
		return muster.Command{}, Caller{}, unauthentic(err)
	}
	known, err := v.caller(f.Caller)
	if err != nil {
		return muster.Command{}, Caller{}, unauthentic(err)
	}
	if !ed25519.Verify(known.key, signedBytes(f.Envelope), f.Signature) {
		return muster.Command{}, Caller{}, unauthentic(muster.Errorf(muster.Denied, "signature does not belong to the envelope and the key of %q", known.caller.Name))
	}
	command, err := v.envelope(f.Envelope, node, now)
	// An expired identity is the first thing its owner has to know; the command
	// is read nevertheless, so that the refusal can name it.
	if invalid := known.validAt(now); invalid != nil {
		err = invalid
	}
	if revoked := v.Revoked(known.caller); revoked != nil {
		err = revoked
	}
	return command, known.caller, err
}

func unauthentic(err error) error {
	return muster.Errorf(muster.Denied, "%w: %s", ErrUnauthentic, err)
}

// envelope reads a command whose signature is good. The command is returned
// with an error as well once it could be read.
func (v *Verifier) envelope(data []byte, node muster.NodeName, now time.Time) (muster.Command, error) {
	var c muster.Command
	if err := decodeStrict(data, commandShape, &c); err != nil {
		return muster.Command{}, muster.Errorf(muster.Invalid, "envelope: %w", err)
	}
	if err := c.Validate(); err != nil {
		return c, err
	}
	switch {
	case c.Fleet != v.fleet:
		return c, muster.Errorf(muster.Denied, "command is for fleet %q; this is fleet %q", clip(c.Fleet, 80), v.fleet)
	case c.Node != node:
		return c, muster.Errorf(muster.Denied, "command is for node %q; this is node %q", c.Node, node)
	case c.IssuedAt.After(now.Add(MaxAhead)):
		return c, muster.Errorf(muster.Denied, "command was issued at %s, which is more than %s ahead of this node's clock", c.IssuedAt.Format(time.RFC3339), MaxAhead).
			WithHint("compare the clocks of the caller's machine and of node %s", node)
	}
	return c, nil
}

// caller returns what an issuer of the fleet states in the JWT, whether or not
// it is valid now.
func (v *Verifier) caller(text string) (*knownCaller, error) {
	hash := sha256.Sum256([]byte(text))
	v.mu.Lock()
	known := v.cache[hash]
	v.mu.Unlock()
	if known != nil {
		return known, nil
	}
	known, err := v.decode(text)
	if err != nil {
		return nil, err // not cached: garbage must not push out real callers
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.cache) >= MaxCached {
		for old := range v.cache {
			delete(v.cache, old) // any one will do: it costs a signature check to have it back
			break
		}
	}
	v.cache[hash] = known
	return known, nil
}

func (v *Verifier) decode(text string) (*knownCaller, error) {
	if len(text) > MaxCallerJWT {
		return nil, muster.Errorf(muster.Invalid, "JWT has %d bytes; at most %d are allowed", len(text), MaxCallerJWT)
	}
	parts, err := parseJWT(text)
	if err != nil {
		return nil, err
	}
	// The signature first: the payload of a JWT that no issuer signed is not
	// worth parsing.
	i := slices.IndexFunc(v.issuers, func(k trustedKey) bool { return ed25519.Verify(k.key, parts.signed, parts.signature) })
	if i < 0 {
		return nil, muster.Errorf(muster.Denied, "JWT was not signed by an issuer of fleet %q", v.fleet)
	}
	token, err := decodeCallerJWT(parts.payload)
	if err != nil {
		return nil, err
	}
	if token.Issuer != v.issuers[i].text {
		return nil, muster.Errorf(muster.Denied, "JWT names issuer %q, but %q signed it", clip(token.Issuer, 80), v.issuers[i].text)
	}
	if token.Data.Fleet != v.fleet {
		return nil, muster.Errorf(muster.Denied, "JWT is for fleet %q; this is fleet %q", token.Data.Fleet, v.fleet)
	}
	key, err := parsePublic(nkeys.PrefixByteUser, token.Subject)
	if err != nil {
		return nil, err
	}
	c := token.claims()
	known := &knownCaller{
		caller: Caller{Name: c.Name, Groups: c.Groups, Rights: c.Rights, Expires: c.Expires, PublicKey: c.PublicKey,
			Issued: time.Unix(token.IssuedAt, 0).UTC()},
		key: key,
	}
	if token.NotBefore > 0 {
		known.notBefore = time.Unix(token.NotBefore, 0)
	}
	return known, nil
}

func (k *knownCaller) validAt(now time.Time) error {
	switch {
	case !now.Before(k.caller.Expires.Add(ClockLeeway)):
		return muster.Errorf(muster.Denied, "identity of caller %q expired at %s", k.caller.Name, k.caller.Expires.Format(time.RFC3339)).
			WithHint("ask the fleet's issuer for a new identity")
	case now.Add(ClockLeeway).Before(k.caller.Issued) || now.Add(ClockLeeway).Before(k.notBefore):
		return muster.Errorf(muster.Denied, "identity of caller %q is not valid yet", k.caller.Name).
			WithHint("compare the clocks of the issuer's machine and of this node")
	}
	return nil
}
