package test

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/musterfleet/muster/internal/constellation"
)

// Orders on hosts: h1 to h5 and h6 to h10 are the islands of a network that is cut.
const (
	orderHosts = 10
	operator   = "h4"  // of the fleet as well
	rival      = "h10" // another operator, with a key of its own
)

// orders are ten hosts of one constellation. h1 has the broker, h2 and h3 are nodes
// of the fleet; all the others have a scout, as h1 has.
type orders struct {
	*machines
	ids map[string]string // by host, what its agent is called while its name is not known
}

// Machines without a broker can be called, run and repaired, whatever becomes of
// the network, of the agents and of the operators.
func TestOrderHosts(t *testing.T) {
	scout := filepath.Join(t.TempDir(), "scout")
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", scout, "../cmd/scout")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	m, exe := onHosts(t, orderHosts, scout)
	m.spare = m.lab.Address("h5")
	o := &orders{machines: m}
	o.distribute()
	o.install(exe)
	o.steps(
		step{"discovery", o.tryDiscovery},
		step{"run and query", o.tryRun},
		step{"two operators", o.tryRivals},
		step{"cut and healed", o.tryCut},
		step{"two islands", o.tryIslands},
		step{"killed entry", o.tryEntry},
		step{"killed operator", o.tryDeadOperator},
		step{"slow and lossy", o.trySlow},
		step{"replay", o.tryReplay},
		step{"garbage", o.tryGarbage},
		step{"broker stopped", o.tryBrokerStopped},
		step{"broker moved", o.tryBrokerMoved},
	)
}

// distribute makes a constellation with two operators, gives it to all hosts, and
// starts the scouts.
func (o *orders) distribute() {
	o.t.Helper()
	shared, first, err := constellation.Generate("lab", rand.Reader)
	if err != nil {
		o.t.Fatal(err)
	}
	other, second, err := constellation.Generate("lab", rand.Reader)
	if err != nil {
		o.t.Fatal(err)
	}
	shared.Operators = append(shared.Operators, other.Operators...)
	dir := o.t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(shared.Write(file("shared")), first.Write(file("first")), second.Write(file("second"))); err != nil {
		o.t.Fatal(err)
	}
	o.lab.Push("all", file("shared"), "/etc/muster/constellation.json")
	o.lab.Push(operator, file("first"), "/root/.config/muster/operator.json")
	o.lab.Push(rival, file("second"), "/root/.config/muster/operator.json")
	o.lab.Push("all", "../packaging/muster-scout.service", "/usr/lib/systemd/system/")
	o.lab.Must("all", "sh", "-ec", `ln -s /usr/local/bin/scout /usr/bin/
		case $(hostname) in h2|h3) ;; *) systemctl -q enable --now muster-scout ;; esac`)
}

// Multicast finds everybody, and who has none takes part through a peer.
func (o *orders) tryDiscovery(t *testing.T) {
	o.ids = map[string]string{}
	// Beside an agent only those are heard that answer a newcomer.
	o.shell(rival, "systemctl stop muster-scout")
	o.await("everybody is found without a configuration", func() bool {
		for _, n := range o.neighbours(rival, "--wait", "12s") {
			o.ids[n.Name] = n.ID
		}
		return len(o.ids) >= orderHosts-1
	})
	if len(o.ids) != orderHosts-1 {
		t.Errorf("without a configuration, %v are found", o.ids)
	}
	o.shell(rival, "systemctl start muster-scout")
	o.shell("h9", `nft 'add table inet deaf; add chain inet deaf in { type filter hook input priority 0; }; add chain inet deaf out { type filter hook output priority 0; }
		add rule inet deaf in udp dport 6776 meta pkttype multicast drop; add rule inet deaf out ip daddr 224.0.0.0/4 udp dport 6776 drop; add rule inet deaf out ip6 daddr ff00::/8 udp dport 6776 drop'
`)
	// What was heard of h9 before is forgotten when everybody is started again.
	o.restartAgents()
	o.await("everybody else is found", func() bool { return len(o.ran(rival, "--", "true")) == orderHosts-1 })
	if all := o.ran(rival, "--", "true"); slices.Contains(all, "h9") {
		t.Errorf("h9 hears no multicast, has no peer and is one of %v", all)
	}
	o.shell("h9", `mkdir -p /etc/systemd/system/muster-scout.service.d
		printf '[Service]\nExecStart=\nExecStart=/usr/bin/scout --constellation /etc/muster/constellation.json --state /var/lib/muster/scout --lock-dir /run/muster --peer `+o.lab.Address("h7")+`:6776\n' \
			>/etc/systemd/system/muster-scout.service.d/peer.conf
		systemctl daemon-reload; systemctl restart muster-scout`)
	o.awaitAll("h9 takes part through its peer")
}

