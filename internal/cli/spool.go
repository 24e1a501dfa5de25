package cli

import (
	"encoding/base64"
	"errors"
	"io"
	"os"
	"unicode/utf8"

	"github.com/musterfleet/muster"
)

// A spool takes what a run wrote, of any size, and gives it back when it is
// known whether all of it is text: only then can it be printed, as text or as
// base64. What is large waits in a file without a name.
type spool struct {
	small []byte
	file  *os.File // has everything, once there is too much for small
	size  int64
	text  textCheck
}

const (
	spoolSmall = 64 << 10 // bytes that are kept in memory
	spoolPiece = 32 << 10 // bytes that are read back at once
)

func (s *spool) Write(b []byte) (int, error) {
	if s.file == nil && len(s.small)+len(b) > spoolSmall {
		if err := s.spill(); err != nil {
			return 0, err
		}
	}
	if s.file == nil {
		s.small = append(s.small, b...)
	} else if _, err := s.file.Write(b); err != nil {
		return 0, spoolError(err)
	}
	s.size += int64(len(b))
	s.text.add(b)
	return len(b), nil
}

// spill moves what is in memory to a file.
func (s *spool) spill() (err error) {
	if s.file, err = os.CreateTemp("", "muster-output-"); err != nil {
		return spoolError(err)
	}
	// Without its name the file goes with the process, however that ends. Where
	// an open file cannot lose its name, close removes it.
	_ = os.Remove(s.file.Name())
	if _, err := s.file.Write(s.small); err != nil {
		return spoolError(err)
	}
	s.small = nil
	return nil
}

// errSpool is in every error of a spool's file: no further output could be
// kept either.
var errSpool = errors.New("keep output until it is printed")

func spoolError(err error) error {
	return muster.Errorf(muster.Full, "%w: %w", errSpool, err).
		WithHint("TMPDIR can name a folder with more room; the table form of 'muster command show' needs none")
}

// isText reports whether all of it is UTF-8.
func (s *spool) isText() bool { return s.text.ok() }

// copyTo writes all of it in pieces.
func (s *spool) copyTo(w io.Writer) error {
	if s.file == nil {
		_, err := w.Write(s.small)
		return err
	}
	if _, err := s.file.Seek(0, io.SeekStart); err != nil {
		return spoolError(err)
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{s.file}, make([]byte, spoolPiece))
	return err
}

// close gives up the file.
func (s *spool) close() {
	if s.file == nil {
		return
	}
	_ = s.file.Close() // everything was read, or is not wanted
	if err := os.Remove(s.file.Name()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return // the system's cleaning of temporary files gets it
	}
}

// writeQuoted writes the spool as a string of JSON or YAML: text as it is,
// other bytes in base64.
func (s *spool) writeQuoted(w io.Writer, yaml bool) error {
	if _, err := io.WriteString(w, `"`); err != nil {
		return err
	}
	var to io.WriteCloser = &quoter{w: w, yaml: yaml}
	if !s.isText() {
		to = base64.NewEncoder(base64.StdEncoding, w)
	}
	if err := s.copyTo(to); err != nil {
		return err
	}
	if err := to.Close(); err != nil {
		return err
	}
	_, err := io.WriteString(w, `"`)
	return err
}

// A textCheck finds out whether pieces together are UTF-8.
type textCheck struct {
	rest []byte // a character that has not ended
	bad  bool
}

func (c *textCheck) add(b []byte) {
	if c.bad {
		return
	}
	for len(c.rest) > 0 && len(b) > 0 && !utf8.FullRune(c.rest) {
		c.rest, b = append(c.rest, b[0]), b[1:]
	}
	if len(c.rest) > 0 && utf8.FullRune(c.rest) {
		c.bad, c.rest = !utf8.Valid(c.rest), c.rest[:0]
	}
	if len(b) > 0 {
		n := wholeRunes(b)
		c.bad = c.bad || !utf8.Valid(b[:n])
		c.rest = append(c.rest, b[n:]...)
	}
}

func (c *textCheck) ok() bool { return !c.bad && len(c.rest) == 0 }

// wholeRunes returns the length of b without a character at its end of which
// bytes are missing.
func wholeRunes(b []byte) int {
	for i := len(b) - 1; i >= 0 && i >= len(b)-utf8.UTFMax; i-- {
		if utf8.RuneStart(b[i]) {
			if !utf8.FullRune(b[i:]) {
				return i
			}
			break
		}
	}
	return len(b)
}

// A quoter writes pieces of text as the inside of one string of JSON, or of
// YAML between double quotes. A character may be cut between pieces.
type quoter struct {
	w    io.Writer
	yaml bool
	rest []byte
}

func (q *quoter) Write(b []byte) (int, error) {
	q.rest = append(q.rest, b...)
	n := wholeRunes(q.rest)
	err := q.put(q.rest[:n])
	q.rest = append(q.rest[:0], q.rest[n:]...)
	return len(b), err
}

func (q *quoter) Close() error { return q.put(q.rest) }

func (q *quoter) put(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	quoted, err := encode(string(text), "", "")
	if err != nil {
		return err
	}
	inside := quoted[1 : len(quoted)-2] // without the quotes and the line break
	if q.yaml {
		inside = escapeForYAML(inside)
	}
	_, err = q.w.Write(inside)
	return err
}
