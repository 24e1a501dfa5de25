package test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/test/hosts"
)

// machines are a fleet as packaging/README.md installs it, on hosts of their own:
// the broker is on h1, h2 and h3 are nodes, and h4 is the operator's. There may be
// more hosts.
type machines struct {
	t      *testing.T
	lab    *hosts.Lab
	names  []string          // of all hosts
	broker string            // address of h1
	spare  string            // address for which the broker's certificate is good, too; empty if there is none
	want   map[string]string // by node, what its commands have to have written into ran
}

// ran is where the commands of a test leave evidence, on each node.
const ran = "/root/ran"

// onHosts boots hosts, with files in their /usr/local/bin, and builds the program for
// them. What they logged is shown when the test fails.
func onHosts(t *testing.T, count int, files ...string) (m *machines, exe string) {
	t.Helper()
	exe, err := buildMuster()
	if err != nil {
		t.Fatal(err)
	}
	lab := hosts.Up(t, count, files...)
	m = &machines{t: t, lab: lab, broker: lab.Address("h1"), want: map[string]string{}}
	for i := range count {
		m.names = append(m.names, fmt.Sprint("h", i+1))
	}
	t.Cleanup(func() { m.explain(t) })
	return m, exe
}

// A step is a part of a test.
type step struct {
	name string
	try  func(*testing.T)
}

// steps takes one step after the other, on the hosts as the one before left them, as
// long as they succeed.
func (m *machines) steps(all ...step) bool {
	whole := m.t
	defer func() { m.t = whole }()
	for _, s := range all {
		if !whole.Run(s.name, func(t *testing.T) { m.t = t; s.try(t) }) {
			return false
		}
	}
	return true
}

// install follows packaging/README.md.
func (m *machines) install(exe string) {
	m.t.Helper()
	page, err := os.ReadFile("../packaging/README.md")
	if err != nil {
		m.t.Fatal(err)
	}
	m.lab.Push("all", exe, "/usr/bin/muster")
	m.lab.Push("h1", "../packaging/muster-broker.service", "/usr/lib/systemd/system/")
	m.lab.Push("h1", "../packaging/muster.sysusers", "/usr/lib/sysusers.d/muster.conf")
	addresses := m.broker
	if m.spare != "" {
		addresses += " --host " + m.spare
	}
	m.shell("h1", strings.ReplaceAll(block(m.t, page, "# on the machine of the broker"), "broker.example.net", addresses))
	m.await("the broker is ready", func() bool { return strings.Contains(m.lab.Logs("h1", "-u", "muster-broker"), "ready at") })

	join := block(m.t, page, "# on a node")
	for _, node := range []string{"h2", "h3"} {
		m.lab.Push(node, "../packaging/muster-agent.service", "/usr/lib/systemd/system/")
		m.shell(node, "mkdir -p /etc/muster; echo 'agent: {heartbeat: 2s, methods: [/usr/local/lib/muster]}' >/etc/muster/muster.yaml")
		invite := strings.NewReplacer("web1", node, "--policy web-policy.yaml", "--allow-all")
		token := m.shell("h1", invite.Replace(block(m.t, page, "# an invitation")))
		// Whoever reads the page presses Ctrl-C at "connected".
		out, err := m.lab.Pipe(node, strings.NewReader(token), "sh", "-c", `exec 3<&0; (`+join+`) <&3 2>/tmp/join & agent=$!
			until grep -q ^connected /tmp/join; do kill -0 $agent || { cat /tmp/join; exit 1; }; sleep 0.1; done
			pkill -TERM -x muster; wait $agent`)
		if err != nil {
			m.t.Fatalf("%s joins: %v\n%s", node, err, out)
		}
		m.lab.Push(node, "../examples/methods/muster-method-disk.usage", "/usr/local/lib/muster/")
		m.shell(node, block(m.t, page, "# then"))
	}
	saved := filepath.Join(m.t.TempDir(), "context")
	m.shell("h1", block(m.t, page, "# a context"))
	m.lab.Pull("h1", "/var/lib/muster-broker/alice", saved)
	m.lab.Push("h4", saved, "/root/.config/muster/contexts/default")
	m.awaitOnline()
}

