package methods

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/method"
)

const (
	// PluginPrefix begins the file name of an executable that is a method; the
	// rest is the method's name.
	PluginPrefix = "muster-method-"

	schemaTimeout = 10 * time.Second
	schemaLimit   = 1 << 20 // bytes
)

// Plugins finds the executables in the directories that are methods, and asks
// each for its schema. What is wrong with one is an error that names it, and
// does not keep the others from being found. A directory that does not exist
// holds none. Of two methods with one name the first found counts.
//
// An executable is called muster-method-NAME. It is run with the agent's
// rights, so that it and its directory must belong to root or to the agent's
// user, and not be writable for all.
//
// "muster-method-NAME schema" prints, within 10 seconds, one JSON object with
// description, idempotent, timeout_ms, input, output and examples, as in
// method.Spec. "muster-method-NAME run" reads the input, one JSON object, and
// prints lines of JSON, each at most 1 MiB:
//
//	{"stdout": "text"}   text for the output
//	{"stderr": "text"}   text for the error output
//	{"output": {...}}    the result; the last one counts
//	{"error": {"kind": "...", "message": "...", "hint": "..."}}
//
// Any other line is output as it is, and so is a longer one; but a longer one
// that begins like a message fails the run, since what it says is lost. What
// the executable writes to its own error output is error output. It fails by an
// exit status other than 0, or by an error line. In its environment are MUSTER_COMMAND (the id),
// MUSTER_NODE, MUSTER_CALLER and MUSTER_ATTEMPT (from 1). When it has to stop
// it gets SIGTERM, as the package says.
func Plugins(ctx context.Context, dirs []string, log *slog.Logger) ([]method.Method, []error) {
	var found []method.Method
	var errs []error
	paths := map[muster.Method]string{}
	for _, dir := range dirs {
		files, err := pluginFiles(dir)
		if err != nil {
			errs = append(errs, err)
		}
		for _, path := range files {
			name := muster.Method(strings.TrimPrefix(filepath.Base(path), PluginPrefix))
			if first, ok := paths[name]; ok {
				errs = append(errs, muster.Errorf(muster.Conflict, "plug-in %s: method %s is already that of %s", path, name, first))
				continue
			}
			p, err := loadPlugin(ctx, name, path)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			log.Debug("plug-in found", "method", name, "path", path)
			paths[name] = path
			found = append(found, p)
		}
	}
	return found, errs
}

// pluginFiles returns the paths of what is named like a plug-in.
func pluginFiles(dir string) ([]string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, muster.Errorf(muster.Invalid, "plug-in directory: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, muster.Errorf(fileError(err).Kind, "plug-in directory: %w", err)
	}
	var paths []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), PluginPrefix) {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	if len(paths) == 0 {
		return nil, nil
	}
	info, err := os.Stat(dir)
	if err == nil {
		err = trusted(info)
	}
	if err != nil {
		return nil, muster.Errorf(muster.Denied, "plug-in directory %s: %w", dir, err)
	}
	return paths, nil
}

// checkPlugin says whether a file may be run as a plug-in. A link is judged by
// what it leads to.
func checkPlugin(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return muster.Errorf(fileError(err).Kind, "plug-in: %w", err)
	case !info.Mode().IsRegular():
		return muster.Errorf(muster.Invalid, "plug-in %w", notRegular(path, info))
	case !executable(info):
		return muster.Errorf(muster.Invalid, "plug-in %s is not executable", path).WithHint("chmod +x %s", path)
	}
	if err := trusted(info); err != nil {
		return muster.Errorf(muster.Denied, "plug-in %s: %w", path, err)
	}
	return nil
}

// A plugin is a method that an executable carries out.
type plugin struct {
	spec method.Spec
	path string
}

var _ method.Method = (*plugin)(nil)

func loadPlugin(ctx context.Context, name muster.Method, path string) (*plugin, error) {
	if err := name.Validate(); err != nil {
		return nil, muster.Errorf(muster.Invalid, "plug-in %s: %w", path, err)
	}
	if reserved(name) {
		return nil, muster.Errorf(muster.Conflict, "plug-in %s: method %s is built in", path, name).WithHint("choose another name")
	}
	if err := checkPlugin(path); err != nil {
		return nil, err
	}
	text, err := pluginSchema(ctx, path)
	if err != nil {
		return nil, muster.Errorf(muster.KindOf(err), "plug-in %s: schema: %w", path, err)
	}
	spec, err := parsePluginSpec(text)
	if err != nil {
		return nil, muster.Errorf(muster.Invalid, "plug-in %s: schema: %w", path, err)
	}
	spec.Name, spec.Origin = name, path
	p := &plugin{spec, path}
	if err := checkSpec(p); err != nil {
		return nil, muster.Errorf(muster.Invalid, "plug-in %s: %w", path, err)
	}
	return p, nil
}

