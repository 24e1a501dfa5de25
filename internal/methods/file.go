package methods

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/musterfleet/muster"
)

// fileContent is what file.write and file.append have in common.
type fileContent struct {
	Path    string  `json:"path"`
	Content *string `json:"content"`
	Base64  []byte  `json:"content_base64"` // decoded
	Mode    string  `json:"mode"`
	Mkdir   bool    `json:"mkdir"`
}

// fileContentProperties are the properties of fileContent in a schema.
const fileContentProperties = `
	"path":           {"type": "string", "minLength": 1, "description": "absolute path of the file"},
	"content":        {"type": "string", "description": "text"},
	"content_base64": {"type": "string", "contentEncoding": "base64", "pattern": "^[A-Za-z0-9+/]*={0,2}$", "description": "bytes, instead of content"},
	"mode":           {"type": "string", "pattern": "^0?[0-7]{3,4}$", "default": "0644", "description": "permissions of a new file, octal"},
	"mkdir":          {"type": "boolean", "default": false, "description": "make missing directories, with mode 0755"}`

const fileContentAlternatives = `"oneOf": [{"required": ["content"]}, {"required": ["content_base64"]}]`

func (f *fileContent) bytes() []byte {
	if f.Content != nil {
		return []byte(*f.Content)
	}
	return f.Base64
}

// mode returns the permissions to give, 0644 by default.
func (f *fileContent) mode() (fs.FileMode, error) {
	if f.Mode == "" {
		return 0o644, nil
	}
	bits, err := strconv.ParseUint(f.Mode, 8, 12)
	if err != nil {
		return 0, muster.Errorf(muster.Invalid, "mode %q: expected an octal number, as 0644", f.Mode)
	}
	// Go keeps the three special bits elsewhere than Unix.
	mode := fs.FileMode(bits & 0o777)
	for bit, special := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if bits&bit != 0 {
			mode |= special
		}
	}
	return mode, nil
}

// octal writes permissions as the input takes them.
func octal(mode fs.FileMode) string {
	bits := uint64(mode.Perm())
	for bit, special := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if mode&special != 0 {
			bits |= bit
		}
	}
	return fmt.Sprintf("%04o", bits)
}

// prepare checks the path and makes its directories if that is wanted.
func (f *fileContent) prepare() error {
	if err := checkPath(f.Path); err != nil {
		return err
	}
	if !f.Mkdir {
		return nil
	}
	return makeDir(filepath.Dir(f.Path))
}

func checkPath(path string) error {
	if !filepath.IsAbs(path) {
		return muster.Errorf(muster.Invalid, "path %q: expected an absolute path", path)
	}
	return nil
}

// makeDir makes a directory and those above it, and has them on disk when it
// returns.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return nil // it is there, or what follows will say what is wrong
	}
	parent := filepath.Dir(dir)
	if err := makeDir(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fileError(err)
	}
	return syncDir(parent)
}

// syncDir has the names in a directory on disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fileError(err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, syscall.EINVAL) {
		return fileError(err) // some file systems, and Windows, cannot; there is nothing better to do
	}
	return nil
}

// openRegular opens a regular file. A fifo or a device is refused rather than
// opened, since opening alone may block or have an effect.
func openRegular(path string, flag int, perm fs.FileMode) (*os.File, fs.FileInfo, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, nil, notRegular(path, info)
	}
	// It may have been replaced since, hence O_NONBLOCK and the second look.
	f, err := os.OpenFile(path, flag|syscall.O_NONBLOCK, perm)
	if err != nil {
		return nil, nil, fileError(err)
	}
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() {
		return f, info, nil
	}
	_ = f.Close()
	if err != nil {
		return nil, nil, fileError(err)
	}
	return nil, nil, notRegular(path, info)
}

func notRegular(path string, info fs.FileInfo) error {
	what := "a special file"
	switch {
	case info.IsDir():
		what = "a directory"
	case info.Mode()&fs.ModeNamedPipe != 0:
		what = "a pipe"
	case info.Mode()&fs.ModeDevice != 0:
		what = "a device"
	case info.Mode()&fs.ModeSocket != 0:
		what = "a socket"
	}
	return muster.Errorf(muster.Invalid, "%s is %s; expected a regular file", path, what)
}

// fileError gives an error of the file system its kind.
func fileError(err error) *muster.Error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return muster.Errorf(muster.NotFound, "%w", err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return muster.Errorf(muster.Denied, "%w", err).
			WithHint("the agent's user, or the sandbox of its service, has no access")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return muster.Errorf(muster.Full, "%w", err)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ENAMETOOLONG),
		errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.EINVAL):
		return muster.Errorf(muster.Invalid, "%w", err)
	}
	return muster.Errorf(muster.Failed, "%w", err)
}
