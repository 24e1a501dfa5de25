package bus

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
)

func TestCallerWrites(t *testing.T) {
	all := []string{"p.command.>", "p.control.*.>"}
	var long []string
	for i := range 20 {
		long = append(long, strings.Repeat("n", 50)+string(rune('a'+i)))
	}
	for name, c := range map[string]struct {
		methods, nodes, want []string
	}{
		"names":            {[]string{"echo", "shell.run"}, []string{"web1.example.com"}, []string{"p.control.*.web1.example.com", "p.command.*.web1.example.com.*.echo", "p.command.*.web1.example.com.*.shell:run"}},
		"glob of methods":  {[]string{"file.*"}, []string{"a"}, []string{"p.control.*.a", "p.command.*.a.*.*"}},
		"glob of nodes":    {[]string{"echo"}, []string{"a", "db*"}, all},
		"one character":    {[]string{"echo"}, []string{"db?"}, all},
		"said twice":       {[]string{"echo", "echo"}, []string{"a", "a"}, []string{"p.control.*.a", "p.command.*.a.*.echo"}},
		"wildcard of NATS": {[]string{">", "echo"}, []string{">", "a.>", "a b", "a"}, []string{"p.control.*.a", "p.command.*.a.*.echo"}},
		"more than fit":    {[]string{"echo"}, long, all},
	} {
		if got := callerWrites("p", []aaa.Right{{Methods: c.methods, Nodes: c.nodes}}); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestCallerInbox(t *testing.T) {
	inbox := NewCallerInbox()
	if got := CallerInbox(CallerPermissions("p", inbox, nil).Subscribe); got != inbox {
		t.Errorf("of a caller: got %q, want %q", got, inbox)
	}
	if got := CallerInbox(OperatorPermissions("p").Subscribe); got != "" {
		t.Errorf("of an operator: got %q", got)
	}
}

// Who is refused is told what to ask for, which is another thing for a node.
func TestRefusedCredentialsNameTheWayOut(t *testing.T) {
	for inbox, want := range map[string]string{
		"":                  "'muster context make NAME",
		NodeInbox("web1"):   "'muster node invite NAME'",
		EnrolInbox("token"): "'muster node invite NAME'",
	} {
		e, ok := errors.AsType[*muster.Error](dialError(nats.ErrAuthorization, Options{Inbox: inbox}))
		if !ok || e.Kind != muster.Denied || !strings.Contains(e.Hint, want) || strings.Contains(e.Hint, "doctor") {
			t.Errorf("%q: got %+v", inbox, e)
		}
	}
}
