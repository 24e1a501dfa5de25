package methods

import (
	"errors"
	"strings"
	"testing"

	"github.com/musterfleet/muster"
)

// decodeLines feeds text in pieces of the given size, 0 for all at once.
func decodeLines(text string, size int) (p *pluginLines, stdout, stderr *strings.Builder, err error) {
	stdout, stderr = &strings.Builder{}, &strings.Builder{}
	p = &pluginLines{stdout: stdout, stderr: stderr}
	if size <= 0 {
		size = max(1, len(text))
	}
	for len(text) > 0 {
		n := min(size, len(text))
		if _, err := p.Write([]byte(text[:n])); err != nil {
			return p, stdout, stderr, err
		}
		text = text[n:]
	}
	return p, stdout, stderr, p.close()
}

func TestPluginLines(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	tests := []struct {
		name, text     string
		stdout, stderr string
		output         string
		failure        *muster.Error
		err            muster.ErrorKind
	}{
		{name: "nothing"},
		{name: "plain", text: "a\n\nb", stdout: "a\n\nb"},
		{name: "text", text: `{"stdout": "a"}` + "\n" + `{"stderr": "b\n"}` + "\n" + ` {"stdout":"é\n"} ` + "\r\n", stdout: "aé\n", stderr: "b\n"},
		{name: "empty text", text: `{"stdout": ""}` + "\n"},
		{name: "output", text: `{"output": {"a": 1}}` + "\n", output: `{"a": 1}`},
		{name: "the last output counts", text: `{"output": {"a": 1}}` + "\n" + `{"output":2}`, output: `2`},
		{name: "error", text: `{"error": {"kind": "not_found", "message": "gone", "hint": "look"}}`,
			failure: muster.Errorf(muster.NotFound, "gone").WithHint("look")},
		{name: "unknown kind", text: `{"error": {"kind": "odd", "message": "gone"}}`, failure: muster.Errorf(muster.Failed, "gone")},
		{name: "kind of the agent", text: `{"error": {"kind": "interrupted", "message": "gone"}}`, failure: muster.Errorf(muster.Failed, "gone")},
		{name: "error without a message", text: `{"error": {}}`, failure: muster.Errorf(muster.Failed, "the plug-in failed without saying why")},
		{name: "like a message", text: "{\n" + `{"Stdout": "a"}` + "\n" + `{"stdout": 1}` + "\n" + `{"stdout": null}` + "\n" + `{"stdout": "a", "x": 1}` + "\n" + `{"output": null}` + "\n" + `{"error": "x"}` + "\n" + `{"other": 1}` + "\n" + `{}` + "\n" + `[1]`,
			stdout: "{\n" + `{"Stdout": "a"}` + "\n" + `{"stdout": 1}` + "\n" + `{"stdout": null}` + "\n" + `{"stdout": "a", "x": 1}` + "\n" + `{"output": null}` + "\n" + `{"error": "x"}` + "\n" + `{"other": 1}` + "\n" + `{}` + "\n" + `[1]`},
		{name: "longest line", text: long + "\n" + `{"output": 1}`, stdout: long + "\n", output: "1"},
		{name: "longer line", text: long + "x\n" + `{"output": 1}`, stdout: long + "x\n", output: "1"},
		{name: "longer line without an end", text: long + long, stdout: long + long},
		{name: "longest message", text: `{"stdout":"` + long[:maxLine-13] + `"}` + "\n", stdout: long[:maxLine-13]},
		{name: "longer message", text: `{"stdout":"` + long[:maxLine-12] + `"}` + "\n" + `{"output":1}`, stdout: `{"stdout":"` + long[:maxLine-12] + `"}` + "\n", output: "1", err: muster.Failed},
	}
	for _, tt := range tests {
		for _, size := range []int{0, 1, 7, 4096} {
			p, stdout, stderr, err := decodeLines(tt.text, size)
			if stdout.String() != tt.stdout || stderr.String() != tt.stderr || string(p.output) != tt.output {
				t.Errorf("%s, by %d: got stdout %.80q, stderr %q, output %s", tt.name, size, stdout, stderr, p.output)
			}
			if got, want := p.failure, tt.failure; (got == nil) != (want == nil) || got != nil && (got.Kind != want.Kind || got.Message != want.Message || got.Hint != want.Hint) {
				t.Errorf("%s, by %d: got failure %+v, want %+v", tt.name, size, got, want)
			}
			if muster.KindOf(err) != tt.err {
				t.Errorf("%s, by %d: got %v, want kind %q", tt.name, size, err, tt.err)
			}
		}
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("broken") }

func TestPluginLinesWriterFails(t *testing.T) {
	for _, text := range []string{"plain\n", `{"stdout":"a"}` + "\n", `{"stderr":"a"}` + "\n", strings.Repeat("x", maxLine+1)} {
		p := &pluginLines{stdout: brokenWriter{}, stderr: brokenWriter{}}
		if _, err := p.Write([]byte(text)); err == nil {
			t.Errorf("%.20q: the error was lost", text)
		}
	}
	p := &pluginLines{stdout: brokenWriter{}}
	_, _ = p.Write([]byte("rest"))
	if err := p.close(); muster.KindOf(err) != muster.Internal {
		t.Errorf("close: got %v", err)
	}
}

func FuzzPluginLines(f *testing.F) {
	for _, seed := range []string{"", "a\nb", `{"stdout":"a"}`, `{"output":{"a":[1]}}` + "\n{", `{"error":{"kind":"failed","message":"x"}}` + "\n\n", `{"stderr":"\ud800"}` + "\r\n"} {
		f.Add(seed, 3)
	}
	f.Fuzz(func(t *testing.T, text string, size int) {
		whole, out, errOut, err := decodeLines(text, 0)
		if err != nil && len(text) <= maxLine {
			t.Fatal(err)
		}
		// How the text is cut into pieces does not matter.
		pieces, out2, errOut2, _ := decodeLines(text, size)
		if out.String() != out2.String() || errOut.String() != errOut2.String() || string(whole.output) != string(pieces.output) || (whole.failure == nil) != (pieces.failure == nil) {
			t.Fatalf("by %d: got %q, %q, %s; want %q, %q, %s", size, out2, errOut2, pieces.output, out, errOut, whole.output)
		}
		// What is no message is passed on, byte for byte.
		if !strings.Contains(text, "{") && out.String() != text {
			t.Fatalf("got %q, want %q", out, text)
		}
		if whole.failure != nil && (whole.failure.Kind == "" || whole.failure.Message == "") {
			t.Fatalf("failure %+v says nothing", whole.failure)
		}
	})
}
