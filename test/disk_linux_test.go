package test

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/test/lab"
)

// A node whose disk is full accepts nothing and loses nothing: the command
// stays with the broker, and runs once when there is room again.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	exe, err := buildMuster()
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(exe, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	disk := filepath.Join(l.Dir, "nodes", "node1")
	if err := os.MkdirAll(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("mounting a small disk is not allowed here: %v", err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil { // nothing may use it any more
			t.Error(err)
		}
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	if err := l.Broker.Start(); err != nil {
		t.Fatal(err)
	}
	c := &campaign{t: t, lab: l}
	c.client = c.connect()
	n, err := l.AddNode(t.Context(), "node1")
	if err != nil {
		t.Fatal(err)
	}
	c.waitOnline()
	filler := filepath.Join(disk, "filler")
	fill(t, filler)
	evidence := filepath.Join(l.Dir, "evidence")
	var last = shell(t, c.client, "echo 0 >>"+evidence, nil)
	for _, i := range []string{"1", "2", "3", "4", "5", "6", "7", "8", "9"} {
		last = shell(t, c.client, "echo "+i+" >>"+evidence, nil)
	}
	until(t, "the agent has noticed", func() bool {
		log, err := os.ReadFile(n.Log())
		return err == nil && strings.Contains(string(log), "journal cannot be written")
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if all, err := c.client.Command(ctx, muster.Key{ID: last.ID}); err != nil || all[0].State != muster.Queued {
		t.Errorf("with a full disk: got %+v, %v; want queued", all, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if s := final(t, c.client, last); s.State != muster.Done {
		t.Errorf("with room again: got %s (%s), want done", s.State, s.Reason)
	}
	data, err := os.ReadFile(evidence)
	if want := "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n"; err != nil || string(data) != want {
		t.Errorf("evidence: got %q, %v; want %q", data, err, want)
	}
}

// fill writes a file until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, endless{}); err == nil {
		t.Fatal("the disk takes everything")
	}
}

// endless is a reader of zeros.
type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }
