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

// verified returns the number of lines of a log whose chain holds. Its files
// are given the oldest first.
func verified(t *testing.T, paths ...string) int {
	t.Helper()
	var c aaa.AuditCheck
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Read(bytes.NewReader(data)); err != nil {
			t.Errorf("%s, after %d lines: %v", path, c.Lines, err)
		}
	}
	if c.Lines > 0 && !c.Whole {
		t.Errorf("the first line of %s is not the first", paths[0])
	}
	return c.Lines
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
	at := a.toldTo.Load()
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
	if got := b.toldTo.Load(); got != at {
		t.Errorf("told so far: got %d, want %d", got, at)
	}
	for _, bad := range []string{"", "x", "-1", fmt.Sprint(at + 1)} {
		if err := os.WriteFile(a.told(), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := b.readTold(); got != 0 {
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

// tell notes that all was told, as a session does.
func (a *auditLog) tell(t *testing.T) {
	t.Helper()
	if err := replaceFile(a.told(), fmt.Append(nil, a.size.Load())); err != nil {
		t.Fatal(err)
	}
	a.toldTo.Store(a.size.Load())
}

// A full file is set aside once all of it was told, and the chain goes on in
// the next, also when the agent starts in between.
func TestAuditFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	a, _ := testAudit(t, path)
	for i := range 3 {
		a.write(decision(fmt.Sprint(i)))
	}
	a.limit = a.size.Load()
	a.write(decision("not told yet"))
	if _, err := os.Stat(a.older(1)); err == nil {
		t.Fatal("set aside before all was told")
	}
	a.tell(t)
	a.write(decision("first of the second"))
	if got := verified(t, a.older(1)); got != 4 {
		t.Errorf("got %d lines in the first file, want 4", got)
	}
	if got := verified(t, a.older(1), path); got != 5 || a.toldTo.Load() != 0 || a.readTold() != 0 {
		t.Errorf("got %d lines, %d bytes told", got, a.toldTo.Load())
	}
	if lines, _, err := a.lines(0); err != nil || len(lines) != 1 {
		t.Errorf("to tell of the second file: %d lines, %v", len(lines), err)
	}

	a.tell(t)
	a.limit = 1
	a.write(decision("first of the third"))
	if err := os.WriteFile(path, nil, 0o600); err != nil { // as if it ended before its first line
		t.Fatal(err)
	}
	b, _ := testAudit(t, path)
	b.write(decision("first of the third"))
	if got := verified(t, b.older(2), b.older(1), path); got != 6 {
		t.Errorf("got %d lines, want 6", got)
	}
	b.limit = 1
	for range 2 * auditOldFiles {
		b.tell(t)
		b.write(decision("next"))
	}
	files, err := filepath.Glob(path + ".*")
	if err != nil || len(files) != auditOldFiles {
		t.Errorf("%d older files, %v: %q", len(files), err, files)
	}
}

// A crash in the middle of setting a file aside breaks no chain and loses no
// line.
func TestAuditFilesAfterACrash(t *testing.T) {
	for name, leave := range map[string]func(a *auditLog) error{
		"the note is gone":              func(a *auditLog) error { return os.Remove(a.told()) },
		"between the names":             func(a *auditLog) error { return errors.Join(os.Remove(a.told()), os.Rename(a.path, a.older(1))) },
		"between them, the note stayed": func(a *auditLog) error { return os.Rename(a.path, a.older(1)) },
	} {
		path := filepath.Join(t.TempDir(), "audit.log")
		a, _ := testAudit(t, path)
		a.write(decision("1"))
		a.tell(t)
		if err := os.WriteFile(path+".next", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := leave(a); err != nil {
			t.Fatal(err)
		}
		b, _ := testAudit(t, path)
		b.write(decision("2"))
		files := []string{path}
		if _, err := os.Stat(b.older(1)); err == nil {
			files = []string{b.older(1), path}
		}
		if got := verified(t, files...); got != 2 {
			t.Errorf("%s: got %d lines, want 2", name, got)
		}
		if lines, _, err := b.lines(b.toldTo.Load()); err != nil || len(lines) == 0 {
			t.Errorf("%s: %d lines are told, %v", name, len(lines), err)
		}
	}
}

// When no file can be begun, the old one goes on.
func TestAuditFileCannotBeBegun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	a, _ := testAudit(t, path)
	a.write(decision("1"))
	a.tell(t)
	a.limit = 1
	if err := os.MkdirAll(path+".next/in the way", 0o700); err != nil {
		t.Fatal(err)
	}
	if !a.write(decision("2")) || !a.write(decision("3")) || verified(t, path) != 3 {
		t.Error("the old file does not go on")
	}
}

// What a method's schema calls writeOnly is not written down.
func TestAuditHidesSecrets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	a, _ := testAudit(t, path)
	a.secrets = func(m muster.Method) []string { return map[muster.Method][]string{"login": {"password", "env.*"}}[m] }
	for _, m := range []muster.Method{"login", "echo"} {
		r := decision(string(m))
		r.Method, r.Input = m, []byte(`{"user":"u","password":"p4ss","env":{"TOKEN":"t0ken"}}`)
		a.write(r)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	login, echo, _ := bytes.Cut(data, []byte("\n"))
	if !bytes.Contains(login, []byte(`{"env":{"TOKEN":"REDACTED"},"password":"REDACTED","user":"u"}`)) || !bytes.Contains(echo, []byte("p4ss")) {
		t.Errorf("got %s", data)
	}
	if verified(t, path) != 2 {
		t.Error("the chain does not hold")
	}
}
