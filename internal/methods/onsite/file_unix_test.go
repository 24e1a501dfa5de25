//go:build unix

package onsite

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/musterfleet/muster/internal/order"
)

// What somebody else put where a piece is to be written is not followed, at the
// first piece nor later.
func TestPiecesGoToNobodyElsesFile(t *testing.T) {
	h := &Host{Node: "n"}
	dir := t.TempDir()
	path, victim := filepath.Join(dir, "f"), filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	puts, err := Puts(path, 0o600, make([]byte, 30_000))
	if err != nil || len(puts) < 2 {
		t.Fatal(len(puts), err)
	}
	part := filepath.Join(dir, ".f.part-"+hex.EncodeToString(puts[0].Hash[:6]))
	if err := os.Symlink(victim, part); err != nil {
		t.Fatal(err)
	}
	if _, code, a := execute(t, h, "put", puts[0].Encode(), DecodeWritten); code != order.OK {
		t.Fatalf("%v %+v", code, a)
	}
	if err := os.Remove(part); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(victim, make([]byte, puts[1].Offset), 0o600); err != nil { // as long as is expected
		t.Fatal(err)
	}
	if err := os.Symlink(victim, part); err != nil {
		t.Fatal(err)
	}
	if _, code, _ := execute(t, h, "put", puts[1].Encode(), DecodeWritten); code != order.Failed {
		t.Errorf("a piece was written through a link: %v", code)
	}
	if info, err := os.Stat(victim); err != nil || info.Size() != puts[1].Offset {
		t.Errorf("the other file was written: %v, %v", info, err)
	}
}

// A pipe that nobody writes to does not hold up a query.
func TestGetDoesNotWaitForAPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, code, a := execute(t, &Host{Node: "n"}, "get", Get{Path: path}.Encode(), DecodeChunk); code != order.Failed || a.Message == "" {
		t.Errorf("%v %+v", code, a)
	}
}
