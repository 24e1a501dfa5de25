//go:build unix

package facts_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/facts"
)

func TestExecutable(t *testing.T) {
	t.Setenv("MUSTER_SECRET", "hunter2")
	for _, test := range []struct {
		name, script string
		want         map[string]any
		kind         muster.ErrorKind // "" for no error
		message      string
	}{
		{"json", `echo '{"a":{"b":[1,2.5]}}'`, map[string]any{"a": map[string]any{"b": []any{int64(1), 2.5}}}, "", ""},
		{"lines", `echo a=1; echo 'b = two words'`, map[string]any{"a": "1", "b": "two words"}, "", ""},
		{"nothing", `:`, map[string]any{}, "", ""},
		{"error output is no fact", `echo a=1; echo b=2 >&2`, map[string]any{"a": "1"}, "", ""},
		{"environment", `echo "secret=[$MUSTER_SECRET]"; echo "dir=$PWD"; read x || echo input=none`,
			map[string]any{"secret": "[]", "dir": "/", "input": "none"}, "", ""},
		{"much error output", `i=0; while [ $i -lt 2000 ]; do echo "$i is a number" >&2; i=$((i+1)); done; echo a=1`, map[string]any{"a": "1"}, "", ""},
		{"leaves a process", `sleep 1000 & echo a=1`, map[string]any{"a": "1"}, "", ""},
		{"failure", `echo a=1; echo 'no such disk' >&2; exit 3`, map[string]any{}, muster.Failed, "exit status 3: no such disk"},
		{"failure without a word", `exit 1`, map[string]any{}, muster.Failed, "exit status 1: no error output"},
		{"bad json", `echo '{"a"'`, map[string]any{}, muster.Invalid, "not valid JSON"},
		{"bad lines", `echo hello`, map[string]any{}, muster.Invalid, "line 1"},
		{"endless output", `while :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa=1; done`, map[string]any{}, muster.Full, "more than 1048576 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			path := write(t, dir, "run.sh", "#!/bin/sh\n"+test.script+"\n", 0o755)
			got, errs := fromFolder(t.Context(), facts.Options{Dir: dir, Timeout: time.Minute})
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %#v, want %#v", got, test.want)
			}
			if test.kind != "" {
				checkErrors(t, errs, test.kind, path, test.message)
			} else if len(errs) > 0 {
				t.Errorf("got %v, want no errors", errs)
			}
		})
	}
}

func TestExecutableNotStarted(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "1", "#!/no/such/interpreter\n", 0o755)
	write(t, dir, "2.txt", "a=1", 0o644)
	got, errs := fromFolder(t.Context(), facts.Options{Dir: dir})
	if got["a"] != "1" {
		t.Errorf("got %v, want the facts of the other file", got)
	}
	checkErrors(t, errs, muster.Failed, filepath.Join(dir, "1"), "not started")
}

func TestExecutableHangs(t *testing.T) {
	dir := t.TempDir()
	path := write(t, dir, "1.sh", "#!/bin/sh\necho a=1\nsleep 1000\n", 0o755)
	write(t, dir, "2.txt", "b=2", 0o644)
	got, errs := fromFolder(t.Context(), facts.Options{Dir: dir, Timeout: 50 * time.Millisecond})
	if want := map[string]any{"b": "2"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	checkErrors(t, errs, muster.TimedOut, path, "did not end within 50ms")
}

// TestExecutableGroupIsKilled holds a pipe to a grandchild: it is at its end
// only when nobody is left to write.
func TestExecutableGroupIsKilled(t *testing.T) {
	dir, fifo := t.TempDir(), filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	// A writer of our own, so that there is no end before the script's.
	own, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "run.sh", "#!/bin/sh\nexec >'"+fifo+"'\n(echo started; sleep 1000) &\nwait\n", 0o755)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	result := make(chan []error)
	go func() {
		_, errs := facts.Gather(ctx, facts.Options{Dir: dir, Timeout: time.Hour})
		result <- errs
	}()
	r := bufio.NewReader(pipe)
	if line, err := r.ReadString('\n'); line != "started\n" {
		t.Fatalf("got %q, %v; want the start of the grandchild", line, err)
	}
	own.Close()
	cancel()
	checkErrors(t, <-result, muster.Interrupted, "run.sh", "canceled")
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("got %q, %v; want the end", rest, err)
	}
}

func TestExecutableRefused(t *testing.T) {
	const script = "#!/bin/sh\necho a=1\n"
	foreign := func(path string) error { return os.Chown(path, 12345, -1) }
	for _, test := range []struct {
		name    string
		change  func(dir, path string) error
		message string
	}{
		{"writable by everybody", func(_, path string) error { return os.Chmod(path, 0o777) }, "not run: it is writable by everybody (mode 0777)"},
		{"folder writable by everybody", func(dir, _ string) error { return os.Chmod(dir, 0o777) }, "not run: its folder is writable by everybody"},
		{"of somebody else", func(_, path string) error { return foreign(path) }, "not run: it belongs to user 12345"},
		{"in somebody else's folder", func(dir, _ string) error { return foreign(dir) }, "not run: its folder belongs to user 12345"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			path := write(t, dir, "run.sh", script, 0o755)
			write(t, dir, "z.txt", "b=2", 0o644)
			if err := test.change(dir, path); errors.Is(err, os.ErrPermission) {
				t.Skip("only root gives files away")
			} else if err != nil {
				t.Fatal(err)
			}
			got, errs := fromFolder(t.Context(), facts.Options{Dir: dir})
			if want := map[string]any{"b": "2"}; !reflect.DeepEqual(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
			checkErrors(t, errs, muster.Denied, path, test.message)
		})
	}
}

// TestPipeInFolder: reading a pipe that nobody writes to would never end.
func TestPipeInFolder(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "a.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, errs := facts.Gather(t.Context(), facts.Options{Dir: dir})
	checkErrors(t, errs, muster.Invalid, "a.json", "not a regular file")
}

func TestRelativeFolder(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "run.sh", "#!/bin/sh\necho a=1\n", 0o755)
	t.Chdir(filepath.Dir(dir))
	got, errs := fromFolder(t.Context(), facts.Options{Dir: filepath.Base(dir)})
	if got["a"] != "1" || len(errs) > 0 {
		t.Errorf("got %v, %v", strings.Join(keys(got), " "), errs)
	}
}

func keys(m map[string]any) []string {
	var list []string
	for key := range m {
		list = append(list, key)
	}
	return list
}
