package aaa

import (
	"crypto/ed25519"
	"crypto/sha512"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"

	"github.com/musterfleet/muster"
)

// jwtHeader is the one header that is written and accepted, as text. To
// compare it whole pins the algorithm: nothing in a token chooses how it is
// checked.
var jwtHeader = base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"JWT","alg":"ed25519-nkey"}`))

// jwtVersion is the version of the claims, as the jwt library of NATS has it.
const jwtVersion = 2

// signJWT completes the standard claims, which must be part of claims, and
// returns the signed token. The library's own Encode reads the clock, which
// this package may not; what it writes is the same.
func signJWT(claims any, std *jwt.ClaimsData, key keyPair, now time.Time) (string, error) {
	std.Issuer = key.public
	std.IssuedAt = now.Unix()
	std.ID = ""
	unnamed, err := json.Marshal(std)
	if err != nil {
		return "", muster.Errorf(muster.Internal, "encode claims: %w", err)
	}
	hash := sha512.Sum512_256(unnamed)
	std.ID = base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(hash[:])
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", muster.Errorf(muster.Internal, "encode claims: %w", err)
	}
	signed := jwtHeader + "." + base64.RawURLEncoding.EncodeToString(payload)
	return signed + "." + base64.RawURLEncoding.EncodeToString(key.sign([]byte(signed))), nil
}

// A splitJWT is a token in its parts, not yet trusted.
type splitJWT struct {
	signed    []byte // header and payload, as they are signed
	payload   []byte
	signature []byte
}

func parseJWT(text string) (splitJWT, error) {
	header, rest, _ := strings.Cut(text, ".")
	payload, signature, ok := strings.Cut(rest, ".")
	if !ok {
		return splitJWT{}, muster.Errorf(muster.Invalid, "JWT does not have three parts")
	}
	if header != jwtHeader {
		return splitJWT{}, muster.Errorf(muster.Invalid, "JWT header is not the expected one (type JWT, algorithm ed25519-nkey)")
	}
	p, err := decodeBase64URL(payload)
	if err != nil {
		return splitJWT{}, muster.Errorf(muster.Invalid, "JWT payload is not base64url: %w", err)
	}
	sig, err := decodeBase64URL(signature)
	if err != nil || len(sig) != ed25519.SignatureSize {
		return splitJWT{}, muster.Errorf(muster.Invalid, "JWT signature is not %d bytes in base64url", ed25519.SignatureSize)
	}
	return splitJWT{signed: []byte(text[:len(header)+1+len(payload)]), payload: p, signature: sig}, nil
}

// decodeBase64URL takes one spelling for each value: no padding, no line
// breaks (which the library skips), no stray bits at the end.
func decodeBase64URL(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, base64.CorruptInputError(strings.IndexAny(s, "\r\n"))
	}
	return base64.RawURLEncoding.Strict().DecodeString(s)
}
