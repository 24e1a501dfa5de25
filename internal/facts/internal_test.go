package facts

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/musterfleet/muster"
)

func TestOSFamily(t *testing.T) {
	for _, test := range []struct{ id, like, want string }{
		{"debian", "", "debian"},
		{"ubuntu", "debian", "debian"},
		{"linuxmint", "ubuntu debian", "debian"},
		{"fedora", "", "fedora"},
		{"rocky", "rhel centos fedora", "rhel"},
		{"amzn", "centos rhel fedora", "rhel"},
		{"opensuse-leap", "suse opensuse", "suse"},
		{"alpine", "", "alpine"},
		{"child", "parent grandparent", "parent"},
		{"", "", ""},
	} {
		if got := osFamily(test.id, test.like); got != test.want {
			t.Errorf("osFamily(%q, %q): got %q, want %q", test.id, test.like, got, test.want)
		}
	}
}

func TestOSRelease(t *testing.T) {
	path := filepath.Join(t.TempDir(), "os-release")
	content := "NAME=\"Debian GNU/Linux\"\n# comment\nID=debian\nVERSION_ID='13'\n"
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := osRelease("/no/such/file", path)
	if err != nil || got["NAME"] != "Debian GNU/Linux" || got["ID"] != "debian" || got["VERSION_ID"] != "13" {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := osRelease("/no/such/file"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want %v", err, fs.ErrNotExist)
	}
}

func TestFailNotesJoinedErrors(t *testing.T) {
	g := &gatherer{}
	g.fail("x", errors.Join(errors.New("a"), muster.Errorf(muster.Full, "b")))
	g.fail("x", nil)
	if len(g.errs) != 2 || muster.KindOf(g.errs[0]) != muster.Failed || muster.KindOf(g.errs[1]) != muster.Full {
		t.Errorf("got %v, want two errors with their kinds", g.errs)
	}
}

func FuzzParseKeyValue(f *testing.F) {
	for _, seed := range []string{"", "a=1", "a = b = c\r\n#x\n\nd=", "=", "a", "a b=c", "\xff=1", "a=\x00", " # =\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		facts, err := parseKeyValue(data)
		if err != nil {
			if muster.KindOf(err) != muster.Invalid {
				t.Fatalf("got %v of kind %q, want %q", err, muster.KindOf(err), muster.Invalid)
			}
			return
		}
		if _, err := json.Marshal(facts); err != nil {
			t.Fatal(err)
		}
		var again strings.Builder
		for key, value := range facts {
			if key == "" || strings.ContainsFunc(key, unicode.IsSpace) {
				t.Fatalf("bad key %q", key)
			}
			again.WriteString(key + " = " + value.(string) + "\r\n")
		}
		back, err := parseKeyValue([]byte(again.String()))
		if err != nil || len(back) != len(facts) {
			t.Fatalf("written again as %q: got %v, %v; want %v", again.String(), back, err, facts)
		}
		for key, value := range facts {
			if back[key] != value {
				t.Fatalf("written again, %q is %q; want %q", key, back[key], value)
			}
		}
	})
}

// FuzzParsePrinted checks that whatever is printed, accepted facts are of the
// promised types and can be encoded.
func FuzzParsePrinted(f *testing.F) {
	for _, seed := range []string{`{"a":[1,2.5,null,true,"x",{"b":{}}]}`, " {", "{}{}", "a=1", `{"a":1e999}`, `{"a":-0}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		facts, err := parsePrinted(data)
		if err != nil {
			return
		}
		if _, err := json.Marshal(facts); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzParseYAML(f *testing.F) {
	for _, seed := range []string{"a: 1", "a: &x [1]\nb: *x", "1: 2\n\"1\": 3", "d: 2026-01-02", "a: .inf", "- a", "? {a: b}\n: c", "a: !!binary aGk="} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		facts, err := parseYAML(data)
		if err != nil {
			return
		}
		if _, err := json.Marshal(facts); err != nil {
			t.Fatal(err)
		}
	})
}
