package constellation

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/musterfleet/muster"
)

// Variable is the environment variable that holds the constellation: its JSON,
// or the path of its file.
const Variable = "MUSTER_CONSTELLATION"

// embedded is the base64 of a constellation's file, put in by the linker:
//
//	-ldflags "-X github.com/musterfleet/muster/internal/constellation.embedded=$(base64 -w0 lab.json)"
var embedded string

// DefaultFile is where a machine's constellation is when nothing says otherwise.
const DefaultFile = "/etc/muster/constellation.json"

// Find returns the constellation of the file at path; without a path, that of
// the variable, which the function looks up as os.Getenv does; without either,
// the one that was embedded when the program was built; and at last that of
// DefaultFile. The error is of kind NotFound when there is none of all these.
func Find(path string, getenv func(string) string) (Constellation, error) {
	if path != "" {
		return Read(path)
	}
	if value := getenv(Variable); strings.HasPrefix(strings.TrimSpace(value), "{") {
		c, err := Parse([]byte(value))
		return c, within(Variable, err)
	} else if value != "" {
		return Read(value)
	}
	if _, err := os.Stat(DefaultFile); embedded == "" && err == nil {
		return Read(DefaultFile)
	}
	if embedded == "" {
		return Constellation{}, muster.Errorf(muster.NotFound, "no constellation is given").
			WithHint("name its file, set %s to its path or JSON, or put it at %s", Variable, DefaultFile)
	}
	data, err := base64.StdEncoding.DecodeString(embedded)
	if err != nil {
		return Constellation{}, muster.Errorf(muster.Corrupt, "the embedded constellation is not base64")
	}
	c, err := Parse(data)
	return c, within("the embedded constellation", err)
}

// Read reads a constellation's file. A file that others than its owner can read
// is refused, since its secret then is none.
func Read(path string) (Constellation, error) {
	data, err := readSecret(path)
	if err != nil {
		return Constellation{}, err
	}
	c, err := Parse(data)
	return c, within(path, err)
}

// ReadOperator reads an operator's file, under the conditions of Read.
func ReadOperator(path string) (Operator, error) {
	data, err := readSecret(path)
	if err != nil {
		return Operator{}, err
	}
	o, err := ParseOperator(data)
	return o, within(path, err)
}

// Write makes the file of a constellation, with mode 0600. An existing file is
// not replaced: agents that have it would be lost.
func (c Constellation) Write(path string) error { return create(path, c.Encode()) }

// Replace writes the file of a constellation over an earlier one of its own, with
// mode 0600.
func (c Constellation) Replace(path string) error {
	next := path + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fileError("write", next, err) // what a crash has left
	}
	if err := create(next, c.Encode()); err != nil {
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return fileError("write", path, errors.Join(err, os.Remove(next)))
	}
	return nil
}

// Write makes the file of an operator, with mode 0600, and replaces none.
func (o Operator) Write(path string) error { return create(path, o.Encode()) }

// within says where an error of Parse was found.
func within(where string, err error) error {
	if err == nil {
		return nil
	}
	e := muster.AsError(muster.Invalid, err)
	return muster.Errorf(e.Kind, "%s: %w", where, err).WithHint("%s", e.Hint)
}

func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fileError("read", path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fileError("read", path, err)
	}
	// Windows has no such bits: Go makes them up there.
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		return nil, muster.Errorf(muster.Denied, "%s holds a secret, but has mode %04o: others can get at it", path, mode).
			WithHint("chmod 600 %s; if others were on this machine, make a new one", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1)) // Parse refuses the one byte more
	if err != nil {
		return nil, fileError("read", path, err)
	}
	return bytes.TrimSpace(data), nil
}

// create writes a file that is not there yet, and takes it away again where it
// could not be written whole.
func create(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return muster.Errorf(muster.Conflict, "%s exists already", path).
			WithHint("choose another file: %s is never replaced", filepath.Base(path))
	}
	if err != nil {
		return fileError("write", path, err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fileError("write", path, errors.Join(err, os.Remove(path)))
	}
	return nil
}

func fileError(doing, path string, err error) error {
	kind := muster.Unavailable
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = muster.NotFound
	case errors.Is(err, fs.ErrPermission):
		kind = muster.Denied
	}
	return muster.Errorf(kind, "%s %s: %w", doing, path, err)
}
