package methods

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/method"
	"github.com/musterfleet/muster/internal/methods/methodtest"
)

// pluginScript is a plug-in that does what run says.
func pluginScript(run string) string {
	return `#!/bin/sh
case $1 in
schema) cat <<'END'
{
	"description": "Test.",
	"timeout_ms": 1000,
	"input": {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": false},
	"output": {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": false},
	"examples": [{"description": "one", "input": {"a": 1}}]
}
END
;;
run) ` + run + `
;;
esac
`
}

// pluginDir makes a directory of plug-ins from names and texts.
func pluginDir(t *testing.T, scripts map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	for name, text := range scripts {
		path := filepath.Join(dir, PluginPrefix+name)
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func testLog(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// loadOne makes a method of one script.
func loadOne(t *testing.T, run string) method.Method {
	t.Helper()
	found, errs := Plugins(t.Context(), []string{pluginDir(t, map[string]string{"test.one": pluginScript(run)})}, testLog(t))
	if len(found) != 1 || len(errs) > 0 {
		t.Fatalf("got %v, %v", found, errs)
	}
	return found[0]
}

func TestPluginConforms(t *testing.T) {
	methodtest.Run(t, loadOne(t, `cat > /dev/null; echo '{"output": {"a": 1}}'`), `{}`, `{"a": 7}`)
}

// The example that is shipped works.
func TestExamplePlugin(t *testing.T) {
	// A copy, since the checkout may belong to someone else or be open to all.
	text, err := os.ReadFile(filepath.Join("..", "..", "examples", "methods", PluginPrefix+"disk.usage"))
	if err != nil {
		t.Fatal(err)
	}
	found, errs := Plugins(t.Context(), []string{pluginDir(t, map[string]string{"disk.usage": string(text)})}, testLog(t))
	if len(found) != 1 || len(errs) > 0 {
		t.Fatalf("got %v, %v", found, errs)
	}
	disk := found[0]
	methodtest.Run(t, disk, `{}`, `{"path": "/"}`, `{"path":"/proc"}`)

	var c call
	c.invoke(t.Context(), disk, `{"path": "/no/such/path"}`)
	c.want(t, muster.NotFound, "/no/such/path does not exist")
	c = call{}
	c.invoke(t.Context(), disk, `{"path": "/"}`)
	c.want(t, "", "")
	type usage struct {
		Path string `json:"path"`
		Size int64  `json:"size_bytes"`
	}
	if u := decodeOutput[usage](t, &c); u.Path != "/" || u.Size == 0 || !strings.HasPrefix(c.stdout.String(), "/ is ") {
		t.Errorf("got %+v, %q", u, c.stdout.String())
	}
}

func TestPluginInvoke(t *testing.T) {
	tests := []struct {
		name, run      string
		stdout, stderr string
		output         string
		code           int
		kind           muster.ErrorKind
		want           string
	}{
		{"input", `read x; echo "got $x"`, "got {\"a\": 1}\n", "", "", 0, "", ""},
		{"input not read", `true`, "", "", "", 0, "", ""},
		{"messages", `echo '{"stdout": "a"}'; echo '{"stderr": "b"}'; echo c; echo '{"output": {"a": 5}}'`, "ac\n", "b", `{"a": 5}`, 0, "", ""},
		{"own error output", `echo oops >&2`, "", "oops\n", "", 0, "", ""},
		{"environment", `echo $MUSTER_COMMAND $MUSTER_NODE $MUSTER_CALLER $MUSTER_ATTEMPT $TAG ${MUSTER_TOKEN-none}`, "01CALL node.test alice 2 x none\n", "", "", 0, "", ""},
		{"exit status", `echo '{"output": {}}'; exit 3`, "", "", `{}`, 3, muster.Failed, "exit status 3"},
		{"error", `echo '{"error": {"kind": "conflict", "message": "busy"}}'; exit 1`, "", "", "", 1, muster.Conflict, "busy"},
		{"error, but no status", `echo '{"error": {"kind": "conflict", "message": "busy"}}'`, "", "", "", 0, muster.Conflict, "busy"},
		{"signal", `kill -9 $$`, "", "", "", -1, muster.Failed, "killed by SIGKILL"},
		{"message too long", `printf '{"stdout": "'; head -c 1100000 /dev/zero | tr '\0' x; echo '"}'`, `{"stdout": "` + strings.Repeat("x", 1100000) + `"}` + "\n", "", "", 0, muster.Failed, "begins like a message"},
	}
	t.Setenv("MUSTER_TOKEN", "secret")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var c call
			c.invoke(t.Context(), loadOne(t, tt.run), `{"a": 1}`, "TAG=x")
			c.want(t, tt.kind, tt.want)
			if c.stdout.String() != tt.stdout || c.stderr.String() != tt.stderr || string(c.outcome.Output) != tt.output {
				t.Errorf("got stdout %.100q, stderr %q, output %s", c.stdout.String(), c.stderr.String(), c.outcome.Output)
			}
			if code := c.outcome.ExitCode; (code == nil) != (tt.code < 0) || code != nil && *code != tt.code {
				t.Errorf("got exit code %v, want %d", code, tt.code)
			}
			if c.child.PID == 0 {
				t.Error("its process was not told")
			}
		})
	}
}

func TestPluginStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	m := loadOne(t, `trap 'echo "{\"error\": {\"message\": \"bye\"}}"; exit 1' TERM; echo $$; sleep 1000 & wait`)
	var c call
	wait := c.start(ctx, m, `{}`)
	c.stdout.await(t, "\n")
	cancel()
	wait(t)
	c.want(t, muster.Interrupted, "it exited with status 1") // why it failed counts, not how
	awaitGone(t, pidIn(t, c.stdout.String()))
}

// A file that was good when it was found may have been replaced since.
func TestPluginIsCheckedAgain(t *testing.T) {
	m := loadOne(t, `true`)
	if err := os.Chmod(m.Spec().Origin, 0o777); err != nil {
		t.Fatal(err)
	}
	var c call
	c.invoke(t.Context(), m, `{}`)
	c.want(t, muster.Denied, "writable for all")
}

func TestPluginsRefuse(t *testing.T) {
	schema := func(text string) string { return "#!/bin/sh\ncat <<'END'\n" + text + "\nEND\n" }
	good := pluginScript("true")
	tests := []struct {
		name, file, text string
		mode             os.FileMode
		kind             muster.ErrorKind
		want             string
	}{
		{"writable for all", "bad", good, 0o757, muster.Denied, "it is writable for all (mode 0757)"},
		{"not executable", "bad", good, 0o644, muster.Invalid, "is not executable"},
		{"name", "Bad", good, 0o755, muster.Invalid, "not allowed"},
		{"no name", "", good, 0o755, muster.Invalid, "method is empty"},
		{"built-in", "shell.run", good, 0o755, muster.Conflict, "method shell.run is built in"},
		{"fails", "bad", "#!/bin/sh\necho no luck >&2; exit 4\n", 0o755, muster.Failed, "exit status 4; it says: no luck"},
		{"no JSON", "bad", schema("hello"), 0o755, muster.Invalid, "expected one JSON object"},
		{"nothing", "bad", "#!/bin/sh\n", 0o755, muster.Invalid, "expected one JSON object"},
		{"two objects", "bad", schema(`{"description": "x", "input": true, "output": true} {}`), 0o755, muster.Invalid, "more follows"},
		{"unknown field", "bad", schema(`{"description": "x", "inptu": true}`), 0o755, muster.Invalid, `unknown field "inptu"`},
		{"no description", "bad", schema(`{"input": true, "output": true}`), 0o755, muster.Invalid, "description is missing"},
		{"no input", "bad", schema(`{"description": "x", "output": true}`), 0o755, muster.Invalid, "input is missing"},
		{"bad schema", "bad", schema(`{"description": "x", "input": {"type": 7}, "output": true}`), 0o755, muster.Invalid, "input schema cannot be compiled"},
		{"schema from a file", "bad", schema(`{"description": "x", "input": {"$ref": "file:///etc/passwd"}, "output": true}`), 0o755, muster.Invalid, "not allowed"},
		{"bad example", "bad", schema(`{"description": "x", "input": {"type": "object"}, "output": true, "examples": [{"description": "x", "input": 7}]}`), 0o755, muster.Invalid, "example 1"},
		{"endless", "bad", "#!/bin/sh\nyes | head -c 2000000\n", 0o755, muster.Invalid, "more than 1048576 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := pluginDir(t, map[string]string{tt.file: tt.text, "good": good})
			path := filepath.Join(dir, PluginPrefix+tt.file)
			if err := os.Chmod(path, tt.mode); err != nil {
				t.Fatal(err)
			}
			found, errs := Plugins(t.Context(), []string{dir}, testLog(t))
			if len(found) != 1 || found[0].Spec().Name != "good" {
				t.Errorf("the good one was not found: %v", found)
			}
			if len(errs) != 1 || muster.KindOf(errs[0]) != tt.kind || !strings.Contains(errs[0].Error(), tt.want) || !strings.Contains(errs[0].Error(), path) {
				t.Errorf("got %v, want %q of kind %s", errs, tt.want, tt.kind)
			}
		})
	}
}

