package facts_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/facts"
)

// write makes a file with exactly the given mode.
func write(t testing.TB, dir, name, content string, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// fromFolder gathers with the folder and returns the facts that it added. What the
// machine says may change at any time, when somebody else mounts a disk.
func fromFolder(ctx context.Context, o facts.Options) (map[string]any, []error) {
	before, _ := facts.Gather(ctx, facts.Options{})
	all, errs := facts.Gather(ctx, o)
	after, _ := facts.Gather(ctx, facts.Options{})
	for key, value := range all {
		if now, ok := after[key]; ok && (reflect.DeepEqual(value, before[key]) || reflect.DeepEqual(value, now)) {
			delete(all, key)
		}
	}
	return all, errs
}

func TestFile(t *testing.T) {
	type m = map[string]any
	type l = []any
	for _, test := range []struct {
		name, file, content string
		want                m
		kind                muster.ErrorKind // "" for no error
		message             string
	}{
		{"json", "a.json", `{"s":"x","i":3,"big":9007199254740993,"f":1.5,"e":1e3,"b":true,"n":null,"l":[1,"y",{"z":[]}]}`,
			m{"s": "x", "i": int64(3), "big": int64(9007199254740993), "f": 1.5, "e": 1000.0, "b": true, "n": nil, "l": l{int64(1), "y", m{"z": l{}}}}, "", ""},
		{"yaml", "a.yaml", "s: x\ni: 3\nf: 1.5\nb: true\non: yes\nday: 2026-01-02\ntime: 2026-01-02T03:04:05Z\nlist: [1, y]\nnested: {1: one}\nhuge: 18446744073709551615\n",
			m{"s": "x", "i": int64(3), "f": 1.5, "b": true, "on": "yes", "day": "2026-01-02", "time": "2026-01-02T03:04:05Z", "list": l{int64(1), "y"},
				"nested": m{"1": "one"}, "huge": 18446744073709551615.0}, "", ""},
		{"yml", "a.yml", "a: 1\n", m{"a": int64(1)}, "", ""},
		{"text", "a.txt", "# comment\n\n role = web \r\nempty=\nurl=http://x/?a=b\nrole=db", m{"role": "db", "empty": "", "url": "http://x/?a=b"}, "", ""},
		{"empty text", "a.txt", "", m{}, "", ""},
		{"hidden", ".a.json", "{", m{}, "", ""},
		{"override", "a.json", `{"go":"mine"}`, m{"go": "mine"}, "", ""},
		{"syntax of json", "a.json", `{"a":`, m{}, muster.Invalid, "not valid JSON"},
		{"more than one object", "a.json", `{"a":1} {"b":2}`, m{}, muster.Invalid, "expected the end"},
		{"list", "a.json", `[1]`, m{}, muster.Invalid, "expected a map of facts, found a list"},
		{"text as json", "a.json", `"x"`, m{}, muster.Invalid, `found "x"`},
		{"number out of range", "a.json", `{"a":1e999}`, m{}, muster.Invalid, "out of range"},
		{"empty json", "a.json", "", m{}, muster.Invalid, "not valid JSON"},
		{"empty yaml", "a.yaml", "", m{}, muster.Invalid, "not valid YAML"},
		{"null yaml", "a.yaml", "~", m{}, muster.Invalid, "found nothing"},
		{"not a number", "a.yaml", "a: .nan", m{}, muster.Invalid, "cannot be a fact"},
		{"key twice", "a.yaml", "1.0: a\n1: b", m{}, muster.Invalid, "is there twice"},
		{"two documents", "a.yaml", "a: 1\n---\nb: 2", m{}, muster.Invalid, "multiple"},
		{"line", "a.txt", "a=1\nsome text\n", m{}, muster.Invalid, `line 2: expected key=value, found "some text"`},
		{"sentence", "a.txt", "the value = 3", m{}, muster.Invalid, "line 1"},
		{"no key", "a.txt", "=3", m{}, muster.Invalid, "line 1"},
		{"bytes", "a.txt", "a=\xff", m{}, muster.Invalid, "not valid UTF-8"},
		{"too deep", "a.json", `{"a":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + "}", m{}, muster.Full, "nested"},
		{"too many values", "a.json", `{"a":[` + strings.Repeat("1,", 140_000) + "1]}", m{}, muster.Full, "values"},
		{"too large", "a.json", `{"a":"` + strings.Repeat("x", facts.MaxSize) + `"}`, m{}, muster.Full, "bytes as JSON"},
		{"too large a file", "a.txt", strings.Repeat("#\n", facts.MaxFile), m{}, muster.Full, "more than 1048576 bytes"},
		{"unknown kind", "a.conf", "a=1", m{}, muster.Invalid, "executable"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			path := write(t, dir, test.file, test.content, 0o644)
			got, errs := fromFolder(t.Context(), facts.Options{Dir: dir})
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %#v, want %#v", got, test.want)
			}
			checkTypes(t, "", got)
			if test.kind != "" {
				checkErrors(t, errs, test.kind, path, test.message)
			} else if len(errs) > 0 {
				t.Errorf("got %v, want no errors", errs)
			}
		})
	}
}

func TestYAMLRepetition(t *testing.T) {
	var doc strings.Builder
	doc.WriteString("a0: &a0 [x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 10; i++ {
		fmt.Fprintf(&doc, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 8), ", "))
	}
	dir := t.TempDir()
	path := write(t, dir, "bomb.yaml", doc.String(), 0o644)
	got, errs := fromFolder(t.Context(), facts.Options{Dir: dir})
	if len(errs) != 1 || !strings.Contains(errs[0].Error(), path) || len(got) > 0 {
		t.Errorf("got %d facts and %v, want none and one error", len(got), errs)
	}
}

func TestFolderOrder(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "10.json", `{"a":{"x":1},"b":1,"c":1}`, 0o644)
	write(t, dir, "20.yaml", "b: 2\nc: 2", 0o644)
	write(t, dir, "30.json", "{", 0o644)
	write(t, dir, "40", "#!/bin/sh\necho c=3\n", 0o755)
	write(t, dir, "50.txt", "a=5", 0o644)
	if err := os.Mkdir(filepath.Join(dir, "60.json"), 0o755); err != nil {
		t.Fatal(err)
	}
	got, errs := fromFolder(t.Context(), facts.Options{Dir: dir})
	if want := map[string]any{"a": "5", "b": int64(2), "c": "3"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	checkErrors(t, errs, muster.Invalid, "30.json")
}

func TestFolderTooLargeTogether(t *testing.T) {
	dir := t.TempDir()
	half := strings.Repeat("x", facts.MaxSize/2)
	write(t, dir, "1.txt", "one="+half, 0o644)
	write(t, dir, "2.txt", "two="+half, 0o644)
	write(t, dir, "3.txt", "three=3", 0o644)
	got, errs := fromFolder(t.Context(), facts.Options{Dir: dir})
	if got["one"] != half || got["two"] != nil || got["three"] != "3" {
		t.Errorf("got %d facts, want one and three", len(got))
	}
	checkErrors(t, errs, muster.Full, "2.txt")
}

func TestFolderMissing(t *testing.T) {
	if _, errs := facts.Gather(t.Context(), facts.Options{Dir: filepath.Join(t.TempDir(), "none")}); len(errs) > 0 {
		t.Errorf("got %v, want no errors", errs)
	}
}

func TestFolderIsFile(t *testing.T) {
	path := write(t, t.TempDir(), "file", "", 0o644)
	_, errs := facts.Gather(t.Context(), facts.Options{Dir: path})
	checkErrors(t, errs, muster.Failed, path, "not a directory")
}

func TestFolderLinks(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	for name, target := range map[string]string{
		"good.json": write(t, elsewhere, "x", `{"a":"b"}`, 0o644), "lost.json": "nowhere",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	got, errs := fromFolder(t.Context(), facts.Options{Dir: dir})
	if want := map[string]any{"a": "b"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	checkErrors(t, errs, muster.Failed, "lost.json", "no such file")
}

func TestFolderStopped(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "1.txt", "a=1", 0o644)
	write(t, dir, "2.txt", "b=2", 0o644)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	got, errs := facts.Gather(ctx, facts.Options{Dir: dir})
	if got["a"] != nil || got["go"] == nil {
		t.Errorf("got %v, want the facts of the machine", got)
	}
	checkErrors(t, errs, muster.Interrupted, "1.txt")
}
