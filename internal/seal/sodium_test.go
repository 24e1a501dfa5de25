package seal_test

import (
	"bytes"
	"math/rand/v2"
	"os/exec"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/musterfleet/muster/internal/seal"
)

type request struct {
	Do       string `cbor:"do"`
	Cluster  string `cbor:"cluster"`
	Secret   []byte `cbor:"secret"`
	Nonce    []byte `cbor:"nonce,omitempty"`
	Content  []byte `cbor:"content"`
	Envelope []byte `cbor:"envelope,omitempty"`
}

// sodium has the requests answered by libsodium.
func sodium(t *testing.T, requests []request) [][]byte {
	t.Helper()
	in, err := cbor.Marshal(requests)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python(t), "testdata/sodium.py")
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	var answers [][]byte
	if err := cbor.Unmarshal(out, &answers); err != nil || len(answers) != len(requests) {
		t.Fatalf("%d answers to %d requests: %v", len(answers), len(requests), err)
	}
	return answers
}

// python returns a Python that has libsodium. The system's own comes second: it
// is the one for which distributions package the modules.
func python(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"python3", "/usr/bin/python3"} {
		if exec.CommandContext(t.Context(), name, "-c", "import nacl, cbor2").Run() == nil {
			return name
		}
	}
	t.Skip("no Python with the modules nacl and cbor2: `make install-tools` installs them on Debian")
	return ""
}

// TestSodium compares with an implementation that is not ours, in both
// directions, over random keys and lengths.
func TestSodium(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	some := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	var requests []request
	var contents [][]byte
	for i := range 300 {
		length := random.IntN(400) // around the lengths where the header changes
		if i%10 == 0 {
			length = random.IntN(seal.MaxContent + 1)
		}
		cluster := string(bytes.Repeat([]byte{'k'}, 1+random.IntN(seal.MaxCluster)))
		secret, nonce, content := some(32), some(32), some(length)
		ours, err := seal.New(cluster, secret, bytes.NewReader(nonce))
		if err != nil {
			t.Fatal(err)
		}
		envelope := sealed(t, ours, content)
		changed := bytes.Clone(envelope)
		changed[len(changed)-1] ^= 1
		requests = append(requests,
			request{Do: "open", Cluster: cluster, Secret: secret, Envelope: envelope},
			request{Do: "seal", Cluster: cluster, Secret: secret, Nonce: nonce, Content: content},
			request{Do: "original", Cluster: cluster, Secret: secret, Nonce: nonce[:24], Content: content},
			request{Do: "open", Cluster: cluster, Secret: secret, Envelope: changed})
		contents = append(contents, content)
	}
	answers := sodium(t, requests)
	for i, content := range contents {
		a, r := answers[4*i:4*i+4], requests[4*i:4*i+4]
		box := newBox(t, r[0].Cluster, r[0].Secret)
		if !bytes.Equal(a[0], content) || a[0] == nil {
			t.Errorf("%d: libsodium does not open ours", i)
		}
		if !bytes.Equal(a[1], r[0].Envelope) {
			t.Errorf("%d: libsodium seals\n%x, we\n%x", i, a[1], r[0].Envelope)
		}
		if got, err := box.Open(nil, a[1]); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d: we do not open libsodium's: %v", i, err)
		}
		if got, err := box.OpenOriginal(nil, a[2]); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d: we do not open libsodium's original envelope: %v", i, err)
		}
		if a[3] != nil {
			t.Errorf("%d: libsodium opens a changed envelope", i)
		}
	}
}
