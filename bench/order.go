package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/musterfleet/muster/internal/constellation"
	"github.com/musterfleet/muster/internal/order"
	"github.com/musterfleet/muster/internal/seal"
)

const (
	scouts       = 50
	idleTime     = 60 * time.Second
	settleTime   = 45 * time.Second // in which 50 scouts find one another
	stormFrames  = 100_000
	stormSenders = 500
	runs         = 9
)

// orders measures the small agent. Scouts run in network namespaces of their
// own, one bridge between them, so that what they multicast stays there.
func orders(ctx context.Context, exe, dir string) error {
	fmt.Printf("\n## Orders\n\n| what | figure | limit |\n| --- | --- | --- |\n")
	scout := filepath.Join(filepath.Dir(exe), "scout")
	info, err := os.Stat(scout)
	if err != nil {
		return err
	}
	fmt.Printf("| scout, stripped | %d bytes | 4 MB |\n", info.Size())
	c, operator, err := constellation.Generate("bench", rand.Reader)
	if err != nil {
		return err
	}
	ram, err := os.MkdirTemp("/dev/shm", "muster-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(ram)
	l := &segment{ram: ram, dir: dir, exe: exe, scout: scout, prefix: "mb" + strconv.Itoa(os.Getpid()) + "-"}
	if err := errors.Join(c.Write(l.file("constellation.json")), operator.Write(l.file("operator.json"))); err != nil {
		return err
	}
	if err := l.storm(ctx, c); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		fmt.Printf("\nThe rest needs root, for network namespaces.\n")
		return nil
	}
	defer l.remove()
	if err := l.fifty(ctx); err != nil {
		return err
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err
	}
	fmt.Printf("\nLoad average of the machine at the end: %s\n", strings.Join(strings.Fields(string(load))[:3], " "))
	return nil
}

// scale prints how waves grow with the number of agents, as the simulator of the
// protocol has it. It is a test of its package, since the simulator is.
func scale(ctx context.Context, _, _ string) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-v", "-run", "TestScale$", "./internal/order")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("simulate waves: %w\n%s", err, out)
	}
	fmt.Printf("\n## Waves in simulation, 2.3 ms a hop\n\n")
	for line := range strings.Lines(string(out)) {
		if _, figures, found := strings.Cut(line, ".go:"); found {
			_, figures, _ = strings.Cut(figures, ": ")
			fmt.Printf("- %s", figures)
		}
	}
	return nil
}

// A segment is a bridge in a namespace, and namespaces linked to it.
type segment struct {
	dir, exe, scout, prefix string
	ram                     string // of the scouts, which sync their logs: 50 machines have 50 disks, but here is one
	spaces                  []string
	processes               []*exec.Cmd
}

func (l *segment) file(name string) string { return filepath.Join(l.dir, name) }

func (l *segment) arguments(name string) []string {
	return []string{"--constellation", l.file("constellation.json"), "--name", name, "--state", filepath.Join(l.ram, name), "--lock-dir", filepath.Join(l.ram, "lock-"+name)}
}

// storm sends a scout more than it can use, all of it authentic.
func (l *segment) storm(ctx context.Context, c constellation.Constellation) error {
	box, err := seal.New(c.Key, c.Secret.Reveal(), rand.Reader)
	if err != nil {
		return err
	}
	const port = 16776
	cmd := exec.CommandContext(ctx, l.scout, append(l.arguments("storm"), "--listen", "127.0.0.1", "--port", strconv.Itoa(port))...)
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }() // it is of no more use
	time.Sleep(5 * time.Second)
	idle, err := status(cmd.Process.Pid, "VmRSS:")
	if err != nil {
		return err
	}
	fmt.Printf("| idle scout, resident | %.1f MiB | 6 MiB |\n", float64(idle)/1024)
	conn, err := net.Dial("udp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return err
	}
	defer conn.Close()
	begun := time.Now()
	for i := range stormFrames {
		f := order.Frame{Counter: uint64(i + 1), Body: &order.Hello{Name: "stranger"}}
		f.Src[0], f.Src[1] = byte(i%stormSenders>>8), byte(i%stormSenders)
		copy(f.Body.(*order.Hello).ID[:], f.Src[:])
		data, err := order.Encode(f)
		if err != nil {
			return err
		}
		envelope, err := box.Seal(nil, data)
		if err != nil {
			return err
		}
		if _, err := conn.Write(envelope); err != nil {
			return err
		}
		if i%50 == 49 {
			time.Sleep(2 * time.Millisecond) // the kernel's queue would lose the rest
		}
	}
	took := time.Since(begun)
	peak, err := status(cmd.Process.Pid, "VmHWM:")
	if err != nil {
		return err
	}
	fmt.Printf("| %d authentic frames of %d senders in %.1f s: most resident | %.1f MiB | 10 MiB |\n", stormFrames, stormSenders, took.Seconds(), float64(peak)/1024)
	return nil
}

// status returns a line of /proc/PID/status, in kibibytes.
func status(pid int, name string) (int, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == name {
			return strconv.Atoi(fields[1])
		}
	}
	return 0, fmt.Errorf("no %s in the status of %d", name, pid)
}

func (l *segment) ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// hub is the namespace with the bridge, in which the operator is too.
func (l *segment) hub() string { return l.prefix + "hub" }

