package aaa

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/musterfleet/muster"
)

func TestSignAndVerify(t *testing.T) {
	p := newParty(t, nil)
	want := testCommand()
	frame := must(must(p.signer.Sign(want))(t).Encode())(t)
	got, caller, err := p.verifier.Verify(frame, testNode, testNow)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("command = %v; want %v", got, want)
	}
	if caller.Name != "alice" || caller.PublicKey != p.claims.PublicKey || fmt.Sprint(caller.Groups) != "[admin]" || !caller.Expires.Equal(p.claims.Expires) {
		t.Errorf("caller = %+v", caller)
	}
}

// Each part of a frame is covered: no byte of it can be another.
func TestVerifyNoticesEveryChange(t *testing.T) {
	p := newParty(t, nil)
	frame := must(must(p.signer.Sign(testCommand()))(t).Encode())(t)
	for i := range frame {
		changed := bytes.Clone(frame)
		changed[i] ^= 1
		if _, _, err := p.verifier.Verify(changed, testNode, testNow); !errors.Is(err, ErrUnauthentic) {
			t.Fatalf("byte %d as %q: error = %v; want unauthentic", i, changed[i], err)
		}
	}
}

func TestVerifyUnauthentic(t *testing.T) {
	p := newParty(t, nil)
	good := must(p.signer.Sign(testCommand()))(t)
	encode := func(f Frame) string { return string(must(f.Encode())(t)) }
	text := encode(good)
	otherSeed, otherKey, err := NewUserKey()
	if err != nil {
		t.Fatal(err)
	}
	key := must(parseSeed(nkeys.PrefixByteUser, p.identity.Seed))(t)
	otherPair := must(parseSeed(nkeys.PrefixByteUser, otherSeed))(t)
	bob := p.claims
	bob.Name, bob.PublicKey = "bob", otherKey
	with := func(change func(*Frame)) string { f := good; change(&f); return encode(f) }

	for _, c := range []struct{ name, frame string }{
		{"empty", ""},
		{"not JSON", "hello"},
		{"trailing data", text + "{}"},
		{"unknown key", strings.Replace(text, `{`, `{"x":1,`, 1)},
		{"repeated key", strings.Replace(text, `{`, `{"caller":"x",`, 1)},
		{"other case", strings.Replace(text, `"caller"`, `"Caller"`, 1)},
		{"line break in base64", strings.Replace(text, `"envelope":"`, `"envelope":"\n`, 1)},
		{"no signature", strings.Replace(text, `"signature"`, `"envelope2"`, 1)},
		{"null", `{"caller":null,"signature":null,"envelope":null}`},
		{"too large", `{"caller":"` + strings.Repeat("a", MaxFrame) + `"}`},
		{"other caller's JWT", with(func(f *Frame) { f.Caller = must(p.issuer.Issue(bob, testNow))(t) })},
		{"other caller's signature", with(func(f *Frame) { f.Signature = otherPair.sign(signedBytes(f.Envelope)) })},
		{"signature without prefix", with(func(f *Frame) { f.Signature = key.sign(f.Envelope) })},
		{"signature for another purpose", with(func(f *Frame) {
			f.Signature = key.sign(append([]byte("muster/call/1\n"), f.Envelope...))
		})},
		{"signed by the issuer", with(func(f *Frame) { f.Signature = p.issuer.key.sign(signedBytes(f.Envelope)) })},
		{"zero signature", with(func(f *Frame) { f.Signature = make([]byte, 64) })},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd, caller, err := p.verifier.Verify([]byte(c.frame), testNode, testNow)
			if !errors.Is(err, ErrUnauthentic) || muster.KindOf(err) != muster.Denied {
				t.Errorf("error = %v; want unauthentic", err)
			}
			if caller.Name != "" || cmd.ID != "" {
				t.Errorf("caller %v and command %v are set", caller, cmd)
			}
		})
	}
}

