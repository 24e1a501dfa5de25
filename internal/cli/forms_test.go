package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/config"
)

// A fullSDK has something of everything, and whatever it is told to do is done.
type fullSDK struct{ fakeSDK }

func (f *fullSDK) History(context.Context, client.HistoryQuery) ([]client.Status, error) {
	s := endedAs(muster.Failure, 1, "")
	s.ID, s.Node, s.Method, s.Input = "S1", "a", "shell.run", json.RawMessage(`{"command":"true"}`)
	return []client.Status{s, {ID: "S1", Node: "bb", State: muster.Queued}}, nil
}

func (f *fullSDK) Command(ctx context.Context, _ muster.Key) ([]client.Status, error) {
	return f.History(ctx, client.HistoryQuery{})
}

func (f *fullSDK) Output(context.Context, client.Status, string, io.Writer) error { return nil }

func (f *fullSDK) Cancel(context.Context, muster.CommandID, []muster.NodeName, string) (int, error) {
	return 1, nil
}

func (f *fullSDK) Events(_ context.Context, q client.EventQuery, handle func(client.Event) error) error {
	line := strings.TrimSpace(auditLines("web1", 1)[0])
	return handle(client.Event{Type: cmp.Or(q.Type, "connected"), Node: "web1", Time: noon, Data: map[string]string{"line": line}})
}

func (f *fullSDK) DeadLetters(context.Context, muster.NodeName) ([]client.DeadLetter, error) {
	return []client.DeadLetter{{Seq: 17, Node: "a", Time: noon}, {Seq: 18, Node: "a", Time: noon}}, nil
}

func (f *fullSDK) SetLabels(context.Context, muster.NodeName, map[string]string, []string) error {
	return nil
}

func (f *fullSDK) DeadLetterCount(context.Context) (uint64, error)   { return 2, nil }
func (f *fullSDK) Requeue(context.Context, uint64) error             { return nil }
func (f *fullSDK) DropDeadLetter(context.Context, uint64) error      { return nil }
func (f *fullSDK) RemoveNode(context.Context, muster.NodeName) error { return nil }
func (f *fullSDK) FlushOutbox(context.Context) (int, error)          { return 3, nil }
func (f *fullSDK) Outbox() ([]client.Waiting, error)                 { return []client.Waiting{{ID: "S2"}}, nil }

func (f *fullSDK) Check(context.Context) client.Health {
	return client.Health{Checks: []client.Check{{Name: "x"}}}
}

// A fullBackend does everything at once.
type fullBackend struct{ fakeBackend }

func (fullBackend) Init(app.InitOptions) (app.InitResult, error) { return app.InitResult{}, nil }
func (fullBackend) ServerConfig(string) ([]byte, error)          { return []byte("port: 4222\n"), nil }
func (fullBackend) AddOperator(app.OperatorOptions) error        { return nil }

func (fullBackend) Reshard(context.Context, app.ReshardOptions) error { return nil }

func (fullBackend) Invite(context.Context, app.InviteOptions) (string, error) { return "token", nil }

func (fullBackend) Callers(string) ([]app.Caller, bool, error) {
	return make([]app.Caller, 1), false, nil
}

func (fullBackend) RevokeCallers(context.Context, app.RevokeOptions) (app.RevokeResult, error) {
	return app.RevokeResult{Broker: "ok"}, nil
}

func (fullBackend) RenewCertificate(string, []string) (app.Certificate, error) {
	return app.Certificate{Until: noon}, nil
}

// formLines are command lines for all commands that print data, but for those
// of orders that need agents around them, which are tested with some.
func formLines(dir string) map[string]string {
	return map[string]string{
		"audit ls": "", "audit verify": "",
		"broker config": "", "broker renew-certificate": "", "broker reshard": "4",
		"caller ls": "", "caller revoke": "alice",
		"command cancel": "S1", "command follow": "S1 --wait-for 1ms", "command ls": "", "command retry": "S1", "command show": "S1",
		"config show": "", "context ls": "", "context make": "alice --out " + dir, "context show": "one", "context use": "one",
		"deadletter ls": "", "deadletter requeue": "17 18", "deadletter rm": "17", "deadletter show": "17",
		"doctor": "", "event follow": "", "event ls": "", "init": "", "method ls": "", "method show": "echo",
		"node invite": "web1", "node label": "a role=web rack-", "node ls": "", "node rm": "a bb", "node show": "a",
		"order keygen": "--out " + dir,
		"order hint":   "tls://b.example:4222 --constellation " + filepath.Join(dir, constellationFile) + " --operator " + filepath.Join(dir, operatorFile),
		"outbox flush": "", "outbox ls": "", "ping": "", "run": "-t a -- true", "send": "echo hello -t a", "status": "", "version": "",
	}
}