// block returns the commands of a page that follow a comment.
func block(t *testing.T, page []byte, comment string) string {
	t.Helper()
	_, rest, found := strings.Cut(string(page), "    "+comment)
	_, rest, newline := strings.Cut(rest, "\n")
	if !found || !newline {
		t.Fatalf("packaging/README.md has no commands after %q", comment)
	}
	var commands []string
	for line := range strings.Lines(rest) {
		command, indented := strings.CutPrefix(line, "    ")
		if !indented {
			break
		}
		commands = append(commands, command)
	}
	return strings.Join(commands, "")
}

// shell runs a script on a host, which must succeed.
func (m *machines) shell(host, script string) string {
	m.t.Helper()
	return m.lab.Must(host, "sh", "-ec", script)
}

// muster runs a command of the operator, which must succeed.
func (m *machines) muster(args ...string) string {
	m.t.Helper()
	return m.lab.Must("h4", append([]string{"muster"}, args...)...)
}

// run runs something on nodes, one or several. One that does not answer a ping soon
// enough is waited for, too.
func (m *machines) run(nodes string, args ...string) {
	m.t.Helper()
	m.muster(append([]string{"run", "-t", nodes, "--wait-all", "--wait-for", patience.String()}, args...)...)
}

// send sends commands that write a name and numbers from 1. They are accepted, by
// the broker or by the outbox.
func (m *machines) send(node, name string, count int) {
	m.t.Helper()
	m.shell("h4", fmt.Sprintf("for i in $(seq %d); do muster send shell.run -t %s -- sh -c \"echo %s $i >>%s\"; done", count, node, name, ran))
}

// numbered is what the commands of send write.
func numbered(name string, count int) string {
	var b strings.Builder
	for i := range count {
		fmt.Fprintln(&b, name, i+1)
	}
	return b.String()
}

// expect waits until the commands of a node have written something more. That it is
// that and nothing else is looked at here, and again in the end.
func (m *machines) expect(node, more string) {
	m.t.Helper()
	m.want[node] += more
	m.await("the commands of "+node+" have run", func() bool { return len(m.read(node)) >= len(m.want[node]) })
	if got := m.read(node); got != m.want[node] {
		m.t.Errorf("the commands on %s wrote %q, want %q", node, got, m.want[node])
	}
}

// read returns what the commands of a node have written.
func (m *machines) read(node string) string {
	m.t.Helper()
	return m.shell(node, "cat "+ran+" 2>/dev/null || :")
}

// state returns the state of a send to one node, once it is final.
func (m *machines) state(id string) (state muster.State) {
	m.t.Helper()
	m.await("command "+id+" is final", func() bool {
		lines := bufio.NewScanner(strings.NewReader(m.muster("command", "ls", "-n", "0", "-o", "jsonl")))
		for lines.Scan() {
			var c struct {
				ID    string
				State muster.State
				Final bool
			}
			if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
				m.t.Fatal(err)
			}
			if c.ID == id {
				state = c.State
				return c.Final
			}
		}
		return false
	})
	return state
}

func (m *machines) awaitOnline() {
	m.t.Helper()
	m.await("both nodes answer", func() bool {
		_, err := m.lab.Exec("h4", "muster", "ping", "-t", "h2,h3")
		return err == nil
	})
}

// awaitHealth waits until the operator's doctor is content.
func (m *machines) awaitHealth() {
	m.t.Helper()
	m.await("the doctor is content", func() bool {
		said, err := m.lab.Exec("h4", "muster", "doctor")
		return err == nil && strings.Contains(said, "2 of 2 answer") && strings.Contains(said, "alice, until ")
	})
}

// await looks again and again for what hosts show.
func (m *machines) await(what string, holds func() bool) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	for !holds() {
		if ctx.Err() != nil {
			m.t.Fatalf("waited in vain until %s", what)
		}
		pause(ctx, 50*time.Millisecond)
	}
}

// explain shows what the daemons logged when the test has failed.
func (m *machines) explain(t *testing.T) {
	if !t.Failed() {
		return
	}
	for _, host := range m.names {
		logs, err := m.lab.Run("logs", host, "-u", "muster-*", "-n", "60", "-o", "short-precise")
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Log(err)
		}
		t.Logf("%s\n%s", host, logs)
	}
}