// Everybody does what is asked for, once, and answers.
func (o *orders) tryRun(t *testing.T) {
	if got := o.ran(operator, "--shell", "echo ran >>/root/all"); len(got) != orderHosts {
		t.Errorf("%v answer", got)
	}
	o.wrote("all", 1, o.everybody()...)
	if got := o.ran(operator, "-t", "h2,h7", "--shell", "echo ran >>/root/some"); !slices.Equal(got, []string{"h2", "h7"}) {
		t.Errorf("%v answer", got)
	}
	o.wrote("some", 1, "h2", "h7")
	status, err := o.order(operator, "query", "status")
	if err != nil || len(status) != orderHosts {
		t.Errorf("%d tell their status: %v", len(status), err)
	}
	for _, a := range status {
		program := "scout"
		if a.Node == "h2" || a.Node == "h3" {
			program = "muster"
		}
		if !strings.HasPrefix(a.Result.Program, program) || a.Result.State != "order" {
			t.Errorf("%s is %q in state %q", a.Node, a.Result.Program, a.Result.State)
		}
	}
	// A session has everybody, for whatever is asked in it.
	o.hold(operator, orderHosts)
	o.ran(operator, "--shell", "echo ran >>/root/session")
	o.wrote("session", 1, o.everybody()...)
	o.release(operator)
}

// A machine has one operator at a time, whom the other one is told.
func (o *orders) tryRivals(t *testing.T) {
	held := o.hold(rival, orderHosts)
	_, err := o.order(operator, "run", "--shell", "echo ran >>/root/refused")
	if err == nil || !strings.Contains(err.Error(), "in order "+held) {
		t.Errorf("a call while %s has everybody in order %s: %v", rival, held, err)
	}
	o.release(rival)
	// Beside an agent a program does not hear the multicasts of others. Without one the
	// operator hears of the newcomer, and says who it is.
	o.shell(rival, "systemctl stop muster-scout")
	o.hold(rival, orderHosts-1)
	o.await("the refusal says who has everybody", func() bool {
		_, err = o.order(operator, "run", "--shell", "echo ran >>/root/refused")
		if err == nil {
			t.Fatalf("a call while %s has everybody: it succeeds", rival)
		}
		return strings.Contains(err.Error(), "root@"+rival)
	})
	o.wrote("refused", 0)
	o.release(rival)
	o.shell(rival, "systemctl start muster-scout")
	o.awaitAll("the rival's agent is there again")
	const once = `mkdir /run/only || echo two >>/root/overlap; echo ran >>/root/race-%s; sleep 0.5; rmdir /run/only`
	for round := range 2 {
		var both sync.WaitGroup
		for _, from := range []string{operator, rival} {
			both.Go(func() {
				if got, err := o.order(from, "run", "--retry", "30", "--shell", fmt.Sprintf(once, from)); err != nil || len(got) != orderHosts {
					t.Errorf("%s calls at the same moment as another: %d answer, %v", from, len(got), err)
				}
			})
		}
		both.Wait()
		o.wrote("race-"+operator, round+1, o.everybody()...)
		o.wrote("race-"+rival, round+1, o.everybody()...)
	}
	o.wrote("overlap", 0)
}

// Who is cut off is named, and there again when it is healed.
func (o *orders) tryCut(t *testing.T) {
	o.lab.Cut("h8", "silent")
	got, err := o.order(operator, "run", "--shell", "echo ran >>/root/cut")
	if len(got) != orderHosts-1 || err == nil ||
		!strings.Contains(err.Error(), o.ids["h8"]+" did not join: no answer") && !strings.Contains(err.Error(), "h8 did not join: no answer") {
		t.Errorf("with h8 (%s) cut off %d answer: %v", o.ids["h8"], len(got), err)
	}
	o.wrote("cut", 1, slices.DeleteFunc(o.everybody(), func(h string) bool { return h == "h8" })...)
	o.lab.Heal("h8")
	o.awaitAll("h8 is there again")
}

