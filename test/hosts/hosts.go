// Package hosts gives tests real hosts: system containers with systemd, Podman
// and Caddy on a network of their own, which can be cut, lost and switched off.
//
//	lab := hosts.Up(t, 3, "bin/muster")
//	lab.Must("h1", "systemctl", "is-system-running")
//	lab.Cut("h2")
//
// They are made by testhosts.sh, which stands beside this file and does more than
// this package wraps: see Run. They need root and a tree of Debian packages,
// which `make hosts` downloads; without these the test is skipped.
package hosts

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// patience is how long one command of the script may take: far longer than it does,
// since another machine may be slower, or busy.
const patience = 15 * time.Minute

// A Lab is a set of hosts, h1 to hN. They end with the test.
type Lab struct {
	t    testing.TB
	name string
}

var labs atomic.Int32 // numbers the labs of this process

// Up boots n hosts, with the files in their /usr/local/bin.
func Up(t testing.TB, n int, files ...string) *Lab {
	t.Helper()
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		t.Skip("hosts for tests need Linux and root")
	}
	l := &Lab{t: t, name: fmt.Sprintf("muster-%d-%d", os.Getpid(), labs.Add(1))}
	if _, err := l.Run("check"); err != nil {
		t.Skipf("there can be no hosts here: %v", err)
	}
	if _, err := l.Run("built"); err != nil {
		t.Skip("there are no hosts for tests: `make hosts` downloads what they need, or says why it cannot")
	}
	l.queue()
	l.sweep()
	t.Cleanup(l.Down)
	if _, err := l.Run("try"); err != nil {
		t.Skipf("a host does not work here: %v", err)
	}
	for i, f := range files {
		absolute, err := filepath.Abs(f)
		if err != nil {
			t.Fatal(err)
		}
		files[i] = absolute
	}
	l.must(append([]string{"up", strconv.Itoa(n)}, files...)...)
	return l
}

// Run runs testhosts.sh for this lab, and returns its standard output. The error
// has what it wrote to the other.
func (l *Lab) Run(args ...string) (string, error) { return l.run(l.name, nil, args...) }

func (l *Lab) run(name string, in io.Reader, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, script(), args...)
	cmd.Env = append(os.Environ(), "TESTHOSTS_LAB="+name, "TESTHOSTS_STATE="+filepath.Join(disks(), name))
	cmd.Stdin = in
	// A host's processes may keep the pipes: they are not waited for.
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return stdout.String(), fmt.Errorf("testhosts.sh %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// script returns the path of testhosts.sh, wherever the test runs.
func script() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "testhosts.sh")
}

func (l *Lab) must(args ...string) string {
	l.t.Helper()
	out, err := l.Run(args...)
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

// Exec runs a command on a host, or one after the other on "all", and returns its
// output. A failed command's error is an *exec.ExitError with its status.
func (l *Lab) Exec(host string, args ...string) (string, error) {
	return l.Run(append([]string{"exec", host}, args...)...)
}

// Pipe is Exec with something to read for the command.
func (l *Lab) Pipe(host string, in io.Reader, args ...string) (string, error) {
	return l.run(l.name, in, append([]string{"exec", host}, args...)...)
}

// Must is Exec where failing ends the test.
func (l *Lab) Must(host string, args ...string) string {
	l.t.Helper()
	return l.must(append([]string{"exec", host}, args...)...)
}

// Push copies a file or folder into a host, or into "all".
func (l *Lab) Push(host, from, to string) { l.t.Helper(); l.must("push", host, from, to) }

// Pull copies a file or folder out of a host.
func (l *Lab) Pull(host, from, to string) { l.t.Helper(); l.must("pull", host, from, to) }

// Cut unplugs a host, or drops its packets: all with "silent", or those to and
// from one other host.
func (l *Lab) Cut(host string, how ...string) {
	l.t.Helper()
	l.must(append([]string{"cut", host}, how...)...)
}

// Loss drops so many of a host's packets in 100.
func (l *Lab) Loss(host string, percent float64) {
	l.t.Helper()
	l.must("loss", host, strconv.FormatFloat(percent, 'f', 2, 64))
}

// Delay holds a host's packets for so many milliseconds, each way. Not every kernel
// can do that: it is an error that the test may skip for.
func (l *Lab) Delay(host string, ms int) error {
	_, err := l.Run("delay", host, strconv.Itoa(ms))
	return err
}

// Heal undoes Cut, Loss and Delay for a host, or for "all".
func (l *Lab) Heal(host string) { l.t.Helper(); l.must("heal", host) }

// Kill is a power cut.
func (l *Lab) Kill(host string) { l.t.Helper(); l.must("kill", host) }

// Stop shuts a host down in good order.
func (l *Lab) Stop(host string) { l.t.Helper(); l.must("stop", host) }

// Start boots a host again, with the disk that it had, and waits for it.
func (l *Lab) Start(host string) { l.t.Helper(); l.must("start", host) }

// Address returns the IPv4 address of a host.
func (l *Lab) Address(host string) string {
	l.t.Helper()
	return strings.TrimSpace(l.must("addr", host))
}

// Namespace returns the file of the network namespace that the hosts' bridge is in,
// which sees all that they send.
func (l *Lab) Namespace() string { return "/run/netns/" + l.name + "-net" }

// Logs returns a host's journal, also of one that is down.
func (l *Lab) Logs(host string, args ...string) string {
	l.t.Helper()
	return l.must(append([]string{"logs", host}, args...)...)
}

// Down ends the hosts and removes all of them. The end of the test does it too.
func (l *Lab) Down() {
	l.t.Helper()
	if _, err := l.Run("down"); err != nil {
		l.t.Error(err)
	}
}

// disks is the folder for the disks of all labs.
func disks() string { return cmp.Or(os.Getenv("TESTHOSTS_STATE"), "/var/tmp") }

// queue waits for the labs of other tests to end, also those of other processes:
// Linux does not give a user enough inotify instances for two large ones.
func (l *Lab) queue() {
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "flock", "/run/muster-test-hosts.lock", "sh", "-c", "echo mine; cat")
	in, err := cmd.StdinPipe() // its end, also that of a killed test, ends the command
	if err != nil {
		l.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		in.Close()
		cancel()
		_ = cmd.Wait() // killed
	})
	if _, err := io.ReadFull(out, make([]byte, len("mine"))); err != nil {
		l.t.Skipf("other tests with hosts cannot be waited for, at /run/muster-test-hosts.lock: %v", err)
	}
}

// left matches what is left of a lab, by the process that made it.
var left = regexp.MustCompile(`^(muster-(\d+)-\d+)(-net)?$`)

// sweep ends the hosts of tests that were killed before they could, and those of an
// earlier process with the number of this one.
func (l *Lab) sweep() {
	for _, dir := range []string{"/run/netns", disks()} {
		all, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			l.t.Fatal(err)
		}
		for _, entry := range all {
			m := left.FindStringSubmatch(entry.Name())
			if m == nil || m[1] != l.name && lives(m[2]) {
				continue
			}
			l.t.Logf("ending the hosts of %s, whose test is gone", m[1])
			if _, err := l.run(m[1], nil, "down"); err != nil {
				l.t.Log(err) // it is not in the way of this one
			}
		}
	}
}

func lives(process string) bool {
	_, err := os.Stat("/proc/" + process)
	return !errors.Is(err, os.ErrNotExist)
}
