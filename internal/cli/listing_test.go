package cli

import (
	"context"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// writing is a fleet of two nodes, of which each wrote more than its report has
// room for.
type writing struct {
	fakeSDK
	text map[muster.NodeName]string // what cannot be had where there is none
}

func withOutput(a, bb string) *writing {
	f := &writing{fakeSDK{nodes: two(true), outcome: map[muster.NodeName]client.Status{}}, map[muster.NodeName]string{"a": a, "bb": bb}}
	for n, text := range f.text {
		s := endedAs(muster.Done, 0, "")
		s.Result.Stdout.Size = int64(max(len(text), 1<<20))
		f.outcome[n] = s
	}
	small := f.outcome["a"]
	small.Result.Stderr = muster.Output{Size: 5, Inline: []byte("small")}
	return f
}

func (f *writing) Output(_ context.Context, s client.Status, stream string, w io.Writer) error {
	text := f.text[s.Node]
	if text == "" {
		return muster.Errorf(muster.Unavailable, "0 of %d bytes of %s are here", s.Result.Stdout.Size, stream).WithHint("ask again")
	}
	for piece := range strings.SplitAfterSeq(text, "\n") {
		if _, err := io.WriteString(w, piece); err != nil {
			return err
		}
	}
	return nil
}

// That the output of one node cannot be had is told in the document, which has
// the other nodes, and by the exit code.
func TestMissingOutputIsTold(t *testing.T) {
	for _, format := range []string{"json", "jsonl", "yaml"} {
		code, out, errs := tryWith(t.Context(), withOutput("", "here"), "run", "-t", "all", "-o", format, "--", "x")
		got := parseOutcomes(t, format, out)
		if len(got) != 2 || got[0]["state"] != "done" || got[0]["stdout"] != nil || got[1]["stdout"] != "here" {
			t.Fatalf("%s: got %v", format, got)
		}
		if why, _ := got[0]["output_error"].(string); !strings.Contains(why, "0 of 1048576 bytes of stdout are here") || got[0]["stderr"] != "small" {
			t.Errorf("%s: output_error is %q, stderr %q", format, why, got[0]["stderr"])
		}
		if code != ExitError || !strings.Contains(errs, "stdout of S1 on a") || !strings.Contains(errs, "hint: ask again") {
			t.Errorf("%s: got exit code %d and %q", format, code, errs)
		}
	}
}

// Without room for output nothing more is fetched, and the document is whole.
func TestNoRoomForOutput(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "missing"))
	for _, format := range []string{"json", "jsonl", "yaml"} {
		code, out, errs := tryWith(t.Context(), withOutput("here", strings.Repeat("x\n", spoolSmall)), "run", "-t", "all", "-o", format, "--", "x")
		if got := parseOutcomes(t, format, out); len(got) != 1 || got[0]["stdout"] != "here" {
			t.Errorf("%s: got %v", format, got)
		}
		if code != ExitError || !strings.Contains(errs, "TMPDIR can name a folder") {
			t.Errorf("%s: got exit code %d and %q", format, code, errs)
		}
	}
}

func TestNoCommandsIsAnEmptyDocument(t *testing.T) {
	for format, want := range map[string]string{"json": "[]\n", "yaml": "[]\n", "jsonl": ""} {
		var out strings.Builder
		p := &program{stdout: &out, format: format}
		if err := p.outcomes(t.Context(), nil, nil); err != nil || out.String() != want {
			t.Errorf("%s: got %q (%v), want %q", format, out.String(), err, want)
		}
	}
}

// counting counts how often output is fetched.
type counting struct {
	*writing
	streamed bool // while it was written
	fetched  []string
}

func (f *counting) Follow(ctx context.Context, id muster.CommandID, handle func(client.Update) error) error {
	f.streamed = true
	return f.writing.Follow(ctx, id, handle)
}

func (f *counting) Output(ctx context.Context, s client.Status, stream string, w io.Writer) error {
	f.fetched = append(f.fetched, string(s.Node)+" "+stream)
	return f.writing.Output(ctx, s, stream, w)
}

// Output may be large: it is fetched once for a document, and not while the
// command is followed. Where none is printed, none is fetched.
func TestOutputIsFetchedOnce(t *testing.T) {
	both := []string{"a stdout", "bb stdout"}
	for _, test := range []struct {
		args string
		want []string
	}{
		{"run -t all -o json -- x", both},
		{"run -t all -o jsonl -- x", both},
		{"run -t all -o yaml -- x", both},
		{"send shell.run -t all --wait -o json -- x", both},
		{"send shell.run -t all --wait -- x", nil},
	} {
		f := &counting{writing: withOutput("one", "two")}
		code, _, errs := tryWith(t.Context(), f, strings.Fields(test.args)...)
		if code != ExitOK || f.streamed || !slices.Equal(f.fetched, test.want) {
			t.Errorf("%s: exit code %d, streamed is %t, fetched %q, %q", test.args, code, f.streamed, f.fetched, errs)
		}
	}
}
