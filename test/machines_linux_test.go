package test

import (
	"os"
	"strings"
	"testing"

	"github.com/musterfleet/muster"
)

// A fleet on real hosts, over TLS and under systemd, keeps the promises when the
// network and the power of the hosts fail.
func TestMachines(t *testing.T) {
	m, exe := onHosts(t, 4)
	m.install(exe)
	if !m.steps(
		step{"run", m.tryRun},
		step{"silent cut of a node", m.trySilence},
		step{"power cut of a node", m.tryNodePower},
		step{"power cut of the broker", m.tryBrokerPower},
		step{"slow and lossy", m.trySlow},
		step{"another broker at the address", m.tryImpostor},
		step{"new certificate", m.tryCertificate},
	) {
		return
	}
	for node, want := range m.want {
		if got := m.read(node); got != want {
			t.Errorf("in the end, the commands on %s wrote %q, want %q", node, got, want)
		}
	}
	if failed := m.lab.Must("all", "systemctl", "--failed", "--no-legend", "--plain"); failed != "" {
		t.Errorf("failed units: %s", failed)
	}
}

// tryRun has commands run as an administrator would, and looks at what the unit
// of the agent leaves them.
func (m *machines) tryRun(t *testing.T) {
	m.run("all", "--shell", "echo hello >>"+ran)
	m.expect("h2", "hello\n")
	m.expect("h3", "hello\n")
	for what, c := range map[string]struct {
		args []string
		want string
	}{
		"facts":        {[]string{"node", "ls", "-t", "os.id=debian", "-o", "jsonl"}, `"h3"`},
		"root":         {[]string{"run", "-t", "h2", "--wait-all", "--shell", `echo $(id -u) $HOME $(umask); touch /usr/lib/written`}, "0 /root 0022"},
		"another user": {[]string{"run", "-t", "h2", "--wait-all", "--user", "nobody", "--", "id", "-un"}, "nobody"},
		"plug-in":      {[]string{"send", "disk.usage", "/var", "-t", "h3", "--wait-all"}, "% full"},
		"systemd":      {[]string{"run", "-t", "h3", "--wait-all", "--", "systemd-run", "--wait", "--pipe", "-q", "echo", "as a unit"}, "as a unit"},
	} {
		if got := m.muster(c.args...); !strings.Contains(got, c.want) {
			t.Errorf("%s: got %q, want %q in it", what, got, c.want)
		}
	}
	m.awaitHealth()
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
	m.run("h2,h3", "--shell", "echo slow >>"+ran)
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
	m.awaitHealth()
	// Root does not leave files behind that the broker cannot read.
	m.shell("h1", "muster broker renew-certificate --state /var/lib/muster-broker/fleet; systemctl restart muster-broker")
	if m.shell("h1", serial) == before {
		t.Error("the certificate is the one before")
	}
	m.awaitOnline()
	m.run("all", "--shell", "echo certified >>"+ran)
	m.expect("h2", "certified\n")
	m.expect("h3", "certified\n")
}