func (l *segment) make() error {
	l.spaces = append(l.spaces, l.hub())
	steps := [][]string{
		{"netns", "add", l.hub()}, {"-n", l.hub(), "link", "add", "br0", "type", "bridge", "mcast_snooping", "0"},
		{"-n", l.hub(), "addr", "add", "10.76.0.1/16", "dev", "br0"}, {"-n", l.hub(), "link", "set", "br0", "up"}, {"-n", l.hub(), "link", "set", "lo", "up"},
	}
	for k := range scouts {
		ns, far := l.prefix+strconv.Itoa(k), "p"+strconv.Itoa(k)
		l.spaces = append(l.spaces, ns)
		steps = append(steps, [][]string{
			{"netns", "add", ns}, {"-n", l.hub(), "link", "add", far, "type", "veth", "peer", "name", "eth0", "netns", ns},
			{"-n", l.hub(), "link", "set", far, "master", "br0", "up"}, {"-n", ns, "addr", "add", fmt.Sprintf("10.76.1.%d/16", k+1), "dev", "eth0"},
			{"-n", ns, "link", "set", "eth0", "up"}, {"-n", ns, "link", "set", "lo", "up"},
		}...)
	}
	for _, s := range steps {
		if err := l.ip(s...); err != nil {
			return err
		}
	}
	return nil
}

func (l *segment) remove() {
	for _, p := range l.processes {
		_ = p.Process.Kill() // it may have ended
		_ = p.Wait()
	}
	for _, ns := range l.spaces {
		_ = l.ip("netns", "del", ns) // it may never have been made
	}
}

// fifty measures scouts that wait, and then an operator who does not.
func (l *segment) fifty(ctx context.Context) error {
	if err := l.make(); err != nil {
		return err
	}
	for k := range scouts {
		name := "s" + strconv.Itoa(k)
		cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", l.prefix + strconv.Itoa(k), l.scout}, l.arguments(name)...)...)
		if err := cmd.Start(); err != nil {
			return err
		}
		l.processes = append(l.processes, cmd)
	}
	time.Sleep(settleTime)
	before, err := l.use()
	if err != nil {
		return err
	}
	time.Sleep(idleTime)
	after, err := l.use()
	if err != nil {
		return err
	}
	seconds := idleTime.Seconds()
	perScout := func(a, b float64) float64 { return (b - a) / scouts / seconds }
	fmt.Printf("| %d idle scouts: each sends, on the wire | %.0f bit/s | 250 bit/s |\n", scouts, perScout(before.sent, after.sent)*8)
	fmt.Printf("| %d idle scouts: each receives, which is what the others multicast | %.0f bit/s | |\n", scouts, perScout(before.received, after.received)*8)
	fmt.Printf("| %d idle scouts: processor time of each | %.3f %% | 0.1 %% |\n", scouts, 100*perScout(before.cpu, after.cpu))
	fmt.Printf("| %d idle scouts: the median and the largest, resident | %.1f, %.1f MiB | 6 MiB |\n", scouts, after.resident[scouts/2]/1024, after.resident[scouts-1]/1024)
	return l.operate(ctx)
}

// A use is what all scouts together have used so far.
type use struct {
	sent, received, cpu float64
	resident            []float64 // KiB of each, sorted
}

func (l *segment) use() (use, error) {
	var u use
	for k, p := range l.processes {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(p.Process.Pid) + "/stat")
		if err != nil {
			return u, err
		}
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		for _, f := range fields[11:13] { // user and system time, in hundredths of a second
			ticks, err := strconv.ParseFloat(f, 64)
			if err != nil {
				return u, err
			}
			u.cpu += ticks / 100
		}
		rss, err := status(p.Process.Pid, "VmRSS:")
		if err != nil {
			return u, err
		}
		u.resident = append(u.resident, float64(rss))
		for name, to := range map[string]*float64{"tx_bytes": &u.sent, "rx_bytes": &u.received} {
			out, err := exec.Command("ip", "netns", "exec", l.prefix+strconv.Itoa(k), "cat", "/sys/class/net/eth0/statistics/"+name).Output()
			if err != nil {
				return u, err
			}
			n, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
			if err != nil {
				return u, err
			}
			*to += n
		}
	}
	slices.Sort(u.resident)
	return u, nil
}

// operate measures an operator's command from its start to its end.
func (l *segment) operate(ctx context.Context) error {
	var took []time.Duration
	for range runs {
		cmd := exec.CommandContext(ctx, "ip", "netns", "exec", l.hub(), l.exe, "order", "run", "--interface", "br0", "--constellation", l.file("constellation.json"),
			"--operator", l.file("operator.json"), "--", "echo", "hello")
		cmd.Env = append(os.Environ(), "MUSTER_CONFIG="+l.dir, "XDG_RUNTIME_DIR="+l.dir)
		last, err := lastAnswer(cmd)
		if err != nil {
			return err
		}
		took = append(took, last)
		time.Sleep(time.Second) // an operator may call twice a second
	}
	slices.Sort(took)
	fmt.Printf("| order run over %d scouts, from Enter to the last answer, logs on a RAM disk, median of %d | %d ms | 300 ms |\n", scouts, runs, took[runs/2].Milliseconds())
	fmt.Printf("| order run over %d scouts, slowest of %d | %d ms | |\n", scouts, runs, took[runs-1].Milliseconds())
	return nil
}

// lastAnswer runs an operator's command and returns how long it took until the
// last machine's answer was there.
func lastAnswer(cmd *exec.Cmd) (time.Duration, error) {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	var last time.Duration
	answers := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.HasSuffix(lines.Text(), "| hello") {
			answers++
			last = time.Since(begun)
		}
	}
	if err := cmd.Wait(); err != nil || answers != scouts {
		return 0, fmt.Errorf("order run: %d answers, %w: %s", answers, err, complaints.String())
	}
	return last, nil
}
