package aaa

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/musterfleet/muster"
)

func testList() RevocationList {
	return RevocationList{Fleet: testFleet, Serial: 7, IssuedAt: testNow, Revoked: []Revocation{
		{Name: "alice", At: testNow, Until: testNow.Add(24 * time.Hour), Reason: "laptop stolen"},
	}}
}

// TestRevoked: a list refuses what it is about, and nothing else.
func TestRevoked(t *testing.T) {
	other := must(GenerateIssuer())(t)
	key := newParty(t, nil).claims.PublicKey
	for name, c := range map[string]struct {
		revoked Revocation
		refused bool
	}{
		"the name, in the second of issue":   {Revocation{Name: "alice", At: testNow}, true},
		"the name, before it was issued":     {Revocation{Name: "alice", At: testNow.Add(-time.Second)}, false},
		"another name":                       {Revocation{Name: "alic", At: testNow}, false},
		"the key, whenever it was issued":    {Revocation{Name: "alice", Key: key, At: testNow.Add(-time.Hour)}, true},
		"the key, whatever it was called":    {Revocation{Key: key, At: testNow}, true},
		"another key of the name":            {Revocation{Name: "alice", Key: must(PublicUserKey(fixedSeed(nkeys.PrefixByteUser, 9)))(t), At: testNow}, false},
		"the name, though its expiry passed": {Revocation{Name: "alice", At: testNow, Until: testNow.Add(-time.Hour)}, true},
	} {
		p := newParty(t, nil)
		p.verifier = must(NewVerifier(testFleet, p.issuer.PublicKey(), other.PublicKey()))(t)
		frame := must(must(p.signer.Sign(testCommand()))(t).Encode())(t)
		list := testList()
		list.Revoked = nil
		p.enforce(t, p.issuer, list)
		if _, _, err := p.verifier.Verify(frame, testNode, testNow); err != nil {
			t.Errorf("%s, by an empty list: %v", name, err)
		}
		list.Revoked = []Revocation{c.revoked}
		p.enforce(t, other, list) // the issuer that takes the place of hers
		cmd, caller, err := p.verifier.Verify(frame, testNode, testNow)
		if refused := errors.Is(err, ErrRevoked); refused != c.refused || refused != (err != nil) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (muster.KindOf(err) != muster.Denied || errors.Is(err, ErrUnauthentic) || cmd.ID == "" || caller.Name != "alice") {
			t.Errorf("%s: nobody can be told of %v", name, err)
		}
	}
}

// enforce has the party's verifier read a list and put it in force.
func (p *testParty) enforce(t testing.TB, issuer *Issuer, l RevocationList) {
	t.Helper()
	list := must(p.verifier.ReadRevocations(must(issuer.SignRevocations(l))(t)))(t)
	if news, err := p.verifier.Revoke(list); err != nil || !news {
		t.Fatalf("Revoke = %v, %v", news, err)
	}
}

// TestRevocationsOnlyForward: an older list, or another one with the number of
// that in force, changes nothing.
func TestRevocationsOnlyForward(t *testing.T) {
	p := newParty(t, nil)
	p.enforce(t, p.issuer, testList())
	mark := RevocationMark(p.verifier.Revocations())
	for name, c := range map[string]struct {
		change func(*RevocationList)
		refuse bool
	}{
		"the same":    {func(*RevocationList) {}, false},
		"older":       {func(l *RevocationList) { l.Serial-- }, true},
		"as old":      {func(l *RevocationList) { l.Revoked = nil }, true},
		"as old, too": {func(l *RevocationList) { l.IssuedAt = l.IssuedAt.Add(time.Hour) }, true},
	} {
		list := testList()
		c.change(&list)
		news, err := p.verifier.Revoke(must(p.verifier.ReadRevocations(must(p.issuer.SignRevocations(list))(t)))(t))
		if news || (err != nil) != c.refuse || err != nil && !errors.Is(err, ErrOlder) {
			t.Errorf("%s: %v, %v", name, news, err)
		}
		if RevocationMark(p.verifier.Revocations()) != mark {
			t.Errorf("%s: another list is in force", name)
		}
	}
	newer := testList()
	newer.Serial, newer.Revoked = NextSerial(newer.Serial, testNow), nil
	p.enforce(t, p.issuer, newer)
	if why := p.verifier.Revoked(Caller{Name: "alice", Issued: testNow}); why != nil {
		t.Errorf("a newer list without her: %v", why)
	}
	if got := len(p.verifier.Revocations()); got != 1 {
		t.Errorf("%d lists of one issuer are in force", got)
	}
}