// Islands have Orders of their own; no machine is in two when they meet again.
func (o *orders) tryIslands(*testing.T) {
	near, far := o.everybody()[:5], o.everybody()[5:]
	for _, a := range near {
		for _, b := range far {
			o.lab.Cut(a, b)
		}
	}
	o.hold(operator, len(near))
	o.hold(rival, len(far))
	o.order(operator, "run", "--shell", "echo ran >>/root/near")
	o.order(rival, "run", "--shell", "echo ran >>/root/far")
	o.wrote("near", 1, near...)
	o.wrote("far", 1, far...)
	o.lab.Heal("all")
	heard := map[string]bool{}
	o.await("the islands have met", func() bool {
		for _, n := range o.neighbours(operator) {
			heard[n.Name] = true
		}
		return heard["h6"] && heard["h7"] && heard["h8"] // and not h9, which hears no multicast
	})
	o.order(operator, "run", "--shell", "echo ran >>/root/near")
	o.order(rival, "run", "--shell", "echo ran >>/root/far")
	o.wrote("near", 2, near...)
	o.wrote("far", 2, far...)
	o.release(operator)
	o.release(rival)
	o.awaitAll("the islands are one again")
}

// When the agent dies through which the operator came in, what runs goes on
// elsewhere, once; answers that were to come through it are reported as missing, and
// the next question takes another way. The agent is still locked when it is back.
func (o *orders) tryEntry(t *testing.T) {
	o.hold(rival, orderHosts, "--peer", o.lab.Address("h5"), "--peer", o.lab.Address("h6"))
	type end struct {
		answers []answer
		err     error
	}
	ended := make(chan end, 1)
	go func() {
		all, err := o.order(rival, "run", "--within", "30s", "--shell",
			"echo ran >>/root/entry; until [ -e /root/go ]; do sleep 0.1; done; echo ended >>/root/ended")
		ended <- end{all, err}
	}()
	o.await("all are at it", func() bool { return len(o.lines("entry")) == orderHosts })
	o.shell("h5", "systemctl kill -s KILL muster-scout")
	o.onAll("touch /root/go")
	if e := <-ended; e.err == nil || len(e.answers) != orderHosts || slices.Contains(nodes(e.answers), "h5") {
		t.Errorf("with the entry killed %v say that they ran, of %d: %v", nodes(e.answers), len(e.answers), e.err)
	}
	others := slices.DeleteFunc(o.everybody(), func(h string) bool { return h == "h5" })
	o.wrote("ended", 1, others...)
	o.await("the entry is back in its order", func() bool { return len(o.ran(rival, "--within", "5s", "--", "true")) == orderHosts })
	o.wrote("entry", 1, o.everybody()...)
	o.release(rival)
}

// The leases of an operator who dies end by themselves.
func (o *orders) tryDeadOperator(t *testing.T) {
	o.hold(rival, orderHosts, "--lease", "20s")
	o.shell(rival, "systemctl kill -s KILL hold")
	if _, err := o.order(operator, "run", "--shell", "echo ran >>/root/early"); err == nil {
		t.Error("the machines are free before their lease has ended")
	}
	o.wrote("early", 0)
	o.awaitAll("the leases have ended")
	for _, n := range o.neighbours(operator) {
		if n.State == "order" {
			t.Errorf("%s is still in an order", n.Name)
		}
	}
}

// Over links that are slow and lose packets a run finishes, and says who did it.
func (o *orders) trySlow(t *testing.T) {
	if err := o.lab.Delay("h6", 150); err != nil {
		t.Logf("this machine cannot delay packets: %v", err)
	}
	o.lab.Loss("h7", 20)
	o.lab.Loss("h8", 40)
	for i := range 2 {
		file := fmt.Sprint("lossy", i)
		// Who does not hear the release is free when the lease ends.
		got, err := o.order(operator, "run", "--lease", "20s", "--within", "20s", "--shell", "echo ran >>/root/"+file)
		if len(nodes(got)) < orderHosts-3 {
			t.Errorf("over bad links %v answer: %v", nodes(got), err)
		}
		if len(nodes(got)) < orderHosts && err == nil {
			t.Errorf("%v answer, and nothing is said of the others", nodes(got))
		}
		// Of those that did not answer it is not known whether they ran it: at most once.
		for host, n := range o.lines(file) {
			if n != 1 {
				t.Errorf("%s ran it %d times", host, n)
			}
		}
		for _, host := range nodes(got) {
			if o.lines(file)[host] != 1 {
				t.Errorf("%s says that it ran, and did not", host)
			}
		}
	}
	o.lab.Heal("all")
	o.awaitAll("the links are good again")
}

