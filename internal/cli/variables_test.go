package cli

import (
	"bytes"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestUnknownVariables(t *testing.T) {
	for _, c := range []struct {
		environ, args, want string
	}{
		{"MUSTER_BOGUS=1", "version", "MUSTER_BOGUS is unknown"},
		{"MUSTER_AGENT_HEARTBEET=5s", "method show echo", "did you mean MUSTER_AGENT_HEARTBEAT?"},
		{"MUSTER_AGENT_HEARTBEAT=5s MUSTER_CONTEXT=x MUSTER_JOIN=y MUSTER_COMMAND=z PATH=/bin MUSTER=1", "version", ""},
		{"MUSTER_A=1 MUSTER_B=1 MUSTER_C=1 MUSTER_D=1 MUSTER_E=1", "version", "and 2 more"},
		{"MUSTER_BOGUS=secret", "completion bash", ""},
		{"MUSTER_BOGUS=secret", "__complete node", ""},
	} {
		var out, errs bytes.Buffer
		p := &program{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, back: fakeBackend{}, now: time.Now,
			env: func(string) string { return "" }, environ: strings.Fields(c.environ)}
		code := run(t.Context(), p, strings.Fields(c.args))
		got := errs.String()
		if code != ExitOK || (c.want == "") != !strings.Contains(got, "warning") || !strings.Contains(got, c.want) || strings.Contains(got, "secret") {
			t.Errorf("%s muster %s: exit code %d, %q; want %q", c.environ, c.args, code, got, c.want)
		}
	}
}

// Each variable that the program reads or sets somewhere is known.
func TestKnownVariables(t *testing.T) {
	known := knownVariables((&program{env: func(string) string { return "" }}).root())
	literal := regexp.MustCompile(`"(MUSTER_[A-Z_]*[A-Z])=?"`)
	found := 0
	source := os.DirFS("../..")
	for _, dir := range []string{"internal", "client", "cmd"} {
		err := fs.WalkDir(source, dir, func(path string, d fs.DirEntry, err error) error {
			// Streams of the broker have such names, too.
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") ||
				strings.HasPrefix(path, "internal/bus/") || strings.HasPrefix(path, "internal/methods/methodtest/") {
				return err
			}
			text, err := fs.ReadFile(source, path)
			for _, m := range literal.FindAllSubmatch(text, -1) {
				found++
				if !slices.Contains(known, string(m[1])) {
					t.Errorf("%s: %s is not known", path, m[1])
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found < 10 {
		t.Errorf("only %d were found", found)
	}
}
