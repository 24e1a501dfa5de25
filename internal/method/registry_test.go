package method

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/musterfleet/muster"
)

func TestNewRegistryRefuses(t *testing.T) {
	with := func(change func(*Spec)) fake {
		s := service
		change(&s)
		return fake(s)
	}
	tests := []struct {
		name    string
		methods []Method
		kind    muster.ErrorKind
		want    string
	}{
		{"duplicate", []Method{fake(service), with(func(s *Spec) { s.Origin = "/opt/x" })}, muster.Conflict, "defined twice: unknown origin and /opt/x"},
		{"name", []Method{with(func(s *Spec) { s.Name = "Shell Run" })}, muster.Invalid, "not allowed"},
		{"empty name", []Method{with(func(s *Spec) { s.Name = "" })}, muster.Invalid, "method is empty"},
		{"timeout", []Method{with(func(s *Spec) { s.TimeoutMS = -2 })}, muster.Invalid, "timeout -2 ms"},
		{"not JSON", []Method{with(func(s *Spec) { s.Input = json.RawMessage(`{`) })}, muster.Invalid, "input schema: not valid JSON"},
		{"two values", []Method{with(func(s *Spec) { s.Input = json.RawMessage(`{} {}`) })}, muster.Invalid, "more follows"},
		{"not a schema", []Method{with(func(s *Spec) { s.Output = json.RawMessage(`{"type": "strnig"}`) })}, muster.Invalid, "output schema cannot be compiled"},
		{"bad pattern", []Method{with(func(s *Spec) { s.Output = json.RawMessage(`{"pattern": "("}`) })}, muster.Invalid, "output schema cannot be compiled"},
		{"dangling ref", []Method{with(func(s *Spec) { s.Input = json.RawMessage(`{"$ref": "#/$defs/x"}`) })}, muster.Invalid, "input schema cannot be compiled"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := NewRegistry(tt.methods...)
			if muster.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v (%s), want %q (%s)", err, muster.KindOf(err), tt.want, tt.kind)
			}
		})
	}
}

// A schema from a stranger must not read files or open connections.
func TestSchemaLoadsNothing(t *testing.T) {
	var hits atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		hits.Add(1)
		_, _ = w.Write([]byte("true"))
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "schema.json")
	if err := os.WriteFile(file, []byte("true"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Dir(file))
	for _, schema := range []string{
		`{"$ref": "` + server.URL + `/x"}`,
		`{"$ref": "file://` + file + `"}`,
		`{"$ref": "` + file + `"}`,
		`{"$ref": "schema.json"}`,
		`{"$id": "file://` + filepath.Dir(file) + `/", "properties": {"a": {"$ref": "schema.json"}}}`,
		`{"$schema": "` + server.URL + `/meta"}`,
		`{"$schema": "file://` + file + `"}`,
		`{"$dynamicRef": "` + server.URL + `/x#y"}`,
	} {
		_, err := NewRegistry(fake{Name: "a", Input: json.RawMessage(schema)})
		if muster.KindOf(err) != muster.Invalid || !strings.Contains(err.Error(), "not allowed") {
			t.Errorf("%s: got %v, want it refused", schema, err)
		}
	}
	if n := hits.Load(); n != 0 {
		t.Errorf("%d connections were opened", n)
	}
	own := `{"$defs": {"n": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/n"}}}`
	if _, err := NewRegistry(fake{Name: "a", Input: json.RawMessage(own)}); err != nil {
		t.Errorf("a reference within the schema: %v", err)
	}
}

