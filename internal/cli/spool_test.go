package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// inPieces writes data to a spool, cut at random.
func inPieces(t *testing.T, s *spool, data []byte, seed uint64) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	for len(data) > 0 {
		n := min(1+r.IntN(7), len(data))
		if r.IntN(4) == 0 {
			n = min(1+r.IntN(spoolSmall), len(data))
		}
		if _, err := s.Write(data[:n]); err != nil {
			t.Fatal(err)
		}
		data = data[n:]
	}
}

// checkQuoted compares what a spool prints with what is printed of the whole.
func checkQuoted(t *testing.T, data []byte, seed uint64) {
	t.Helper()
	var s spool
	defer s.close()
	inPieces(t, &s, data, seed)
	if got := s.isText(); got != utf8.Valid(data) {
		t.Fatalf("text: got %v for %q", got, data)
	}
	value := string(data)
	if !s.isText() {
		value = base64.StdEncoding.EncodeToString(data)
	}
	want, err := encode(value, "", "")
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := s.writeQuoted(&got, false); err != nil {
		t.Fatal(err)
	}
	if got.String()+"\n" != string(want) {
		t.Errorf("JSON: got %.100q, want %.100q", got.Bytes(), want)
	}
	if len(data) > 4<<10 {
		return // reading YAML takes long; TestLargeOutputIsTheSameDocument does
	}
	got.Reset()
	if err := s.writeQuoted(&got, true); err != nil {
		t.Fatal(err)
	}
	var back struct{ Text string }
	if err := yaml.Unmarshal([]byte("text: "+got.String()+"\n"), &back); err != nil || back.Text != value {
		t.Errorf("YAML: %.100q was read as %.100q (%v)", got.Bytes(), back.Text, err)
	}
}

var spoolSeeds = []string{
	"", "plain\n", "\"quoted\" \\ <&> \b\f\r\t\x00\x1b[0m", "Grüße 世界 🦀", "\u0085\u2028\u2029\ufeff\ufffe\uffff\x7f\u009f\ufffd",
	"\xff", "cut short \xe4\xb8", "\xf0\x9f\xa6", "\xed\xa0\x80 a surrogate", "a\xe4b", "--- \n... \n# not a comment: [",
}

func TestSpoolPrintsAsTheWhole(t *testing.T) {
	for i, text := range spoolSeeds {
		checkQuoted(t, []byte(text), uint64(i))
		checkQuoted(t, []byte(strings.Repeat(text, 1+(spoolSmall+2*spoolPiece)/max(1, len(text)))), uint64(i))
	}
}

func FuzzSpool(f *testing.F) {
	for i, text := range spoolSeeds {
		f.Add([]byte(text), uint64(i), i%2 == 0)
	}
	f.Fuzz(func(t *testing.T, data []byte, seed uint64, large bool) {
		if large && len(data) > 0 {
			data = bytes.Repeat(data, 1+spoolSmall/len(data))
		}
		checkQuoted(t, data, seed)
	})
}

// A document whose output is printed piece by piece is the one that would be
// made in memory.
func TestLargeOutputIsTheSameDocument(t *testing.T) {
	text := strings.Repeat("Grüße <a> \"b\"\n", spoolSmall/4)
	raw := strings.Repeat("\xff\x00", spoolSmall)
	want := []map[string]any{{"stdout": text, "stderr": "small"}, {"stdout_base64": base64.StdEncoding.EncodeToString([]byte(raw))}}
	f := withOutput(text, raw)
	for _, format := range []string{"json", "jsonl", "yaml"} {
		_, out, errs := tryWith(t.Context(), f, "run", "-t", "all", "-o", format, "--", "x")
		got := parseOutcomes(t, format, out)
		if len(got) != len(want) || errs != "" {
			t.Fatalf("%s: got %d outcomes, %q", format, len(got), errs)
		}
		for i := range want {
			for key, value := range want[i] {
				if got[i][key] != value {
					t.Errorf("%s: %s of outcome %d: got %.60q, want %.60q", format, key, i, got[i][key], value)
				}
			}
			if _, both := got[i]["stdout_base64"]; both && got[i]["stdout"] != nil {
				t.Errorf("%s: outcome %d is both text and base64", format, i)
			}
		}
		if format == "json" && !strings.HasPrefix(out, "[\n  {\n    \"id\": ") {
			t.Errorf("json: it begins with %.40q", out)
		}
	}
}

// parseOutcomes reads outcomes in the order of their nodes.
func parseOutcomes(t *testing.T, format, text string) (all []map[string]any) {
	t.Helper()
	var err error
	switch format {
	case "yaml":
		err = yaml.Unmarshal([]byte(text), &all)
	case "json":
		err = json.Unmarshal([]byte(text), &all)
	case "jsonl":
		for line := range strings.Lines(text) {
			var one map[string]any
			if err = json.Unmarshal([]byte(line), &one); err != nil {
				break
			}
			all = append(all, one)
		}
	}
	if err != nil {
		t.Fatalf("%s: %v in %.200q", format, err, text)
	}
	return all
}
