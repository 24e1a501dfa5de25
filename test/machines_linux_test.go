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
// the broker is on h1, h2 and h3 are nodes, and h4 is the operator's.
type machines struct {
	t      *testing.T
	lab    *hosts.Lab
	broker string            // address of h1
	spare  string            // address for which the broker's certificate is good, too; empty if there is none
	want   map[string]string // by node, what its commands have to have written into ran
}

// ran is where the commands of a test leave evidence, on each node.
const ran = "/root/ran"

// A fleet on real hosts, over TLS and under systemd, keeps the promises when the
// network and the power of the hosts fail.
func TestMachines(t *testing.T) {
	exe, err := buildMuster()
	if err != nil {
		t.Fatal(err)
	}
	lab := hosts.Up(t, 4)
	m := &machines{t: t, lab: lab, broker: lab.Address("h1"), want: map[string]string{}}
	t.Cleanup(func() { m.explain(t, "h1", "h2", "h3") })
	m.install(exe)
	// One after the other, on the fleet as the one before left it.
	for _, step := range []struct {
		name string
		try  func(*testing.T)
	}{
		{"run", m.tryRun},
		{"silent cut of a node", m.trySilence},
		{"power cut of a node", m.tryNodePower},
		{"power cut of the broker", m.tryBrokerPower},
		{"slow and lossy", m.trySlow},
		{"another broker at the address", m.tryImpostor},
		{"new certificate", m.tryCertificate},
	} {
		if !t.Run(step.name, func(t *testing.T) { m.t = t; step.try(t) }) {
			return
		}
	}
	m.t = t
	for node, want := range m.want {
		if got := m.read(node); got != want {
			t.Errorf("in the end, the commands on %s wrote %q, want %q", node, got, want)
		}
	}
	if failed := lab.Must("all", "systemctl", "--failed", "--no-legend", "--plain"); failed != "" {
		t.Errorf("failed units: %s", failed)
	}
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

// tryRun has commands run as an administrator would, and looks at what the unit
// of the agent leaves them.
func (m *machines) tryRun(t *testing.T) {
	m.muster("run", "-t", "all", "--shell", "echo hello >>"+ran)
	m.expect("h2", "hello\n")
	m.expect("h3", "hello\n")
	for what, c := range map[string]struct {
		args []string
		want string
	}{
		"facts":        {[]string{"node", "ls", "-t", "os.id=debian", "-o", "jsonl"}, `"h3"`},
		"root":         {[]string{"run", "-t", "h2", "--shell", `echo $(id -u) $HOME $(umask); touch /usr/lib/written`}, "0 /root 0022"},
		"another user": {[]string{"run", "-t", "h2", "--user", "nobody", "--", "id", "-un"}, "nobody"},
		"plug-in":      {[]string{"send", "disk.usage", "/var", "-t", "h3", "--wait"}, "% full"},
		"systemd":      {[]string{"run", "-t", "h3", "--", "systemd-run", "--wait", "--pipe", "-q", "echo", "as a unit"}, "as a unit"},
		"doctor":       {[]string{"doctor"}, "2 of 2 answer"},
		"who":          {[]string{"doctor"}, "alice, until "},
	} {
		if got := m.muster(c.args...); !strings.Contains(got, c.want) {
			t.Errorf("%s: got %q, want %q in it", what, got, c.want)
		}
	}
	if got := m.lab.Must("h1", "stat", "-c", "%a %U", "/var/lib/muster-broker/fleet", "/var/lib/muster-broker/fleet/keys.json"); got != "700 muster\n600 muster\n" {
		t.Errorf("modes of the broker's files: %q", got)
	}
	if got := m.lab.Must("h2", "stat", "-c", "%a %U", "/var/lib/muster", "/var/lib/muster/agent/node.creds"); got != "700 root\n600 root\n" {
		t.Errorf("modes of the agent's files: %q", got)
	}
}

// What is sent while a node's packets vanish runs when they do no longer, once and
// in order.
func (m *machines) trySilence(t *testing.T) {
	m.lab.Cut("h3", "silent")
	m.send("h3", "silence", 10)
	if got := m.read("h3"); got != m.want["h3"] {
		t.Errorf("h3 is cut off and its commands wrote %q", got)
	}
	m.lab.Heal("h3")
	m.expect("h3", numbered("silence", 10))
}

// A command that a power cut interrupts is unknown and not run again; those behind
// it run.
func (m *machines) tryNodePower(t *testing.T) {
	id := strings.TrimSpace(m.muster("send", "shell.run", "-t", "h2", "--", "sh", "-c", "echo begun >>"+ran+"; sleep 1000; echo ended >>"+ran))
	m.expect("h2", "begun\n")
	m.send("h2", "behind", 5)
	m.lab.Kill("h2")
	m.send("h2", "dark", 5)
	m.lab.Start("h2")
	m.expect("h2", numbered("behind", 5)+numbered("dark", 5))
	if got := m.state(id); got != muster.Unknown {
		t.Errorf("the interrupted command is %s, want unknown", got)
	}
}

// What the broker has given a receipt for survives its power cut, and what is sent
// meanwhile waits in the outbox.
func (m *machines) tryBrokerPower(t *testing.T) {
	m.lab.Cut("h2", "silent")
	m.send("h2", "stored", 10)
	m.lab.Kill("h1")
	m.send("h2", "outbox", 1)
	m.lab.Heal("h2")
	m.lab.Start("h1")
	m.await("the broker answers", func() bool {
		_, err := m.lab.Exec("h4", "muster", "outbox", "flush")
		return err == nil
	})
	m.expect("h2", numbered("stored", 10)+numbered("outbox", 1))
	m.awaitOnline()
}

// A run over a link that is slow and loses packets ends well.
func (m *machines) trySlow(t *testing.T) {
	if err := m.lab.Delay("h3", 300); err != nil {
		t.Skipf("this machine cannot delay packets: %v", err)
	}
	m.lab.Loss("h3", 10)
	// A node that does not answer in time counts as away.
	m.muster("run", "-t", "h2,h3", "--wait-all", "--wait-for", "60s", "--shell", "echo slow >>"+ran)
	m.lab.Heal("h3")
	m.expect("h2", "slow\n")
	m.expect("h3", "slow\n")
}

// A broker of another fleet at the address of ours is refused by nodes and
// operators, and ours is found again when it is back.
func (m *machines) tryImpostor(t *testing.T) {
	m.shell("h1", "systemctl stop muster-broker; export HOME=/root/other; mkdir $HOME; muster init --state $HOME/fleet --host "+m.broker+
		"; systemd-run -q --unit impostor muster broker --state $HOME/fleet")
	m.await("the other broker is ready", func() bool { return strings.Contains(m.lab.Logs("h1", "-u", "impostor"), "ready at") })
	const refusal = "authority that is not trusted"
	out, err := m.lab.Exec("h4", "muster", "send", "shell.run", "-t", "h2", "--", "sh", "-c", "echo impostor >>"+ran)
	if err == nil || !strings.Contains(err.Error(), refusal) {
		t.Errorf("the operator sends to another broker: %v, %s", err, out)
	}
	m.await("h2 refuses the other broker", func() bool { return strings.Contains(m.lab.Logs("h2", "-u", "muster-agent"), refusal) })
	m.shell("h1", "systemctl stop impostor; systemctl start muster-broker")
	m.await("the broker answers", func() bool {
		_, err := m.lab.Exec("h4", "muster", "outbox", "flush")
		return err == nil
	})
	m.awaitOnline()
	m.send("h2", "again", 1)
	m.expect("h2", numbered("again", 1))
}

// A renewed certificate is taken up by the broker, whose user can read it, and
// nodes and operators notice nothing.
func (m *machines) tryCertificate(t *testing.T) {
	page, err := os.ReadFile("../packaging/README.md")
	if err != nil {
		t.Fatal(err)
	}
	const serial = "sha256sum /var/lib/muster-broker/fleet/tls/server.pem"
	before := m.shell("h1", serial)
	m.shell("h1", block(t, page, "# a new certificate"))
	m.muster("doctor")
	// Root does not leave files behind that the broker cannot read.
	m.shell("h1", "muster broker renew-certificate --state /var/lib/muster-broker/fleet; systemctl restart muster-broker")
	if m.shell("h1", serial) == before {
		t.Error("the certificate is the one before")
	}
	m.awaitOnline()
	m.muster("run", "-t", "all", "--shell", "echo certified >>"+ran)
	m.expect("h2", "certified\n")
	m.expect("h3", "certified\n")
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

// await looks again and again for what hosts show. It waits for longer than it takes
// to notice that a peer has lost its power.
func (m *machines) await(what string, holds func() bool) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), 75*time.Second)
	defer cancel()
	for !holds() {
		if ctx.Err() != nil {
			m.t.Fatalf("waited in vain until %s", what)
		}
		pause(ctx, 50*time.Millisecond)
	}
}

// explain shows what the daemons logged when the test has failed.
func (m *machines) explain(t *testing.T, hosts ...string) {
	if !t.Failed() {
		return
	}
	for _, host := range hosts {
		logs, err := m.lab.Run("logs", host, "-u", "muster-*", "-n", "60", "-o", "short-precise")
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Log(err)
		}
		t.Logf("%s\n%s", host, logs)
	}
}