func TestNextSerial(t *testing.T) {
	now := uint64(testNow.Unix())
	for last, want := range map[uint64]uint64{0: now, 1: now, now: now + 1, now + 100: now + 101} {
		if got := NextSerial(last, testNow); got != want {
			t.Errorf("after %d: %d, want %d", last, got, want)
		}
	}
	if got := NextSerial(0, time.Time{}); got != 1 {
		t.Errorf("with a clock that is wrong: %d", got)
	}
}

func TestReadRevocationsRefuses(t *testing.T) {
	p := newParty(t, nil)
	good := must(p.issuer.SignRevocations(testList()))(t)
	var w wireRevocations
	if err := json.Unmarshal(good, &w); err != nil {
		t.Fatal(err)
	}
	// rewrite signs other bytes, as the issuer alone could.
	rewrite := func(change func(string) string, prefix string) string {
		list := change(string(must(base64.StdEncoding.DecodeString(w.List))(t)))
		x := w
		x.List = base64.StdEncoding.EncodeToString([]byte(list))
		x.Signature = base64.StdEncoding.EncodeToString(p.issuer.key.sign([]byte(prefix + list)))
		return string(must(json.Marshal(x))(t))
	}
	replace := func(old, new string) func(string) string {
		return func(s string) string { return strings.Replace(s, old, new, 1) }
	}
	same := func(s string) string { return s }
	for name, c := range map[string]struct{ data, want string }{
		"nothing":              {"", "unexpected end"},
		"of an account":        {rewrite(same, ""), "not signed by the issuer"},
		"as a command":         {rewrite(same, signaturePrefix), "not signed by the issuer"},
		"changed":              {strings.Replace(string(good), w.List[:8], "eyJ2IjoyL", 1), "list of revocations"},
		"another issuer":       {strings.Replace(string(good), w.Issuer, must(GenerateIssuer())(t).PublicKey(), 1), "not one of this fleet"},
		"an unknown key":       {strings.Replace(string(good), "{", `{"x":1,`, 1), "unknown"},
		"a repeated key":       {strings.Replace(string(good), "{", `{"list":"",`, 1), "twice"},
		"trailing data":        {string(good) + "{}", "list of revocations"},
		"too long":             {string(good) + strings.Repeat(" ", MaxRevocationList), "at most"},
		"unknown in the list":  {rewrite(replace(`{`, `{"x":1,`), revocationPrefix), "unknown"},
		"another version":      {rewrite(replace(`"v":1`, `"v":2`), revocationPrefix), "version 2"},
		"another fleet":        {rewrite(replace(testFleet, "FLEET-2"), revocationPrefix), "this is fleet"},
		"no serial":            {rewrite(replace(`"serial":7`, `"serial":0`), revocationPrefix), "serial 0"},
		"too high a serial":    {rewrite(replace(`"serial":7`, `"serial":9007199254740993`), revocationPrefix), "serial"},
		"nobody":               {rewrite(replace(`"name":"alice",`, ``), revocationPrefix), "name is empty"},
		"a wrong key":          {rewrite(replace(`"name":"alice"`, `"name":"alice","key":"`+p.issuer.PublicKey()+`"`), revocationPrefix), "not a public key"},
		"no time":              {rewrite(replace(`"at":"2026-03-04T05:06:07Z"`, `"at":"0001-01-01T00:00:00Z"`), revocationPrefix), "whole seconds"},
		"half a second":        {rewrite(replace(`"at":"2026-03-04T05:06:07Z"`, `"at":"2026-03-04T05:06:07.5Z"`), revocationPrefix), "whole seconds"},
		"a reason with a bell": {rewrite(replace(`laptop stolen`, `\u0007`), revocationPrefix), "not allowed"},
	} {
		if _, err := p.verifier.ReadRevocations([]byte(c.data)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
	if _, err := p.verifier.ReadRevocations([]byte(rewrite(same, revocationPrefix))); err != nil {
		t.Errorf("the good one: %v", err)
	}
	stranger := must(must(GenerateIssuer())(t).SignRevocations(testList()))(t)
	if _, err := p.verifier.ReadRevocations(stranger); muster.KindOf(err) != muster.Denied {
		t.Errorf("of an issuer that is not trusted: %v", err)
	}
	if _, err := ReadKeptRevocations(stranger, testFleet); err != nil {
		t.Errorf("of an issuer that was replaced: %v", err)
	}
	if _, err := ReadKeptRevocations([]byte(rewrite(same, "")), testFleet); err == nil {
		t.Error("a kept list without a signature is taken")
	}
}

// TestRevocationsLimits: what is too much is refused before it is signed, with
// what to do; as many short ones as are allowed fit.
func TestRevocationsLimits(t *testing.T) {
	issuer := newParty(t, nil).issuer
	list := testList()
	list.Revoked = nil
	for range MaxRevocations {
		list.Revoked = append(list.Revoked, Revocation{Name: "a caller's name", At: testNow, Until: testNow})
	}
	must(issuer.SignRevocations(list))(t)
	list.Revoked = append(list.Revoked, list.Revoked[0])
	if _, err := issuer.SignRevocations(list); muster.KindOf(err) != muster.Full || muster.AsError("", err).Hint == "" {
		t.Errorf("one more: %v", err)
	}
	list.Revoked = list.Revoked[1:]
	for i := range list.Revoked {
		list.Revoked[i].Reason = strings.Repeat("r", MaxRevocationReason)
	}
	if _, err := issuer.SignRevocations(list); muster.KindOf(err) != muster.Full {
		t.Errorf("with long reasons: %v", err)
	}
}

func TestSplitRevocations(t *testing.T) {
	one := []byte(`{"issuer":"A"}`)
	for name, lists := range map[string][][]byte{"none": nil, "one": {one}, "two": {one, []byte(`{}`)}} {
		got, err := SplitRevocations(JoinRevocations(lists))
		if err != nil || len(got) != len(lists) || len(got) > 0 && string(got[0]) != string(one) {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	for _, text := range []string{"", "{}", "[1]x", "[{},{},{},{},{},{},{},{},{}]", `[{"a":1,"a":2}]`} {
		if _, err := SplitRevocations([]byte(text)); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

// The list is fuzzed behind a good signature, too: what the issuer signs may
// come from another program.
func FuzzReadRevocations(f *testing.F) {
	p := newParty(f, nil)
	good := must(p.issuer.SignRevocations(testList()))(f)
	f.Add(good, []byte(`{"v":1,"fleet":"FLEET-1","serial":1,"issued_at":"2026-03-04T05:06:07Z","revoked":[]}`))
	f.Fuzz(func(t *testing.T, data, list []byte) {
		if _, err := p.verifier.ReadRevocations(data); err == nil && string(data) != string(good) {
			var w wireRevocations
			if json.Unmarshal(data, &w) != nil || w.Issuer != p.issuer.PublicKey() {
				t.Fatalf("accepted %q", data)
			}
		}
		sealed := must(json.Marshal(wireRevocations{
			Issuer: p.issuer.PublicKey(), List: base64.StdEncoding.EncodeToString(list),
			Signature: base64.StdEncoding.EncodeToString(p.issuer.key.sign(revocationBytes(list))),
		}))(t)
		s, err := p.verifier.ReadRevocations(sealed)
		if err != nil {
			return
		}
		if s.Fleet != testFleet || s.Serial == 0 || s.validate() != nil {
			t.Fatalf("accepted %q", list)
		}
		v := must(NewVerifier(testFleet, p.issuer.PublicKey()))(t)
		if news, err := v.Revoke(s); !news || err != nil {
			t.Fatal(err)
		}
		v.Revoked(Caller{Name: "alice", Issued: testNow})
	})
}

func FuzzSplitRevocations(f *testing.F) {
	f.Add([]byte(`[{"issuer":"A"}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		lists, err := SplitRevocations(data)
		if err == nil && len(lists) > MaxIssuers {
			t.Fatalf("%d lists", len(lists))
		}
	})
}
