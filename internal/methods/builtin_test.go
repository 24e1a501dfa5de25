package methods

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/method"
	"github.com/musterfleet/muster/internal/methods/methodtest"
)

func TestBuiltinConforms(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("hello"))
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "file")
	inputs := map[muster.Method][]string{
		"shell.run":   {`{"argv": ["true"]}`, `{"shell": "cat", "stdin": "x"}`},
		"file.write":  {`{"path": ` + quote(file) + `, "content": "x"}`},
		"file.append": {`{"path": ` + quote(file) + `, "content_base64": "eA=="}`},
		"file.read":   {`{"path": ` + quote(file) + `}`},
		"http.get":    {`{"url": ` + quote(server.URL) + `}`},
		"echo":        {`{"message": null}`, `{"message": {"a": [1, "x"]}}`},
		"node.hello":  {`{}`, ``},
		"node.facts":  {`{}`},
	}
	for _, m := range Builtin(testOptions()) {
		t.Run(string(m.Spec().Name), func(t *testing.T) {
			methodtest.Run(t, m, inputs[m.Spec().Name]...)
			if m.Spec().Origin != Origin {
				t.Errorf("origin is %q", m.Spec().Origin)
			}
		})
	}
}

func TestBuiltinTogether(t *testing.T) {
	r, err := method.NewRegistry(Builtin(testOptions())...)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		method muster.Method
		words  []string
		want   string // of the input; "" when it is refused
	}{
		{"shell.run", []string{"user=root", "ls", "-l", "a=b"}, `{"argv":["ls","-l","a=b"],"user":"root"}`},
		{"shell.run", []string{"shell=ls | wc"}, `{"shell":"ls | wc"}`},
		{"shell.run", []string{"shell=ls", "ls"}, ""},
		{"shell.run", nil, ""},
		{"shell.run", []string{`env={"A B": "x"}`, "ls"}, ""},
		{"shell.run", []string{`env={"A_1": "x"}`, "ls"}, `{"argv":["ls"],"env":{"A_1":"x"}}`},
		{"file.write", []string{"/a", "text"}, `{"content":"text","path":"/a"}`},
		{"file.write", []string{"/a"}, ""},
		{"file.write", []string{"/a", "text", "mode=999"}, ""},
		{"file.read", []string{"/a", "limit=0"}, ""},
		{"http.get", []string{"https://example.org/?a=b", "max_bytes=10"}, `{"max_bytes":10,"url":"https://example.org/?a=b"}`},
		{"http.get", []string{"file:///etc/passwd"}, ""},
		{"echo", []string{"hello"}, `{"message":"hello"}`},
	}
	for _, tt := range tests {
		m, _ := r.Lookup(tt.method)
		input, err := method.Args(m.Spec(), tt.words)
		if err == nil {
			err = r.ValidateInput(tt.method, input)
		}
		if (err == nil) != (tt.want != "") || err == nil && string(input) != tt.want {
			t.Errorf("%s %q: got %s, %v; want %s", tt.method, tt.words, input, err, tt.want)
		}
	}
}

func TestBuiltinLeavesOut(t *testing.T) {
	for _, m := range Builtin(Options{}) {
		if name := m.Spec().Name; name == "node.hello" || name == "node.facts" {
			t.Errorf("%s is there, but has nothing to say", name)
		}
	}
	for name, want := range map[muster.Method]bool{"node.facts": true, "echo": true, "disk.usage": false} {
		if got := reserved(name); got != want {
			t.Errorf("reserved(%s): got %t", name, got)
		}
	}
}

func TestNode(t *testing.T) {
	var hello, said, facts call
	hello.invoke(t.Context(), builtinNamed(t, "node.hello"), ``)
	if got, want := string(hello.outcome.Output), `{"node":"node.test","version":"v1.2.3","time":"2030-01-02T03:04:05Z"}`; got != want {
		t.Errorf("node.hello: got %s, want %s", got, want)
	}
	said.invoke(t.Context(), builtinNamed(t, "echo"), `{"message": 12345678901234567890.10}`)
	if got, want := string(said.outcome.Output), `{"message":12345678901234567890.10}`; got != want {
		t.Errorf("echo: got %s, want %s", got, want)
	}
	facts.invoke(t.Context(), builtinNamed(t, "node.facts"), `{}`)
	if got, want := string(facts.outcome.Output), `{"facts":{"cores":2,"os":{"name":"linux"}}}`; got != want {
		t.Errorf("node.facts: got %s, want %s", got, want)
	}
}

func TestNodeFactsFails(t *testing.T) {
	boom := errors.New("no memory")
	tests := []struct {
		name  string
		facts func(context.CancelFunc) (map[string]any, error)
		kind  muster.ErrorKind
		want  string
	}{
		{"none", func(context.CancelFunc) (map[string]any, error) { return nil, nil }, "", `{"facts":{}}`},
		{"error", func(context.CancelFunc) (map[string]any, error) { return nil, boom }, muster.Failed, ""},
		{"cancelled", func(cancel context.CancelFunc) (map[string]any, error) { cancel(); return nil, boom }, muster.Interrupted, ""},
		{"no JSON form", func(context.CancelFunc) (map[string]any, error) { return map[string]any{"f": func() {}}, nil }, muster.Internal, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var c call
			c.invoke(ctx, nodeFacts(func(context.Context) (map[string]any, error) { return tt.facts(cancel) }), `{}`)
			c.want(t, tt.kind, "")
			if string(c.outcome.Output) != tt.want {
				t.Errorf("got %s, want %s", c.outcome.Output, tt.want)
			}
		})
	}
}

func TestDefineRefusesOtherInput(t *testing.T) {
	var c call
	c.invoke(t.Context(), builtinNamed(t, "file.read"), `{"path": 7}`)
	c.want(t, muster.Invalid, "input: ")
}
