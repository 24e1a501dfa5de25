package onsite

import (
	"crypto/sha256"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/cbor"
)

// Limits of arguments and results.
const (
	MaxFile    = 1 << 20  // bytes of a file that put and get move
	MaxPut     = 14 << 10 // bytes of one piece that put takes
	MaxGet     = 30 << 10 // bytes of one piece that get yields
	MaxStream  = 15 << 10 // bytes kept of stdout, and of stderr: the last ones
	MaxURLs    = 8
	maxSigned  = 1024 // bytes of a hint that an operator has signed
	MaxLines   = 2000 // of logs
	maxPath    = 4096
	maxName    = 256
	maxMessage = 1 << 10
	maxHint    = 512
	maxScript  = 15 << 10
	maxArgs    = 256
	maxResult  = 30<<10 + 64 // with the rest of an answer less than order.MaxResult
	maxProblem = 32
)

const version = 0

// An Answer is what every method yields.
type Answer struct {
	Node    string `json:"node"`
	Message string `json:"message,omitempty"` // why it was denied or failed
	Hint    string `json:"hint,omitempty"`
	Result  []byte `json:"-"` // encoded, none if there is none
}

// Status is the result of status.
type Status struct {
	Node     string        `json:"node"`
	Program  string        `json:"program"` // and its version
	State    string        `json:"state"`
	Order    string        `json:"order,omitempty"`
	Until    time.Time     `json:"until,omitzero"` // when the Order's lease ends
	Uptime   time.Duration `json:"uptime"`         // of the program
	Broker   []string      `json:"broker"`
	Problems []string      `json:"problems"`
}

// Logs are the arguments of logs: the last lines of a unit, or of all.
type Logs struct {
	Unit  string `json:"unit"`
	Lines int    `json:"lines"` // default 100
}

// Service are the arguments of service.
type Service struct {
	Unit   string `json:"unit"`
	Action string `json:"action"` // status, start, stop, restart or reload
}

// Broker is argument and result of broker. Without addresses it asks.
type Broker struct {
	URLs []string `json:"urls"`
	Hint []byte   `json:"-"` // of an argument: tells newcomers of the addresses, signed
}

// Script are the arguments of script: either a program with its arguments, or a
// script for /bin/sh.
type Script struct {
	Argv    []string      `json:"argv,omitempty"`
	Script  string        `json:"script,omitempty"`
	Stdin   []byte        `json:"stdin,omitempty"`
	Timeout time.Duration `json:"timeout"` // default: as long as the query has
}

// Output is the result of logs, service and script.
type Output struct {
	ExitCode  int           `json:"exit_code"` // -1 if it was ended by a signal
	Stdout    []byte        `json:"stdout"`
	Stderr    []byte        `json:"stderr"`
	Truncated bool          `json:"truncated,omitempty"` // the beginning is missing
	TimedOut  bool          `json:"timed_out,omitempty"`
	Duration  time.Duration `json:"duration"`
}

// Get are the arguments of get.
type Get struct {
	Path   string `json:"path"`
	Offset int64  `json:"offset"`
	Length int    `json:"length"` // at most MaxGet, which is the default
}

// Chunk is the result of get. Size and Mode are the whole file's.
type Chunk struct {
	Size int64  `json:"size"`
	Mode uint32 `json:"mode"`
	Data []byte `json:"data"`
}

// Put are the arguments of put. A file that has Size bytes and the hash appears
// under its name with the last piece.
type Put struct {
	Path   string   `json:"path"`
	Mode   uint32   `json:"mode"` // permissions
	Size   int64    `json:"size"`
	Hash   [32]byte `json:"-"` // SHA-256
	Offset int64    `json:"offset"`
	Data   []byte   `json:"data"`
}

// Written is the result of put.
type Written struct {
	Bytes int64 `json:"bytes"` // so far
	Done  bool  `json:"done"`
}

// Puts cuts a file into the arguments of as many calls of put, which have to
// follow one another. The error is of kind Full when the file is too long.
func Puts(path string, mode uint32, content []byte) ([]Put, error) {
	if len(content) > MaxFile {
		return nil, muster.Errorf(muster.Full, "the file has %d bytes; %d are possible", len(content), MaxFile)
	}
	p := Put{Path: path, Mode: mode, Size: int64(len(content)), Hash: sha256.Sum256(content)}
	var all []Put
	for {
		n := min(MaxPut, len(content))
		p.Data = content[:n]
		all = append(all, p)
		p.Offset += int64(n)
		if content = content[n:]; len(content) == 0 {
			return all, nil
		}
	}
}

