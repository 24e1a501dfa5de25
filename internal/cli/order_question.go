package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/methods/onsite"
	"github.com/musterfleet/muster/internal/order"
	"github.com/musterfleet/muster/internal/participant"
)

// A question is a method with what it is asked for. Files are moved in pieces,
// which are queries that follow one another.
type question struct {
	method string
	args   [][]byte // one query for each
	path   string   // of get: asked until every file is whole
	urls   []string // of broker: see signed
}

// questions are the forms of 'query METHOD ARGS', for help and for errors.
var questions = []struct{ method, args, what string }{
	{"status", "", "what each machine and its agent are doing"},
	{"facts", "", "what is known of each machine"},
	{"logs", "[UNIT] [LINES]", "the last lines of the journal"},
	{"service", "ACTION UNIT", "status, start, stop, restart or reload of a unit"},
	{"broker", "[URL ..]", "show, or replace, the addresses of the broker"},
	{"script", "TEXT", "run a script with /bin/sh"},
	{"get", "PATH", "print a file, at most 1 MiB"},
	{"put", "FILE PATH [MODE]", "write a file, at most 1 MiB"},
}

// parseQuestion reads METHOD ARGS.
func parseQuestion(words []string) (question, error) {
	method, args := words[0], words[1:]
	one := func(args []byte) (question, error) { return question{method: method, args: [][]byte{args}}, nil }
	switch n := len(args); {
	case method == "status" && n == 0, method == "facts" && n == 0:
		return one(nil)
	case method == "logs" && n <= 2:
		return logsQuestion(args)
	case method == "service" && n == 2:
		return one(onsite.Service{Action: args[0], Unit: args[1]}.Encode())
	case method == "broker" && n <= onsite.MaxURLs:
		return question{method: method, args: [][]byte{onsite.Broker{URLs: args}.Encode()}, urls: args}, nil
	case method == "script" && n == 1:
		return one(onsite.Script{Script: args[0]}.Encode())
	case method == "get" && n == 1:
		return question{method: method, path: args[0]}, nil
	case method == "put" && (n == 2 || n == 3):
		return putQuestion(args)
	}
	return question{}, badQuestion(method)
}

func badQuestion(method string) error {
	var names []string
	for _, q := range questions {
		if q.method == method {
			if q.args == "" {
				return usagef(nil, "query %s takes no arguments", method)
			}
			return usagef(nil, "query %s takes %s: %s", method, q.args, q.what)
		}
		names = append(names, q.method)
	}
	e := usagef(nil, "there is no method %q; expected %s", method, strings.Join(names, ", "))
	if near := nearest(method, names); near != "" {
		e.hint = "did you mean " + near + "?"
	}
	return e
}

// logsQuestion reads [UNIT] [LINES].
func logsQuestion(args []string) (question, error) {
	var l onsite.Logs
	if n := len(args); n > 0 {
		if lines, err := strconv.Atoi(args[n-1]); err == nil {
			if lines < 1 || lines > onsite.MaxLines {
				return question{}, usagef(nil, "logs has 1 to %d lines", onsite.MaxLines)
			}
			l.Lines, args = lines, args[:n-1]
		} else if n == 2 {
			return question{}, usagef(nil, "%q is no number of lines", args[1])
		}
	}
	if len(args) == 1 {
		l.Unit = args[0]
	}
	return question{method: "logs", args: [][]byte{l.Encode()}}, nil
}

// putQuestion reads FILE PATH [MODE].
func putQuestion(args []string) (question, error) {
	mode := uint64(0o644)
	if len(args) == 3 {
		var err error
		if mode, err = strconv.ParseUint(args[2], 8, 9); err != nil {
			return question{}, usagef(nil, "%q is no mode; expected one as 0644", args[2])
		}
	}
	f, err := os.Open(args[0])
	if err != nil {
		return question{}, muster.Errorf(muster.NotFound, "read the file: %w", err).WithHint("the file is one of this machine, the path behind it one of the others")
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, onsite.MaxFile+1))
	if err != nil {
		return question{}, muster.Errorf(muster.Unavailable, "read the file: %w", err).WithHint("is it a file, and no folder?")
	}
	all, err := onsite.Puts(args[1], uint32(mode), content)
	q := question{method: "put"}
	for _, p := range all {
		q.args = append(q.args, p.Encode())
	}
	return q, err
}

