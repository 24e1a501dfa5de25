package order

import (
	"bytes"
	"crypto/ed25519"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
)

func signHint(t testing.TB, at time.Time, key ed25519.PrivateKey, urls ...string) []byte {
	t.Helper()
	data, err := SignHint(Hint{IssuedAt: at.UnixMilli(), URLs: urls}, "muster", key)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestHintRefused(t *testing.T) {
	good := signHint(t, t0, operatorKeys[0], "tls://a:4222", "tls://b:4222")
	if h, err := OpenHint(good, "muster", operators()); err != nil || h.String() != "tls://a:4222 tls://b:4222" || h.IssuedAt != t0.UnixMilli() {
		t.Fatalf("%v, %v", h, err)
	}
	stranger := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{99}, ed25519.SeedSize))
	for name, data := range map[string][]byte{
		"nothing":              nil,
		"of no operator":       signHint(t, t0, stranger, "tls://a:4222"),
		"other addresses":      bytes.Replace(good, []byte("//a"), []byte("//x"), 1),
		"another time":         bytes.Replace(good, []byte{0x1b}, []byte{0x3b}, 1),
		"a signature of zeros": append(slices.Clone(good[:len(good)-64]), make([]byte, 64)...),
		"something behind it":  append(slices.Clone(good), 0),
		"cut short":            good[:len(good)-1],
	} {
		if h, err := OpenHint(data, "muster", operators()); muster.KindOf(err) != muster.Denied {
			t.Errorf("%s: %v, %v", name, h, err)
		}
	}
	if _, err := OpenHint(good, "other", operators()); err == nil {
		t.Error("a hint of another constellation was accepted")
	}
	for name, urls := range map[string][]string{"none": nil, "an empty one": {""}, "a space": {"tls://a b"}, "a line": {"tls://a\n"},
		"too many": slices.Repeat([]string{"tls://a"}, MaxHintURLs+1), "too long": slices.Repeat([]string{strings.Repeat("a", maxHintURL)}, 2)} {
		if _, err := SignHint(Hint{URLs: urls}, "muster", operatorKeys[0]); muster.KindOf(err) != muster.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHintSpreads gives one node a hint, and later another an older and a newer one.
func TestHintSpreads(t *testing.T) {
	w := newWorld(1, faults{}, flaws{})
	for range 12 {
		w.agent()
	}
	w.run(t0.Add(5 * time.Second))
	tell := func(h *host, data []byte) {
		if err := h.node.TakeHint(data); err != nil {
			t.Fatal(err)
		}
		h.step()
	}
	all := func(want string) {
		t.Helper()
		for _, h := range w.hosts {
			if got := h.node.Hint().String(); got != want {
				t.Errorf("%s has %q; want %q", h.addr, got, want)
			}
			for _, p := range h.node.Peers() {
				if p.BrokerHint != want {
					t.Errorf("%s heard %q of %s; want %q", h.addr, p.BrokerHint, p.Name, want)
				}
			}
		}
	}
	tell(w.hosts[3], signHint(t, t0, operatorKeys[0], "tls://old:4222"))
	w.run(t0.Add(3 * time.Minute))
	all("tls://old:4222")
	tell(w.hosts[5], signHint(t, w.now, operatorKeys[1], "tls://new:4222"))
	tell(w.hosts[7], signHint(t, t0.Add(-time.Hour), operatorKeys[0], "tls://older:4222"))
	w.run(w.now.Add(3 * time.Minute))
	all("tls://new:4222")
	late := w.agent()
	w.run(w.now.Add(time.Second))
	if got := late.node.Hint().String(); got != "tls://new:4222" {
		t.Errorf("after a second a newcomer has %q", got)
	}
}

// TestHintsOfAMember sends hints that no operator has signed, or from the future.
func TestHintsOfAMember(t *testing.T) {
	w := newWorld(1, faults{}, flaws{})
	a, b := w.agent(), w.agent()
	w.run(t0.Add(5 * time.Second))
	stranger := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{99}, ed25519.SeedSize))
	for i, data := range [][]byte{
		signHint(t, w.now, stranger, "tls://evil:4222"),
		signHint(t, w.now.Add(maxSkew+time.Minute), operatorKeys[0], "tls://future:4222"),
		[]byte("tls://plain:4222"),
	} {
		hello := &Hello{ID: b.node.cfg.ID, Name: "b", BrokerHint: data}
		a.node.Receive(a.local(), b.addr, Frame{Src: b.id, SrcBoot: b.node.boot, Counter: b.node.count + uint64(i) + 1, Body: hello})
		if p := a.node.Peers()[0]; a.node.Hint().URLs != nil || p.BrokerHint != "" {
			t.Errorf("hint %d is told on as %v, and shown as %q", i, a.node.Hint(), p.BrokerHint)
		}
	}
}

// FuzzOpenHint: what is no operator's hint is refused, and what is has one encoding.
func FuzzOpenHint(f *testing.F) {
	f.Add(signHint(f, t0, operatorKeys[0], "tls://a:4222"))
	f.Add(signHint(f, t0, operatorKeys[7], "tls://a:4222", "wss://b"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := OpenHint(data, "muster", operators())
		if err != nil {
			return
		}
		for _, key := range operatorKeys {
			if again, err := SignHint(h, "muster", key); err == nil && bytes.Equal(again, data) {
				return
			}
		}
		t.Fatalf("%x was accepted as %v", data, h)
	})
}
