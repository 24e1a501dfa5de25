package aaa

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/musterfleet/muster"
)

const (
	testFleet = "FLEET-1"
	testNode  = muster.NodeName("web1.example.com")
)

var testNow = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// fixedSeed returns the seed whose 32 bytes all have one value, so that keys
// in tests are the same each time.
func fixedSeed(prefix nkeys.PrefixByte, value byte) Secret {
	raw := make([]byte, 32)
	for i := range raw {
		raw[i] = value
	}
	seed, err := nkeys.EncodeSeed(prefix, raw)
	if err != nil {
		panic(err)
	}
	return NewSecret(seed)
}

// A testParty is an issuer with one caller.
type testParty struct {
	issuer   *Issuer
	identity Identity
	signer   *Signer
	verifier *Verifier
	claims   CallerClaims
}

// newParty makes a party; change may alter what the issuer states.
func newParty(t testing.TB, change func(*CallerClaims)) *testParty {
	t.Helper()
	issuer := must(NewIssuer(fixedSeed(nkeys.PrefixByteAccount, 1)))(t)
	seed := fixedSeed(nkeys.PrefixByteUser, 2)
	claims := CallerClaims{
		PublicKey: must(PublicUserKey(seed))(t),
		Name:      "alice",
		Fleet:     testFleet,
		Groups:    []string{"admin"},
		Rights:    []Right{{Methods: []string{"*"}, Nodes: []string{"*"}}},
		Expires:   testNow.Add(24 * time.Hour),
	}
	if change != nil {
		change(&claims)
	}
	text := must(issuer.Issue(claims, testNow))(t)
	identity := must(NewIdentity(text, seed))(t)
	return &testParty{
		issuer: issuer, identity: identity, claims: claims,
		signer:   must(NewSigner(identity))(t),
		verifier: must(NewVerifier(testFleet, issuer.PublicKey()))(t),
	}
}

func testCommand() muster.Command {
	return muster.Command{
		Version: muster.EnvelopeVersion, Fleet: testFleet, ID: "01J0000000000000000000TEST", Node: testNode,
		Kind: muster.KindCommand, Method: "shell.run", Input: json.RawMessage(`{"argv":["/usr/bin/uptime"]}`),
		IssuedAt: testNow, Deadline: testNow.Add(time.Hour),
	}
}

// sealed returns an encoded frame of whatever bytes, signed by the identity.
func (p *testParty) sealed(t testing.TB, envelope []byte) []byte {
	t.Helper()
	key := must(parseSeed(nkeys.PrefixByteUser, p.identity.Seed))(t)
	f := Frame{Caller: p.identity.JWT, Signature: key.sign(signedBytes(envelope)), Envelope: envelope}
	return must(f.Encode())(t)
}

// must returns a function that fails the test on an error.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
