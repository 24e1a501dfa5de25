package test

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/musterfleet/muster/internal/constellation"
	"github.com/musterfleet/muster/internal/rendezvous"
)

// Two networks with a router between them, which passes no multicast on. The broker is
// on h1, in the near one; all others are nodes of its fleet, of one constellation.
var (
	nearHosts = []string{"h2", "h3", "h4"}
	farHosts  = []string{"h5", "h6", "h7"}
)

const (
	farNet    = "10.78.0"
	nearEntry = "h2" // with an operator, beside its agent
	farEntry  = "h6"
)

// When the broker has died, the agents of both networks are one constellation: what
// they have learnt from it while it was there leads from one to the other.
func TestOrdersBeyondMulticast(t *testing.T) {
	m, exe := onHosts(t, 7)
	all := slices.Concat(nearHosts, farHosts)
	o := &orders{machines: m}
	o.separate()
	o.startFleet(exe, all)
	o.await("everybody has asked, each knows those before it", func() bool { return o.learnt(all) >= len(all)*(len(all)-1)/2 })

	o.tryWatch(nearEntry, nearHosts)
	o.shell("h1", "systemctl kill -s KILL broker")
	for _, from := range []string{nearEntry, farEntry} {
		o.await("all are reached from "+from, func() bool { return slices.Equal(o.ran(from, "--", "true"), all) })
	}
	asked, answered := 0, map[string]int{}
	o.await("all have run something", func() bool {
		asked++
		for _, host := range o.ran(nearEntry, "--shell", "echo ran >>/root/far") {
			answered[host]++
		}
		return len(answered) == len(all)
	})
	for host, lines := range o.lines("far") {
		if lines < answered[host] || lines > asked {
			t.Errorf("%s ran it %d times; it was asked %d times, and answered %d", host, lines, asked, answered[host])
		}
	}

	// The file outlives the agents.
	for _, host := range all {
		o.shell(host, "systemctl restart muster-agent")
	}
	o.await("all are reached after a restart", func() bool { return slices.Equal(o.ran(farEntry, "--", "true"), all) })
	for _, host := range all {
		if failed := o.shell(host, "systemctl --failed --no-legend --plain"); failed != "" {
			t.Errorf("failed units on %s: %s", host, failed)
		}
	}
}

// tryWatch has an operator look on beside an agent while those of its network, and no
// others, are in an Order.
func (o *orders) tryWatch(host string, want []string) {
	o.t.Helper()
	o.shell(host, "systemd-run -q --collect --unit watch --setenv HOME=/root sh -c 'exec muster -o jsonl order watch >/root/watch'")
	saw := func(event string) (nodes []string) {
		for line := range strings.Lines(o.shell(host, "cat /root/watch 2>/dev/null || :")) {
			var c struct{ Node, Event string }
			if err := json.Unmarshal([]byte(line), &c); err != nil {
				o.t.Fatalf("watch: %v: %s", err, line)
			}
			if c.Event == event {
				nodes = append(nodes, c.Node)
			}
		}
		slices.Sort(nodes)
		return slices.Compact(nodes)
	}
	o.await("all are seen from beside an agent", func() bool { return slices.Equal(saw("up"), want) })
	o.await("while the broker is there, a run on the local network reaches those of it", func() bool {
		return slices.Equal(o.ran(host, "--shell", "sleep 3"), want)
	})
	o.await("all are seen to be locked", func() bool { return slices.Equal(saw("locked"), want) })
	o.await("all are seen to be freed", func() bool { return slices.Equal(saw("freed"), want) })
	if said := o.lab.Logs(host, "-u", "watch"); strings.Contains(said, "warning") {
		o.t.Errorf("watch says %s", said)
	}
	o.shell(host, "systemctl stop watch")
}

// separate puts the far hosts on a network of their own, behind a router.
func (o *orders) separate() {
	o.t.Helper()
	script := "ip link add br1 type bridge mcast_snooping 0; ip addr add " + farNet + ".1/24 dev br1; ip link set br1 up; sysctl -q -w net.ipv4.ip_forward=1"
	for _, host := range farHosts {
		script += "; ip link set " + host + " master br1"
		o.shell(host, fmt.Sprintf("ip addr flush dev eth0 scope global; ip addr add %s.1%d/24 dev eth0; ip route add default via %[1]s.1", farNet, number(host)))
	}
	if _, err := o.lab.Run("net", "sh", "-ec", script); err != nil {
		o.t.Fatal(err)
	}
}

// startFleet makes the fleet and the constellation, and starts all agents.
func (o *orders) startFleet(exe string, nodes []string) {
	o.t.Helper()
	shared, key, err := constellation.Generate("lab", rand.Reader)
	dir := o.t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	if err = errors.Join(err, shared.Write(file("shared")), key.Write(file("key"))); err != nil {
		o.t.Fatal(err)
	}
	o.lab.Push("all", exe, "/usr/bin/muster")
	o.lab.Push("all", "../packaging/muster-agent.service", "/usr/lib/systemd/system/")
	o.lab.Push("all", file("shared"), "/etc/muster/constellation.json")
	for _, host := range []string{nearEntry, farEntry} {
		o.lab.Push(host, file("key"), "/root/.config/muster/operator.json")
	}
	o.shell("h1", "export HOME=/root; muster init --state /root/fleet --host "+o.broker+" >/dev/null; systemd-run -q --unit broker muster broker --state /root/fleet")
	o.await("the broker is ready", func() bool { return strings.Contains(o.lab.Logs("h1", "-u", "broker"), "ready at") })
	for _, host := range nodes {
		token := o.shell("h1", "HOME=/root muster node invite "+host+" --state /root/fleet --allow-all")
		_, err := o.lab.Pipe(host, strings.NewReader(token), "sh", "-ec", `umask 077; cat >/root/token
			mkdir -p /etc/systemd/system/muster-agent.service.d
			printf '[Service]\nEnvironment=MUSTER_CONSTELLATION=/etc/muster/constellation.json\nExecStart=\nExecStart=/usr/bin/muster agent --state /var/lib/muster/agent --join-file /root/token\n' \
				>/etc/systemd/system/muster-agent.service.d/join.conf
			systemctl daemon-reload; systemctl start muster-agent`)
		if err != nil {
			o.t.Fatal(err)
		}
	}
}

// learnt returns how many peers all hosts together have in their files.
func (o *orders) learnt(hosts []string) (count int) {
	for _, host := range hosts {
		text := o.shell(host, "cat /var/lib/muster/agent/order-peers.json 2>/dev/null || :")
		if text == "" {
			continue
		}
		saved, err := rendezvous.Decode[rendezvous.Saved]([]byte(text))
		if err != nil {
			o.t.Fatalf("%s: %v: %s", host, err, text)
		}
		count += len(saved.Peers)
	}
	return count
}
