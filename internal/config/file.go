// Package config reads and writes the files that muster keeps between runs:
// the fleet's folder (at the broker), a node's folder and the contexts of
// callers.
//
// Files are YAML where people read them. Nothing is guessed: a key that is
// unknown, repeated or missing, or a value of another type, is an error that
// names file, line and key, and what is expected. Each write replaces the whole
// file or leaves the old one.
package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/musterfleet/muster"
)

// MaxFile is the largest file in bytes that is read.
const MaxFile = 16 << 20

// Modes of what is written. There are secrets in most folders.
const (
	folderMode = 0o700
	fileMode   = 0o600
)

// WriteFile replaces the file with the data, with mode 0600: after a crash at
// any moment there is either the old file or the new one, complete. Its owner stays
// the same, so that root can tend the folder of another user.
func WriteFile(path string, data []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // with mode 0600
	if err != nil {
		return fileError(err, "write", path)
	}
	_, err = f.Write(data)
	if err == nil {
		err = keepOwner(f, path)
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // what matters is the first error
		return fileError(err, "write", path)
	}
	return syncFolder(dir)
}

// createFile is WriteFile for a file that must not exist yet.
func createFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return fileError(err, "write", path)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fileError(err, "write", path)
	}
	return nil
}

// syncFolder makes a rename last. Not every system can open a folder.
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return nil
	}
	_ = d.Sync() // not possible on some file systems
	return d.Close()
}

func makeFolder(path string) error {
	if err := os.MkdirAll(path, folderMode); err != nil {
		return fileError(err, "make folder", path)
	}
	return nil
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err == nil && info.Size() > MaxFile {
		return nil, muster.Errorf(muster.Invalid, "%s has %d bytes; at most %d are read", path, info.Size(), MaxFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fileError(err, "read", path)
	}
	return data, nil
}

// readOptional returns nil for a file that does not exist.
func readOptional(path string) ([]byte, error) {
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func fileError(err error, doing, path string) error {
	kind := muster.Unavailable
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = muster.NotFound
	case errors.Is(err, fs.ErrExist):
		kind = muster.Conflict
	case errors.Is(err, fs.ErrPermission):
		return muster.Errorf(muster.Denied, "%s %s: %w", doing, path, err).
			WithHint("run as the user that owns the folder")
	}
	return muster.Errorf(kind, "%s %s: %w", doing, path, err)
}

// A field is one key of a file: a text or a list of texts.
type field struct {
	key      string
	text     *string
	list     *[]string
	optional bool
}

func (f field) expected() string {
	if f.list != nil {
		return f.key + " (list of texts)"
	}
	return f.key + " (text)"
}

// parse reads a mapping with exactly the fields.
func parse(file string, data []byte, fields []field) error {
	root, err := parseYAML(file, data, expected(fields))
	if err != nil {
		return err
	}
	if root == nil {
		return muster.Errorf(muster.Invalid, "%s: it is empty; expected %s", file, expected(fields))
	}
	if root.Kind != yaml.MappingNode {
		return muster.Errorf(muster.Invalid, "%s:%d: expected a mapping with %s", file, max(root.Line, 1), expected(fields))
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		at := slices.IndexFunc(fields, func(f field) bool { return f.key == key.Value })
		switch {
		case at < 0:
			return muster.Errorf(muster.Invalid, "%s:%d: unknown key %.80q; expected %s", file, key.Line, key.Value, expected(fields))
		case seen[key.Value]:
			return muster.Errorf(muster.Invalid, "%s:%d: key %q appears twice", file, key.Line, key.Value)
		case !fields[at].set(value):
			return muster.Errorf(muster.Invalid, "%s:%d: %s has another type; expected %s", file, value.Line, key.Value, fields[at].expected())
		}
		seen[key.Value] = true
	}
	for _, f := range fields {
		if !f.optional && !seen[f.key] {
			return muster.Errorf(muster.Invalid, "%s:%d: key %q is missing; expected %s", file, root.Line, f.key, expected(fields))
		}
	}
	return nil
}

// parseYAML returns the document's outermost node, nil for an empty document.
func parseYAML(file string, data []byte, what string) (*yaml.Node, error) {
	if blank(data) {
		return nil, nil
	}
	var document yaml.Node
	if err := yaml.Load(data, &document); err != nil {
		if at, ok := errors.AsType[*yaml.LoadError](err); ok && at.Mark.Line > 0 {
			return nil, muster.Errorf(muster.Invalid, "%s:%d: not YAML: %w", file, at.Mark.Line, err)
		}
		return nil, muster.Errorf(muster.Invalid, "%s: not YAML: %w", file, err).WithHint("expected %s", what)
	}
	if document.Kind != yaml.DocumentNode {
		return &document, nil
	}
	if len(document.Content) == 0 || document.Content[0].ShortTag() == "!!null" { // comments alone
		return nil, nil
	}
	return document.Content[0], nil
}

// blank reports text that has no document: comments alone.
func blank(data []byte) bool {
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			return false
		}
	}
	return true
}

func (f field) set(n *yaml.Node) bool {
	if f.text != nil {
		*f.text = n.Value
		return isText(n)
	}
	if n.Kind != yaml.SequenceNode {
		return false
	}
	for _, e := range n.Content {
		if !isText(e) {
			return false
		}
		*f.list = append(*f.list, e.Value)
	}
	return true
}

func isText(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" }

func expected(fields []field) string {
	var names []string
	for _, f := range fields {
		names = append(names, f.expected())
	}
	return strings.Join(names, ", ")
}

// render writes what parse reads.
func render(comment string, fields []field) ([]byte, error) {
	root := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", HeadComment: "# " + comment}
	text := func(s string) *yaml.Node {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s, Style: yaml.DoubleQuotedStyle}
	}
	for _, f := range fields {
		value := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		if f.text != nil {
			value = text(*f.text)
		} else {
			for _, e := range *f.list {
				value.Content = append(value.Content, text(e))
			}
		}
		root.Content = append(root.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: f.key}, value)
	}
	data, err := yaml.Dump(root)
	if err != nil {
		return nil, muster.Errorf(muster.Internal, "write YAML: %w", err)
	}
	return data, nil
}
