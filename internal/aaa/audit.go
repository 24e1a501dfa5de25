package aaa

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/musterfleet/muster"
)

// A Verdict is what a node decided about a frame.
type Verdict string

// The verdicts.
const (
	Allowed     Verdict = "allowed"
	Denied      Verdict = "denied"      // by validation, rights or policy; the caller is known
	Unauthentic Verdict = "unauthentic" // nobody answers for it; what the record says of the command is hearsay
	Replayed    Verdict = "replayed"    // its id was seen before
)

// Limits of audit lines.
const (
	MaxAuditInput = 4 << 10  // bytes of input that are kept
	MaxAuditLine  = 64 << 10 // bytes of a line; longer ones are not audit lines
	maxAuditText  = 256      // bytes of a short text
	maxReason     = 1 << 10  // bytes of a reason
)

// A Record is one decision of one node, as it stands in the audit log.
type Record struct {
	Time      time.Time        `json:"time"` // of the decision, by the node's clock
	Node      muster.NodeName  `json:"node"`
	Fleet     string           `json:"fleet"`
	ID        muster.CommandID `json:"id"`
	Caller    string           `json:"caller"`     // name
	CallerKey string           `json:"caller_key"` // nkey
	Method    muster.Method    `json:"method"`
	Input     json.RawMessage  `json:"input"` // see AuditLine
	Verdict   Verdict          `json:"decision"`
	Rule      string           `json:"rule"` // of the policy that decided, if any
	Reason    string           `json:"reason"`
	IssuedAt  time.Time        `json:"issued_at"`
	Deadline  time.Time        `json:"deadline"`
	Prev      string           `json:"prev"` // hex SHA-256 of the line before; set by AuditLine
}

// AuditLine returns the record as one line with its line break, and the hash
// that the next line needs as prev. Before the first line of a log, prev is
// zero. The lines form a chain: who changes, removes or inserts one in the
// middle breaks the link to the next. A change to the last line, which none
// follows, does not show within the log, nor does cutting off the end or writing
// all from some line on anew: compare with the events that the node published.
//
// The values that the paths in redact lead to are replaced (see [Redact]). An
// input that is larger than MaxAuditInput after that is replaced by
// {"truncated": bytes, "sha256": hex}, where the hash is of the redacted input
// so that it cannot be used to guess a secret. An input that cannot be read as
// JSON is replaced by {"unreadable": bytes}.
//
// Texts are cut to some hundred bytes. A line is always shorter than
// MaxAuditLine.
func AuditLine(prev [sha256.Size]byte, r Record, redact []string) (line []byte, next [sha256.Size]byte) {
	r.Prev = hex.EncodeToString(prev[:])
	r.Input = auditInput(r.Input, redact)
	for _, text := range []*string{(*string)(&r.Node), &r.Fleet, (*string)(&r.ID), &r.Caller, &r.CallerKey,
		(*string)(&r.Method), (*string)(&r.Verdict), &r.Rule} {
		*text = clip(*text, maxAuditText)
	}
	r.Reason = clip(r.Reason, maxReason)
	for _, t := range []*time.Time{&r.Time, &r.IssuedAt, &r.Deadline} {
		*t = writable(*t)
	}
	line, err := marshalPlain(r)
	if err != nil {
		// Each field was made writable above. A decision without its line would be
		// worse than this program ending.
		panic("aaa: audit record cannot be encoded: " + err.Error())
	}
	return append(line, '\n'), sha256.Sum256(line)
}

// AuditHash returns the hash of a line, with or without its line break: what
// the next line needs as prev when a log is continued.
func AuditHash(line []byte) [sha256.Size]byte {
	if n := len(line); n > 0 && line[n-1] == '\n' {
		line = line[:n-1]
	}
	return sha256.Sum256(line)
}

// writable returns t in UTC, or the zero time when RFC 3339 cannot express it.
func writable(t time.Time) time.Time {
	if t = t.UTC(); t.Year() < 0 || t.Year() > 9999 {
		return time.Time{}
	}
	return t
}

func auditInput(in json.RawMessage, redact []string) json.RawMessage {
	if len(in) == 0 {
		return json.RawMessage("null")
	}
	if checkNested(in, nil, 1) != nil {
		return note(map[string]any{"unreadable": len(in)})
	}
	var err error
	if len(redact) > 0 {
		if in, err = Redact(in, redact); err != nil {
			return json.RawMessage(`"` + redacted + `"`) // a wrong path: the safe side is all of it
		}
	} else if in, err = marshalPlain(in); err != nil { // compacts
		return note(map[string]any{"unreadable": len(in)})
	}
	if len(in) <= MaxAuditInput {
		return in
	}
	hash := sha256.Sum256(in)
	return note(map[string]any{"truncated": len(in), "sha256": hex.EncodeToString(hash[:])})
}

func note(m map[string]any) json.RawMessage {
	data, _ := json.Marshal(m) // numbers and text only
	return data
}

// An AuditCheck follows the chain through the files of an audit log, which are
// given to Read one after the other, the oldest first.
type AuditCheck struct {
	Lines       int  // that are in order so far
	Whole       bool // the first of them is the first of the log; else older files are missing
	First, Last time.Time
	Each        func(hash [sha256.Size]byte, r Record) // told of each line that is in order; may be nil

	prev [sha256.Size]byte
}

// Read checks the lines of one file. A last line that was changed and is still a
// record is in order until another follows (see [AuditLine]). The error names the first one of this file
// that is not in order; it has kind Corrupt, or Unavailable when reading
// failed. What follows that line is not looked at.
func (c *AuditCheck) Read(log io.Reader) error {
	r := bufio.NewReaderSize(log, MaxAuditLine)
	for n := 1; ; n++ {
		line, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil
		case errors.Is(err, io.EOF):
			return muster.Errorf(muster.Corrupt, "audit line %d is incomplete", n).
				WithHint("the node stopped while it wrote, or the end was cut off")
		case errors.Is(err, bufio.ErrBufferFull):
			return muster.Errorf(muster.Corrupt, "audit line %d is longer than %d bytes", n, MaxAuditLine)
		case err != nil:
			return muster.Errorf(muster.Unavailable, "read audit line %d: %w", n, err)
		}
		if err := c.take(line); err != nil {
			return muster.Errorf(muster.Corrupt, "audit line %d %w", n, err)
		}
	}
}

func (c *AuditCheck) take(line []byte) error {
	r, prev, err := ReadAuditLine(line)
	if err != nil {
		return err
	}
	if c.Lines == 0 {
		c.Whole, c.First = prev == [sha256.Size]byte{}, r.Time
	} else if prev != c.prev {
		return muster.Errorf(muster.Corrupt, "does not follow from the line before: it was changed, or lines were removed or inserted")
	}
	c.prev, c.Last = AuditHash(line), r.Time
	c.Lines++
	if c.Each != nil {
		c.Each(c.prev, r)
	}
	return nil
}

var recordShape = shapeOf[Record]()

// ReadAuditLine reads a line, with or without its line break, and the hash of
// the one before it. An error has kind Corrupt.
func ReadAuditLine(line []byte) (r Record, prev [sha256.Size]byte, err error) {
	if err := decodeStrict(line, recordShape, &r); err != nil {
		return Record{}, prev, muster.Errorf(muster.Corrupt, "is no audit record: %w", err)
	}
	hash, err := hex.DecodeString(r.Prev)
	if err != nil || len(hash) != len(prev) {
		return Record{}, prev, muster.Errorf(muster.Corrupt, "is no audit record: %q is not the hash of a line", clip(r.Prev, maxAuditText))
	}
	return r, [sha256.Size]byte(hash), nil
}
