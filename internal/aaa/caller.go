package aaa

import (
	"slices"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/musterfleet/muster"
)

// Limits of a caller's JWT.
const (
	MaxCallerJWT = 8 << 10 // bytes
	MaxName      = 128     // bytes of a caller's or group's name
	MaxGroups    = 64      // of one caller
	MaxRights    = 64      // of one caller
)

// ClockLeeway is how far the clocks of issuer and node may differ: a JWT is
// taken that much before its time of issue and after its expiry.
const ClockLeeway = time.Minute

// CallerType marks a JWT as one of a caller, so that no other JWT that the
// same key might have signed is taken for one.
const CallerType = "muster-caller"

// A Right covers a command when one of the methods and one of the nodes match.
// Both are globs ('*' any characters including dots, '?' one); neither list
// may be empty.
type Right struct {
	Methods []string `json:"methods"`
	Nodes   []string `json:"nodes"`
}

// CallerClaims are what an issuer states about a caller.
type CallerClaims struct {
	PublicKey string // nkey of type user, whose seed the caller keeps
	Name      string // 1 to MaxName bytes
	Fleet     string // id of the fleet in which the JWT is worth something
	Groups    []string
	Rights    []Right
	Expires   time.Time // must be set
}

// A Caller is who signed a command, as told by a JWT that the fleet's issuer
// signed. Its slices are shared: do not change them.
type Caller struct {
	Name      string
	Groups    []string
	Rights    []Right
	Expires   time.Time
	PublicKey string    // nkey
	Issued    time.Time // of the JWT, by the issuer's clock
}

// May reports whether a right of the caller covers the method on the node.
// The node's policy has its say after that.
func (c Caller) May(method muster.Method, node muster.NodeName) bool {
	return slices.ContainsFunc(c.Rights, func(r Right) bool {
		return matchAny(r.Methods, string(method)) && matchAny(r.Nodes, string(node))
	})
}

// Reaches reports whether any right of the caller covers the node, for whatever
// method: without one it can have nothing there.
func (c Caller) Reaches(node muster.NodeName) bool {
	return slices.ContainsFunc(c.Rights, func(r Right) bool { return matchAny(r.Nodes, string(node)) })
}

// An Issuer signs callers' JWTs. Its key is an nkey of type account, made for
// this alone: it is not an account of the broker.
type Issuer struct{ key keyPair }

// NewIssuer returns the issuer with the given seed (SA...).
func NewIssuer(seed Secret) (*Issuer, error) {
	key, err := parseSeed(nkeys.PrefixByteAccount, seed)
	if err != nil {
		return nil, err
	}
	return &Issuer{key}, nil
}

// GenerateIssuer returns an issuer with a new key. Keep its Seed.
func GenerateIssuer() (*Issuer, error) {
	key, err := newKeyPair(nkeys.PrefixByteAccount)
	if err != nil {
		return nil, err
	}
	return &Issuer{key}, nil
}

// PublicKey returns what nodes need to know of the issuer: an nkey (A...).
func (i *Issuer) PublicKey() string { return i.key.public }

// Seed returns the issuer's private key as an nkey seed.
func (i *Issuer) Seed() Secret { return i.key.seed }

// The claims of a caller's JWT as they travel. The layout is that of
// jwt.GenericClaims, so that the usual tools show it.
type callerJWT struct {
	jwt.ClaimsData
	Data callerData `json:"nats"`
}

type callerData struct {
	Type    string   `json:"type"`
	Version int      `json:"version"`
	Fleet   string   `json:"fleet"`
	Groups  []string `json:"groups,omitempty"`
	Rights  []Right  `json:"rights,omitempty"`
}

var callerShape = shapeOf[callerJWT]()

