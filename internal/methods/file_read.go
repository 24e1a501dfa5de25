package methods

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/method"
)

const defaultReadLimit = 1 << 20

type readInput struct {
	Path   string `json:"path"`
	Offset int64  `json:"offset"`
	Limit  int64  `json:"limit"`
}

type readOutput struct {
	Size   int64     `json:"size"`
	Offset int64     `json:"offset"`
	Bytes  int64     `json:"bytes"`
	SHA256 string    `json:"sha256"`
	Mode   string    `json:"mode"`
	MTime  time.Time `json:"mtime"`
}

func fileRead() method.Method {
	return define(method.Spec{
		Name:        "file.read",
		Description: "Write the content of a regular file, or a part of it, to the output.",
		Idempotent:  true,
		Input: json.RawMessage(`{
			"type": "object",
			"properties": {
				"path":   {"type": "string", "minLength": 1, "description": "absolute path of the file"},
				"offset": {"type": "integer", "minimum": 0, "default": 0, "description": "byte to begin at"},
				"limit":  {"type": "integer", "minimum": 1, "maximum": 268435456, "default": 1048576, "description": "bytes to read at most"}
			},
			"required": ["path"],
			"additionalProperties": false,
			"x-positional": ["path"]
		}`),
		Output: json.RawMessage(`{
			"type": "object",
			"properties": {
				"size":   {"type": "integer", "minimum": 0, "description": "of the file; 0 also where the kernel makes the content up"},
				"offset": {"type": "integer", "minimum": 0},
				"bytes":  {"type": "integer", "minimum": 0, "description": "written to the output"},
				"sha256": {"type": "string", "description": "of the bytes written to the output, in hex"},
				"mode":   {"type": "string", "description": "permissions, octal"},
				"mtime":  {"type": "string", "format": "date-time", "description": "time of the last change"}
			},
			"required": ["size", "offset", "bytes", "sha256", "mode", "mtime"],
			"additionalProperties": false
		}`),
		Examples: examples(
			"a whole file", `{"path": "/etc/hosts"}`,
			"a part", `{"path": "/var/log/syslog", "offset": 1048576, "limit": 65536}`,
		),
	}, func(ctx context.Context, in method.Invocation, input readInput) (method.Outcome, error) {
		if input.Limit == 0 {
			input.Limit = defaultReadLimit
		}
		return input.read(ctx, in.Stdout)
	})
}

func (i readInput) read(ctx context.Context, to io.Writer) (method.Outcome, error) {
	if err := checkPath(i.Path); err != nil {
		return method.Outcome{}, err
	}
	f, info, err := openRegular(i.Path, 0, 0)
	if err != nil {
		return method.Outcome{}, err
	}
	defer f.Close()
	if i.Offset > 0 { // not every file in /proc can seek
		if _, err := f.Seek(i.Offset, io.SeekStart); err != nil {
			return method.Outcome{}, fileError(err)
		}
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(to, sum), contextReader{ctx, io.LimitReader(f, i.Limit)})
	if ctx.Err() != nil {
		return method.Outcome{}, interrupted(ctx)
	}
	if err != nil {
		return method.Outcome{}, muster.Errorf(fileError(err).Kind, "after %d bytes: %w", n, err)
	}
	return result(readOutput{
		Size: info.Size(), Offset: i.Offset, Bytes: n, SHA256: hex.EncodeToString(sum.Sum(nil)),
		Mode: octal(info.Mode()), MTime: info.ModTime().UTC(),
	})
}

// contextReader stops reading when its context ends.
type contextReader struct {
	ctx context.Context
	io.Reader
}

func (r contextReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(b)
}