func runQuestion(argv []string) question {
	return question{method: "script", args: [][]byte{onsite.Script{Argv: argv}.Encode()}}
}

// A memberAnswer is what became of a query on one member.
type memberAnswer struct {
	ID     string        `json:"id"`
	Node   string        `json:"node"`
	Method string        `json:"method"`
	Code   string        `json:"code"` // ok, failed, denied, or why there is no answer
	Took   time.Duration `json:"-"`
	TookMS int64         `json:"took_ms"`
	Error  *muster.Error `json:"error,omitempty"`
	Result any           `json:"result,omitempty"` // as the method's result has it, but for that of a program:

	ExitCode     *int    `json:"exit_code,omitempty"`
	Stdout       *string `json:"stdout,omitempty"`
	StdoutBase64 []byte  `json:"stdout_base64,omitempty"` // where it is not text
	Stderr       *string `json:"stderr,omitempty"`
	StderrBase64 []byte  `json:"stderr_base64,omitempty"`
	Truncated    bool    `json:"truncated,omitempty"` // the beginning is missing

	who    participant.Who
	output onsite.Output
	chunk  onsite.Chunk
	failed bool
}

// codeWords are codes in JSON and tables.
func codeWord(c order.Code) string {
	words := map[order.Code]string{
		order.OK: "ok", order.Busy: "busy", order.Clock: "clock", order.Refused: "refused", order.NotMember: "not_member",
		order.Unknown: "unknown_order", order.NotSelected: "not_selected", order.Stale: "stale", order.Denied: "denied",
		order.Failed: "failed", order.Late: "late", order.NoAnswer: "no_answer",
	}
	if word, ok := words[c]; ok {
		return word
	}
	return "code_" + strconv.Itoa(int(c))
}

// answerOf makes the answer of a member readable.
func answerOf(method string, a participant.Answer, took time.Duration) memberAnswer {
	m := memberAnswer{ID: a.ID.String(), Method: method, Code: codeWord(a.Code), Took: took, TookMS: took.Milliseconds(), who: a.Who, failed: a.Code != order.OK}
	got, err := onsite.DecodeAnswer(a.Data)
	if err != nil {
		return m.bad(err)
	}
	if got.Node != "" {
		m.who.Name = got.Node
	}
	m.Node = m.who.Label()
	if got.Message != "" {
		kind := muster.Failed
		if a.Code == order.Denied {
			kind = muster.Denied
		}
		m.Error = &muster.Error{Kind: kind, Message: got.Message, Hint: got.Hint}
	}
	if len(got.Result) == 0 {
		return m
	}
	if err := m.decode(got.Result); err != nil {
		return m.bad(err)
	}
	return m
}

func (m memberAnswer) bad(err error) memberAnswer {
	m.Node, m.failed, m.Error = m.who.Label(), true, muster.AsError(muster.Corrupt, err)
	return m
}

func (m *memberAnswer) decode(result []byte) (err error) {
	switch m.Method {
	case "status":
		m.Result, err = onsite.DecodeStatus(result)
	case "facts":
		m.Result, err = onsite.DecodeFacts(result)
	case "broker":
		m.Result, err = onsite.DecodeBroker(result)
	case "put":
		m.Result, err = onsite.DecodeWritten(result)
	case "get":
		m.chunk, err = onsite.DecodeChunk(result)
	default:
		m.output, err = onsite.DecodeOutput(result)
		m.setOutput()
	}
	return err
}

// textOrBytes returns a text, or bytes that are none.
func textOrBytes(b []byte) (*string, []byte) {
	if !utf8.Valid(b) {
		return nil, b
	}
	s := string(b)
	return &s, nil
}

// setOutput fills in the fields for what a program wrote.
func (m *memberAnswer) setOutput() {
	code := m.output.ExitCode
	m.ExitCode, m.Truncated = &code, m.output.Truncated
	m.Stdout, m.StdoutBase64 = textOrBytes(m.output.Stdout)
	m.Stderr, m.StderrBase64 = textOrBytes(m.output.Stderr)
	if m.output.TimedOut && m.Error == nil {
		m.Error = muster.Errorf(muster.TimedOut, "it was ended after %s", short(m.output.Duration))
	}
	// A unit that does not run is what 'service status' was to find out.
	m.failed = m.failed || m.output.TimedOut || m.Method == "script" && code != 0
}

