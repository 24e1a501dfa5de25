package agent

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/musterfleet/muster"
)

func testSpools(t *testing.T, limit int64) *spools {
	t.Helper()
	s, err := openSpools(filepath.Join(t.TempDir(), "output"), limit)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSpool(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789"), muster.MaxInline/5)
	sum := sha256.Sum256(big)
	for name, c := range map[string]struct {
		write, inline string
		want          muster.Output
	}{
		"nothing":          {"", "", muster.Output{}},
		"small":            {"hello", "hello", muster.Output{Size: 5}},
		"large":            {string(big), "", muster.Output{Size: int64(len(big)), SHA256: hex.EncodeToString(sum[:])}},
		"beyond the limit": {string(big) + "more", "", muster.Output{Size: int64(len(big)), Truncated: 4, SHA256: hex.EncodeToString(sum[:])}},
	} {
		s := testSpools(t, int64(len(big)))
		out, _ := s.open("id", 1)
		for chunk := []byte(c.write); len(chunk) > 0; {
			n := min(len(chunk), 1000)
			if m, err := out.Write(chunk[:n]); m != n || err != nil {
				t.Fatalf("%s: a run must never see that its output does not fit: %d, %v", name, m, err)
			}
			chunk = chunk[n:]
		}
		got := out.finish()
		if string(got.Inline) != c.inline || got.Size != c.want.Size || got.SHA256 != c.want.SHA256 || got.Truncated != c.want.Truncated {
			t.Errorf("%s: got size %d, truncated %d, sum %s, inline %q", name, got.Size, got.Truncated, got.SHA256, got.Inline)
		}
		if n, err := out.Write([]byte("late")); n != 4 || err != nil || out.finish().Truncated != c.want.Truncated+4 {
			t.Errorf("%s: what comes after the end is to be counted", name)
		}
		// The next agent sees the same, had this one not come to the report.
		if again := s.recover("id").Stdout; again.Size != got.Size || again.SHA256 != got.SHA256 || string(again.Inline) != c.inline {
			t.Errorf("%s: recovered %+v", name, again)
		}
	}
}

// A disk that takes nothing costs output, which is counted, and not the run.
func TestSpoolWithoutDisk(t *testing.T) {
	s := testSpools(t, 1<<20)
	out, _ := s.open("id", 1)
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if n, err := out.Write([]byte("12345")); n != 5 || err != nil {
			t.Errorf("write: %d, %v", n, err)
		}
	}
	if o := out.finish(); o.Size != 0 || o.Truncated != 15 {
		t.Errorf("got %+v, want all 15 bytes counted as dropped", o)
	}
}

// A new attempt begins its output anew, with nothing sent.
func TestSpoolOfANewAttempt(t *testing.T) {
	s := testSpools(t, 1<<20)
	first, _ := s.open("id", 1)
	first.Write([]byte(strings.Repeat("x", 100)))
	first.finish()
	if err := os.WriteFile(s.path("id", "stdout")+".sent", []byte("60"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := sentSoFar(s.path("id", "stdout")); got != 60 {
		t.Errorf("sent so far: %d, want 60", got)
	}
	second, _ := s.open("id", 2)
	second.Write([]byte("y"))
	if o := second.finish(); string(o.Inline) != "y" || sentSoFar(second.path) != 0 {
		t.Errorf("got %+v, with %d sent", o, sentSoFar(second.path))
	}
	if left, err := s.left(); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v; want one stream", left, err)
	}
	s.remove("id")
	if left, err := s.left(); err != nil || len(left) != 0 {
		t.Errorf("left after removal: %v, %v", left, err)
	}
	for _, bad := range []string{"", "x", "-3"} {
		if err := os.WriteFile(second.path+".sent", []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := sentSoFar(second.path); got != 0 {
			t.Errorf("note %q: got %d, want 0", bad, got)
		}
	}
}