// A broker that is stopped is found and started with Orders alone, and what was
// done is in the fleet's events afterwards.
func (o *orders) tryBrokerStopped(t *testing.T) {
	const unit = "muster-broker.service"
	o.shell("h1", "systemctl stop "+unit)
	o.keepFolder()
	if _, err := o.lab.Exec(operator, "muster", "run", "-t", "h2,h3", "--", "true"); err == nil {
		t.Error("commands flow without a broker")
	}
	o.hold(operator, orderHosts)
	for _, c := range []struct{ ask, want string }{
		{"service status " + unit, "Active: inactive (dead)"},
		{"logs " + unit + " 20", "Stopped " + unit},
		{"service start " + unit, ""},
		{"service status " + unit, "Active: active (running)"},
	} {
		out, err := o.lab.Exec(operator, append([]string{"muster", "order", "query", "--wait", "1m", "-t", "h1"}, strings.Fields(c.ask)...)...)
		// The status of a unit that does not run is its exit code.
		var exit *exec.ExitError
		if err != nil && !(errors.As(err, &exit) && strings.Contains(c.want, "inactive")) || !strings.Contains(out, c.want) {
			t.Errorf("%s: got %q, %v, want %q in it", c.ask, out, err, c.want)
		}
	}
	o.ran(operator, "-t", "h2,h3", "--shell", "echo ran >>/root/repair")
	o.release(operator)
	o.awaitOnline()
	o.run("h2,h3", "--shell", "echo repaired >>"+ran)
	o.expect("h2", "repaired\n")
	o.expect("h3", "repaired\n")
	o.awaitEvents("script", "h2", "h3")
}

// keepFolder copies what the broker has to h5, as long as it does not run.
func (o *orders) keepFolder() {
	o.t.Helper()
	dir := filepath.Join(o.t.TempDir(), "fleet")
	const folder = "/var/lib/muster-broker/fleet"
	o.lab.Pull("h1", folder, dir)
	o.lab.Push("h5", dir, folder)
	o.lab.Push("h5", "../packaging/muster-broker.service", "/usr/lib/systemd/system/")
	o.lab.Push("h5", "../packaging/muster.sysusers", "/usr/lib/sysusers.d/muster.conf")
	o.shell("h5", "systemd-sysusers; chown -R muster: /var/lib/muster-broker; chmod 700 /var/lib/muster-broker; systemctl daemon-reload")
}

// A broker whose machine is gone is started on another one, and the nodes are sent
// there.
func (o *orders) tryBrokerMoved(t *testing.T) {
	o.lab.Kill("h1")
	// h1 does not join, which is said by the exit code: what counts is who answers.
	if got, err := o.order(operator, "query", "-t", "h5", "service", "start", "muster-broker.service"); !slices.Equal(nodes(got), []string{"h5"}) {
		t.Fatalf("the spare broker is started by %v: %v", nodes(got), err)
	}
	if got, err := o.order(operator, "query", "-t", "h2,h3", "broker", "tls://"+o.spare+":4222"); !slices.Equal(nodes(got), []string{"h2", "h3"}) {
		t.Fatalf("%v dial the spare broker: %v", nodes(got), err)
	}
	o.awaitOnline()
	o.run("h2,h3", "--shell", "echo moved >>"+ran)
	o.expect("h2", "moved\n")
	o.expect("h3", "moved\n")
	o.awaitEvents("broker", "h2", "h3")
}

// awaitEvents waits until nodes have published that operators used a method.
func (o *orders) awaitEvents(method string, nodes ...string) {
	o.t.Helper()
	o.await("what was done is published", func() bool {
		events := o.muster("event", "ls", "--type", "order", "-o", "jsonl")
		return !slices.ContainsFunc(nodes, func(node string) bool {
			for line := range strings.Lines(events) {
				if strings.Contains(line, `"`+node+`"`) && strings.Contains(line, method) {
					return false
				}
			}
			return true
		})
	})
}

// An answer is a line of 'muster order run' or 'query'.
type answer struct {
	Node, Code string
	Result     struct{ Program, State string }
}

// nodes returns who carried it out, in the order of everybody.
func nodes(all []answer) []string {
	var names []string
	for _, a := range all {
		if a.Code == "ok" {
			names = append(names, a.Node)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return number(a) - number(b) })
	return names
}

func number(host string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(host, "h"))
	return n
}

// order runs 'muster order run' or 'query' on a host. The error has what it says on
// stderr, if its exit code is not 0.
func (o *orders) order(host, verb string, args ...string) (all []answer, err error) {
	out, err := o.lab.Exec(host, append([]string{"muster", "-o", "jsonl", "order", verb, "--wait", "1m"}, args...)...)
	for line := range strings.Lines(out) {
		var a answer
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			o.t.Errorf("order %s %v: %v: %s", verb, args, err, line)
		}
		all = append(all, a)
	}
	return all, err
}

