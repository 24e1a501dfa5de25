package aaa

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"

	"github.com/nats-io/nkeys"

	"github.com/musterfleet/muster"
)

// MaxFrame is the largest encoded frame in bytes. It has room for the largest
// envelope.
const MaxFrame = 1 << 20

// signaturePrefix is put before the envelope when it is signed, so that a
// signature that the key made for another purpose is never one of a command.
const signaturePrefix = "muster/command/1\n"

// A Frame is a command as it travels.
type Frame struct {
	Caller    string // the caller's JWT
	Signature []byte // ed25519, by the key that the JWT names
	Envelope  []byte // the command as JSON, the very bytes that were signed
}

type wireFrame struct {
	Caller    string `json:"caller"`
	Signature string `json:"signature"`
	Envelope  string `json:"envelope"`
}

var frameShape = shapeOf[wireFrame]()

// Encode returns the frame as one JSON object: "caller" is the JWT, "signature"
// and "envelope" are in base64 with padding. It fails when a limit is broken.
func (f Frame) Encode() ([]byte, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	data, err := json.Marshal(wireFrame{
		Caller:    f.Caller,
		Signature: base64.StdEncoding.EncodeToString(f.Signature),
		Envelope:  base64.StdEncoding.EncodeToString(f.Envelope),
	})
	if err != nil {
		return nil, muster.Errorf(muster.Internal, "encode frame: %w", err)
	}
	if len(data) > MaxFrame {
		return nil, muster.Errorf(muster.Invalid, "frame has %d bytes; at most %d are allowed", len(data), MaxFrame)
	}
	return data, nil
}

// DecodeFrame reads an encoded frame. It refuses unknown and repeated keys,
// trailing data, and anything beyond the limits. Nothing in the frame is to be
// trusted yet.
func DecodeFrame(data []byte) (Frame, error) {
	if len(data) > MaxFrame {
		return Frame{}, muster.Errorf(muster.Invalid, "frame has %d bytes; at most %d are allowed", len(data), MaxFrame)
	}
	var wire wireFrame
	if err := decodeStrict(data, frameShape, &wire); err != nil {
		return Frame{}, muster.Errorf(muster.Invalid, "frame: %w", err)
	}
	f := Frame{Caller: wire.Caller}
	var err error
	if f.Signature, err = decodeBase64(wire.Signature); err != nil {
		return Frame{}, muster.Errorf(muster.Invalid, "frame: signature: %w", err)
	}
	if f.Envelope, err = decodeBase64(wire.Envelope); err != nil {
		return Frame{}, muster.Errorf(muster.Invalid, "frame: envelope: %w", err)
	}
	if err := f.check(); err != nil {
		return Frame{}, err
	}
	return f, nil
}

func (f Frame) check() error {
	switch {
	case f.Caller == "":
		return muster.Errorf(muster.Invalid, "frame has no caller")
	case len(f.Caller) > MaxCallerJWT:
		return muster.Errorf(muster.Invalid, "frame: JWT has %d bytes; at most %d are allowed", len(f.Caller), MaxCallerJWT)
	case len(f.Signature) != ed25519.SignatureSize:
		return muster.Errorf(muster.Invalid, "frame: signature has %d bytes; expected %d", len(f.Signature), ed25519.SignatureSize)
	case len(f.Envelope) == 0:
		return muster.Errorf(muster.Invalid, "frame has no envelope")
	}
	return nil
}

// decodeBase64 takes one spelling for each value, as decodeBase64URL does.
func decodeBase64(s string) ([]byte, error) {
	if i := bytes.IndexAny([]byte(s), "\r\n"); i >= 0 {
		return nil, base64.CorruptInputError(i)
	}
	return base64.StdEncoding.Strict().DecodeString(s)
}

// A Signer signs commands in the name of one caller. It may be used by several
// goroutines.
type Signer struct {
	jwt   string
	fleet string
	key   keyPair
}

// NewSigner returns the signer for an identity.
func NewSigner(id Identity) (*Signer, error) {
	checked, err := NewIdentity(id.JWT, id.Seed)
	if err != nil {
		return nil, err
	}
	claims, err := checked.Claims()
	if err != nil {
		return nil, err
	}
	key, err := parseSeed(nkeys.PrefixByteUser, id.Seed)
	if err != nil {
		return nil, err
	}
	return &Signer{jwt: id.JWT, fleet: claims.Fleet, key: key}, nil
}

// Fleet returns the id of the fleet in which the signer's JWT is valid.
func (s *Signer) Fleet() string { return s.fleet }

// Sign returns the frame of a command. It refuses a command that every node
// would refuse: an invalid one, or one for another fleet than the JWT's.
func (s *Signer) Sign(c muster.Command) (Frame, error) {
	if err := c.Validate(); err != nil {
		return Frame{}, err
	}
	if c.Fleet != s.fleet {
		return Frame{}, muster.Errorf(muster.Invalid, "command is for fleet %q, but the caller's identity is for fleet %q", clip(c.Fleet, 80), s.fleet).
			WithHint("choose the context of the other fleet, or ask its issuer for an identity")
	}
	envelope, err := marshalPlain(c)
	if err != nil {
		return Frame{}, muster.Errorf(muster.Invalid, "encode command: %w", err)
	}
	if err := checkJSON(envelope, commandShape); err != nil {
		return Frame{}, muster.Errorf(muster.Invalid, "command: %w", err)
	}
	return Frame{Caller: s.jwt, Signature: s.key.sign(signedBytes(envelope)), Envelope: envelope}, nil
}

// signedBytes returns what is signed for an envelope.
func signedBytes(envelope []byte) []byte {
	b := make([]byte, 0, len(signaturePrefix)+len(envelope))
	return append(append(b, signaturePrefix...), envelope...)
}

// marshalPlain is json.Marshal without the escapes for HTML, which make '<' six
// bytes long: an input at its limit would no longer fit a frame.
func marshalPlain(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