func TestValidateInput(t *testing.T) {
	tests := []struct{ name, input, want string }{
		{"good", `{"name": "nginx", "units": ["a"], "labels": {"a": "b"}, "limit": null, "any": [1]}`, ""},
		{"empty is {}", ``, "input.name: missing, but required"},
		{"unknown property", `{"name": "nginx", "untis": []}`, "input.untis: unknown property; did you mean units?"},
		{"far from any", `{"name": "nginx", "qqqqqqq": 1}`, "input.qqqqqqq: unknown property; expected any, force, labels,"},
		{"case matters", `{"name": "nginx", "FORCE": true}`, "input.FORCE: unknown property"},
		{"type", `{"name": 7}`, "input.name: expected a string, got a number"},
		{"types", `{"name": "nginx", "limit": "x"}`, "input.limit: expected null or an integer, got a string"},
		{"not whole", `{"name": "nginx", "timeout": 1.5}`, "input.timeout: expected an integer, got a number"},
		{"element", `{"name": "nginx", "ports": [80, "x"]}`, "input.ports[1]: expected an integer, got a string"},
		{"odd name", `{"name": "nginx", "labels": {"a b": "x"}}`, `input.labels: "a b" is not allowed as a name`},
		{"nested", `{"name": "nginx", "labels": {"a": 1}}`, "input.labels.a: expected a string, got a number"},
		{"enum", `{"name": "nginx", "mode": "x"}`, `input.mode: expected "soft" or "hard"`},
		{"minimum", `{"name": "nginx", "timeout": 0}`, "input.timeout: expected at least 1"},
		{"exclusive", `{"name": "nginx", "ratio": 0.5}`, "input.ratio: expected more than 0.5"},
		{"length", `{"name": "n"}`, "input.name: expected at least 2 characters, got 1"},
		{"format", `{"name": "nginx", "site": "::"}`, "input.site: expected a valid uri"},
		{"items", `{"name": "nginx", "units": ["a", "a"]}`, "input.units: expected different items, but those at 0 and 1 are equal"},
		{"several", `{"timeout": 99, "force": 1}`, "input.force: expected true or false, got a number; input.name: missing, but required; input.timeout: expected at most 60"},
		{"list", `[]`, "input: expected an object, got a list"},
		{"null", `null`, "input: expected an object, got null"},
		{"not JSON", `{"name"`, "input: not valid JSON"},
		{"trailing", `{} {}`, "more follows"},
		{"huge exponent", `{"name": "nginx", "timeout": 1e999999999}`, "has an exponent beyond 400"},
		{"tiny exponent", `{"name": "nginx", "any": [1E-999999999]}`, "has an exponent beyond 400"},
	}
	r, err := NewRegistry(fake(service))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := r.ValidateInput(service.Name, json.RawMessage(tt.input))
			if tt.want == "" {
				if err != nil {
					t.Errorf("got %v, want it to pass", err)
				}
				return
			}
			if muster.KindOf(err) != muster.Invalid || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestValidateAlternatives(t *testing.T) {
	r, err := NewRegistry(fake{Name: "a", Input: json.RawMessage(
		`{"oneOf": [{"required": ["argv"]}, {"title": "a script", "required": ["shell"]}], "anyOf": [true, {"required": ["x"]}]}`)})
	if err != nil {
		t.Fatal(err)
	}
	for _, input := range []string{`{}`, `{"argv": 1, "shell": 2}`} {
		err := r.ValidateInput("a", json.RawMessage(input))
		if want := "input: expected exactly one of argv or a script"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", input, err, want)
		}
	}
}