// ran returns on whom 'muster order run' ran something.
func (o *orders) ran(host string, args ...string) []string {
	got, _ := o.order(host, "run", args...)
	return nodes(got)
}

type orderNeighbour struct{ Name, ID, State string }

// neighbours returns the agents that are heard of.
func (o *orders) neighbours(host string, args ...string) (all []orderNeighbour) {
	out, _ := o.lab.Exec(host, append([]string{"muster", "-o", "jsonl", "order", "neighbours"}, args...)...)
	for line := range strings.Lines(out) {
		var n orderNeighbour
		if err := json.Unmarshal([]byte(line), &n); err != nil {
			o.t.Errorf("neighbours: %v: %s", err, line)
		}
		if n.State != "caller" {
			all = append(all, n)
		}
	}
	return all
}

// joined is what a session says when it is open.
var joined = regexp.MustCompile(`order (\S+): (\d+) machines? joined, yours until`)

// hold opens a session on a host that so many machines join, and returns its Order's
// short name. What the host's operator runs then is in it. A call is made after a
// short look around; who is too slow to answer it is in the next one.
func (o *orders) hold(host string, machines int, args ...string) (id string) {
	o.t.Helper()
	o.await(fmt.Sprintf("%s has %d machines", host, machines), func() bool {
		o.shell(host, "rm -f /root/hold; systemd-run -q --collect --unit hold --setenv HOME=/root sh -c 'sleep 10000 | exec muster order call --wait 1m --retry 30 "+
			strings.Join(args, " ")+" >/root/hold 2>&1'")
		var said []string
		o.await("a session on "+host, func() bool {
			said = joined.FindStringSubmatch(o.shell(host, "cat /root/hold 2>/dev/null || :"))
			return said != nil
		})
		id = said[1]
		if said[2] == strconv.Itoa(machines) {
			return true
		}
		o.release(host)
		return false
	})
	return id
}

// release ends the session on a host, and what holds its input open.
func (o *orders) release(host string) {
	o.t.Helper()
	o.shell(host, "muster order release; systemctl stop hold")
}

// onAll runs a script on all hosts at once, and returns what it printed, by host.
func (o *orders) onAll(script string) map[string]string {
	o.t.Helper()
	type output struct {
		host, text string
		err        error
	}
	outputs := make(chan output)
	for _, host := range o.names {
		go func() {
			text, err := o.lab.Exec(host, "sh", "-ec", script)
			outputs <- output{host, text, err}
		}()
	}
	said := map[string]string{}
	var errs []error
	for range o.names {
		out := <-outputs
		said[out.host] = strings.TrimSpace(out.text)
		errs = append(errs, out.err)
	}
	if err := errors.Join(errs...); err != nil {
		o.t.Fatal(err)
	}
	return said
}

// lines returns by host how many lines commands have written into a file of /root.
func (o *orders) lines(file string) map[string]int {
	o.t.Helper()
	count := map[string]int{}
	for host, n := range o.onAll("[ ! -e /root/" + file + " ] || wc -l </root/" + file) {
		if n != "" {
			count[host], _ = strconv.Atoi(n)
		}
	}
	return count
}

// wrote demands that commands have written so many lines on these hosts, and none
// on others.
func (o *orders) wrote(file string, n int, on ...string) {
	o.t.Helper()
	got := o.lines(file)
	for _, host := range on {
		if got[host] != n {
			o.t.Errorf("%s wrote %d lines into %s, want %d", host, got[host], file, n)
		}
		delete(got, host)
	}
	for host, n := range got {
		o.t.Errorf("%s wrote %d lines into %s, and was not asked to", host, n, file)
	}
}

// awaitAll waits until everybody can be called, and answers.
func (o *orders) awaitAll(what string) {
	o.t.Helper()
	o.await(what, func() bool { return len(o.ran(operator, "--", "true")) == orderHosts })
}

func (o *orders) everybody() []string { return slices.Clone(o.names) }

// restartAgents stops all agents of the constellation before it starts the first
// again, which no other can then tell what it has heard before.
func (o *orders) restartAgents() {
	o.t.Helper()
	o.onAll("systemctl stop 'muster-scout*' 'muster-agent*'")
	o.onAll("for unit in muster-scout muster-agent; do ! systemctl -q is-enabled $unit 2>/dev/null || systemctl start $unit; done")
}
