package aaa

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/musterfleet/muster"
)

// Limits of a join token.
const (
	MaxToken     = 96 << 10  // characters; the longest argument of a program is 128 KiB
	maxTokenJSON = 512 << 10 // bytes when decompressed
	maxTokenURLs = 32
	maxTokenID   = 64
)

// tokenPrefix has the version of the format, so that an older agent can say
// what is wrong.
const tokenPrefix = "muster-join-1."

// A Token invites one node into a fleet, once and for a while. Whoever has it
// can become that node: hand it over as one hands over a password. Printing it
// does not show its secrets; [Token.Encode] does.
type Token struct {
	ID      string   // names the invitation at the server; 1 to 64 of letters, digits, '-', '_'
	URLs    []string // of the broker, at least one
	CAPEM   string   // certificates that the broker's is checked against; empty for the system's
	Fleet   string   // id of the fleet
	Node    muster.NodeName
	Secret  Secret    // SecretSize bytes, which the node presents
	Expires time.Time // in whole seconds
	Creds   Secret    // .creds text that is good for enrolling only; empty when the broker asks for none
	Issuers []string  // public nkeys (A...), at least one
	Policy  string    // YAML to begin with; empty for none, which denies everything
	Revoked []byte    // the issuer's list of revoked callers; empty for none
}

var (
	_ fmt.Stringer   = Token{}
	_ slog.LogValuer = Token{}
)

// String says what the token is for, without its secrets.
func (t Token) String() string {
	return fmt.Sprintf("join token %s for node %s of fleet %s, expires %s", t.ID, t.Node, t.Fleet, t.Expires.Format(time.RFC3339))
}

// LogValue returns what the token is for, without its secrets.
func (t Token) LogValue() slog.Value {
	return slog.GroupValue(slog.String("id", t.ID), slog.String("node", string(t.Node)),
		slog.String("fleet", t.Fleet), slog.Time("expires", t.Expires))
}

// Expired reports whether the token is too old to be presented.
func (t Token) Expired(now time.Time) bool { return !now.Before(t.Expires) }

type wireToken struct {
	ID      string          `json:"id"`
	URLs    []string        `json:"urls"`
	CAPEM   string          `json:"ca,omitempty"`
	Fleet   string          `json:"fleet"`
	Node    muster.NodeName `json:"node"`
	Secret  []byte          `json:"secret"`
	Expires int64           `json:"expires"` // Unix seconds
	Creds   string          `json:"creds,omitempty"`
	Issuers []string        `json:"issuers"`
	Policy  string          `json:"policy,omitempty"`
	Revoked string          `json:"revoked,omitempty"`
}

var tokenShape = shapeOf[wireToken]()

// Encode returns the token as one line without spaces, secrets included. It
// fails when a field is missing or wrong, or the line would be longer than
// MaxToken.
func (t Token) Encode() (string, error) {
	if err := t.validate(); err != nil {
		return "", err
	}
	plain, err := json.Marshal(wireToken{
		ID: t.ID, URLs: t.URLs, CAPEM: t.CAPEM, Fleet: t.Fleet, Node: t.Node,
		Secret: t.Secret.Reveal(), Expires: t.Expires.Unix(), Creds: string(t.Creds.Reveal()),
		Issuers: t.Issuers, Policy: t.Policy, Revoked: string(t.Revoked),
	})
	if err != nil {
		return "", muster.Errorf(muster.Internal, "encode join token: %w", err)
	}
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err != nil {
		return "", muster.Errorf(muster.Internal, "encode join token: %w", err)
	}
	w.Write(plain) // to memory: never fails
	w.Close()
	text := tokenPrefix + base64.RawURLEncoding.EncodeToString(b.Bytes())
	if len(plain) > maxTokenJSON || len(text) > MaxToken {
		return "", muster.Errorf(muster.Invalid, "join token has %d characters; at most %d are allowed", len(text), MaxToken).
			WithHint("use a shorter policy; it can be changed once the node has joined")
	}
	return text, nil
}

// ParseToken reads a join token. White space in and around it is ignored, so
// that it can be handed over in lines of any length; no beginning of a token is
// one. It checks every field, but not whether the token expired. Errors never
// quote the token.
func ParseToken(text string) (Token, error) {
	text = strings.Join(strings.Fields(text), "")
	if len(text) > MaxToken {
		return Token{}, muster.Errorf(muster.Invalid, "join token has %d characters; at most %d are allowed", len(text), MaxToken)
	}
	body, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok {
		if strings.HasPrefix(text, "muster-join-") {
			return Token{}, muster.Errorf(muster.Unsupported, "join token is of a version that this program does not know").
				WithHint("update muster on this machine, or make the token with the same version")
		}
		return Token{}, muster.Errorf(muster.Invalid, "this is not a join token; expected text that begins with %s", tokenPrefix).
			WithHint("make one with: muster node invite NAME")
	}
	compressed, err := decodeBase64URL(body)
	if err != nil {
		return Token{}, damaged("a character is wrong or missing")
	}
	plain, err := inflate(compressed)
	if err != nil {
		return Token{}, err
	}
	var w wireToken
	if err := decodeStrict(plain, tokenShape, &w); err != nil {
		return Token{}, damaged("its content cannot be read")
	}
	t := Token{
		ID: w.ID, URLs: w.URLs, CAPEM: w.CAPEM, Fleet: w.Fleet, Node: w.Node,
		Secret: NewSecret(w.Secret), Expires: time.Unix(w.Expires, 0).UTC(),
		Issuers: w.Issuers, Policy: w.Policy,
	}
	if w.Revoked != "" {
		t.Revoked = []byte(w.Revoked)
	}
	if w.Creds != "" {
		t.Creds = NewSecret([]byte(w.Creds))
	}
	if err := t.validate(); err != nil {
		return Token{}, err
	}
	return t, nil
}

