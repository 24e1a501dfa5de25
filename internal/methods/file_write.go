package methods

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/method"
)

type writeInput struct {
	fileContent
	Owner string `json:"owner"`
}

type writeOutput struct {
	Bytes  int    `json:"bytes"`
	SHA256 string `json:"sha256"`
}

func fileWrite() method.Method {
	return define(method.Spec{
		Name:        "file.write",
		Description: "Write a file at once: a reader sees the old content or the new, also after a crash; a symbolic link is replaced, not followed.",
		Idempotent:  true,
		Input: json.RawMessage(`{
			"type": "object",
			"properties": {` + fileContentProperties + `,
				"owner": {"type": "string", "pattern": "^[^:]+(:[^:]+)?$", "description": "USER or USER:GROUP, by name or number; by default the agent's"}
			},
			"required": ["path"],
			` + fileContentAlternatives + `,
			"additionalProperties": false,
			"x-positional": ["path", "content"]
		}`),
		Output: json.RawMessage(`{
			"type": "object",
			"properties": {
				"bytes":  {"type": "integer", "minimum": 0, "description": "size of the file"},
				"sha256": {"type": "string", "description": "of the content, in hex"}
			},
			"required": ["bytes", "sha256"],
			"additionalProperties": false
		}`),
		Examples: examples(
			"a line of text", `{"path": "/etc/motd", "content": "welcome\n"}`,
			"an executable below a new directory", `{"path": "/opt/tool/bin/run", "content": "#!/bin/sh\n", "mode": "0755", "owner": "root:root", "mkdir": true}`,
			"bytes", `{"path": "/srv/key", "content_base64": "AAEC", "mode": "0600"}`,
		),
	}, func(_ context.Context, _ method.Invocation, input writeInput) (method.Outcome, error) {
		if err := input.write(); err != nil {
			return method.Outcome{}, err
		}
		sum := sha256.Sum256(input.bytes())
		return result(writeOutput{len(input.bytes()), hex.EncodeToString(sum[:])})
	})
}

func (i *writeInput) write() error {
	mode, err := i.mode()
	if err != nil {
		return err
	}
	uid, gid, err := lookupOwner(i.Owner)
	if err != nil {
		return err
	}
	if err := i.prepare(); err != nil {
		return err
	}
	// A rename would replace a device such as /dev/null without a word.
	if info, err := os.Lstat(i.Path); err == nil && !info.Mode().IsRegular() && info.Mode()&fs.ModeSymlink == 0 {
		return notRegular(i.Path, info)
	}
	dir := filepath.Dir(i.Path)
	temp, err := os.CreateTemp(dir, ".muster-*.tmp")
	if errors.Is(err, fs.ErrNotExist) {
		return muster.Errorf(muster.NotFound, "directory %s does not exist", dir).WithHint("mkdir=true makes it")
	}
	if err != nil {
		return fileError(err)
	}
	if err := fillFile(temp, i.bytes(), mode, uid, gid); err != nil {
		return errors.Join(fileError(err), os.Remove(temp.Name()))
	}
	if err := os.Rename(temp.Name(), i.Path); err != nil {
		return errors.Join(fileError(err), os.Remove(temp.Name()))
	}
	return syncDir(dir)
}

// fillFile writes and closes a file, with its content on disk when it returns.
func fillFile(f *os.File, content []byte, mode fs.FileMode, uid, gid int) error {
	_, err := f.Write(content)
	if err == nil && (uid >= 0 || gid >= 0) {
		err = f.Chown(uid, gid)
	}
	if err == nil {
		err = f.Chmod(mode) // after Chown, which clears setuid
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// lookupOwner reads USER or USER:GROUP. -1 stands for no change.
func lookupOwner(owner string) (uid, gid int, err error) {
	if owner == "" {
		return -1, -1, nil
	}
	name, group, _ := strings.Cut(owner, ":")
	gid = -1
	u, err := user.Lookup(name)
	if err == nil {
		uid, err = strconv.Atoi(u.Uid)
	} else {
		uid, err = number(name)
	}
	if err != nil {
		return 0, 0, muster.Errorf(muster.NotFound, "owner %q: user %q does not exist here", owner, name)
	}
	if group == "" {
		return uid, gid, nil
	}
	g, err := user.LookupGroup(group)
	if err == nil {
		gid, err = strconv.Atoi(g.Gid)
	} else {
		gid, err = number(group)
	}
	if err != nil {
		return 0, 0, muster.Errorf(muster.NotFound, "owner %q: group %q does not exist here", owner, group)
	}
	return uid, gid, nil
}

func number(s string) (int, error) {
	n, err := number32(s)
	return int(n), err
}
