package methods

import (
	"context"
	"encoding/json"
	"maps"
	"runtime"
	"slices"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/method"
)

const shellRunInput = `{
	"type": "object",
	"properties": {
		"argv":  {"type": "array", "items": {"type": "string"}, "minItems": 1, "description": "program and arguments, without a shell; the program is looked up in PATH"},
		"shell": {"type": "string", "minLength": 1, "description": "script for /bin/sh -c, instead of argv"},
		"env":   {"type": "object", "additionalProperties": {"type": "string", "writeOnly": true}, "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}, "description": "variables to add to the agent's environment"},
		"dir":   {"type": "string", "minLength": 1, "description": "working directory, absolute; by default the agent's"},
		"user":  {"type": "string", "minLength": 1, "description": "name of the user to run as; another than the agent's needs root"},
		"stdin": {"type": "string", "writeOnly": true, "description": "text for the standard input, which is empty by default"}
	},
	"oneOf": [{"required": ["argv"]}, {"required": ["shell"]}],
	"additionalProperties": false,
	"x-positional": ["argv"]
}`

const shellRunOutput = `{
	"type": "object",
	"properties": {
		"exit_code":   {"type": "integer", "description": "missing when the process was killed"},
		"signal":      {"type": "string", "description": "that killed the process, as SIGKILL"},
		"pid":         {"type": "integer"},
		"duration_ms": {"type": "integer", "minimum": 0}
	},
	"required": ["pid", "duration_ms"],
	"additionalProperties": false
}`

type shellInput struct {
	Argv  []string          `json:"argv"`
	Shell string            `json:"shell"`
	Env   map[string]string `json:"env"`
	Dir   string            `json:"dir"`
	User  string            `json:"user"`
	Stdin string            `json:"stdin"`
}

type shellOutput struct {
	ExitCode   *int   `json:"exit_code,omitempty"`
	Signal     string `json:"signal,omitempty"`
	PID        int    `json:"pid"`
	DurationMS int64  `json:"duration_ms"`
}

func shellRun(grace time.Duration) method.Method {
	return define(method.Spec{
		Name:        "shell.run",
		Description: "Run a program or a shell script; its background children end with it (use systemd-run to leave something running).",
		Input:       json.RawMessage(shellRunInput),
		Output:      json.RawMessage(shellRunOutput),
		Examples: examples(
			"a program with arguments", `{"argv": ["uname", "-a"]}`,
			"a script", `{"shell": "df -h / | tail -n 1"}`,
			"as another user, elsewhere", `{"argv": ["./migrate", "up"], "dir": "/srv/app", "user": "app", "env": {"STAGE": "production"}}`,
		),
	}, func(ctx context.Context, in method.Invocation, input shellInput) (method.Outcome, error) {
		p, err := input.process(in)
		if err != nil {
			return method.Outcome{}, err
		}
		p.grace = grace
		end, err := p.run(ctx)
		return end.outcome(), err
	})
}

func (i shellInput) process(in method.Invocation) (*process, error) {
	p := &process{argv: i.Argv, dir: i.Dir, stdin: i.Stdin, stdout: in.Stdout, stderr: in.Stderr, started: in.Started}
	switch {
	case (len(i.Argv) == 0) == (i.Shell == ""):
		return nil, muster.Errorf(muster.Invalid, "expected exactly one of argv and shell")
	case i.Shell != "" && runtime.GOOS == "windows":
		return nil, muster.Errorf(muster.Unsupported, "there is no /bin/sh on this machine").WithHint("use argv")
	case i.Shell != "":
		p.argv = []string{"/bin/sh", "-c", i.Shell}
	}
	var identity []string
	if i.User != "" {
		a, err := lookupAccount(i.User)
		if err != nil {
			return nil, err
		}
		p.account = a
		identity = a.environment()
	}
	var own []string
	for _, name := range slices.Sorted(maps.Keys(i.Env)) {
		own = append(own, name+"="+i.Env[name])
	}
	// The agent's come last: the caller must not be able to hide a process.
	p.env = environment(identity, own, in.Env)
	return p, nil
}

// outcome describes the end of a process; nil is that of none.
func (e *ending) outcome() method.Outcome {
	if e == nil {
		return method.Outcome{}
	}
	out, _ := result(shellOutput{e.code, e.signal, e.pid, e.duration.Milliseconds()}) // always has a JSON form
	out.ExitCode = e.code
	return out
}