func damaged(how string) error {
	return muster.Errorf(muster.Invalid, "join token is damaged: %s", how).
		WithHint("copy all of its lines, or hand it over in a file with --join-file")
}

// inflate decompresses at most maxTokenJSON bytes, whatever the input claims.
func inflate(compressed []byte) ([]byte, error) {
	in := bytes.NewReader(compressed)
	plain, err := io.ReadAll(io.LimitReader(flate.NewReader(in), maxTokenJSON+1))
	switch {
	case err != nil:
		return nil, damaged("it does not decompress")
	case len(plain) > maxTokenJSON:
		return nil, damaged(fmt.Sprintf("it decompresses to more than %d bytes", maxTokenJSON))
	case in.Len() > 0:
		return nil, damaged("something follows its end")
	}
	return plain, nil
}

func (t Token) validate() error {
	if err := checkTokenID(t.ID); err != nil {
		return err
	}
	if err := checkFleet(t.Fleet); err != nil {
		return err
	}
	if err := t.Node.Validate(); err != nil {
		return err
	}
	if err := checkURLs(t.URLs); err != nil {
		return err
	}
	if err := checkCA(t.CAPEM); err != nil {
		return err
	}
	switch {
	case len(t.Secret.Reveal()) != SecretSize:
		return muster.Errorf(muster.Invalid, "secret of join token has %d bytes; expected %d", len(t.Secret.Reveal()), SecretSize)
	case t.Expires.Unix() <= 0 || t.Expires.UTC().Year() > 9999:
		return muster.Errorf(muster.Invalid, "join token has no expiry")
	case len(t.Creds.Reveal()) > MaxCreds:
		return muster.Errorf(muster.Invalid, "credentials in join token have %d bytes; at most %d are allowed", len(t.Creds.Reveal()), MaxCreds)
	case len(t.Issuers) == 0 || len(t.Issuers) > MaxIssuers:
		return muster.Errorf(muster.Invalid, "join token has %d issuers; expected 1 to %d", len(t.Issuers), MaxIssuers)
	}
	for _, issuer := range t.Issuers {
		if _, err := parsePublic(nkeys.PrefixByteAccount, issuer); err != nil {
			return muster.Errorf(muster.Invalid, "issuer in join token: %w", err)
		}
	}
	if len(t.Revoked) > 0 {
		if _, err := ReadRevocations(t.Revoked, t.Fleet, t.Issuers...); err != nil {
			return muster.Errorf(muster.Invalid, "join token: %w", err)
		}
	}
	if t.Policy != "" {
		if _, err := ParsePolicy("policy in join token", []byte(t.Policy)); err != nil {
			return err
		}
	}
	return nil
}

func checkTokenID(id string) error {
	if len(id) > maxTokenID || strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" || id == "" {
		return muster.Errorf(muster.Invalid, "id %q of join token is wrong; expected 1 to %d letters, digits, '-' and '_'", clip(id, 80), maxTokenID)
	}
	return nil
}

func checkURLs(urls []string) error {
	if len(urls) == 0 || len(urls) > maxTokenURLs {
		return muster.Errorf(muster.Invalid, "join token has %d URLs; expected 1 to %d", len(urls), maxTokenURLs)
	}
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil || u.Scheme == "" || u.Host == "" || len(text) > 1024 {
			return muster.Errorf(muster.Invalid, "%q in join token is not a URL such as tls://broker.example.com:4222", clip(text, 80))
		}
		if u.User != nil {
			return muster.Errorf(muster.Invalid, "a URL in the join token has a user in it; credentials have their own field")
		}
	}
	return nil
}

// checkCA takes certificates and nothing else: a private key that slipped into
// the file would travel to every node.
func checkCA(text string) error {
	rest := []byte(text)
	for len(bytes.TrimSpace(rest)) > 0 {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil || block.Type != "CERTIFICATE" {
			return muster.Errorf(muster.Invalid, "CA in join token is not made of certificates in PEM")
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return muster.Errorf(muster.Invalid, "CA in join token has a certificate that cannot be read: %w", err)
		}
	}
	return nil
}

// joinPrefix keeps the hash from being one of another protocol.
const joinPrefix = "muster/join/1\n"

// HashSecret returns what the server stores of a token's secret. The secret is
// 32 random bytes, so that a plain hash cannot be searched.
func HashSecret(secret Secret) [sha256.Size]byte {
	return sha256.Sum256(append([]byte(joinPrefix), secret.Reveal()...))
}

// CheckSecret reports whether a presented secret is the one with the stored
// hash. The time it takes does not depend on the bytes.
func CheckSecret(presented Secret, stored [sha256.Size]byte) bool {
	hash := HashSecret(presented)
	return subtle.ConstantTimeCompare(hash[:], stored[:]) == 1
}