// Issue returns the JWT of a caller. It fails when a claim is missing, breaks
// a limit, or the JWT would be larger than MaxCallerJWT.
func (i *Issuer) Issue(claims CallerClaims, now time.Time) (string, error) {
	if err := claims.validate(); err != nil {
		return "", err
	}
	if !claims.Expires.After(now) {
		return "", muster.Errorf(muster.Invalid, "expiry %s of caller %q is not after now", claims.Expires.Format(time.RFC3339), claims.Name)
	}
	token := callerJWT{
		ClaimsData: jwt.ClaimsData{Subject: claims.PublicKey, Name: claims.Name, Expires: claims.Expires.Unix()},
		Data:       callerData{Type: CallerType, Version: jwtVersion, Fleet: claims.Fleet, Groups: claims.Groups, Rights: claims.Rights},
	}
	text, err := signJWT(&token, &token.ClaimsData, i.key, now)
	if err != nil {
		return "", err
	}
	if len(text) > MaxCallerJWT {
		return "", muster.Errorf(muster.Invalid, "JWT of caller %q has %d bytes; at most %d are allowed", claims.Name, len(text), MaxCallerJWT).
			WithHint("use fewer groups and rights, or shorter patterns")
	}
	return text, nil
}

func (c CallerClaims) validate() error {
	if _, err := parsePublic(nkeys.PrefixByteUser, c.PublicKey); err != nil {
		return err
	}
	if err := checkName("caller name", c.Name, MaxName); err != nil {
		return err
	}
	if err := checkFleet(c.Fleet); err != nil {
		return err
	}
	switch {
	case c.Expires.Unix() <= 0:
		return muster.Errorf(muster.Invalid, "caller %q has no expiry", c.Name)
	case c.Expires.UTC().Year() > 9999: // cannot be written in RFC 3339
		return muster.Errorf(muster.Invalid, "expiry of caller %q is after the year 9999", c.Name)
	case len(c.Groups) > MaxGroups:
		return muster.Errorf(muster.Invalid, "caller %q has %d groups; at most %d are allowed", c.Name, len(c.Groups), MaxGroups)
	case len(c.Rights) > MaxRights:
		return muster.Errorf(muster.Invalid, "caller %q has %d rights; at most %d are allowed", c.Name, len(c.Rights), MaxRights)
	}
	for _, group := range c.Groups {
		if err := checkName("group", group, MaxName); err != nil {
			return err
		}
	}
	for _, right := range c.Rights {
		if err := checkGlobs("methods of a right", right.Methods); err != nil {
			return err
		}
		if err := checkGlobs("nodes of a right", right.Nodes); err != nil {
			return err
		}
	}
	return nil
}

// ReadCallerJWT returns what a caller's JWT states, without asking whether
// anybody signed it: for showing to the owner of an identity, never for a
// decision.
func ReadCallerJWT(text string) (CallerClaims, error) {
	if len(text) > MaxCallerJWT {
		return CallerClaims{}, muster.Errorf(muster.Invalid, "JWT has %d bytes; at most %d are allowed", len(text), MaxCallerJWT)
	}
	parts, err := parseJWT(text)
	if err != nil {
		return CallerClaims{}, err
	}
	token, err := decodeCallerJWT(parts.payload)
	if err != nil {
		return CallerClaims{}, err
	}
	return token.claims(), nil
}

// decodeCallerJWT reads the payload of a JWT and checks everything but the
// signature, the issuer, the fleet and the times.
func decodeCallerJWT(payload []byte) (callerJWT, error) {
	var token callerJWT
	if err := decodeStrict(payload, callerShape, &token); err != nil {
		return callerJWT{}, err
	}
	if token.Data.Type != CallerType || token.Data.Version != jwtVersion {
		return callerJWT{}, muster.Errorf(muster.Invalid, "JWT is of type %q version %d; expected %q version %d",
			clip(token.Data.Type, 80), token.Data.Version, CallerType, jwtVersion)
	}
	return token, token.claims().validate()
}

func (t callerJWT) claims() CallerClaims {
	return CallerClaims{
		PublicKey: t.Subject,
		Name:      t.Name,
		Fleet:     t.Data.Fleet,
		Groups:    t.Data.Groups,
		Rights:    t.Data.Rights,
		Expires:   time.Unix(t.Expires, 0).UTC(),
	}
}
