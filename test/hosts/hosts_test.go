package hosts_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster/test/hosts"
)

// TestHosts tries what the package wraps; `make hosts-selftest` tries the rest.
func TestHosts(t *testing.T) {
	lab := hosts.Up(t, 3)
	if got := lab.Must("all", "hostname"); got != "h1\nh2\nh3\n" {
		t.Errorf("hostnames %q", got)
	}
	var exit *exec.ExitError
	if _, err := lab.Exec("h1", "sh", "-c", "exit 42"); !errors.As(err, &exit) || exit.ExitCode() != 42 {
		t.Errorf("exit status: %v", err)
	}
	if got, err := lab.Pipe("h2", strings.NewReader("hello"), "cat"); err != nil || got != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	lab.Push("h1", file, "/root/copy")
	lab.Pull("h1", "/root/copy", file+".back")
	if data, err := os.ReadFile(file + ".back"); err != nil || string(data) != "content" {
		t.Errorf("%q, %v", data, err)
	}
	if h1, h2 := lab.Address("h1"), lab.Address("h2"); h1 == h2 || !strings.HasSuffix(h1, ".11") {
		t.Errorf("addresses %s and %s", h1, h2)
	}
	tryNetwork(t, lab)
	tryPower(t, lab)
}

func tryNetwork(t *testing.T, lab *hosts.Lab) {
	reach := func(from, to string, want bool) {
		t.Helper()
		wait := "1"
		if want { // a mended link is up in a moment
			wait = "60"
		}
		_, err := lab.Exec(from, "ping", "-c1", "-w"+wait, "-q", to)
		if (err == nil) != want {
			t.Errorf("%s reaches %s: %v", from, to, err)
		}
	}
	reach("h1", "h2", true)
	for _, how := range [][]string{nil, {"silent"}, {"h1"}} {
		lab.Cut("h2", how...)
		reach("h1", "h2", false)
		reach("h1", "h3", true)
		lab.Heal("h2")
		reach("h1", "h2", true)
	}
	lab.Loss("h2", 100)
	reach("h1", "h2", false)
	lab.Heal("all")
	reach("h1", "h2", true)
}

func tryPower(t *testing.T, lab *hosts.Lab) {
	lab.Must("h3", "sh", "-c", "echo kept >/root/kept; sync")
	lab.Kill("h3")
	if _, err := lab.Exec("h3", "true"); err == nil {
		t.Error("a host without power runs commands")
	}
	if !strings.Contains(lab.Logs("h3"), "systemd") {
		t.Error("no journal of a host without power")
	}
	begun := time.Now()
	lab.Start("h3")
	if got := lab.Must("h3", "cat", "/root/kept"); got != "kept\n" {
		t.Errorf("after a power cut: %q", got)
	}
	t.Logf("h3 was up again in %v", time.Since(begun))
	lab.Stop("h3")
	lab.Start("h3")
}
