package agent

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
)

func testAudit(t *testing.T, path string) (*auditLog, *problems) {
	t.Helper()
	p := &problems{}
	a, err := openAudit(path, slog.New(slog.NewTextHandler(t.Output(), nil)), p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.file.Close() }) // some tests close it
	return a, p
}

func decision(id string) aaa.Record {
	return aaa.Record{Time: time.Unix(1, 0), Node: "n", ID: muster.CommandID(id), Caller: "alice", Method: "echo", Verdict: aaa.Allowed}
}

// verified returns the number of lines of a log whose chain holds.
func verified(t *testing.T, path string) int {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n, err := aaa.VerifyAudit(bytes.NewReader(data))
	if err != nil {
		t.Errorf("after %d lines: %v", n, err)
	}
	return n
}

// An audit log goes on where it ended, also when a crash has cut its last line
// short, at any byte.
func TestAuditTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	a, _ := testAudit(t, path)
	for i := range 3 {
		if !a.write(decision(fmt.Sprint(i))) {
			t.Fatal("not written")
		}
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	two := bytes.LastIndexByte(whole[:len(whole)-1], '\n') + 1
	zeros := append(bytes.Clone(whole), make([]byte, 3*aaa.MaxAuditLine)...)
	for name, c := range map[string]struct {
		content []byte
		lines   int
	}{
		"empty": {nil, 0}, "part of the first": {whole[:5], 0}, "whole": {whole, 3}, "without its break": {whole[:len(whole)-1], 2},
		"one byte of the third": {whole[:two+1], 2}, "the third is missing": {whole[:two], 2}, "zeros after a power cut": {zeros, 3},
	} {
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		b, _ := testAudit(t, path)
		if !b.write(decision("next")) {
			t.Fatalf("%s: not written", name)
		}
		if got := verified(t, path); got != c.lines+1 {
			t.Errorf("%s: got %d lines, want %d", name, got, c.lines+1)
		}
	}
}

// A fullDisk takes some bytes and then no more, until it has room again.
type fullDisk struct {
	*os.File
	room  int
	stuck bool // it cannot even be cut
}

func (f *fullDisk) Write(p []byte) (int, error) {
	n, err := f.File.Write(p[:min(len(p), f.room)])
	f.room -= n
	if err == nil && n < len(p) {
		err = syscall.ENOSPC
	}
	return n, err
}

func (f *fullDisk) Truncate(size int64) error {
	if f.stuck {
		return errors.New("stuck")
	}
	return f.File.Truncate(size)
}

// A line that fits in part leaves nothing behind, and the problem shows for as
// long as it lasts.
func TestAuditOnAFullDisk(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "audit.log")
		a, p := testAudit(t, path)
		disk := &fullDisk{File: a.file.(*os.File), room: 1 << 20}
		a.file = disk
		if !a.write(decision("fits")) {
			t.Fatal("not written")
		}
		size := a.size.Load()
		disk.room, disk.stuck = 10, stuck
		for range 2 {
			if a.write(decision("does not fit")) {
				t.Error("said to be written")
			}
		}
		if l := p.list(); len(l) != 1 || !strings.Contains(l[0], "audit log") || a.size.Load() != size {
			t.Errorf("problems %q, size %d, want %d", l, a.size.Load(), size)
		}
		disk.room, disk.stuck = 1<<20, false
		if !a.write(decision("fits again")) {
			t.Error("with room again it is not written")
		}
		if l := p.list(); len(l) != 0 {
			t.Errorf("problems that are over: %q", l)
		}
		if got := verified(t, path); got != 2 {
			t.Errorf("got %d lines, want 2", got)
		}
	}
}

// The lines are read in batches, and the note of what was told survives.
func TestAuditLinesToTell(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	a, _ := testAudit(t, path)
	const n = 2*auditBatch + 3
	for i := range n {
		a.write(decision(fmt.Sprint(i)))
	}
	// What follows the whole lines is not told.
	if _, err := a.file.Write([]byte(`{"half":`)); err != nil {
		t.Fatal(err)
	}
	marks := make(map[string]bool)
	at := a.toldSoFar()
	for batches := 0; ; batches++ {
		lines, next, err := a.lines(at)
		if err != nil || len(lines) > auditBatch {
			t.Fatalf("%d lines, %v", len(lines), err)
		}
		if next == at {
			break
		}
		for _, l := range lines {
			e, mark := auditEvent("n", l)
			if want := fmt.Sprintf("allowed: echo %d by alice", len(marks)); e.Message != want || e.Data["line"] != string(l) || e.Type != muster.EventAudit {
				t.Errorf("got %+v, want %q", e, want)
			}
			marks[mark] = true
		}
		at = next
	}
	if len(marks) != n {
		t.Errorf("told %d different lines of %d", len(marks), n)
	}
	if err := replaceFile(a.told(), fmt.Append(nil, at)); err != nil {
		t.Fatal(err)
	}
	b, _ := testAudit(t, path)
	if got := b.toldSoFar(); got != at {
		t.Errorf("told so far: got %d, want %d", got, at)
	}
	for _, bad := range []string{"", "x", "-1", fmt.Sprint(at + 1)} {
		if err := os.WriteFile(a.told(), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := b.toldSoFar(); got != 0 {
			t.Errorf("note %q: got %d, want to tell all again", bad, got)
		}
	}
}

// A log that somebody has put a very long line into is told to its end.
func TestAuditLinesOfAStranger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	if err := os.WriteFile(path, append(bytes.Repeat([]byte("x"), 2*auditRead+5), "\nlast\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	a, _ := testAudit(t, path)
	var last []byte
	for at, i := int64(0), 0; at < a.size.Load(); i++ {
		lines, next, err := a.lines(at)
		if err != nil || next <= at || i > 10 {
			t.Fatalf("at %d: next %d, %v", at, next, err)
		}
		if at = next; len(lines) > 0 {
			last = lines[len(lines)-1]
		}
	}
	if string(last) != "last" {
		t.Errorf("the last line is %q", last)
	}
}
