package aaa

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"

	"github.com/nats-io/nkeys"

	"github.com/musterfleet/muster"
)

// An Identity is what a caller keeps in its identity file: the JWT, which is
// not secret, and the seed of the key that the JWT names. Printing it never
// shows the seed.
type Identity struct {
	JWT  string
	Seed Secret // nkey (SU...)
}

var _ slog.LogValuer = Identity{}

// MaxIdentity is the largest identity file in bytes.
const MaxIdentity = MaxCallerJWT + 4<<10

// NewIdentity pairs a JWT with a seed. It fails when the JWT names another
// key; whether an issuer of the fleet signed the JWT is for nodes to judge.
func NewIdentity(jwtText string, seed Secret) (Identity, error) {
	claims, err := ReadCallerJWT(jwtText)
	if err != nil {
		return Identity{}, err
	}
	pair, err := parseSeed(nkeys.PrefixByteUser, seed)
	if err != nil {
		return Identity{}, err
	}
	if pair.public != claims.PublicKey {
		return Identity{}, muster.Errorf(muster.Invalid, "seed belongs to key %s, but the JWT of %q names key %s", pair.public, claims.Name, claims.PublicKey)
	}
	return Identity{JWT: jwtText, Seed: seed}, nil
}

// Claims returns what the JWT states, unverified.
func (id Identity) Claims() (CallerClaims, error) { return ReadCallerJWT(id.JWT) }

// String returns the caller's name and public key.
func (id Identity) String() string {
	claims, err := id.Claims()
	if err != nil {
		return "identity (unreadable)"
	}
	return fmt.Sprintf("identity of %s (%s)", claims.Name, claims.PublicKey)
}

// LogValue returns the caller's name and public key.
func (id Identity) LogValue() slog.Value {
	claims, err := id.Claims()
	if err != nil {
		return slog.StringValue(id.String())
	}
	return slog.GroupValue(slog.String("name", claims.Name), slog.String("key", claims.PublicKey))
}

const (
	jwtBegin  = "-----BEGIN MUSTER CALLER JWT-----"
	jwtEnd    = "------END MUSTER CALLER JWT------"
	seedBegin = "-----BEGIN USER NKEY SEED-----"
	seedEnd   = "------END USER NKEY SEED------"
)

// Marshal returns the identity file: the layout of a NATS credentials file,
// with a label of its own so that neither is taken for the other by eye. It
// contains the seed; store it with mode 0600.
func (id Identity) Marshal() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n%s\n%s\n\n", jwtBegin, id.JWT, jwtEnd)
	b.WriteString("The seed below signs commands in your name. Keep it secret.\n\n")
	fmt.Fprintf(&b, "%s\n%s\n%s\n", seedBegin, id.Seed.Reveal(), seedEnd)
	return b.Bytes()
}

// ParseIdentity reads an identity file. Text around the two blocks is
// ignored. Errors never quote the seed.
func ParseIdentity(file []byte) (Identity, error) {
	if len(file) > MaxIdentity {
		return Identity{}, muster.Errorf(muster.Invalid, "identity file has %d bytes; at most %d are allowed", len(file), MaxIdentity)
	}
	jwtText, err := block(file, jwtBegin, jwtEnd)
	if err != nil {
		return Identity{}, err
	}
	seed, err := block(file, seedBegin, seedEnd)
	if err != nil {
		return Identity{}, err
	}
	return NewIdentity(jwtText, NewSecret([]byte(seed)))
}

// block returns the one line between two markers that each stand alone on a
// line and occur once.
func block(file []byte, begin, end string) (string, error) {
	var found []string
	lines := strings.Split(string(file), "\n")
	for i, line := range lines {
		if strings.TrimSpace(line) != begin {
			continue
		}
		if i+2 >= len(lines) || strings.TrimSpace(lines[i+2]) != end {
			return "", muster.Errorf(muster.Invalid, "identity file: %q on line %d is not followed by one line and %q", begin, i+1, end)
		}
		found = append(found, strings.TrimSpace(lines[i+1]))
	}
	if len(found) != 1 {
		return "", muster.Errorf(muster.Invalid, "identity file has %d blocks %q; expected one", len(found), begin).
			WithHint("use the file that the fleet's issuer made for you")
	}
	return found[0], nil
}
