package app

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
)

func TestPolicyFileNeverFallsBackToAllow(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.yaml")
	p := &policyFile{path: file, log: slog.New(slog.DiscardHandler)}
	at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	write := func(text string) {
		t.Helper()
		at = at.Add(time.Second)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, at, at); err != nil {
			t.Fatal(err)
		}
	}
	denies := func(when string, want bool) {
		t.Helper()
		for range 2 { // also when nothing has changed
			if got := p.current() == nil; got != want {
				t.Errorf("%s: denies %t", when, got)
			}
		}
	}
	denies("no file", true)
	write(devPolicy)
	denies("good", false)
	write("rules: [")
	refuses(t, p, "bad", "the policy of this node cannot be read: policy.yaml:2: not YAML")
	write(devPolicy)
	denies("good again", false)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	denies("removed", true)
	write("rules:\n  - name: all\n    efect: allow\n")
	refuses(t, p, "bad after none", `the policy of this node cannot be read: policy.yaml:3: unknown key "efect"`)
}

// refuses checks that everything is denied, also when nothing has changed, and
// why. Nothing is said of where the file is.
func refuses(t *testing.T, p *policyFile, when, want string) {
	t.Helper()
	all := []aaa.Right{{Methods: []string{"*"}, Nodes: []string{"*"}}}
	for range 2 {
		d := p.current().Decide(aaa.Caller{Name: "alice", Rights: all}, muster.Command{Method: "ping", Node: "n"})
		if d.Allowed || !strings.HasPrefix(d.Reason, want) || strings.Contains(d.Reason, filepath.Dir(p.path)) {
			t.Errorf("%s: allowed %t, %q; want %q", when, d.Allowed, d.Reason, want)
		}
	}
}

// What cannot be opened is tried again, though neither its time nor its size
// changes: so it is with permission that is given later.
func TestPolicyFileThatCannotBeOpened(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.yaml")
	p := &policyFile{path: file, log: slog.New(slog.DiscardHandler)}
	if err := os.Mkdir(file, 0o700); err != nil { // which root cannot read as a file either
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	refuses(t, p, "a folder", "the policy of this node cannot be read: policy.yaml: is a directory")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	text := devPolicy + strings.Repeat("#", max(0, int(info.Size())-len(devPolicy)))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if fault := p.current().Fault(); p.current() == nil || fault != "" {
		t.Errorf("it is a file now, and still refused: %q", fault)
	}
	if os.Getuid() == 0 {
		return // who may read everything
	}
	if err := os.Chmod(file, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, time.Time{}, info.ModTime().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	refuses(t, p, "without permission", "the policy of this node cannot be read: policy.yaml: permission denied")
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if fault := p.current().Fault(); p.current() == nil || fault != "" {
		t.Errorf("it may be read now, and is still refused: %q", fault)
	}
}
