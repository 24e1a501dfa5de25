package method

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/musterfleet/muster"
)

func TestArgs(t *testing.T) {
	tests := []struct {
		name  string
		words []string
		want  string
	}{
		{"none", nil, `{}`},
		{"JSON itself", []string{`{"name": "a > b"}`}, `{"name": "a > b"}`},
		{"text", []string{"name=a=b"}, `{"name":"a=b"}`},
		{"text that looks like a number", []string{"name=007"}, `{"name":"007"}`},
		{"empty text", []string{"name="}, `{"name":""}`},
		{"not escaped", []string{"name=a > b && c"}, `{"name":"a > b && c"}`},
		{"integer", []string{"timeout=-5"}, `{"timeout":-5}`},
		{"large integer", []string{"timeout=12345678901234567890"}, `{"timeout":12345678901234567890}`},
		{"number", []string{"ratio=1.50"}, `{"ratio":1.50}`},
		{"boolean", []string{"force=true"}, `{"force":true}`},
		{"list with commas", []string{"units=a,b"}, `{"units":["a","b"]}`},
		{"list repeated", []string{"units=a", "units=b,c"}, `{"units":["a","b","c"]}`},
		{"list as JSON", []string{`units=["a,b"]`}, `{"units":["a,b"]}`},
		{"empty list", []string{"units="}, `{"units":[]}`},
		{"list of integers", []string{"ports=80,443"}, `{"ports":[80,443]}`},
		{"object", []string{`labels={"a":"b"}`}, `{"labels":{"a":"b"}}`},
		{"one of types", []string{"limit=null"}, `{"limit":null}`},
		{"any as JSON", []string{"any=[1]"}, `{"any":[1]}`},
		{"any as text", []string{"any=[1"}, `{"any":"[1"}`},
		{"positional", []string{"nginx"}, `{"name":"nginx"}`},
		{"rest", []string{"nginx", "a", "-b", "c,d", "name=e", "--", "x"}, `{"name":"nginx","units":["a","-b","c,d","name=e","--","x"]}`},
		{"positional passes over", []string{"name=x", "a"}, `{"name":"x","units":["a"]}`},
		{"after --", []string{"--", "name=x", "force=true", "--"}, `{"name":"name=x","units":["force=true","--"]}`},
		{"address", []string{"http://h/?a=b"}, `{"name":"http://h/?a=b"}`},
		{"key before the rest", []string{"force=false", "nginx", "timeout=1", "a"}, `{"force":false,"name":"nginx","timeout":1,"units":["a"]}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Args(service, tt.words)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestArgsRefuses(t *testing.T) {
	tests := []struct {
		name  string
		words []string
		want  string
		hint  string
	}{
		{"unknown key", []string{"nmae=x"}, `word "nmae=x": service.restart has no property "nmae"; expected any,`, "did you mean name=...?"},
		{"unlike any", []string{"FOOBAR=x"}, `no property "FOOBAR"`, "write -- in front of words that are not key=value"},
		{"integer", []string{"timeout=soon"}, `word "timeout=soon": expected an integer for timeout`, ""},
		{"fraction", []string{"timeout=1.5"}, "expected an integer for timeout", ""},
		{"octal", []string{"timeout=010"}, "expected an integer for timeout", ""},
		{"number", []string{"ratio=NaN"}, "expected a number for ratio", ""},
		{"boolean", []string{"force=yes"}, "expected true or false for force", ""},
		{"object", []string{"labels=a:b"}, "expected an object as JSON for labels", ""},
		{"element", []string{"ports=80,x"}, "expected a list, separated by commas or as JSON for ports", ""},
		{"twice", []string{"name=a", "name=b"}, `word "name=b": name was given before; expected it once`, ""},
		{"broken JSON", []string{"{a: 1}"}, "begins like a JSON object: not valid JSON", ""},
		{"JSON and more", []string{`{} {}`}, "more follows", ""},
		{"not text", []string{"name=\xff"}, "not valid UTF-8", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Args(service, tt.words)
			if muster.KindOf(err) != muster.Invalid || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %s, %v; want %q", got, err, tt.want)
			}
			if hint := muster.AsError("", err).Hint; tt.hint != "" && hint != tt.hint {
				t.Errorf("got hint %q, want %q", hint, tt.hint)
			}
		})
	}
}

func TestArgsOtherSchemas(t *testing.T) {
	tests := []struct {
		name, schema string
		words        []string
		want         string
	}{
		{"none", ``, []string{"a=1", "b=x"}, `{"a":1,"b":"x"}`},
		{"true", `true`, []string{"a=1"}, `{"a":1}`},
		{"open", `{"properties": {"a": {"type": "string"}}}`, []string{"a=1", "b=1"}, `{"a":"1","b":1}`},
		{"items say nothing", `{"properties": {"a": {"type": "array", "items": true}}}`, []string{"a=1"}, `{"a":[1]}`},
		{"positional integers", `{"properties": {"a": {"type": "array", "items": {"type": "integer"}}}, "x-positional": ["a"]}`, []string{"1", "2"}, `{"a":[1,2]}`},
		{"positional beyond", `{"x-positional": []}`, []string{"a"}, ``},
		{"positional of a wrong type", `{"properties": {"a": {"type": "integer"}}, "x-positional": ["a"]}`, []string{"x"}, ``},
		{"element of a wrong type", `{"properties": {"a": {"type": "array", "items": {"type": "integer"}}}, "x-positional": ["a"]}`, []string{"x"}, ``},
		{"not a schema", `{"properties": 7}`, []string{"a"}, ``},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Args(Spec{Name: "a", Input: json.RawMessage(tt.schema)}, tt.words)
			if string(got) != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("got %s, %v; want %s", got, err, tt.want)
			}
		})
	}
}

func FuzzArgs(f *testing.F) {
	for _, seed := range []string{"", "name=x", "nginx\na\nb", `{"name": 1}`, "--\nname=x", "units=[1,2]\nunits=,", "any={\nlimit=null", "ports=1e999999999", "\xff"} {
		f.Add(seed)
	}
	r, err := NewRegistry(fake(service))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, line string) {
		words := strings.Split(line, "\n")
		got, err := Args(service, words)
		if err != nil {
			if muster.KindOf(err) != muster.Invalid {
				t.Fatalf("error of kind %s: %v", muster.KindOf(err), err)
			}
			return
		}
		var object map[string]any
		if err := json.Unmarshal(got, &object); err != nil || object == nil {
			t.Fatalf("%q: result %s is not an object: %v", words, got, err)
		}
		// What was read can be given as JSON again, and means the same.
		again, err := Args(service, []string{string(got)})
		if err != nil || string(again) != string(got) {
			t.Fatalf("%s became %s, %v", got, again, err)
		}
		// Every type that a word was read as is the one in the schema.
		if err := r.ValidateInput(service.Name, got); err != nil && muster.KindOf(err) != muster.Invalid {
			t.Fatal(err)
		}
		if value, ok := strings.CutPrefix(words[0], "name="); ok && len(words) == 1 && object["name"] != value {
			t.Fatalf("name: got %q, want %q", object["name"], value)
		}
	})
}
