package app

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
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
	denies("bad", true)
	write(devPolicy)
	denies("good again", false)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	denies("removed", true)
}
