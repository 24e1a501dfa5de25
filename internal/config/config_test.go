package config_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/config"
)

const good = "node: \"n\"\nfleet: \"f\"\nprefix: \"muster\"\nurls: [\"nats://127.0.0.1:4222\"]\nissuers: [\"AX\"]\n"

func TestBadFilesAreNamed(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"unknown key":  {good + "nodes: x\n", []string{"agent.yaml:6", `"nodes"`, "expected", "node (text)"}},
		"twice":        {good + "node: x\n", []string{"agent.yaml", "node"}},
		"missing":      {strings.Replace(good, "fleet: \"f\"\n", "", 1), []string{"agent.yaml", `"fleet"`, "missing"}},
		"number":       {strings.Replace(good, `"f"`, "12", 1), []string{"agent.yaml:2", "fleet", "text"}},
		"no list":      {strings.Replace(good, `["AX"]`, "AX", 1), []string{"agent.yaml:5", "issuers", "list"}},
		"mixed list":   {strings.Replace(good, `["AX"]`, "[AX, 1]", 1), []string{"agent.yaml:5", "issuers", "list"}},
		"no mapping":   {"- a\n", []string{"agent.yaml:1", "mapping"}},
		"empty":        {"", []string{"agent.yaml", "expected", "urls"}},
		"no YAML":      {"node: [", []string{"agent.yaml"}},
		"bad node":     {strings.Replace(good, `"n"`, `"a..b"`, 1), []string{"agent.yaml", "a..b"}},
		"bad prefix":   {strings.Replace(good, `"muster"`, `"a.>"`, 1), []string{"agent.yaml", "prefix", "a.>"}},
		"bad url":      {strings.Replace(good, "nats:", "http:", 1), []string{"agent.yaml", "http://127.0.0.1:4222", "tls://"}},
		"password":     {strings.Replace(good, "127.0.0.1", "u:p@h", 1), []string{"agent.yaml", "password"}},
		"no addresses": {strings.Replace(good, `["nats://127.0.0.1:4222"]`, "[]", 1), []string{"agent.yaml", "urls"}},
	} {
		dir := t.TempDir()
		for file, text := range map[string]string{"agent.yaml": c.text, "node.creds": "x"} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err := config.OpenNode(dir)
		if muster.KindOf(err) != muster.Invalid {
			t.Errorf("%s: %v", name, err)
			continue
		}
		text := err.Error() + " " + muster.AsError("", err).Hint
		for _, w := range c.want {
			if !strings.Contains(text, w) {
				t.Errorf("%s: %q does not say %q", name, text, w)
			}
		}
	}
}

func node() config.NodeFolder {
	return config.NodeFolder{
		Node: config.Node{
			Node: "a.b", Fleet: "f", Prefix: "muster", URLs: []string{"tls://h:1", "tls://[::1]:2"}, Issuers: []string{"AX"},
		},
		Credentials: aaa.NewSecret([]byte("creds")), CA: []byte("ca"), Policy: []byte("rules: []\n"),
	}
}

func TestNodeFolderRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if _, err := config.OpenNode(dir); muster.KindOf(err) != muster.NotFound {
		t.Errorf("before: %v", err)
	}
	n := node()
	if err := config.WriteNode(dir, n); err != nil {
		t.Fatal(err)
	}
	got, err := config.OpenNode(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got.Node.Node != n.Node.Node || !slices.Equal(got.Node.URLs, n.Node.URLs) || !got.Credentials.Equal(n.Credentials) || string(got.CA) != "ca" {
		t.Errorf("got %+v", got)
	}
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 || strings.HasPrefix(e.Name(), ".") {
			t.Errorf("%s has mode %s", e.Name(), info.Mode())
		}
	}
	// A policy that somebody wrote stays.
	if err := os.WriteFile(config.PolicyFile(dir), []byte("own"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := config.WriteNode(dir, n); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(config.PolicyFile(dir)); err != nil || string(text) != "own" {
		t.Errorf("policy: %q, %v", text, err)
	}
}

func TestContexts(t *testing.T) {
	t.Setenv("MUSTER_CONFIG", t.TempDir())
	t.Setenv("MUSTER_CONTEXT", "")
	if _, err := config.OpenContext(""); muster.KindOf(err) != muster.NotFound {
		t.Errorf("before: %v", err)
	}
	if err := config.SetCurrent("a"); muster.KindOf(err) != muster.NotFound {
		t.Errorf("set: %v", err)
	}
	for _, name := range []string{"b", "a"} {
		dir, err := config.ContextDir(name)
		if err != nil {
			t.Fatal(err)
		}
		err = config.WriteContext(dir, config.Context{
			Fleet: "f-" + name, Prefix: "muster", URLs: []string{"nats://h:1"},
			Credentials: aaa.NewSecret([]byte("c")), Identity: aaa.NewSecret([]byte("i")),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := config.SetCurrent("a"); err != nil {
		t.Fatal(err)
	}
	if all, err := config.Contexts(); err != nil || !slices.Equal(all, []string{"a", "b"}) {
		t.Errorf("contexts: %v, %v", all, err)
	}
	expect := func(chosen, want string) {
		t.Helper()
		if c, err := config.OpenContext(chosen); err != nil || c.Name != want || c.Fleet != "f-"+want {
			t.Errorf("%q: %s %s, %v", chosen, c.Name, c.Fleet, err)
		}
	}
	expect("", "a")
	expect("b", "b")
	t.Setenv("MUSTER_CONTEXT", "b")
	expect("", "b")
	expect("a", "a")
	for _, bad := range []string{"../x", "a/b", `a\b`, "..", "."} {
		if _, err := config.ContextDir(bad); muster.KindOf(err) != muster.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestLock(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x", "a.lock")
	unlock, err := config.LockFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := config.LockFile(file); muster.KindOf(err) != muster.Conflict {
		t.Errorf("second: %v", err)
	}
	unlock()
	unlock, err = config.LockFile(file)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestRevocationsLast(t *testing.T) {
	f := config.FleetFolder{Dir: t.TempDir()}
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for _, k := range []string{"UA", "UB"} {
		if err := f.Revoke(k, now); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := f.Revocations(); err != nil || len(all) != 2 || !all["UA"].Equal(now) {
		t.Errorf("%v, %v", all, err)
	}
	if err := os.WriteFile(filepath.Join(f.Dir, "revoked.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Revocations(); muster.KindOf(err) != muster.Corrupt {
		t.Errorf("damaged: %v", err)
	}
}

func TestValidateHost(t *testing.T) {
	for _, good := range []string{"broker", "broker.example.net", "broker.example.net.", "my_broker-2", "10.0.0.1", "::1", strings.Repeat("a", 253)} {
		if err := config.ValidateHost(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", ".", "bad host", "a..b", "broker:4222", "tls://broker", "[::1]", "a/b", "a\n", "a@b", strings.Repeat("a", 254)} {
		if err := config.ValidateHost(bad); muster.KindOf(err) != muster.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
