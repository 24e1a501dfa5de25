package aaa

import (
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/musterfleet/muster"
)

var update = flag.Bool("update", false, "write testdata/vectors.json")

// vectors let another implementation check itself. Seeds are nkeys of fixed
// bytes; Ed25519 signatures are deterministic, so every byte is fixed.
type vectors struct {
	Comment      string          `json:"comment"`
	Fleet        string          `json:"fleet"`
	Node         muster.NodeName `json:"node"`
	Now          time.Time       `json:"now"`
	IssuerSeed   string          `json:"issuer_seed"`
	IssuerPublic string          `json:"issuer_public"`
	CallerSeed   string          `json:"caller_seed"`
	CallerPublic string          `json:"caller_public"`
	CallerName   string          `json:"caller_name"`
	CallerJWT    string          `json:"caller_jwt"`
	Prefix       string          `json:"signed_prefix"` // stands before the envelope when it is signed
	Envelope     string          `json:"envelope"`
	Signature    []byte          `json:"signature"` // base64
	Frame        string          `json:"frame"`
	// A list that revokes the caller, and what stands before it when it is signed.
	RevocationsPrefix string `json:"revocations_signed_prefix"`
	RevocationsList   string `json:"revocations_list"`
	Revocations       string `json:"revocations"`
}

func TestVectors(t *testing.T) {
	const file = "testdata/vectors.json"
	p := newParty(t, nil)
	frame := must(p.signer.Sign(testCommand()))(t)
	made := vectors{
		Comment: "seeds are nkeys of 32 equal bytes; signature = ed25519(caller, signed_prefix + envelope)",
		Fleet:   testFleet, Node: testNode, Now: testNow,
		IssuerSeed: string(p.issuer.Seed().Reveal()), IssuerPublic: p.issuer.PublicKey(),
		CallerSeed: string(p.identity.Seed.Reveal()), CallerPublic: p.claims.PublicKey, CallerName: p.claims.Name,
		CallerJWT: frame.Caller, Prefix: signaturePrefix, Envelope: string(frame.Envelope), Signature: frame.Signature,
		Frame:             string(must(frame.Encode())(t)),
		RevocationsPrefix: revocationPrefix, Revocations: string(must(p.issuer.SignRevocations(testList()))(t)),
	}
	made.RevocationsList = string(must(marshalPlain(must(p.verifier.ReadRevocations([]byte(made.Revocations)))(t).RevocationList))(t))
	if *update {
		data := must(json.MarshalIndent(made, "", "  "))(t)
		if err := os.WriteFile(file, append(data, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var stored vectors
	if err := json.Unmarshal(must(os.ReadFile(file))(t), &stored); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(stored, made) {
		t.Errorf("the format changed; frames of other versions are refused:\n got %+v\nwant %+v", made, stored)
	}

	verifier := must(NewVerifier(stored.Fleet, stored.IssuerPublic))(t)
	cmd, caller, err := verifier.Verify([]byte(stored.Frame), stored.Node, stored.Now)
	if err != nil || caller.Name != stored.CallerName || caller.PublicKey != stored.CallerPublic || cmd.Method != "shell.run" {
		t.Errorf("Verify = %v, %v, %v", cmd, caller, err)
	}
	// The signature again, by another implementation of nkeys than ours.
	pair := must(nkeys.FromSeed([]byte(stored.CallerSeed)))(t)
	if err := pair.Verify([]byte(stored.Prefix+stored.Envelope), stored.Signature); err != nil {
		t.Errorf("nkeys does not verify the signature: %v", err)
	}
	var list wireRevocations
	if err := json.Unmarshal([]byte(stored.Revocations), &list); err != nil {
		t.Fatal(err)
	}
	issuer := must(nkeys.FromPublicKey(stored.IssuerPublic))(t)
	signature := must(decodeBase64(list.Signature))(t)
	if err := issuer.Verify([]byte(stored.RevocationsPrefix+stored.RevocationsList), signature); err != nil {
		t.Errorf("nkeys does not verify the signature of the list: %v", err)
	}
}
