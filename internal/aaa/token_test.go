package aaa

import (
	"bytes"
	"compress/flate"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/musterfleet/muster"
)

func testToken(t testing.TB) Token {
	issuer := must(NewIssuer(fixedSeed(nkeys.PrefixByteAccount, 1)))(t)
	return Token{
		ID: "inv_1", URLs: []string{"tls://broker.example.com:4222"}, CAPEM: testCA(t), Fleet: testFleet, Node: testNode,
		Secret: RandomSecret(), Expires: testNow.Add(time.Hour), Creds: NewSecret([]byte("enrolment credentials")),
		Issuers: []string{issuer.PublicKey()}, Policy: examplePolicy,
		Revoked: must(issuer.SignRevocations(testList()))(t),
	}
}

func testCA(t testing.TB) string {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: testNow.Add(time.Hour)}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestToken(t *testing.T) {
	want := testToken(t)
	text := must(want.Encode())(t)
	if strings.ContainsAny(text, " \t\r\n'\"$\\") {
		t.Errorf("token has characters that a shell reads: %s", text)
	}
	half := len(text) / 2
	got := must(ParseToken(" " + text[:12] + "\r\n" + text[12:half] + "\n\t" + text[half:] + "\n"))(t)
	if !got.Secret.Equal(want.Secret) || !got.Creds.Equal(want.Creds) {
		t.Error("secrets are not what was encoded")
	}
	plain := func(t Token) string {
		t.Secret, t.Creds = Secret{}, Secret{}
		type bare Token
		return fmt.Sprintf("%+v", bare(t))
	}
	if plain(got) != plain(want) {
		t.Errorf("token = %s; want %s", plain(got), plain(want))
	}
	if got.Expired(testNow) || !got.Expired(want.Expires) {
		t.Error("Expired is wrong")
	}
	minimal := want
	minimal.CAPEM, minimal.Creds, minimal.Policy, minimal.Revoked = "", Secret{}, "", nil
	if got := must(ParseToken(must(minimal.Encode())(t)))(t); !got.Creds.Empty() || got.Policy != "" {
		t.Errorf("token = %+v", got)
	}
}

func TestTokenEncodeRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Token)
		want   string
	}{
		{"id", func(t *Token) { t.ID = "a b" }, `id "a b"`},
		{"no id", func(t *Token) { t.ID = "" }, "id"},
		{"no URL", func(t *Token) { t.URLs = nil }, "0 URLs"},
		{"bad URL", func(t *Token) { t.URLs = []string{"broker"} }, "not a URL"},
		{"user in URL", func(t *Token) { t.URLs = []string{"tls://a:b@c"} }, "user in it"},
		{"fleet", func(t *Token) { t.Fleet = "" }, "fleet id is empty"},
		{"node", func(t *Token) { t.Node = "a b" }, "node name"},
		{"secret", func(t *Token) { t.Secret = NewSecret([]byte("short")) }, "expected 32"},
		{"expiry", func(t *Token) { t.Expires = time.Time{} }, "no expiry"},
		{"creds", func(t *Token) { t.Creds = NewSecret(make([]byte, MaxCreds+1)) }, "at most 65536"},
		{"no issuer", func(t *Token) { t.Issuers = nil }, "0 issuers"},
		{"bad issuer", func(t *Token) { t.Issuers = []string{"A"} }, "not a public key of type account"},
		{"revoked", func(t *Token) { t.Revoked = []byte(strings.Replace(string(t.Revoked), "A", "B", 1)) }, "list of revocations"},
		{"revoked in another fleet", func(t *Token) { t.Fleet = "FLEET-2" }, "list of revocations is for fleet"},
		{"policy", func(t *Token) { t.Policy = "rule: []" }, "policy in join token:1: unknown key"},
		{"private key as CA", func(t *Token) { t.CAPEM += "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n" }, "not made of certificates"},
		{"text as CA", func(t *Token) { t.CAPEM = "x" }, "not made of certificates"},
		{"bad certificate", func(t *Token) { t.CAPEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" }, "cannot be read"},
		{"too long", func(t *Token) { t.Policy = "#" + base64.StdEncoding.EncodeToString(noise(96<<10)) }, "at most 98304"},
	} {
		t.Run(c.name, func(t *testing.T) {
			token := testToken(t)
			c.change(&token)
			_, err := token.Encode()
			checkError(t, err, muster.Invalid, c.want)
		})
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// deflated returns a token of any content.
func deflated(content []byte) string {
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, flate.BestCompression)
	w.Write(content)
	w.Close()
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b.Bytes())
}

func TestParseTokenRefuses(t *testing.T) {
	good := must(testToken(t).Encode())(t)
	for _, c := range []struct {
		name, text string
		kind       muster.ErrorKind
		want       string
	}{
		{"empty", "", muster.Invalid, "not a join token"},
		{"other text", "hello", muster.Invalid, "not a join token"},
		{"later version", "muster-join-2.AAAA", muster.Unsupported, "version"},
		{"cut", good[:len(good)-10], muster.Invalid, "damaged"},
		{"appended", good + "AAAA", muster.Invalid, "damaged"},
		{"no content", tokenPrefix, muster.Invalid, "damaged"},
		{"bomb", deflated(make([]byte, 8<<20)), muster.Invalid, "decompresses to more than"},
		{"no JSON", deflated([]byte("x")), muster.Invalid, "damaged"},
		{"unknown key", deflated([]byte(`{"x":1}`)), muster.Invalid, "damaged"},
		{"nothing set", deflated([]byte(`{}`)), muster.Invalid, "id"},
		{"too long", tokenPrefix + strings.Repeat("A", MaxToken), muster.Invalid, "at most"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseToken(c.text)
			checkError(t, err, c.kind, c.want)
			if err != nil && len(c.text) > 40 && strings.Contains(err.Error(), c.text[20:40]) {
				t.Errorf("error quotes the token: %v", err)
			}
		})
	}
}

// Whoever reads a token line by line knows its end by this.
func TestNoBeginningOfATokenIsOne(t *testing.T) {
	text := must(testToken(t).Encode())(t)
	for n := range len(text) {
		if _, err := ParseToken(text[:n]); err == nil {
			t.Errorf("%d of %d characters are a token", n, len(text))
		}
	}
}

func TestCheckSecret(t *testing.T) {
	secret := RandomSecret()
	hash := HashSecret(secret)
	if !CheckSecret(secret, hash) {
		t.Error("the secret does not match its hash")
	}
	for name, other := range map[string]Secret{"another": RandomSecret(), "none": {}, "the hash": NewSecret(hash[:])} {
		if CheckSecret(other, hash) {
			t.Errorf("%s matches", name)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	text := must(testToken(f).Encode())(f)
	f.Add(text)
	f.Add(text[:80] + "\n" + text[80:] + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err != nil {
			return
		}
		if _, err := token.Encode(); err != nil && !strings.Contains(err.Error(), "at most") {
			t.Fatalf("does not survive: %v", err)
		}
		if _, err := ParseToken(strings.Join(strings.Split(text, ""), "\n")); err != nil {
			t.Fatalf("does not survive line breaks: %v", err)
		}
	})
}

// FuzzTokenContent is FuzzParseToken behind the compression.
func FuzzTokenContent(f *testing.F) {
	token := testToken(f)
	text := must(token.Encode())(f)
	compressed := must(decodeBase64URL(strings.TrimPrefix(text, tokenPrefix)))(f)
	f.Add(must(inflate(compressed))(f))
	f.Fuzz(func(t *testing.T, content []byte) {
		token, err := ParseToken(deflated(content))
		if err == nil && token.validate() != nil {
			t.Fatalf("accepted %q", content)
		}
	})
}
