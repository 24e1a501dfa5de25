package seal_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"testing"

	"github.com/musterfleet/muster/internal/seal"
)

// count returns n bytes that count up from the first.
func count(first byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

func newBox(t testing.TB, cluster string, secret []byte) *seal.Box {
	t.Helper()
	b, err := seal.New(cluster, secret, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sealed(t testing.TB, b *seal.Box, content []byte) []byte {
	t.Helper()
	envelope, err := b.Seal(nil, content)
	if err != nil {
		t.Fatal(err)
	}
	return envelope
}

// TestPublishedVector is the vector of the protocol's page, byte for byte.
func TestPublishedVector(t *testing.T) {
	box, err := seal.New("muster", count(0, 32), bytes.NewReader(count(0x20, 32)))
	if err != nil {
		t.Fatal(err)
	}
	want := "002b83666d75737465725820" + hex.EncodeToString(count(0x20, 32)) + "140f81531fd51b6e552800fce73f863badfc5f863e"
	got := hex.EncodeToString(sealed(t, box, []byte{0x83, 0, 1, 2}))
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestRoundTrip(t *testing.T) {
	for _, cluster := range []string{"a", strings.Repeat("k", 23), strings.Repeat("k", 24), strings.Repeat("ä", 16)} {
		box := newBox(t, cluster, count(7, 32))
		for _, n := range []int{0, 1, 7, 8, 239, 240, 1200, 65000, seal.MaxContent} {
			content := bytes.Repeat([]byte{byte(n)}, n)
			envelope := sealed(t, box, content)
			if len(envelope) > seal.MaxEnvelope {
				t.Fatalf("%d bytes for %d", len(envelope), n)
			}
			got, err := box.Open([]byte("before"), envelope)
			if err != nil || string(got) != "before"+string(content) {
				t.Fatalf("cluster of %d bytes, content of %d: %v", len(cluster), n, err)
			}
			if size, err := seal.Size(envelope[:min(len(envelope), seal.MaxHeader)]); err != nil || size != len(envelope) {
				t.Errorf("Size = %d, %v, want %d", size, err, len(envelope))
			}
		}
	}
}

func TestSizeNeedsNoMoreThanTheHeader(t *testing.T) {
	envelope := sealed(t, newBox(t, "muster", count(0, 32)), make([]byte, 300))
	header := 2 + int(envelope[1])
	for n := range envelope {
		size, err := seal.Size(envelope[:n])
		want := 0
		if n >= header {
			want = len(envelope)
		}
		if err != nil || size != want {
			t.Fatalf("of %d bytes: %d, %v, want %d", n, size, err, want)
		}
	}
}

// TestEveryBitCounts flips each bit of an envelope: none of the results opens.
func TestEveryBitCounts(t *testing.T) {
	box := newBox(t, "muster", count(0, 32))
	envelope := sealed(t, box, []byte("frame"))
	for i := range len(envelope) * 8 {
		bad := bytes.Clone(envelope)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := box.Open(nil, bad); err == nil {
			t.Fatalf("opens with bit %d of byte %d flipped", i%8, i/8)
		}
	}
	for n := range envelope {
		if _, err := box.Open(nil, envelope[:n]); err == nil {
			t.Fatalf("opens when cut after %d bytes", n)
		}
	}
	if _, err := box.Open(nil, append(bytes.Clone(envelope), 0)); !errors.Is(err, seal.ErrMalformed) {
		t.Errorf("a byte after the end: %v", err)
	}
}

func TestRefused(t *testing.T) {
	box := newBox(t, "muster", count(0, 32))
	ours := sealed(t, box, []byte("frame"))
	nonce := hex.EncodeToString(count(0, 32))
	for _, c := range []struct {
		name, envelope string
		want           error
	}{
		{"empty", "", seal.ErrMalformed},
		{"crashed the original", "01ff", seal.ErrVersion},
		{"the same, this version", "00ff", seal.ErrMalformed},
		{"no header", "0000", seal.ErrMalformed},
		{"cut in the header", hex.EncodeToString(ours[:20]), seal.ErrMalformed},
		{"truncated array", "000183", seal.ErrMalformed},
		{"array of four", "002b84666d75737465725820" + nonce + "10", seal.ErrMalformed},
		{"key as bytes", "002b83466d75737465725820" + nonce + "10", seal.ErrMalformed},
		{"long head of the key", "002c8378066d75737465725820" + nonce + "10", seal.ErrMalformed},
		{"key of indefinite length", "002b837f6d75737465725820" + nonce + "10", seal.ErrMalformed},
		{"long head of the length", "002c83666d75737465725820" + nonce + "1810", seal.ErrMalformed},
		{"length of 8 bytes", "003383666d75737465725820" + nonce + "1bffffffffffffffff", seal.ErrMalformed},
		{"negative length", "002b83666d75737465725820" + nonce + "30", seal.ErrMalformed},
		{"length below the tag's", "002b83666d75737465725820" + nonce + "0f" + strings.Repeat("00", 15), seal.ErrMalformed},
		{"short nonce", "001b83666d757374657250" + nonce[:32] + "10", seal.ErrMalformed},
		{"65,536 bytes or more", "002d83666d75737465725820" + nonce + "19ffff", seal.ErrTooLarge},
		{"a byte after the header's array", "002c83666d75737465725820" + nonce + "1000", seal.ErrMalformed},
	} {
		data, err := hex.DecodeString(c.envelope)
		if err != nil {
			t.Fatal(c.name, err)
		}
		got, err := box.Open([]byte("x"), data)
		if !errors.Is(err, c.want) || string(got) != "x" {
			t.Errorf("%s: %q, %v, want %v", c.name, got, err, c.want)
		}
	}
	if _, err := newBox(t, "other", count(0, 32)).Open(nil, ours); !errors.Is(err, seal.ErrCluster) {
		t.Errorf("another cluster: %v", err)
	}
	if _, err := newBox(t, "muster", count(1, 32)).Open(nil, ours); !errors.Is(err, seal.ErrForged) {
		t.Errorf("another secret: %v", err)
	}
	if _, err := box.Seal(nil, make([]byte, seal.MaxContent+1)); !errors.Is(err, seal.ErrTooLarge) {
		t.Errorf("too much: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, f := range map[string]func() (*seal.Box, error){
		"no cluster":    func() (*seal.Box, error) { return seal.New("", count(0, 32), rand.Reader) },
		"long cluster":  func() (*seal.Box, error) { return seal.New(strings.Repeat("k", 33), count(0, 32), rand.Reader) },
		"no UTF-8":      func() (*seal.Box, error) { return seal.New("\xff", count(0, 32), rand.Reader) },
		"short secret":  func() (*seal.Box, error) { return seal.New("c", count(0, 31), rand.Reader) },
		"larger secret": func() (*seal.Box, error) { return seal.New("c", count(0, 33), rand.Reader) },
	} {
		if _, err := f(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestNoNonceNoEnvelope(t *testing.T) {
	box, err := seal.New("muster", count(0, 32), bytes.NewReader(make([]byte, 31)))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := box.Seal([]byte("x"), nil); err == nil || string(out) != "x" {
		t.Errorf("sealed without a nonce: %x, %v", out, err)
	}
}

func TestSecretIsNotPrinted(t *testing.T) {
	box := newBox(t, "muster", bytes.Repeat([]byte{0xab}, 32))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		for _, v := range []any{box, *box, struct{ B any }{box}} {
			if text := fmt.Sprintf(verb, v); strings.Contains(text, "171") || strings.Contains(text, "abab") {
				t.Errorf("%s prints %s", verb, text)
			}
		}
	}
}

func FuzzOpen(f *testing.F) {
	box := newBox(f, "muster", count(0, 32))
	f.Add(sealed(f, box, []byte("frame")))
	f.Add([]byte{1, 0xff})
	f.Add([]byte{0, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		size, err := seal.Size(data)
		if size < 0 || size > seal.MaxEnvelope {
			t.Fatalf("Size = %d, %v", size, err)
		}
		content, openErr := box.Open(nil, data)
		if openErr == nil && (err != nil || size != len(data) || len(content) >= size) {
			t.Fatalf("opens, but Size = %d, %v", size, err)
		}
		_, _ = box.OpenOriginal(nil, data)
	})
}

// FuzzRoundTrip seals what was invented, and opens it.
func FuzzRoundTrip(f *testing.F) {
	f.Add("muster", []byte("frame"))
	f.Fuzz(func(t *testing.T, cluster string, content []byte) {
		box, err := seal.New(cluster, count(0, 32), rand.Reader)
		if err != nil || len(content) > seal.MaxContent {
			return
		}
		envelope := sealed(t, box, content)
		got, err := box.Open(nil, envelope)
		if err != nil || !bytes.Equal(got, content) {
			t.Fatalf("%v", err)
		}
	})
}

// TestGarbage opens 100,000 pieces of garbage, most of which look right at their
// beginning, and one good envelope after them.
func TestGarbage(t *testing.T) {
	box := newBox(t, "muster", count(0, 32))
	good := sealed(t, box, []byte("frame"))
	random := mathrand.New(mathrand.NewPCG(1, 2))
	buffer := make([]byte, 0, 256)
	for range 100_000 {
		keep := random.IntN(len(good))
		data := append(buffer[:0], good[:keep]...)
		for range 1 + random.IntN(64) {
			data = append(data, byte(random.Uint32()))
		}
		if got, err := box.Open(nil, data); err == nil && !bytes.Equal(data, good) {
			t.Fatalf("%x opens as %x", data, got)
		}
		_, _ = seal.Size(data)
	}
	if _, err := box.Open(nil, good); err != nil {
		t.Error(err)
	}
}

func BenchmarkSealOpen(b *testing.B) {
	box := newBox(b, "muster", count(0, 32))
	content, envelope, opened := make([]byte, 200), []byte(nil), []byte(nil)
	var err error
	b.ReportAllocs()
	for b.Loop() {
		if envelope, err = box.Seal(envelope[:0], content); err != nil {
			b.Fatal(err)
		}
		if opened, err = box.Open(opened[:0], envelope); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkForged(b *testing.B) {
	box := newBox(b, "muster", count(0, 32))
	envelope := sealed(b, box, make([]byte, 1200))
	envelope[len(envelope)-1] ^= 1
	b.ReportAllocs()
	for b.Loop() {
		if _, err := box.Open(nil, envelope); err == nil {
			b.Fatal("opens")
		}
	}
}