// silentAnswer is that of a member that gave none.
func silentAnswer(method string, w participant.Who) memberAnswer {
	return memberAnswer{ID: w.ID.String(), Node: w.Label(), Method: method, Code: codeWord(w.Code), who: w, failed: true,
		Error: muster.Errorf(muster.TimedOut, "%s", w.Code.String())}
}

// state is a word for what became of the query, and its colour.
func (m memberAnswer) state() cell {
	switch {
	case !m.failed:
		return cell{"done", green}
	case m.Code == "ok":
		return cell{"failed", red}
	}
	return cell{strings.ReplaceAll(m.Code, "_", " "), red}
}

func (m memberAnswer) reason() string {
	if m.Error == nil {
		return ""
	}
	return m.Error.Message
}

// printLines prints an answer while others are awaited, each line behind the
// name of its machine.
func (p *program) printLines(m memberAnswer, pad int) {
	prefix := func(on terminal) string {
		return on.paint(nodeColor(m.Node), clean(m.Node)) + strings.Repeat(" ", max(0, pad-len(m.Node))) + " | "
	}
	lines := func(w io.Writer, on terminal, text string) {
		for line := range strings.Lines(text) {
			line = strings.TrimRight(line, "\r\n")
			if on.is {
				line = cleanLine(line, on.color)
			}
			fmt.Fprintf(w, "%s%s\n", prefix(on), line)
		}
	}
	if m.Truncated {
		fmt.Fprintf(p.stderr, "%s(the beginning is missing)\n", prefix(p.errTerm))
	}
	lines(p.stdout, p.outTerm, string(m.output.Stdout))
	lines(p.stderr, p.errTerm, string(m.output.Stderr))
	if facts, ok := m.Result.(map[string]any); ok && m.Method == "facts" {
		for _, key := range slices.Sorted(maps.Keys(facts)) {
			lines(p.stdout, p.outTerm, key+" = "+factText(facts[key]))
		}
	}
}

func factText(v any) string {
	if s, ok := v.(string); ok {
		return clean(s)
	}
	b, err := json.Marshal(v)
	if err != nil {
		return clean(fmt.Sprint(v))
	}
	return string(b)
}

// answerTable shows all answers to a question.
func (p *program) answerTable(method string, all []memberAnswer) *table {
	switch method {
	case "status":
		return p.statusAnswers(all)
	case "broker":
		t := newTable("NODE", "STATE", "BROKER", "REASON")
		for _, m := range all {
			b, _ := m.Result.(onsite.Broker) // zero where there is none
			t.row(m.Node, m.state(), strings.Join(b.URLs, " "), m.reason())
		}
		return t
	}
	t := newTable("NODE", "STATE", "EXIT", "TIME", "REASON")
	for _, m := range all {
		exit := ""
		if m.ExitCode != nil {
			exit = strconv.Itoa(*m.ExitCode)
		}
		took := ""
		if m.Took > 0 {
			took = short(m.Took)
		}
		t.row(m.Node, m.state(), exit, took, m.reason())
	}
	return t
}

func (p *program) statusAnswers(all []memberAnswer) *table {
	t := newTable("NODE", "STATE", "UNTIL", "PROGRAM", "UP", "BROKER", "PROBLEMS")
	for _, m := range all {
		s, ok := m.Result.(onsite.Status)
		if !ok {
			t.row(m.Node, m.state(), "", "", "", "", m.reason())
			continue
		}
		until := ""
		if !s.Until.IsZero() {
			until = clock(s.Until)
		}
		t.row(m.Node, s.State, until, s.Program, short(s.Uptime), strings.Join(s.Broker, " "), strings.Join(s.Problems, "; "))
	}
	return t
}

// saveFile writes what get brought under dir, in a folder for each machine.
func saveFile(dir string, m memberAnswer, path string) (string, error) {
	name := strings.Map(func(r rune) rune {
		if r == '/' || r == '\\' || control(r) {
			return '_'
		}
		return r
	}, m.Node)
	if name == "." || name == ".." {
		name = m.ID // a name must not lead out of the folder
	}
	to := filepath.Join(dir, name, filepath.Base(path))
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return "", muster.Errorf(muster.Unavailable, "make a folder for the file: %w", err)
	}
	if err := os.WriteFile(to, m.output.Stdout, 0o600); err != nil {
		return "", muster.Errorf(muster.Unavailable, "write the file: %w", err)
	}
	return to, nil
}
