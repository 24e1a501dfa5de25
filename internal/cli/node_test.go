package cli

import (
	"bytes"
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
