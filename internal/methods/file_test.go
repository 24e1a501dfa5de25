package methods

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/musterfleet/muster"
)

func hexSum(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// inDir replaces DIR in an input by a directory.
func inDir(input, dir string) string { return strings.ReplaceAll(input, "DIR", dir) }

// testDir returns a directory with some files in it.
func testDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(dir, "old"), []byte("0123456789"), 0o640))
	must(os.Chmod(filepath.Join(dir, "old"), 0o640)) // whatever the umask is
	must(os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	must(os.Symlink("old", filepath.Join(dir, "link")))
	must(os.Symlink("nowhere/x", filepath.Join(dir, "dangling")))
	return dir
}

func TestFileWrite(t *testing.T) {
	tests := []struct {
		name, input string
		file, want  string
		mode        fs.FileMode
	}{
		{"new", `{"path": "DIR/new", "content": "héllo\n"}`, "new", "héllo\n", 0o644},
		{"over another", `{"path": "DIR/old", "content": "x", "mode": "600"}`, "old", "x", 0o600},
		{"bytes", `{"path": "DIR/new", "content_base64": "AP+A"}`, "new", "\x00\xff\x80", 0o644},
		{"empty", `{"path": "DIR/old", "content": ""}`, "old", "", 0o644},
		{"directories", `{"path": "DIR/a/b/c", "content": "x", "mkdir": true}`, "a/b/c", "x", 0o644},
		{"special bits", `{"path": "DIR/new", "content": "x", "mode": "06755"}`, "new", "x", 0o755 | fs.ModeSetuid | fs.ModeSetgid},
		{"link is replaced", `{"path": "DIR/link", "content": "x"}`, "link", "x", 0o644},
		{"dangling link is replaced", `{"path": "DIR/dangling", "content": "x"}`, "dangling", "x", 0o644},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := testDir(t)
			var c call
			c.invoke(t.Context(), builtinNamed(t, "file.write"), inDir(tt.input, dir))
			c.want(t, "", "")
			path := filepath.Join(dir, tt.file)
			got, err := os.ReadFile(path)
			if err != nil || string(got) != tt.want {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
			if info, err := os.Lstat(path); err != nil || info.Mode() != tt.mode {
				t.Errorf("got mode %v, %v; want %v", info.Mode(), err, tt.mode)
			}
			if got, want := decodeOutput[writeOutput](t, &c), (writeOutput{len(tt.want), hexSum(tt.want)}); got != want {
				t.Errorf("got %v, want %v", got, want)
			}
			noTemp(t, dir)
		})
	}
}

// noTemp checks that no temporary file is left.
func noTemp(t *testing.T, dir string) {
	t.Helper()
	if left, _ := filepath.Glob(filepath.Join(dir, ".muster-*")); len(left) > 0 {
		t.Errorf("%q was left", left)
	}
}

func TestFileWriteRefuses(t *testing.T) {
	tests := []struct {
		name, input string
		kind        muster.ErrorKind
		want        string
	}{
		{"relative", `{"path": "x", "content": ""}`, muster.Invalid, "expected an absolute path"},
		{"directory", `{"path": "DIR/sub", "content": ""}`, muster.Invalid, "is a directory"},
		{"device", `{"path": "/dev/null", "content": ""}`, muster.Invalid, "is a device"},
		{"no directory", `{"path": "DIR/a/b", "content": ""}`, muster.NotFound, "DIR/a does not exist"},
		{"below a file", `{"path": "DIR/old/x", "content": "", "mkdir": true}`, muster.Invalid, "not a directory"},
		{"user", `{"path": "DIR/new", "content": "", "owner": "nobody-has-this-name"}`, muster.NotFound, `user "nobody-has-this-name" does not exist`},
		{"group", `{"path": "DIR/new", "content": "", "owner": "0:nobody-has-this-name"}`, muster.NotFound, `group "nobody-has-this-name" does not exist`},
		{"mode", `{"path": "DIR/new", "content": "", "mode": "rw"}`, muster.Invalid, "expected an octal number"},
		{"base64", `{"path": "DIR/new", "content_base64": "x"}`, muster.Invalid, "base64"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := testDir(t)
			var c call
			c.invoke(t.Context(), builtinNamed(t, "file.write"), inDir(tt.input, dir))
			c.want(t, tt.kind, inDir(tt.want, dir))
			noTemp(t, dir)
		})
	}
}

// A writer that fails in the middle leaves the old content.
func TestFileWriteKeepsOld(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may give files to anyone")
	}
	dir := testDir(t)
	var c call
	c.invoke(t.Context(), builtinNamed(t, "file.write"), inDir(`{"path": "DIR/old", "content": "x", "owner": "root"}`, dir))
	c.want(t, muster.Denied, "")
	if got, _ := os.ReadFile(filepath.Join(dir, "old")); string(got) != "0123456789" {
		t.Errorf("got %q", got)
	}
	noTemp(t, dir)
}

