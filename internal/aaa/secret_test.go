package aaa

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/nats-io/nkeys"
)

// Whatever holds a secret must not show it, also where fmt cannot call its
// methods: in unexported fields.
func TestSecretsAreNeverPrinted(t *testing.T) {
	p := newParty(t, nil)
	keys := must(NewFleetKeys())(t)
	token := testToken(t)
	for name, c := range map[string]struct {
		value  any
		secret []byte
	}{
		"secret":   {p.identity.Seed, p.identity.Seed.Reveal()},
		"identity": {p.identity, p.identity.Seed.Reveal()},
		"signer":   {p.signer, p.identity.Seed.Reveal()},
		"issuer":   {p.issuer, p.issuer.Seed().Reveal()},
		"keys":     {keys, keys.Operator.Reveal()},
		"token":    {token, token.Secret.Reveal()},
		"creds":    {token, token.Creds.Reveal()},
	} {
		t.Run(name, func(t *testing.T) {
			type wrapped struct{ v any }
			type held struct{ s Secret }
			var out strings.Builder
			for _, v := range []any{c.value, &c.value, wrapped{c.value}, &wrapped{c.value}, []any{c.value}, held{NewSecret(c.secret)}} {
				for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
					fmt.Fprintf(&out, verb+"\n", v)
				}
			}
			data, err := json.Marshal(c.value)
			if err == nil { // a Signer is a value without fields to JSON
				out.Write(data)
			}
			var log bytes.Buffer
			slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "v", c.value, "w", wrapped{c.value})
			slog.New(slog.NewTextHandler(&log, nil)).Info("m", "v", c.value, "w", wrapped{c.value})
			out.Write(log.Bytes())
			for _, leak := range leaks(c.secret) {
				if strings.Contains(out.String(), leak) {
					t.Errorf("%q is shown in:\n%s", leak, out.String())
				}
			}
		})
	}
}

// leaks returns the forms in which a secret would show, and for a seed also
// those of its raw key.
func leaks(secret []byte) []string {
	all := []string{string(secret), hex.EncodeToString(secret), strings.Trim(fmt.Sprint(secret), "[]")}
	if _, raw, err := nkeys.DecodeSeed(secret); err == nil {
		all = append(all, leaks(raw)...)
	}
	return all
}

func TestSecret(t *testing.T) {
	b := []byte("hidden")
	s := NewSecret(b)
	b[0] = 'X'
	s.Reveal()[0] = 'Y'
	if got := string(s.Reveal()); got != "hidden" {
		t.Errorf("Reveal = %q; a secret shares its bytes", got)
	}
	if !s.Equal(NewSecret([]byte("hidden"))) || s.Equal(Secret{}) || s.Empty() || !(Secret{}).Empty() {
		t.Error("Equal or Empty is wrong")
	}
	if RandomSecret().Equal(RandomSecret()) {
		t.Error("two random secrets are equal")
	}
	//lint:ignore SA9005 that it cannot be read back is what is tested
	if err := json.Unmarshal([]byte(`"REDACTED"`), &s); err == nil {
		t.Error("a redacted value was taken for a secret")
	}
}
