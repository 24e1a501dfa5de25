package seal_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/musterfleet/muster/internal/seal"
)

var update = flag.Bool("update", false, "write testdata/vectors.json")

// A vector is one envelope; all but the texts is in hexadecimal. Without content
// it must be refused.
type vector struct {
	Name     string `json:"name"`
	Cluster  string `json:"cluster"`
	Secret   string `json:"secret"`
	Nonce    string `json:"nonce,omitempty"`
	Content  string `json:"content"`
	Envelope string `json:"envelope"`
	Refused  bool   `json:"refused,omitempty"`
}

func TestVectors(t *testing.T) {
	const file = "testdata/vectors.json"
	made := makeVectors(t)
	if *update {
		data, err := json.MarshalIndent(made, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(data, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var stored []vector
	if err := json.Unmarshal(data, &stored); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(stored, made) {
		t.Error("the format changed: agents of other versions cannot read it")
	}
	for _, v := range stored {
		got, err := newBox(t, v.Cluster, unhex(t, v.Secret)).Open(nil, unhex(t, v.Envelope))
		if (err != nil) != v.Refused || !v.Refused && hex.EncodeToString(got) != v.Content {
			t.Errorf("%s: %x, %v", v.Name, got, err)
		}
	}
}

// makeVectors makes good envelopes of all kinds of lengths, and bad ones of the
// first of them.
func makeVectors(t *testing.T) []vector {
	t.Helper()
	var all []vector
	good := func(name, cluster string, secret, nonce, content []byte) {
		box, err := seal.New(cluster, secret, bytes.NewReader(nonce))
		if err != nil {
			t.Fatal(err)
		}
		envelope := sealed(t, box, content)
		all = append(all, vector{Name: name, Cluster: cluster, Secret: hex.EncodeToString(secret), Nonce: hex.EncodeToString(nonce),
			Content: hex.EncodeToString(content), Envelope: hex.EncodeToString(envelope)})
	}
	good("of the page", "muster", count(0, 32), count(0x20, 32), []byte{0x83, 0, 1, 2})
	good("no content", "muster", count(0, 32), count(0x21, 32), nil)
	good("length of one byte, lower end", "muster", count(0, 32), count(0x22, 32), count(0, 8))
	good("length of one byte, upper end", "muster", count(0, 32), count(0x23, 32), count(0, 239))
	good("length of two bytes", "muster", count(0, 32), count(0x24, 32), count(0, 240))
	good("shortest key", "m", count(0x80, 32), count(0x25, 32), []byte("frame"))
	good("longest key with a short head", strings.Repeat("k", 23), count(0x80, 32), count(0x26, 32), []byte("frame"))
	good("longest key", strings.Repeat("ä", 16), count(0x80, 32), count(0x27, 32), []byte("frame"))

	first := all[0]
	bad := func(name string, change func(e []byte) []byte) {
		v := first
		v.Name, v.Nonce, v.Content, v.Refused = name, "", "", true
		v.Envelope = hex.EncodeToString(change(unhex(t, first.Envelope)))
		all = append(all, v)
	}
	flip := func(i int) func([]byte) []byte {
		return func(e []byte) []byte { e[i] ^= 1; return e }
	}
	bad("refused: last byte of the nonce differs", flip(43))
	bad("refused: tag differs", flip(45))
	bad("refused: payload differs", flip(64))
	bad("refused: cut", func(e []byte) []byte { return e[:len(e)-1] })
	bad("refused: a byte more", func(e []byte) []byte { return append(e, 0) })
	bad("refused: crashed the original", func([]byte) []byte { return []byte{1, 0xff} })
	bad("refused: header of 255 bytes is missing", func([]byte) []byte { return []byte{0, 0xff} })
	bad("refused: length not in its shortest form", func(e []byte) []byte {
		return append(append(append([]byte{0, 0x2c}, e[2:44]...), 0x18), e[44:]...)
	})
	return all
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