func TestVerifyRefusesAuthentic(t *testing.T) {
	p := newParty(t, nil)
	envelope := string(must(json.Marshal(testCommand()))(t))
	with := func(change func(*muster.Command)) string {
		c := testCommand()
		change(&c)
		return string(must(json.Marshal(c))(t))
	}
	for _, c := range []struct {
		name, envelope, want string
		readable             bool
	}{
		{"as it should be", envelope, "", true},
		{"deadline passed", with(func(c *muster.Command) { c.IssuedAt, c.Deadline = testNow.Add(-2*time.Hour), testNow.Add(-time.Hour) }), "", true},
		{"a little ahead", with(func(c *muster.Command) { c.IssuedAt = testNow.Add(MaxAhead) }), "", true},
		{"far ahead", with(func(c *muster.Command) { c.IssuedAt = testNow.Add(MaxAhead + time.Second) }), "ahead of this node's clock", true},
		{"other node", with(func(c *muster.Command) { c.Node = "web2" }), `for node "web2"`, true},
		{"other fleet", with(func(c *muster.Command) { c.Fleet = "FLEET-2" }), `for fleet "FLEET-2"`, true},
		{"invalid", with(func(c *muster.Command) { c.Retries = -1 }), "retries", true},
		{"other version", with(func(c *muster.Command) { c.Version = 2 }), "version 2", true},
		{"not JSON", "hello", "envelope", false},
		{"trailing data", envelope + "x", "envelope", false},
		{"unknown key", strings.Replace(envelope, "{", `{"x":1,`, 1), `key "x"`, false},
		{"other case", strings.Replace(envelope, `"method"`, `"Method"`, 1), `key "Method"`, false},
		{"repeated key", strings.Replace(envelope, "{", `{"method":"ping",`, 1), "twice", false},
		{"repeated key in the input", strings.Replace(envelope, `"argv"`, `"argv":["ls"],"argv"`, 1), "twice", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd, caller, err := p.verifier.Verify(p.sealed(t, []byte(c.envelope)), testNode, testNow)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error = %v; want %q", err, c.want)
			}
			if errors.Is(err, ErrUnauthentic) {
				t.Errorf("error is unauthentic: %v", err)
			}
			if caller.Name != "alice" || (cmd.ID != "") != c.readable {
				t.Errorf("caller %v, command %v; want both as far as readable", caller, cmd)
			}
		})
	}
}

// The cache spares signature checks, never the clock.
func TestVerifyAsksTheTimeAgain(t *testing.T) {
	p := newParty(t, nil)
	frame := must(must(p.signer.Sign(testCommand()))(t).Encode())(t)
	expires := p.claims.Expires
	for _, c := range []struct {
		name string
		now  time.Time
		want string
	}{
		{"now", testNow, ""},
		{"before it was issued, within leeway", testNow.Add(-ClockLeeway), ""},
		{"before it was issued", testNow.Add(-ClockLeeway - time.Second), "not valid yet"},
		{"at expiry, within leeway", expires.Add(ClockLeeway - time.Nanosecond), ""},
		{"expired", expires.Add(ClockLeeway), "expired at"},
		{"now again", testNow, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd, caller, err := p.verifier.Verify(frame, testNode, c.now)
			checkError(t, err, muster.Denied, c.want)
			if caller.Name != "alice" || cmd.ID == "" || errors.Is(err, ErrUnauthentic) {
				t.Errorf("caller %v, command %v, error %v; want both and not unauthentic", caller, cmd, err)
			}
		})
	}
	if len(p.verifier.cache) != 1 {
		t.Errorf("cache has %d entries; want 1", len(p.verifier.cache))
	}
}