func TestPluginsDirectories(t *testing.T) {
	good := pluginScript("true")
	first := pluginDir(t, map[string]string{"a": good, "b": good})
	second := pluginDir(t, map[string]string{"b": good, "c": good})
	if err := os.WriteFile(filepath.Join(first, "README"), []byte("not a plug-in"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := pluginDir(t, map[string]string{"d": good})
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	found, errs := Plugins(t.Context(), []string{first, filepath.Join(first, "none"), second, open}, testLog(t))
	var names []string
	for _, m := range found {
		names = append(names, fmt.Sprint(m.Spec().Name, "=", m.Spec().Origin, " ", m.Spec().TimeoutMS))
	}
	want := []string{"a=" + first, "b=" + first, "c=" + second}
	for i := range want {
		name, dir, _ := strings.Cut(want[i], "=")
		want[i] = name + "=" + filepath.Join(dir, PluginPrefix+name) + " 1000"
	}
	if strings.Join(names, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q, want %q", names, want)
	}
	if len(errs) != 2 || muster.KindOf(errs[0]) != muster.Conflict || muster.KindOf(errs[1]) != muster.Denied || !strings.Contains(errs[1].Error(), open) {
		t.Errorf("got errors %v", errs)
	}
}

// A file that belongs to an ordinary user must not be run by root.
func TestPluginsForeignOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may give files away")
	}
	dir := pluginDir(t, map[string]string{"a": pluginScript("true")})
	if err := os.Chown(filepath.Join(dir, PluginPrefix+"a"), 12345, 0); err != nil {
		t.Fatal(err)
	}
	found, errs := Plugins(t.Context(), []string{dir}, testLog(t))
	if len(found) != 0 || len(errs) != 1 || !strings.Contains(errs[0].Error(), "it belongs to user 12345") {
		t.Errorf("got %v, %v", found, errs)
	}
}

// One that hangs keeps the agent from starting no longer than it is allowed.
func TestPluginsHang(t *testing.T) {
	dir := pluginDir(t, map[string]string{"a": "#!/bin/sh\nsleep 1000\n"})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	found, errs := Plugins(ctx, []string{dir}, testLog(t))
	if len(found) != 0 || len(errs) != 1 || muster.KindOf(errs[0]) != muster.TimedOut {
		t.Errorf("got %v, %v", found, errs)
	}
}
