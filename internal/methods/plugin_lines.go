package methods

import (
	"bytes"
	"encoding/json"
	"io"
	"regexp"
	"slices"

	"github.com/musterfleet/muster"
)

// maxLine is the longest line of a plug-in that is read as a message, in bytes
// without the line feed.
const maxLine = 1 << 20

// messageStart tells a message that is too long from other long lines.
var messageStart = regexp.MustCompile(`^\s*\{\s*"(stdout|stderr|output|error)"\s*:`)

// pluginLines takes the standard output of a plug-in apart. It is not safe for
// use by several goroutines. After close, output and failure are what the
// plug-in reported.
type pluginLines struct {
	stdout, stderr io.Writer

	output  json.RawMessage // nil for none
	failure *muster.Error   // nil for none

	line    []byte // begun, but not ended so far; at most maxLine
	through bool   // the line is too long, and passed through up to its end
	clipped bool   // a line that looked like a message was too long
}

var _ io.Writer = (*pluginLines)(nil)

// Write takes a piece of output, which may end anywhere. An error is one of
// the writer that the piece was passed to.
func (p *pluginLines) Write(b []byte) (int, error) {
	total := len(b)
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n') + 1
		piece := b
		if end > 0 {
			piece = b[:end]
		}
		b = b[len(piece):]
		if err := p.take(piece, end > 0); err != nil {
			return 0, err
		}
	}
	return total, nil
}

// take adds a piece to the current line; ended says that it ends there.
func (p *pluginLines) take(piece []byte, ended bool) error {
	size := len(p.line) + len(piece)
	if ended {
		size--
	}
	if !p.through && size <= maxLine {
		p.line = append(p.line, piece...)
		if !ended {
			return nil
		}
		return p.endLine()
	}
	if !p.through {
		p.through = true
		p.clipped = p.clipped || messageStart.Match(slices.Concat(p.line, piece))
		if err := p.flush(); err != nil {
			return err
		}
	}
	p.through = !ended
	_, err := p.stdout.Write(piece)
	return err
}

// flush passes the line begun on as it is.
func (p *pluginLines) flush() error {
	line := p.line
	p.line = p.line[:0]
	if len(line) == 0 {
		return nil
	}
	_, err := p.stdout.Write(line)
	return err
}

// endLine does what a complete line says, or passes it on.
func (p *pluginLines) endLine() error {
	m, ok := parseLine(p.line)
	if !ok {
		return p.flush()
	}
	p.line = p.line[:0]
	switch {
	case m.stdout != "":
		_, err := io.WriteString(p.stdout, m.stdout)
		return err
	case m.stderr != "":
		_, err := io.WriteString(p.stderr, m.stderr)
		return err
	case m.output != nil:
		p.output = m.output
	case m.failure != nil:
		p.failure = m.failure
	}
	return nil
}

// close takes the rest, which may be a line without its end. It fails when a
// message was too long to be read: what it said is missing.
func (p *pluginLines) close() error {
	if err := p.endLine(); err != nil {
		return muster.Errorf(muster.Internal, "output of plug-in: %w", err)
	}
	if p.clipped {
		return muster.Errorf(muster.Failed, "plug-in printed a line of more than %d bytes that begins like a message", maxLine).
			WithHint("split large text over several messages")
	}
	return nil
}

// A pluginMessage is one line of a plug-in. One field is set, or none for a
// message without text.
type pluginMessage struct {
	stdout, stderr string
	output         json.RawMessage
	failure        *muster.Error
}

// parseLine reads a message: an object with exactly one key that is known, and
// a value of the right type.
func parseLine(line []byte) (m pluginMessage, ok bool) {
	if !bytes.HasPrefix(bytes.TrimSpace(line), []byte("{")) {
		return m, false
	}
	// A map, unlike a struct, is exact about upper and lower case.
	var object map[string]json.RawMessage
	if json.Unmarshal(line, &object) != nil || len(object) != 1 {
		return m, false
	}
	for key, value := range object {
		switch key {
		case "stdout":
			ok = unmarshalText(value, &m.stdout)
		case "stderr":
			ok = unmarshalText(value, &m.stderr)
		case "output":
			m.output, ok = bytes.Clone(value), string(value) != "null"
		case "error":
			m.failure = parseFailure(value)
			ok = m.failure != nil
		}
	}
	return m, ok
}

// unmarshalText is strict: json takes null for a string.
func unmarshalText(value json.RawMessage, to *string) bool {
	return value[0] == '"' && json.Unmarshal(value, to) == nil
}

// parseFailure returns nil when the value is no error. A kind that only the
// agent can know, or that nobody does, becomes Failed.
func parseFailure(value json.RawMessage) *muster.Error {
	var e muster.Error
	if value[0] != '{' || json.Unmarshal(value, &e) != nil {
		return nil
	}
	switch e.Kind {
	case muster.Invalid, muster.Denied, muster.NotFound, muster.Conflict, muster.Full,
		muster.Unavailable, muster.TimedOut, muster.Corrupt, muster.Unsupported:
	default:
		e.Kind = muster.Failed
	}
	if e.Message == "" {
		e.Message = "the plug-in failed without saying why"
	}
	return &e
}
