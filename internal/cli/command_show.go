package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

func (p *program) commandShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID[@NODE]",
		Short: "Show a command: each state with its time, exit code and output",
		Long: `Show a command, or all commands of a send: each state with its time, the exit
code, and stdout and stderr apart and whole. Output may have any size; with -o
json, jsonl and yaml what is large goes through a temporary file in TMPDIR,
since it has to be known whether it is text: what is not is in stdout_base64.
Output that cannot be had is told in output_error; the exit code is 1 then.`,
		Example: `  muster command show 01JD3Z5K8QX0V9M4T7RC2HNWBE
  muster command show 01JD3Z5K8QX0V9M4T7RC2HNWBE@web1
  muster command show 01JD3Z5K8QX0V9M4T7RC2HNWBE@web1 -o json | jq '.[0].stdout'`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeCommands,
		RunE: keyed(func(cmd *cobra.Command, key muster.Key) error {
			return p.with(cmd.Context(), func(ctx context.Context, c SDK) error {
				quick, cancel := context.WithTimeout(ctx, patience)
				defer cancel()
				all, err := commandsOf(quick, c, key)
				if err != nil {
					return err
				}
				if p.format != "table" {
					return p.outcomes(ctx, c, all)
				}
				for i, s := range all {
					if i > 0 {
						fmt.Fprintln(p.stdout)
					}
					if err := p.commandText(ctx, c, s); err != nil {
						return err
					}
				}
				return nil
			})
		}),
	}
}

// A record prints what is known of a command, a field on a line.
type record struct {
	w  io.Writer
	on terminal
}

func (r record) field(name, value string) {
	if value != "" {
		fmt.Fprintln(r.w, wrap(fmt.Sprintf("%-9s %s", name, clean(value)), r.on.width, 10))
	}
}

// data prints what is to be copied, and so in one piece.
func (r record) data(name string, value []byte) {
	if len(value) > 0 {
		fmt.Fprintf(r.w, "%-9s %s\n", name, clean(string(value)))
	}
}

func (r record) history(all []muster.Transition) {
	fmt.Fprintln(r.w, "history")
	for _, t := range all {
		line := fmt.Sprintf("  %s  %-9s", stamp(t.Time), t.State)
		if t.Attempt > 1 {
			line += fmt.Sprintf("  attempt %d", t.Attempt)
		}
		if t.Reason != "" {
			line += "  " + clean(t.Reason)
		}
		fmt.Fprintln(r.w, wrap(strings.TrimRight(line, " "), r.on.width, 4))
	}
}

func (r record) leftOver(c *muster.Child) {
	if c == nil {
		return
	}
	more := ""
	if c.Ended > 1 {
		more = fmt.Sprintf(", and %d more", c.Ended-1)
	}
	r.field("left over", fmt.Sprintf("process %d, started %s%s, ended by the next agent", c.PID, stamp(c.Started), more))
}

func (p *program) commandText(ctx context.Context, c SDK, s client.Status) error {
	r := record{p.stdout, p.outTerm}
	r.field("command", muster.Key{ID: s.ID, Node: s.Node}.String())
	r.field("method", string(s.Method))
	r.data("input", s.Input)
	r.field("caller", callerText(s))
	state := stateCell(s.State)
	fmt.Fprintf(r.w, "%-9s %s\n", "state", p.outTerm.paint(state.color, state.text))
	r.field("reason", reason(s))
	r.field("exit code", exitText(s))
	r.field("deadline", stamp(s.Deadline)+" ("+ago(p.now(), s.Deadline)+")")
	r.history(s.History)
	if s.Result == nil {
		return nil
	}
	r.leftOver(s.Result.Child)
	r.data("output", s.Result.Output)
	if e := s.Result.Error; e != nil {
		r.field("error", e.Message)
		r.field("hint", e.Hint)
	}
	if err := p.streamText(ctx, c, s, "stdout", s.Result.Stdout); err != nil {
		return err
	}
	return p.streamText(ctx, c, s, "stderr", s.Result.Stderr)
}

// streamText prints what a run wrote to a stream, if it did.
func (p *program) streamText(ctx context.Context, c SDK, s client.Status, stream string, out muster.Output) error {
	if out.Size == 0 && out.Truncated == 0 {
		return nil
	}
	fmt.Fprintln(p.stdout, p.outTerm.paint(dim, fmt.Sprintf("--- %s, %s", stream, plural(int(out.Size), "byte"))))
	to := &lines{w: p.stdout, on: p.outTerm}
	err := readOutput(ctx, c, s, stream, to)
	to.end()
	if err != nil {
		return err
	}
	if out.Truncated > 0 {
		fmt.Fprintln(p.stdout, p.outTerm.paint(yellow, fmt.Sprintf("--- %s more were dropped on the node: a limit was reached", plural(int(out.Truncated), "byte"))))
	}
	return nil
}

// lines prints a stream line by line, harmless for a terminal, and ends with a
// line break.
type lines struct {
	w    io.Writer
	on   terminal
	rest []byte
}

func (l *lines) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	i := bytes.LastIndexByte(l.rest, '\n')
	if i < 0 && len(l.rest) < maxLine {
		return len(b), nil
	}
	if i < 0 { // a line without end must not fill the memory
		i = len(l.rest) - 1
	}
	err := l.print(l.rest[:i+1])
	l.rest = append(l.rest[:0], l.rest[i+1:]...)
	return len(b), err
}

// print writes text, in one go.
func (l *lines) print(text []byte) error {
	if !l.on.is { // a file gets the bytes as they are
		_, err := l.w.Write(text)
		return err
	}
	var out strings.Builder
	for line := range strings.Lines(string(text)) {
		body, ended := strings.CutSuffix(line, "\n")
		out.WriteString(cleanLine(strings.TrimSuffix(body, "\r"), l.on.color))
		if ended {
			out.WriteByte('\n')
		}
	}
	_, err := io.WriteString(l.w, out.String())
	return err
}

// end ends the last line.
func (l *lines) end() {
	if len(l.rest) > 0 {
		_ = l.print(append(l.rest, '\n')) // the next write to stdout fails as well
		l.rest = nil
	}
}

// callerText is who a command is from. The node knows; before it has spoken
// there is only what the sender says of itself.
func callerText(s client.Status) string {
	if s.Caller == "" && s.Claimed != "" {
		return s.Claimed + " (not verified: the node has not spoken yet)"
	}
	return s.Caller
}
