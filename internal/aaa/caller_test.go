package aaa

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/musterfleet/muster"
)

// The usual tools of NATS read a caller's JWT.
func TestIssueIsReadByTheLibrary(t *testing.T) {
	p := newParty(t, nil)
	c, err := jwt.DecodeGeneric(p.identity.JWT)
	if err != nil {
		t.Fatal(err)
	}
	if c.Subject != p.claims.PublicKey || c.Issuer != p.issuer.PublicKey() || c.Name != "alice" ||
		c.IssuedAt != testNow.Unix() || c.Expires != p.claims.Expires.Unix() || c.ID == "" {
		t.Errorf("claims = %+v", c.ClaimsData)
	}
	if c.Data["type"] != CallerType || c.Data["fleet"] != testFleet {
		t.Errorf("data = %v", c.Data)
	}
}

func TestIssueRefuses(t *testing.T) {
	issuer := must(GenerateIssuer())(t)
	good := newParty(t, nil).claims
	for _, c := range []struct {
		name   string
		change func(*CallerClaims)
		want   string
	}{
		{"key of another type", func(c *CallerClaims) { c.PublicKey = issuer.PublicKey() }, "not a public key of type user"},
		{"key with a line break", func(c *CallerClaims) { c.PublicKey = c.PublicKey[:55] + "\n" }, "not a public key"},
		{"no name", func(c *CallerClaims) { c.Name = "" }, "caller name is empty"},
		{"name with a control character", func(c *CallerClaims) { c.Name = "a\nb" }, `'\n' at byte 2`},
		{"name with a hidden character", func(c *CallerClaims) { c.Name = "a\u200bb" }, "not allowed"},
		{"long name", func(c *CallerClaims) { c.Name = strings.Repeat("a", 129) }, "at most 128"},
		{"no fleet", func(c *CallerClaims) { c.Fleet = "" }, "fleet id is empty"},
		{"fleet with a space", func(c *CallerClaims) { c.Fleet = "a b" }, "not allowed"},
		{"no expiry", func(c *CallerClaims) { c.Expires = time.Time{} }, "no expiry"},
		{"expired", func(c *CallerClaims) { c.Expires = testNow }, "not after now"},
		{"far expiry", func(c *CallerClaims) { c.Expires = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }, "9999"},
		{"groups", func(c *CallerClaims) { c.Groups = make([]string, 65) }, "at most 64"},
		{"empty group", func(c *CallerClaims) { c.Groups = []string{""} }, "group is empty"},
		{"rights", func(c *CallerClaims) { c.Rights = make([]Right, 65) }, "at most 64"},
		{"right without methods", func(c *CallerClaims) { c.Rights = []Right{{Nodes: []string{"*"}}} }, "methods of a right has no pattern"},
		{"right without nodes", func(c *CallerClaims) { c.Rights = []Right{{Methods: []string{"*"}}} }, "nodes of a right has no pattern"},
		{"too large", func(c *CallerClaims) {
			c.Rights = []Right{{Methods: []string{"*"}, Nodes: strings.Split(strings.Repeat(strings.Repeat("n", 100)+" ", 80)+"n", " ")}}
		}, "at most 8192"},
	} {
		t.Run(c.name, func(t *testing.T) {
			claims := good
			c.change(&claims)
			_, err := issuer.Issue(claims, testNow)
			checkError(t, err, muster.Invalid, c.want)
		})
	}
}

func TestNewIssuerRefuses(t *testing.T) {
	for name, seed := range map[string]Secret{
		"empty":     {},
		"user":      fixedSeed(nkeys.PrefixByteUser, 1),
		"not a key": NewSecret([]byte(strings.Repeat("S", seedText))),
	} {
		_, err := NewIssuer(seed)
		if muster.KindOf(err) != muster.Invalid {
			t.Errorf("%s: error = %v; want invalid", name, err)
		}
		if !seed.Empty() && strings.Contains(err.Error(), string(seed.Reveal())) {
			t.Errorf("%s: error quotes the seed: %v", name, err)
		}
	}
}

func TestMay(t *testing.T) {
	c := Caller{Rights: []Right{
		{Methods: []string{"shell.*", "ping"}, Nodes: []string{"web*"}},
		{Methods: []string{"file.read"}, Nodes: []string{"*"}},
	}}
	for _, tc := range []struct {
		method muster.Method
		node   muster.NodeName
		want   bool
	}{
		{"shell.run", "web1", true}, {"ping", "web1.example.com", true}, {"file.read", "db1", true},
		{"shell.run", "db1", false}, {"file.write", "web1", false}, {"shellx", "web1", false},
	} {
		if got := c.May(tc.method, tc.node); got != tc.want {
			t.Errorf("May(%s, %s) = %v; want %v", tc.method, tc.node, got, tc.want)
		}
	}
	if (Caller{}).May("ping", "web1") {
		t.Error("a caller without rights may ping")
	}
}

// forge signs any header and payload with the issuer's key.
func forge(key keyPair, header, payload string) string {
	signed := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	return signed + "." + base64.RawURLEncoding.EncodeToString(key.sign([]byte(signed)))
}

