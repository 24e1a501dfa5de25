package aaa

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"

	"github.com/musterfleet/muster"
)

func TestFleetKeys(t *testing.T) {
	k := must(NewFleetKeys())(t)
	again := must(ParseFleetKeys(k.Marshal()))(t)
	if !again.Operator.Equal(k.Operator) || !again.System.Equal(k.System) || !again.Account.Equal(k.Account) || !again.Signing.Equal(k.Signing) {
		t.Error("keys are not what was marshalled")
	}
	text := string(k.Marshal())
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", "fleet keys"},
		{"missing", strings.Replace(text, `"signing"`, `"system2"`, 1), "unknown"},
		{"no seed", `{"operator":"","system":"","account":"","signing":""}`, "operator: operator seed has 0 characters"},
		{"other type", strings.Replace(text, string(k.Operator.Reveal()), string(k.Account.Reveal()), 1), "expected type operator"},
		{"large", strings.Repeat(" ", maxFleetKeys+1), "at most"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseFleetKeys([]byte(c.text))
			checkError(t, err, muster.Invalid, c.want)
			if err != nil && strings.Contains(err.Error(), string(k.Account.Reveal())) {
				t.Errorf("error quotes a seed: %v", err)
			}
		})
	}
	if _, err := (FleetKeys{}).PublicKeys(); muster.KindOf(err) != muster.Invalid {
		t.Errorf("keys of nothing: error = %v", err)
	}
}

func TestAccountJWTs(t *testing.T) {
	k := must(NewFleetKeys())(t)
	public := must(k.PublicKeys())(t)
	_, gone, err := NewUserKey()
	if err != nil {
		t.Fatal(err)
	}

	operator := must(jwt.DecodeOperatorClaims(must(k.OperatorJWT("fleet", testNow))(t)))(t)
	if operator.Subject != public.Operator || operator.SystemAccount != public.System || operator.IssuedAt != testNow.Unix() {
		t.Errorf("operator = %v", operator)
	}
	system := must(jwt.DecodeAccountClaims(must(k.SystemAccountJWT(testNow))(t)))(t)
	if !operator.DidSign(system) || system.Limits.IsJSEnabled() || system.Name != "SYS" {
		t.Errorf("system account = %v", system)
	}
	spec := AccountSpec{Name: "fleet", Limits: NoLimits(), Revocations: map[string]time.Time{gone: testNow}}
	account := must(jwt.DecodeAccountClaims(must(k.AccountJWT(spec, testNow))(t)))(t)
	if !operator.DidSign(account) || !account.Limits.JetStreamLimits.IsUnlimited() || !account.Limits.DisallowBearer ||
		!slices.Equal(account.SigningKeys.Keys(), []string{public.Signing}) || account.Subject != public.Account {
		t.Errorf("account = %v", account)
	}
	if !account.Revocations.IsRevoked(gone, testNow) || account.Revocations.IsRevoked(gone, testNow.Add(time.Second)) {
		t.Errorf("revocations = %v", account.Revocations)
	}
	spec.Revocations = map[string]time.Time{"alice": testNow}
	_, err = k.AccountJWT(spec, testNow)
	checkError(t, err, muster.Invalid, "revocation")
	_, err = k.AccountJWT(AccountSpec{}, testNow)
	checkError(t, err, muster.Invalid, "account name is empty")
}

func TestUserJWT(t *testing.T) {
	k := must(NewFleetKeys())(t)
	public := must(k.PublicKeys())(t)
	seed, key, err := NewUserKey()
	if err != nil {
		t.Fatal(err)
	}
	spec := UserSpec{Name: "web1", PublicKey: key, PubAllow: []string{"a.b"}, SubAllow: []string{"c.>", "d.* group"},
		AllowResponses: 1, Expires: testNow.Add(time.Hour), Tags: []string{"Node"}}
	text := must(k.UserJWT(spec, testNow))(t)
	user := must(jwt.DecodeUserClaims(text))(t)
	if user.Issuer != public.Signing || user.IssuerAccount != public.Account || user.BearerToken || user.Expires != spec.Expires.Unix() ||
		!slices.Equal(user.Pub.Allow, spec.PubAllow) || !slices.Equal(user.Sub.Allow, spec.SubAllow) || !user.User.Tags.Contains("node") {
		t.Errorf("user = %v", user)
	}
	if user.Resp == nil || user.Resp.MaxMsgs != 1 || user.Resp.Expires != 10*time.Second {
		t.Errorf("responses = %v", user.Resp)
	}
	if text != must(k.UserJWT(spec, testNow))(t) {
		t.Error("the JWT depends on more than its parameters")
	}

	bare := must(jwt.DecodeUserClaims(must(k.SystemUserJWT(UserSpec{Name: "none", PublicKey: key}, testNow))(t)))(t)
	if !slices.Equal(bare.Pub.Deny, []string{">"}) || !slices.Equal(bare.Sub.Deny, []string{">"}) || bare.Resp != nil || bare.Expires != 0 {
		t.Errorf("a user who is allowed nothing = %v", bare)
	}
	if bare.Issuer != public.System || bare.IssuerAccount != "" {
		t.Errorf("system user is issued by %s for %s", bare.Issuer, bare.IssuerAccount)
	}

	creds := must(Creds(text, seed))(t)
	if got := must(jwt.ParseDecoratedJWT(creds.Reveal()))(t); got != text {
		t.Errorf("JWT in creds = %s", got)
	}
	pair := must(jwt.ParseDecoratedUserNKey(creds.Reveal()))(t)
	if got := must(pair.PublicKey())(t); got != key {
		t.Errorf("key in creds = %s; want %s", got, key)
	}
	otherSeed, _, _ := NewUserKey()
	_, err = Creds(text, otherSeed)
	checkError(t, err, muster.Invalid, "does not match")
	_, err = Creds(text, k.Account)
	checkError(t, err, muster.Invalid, "expected type user")
}

func TestUserJWTRefuses(t *testing.T) {
	k := must(NewFleetKeys())(t)
	_, key, err := NewUserKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*UserSpec)
		want   string
	}{
		{"name", func(s *UserSpec) { s.Name = "" }, "user name is empty"},
		{"key", func(s *UserSpec) { s.PublicKey = "U" }, "not a public key"},
		{"responses", func(s *UserSpec) { s.AllowResponses = 2 }, "expected 0 to 1"},
		{"expired", func(s *UserSpec) { s.Expires = testNow }, "not after now"},
		{"empty subject", func(s *UserSpec) { s.PubAllow = []string{""} }, "not a subject"},
		{"dots", func(s *UserSpec) { s.PubAllow = []string{"a..b"} }, "credentials"},
		{"queue on publish", func(s *UserSpec) { s.PubAllow = []string{"a q"} }, "credentials"},
		{"line break", func(s *UserSpec) { s.SubAllow = []string{"a\nb"} }, "not a subject"},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := UserSpec{Name: "web1", PublicKey: key}
			c.change(&spec)
			_, err := k.UserJWT(spec, testNow)
			checkError(t, err, muster.Invalid, c.want)
		})
	}
}

func FuzzParseFleetKeys(f *testing.F) {
	k, err := NewFleetKeys()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(k.Marshal())
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := ParseFleetKeys(data)
		if err != nil {
			return
		}
		if _, err := k.PublicKeys(); err != nil {
			t.Fatal(err)
		}
	})
}