func begin(n int) []byte { return cbor.AppendUint(cbor.AppendArray(nil, n+1), version) }

// reading takes the head off; a later version with more elements is refused.
func reading(data []byte, n int) *cbor.Reader {
	r := cbor.NewReader(data)
	r.Array(n + 1)
	r.UintUpTo(version)
	return r
}

func end[T any](r *cbor.Reader, what string, v T) (T, error) {
	if !r.End() {
		var none T
		return none, muster.Errorf(muster.Invalid, "%s cannot be read", what).WithHint("does the other side have another version of muster?")
	}
	return v, nil
}

func appendDuration(b []byte, d time.Duration) []byte {
	return cbor.AppendUint(b, uint64(max(d, 0)/time.Millisecond))
}

func readDuration(r *cbor.Reader) time.Duration {
	return time.Duration(r.UintUpTo(1<<40)) * time.Millisecond
}

// Encode returns the encoded answer, with a message that is cut if it is long.
func (a Answer) Encode() []byte {
	b := cbor.AppendText(begin(4), cut(a.Node, maxName))
	b = cbor.AppendText(b, cut(a.Message, maxMessage))
	b = cbor.AppendText(b, cut(a.Hint, maxHint))
	return cbor.AppendBytes(b, a.Result)
}

// DecodeAnswer reads an answer.
func DecodeAnswer(data []byte) (Answer, error) {
	r := reading(data, 4)
	return end(r, "the answer", Answer{r.Text(maxName), r.Text(maxMessage), r.Text(maxHint), r.Bytes(maxResult)})
}

// Encode returns the encoded status.
func (s Status) Encode() []byte {
	b := begin(8)
	for _, text := range []string{s.Node, s.Program, s.State, s.Order} {
		b = cbor.AppendText(b, cut(text, maxName))
	}
	until := int64(0)
	if !s.Until.IsZero() {
		until = s.Until.UnixMilli()
	}
	b = appendDuration(cbor.AppendInt(b, until), s.Uptime)
	b = cbor.AppendTexts(b, cutAll(s.Broker, MaxURLs, maxName))
	return cbor.AppendTexts(b, cutAll(s.Problems, maxProblem, maxName))
}

// DecodeStatus reads the result of status.
func DecodeStatus(data []byte) (Status, error) {
	r := reading(data, 8)
	s := Status{Node: r.Text(maxName), Program: r.Text(maxName), State: r.Text(maxName), Order: r.Text(maxName)}
	if ms := r.Int(); ms != 0 {
		s.Until = time.UnixMilli(ms)
	}
	s.Uptime = readDuration(r)
	s.Broker, s.Problems = r.Texts(MaxURLs, maxName), r.Texts(maxProblem, maxName)
	return end(r, "the status", s)
}

// EncodeFacts returns encoded facts.
func EncodeFacts(facts map[string]any) []byte { return cbor.AppendValue(begin(1), facts) }

// DecodeFacts reads the result of facts.
func DecodeFacts(data []byte) (map[string]any, error) {
	r := reading(data, 1)
	facts, ok := r.Value().(map[string]any)
	if !ok {
		r.Fail()
	}
	return end(r, "the facts", facts)
}

// Encode returns the encoded arguments.
func (l Logs) Encode() []byte {
	return cbor.AppendUint(cbor.AppendText(begin(2), l.Unit), uint64(max(l.Lines, 0)))
}

// DecodeLogs reads the arguments of logs.
func DecodeLogs(data []byte) (Logs, error) {
	r := reading(data, 2)
	return end(r, "the arguments of logs", Logs{r.Text(maxName), int(r.UintUpTo(MaxLines))})
}

// Encode returns the encoded arguments.
func (s Service) Encode() []byte {
	return cbor.AppendText(cbor.AppendText(begin(2), s.Unit), s.Action)
}

// DecodeService reads the arguments of service.
func DecodeService(data []byte) (Service, error) {
	r := reading(data, 2)
	return end(r, "the arguments of service", Service{r.Text(maxName), r.Text(maxName)})
}

// Encode returns the encoded addresses.
func (x Broker) Encode() []byte {
	return cbor.AppendBytes(cbor.AppendTexts(begin(2), x.URLs), x.Hint)
}

// DecodeBroker reads arguments or result of broker.
func DecodeBroker(data []byte) (Broker, error) {
	r := reading(data, 2)
	return end(r, "the broker's addresses", Broker{r.Texts(MaxURLs, maxName), r.Bytes(maxSigned)})
}