func TestVerifierRefusesJWT(t *testing.T) {
	p := newParty(t, nil)
	const header = `{"typ":"JWT","alg":"ed25519-nkey"}`
	payload := string(must(parseJWT(p.identity.JWT))(t).payload)
	key := p.issuer.key
	other := must(GenerateIssuer())(t)
	parts := strings.Split(p.identity.JWT, ".")
	replace := func(old, new string) string {
		if !strings.Contains(payload, old) {
			t.Fatalf("%s is not in %s", old, payload)
		}
		return forge(key, header, strings.Replace(payload, old, new, 1))
	}
	oldStyle := parts[1] + "." // v1 signed the payload alone
	for _, c := range []struct{ name, jwt, want string }{
		{"as issued", p.identity.JWT, ""},
		{"as forged here", forge(key, header, payload), ""},
		{"empty", "", "three parts"},
		{"two parts", parts[0] + "." + parts[1], "three parts"},
		{"four parts", p.identity.JWT + ".x", "signature"},
		{"algorithm none", forge(key, `{"typ":"JWT","alg":"none"}`, payload), "header"},
		{"old algorithm", base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"JWT","alg":"ed25519"}`)) + "." + oldStyle + base64.RawURLEncoding.EncodeToString(key.sign([]byte(parts[1]))), "header"},
		{"header in other words", forge(key, `{"alg":"ed25519-nkey","typ":"JWT"}`, payload), "header"},
		{"no signature", parts[0] + "." + parts[1] + ".", "signature"},
		{"other signature", parts[0] + "." + parts[1] + "." + strings.Repeat("A", 86), "not signed by an issuer"},
		{"other issuer", must(other.Issue(p.claims, testNow))(t), "not signed by an issuer"},
		{"other issuer who claims to be ours", forge(other.key, header, payload), "not signed by an issuer"},
		{"issuer names another", replace(p.issuer.PublicKey(), other.PublicKey()), "names issuer"},
		{"issued by the caller", forge(must(parseSeed(nkeys.PrefixByteUser, p.identity.Seed))(t), header, payload), "not signed by an issuer"},
		{"line break", p.identity.JWT[:len(p.identity.JWT)-4] + "\n" + p.identity.JWT[len(p.identity.JWT)-4:], "signature"},
		{"too large", strings.Repeat("a", MaxCallerJWT+1), "at most 8192"},
		{"other type", replace(CallerType, "muster-callee"), `expected "muster-caller"`},
		{"other version", replace(`"version":2`, `"version":3`), "version 3"},
		{"other fleet", replace(testFleet, "FLEET-2"), `for fleet "FLEET-2"`},
		{"unknown key", replace(`"type"`, `"x":1,"type"`), `key "x"`},
		{"other case", replace(`"groups"`, `"Groups"`), `key "Groups"`},
		{"repeated key", replace(`"sub"`, `"exp":9999999999,"sub"`), "twice"},
		{"no expiry", replace(`"exp"`, `"nbf"`), "no expiry"},
		{"no subject", replace(`"sub"`, `"aud"`), "public key"},
		{"hidden character in name", replace(`"alice"`, `"al\u200bice"`), "not allowed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := must(NewVerifier(testFleet, p.issuer.PublicKey()))(t)
			_, err := v.caller(c.jwt)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error = %v; want %q", err, c.want)
			}
			if c.want != "" && len(v.cache) != 0 {
				t.Errorf("a refused JWT is in the cache")
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	p := newParty(t, nil)
	file := p.identity.Marshal()
	got := must(ParseIdentity(file))(t)
	if got.JWT != p.identity.JWT || !got.Seed.Equal(p.identity.Seed) {
		t.Error("an identity is not what was marshalled")
	}
	if crlf := []byte(strings.ReplaceAll(string(file), "\n", "\r\n")); must(ParseIdentity(crlf))(t).JWT != got.JWT {
		t.Error("a file with CRLF reads differently")
	}
	pair, err := nkeys.ParseDecoratedUserNKey(file) // the usual tools find the seed
	if err != nil || must(pair.PublicKey())(t) != p.claims.PublicKey {
		t.Errorf("nkeys does not read the file: %v", err)
	}
	otherSeed, _, err := NewUserKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, file, want string }{
		{"empty", "", "0 blocks"},
		{"twice", string(file) + string(file), "2 blocks"},
		{"cut", string(file[:len(file)/2]), "identity file"},
		{"no seed", strings.ReplaceAll(string(file), "NKEY SEED", "KEY"), "0 blocks"},
		{"other seed", strings.ReplaceAll(string(file), string(p.identity.Seed.Reveal()), string(otherSeed.Reveal())), "seed belongs to key"},
		{"account's seed", strings.ReplaceAll(string(file), string(p.identity.Seed.Reveal()), string(p.issuer.Seed().Reveal())), "expected type user"},
		{"large", strings.Repeat("\n", MaxIdentity+1), "at most"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseIdentity([]byte(c.file))
			checkError(t, err, muster.Invalid, c.want)
		})
	}
}

func FuzzParseIdentity(f *testing.F) {
	p := newParty(f, nil)
	f.Add(p.identity.Marshal())
	f.Fuzz(func(t *testing.T, file []byte) {
		id, err := ParseIdentity(file)
		if err != nil {
			return
		}
		again, err := ParseIdentity(id.Marshal())
		if err != nil || again.JWT != id.JWT || !again.Seed.Equal(id.Seed) {
			t.Fatalf("does not survive: %v", err)
		}
	})
}

func FuzzReadCallerJWT(f *testing.F) {
	p := newParty(f, nil)
	f.Add(string(must(parseJWT(p.identity.JWT))(f).payload))
	f.Fuzz(func(t *testing.T, payload string) {
		claims, err := ReadCallerJWT(forge(p.issuer.key, `{"typ":"JWT","alg":"ed25519-nkey"}`, payload))
		if err != nil {
			return
		}
		if err := claims.validate(); err != nil {
			t.Fatalf("accepted %q: %v", payload, err)
		}
	})
}