// A name that is not allowed is reported where it is, unless it is in several
// places of one depth.
func TestValidatePropertyNames(t *testing.T) {
	r, err := NewRegistry(fake{Name: "a", Input: json.RawMessage(`{
		"$defs": {"m": {"propertyNames": {"maxLength": 1}}},
		"properties": {"p": {"$ref": "#/$defs/m"}, "q": {"items": {"$ref": "#/$defs/m"}}, "x": {"type": "integer"}, "y": {"type": "integer"}},
		"propertyNames": {"maxLength": 2}
	}`)})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ input, want string }{
		{`{"long": 1}`, `input: "long" is not allowed as a name`},
		{`{"x": 1, "y": 2, "p": {"bad": 1}}`, `input.p: "bad" is not allowed as a name`},
		{`{"x": 1, "y": 2, "q": [{"a": 1}, {"bad": 1}, {"b": 1}, 7]}`, `input.q[1]: "bad" is not allowed as a name`},
		{`{"x": 1, "y": 2, "q": [{"bad": 1}, {"bad": 1}]}`, `method a: input: "bad" is not allowed as a name`},
		{`{"x": 1, "y": 2, "p": {"bad": 1}, "q": [{"bad": 1}]}`, `input.p: "bad" is not allowed as a name; input.q[0]: "bad" is not allowed as a name`},
	}
	for range 20 { // the library walks maps
		for _, tt := range tests {
			err := r.ValidateInput("a", json.RawMessage(tt.input))
			if err == nil || !strings.HasSuffix(err.Error(), tt.want) {
				t.Errorf("%s: got %v, want %s", tt.input, err, tt.want)
			}
		}
	}
}

// Messages are logged, and an input may hold a password.
func TestValidateShowsNoValues(t *testing.T) {
	r, err := NewRegistry(fake{Name: "a", Input: json.RawMessage(
		`{"properties": {"p": {"type": "string", "pattern": "^x", "format": "ipv4", "enum": ["x"], "const": "y", "maxLength": 1}}}`)})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.ValidateInput("a", json.RawMessage(`{"p": "hunter2"}`)); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v, want an error without the value", err)
	}
}

func TestValidateOutput(t *testing.T) {
	r, err := NewRegistry(fake(service))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.ValidateOutput(service.Name, json.RawMessage(`{"ok": true}`)); err != nil {
		t.Errorf("good output: %v", err)
	}
	err = r.ValidateOutput(service.Name, nil)
	if err == nil || !strings.Contains(err.Error(), "output.ok: missing") {
		t.Errorf("no output: got %v", err)
	}
}

func TestUnknownMethod(t *testing.T) {
	var methods []Method
	for _, n := range []muster.Method{"shell.run", "service.restart", "service.reload", "echo"} {
		methods = append(methods, fake{Name: n})
	}
	r, err := NewRegistry(methods...)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name muster.Method
		hint string
	}{
		{"shell.rum", "did you mean shell.run?"},
		{"ehco", "did you mean echo?"},
		{"ech", "did you mean echo?"},
		{"restart", "did you mean service.restart?"},
		{"service", "did you mean service.reload or service.restart?"},
		{"quite.different", ""},
		{"", ""},
	}
	for _, tt := range tests {
		err := r.ValidateInput(tt.name, nil)
		if muster.KindOf(err) != muster.NotFound {
			t.Fatalf("%q: got %v, want not_found", tt.name, err)
		}
		if got := muster.AsError("", err).Hint; got != tt.hint {
			t.Errorf("%q: got hint %q, want %q", tt.name, got, tt.hint)
		}
	}
	specs := r.Specs()
	if len(specs) != 4 || specs[0].Name != "echo" || specs[3].Name != "shell.run" {
		t.Errorf("specs are not sorted: %v", specs)
	}
	if _, ok := r.Lookup("echo"); !ok {
		t.Error("echo was not found")
	}
	if m, ok := r.Lookup("nope"); ok || m != nil {
		t.Errorf("nope was found: %v", m)
	}
}

// distance is compared with the definition.
func TestDistance(t *testing.T) {
	var slow func(a, b string) int
	slow = func(a, b string) int {
		if a == "" || b == "" {
			return len(a) + len(b)
		}
		d := slow(a[1:], b[1:])
		if a[0] != b[0] {
			d++
		}
		return min(d, slow(a[1:], b)+1, slow(a, b[1:])+1)
	}
	for _, a := range []string{"", "a", "ab", "echo", "shell"} {
		for _, b := range []string{"", "b", "ba", "ehco", "hell"} {
			if got, want := distance(a, b), slow(a, b); got != want {
				t.Errorf("distance(%q, %q): got %d, want %d", a, b, got, want)
			}
		}
	}
}
