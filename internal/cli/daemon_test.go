package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/app"
)

// An agentBackend keeps the token that an agent is started with.
type agentBackend struct {
	fakeBackend
	token *string
}

func (b agentBackend) RunAgent(_ context.Context, o app.AgentOptions) error {
	*b.token = o.Token
	return nil
}

// testToken is a token with a policy of about so many bytes that do not compress.
func testToken(t *testing.T, policy int) string {
	t.Helper()
	issuer, err := aaa.GenerateIssuer()
	if err != nil {
		t.Fatal(err)
	}
	token := aaa.Token{ID: "a", URLs: []string{"nats://127.0.0.1:1"}, Fleet: "f", Node: "web1", Secret: aaa.RandomSecret(),
		Expires: noon, Issuers: []string{issuer.PublicKey()}, Policy: "# " + randomText(policy)}
	text, err := token.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func randomText(n int) string {
	var b strings.Builder
	for b.Len() < n {
		b.WriteString(rand.Text())
	}
	return b.String()
}

// joinAt runs the agent with a token that somebody types, who waits for what
// follows and does not end the input.
func joinAt(t *testing.T, terminal bool, typed string) (token, stderr string, code int) {
	t.Helper()
	in, keys := io.Pipe()
	t.Cleanup(func() { keys.Close() })
	var out, errs bytes.Buffer
	p := &program{stdin: in, stdout: &out, stderr: &errs, inTerm: terminal, back: agentBackend{token: &token},
		env: func(string) string { return "" }, now: func() time.Time { return noon }}
	go func() {
		_, _ = io.WriteString(keys, typed) // what is not read is not needed
		if !terminal {
			keys.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	code = run(ctx, p, []string{"agent", "--state", t.TempDir(), "--join", "-"})
	if ctx.Err() != nil {
		t.Errorf("the agent still waits after %.20q", typed)
	}
	return token, errs.String(), code
}

// Nobody who has pasted a token knows that a Ctrl-D has to follow.
func TestTokenOnATerminal(t *testing.T) {
	token := testToken(t, 10)
	for _, typed := range []string{token + "\n", "\n  " + token + " \n", token + "\n\n"} {
		got, said, code := joinAt(t, true, typed)
		if got != token || code != ExitOK || !strings.Contains(said, "paste the token") {
			t.Errorf("%.20q: token %.20q, exit code %d, said %q", typed, got, code, said)
		}
	}
	// A damaged one, which the agent will complain of, ends with an empty line.
	if got, _, _ := joinAt(t, true, token[:50]+"\n\n"); got != token[:50] {
		t.Errorf("damaged: got %.20q", got)
	}
}

// An invitation prints what any terminal takes, however long the policy is, and
// all ways to hand it over understand it.
func TestTokenInLines(t *testing.T) {
	token := testToken(t, 18<<10)
	var out, errs bytes.Buffer
	p := &program{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, back: inviteBackend{token: token},
		env: func(string) string { return "" }, now: func() time.Time { return noon }}
	if code := run(t.Context(), p, []string{"node", "invite", "web1", "--allow-all"}); code != ExitOK {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	printed := out.String()
	for line := range strings.Lines(printed) {
		if len(line) > 80 {
			t.Fatalf("a line has %d bytes", len(line))
		}
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(printed), 0o600); err != nil {
		t.Fatal(err)
	}
	p.env = func(name string) string { return map[string]string{"MUSTER_JOIN": printed}[name] }
	for name, read := range map[string]func() (string, error){
		"terminal": func() (string, error) { s, _, _ := joinAt(t, true, printed); return s, nil },
		"pipe":     func() (string, error) { s, _, _ := joinAt(t, false, printed); return s, nil },
		"file":     func() (string, error) { return p.token(t.Context(), "", file) },
		"argument": func() (string, error) { return p.token(t.Context(), printed, "") },
		"variable": func() (string, error) { return p.token(t.Context(), "", "") },
	} {
		text, err := read()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := aaa.ParseToken(text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if again, err := got.Encode(); err != nil || again != token {
			t.Errorf("%s: another token, %v", name, err)
		}
	}
}

// An inviteBackend makes one token.
type inviteBackend struct {
	fakeBackend
	token string
}

func (b inviteBackend) Invite(context.Context, app.InviteOptions) (string, error) {
	return b.token, nil
}

// Ctrl-C ends the wait for a token.
func TestTokenOnATerminalInterrupted(t *testing.T) {
	in, keys := io.Pipe()
	defer keys.Close()
	ctx, cancel := context.WithCancel(t.Context())
	p := &program{stdin: in, stderr: writerFunc(func(b []byte) (int, error) {
		cancel() // once the question is there
		return len(b), nil
	}), inTerm: true}
	if _, err := p.token(ctx, "-", ""); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A pipe is read to its end, as before.
func TestTokenInAPipe(t *testing.T) {
	token := testToken(t, 10)
	got, said, code := joinAt(t, false, token+"\n")
	if got != token || code != ExitOK || strings.Contains(said, "paste") {
		t.Errorf("token %.20q, exit code %d, said %q", got, code, said)
	}
}
