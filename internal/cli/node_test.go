package cli

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// What waits at the broker belongs to a node's queue: it is all of it while the
// node is away.
func TestQueueOfANodeThatIsAway(t *testing.T) {
	f := &fakeSDK{
		nodes:   []client.Node{{Name: "a", LastSeen: noon.Add(-time.Hour), Queue: 2, Running: 1}, {Name: "b", Online: true}},
		waiting: map[muster.NodeName]int{"a": 40},
	}
	for _, test := range []struct{ args, want string }{
		{"node ls", "42"},
		{"ping", "42"},
		{"node ls -t a -o jsonl", `"waiting":40`},
		{"node show a", "waiting    40 at the broker"},
		{"node show a -o json", `"waiting": 40`},
	} {
		_, out, errs := try(t.Context(), f, strings.Fields(test.args)...)
		if !strings.Contains(out, test.want) {
			t.Errorf("%s: got %q and %q, want %q", test.args, out, errs, test.want)
		}
	}
}

// Without a policy all that a new node does is to refuse, which is said in time.
// It stands on stderr: stdout is the token's alone.
func TestInvitationSaysThatThereIsNoPolicy(t *testing.T) {
	policy := filepath.Join(t.TempDir(), "web.yaml")
	if err := os.WriteFile(policy, []byte(allowAllPolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		want bool
	}{
		{nil, true},
		{[]string{"--allow-all"}, false},
		{[]string{"--policy", policy}, false},
	} {
		var out, errs bytes.Buffer
		p := &program{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, back: inviteBackend{token: "token"},
			env: func(string) string { return "" }, now: func() time.Time { return noon }}
		code := run(t.Context(), p, append([]string{"node", "invite", "web1"}, test.args...))
		said := strings.Contains(errs.String(), "web1 will deny every command")
		if code != ExitOK || out.String() != "token\n" || said != test.want {
			t.Errorf("%v: exit code %d, %q and %q", test.args, code, &out, &errs)
		}
	}
}

func TestInvitationNamesThePolicyThatIsWrong(t *testing.T) {
	policy := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(policy, []byte("rules:\n  - name: x\n    effekt: allow\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := try(t.Context(), nil, "node", "invite", "web1", "--policy", policy)
	if code != ExitError || out != "" || !strings.Contains(errs, policy+":3: unknown key") {
		t.Errorf("exit code %d, %q and %q", code, out, errs)
	}
}

// Labels with white space look like two of them wherever they are listed.
func TestLabelsAreCheckedAndConfirmed(t *testing.T) {
	for _, test := range []struct {
		words []string
		code  int
		say   string
	}{
		{[]string{"a b=c"}, ExitUsage, "white space"},
		{[]string{"a=b c"}, ExitUsage, "white space"},
		{[]string{"a=b\tc"}, ExitUsage, "white space"},
		{[]string{"role=web", "rack=12", "old-", "a b-"}, ExitOK, "a: set rack=12 role=web, removed old a b\n"},
	} {
		f := &fullSDK{fakeSDK: fakeSDK{nodes: two(true)}}
		code, _, errs := tryWith(t.Context(), f, append([]string{"node", "label", "a"}, test.words...)...)
		if code != test.code || !strings.Contains(errs, test.say) {
			t.Errorf("%q: got exit code %d and %q, want %d and %q", test.words, code, errs, test.code, test.say)
		}
	}
}

// Who forgets -t, or --, is told where it goes.
func TestForgottenFlagsAreNamed(t *testing.T) {
	for args, want := range map[string]string{
		"ping web1":                    "hint: nodes are chosen with -t: muster ping -t web1\n",
		"node ls role=web":             "hint: nodes are chosen with -t: muster node ls -t role=web\n",
		"node ls cores>=4":             "hint: nodes are chosen with -t: muster node ls -t 'cores>=4'\n",
		"run -t a uptime -p":           "hint: flags of the program go behind --: muster run -t a -- uptime -p\n",
		"run -t a ls /tmp --recursive": "hint: flags of the program go behind --: muster run -t a -- ls /tmp --recursive\n",
		"run --paus 1s":                "hint: did you mean --pause?\n",
		"run -t a --batch 0 -- true":   "error: --batch 0 is out of range; expected 1 or more\n",
	} {
		code, _, errs := try(t.Context(), &fakeSDK{nodes: two(true)}, strings.Fields(args)...)
		if code != ExitUsage || !strings.Contains(errs, want) {
			t.Errorf("%s: got exit code %d and %q, want %q", args, code, errs, want)
		}
	}
}

func TestWhatIsNotThereMatchesNothing(t *testing.T) {
	for _, args := range []string{
		"command show S9", "command cancel S9", "command follow S9", "command retry S9",
		"node show web9", "node rm -y web9", "node label web9 a=b",
	} {
		code, _, errs := tryWith(t.Context(), &forgetful{fakeSDK{nodes: two(true)}}, strings.Fields(args)...)
		if code != ExitNothing || !strings.Contains(errs, "hint: ") {
			t.Errorf("%s: got exit code %d and %q, want %d", args, code, errs, ExitNothing)
		}
	}
}

// forgetful knows no command.
type forgetful struct{ fakeSDK }

func (f *forgetful) Command(_ context.Context, k muster.Key) ([]client.Status, error) {
	return nil, muster.Errorf(muster.NotFound, "no command %s is known", k).WithHint("'muster command ls' lists commands")
}