// Encode returns the encoded arguments.
func (s Script) Encode() []byte {
	b := cbor.AppendText(cbor.AppendTexts(begin(4), s.Argv), s.Script)
	return appendDuration(cbor.AppendBytes(b, s.Stdin), s.Timeout)
}

// DecodeScript reads the arguments of script.
func DecodeScript(data []byte) (Script, error) {
	r := reading(data, 4)
	return end(r, "the arguments of script", Script{r.Texts(maxArgs, maxScript), r.Text(maxScript), r.Bytes(maxScript), readDuration(r)})
}

// Encode returns the encoded output.
func (o Output) Encode() []byte {
	b := cbor.AppendInt(begin(6), int64(o.ExitCode))
	b = cbor.AppendBytes(cbor.AppendBytes(b, o.Stdout), o.Stderr)
	b = cbor.AppendBool(cbor.AppendBool(b, o.Truncated), o.TimedOut)
	return appendDuration(b, o.Duration)
}

// DecodeOutput reads the result of logs, service or script.
func DecodeOutput(data []byte) (Output, error) {
	r := reading(data, 6)
	return end(r, "the output", Output{int(r.Int()), r.Bytes(MaxStream), r.Bytes(MaxStream), r.Bool(), r.Bool(), readDuration(r)})
}

// Encode returns the encoded arguments.
func (g Get) Encode() []byte {
	b := cbor.AppendText(begin(3), g.Path)
	return cbor.AppendUint(cbor.AppendUint(b, uint64(max(g.Offset, 0))), uint64(max(g.Length, 0)))
}

// DecodeGet reads the arguments of get.
func DecodeGet(data []byte) (Get, error) {
	r := reading(data, 3)
	return end(r, "the arguments of get", Get{r.Text(maxPath), int64(r.UintUpTo(MaxFile)), int(r.UintUpTo(MaxGet))})
}

// Encode returns the encoded piece.
func (c Chunk) Encode() []byte {
	b := cbor.AppendUint(cbor.AppendUint(begin(3), uint64(max(c.Size, 0))), uint64(c.Mode))
	return cbor.AppendBytes(b, c.Data)
}

// DecodeChunk reads the result of get.
func DecodeChunk(data []byte) (Chunk, error) {
	r := reading(data, 3)
	return end(r, "the piece of a file", Chunk{int64(r.UintUpTo(MaxFile)), uint32(r.UintUpTo(0o7777)), r.Bytes(MaxGet)})
}

// Encode returns the encoded arguments.
func (p Put) Encode() []byte {
	b := cbor.AppendText(begin(6), p.Path)
	b = cbor.AppendUint(cbor.AppendUint(b, uint64(p.Mode)), uint64(max(p.Size, 0)))
	b = cbor.AppendUint(cbor.AppendBytes(b, p.Hash[:]), uint64(max(p.Offset, 0)))
	return cbor.AppendBytes(b, p.Data)
}

// DecodePut reads the arguments of put.
func DecodePut(data []byte) (Put, error) {
	r := reading(data, 6)
	p := Put{Path: r.Text(maxPath), Mode: uint32(r.UintUpTo(0o777)), Size: int64(r.UintUpTo(MaxFile))}
	r.Fixed(p.Hash[:])
	p.Offset, p.Data = int64(r.UintUpTo(MaxFile)), r.Bytes(MaxPut)
	if p.Offset+int64(len(p.Data)) > p.Size {
		r.Fail()
	}
	return end(r, "the arguments of put", p)
}

// Encode returns the encoded result.
func (w Written) Encode() []byte {
	return cbor.AppendBool(cbor.AppendUint(begin(2), uint64(max(w.Bytes, 0))), w.Done)
}

// DecodeWritten reads the result of put.
func DecodeWritten(data []byte) (Written, error) {
	r := reading(data, 2)
	return end(r, "the result of put", Written{int64(r.UintUpTo(MaxFile)), r.Bool()})
}

// cut bounds a text, also after what is not UTF-8 in it has been replaced.
func cut(s string, most int) string {
	if len(s) <= most/3 {
		return s // U+FFFD has three bytes
	}
	s = string([]rune(s))
	if len(s) <= most {
		return s
	}
	s = s[:most-3]
	for len(s) > 0 && s[len(s)-1]&0xc0 == 0x80 {
		s = s[:len(s)-1]
	}
	if len(s) > 0 && s[len(s)-1] >= 0xc0 {
		s = s[:len(s)-1]
	}
	return s + "…"
}

func cutAll(list []string, n, most int) []string {
	var all []string
	for _, s := range list[:min(len(list), n)] {
		all = append(all, cut(s, most))
	}
	return all
}