func TestVerifierCacheIsBounded(t *testing.T) {
	p := newParty(t, nil)
	var wait sync.WaitGroup
	for part := range 4 {
		wait.Go(func() {
			for i := range MaxCached/4 + 10 {
				claims := p.claims
				claims.Name = fmt.Sprintf("caller-%d-%d", part, i)
				text, err := p.issuer.Issue(claims, testNow)
				if err == nil {
					var known *knownCaller
					if known, err = p.verifier.caller(text); err == nil && known.caller.Name != claims.Name {
						err = fmt.Errorf("caller %q is %q", claims.Name, known.caller.Name)
					}
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
	if n := len(p.verifier.cache); n != MaxCached {
		t.Errorf("cache has %d entries; want %d", n, MaxCached)
	}
}

func TestNewVerifier(t *testing.T) {
	a, b := must(GenerateIssuer())(t), must(GenerateIssuer())(t)
	p := newParty(t, nil)
	for _, c := range []struct {
		name    string
		fleet   string
		issuers []string
		want    string
	}{
		{"one", testFleet, []string{a.PublicKey()}, ""},
		{"no fleet", "", []string{a.PublicKey()}, "fleet id is empty"},
		{"none", testFleet, nil, "expected 1 to 8"},
		{"many", testFleet, make([]string, 9), "expected 1 to 8"},
		{"user", testFleet, []string{p.claims.PublicKey}, "type account"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := NewVerifier(c.fleet, c.issuers...)
			checkError(t, err, muster.Invalid, c.want)
		})
	}
	rotating := must(NewVerifier(testFleet, a.PublicKey(), b.PublicKey()))(t)
	for _, issuer := range []*Issuer{a, b} {
		if _, err := rotating.caller(must(issuer.Issue(p.claims, testNow))(t)); err != nil {
			t.Errorf("while issuers are rotated: %v", err)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	p := newParty(t, nil)
	for _, c := range []struct {
		name   string
		change func(*muster.Command)
		want   string
	}{
		{"invalid", func(c *muster.Command) { c.Method = "" }, "method is empty"},
		{"other fleet", func(c *muster.Command) { c.Fleet = "FLEET-2" }, "identity is for fleet"},
		{"ambiguous input", func(c *muster.Command) { c.Input = []byte(`{"a":1,"a":2}`) }, "twice"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := testCommand()
			c.change(&cmd)
			_, err := p.signer.Sign(cmd)
			checkError(t, err, muster.Invalid, c.want)
		})
	}
}

// The largest input that a command may have fits a frame, whatever is in it.
func TestLargestInputFits(t *testing.T) {
	p := newParty(t, nil)
	for _, fill := range []string{"a", "<"} {
		cmd := testCommand()
		cmd.Input = []byte(`"` + strings.Repeat(fill, muster.MaxInput-2) + `"`)
		frame := must(must(p.signer.Sign(cmd))(t).Encode())(t)
		got, _, err := p.verifier.Verify(frame, testNode, testNow)
		if err != nil || !bytes.Equal(got.Input, cmd.Input) {
			t.Errorf("input of %q: error %v", fill, err)
		}
	}
}

func FuzzDecodeFrame(f *testing.F) {
	p := newParty(f, nil)
	f.Add(must(must(p.signer.Sign(testCommand()))(f).Encode())(f))
	f.Fuzz(func(t *testing.T, data []byte) {
		frame, err := DecodeFrame(data)
		if err != nil {
			return
		}
		encoded, err := frame.Encode()
		if err != nil {
			return // spaces aside, an encoding may be longer than what it came from
		}
		again, err := DecodeFrame(encoded)
		if err != nil || again.Caller != frame.Caller || !bytes.Equal(again.Signature, frame.Signature) || !bytes.Equal(again.Envelope, frame.Envelope) {
			t.Fatalf("does not survive: %v", err)
		}
	})
}

// The envelope is fuzzed behind a good signature: a caller may be hostile too.
func FuzzVerifyEnvelope(f *testing.F) {
	p := newParty(f, nil)
	f.Add(must(json.Marshal(testCommand()))(f))
	f.Fuzz(func(t *testing.T, envelope []byte) {
		if len(envelope) == 0 || len(envelope) > 1<<16 {
			t.Skip()
		}
		cmd, caller, err := p.verifier.Verify(p.sealed(t, envelope), testNode, testNow)
		if errors.Is(err, ErrUnauthentic) || caller.Name != "alice" {
			t.Fatalf("caller %v, error %v", caller, err)
		}
		if err == nil && (cmd.Validate() != nil || cmd.Fleet != testFleet || cmd.Node != testNode) {
			t.Fatalf("accepted %q", envelope)
		}
		AuditLine([32]byte{}, Record{ID: cmd.ID, Node: cmd.Node, Method: cmd.Method, Input: cmd.Input, IssuedAt: cmd.IssuedAt, Deadline: cmd.Deadline}, nil)
	})
}

func BenchmarkSign(b *testing.B) {
	p, cmd := newParty(b, nil), testCommand()
	b.ReportAllocs()
	for b.Loop() {
		f, err := p.signer.Sign(cmd)
		if err == nil {
			_, err = f.Encode()
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	p := newParty(b, nil)
	frame := must(must(p.signer.Sign(testCommand()))(b).Encode())(b)
	key := must(parsePublic(nkeys.PrefixByteUser, p.claims.PublicKey))(b)
	decoded := must(DecodeFrame(frame))(b)
	message := signedBytes(decoded.Envelope)
	for _, c := range []struct {
		name string
		run  func() error
	}{
		{"cached", func() error { _, _, err := p.verifier.Verify(frame, testNode, testNow); return err }},
		{"uncached", func() error {
			clear(p.verifier.cache)
			_, _, err := p.verifier.Verify(frame, testNode, testNow)
			return err
		}},
		{"floor", func() error { return verifyRaw(key, message, decoded.Signature) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := c.run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// verifyRaw is the floor of Verify: one signature and nothing else.
func verifyRaw(key ed25519.PublicKey, message, signature []byte) error {
	if !ed25519.Verify(key, message, signature) {
		return errors.New("signature is wrong")
	}
	return nil
}
