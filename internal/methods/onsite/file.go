package onsite

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/musterfleet/muster"
)

func get(g Get) (Chunk, error) {
	if g.Length == 0 {
		g.Length = MaxGet
	}
	// What is looked at is what was opened; a pipe does not wait for its writer.
	f, err := os.OpenFile(g.Path, os.O_RDONLY|noWait, 0)
	if err != nil {
		return Chunk{}, fileError("read", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Chunk{}, fileError("read", err)
	}
	if !info.Mode().IsRegular() {
		return Chunk{}, muster.Errorf(muster.Invalid, "%s is not a file", g.Path)
	}
	if info.Size() > MaxFile {
		return Chunk{}, muster.Errorf(muster.Full, "%s has %d bytes; %d are possible", g.Path, info.Size(), MaxFile)
	}
	data := make([]byte, g.Length)
	n, err := f.ReadAt(data, g.Offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return Chunk{}, fileError("read", err)
	}
	return Chunk{Size: info.Size(), Mode: uint32(info.Mode().Perm()), Data: data[:n]}, nil
}

// put gathers the pieces in a file next to the right place, named by the hash:
// the pieces of two files do not mix.
func put(p Put) (Written, error) {
	if !filepath.IsAbs(p.Path) {
		return Written{}, muster.Errorf(muster.Invalid, "%q is not an absolute path", p.Path)
	}
	part := filepath.Join(filepath.Dir(p.Path), "."+filepath.Base(p.Path)+".part-"+hex.EncodeToString(p.Hash[:6]))
	have, err := addPiece(part, p)
	if err != nil || have < p.Size {
		return Written{Bytes: have}, err
	}
	if err := finish(part, p); err != nil {
		return Written{}, errors.Join(err, os.Remove(part))
	}
	return Written{Bytes: p.Size, Done: true}, nil
}

// addPiece appends a piece to what is there, and returns how much there is. A
// first piece begins anew, with a file that nobody can have put there before:
// the folder may be one that others write to.
func addPiece(part string, p Put) (int64, error) {
	flags := os.O_RDWR | noFollow
	if p.Offset == 0 {
		if err := os.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, fileError("write", err)
		}
		flags |= os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(part, flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) && p.Offset > 0 {
		return 0, muster.Errorf(muster.Conflict, "the pieces before this one are missing").WithHint("begin with the first piece again")
	}
	if err != nil {
		return 0, fileError("write", err)
	}
	info, err := f.Stat()
	if err != nil {
		return 0, fileError("write", errors.Join(err, f.Close()))
	}
	if info.Size() != p.Offset {
		_ = f.Close() // nothing was written
		return info.Size(), muster.Errorf(muster.Conflict, "%d bytes are here, and the piece begins at %d", info.Size(), p.Offset).
			WithHint("begin with the first piece again")
	}
	_, err = f.WriteAt(p.Data, p.Offset)
	if p.Offset+int64(len(p.Data)) == p.Size {
		err = errors.Join(err, f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, fileError("write", err)
	}
	return p.Offset + int64(len(p.Data)), nil
}

// finish checks the whole file and gives it its name.
func finish(part string, p Put) error {
	data, err := os.ReadFile(part)
	if err != nil {
		return fileError("write", err)
	}
	if sum := sha256.Sum256(data); !bytes.Equal(sum[:], p.Hash[:]) {
		return muster.Errorf(muster.Corrupt, "the file is not what was sent")
	}
	if err := os.Chmod(part, fs.FileMode(p.Mode)); err != nil {
		return fileError("write", err)
	}
	if err := os.Rename(part, p.Path); err != nil {
		return fileError("write", err)
	}
	return nil
}
