package facts

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/musterfleet/muster"
)

// folder adds the facts of every file of the folder.
func (g *gatherer) folder(ctx context.Context, o Options) {
	// Executables are started in another folder.
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		g.fail(o.Dir, err)
		return
	}
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		g.fail(dir, err)
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") || entry.IsDir() {
			continue
		}
		path := filepath.Join(dir, entry.Name())
		if err := ctx.Err(); err != nil {
			g.fail(path, muster.Errorf(muster.Interrupted, "stopped before it was read, with all that follow: %w", err))
			return
		}
		facts, err := readFile(ctx, path, o)
		if err != nil {
			g.fail(path, err)
			continue
		}
		g.merge(path, facts)
	}
}

// readFile returns the facts that a file holds or prints.
func readFile(ctx context.Context, path string, o Options) (map[string]any, error) {
	// A link to a file is as good as the file. Anything but a file could block
	// the reader for ever.
	info, err := os.Stat(path)
	if err != nil {
		return nil, bare(err)
	}
	if !info.Mode().IsRegular() {
		return nil, muster.Errorf(muster.Invalid, "it is not a regular file")
	}
	parse := map[string]func([]byte) (map[string]any, error){
		".json": parseJSON, ".yaml": parseYAML, ".yml": parseYAML, ".txt": parseKeyValue,
	}[filepath.Ext(path)]
	switch {
	case parse != nil:
		data, err := readLimited(path)
		if err != nil {
			return nil, err
		}
		return parse(data)
	case info.Mode().Perm()&0o111 != 0:
		data, err := runFile(ctx, path, info, o.Timeout)
		if err != nil {
			return nil, err
		}
		return parsePrinted(data)
	}
	return nil, muster.Errorf(muster.Invalid, "expected a name ending in .json, .yaml, .yml or .txt, or an executable file")
}

func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, bare(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, bare(err)
	}
	if len(data) > MaxFile {
		return nil, muster.Errorf(muster.Full, "it has more than %d bytes", MaxFile)
	}
	return data, nil
}

// bare removes the path from an error, as whoever reports it names the file.
func bare(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

// parsePrinted reads what an executable printed.
func parsePrinted(data []byte) (map[string]any, error) {
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		return parseJSON(data)
	}
	return parseKeyValue(data)
}

func parseJSON(data []byte) (map[string]any, error) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber() // integers beyond 2^53 stay what they are
	var value any
	if err := decoder.Decode(&value); err != nil {
		return nil, muster.Errorf(muster.Invalid, "not valid JSON: %w", err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, muster.Errorf(muster.Invalid, "not valid JSON: expected the end after the first value, at byte %d", decoder.InputOffset())
	}
	return asFacts(value)
}

func parseYAML(data []byte) (map[string]any, error) {
	var value any
	if err := yaml.Load(data, &value); err != nil {
		return nil, muster.Errorf(muster.Invalid, "not valid YAML: %w", err)
	}
	return asFacts(value)
}
