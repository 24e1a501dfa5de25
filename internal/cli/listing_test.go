package cli

import (
	"context"
	"io"
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

func TestNoCommandsIsAnEmptyDocument(t *testing.T) {
	for format, want := range map[string]string{"json": "[]\n", "yaml": "[]\n", "jsonl": ""} {
		var out strings.Builder
		p := &program{stdout: &out, format: format}
		if err := p.outcomes(t.Context(), nil, nil); err != nil || out.String() != want {
			t.Errorf("%s: got %q (%v), want %q", format, out.String(), err, want)
		}
	}
}