var amongAgents = []string{"call", "neighbours", "query", "release", "renew", "run", "status", "watch"}

// Whatever a command prints, and it prints something, is in the form that was
// asked for. A command that is added has to be tried here, or to say that it
// prints no data.
func TestEveryCommandHasAllForms(t *testing.T) {
	t.Setenv("MUSTER_CONFIG", t.TempDir())
	t.Setenv("MUSTER_CONTEXT", "")
	contexts, err := config.ContextDir("one")
	if err == nil {
		err = config.WriteContext(contexts, config.Context{Prefix: "muster", URLs: []string{"nats://127.0.0.1:1"}})
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, form := range []string{"json", "jsonl", "yaml"} {
		lines := formLines(t.TempDir())
		for _, name := range leaves(t) {
			if group, sub, _ := strings.Cut(name, " "); group == "order" && slices.Contains(amongAgents, sub) {
				continue
			}
			args, known := lines[name]
			if !known {
				t.Errorf("%s is not tried", name)
				continue
			}
			out, errs := inForm(t, form, strings.Fields(name+" "+args))
			if err := isForm(form, out); err != nil {
				t.Errorf("%s -o %s: %v: %q and %q", name, form, err, out, errs)
			}
		}
	}
}

func inForm(t *testing.T, form string, args []string) (stdout, stderr string) {
	var out, errs bytes.Buffer
	f := &fullSDK{fakeSDK{nodes: two(true), outcome: map[muster.NodeName]client.Status{"a": endedAs(muster.Done, 0, "hello")}}}
	p := &program{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, back: fullBackend{fakeBackend{sdk: f}},
		env: func(string) string { return "" }, now: func() time.Time { return noon }}
	run(t.Context(), p, append([]string{"-o", form}, args...))
	return out.String(), errs.String()
}

// isForm reports what is wrong with a text that should be in a form.
func isForm(form, text string) error {
	if strings.TrimSpace(text) == "" {
		return errors.New("nothing was printed")
	}
	switch form {
	case "json":
		return json.Unmarshal([]byte(text), new(any))
	case "jsonl":
		for line := range strings.Lines(text) {
			if err := json.Unmarshal([]byte(line), new(any)); err != nil {
				return err
			}
		}
		return nil
	}
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		return err
	}
	if word, ok := v.(string); ok {
		return fmt.Errorf("%q is text", word)
	}
	return nil
}

// leaves are the commands that do something and print data.
func leaves(t *testing.T) (names []string) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		_, none := c.Annotations[dataless]
		if !c.HasSubCommands() && !none {
			names = append(names, strings.TrimPrefix(c.CommandPath(), "muster "))
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk((&program{env: func(string) string { return "" }}).root())
	if len(names) < 40 {
		t.Fatalf("only %d commands: %v", len(names), names)
	}
	// hint needs the files that keygen makes.
	slices.SortStableFunc(names, func(a, b string) int {
		return cmp.Compare(strings.Count(b, "keygen"), strings.Count(a, "keygen"))
	})
	return names
}

// A form for what has none is refused, and as a setting it is for the others.
func TestNoFormForADaemon(t *testing.T) {
	for _, args := range []string{"agent -o json", "broker -o yaml", "dev -o jsonl", "completion bash -o json", "help -o json"} {
		if code, _, errs := try(t.Context(), &fakeSDK{}, strings.Fields(args)...); code != ExitUsage || !strings.Contains(errs, "prints no data") {
			t.Errorf("%s: exit code %d and %q", args, code, errs)
		}
	}
	t.Setenv("MUSTER_CONFIG", t.TempDir())
	var out, errs bytes.Buffer
	p := &program{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, back: fakeBackend{}, now: time.Now,
		env: func(name string) string { return map[string]string{"MUSTER_OUTPUT": "json"}[name] }}
	if code := run(t.Context(), p, []string{"completion", "bash"}); code != ExitOK || out.Len() == 0 {
		t.Errorf("as a setting: exit code %d and %q", code, errs.String())
	}
}