func TestFileAppend(t *testing.T) {
	tests := []struct {
		name, input string
		file, want  string
		mode        fs.FileMode
	}{
		{"new", `{"path": "DIR/new", "content": "x", "mode": "0666"}`, "new", "x", 0o666},
		{"more", `{"path": "DIR/old", "content": "x", "mode": "0666"}`, "old", "0123456789x", 0o640},
		{"bytes", `{"path": "DIR/old", "content_base64": "/w=="}`, "old", "0123456789\xff", 0o640},
		{"nothing", `{"path": "DIR/old", "content": ""}`, "old", "0123456789", 0o640},
		{"through a link", `{"path": "DIR/link", "content": "x"}`, "old", "0123456789x", 0o640},
		{"directories", `{"path": "DIR/a/b/c", "content": "x", "mkdir": true}`, "a/b/c", "x", 0o644},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := testDir(t)
			before, _ := os.ReadFile(filepath.Join(dir, tt.file))
			var c call
			c.invoke(t.Context(), builtinNamed(t, "file.append"), inDir(tt.input, dir))
			c.want(t, "", "")
			path := filepath.Join(dir, tt.file)
			if got, err := os.ReadFile(path); err != nil || string(got) != tt.want {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
			if info, err := os.Stat(path); err != nil || info.Mode() != tt.mode {
				t.Errorf("got mode %v, %v; want %v", info.Mode(), err, tt.mode)
			}
			if got, want := decodeOutput[appendOutput](t, &c), (appendOutput{len(tt.want) - len(before), int64(len(tt.want))}); got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

func TestFileAppendRefuses(t *testing.T) {
	tests := []struct {
		name, input string
		kind        muster.ErrorKind
		want        string
	}{
		{"relative", `{"path": "x", "content": ""}`, muster.Invalid, "expected an absolute path"},
		{"directory", `{"path": "DIR/sub", "content": ""}`, muster.Invalid, "is a directory"},
		{"no directory", `{"path": "DIR/a/b", "content": ""}`, muster.NotFound, "DIR/a does not exist"},
		{"dangling link", `{"path": "DIR/dangling", "content": ""}`, muster.NotFound, "no such file"},
		{"mode", `{"path": "DIR/old", "content": "", "mode": "rw"}`, muster.Invalid, "expected an octal number"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := testDir(t)
			var c call
			c.invoke(t.Context(), builtinNamed(t, "file.append"), inDir(tt.input, dir))
			c.want(t, tt.kind, inDir(tt.want, dir))
		})
	}
}

func TestFileRead(t *testing.T) {
	tests := []struct {
		name, input string
		want        string
		offset      int64
	}{
		{"all", `{"path": "DIR/old"}`, "0123456789", 0},
		{"part", `{"path": "DIR/old", "offset": 3, "limit": 4}`, "3456", 3},
		{"beyond the end", `{"path": "DIR/old", "offset": 99}`, "", 99},
		{"through a link", `{"path": "DIR/link", "limit": 1}`, "0", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := testDir(t)
			var c call
			c.invoke(t.Context(), builtinNamed(t, "file.read"), inDir(tt.input, dir))
			c.want(t, "", "")
			if got := c.stdout.String(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			got := decodeOutput[readOutput](t, &c)
			want := readOutput{Size: 10, Offset: tt.offset, Bytes: int64(len(tt.want)), SHA256: hexSum(tt.want), Mode: "0640", MTime: got.MTime}
			if got != want || got.MTime.IsZero() {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

func TestFileReadDefaultLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), defaultReadLimit+1), 0o600); err != nil {
		t.Fatal(err)
	}
	var c call
	c.invoke(t.Context(), builtinNamed(t, "file.read"), `{"path": `+quote(path)+`}`)
	c.want(t, "", "")
	if n := len(c.stdout.String()); n != defaultReadLimit {
		t.Errorf("got %d bytes, want %d", n, defaultReadLimit)
	}
}

func TestFileReadRefuses(t *testing.T) {
	tests := []struct {
		name, path string
		kind       muster.ErrorKind
		want       string
	}{
		{"relative", "x", muster.Invalid, "expected an absolute path"},
		{"missing", "DIR/none", muster.NotFound, "no such file"},
		{"directory", "DIR", muster.Invalid, "is a directory"},
		{"device", "/dev/zero", muster.Invalid, "is a device"},
		{"below a file", "DIR/old/x", muster.Invalid, "not a directory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var c call
			c.invoke(t.Context(), builtinNamed(t, "file.read"), inDir(`{"path": "`+tt.path+`"}`, testDir(t)))
			c.want(t, tt.kind, tt.want)
		})
	}
}

func TestOctal(t *testing.T) {
	for _, text := range []string{"0644", "0000", "4755", "7777", "0001"} {
		f := fileContent{Mode: text}
		mode, err := f.mode()
		if got := octal(mode); err != nil || got != text {
			t.Errorf("%s became %v, %s, %v", text, mode, got, err)
		}
	}
}
