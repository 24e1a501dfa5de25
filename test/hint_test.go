package test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/test/lab"
)

// TestANewcomerFindsTheBrokerByASignedHint: the token of a node names an address
// where nobody is. The node learns the right one from an agent in its
// constellation, which has it in its file from an operator, and joins.
func TestANewcomerFindsTheBrokerByASignedHint(t *testing.T) {
	l, _, c := realFleet(t)
	muster := func(args ...string) string {
		t.Helper()
		cmd := l.Muster(t.Context(), args...)
		var complaint strings.Builder
		cmd.Stderr = &complaint
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("muster %s: %v\n%s", strings.Join(args, " "), err, complaint.String())
		}
		return strings.TrimSpace(string(out))
	}
	keys := t.TempDir()
	bare, hinted, operator := filepath.Join(keys, "constellation.json"), filepath.Join(keys, "hinted.json"), filepath.Join(keys, "operator.json")
	muster("order", "keygen", "--out", keys)
	data, err := os.ReadFile(bare)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hinted, data, 0o600); err != nil {
		t.Fatal(err)
	}
	muster("order", "hint", "--constellation", hinted, "--operator", operator, fmt.Sprintf("nats://127.0.0.1:%d", l.Port))

	invite := func(name string) string {
		return muster("node", "invite", name, "--state", filepath.Join(l.Dir, "fleet"))
	}
	dead, err := aaa.ParseToken(invite("newcomer"))
	if err != nil {
		t.Fatal(err)
	}
	dead.URLs = []string{"nats://127.0.0.1:" + port(t)}
	token, err := dead.Encode()
	if err != nil {
		t.Fatal(err)
	}
	meeting := port(t)
	log := startAgent(t, l, "newcomer", "--join", token, "--constellation", bare, "--order-listen", "127.0.0.1", "--order-peer", "127.0.0.1:"+meeting)
	until(t, "the newcomer has tried in vain", func() bool { return strings.Contains(read(t, log), "cannot join yet") })
	if online(t, c, "newcomer") {
		t.Fatal("the newcomer joined at an address where nobody is")
	}
	startAgent(t, l, "member", "--join", invite("member"), "--constellation", hinted, "--order-listen", "127.0.0.1", "--order-port", meeting)
	until(t, "the newcomer has joined", func() bool { return online(t, c, "newcomer") })
	if text := read(t, log); !strings.Contains(text, "joining at the address that an operator has signed") {
		t.Errorf("the newcomer joined otherwise:\n%s", text)
	}
}

// startAgent runs an agent until the test ends, and returns the file of its log.
func startAgent(t *testing.T, l *lab.Lab, name string, args ...string) string {
	t.Helper()
	log, err := os.Create(filepath.Join(l.Dir, name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := l.Muster(context.WithoutCancel(t.Context()), append([]string{"agent", "--state", filepath.Join(l.Dir, name)}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // or it has ended, which Wait says
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if t.Failed() {
			t.Logf("%s said\n%s", name, read(t, log.Name()))
		}
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	})
	return log.Name()
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func online(t *testing.T, c *client.Client, name string) bool {
	t.Helper()
	nodes, err := c.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(nodes, func(n client.Node) bool { return string(n.Name) == name && n.Online })
}

// port returns one at which nobody listens, and which is the test's until it ends.
func port(t *testing.T) string {
	t.Helper()
	n, release, err := lab.Port()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return strconv.Itoa(n)
}