// pluginSchema asks the executable for its schema.
func pluginSchema(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, schemaTimeout)
	defer cancel()
	stdout, stderr := &limited{left: schemaLimit}, &limited{left: 4 << 10}
	p := &process{argv: []string{path, "schema"}, env: environment(), stdout: stdout, stderr: stderr, grace: DefaultGrace}
	if _, err := p.run(ctx); err != nil {
		said := strings.TrimSpace(stderr.kept.String())
		if said != "" {
			return nil, muster.Errorf(muster.KindOf(err), "%w; it says: %s", err, said)
		}
		return nil, err
	}
	if stdout.over {
		return nil, muster.Errorf(muster.Invalid, "more than %d bytes", schemaLimit)
	}
	return stdout.kept.Bytes(), nil
}

// parsePluginSpec reads what a plug-in says of itself. Unknown fields are
// refused: one that is misspelt would be missed only when it matters.
func parsePluginSpec(text []byte) (method.Spec, error) {
	var s struct {
		Description string           `json:"description"`
		Idempotent  bool             `json:"idempotent"`
		TimeoutMS   int64            `json:"timeout_ms"`
		Input       json.RawMessage  `json:"input"`
		Output      json.RawMessage  `json:"output"`
		Examples    []method.Example `json:"examples"`
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return method.Spec{}, muster.Errorf(muster.Invalid, "expected one JSON object: %w", err)
	}
	if len(bytes.TrimSpace(text[d.InputOffset():])) > 0 {
		return method.Spec{}, muster.Errorf(muster.Invalid, "expected one JSON object, but more follows it")
	}
	for name, missing := range map[string]bool{"description": s.Description == "", "input": len(s.Input) == 0, "output": len(s.Output) == 0} {
		if missing {
			return method.Spec{}, muster.Errorf(muster.Invalid, "%s is missing", name)
		}
	}
	return method.Spec{Description: s.Description, Idempotent: s.Idempotent, TimeoutMS: s.TimeoutMS,
		Input: s.Input, Output: s.Output, Examples: s.Examples}, nil
}

// checkSpec finds what would keep the method out of a registry, so that one
// bad plug-in does not keep the others out, too.
func checkSpec(m method.Method) error {
	r, err := method.NewRegistry(m)
	if err != nil {
		return err
	}
	for i, e := range m.Spec().Examples {
		if err := r.ValidateInput(m.Spec().Name, e.Input); err != nil {
			return muster.Errorf(muster.Invalid, "example %d: %w", i+1, err)
		}
	}
	return nil
}

func (p *plugin) Spec() method.Spec { return p.spec }

func (p *plugin) Invoke(ctx context.Context, in method.Invocation) (method.Outcome, error) {
	if err := checkPlugin(p.path); err != nil { // it may have been replaced since it was found
		return method.Outcome{}, err
	}
	input := string(in.Input)
	if input == "" {
		input = "{}"
	}
	lines := &pluginLines{stdout: in.Stdout, stderr: in.Stderr}
	run := &process{
		argv: []string{p.path, "run"}, env: environment(pluginEnvironment(in), in.Env),
		stdin:  input + "\n", // for those who read by lines
		stdout: lines, stderr: in.Stderr, started: in.Started, grace: DefaultGrace,
	}
	end, err := run.run(ctx)
	closeErr := lines.close()
	out := method.Outcome{Output: lines.output}
	if end != nil {
		out.ExitCode = end.code
	}
	switch kind := muster.KindOf(err); {
	case kind != "" && kind != muster.Failed: // it did not come to an end of its own
		return out, err
	case lines.failure != nil: // says more than an exit status
		return out, lines.failure
	case err != nil:
		return out, err
	}
	return out, closeErr
}

func pluginEnvironment(in method.Invocation) []string {
	return []string{
		method.CommandVariable + "=" + string(in.Key.ID),
		"MUSTER_NODE=" + string(in.Key.Node),
		"MUSTER_CALLER=" + in.Caller,
		"MUSTER_ATTEMPT=" + strconv.Itoa(in.Attempt),
	}
}

// limited is a buffer that keeps the first bytes and drops the others.
type limited struct {
	kept bytes.Buffer // not embedded: its ReadFrom would know no limit
	left int
	over bool // something was dropped
}

var _ io.Writer = (*limited)(nil)

func (l *limited) Write(b []byte) (int, error) {
	kept := b[:min(len(b), l.left)]
	l.left -= len(kept)
	l.over = l.over || len(kept) < len(b)
	l.kept.Write(kept)
	return len(b), nil
}
