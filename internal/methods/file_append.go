package methods

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/method"
)

type appendOutput struct {
	Bytes int   `json:"bytes"`
	Size  int64 `json:"size"`
}

func fileAppend() method.Method {
	return define(method.Spec{
		Name:        "file.append",
		Description: "Add to the end of a file with one write, and make the file if it is missing.",
		Input: json.RawMessage(`{
			"type": "object",
			"properties": {` + fileContentProperties + `},
			"required": ["path"],
			` + fileContentAlternatives + `,
			"additionalProperties": false,
			"x-positional": ["path", "content"]
		}`),
		Output: json.RawMessage(`{
			"type": "object",
			"properties": {
				"bytes": {"type": "integer", "minimum": 0, "description": "added"},
				"size":  {"type": "integer", "minimum": 0, "description": "of the file afterwards"}
			},
			"required": ["bytes", "size"],
			"additionalProperties": false
		}`),
		Examples: examples("a line", `{"path": "/var/log/maintenance.log", "content": "disk replaced\n"}`),
	}, func(_ context.Context, _ method.Invocation, input fileContent) (method.Outcome, error) {
		size, err := input.append()
		if err != nil {
			return method.Outcome{}, err
		}
		return result(appendOutput{len(input.bytes()), size})
	})
}

// append returns the size of the file afterwards.
func (f *fileContent) append() (int64, error) {
	mode, err := f.mode()
	if err != nil {
		return 0, err
	}
	if err := f.prepare(); err != nil {
		return 0, err
	}
	file, err := f.openAppend(mode)
	if err != nil {
		return 0, err
	}
	_, err = file.Write(f.bytes())
	if err == nil {
		err = file.Sync()
	}
	info, statErr := file.Stat()
	if err := errors.Join(err, statErr, file.Close()); err != nil {
		return 0, fileError(err)
	}
	return info.Size(), nil
}

// openAppend opens the file, or makes it with the mode. Only a new file gets
// the mode: appending to a log must not open it to others.
func (f *fileContent) openAppend(mode fs.FileMode) (*os.File, error) {
	const flag = os.O_WRONLY | os.O_APPEND
	file, _, err := openRegular(f.Path, flag, 0)
	if muster.KindOf(err) != muster.NotFound {
		return file, err
	}
	file, _, err = openRegular(f.Path, flag|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist): // someone made it meanwhile, or it is a dangling link
		file, _, err = openRegular(f.Path, flag, 0)
		return file, err
	case muster.KindOf(err) == muster.NotFound:
		return nil, muster.Errorf(muster.NotFound, "directory %s does not exist", filepath.Dir(f.Path)).WithHint("mkdir=true makes it")
	case err != nil:
		return nil, err
	}
	// The umask does not count: the mode was asked for.
	if err := file.Chmod(mode); err != nil {
		return nil, errors.Join(fileError(err), file.Close())
	}
	if err := syncDir(filepath.Dir(f.Path)); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}
