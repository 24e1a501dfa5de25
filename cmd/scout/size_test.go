package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestSmall builds scout as 'make build' does. What makes it larger is mostly an
// import: of log/slog, or a library. What was asked for is 4 MB.
func TestSmall(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program; -short")
	}
	const limit = 3_900_000
	exe := filepath.Join(t.TempDir(), "scout")
	cmd := exec.Command("go", "build", "-trimpath", "-gcflags=all=-l", "-gcflags=crypto/...=", "-gcflags=golang.org/x/crypto/...=",
		"-ldflags=-s -w", "-o", exe, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	info, err := os.Stat(exe)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", info.Size())
	if info.Size() >= limit {
		t.Errorf("scout has %d bytes; the limit is %d", info.Size(), limit)
	}
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, unwanted := range []string{"log/slog", "crypto/tls", "net/http", "github.com/fxamacker/cbor/v2", "github.com/nats-io/nats.go"} {
		if slices.Contains(strings.Fields(string(out)), unwanted) {
			t.Errorf("scout imports %s", unwanted)
		}
	}
}
