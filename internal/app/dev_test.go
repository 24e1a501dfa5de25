//go:build unix

package app_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
)

// A running is one RunDev, whose lines can be waited for.
type running struct {
	t     *testing.T
	lines chan string
	stop  context.CancelFunc
	ended chan error
}

func startDev(t *testing.T, dir string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	d := &running{t, make(chan string, 100), cancel, make(chan error, 1)}
	go func() {
		defer close(d.lines)
		for s := bufio.NewScanner(r); s.Scan(); {
			d.lines <- s.Text()
		}
	}()
	go func() {
		d.ended <- app.RunDev(ctx, app.DevOptions{Nodes: 2, Dir: dir, Out: w, RestartAfter: 10 * time.Millisecond})
		_ = w.Close() // never fails
	}()
	t.Cleanup(d.end)
	return d
}

func (d *running) end() {
	d.stop()
	for range d.lines { // until it has ended
	}
	select {
	case err := <-d.ended:
		if err != nil {
			d.t.Error(err)
		}
		d.ended <- nil
	case <-time.After(patience):
		d.t.Error("it does not stop")
	}
}

// until waits for a line, and returns the first group of the expression.
func (d *running) until(expr string) string {
	d.t.Helper()
	e := regexp.MustCompile(expr)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case line, ok := <-d.lines:
			if !ok {
				d.t.Fatalf("it ended before %s", expr)
			}
			if m := e.FindStringSubmatch(line); m != nil {
				return m[len(m)-1]
			}
		case <-timer.C:
			d.t.Fatalf("no line %s", expr)
		}
	}
}

func TestDev(t *testing.T) {
	t.Setenv("MUSTER_CONFIG", t.TempDir())
	t.Setenv("MUSTER_CONTEXT", "")
	dir := filepath.Join(t.TempDir(), "dev")
	d := startDev(t, dir)
	pid1, pid2 := d.until(`^node1 +(\d+) `), d.until(`^node2 +(\d+) `)
	d.until("Ctrl-C")
	first := waitAlive(t, dir, "")

	if err := app.RunDev(t.Context(), app.DevOptions{Nodes: 1, Dir: dir}); muster.KindOf(err) != muster.Conflict {
		t.Errorf("a second one in the same folder: %v", err)
	}
	kill(t, pid1)
	d.until("^node1 ended")
	again := d.until(`^node1 started again, pid (\d+)`)
	d.end()
	for _, pid := range []string{pid1, pid2, again} {
		if alive(t, pid) {
			t.Errorf("process %s is still there", pid)
		}
	}

	d = startDev(t, dir)
	d.until("Ctrl-C")
	if second := waitAlive(t, dir, first); second == first {
		t.Error("the agent of the second start did not come")
	}
	d.end()
}

// A context that was chosen stays the current one: it may be of a real fleet.
func TestDevLeavesTheCurrentContextAlone(t *testing.T) {
	t.Setenv("MUSTER_CONFIG", t.TempDir())
	t.Setenv("MUSTER_CONTEXT", "")
	current := func() string {
		t.Helper()
		name, _, err := config.Chosen()
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	dir := filepath.Join(t.TempDir(), "dev")
	d := startDev(t, dir)
	d.until(`^  muster node ls$`)
	d.end()
	if got := current(); got != "dev" {
		t.Fatalf("the first context is not the current one: %q", got)
	}
	if _, err := app.Init(app.InitOptions{Dir: filepath.Join(t.TempDir(), "real"), Context: "real"}); err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{dir, filepath.Join(t.TempDir(), "fresh")} {
		d = startDev(t, folder)
		d.until(`the current one is "real" and stays that`)
		d.until(`^  muster --context dev node ls$`)
		d.end()
		if got := current(); got != "real" {
			t.Errorf("%s: the current context is %q now", folder, got)
		}
	}
}

// waitAlive waits until node2 has said that it is there, in other words than
// before, and returns them.
func waitAlive(t *testing.T, dir, before string) string {
	t.Helper()
	f := fleet{t, &world{dir: filepath.Join(dir, "fleet")}}
	op := f.operator()
	var said string
	found := errors.New("found")
	err := op.Follow(f.ctx(), bus.Query{Stream: bus.StreamNodes, Filters: []string{op.Subjects().Node(bus.AnyMailbox, "node2")}, Last: true}, func(m bus.Stored) error {
		if said = string(m.Data); said == before {
			return nil
		}
		return found
	})
	if !errors.Is(err, found) {
		t.Fatal(err)
	}
	return said
}

// TestAgentEndsWithParent kills what holds the other end of an agent's pipe.
func TestAgentEndsWithParent(t *testing.T) {
	f := startFleet(t, carrier{})
	dir := filepath.Join(t.TempDir(), "node")
	if err := f.join(f.invite("n"), dir); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "agent", "--state", dir)
	cmd.ExtraFiles = []*os.File{r}
	cmd.Env = append(os.Environ(), app.ParentVariable+"=3")
	var log strings.Builder
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = r.Close() // the child has its own
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	_ = w.Close() // as the kernel does when its holder is killed
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("%v: %s", err, log.String())
		}
	case <-time.After(patience):
		_ = cmd.Process.Kill() // it may just have ended
		<-ended
		t.Fatalf("the agent lives on: %s", log.String())
	}
}

func number(t *testing.T, pid string) int {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func kill(t *testing.T, pid string) {
	t.Helper()
	if err := syscall.Kill(number(t, pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func alive(t *testing.T, pid string) bool { return syscall.Kill(number(t, pid), 0) == nil }
