package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// An outcome is a command as scripts see it: what a process wrote is text
// where it can be.
type outcome struct {
	ID           muster.CommandID    `json:"id"`
	Node         muster.NodeName     `json:"node"`
	Method       muster.Method       `json:"method"`
	Input        json.RawMessage     `json:"input,omitempty"`
	Caller       string              `json:"caller,omitempty"`
	Claimed      string              `json:"claimed_caller,omitempty"`
	State        muster.State        `json:"state"`
	Final        bool                `json:"final"`
	Reason       string              `json:"reason,omitempty"`
	Inferred     bool                `json:"inferred,omitempty"`
	ExitCode     *int                `json:"exit_code,omitempty"`
	Sent         time.Time           `json:"sent,omitzero"`
	Deadline     time.Time           `json:"deadline,omitzero"`
	Started      time.Time           `json:"started,omitzero"`
	Ended        time.Time           `json:"ended,omitzero"`
	Output       json.RawMessage     `json:"output,omitempty"`
	Stdout       *string             `json:"stdout,omitempty"`
	StdoutBase64 *string             `json:"stdout_base64,omitempty"` // where it is not text
	Stderr       *string             `json:"stderr,omitempty"`
	StderrBase64 *string             `json:"stderr_base64,omitempty"`
	OutputError  string              `json:"output_error,omitempty"`    // why output that there is is not in here
	Truncated    int64               `json:"truncated_bytes,omitempty"` // of both, dropped on the node
	Error        *muster.Error       `json:"error,omitempty"`
	Child        *muster.Child       `json:"child,omitempty"` // what an interrupted run left behind
	History      []muster.Transition `json:"history,omitempty"`
	NotSent      bool                `json:"not_sent,omitempty"` // a rolling send stopped before this node
}

// outcomeOf makes an outcome without stdout and stderr.
func outcomeOf(s client.Status) outcome {
	o := outcome{
		ID: s.ID, Node: s.Node, Method: s.Method, Input: s.Input, Caller: s.Caller, Claimed: s.Claimed,
		State: s.State, Final: s.State.Final(), Reason: reason(s), Inferred: s.Inferred,
		Sent: s.Sent, Deadline: s.Deadline, History: s.History,
	}
	o.Started, o.Ended = span(s)
	if r := s.Result; r != nil {
		o.ExitCode, o.Output, o.Error, o.Child = r.ExitCode, r.Output, r.Error, r.Child
		o.Truncated = r.Stdout.Truncated + r.Stderr.Truncated
	}
	return o
}

// readOutput writes a whole stream, from the report where it is in there.
func readOutput(ctx context.Context, c SDK, s client.Status, stream string, w io.Writer) error {
	out := s.Result.Stdout
	if stream == "stderr" {
		out = s.Result.Stderr
	}
	if int64(len(out.Inline)) == out.Size {
		_, err := w.Write(out.Inline)
		return err
	}
	if err := c.Output(ctx, s, stream, w); err != nil {
		return fmt.Errorf("%s of %s on %s: %w", stream, s.ID, s.Node, err)
	}
	return nil
}

// span returns when the last run began, and when the command came to its end.
func span(s client.Status) (started, ended time.Time) {
	for _, t := range s.History {
		if t.State == muster.Running {
			started = t.Time
		}
		if t.State.Final() {
			ended = t.Time
		}
	}
	return started, ended
}

func took(s client.Status) string {
	started, ended := span(s)
	if started.IsZero() || ended.IsZero() {
		return ""
	}
	return short(max(0, ended.Sub(started)))
}

// reason is the reason of the state, or what the method said.
func reason(s client.Status) string {
	r := s.Reason
	if r == "" && s.Result != nil && s.Result.Error != nil {
		r = s.Result.Error.Message
	}
	return r
}

func exitText(s client.Status) string {
	if s.Result == nil || s.Result.ExitCode == nil {
		return ""
	}
	return fmt.Sprint(*s.Result.ExitCode)
}

func stateCell(s muster.State) cell {
	color := ""
	switch s {
	case muster.Done:
		color = green
	case muster.Failure, muster.Refused, muster.Unknown:
		color = red
	case muster.Expired, muster.Cancelled:
		color = yellow
	default:
		color = cyan
	}
	return cell{string(s), color}
}

// codeOf returns the exit code for what became of commands. What failed
// outweighs what is pending, lest a script wait for a success that cannot come.
func codeOf(all []client.Status) int {
	var failed, denied, pending int
	for _, s := range all {
		switch {
		case s.State == muster.Done:
		case !s.State.Final(), s.State == muster.Expired:
			pending++
		case s.State == muster.Refused && s.Result != nil && s.Result.Error != nil && s.Result.Error.Kind == muster.Denied:
			denied++
		default:
			failed++
		}
	}
	switch {
	case failed == 0 && denied > 0 && denied == len(all):
		return ExitDenied
	case failed+denied > 0:
		return ExitFailed
	case pending > 0:
		return ExitPending
	}
	return ExitOK
}

// shortOutput is the size in bytes of what is shown under a row.
const shortOutput = 500

func outputNotes(t *table, s client.Status) {
	show := func(what string, size int64, text []byte) {
		switch {
		case size == 0:
		case size > shortOutput || int64(len(text)) != size:
			t.note(fmt.Sprintf("%s of %s: muster command show %s", plural(int(size), "byte"), what, muster.Key{ID: s.ID, Node: s.Node}))
		default:
			for line := range strings.Lines(string(text)) {
				t.note(strings.TrimRight(line, "\r\n"))
			}
		}
	}
	r := s.Result
	var value bytes.Buffer
	if json.Compact(&value, r.Output) != nil {
		value.Reset()
	}
	// What shell.run returns beside its streams is in the columns.
	if text := value.String(); text != "{}" && text != "null" && s.Method != "shell.run" {
		show("output", int64(value.Len()), value.Bytes())
	}
	show("stdout", r.Stdout.Size, r.Stdout.Inline)
	show("stderr", r.Stderr.Size, r.Stderr.Inline)
}

// commandTable shows one command on each line, with the reason of its state below.
func (p *program) commandTable(all []client.Status) *table {
	t := newTable("ID", "NODE", "METHOD", "STATE", "EXIT", "SENT", "TOOK")
	t.whole = "ID"
	for _, s := range all {
		t.row(s.ID, s.Node, s.Method, stateCell(s.State), exitText(s), ago(p.now(), s.Sent), took(s))
		if r := reason(s); r != "" {
			t.note(r)
		}
	}
	return t
}

// summaryTable shows what became of one send; with output, also what came of
// it where that is short.
func summaryTable(all []client.Status, notSent []muster.NodeName, output bool) *table {
	t := newTable("NODE", "STATE", "EXIT", "TIME", "REASON")
	t.wraps = true
	for _, s := range all {
		t.row(s.Node, stateCell(s.State), exitText(s), took(s), reason(s))
		if output && s.Result != nil {
			outputNotes(t, s)
		}
	}
	for _, n := range notSent {
		t.row(n, cell{"not sent", dim}, "", "", "the rolling send stopped before this node")
	}
	return t
}
