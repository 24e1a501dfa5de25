package methods

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/method"
)

// helperVariable makes the test binary play the part of another process.
const helperVariable = "METHODS_TEST_HELPER"

func TestMain(m *testing.M) {
	switch os.Getenv(helperVariable) {
	case "":
		os.Exit(m.Run())
	case "agent":
		helperAgent()
	case "end-tagged":
		helperEndTagged()
	}
}

const tagVariable = "METHODS_TEST_TAG"

// testTag returns a tag that no other test has, also not one of another run of
// these tests on this machine at the same time.
func testTag(name string) string { return fmt.Sprintf("%s=%s-%d", tagVariable, name, os.Getpid()) }

// helper returns a command that runs the test binary in another part.
func helper(t *testing.T, part string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(append(os.Environ(), helperVariable+"="+part), env...)
	cmd.Stderr = t.Output()
	return cmd
}

// running reports whether a process exists that is no zombie.
func running(pid int) bool {
	s, err := readStat(pid)
	return err == nil && s.state != 'Z' && s.state != 'X'
}

// awaitGone waits for a process to end. The kernel takes a moment after kill
// has returned.
func awaitGone(t *testing.T, pid int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for running(pid) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d is still there", pid)
		}
		<-time.After(time.Millisecond)
	}
}

// pidIn reads a process id that a script has printed on the first line.
func pidIn(t *testing.T, out string) int {
	t.Helper()
	line, _, _ := strings.Cut(out, "\n")
	pid, err := strconv.Atoi(line)
	if err != nil || pid < 2 {
		t.Fatalf("no process id in %q", out)
	}
	return pid
}

func TestShellRun(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho script\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "plain"), []byte("echo plain"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "locked"), []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "orphan"), []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MUSTER_TOKEN", "secret")
	t.Setenv("NOTIFY_SOCKET", "/run/systemd/notify")
	t.Setenv("MEMORY_PRESSURE_WATCH", "/sys/fs/cgroup/memory.pressure")
	t.Setenv("HOME", "") // as in a service of root
	tests := []struct {
		name, input    string
		stdout, stderr string
		code           int // -1 for none
		kind           muster.ErrorKind
		want           string
	}{
		{"argv", `{"argv": ["printf", "%s|", "a b", "$HOME"]}`, "a b|$HOME|", "", 0, "", ""},
		{"script", `{"shell": "echo a; echo b >&2"}`, "a\n", "b\n", 0, "", ""},
		{"exit status", `{"shell": "echo a; exit 3"}`, "a\n", "", 3, muster.Failed, "exit status 3"},
		{"signal", `{"shell": "kill -USR1 $$"}`, "", "", -1, muster.Failed, "killed by SIGUSR1"},
		{"stdin", `{"argv": ["cat"], "stdin": "héllo"}`, "héllo", "", 0, "", ""},
		{"no stdin", `{"argv": ["cat"]}`, "", "", 0, "", ""},
		{"stdin not read", `{"argv": ["true"], "stdin": ` + quote(strings.Repeat("x", 200<<10)) + `}`, "", "", 0, "", ""},
		{"much output", `{"shell": "head -c 300000 /dev/zero | tr '\\0' x"}`, strings.Repeat("x", 300000), "", 0, "", ""},
		{"dir", `{"argv": ["pwd"], "dir": "DIR"}`, dir + "\n", "", 0, "", ""},
		{"relative to dir", `{"argv": ["./script"], "dir": "DIR"}`, "script\n", "", 0, "", ""},
		{"env", `{"shell": "echo $A-$B", "env": {"A": "1", "B": "x y"}}`, "1-x y\n", "", 0, "", ""},
		{"path of env", `{"argv": ["script"], "env": {"PATH": "/nowhere:DIR"}}`, "script\n", "", 0, "", ""},
		{"agent's variables", `{"shell": "echo ${MUSTER_TOKEN-none} ${NOTIFY_SOCKET-none} ${MEMORY_PRESSURE_WATCH-none}"}`, "none none none\n", "", 0, "", ""},
		{"home", `{"shell": "echo ${HOME:+known}"}`, "known\n", "", 0, "", ""},
		{"the tag counts", `{"shell": "echo $TAG", "env": {"TAG": "hidden"}}`, "of-the-run\n", "", 0, "", ""},
		{"not found", `{"argv": ["no-such-command"]}`, "", "", -1, muster.NotFound, `command "no-such-command" was not found`},
		{"not found in dir", `{"argv": ["./none"], "dir": "DIR"}`, "", "", -1, muster.NotFound, `command "./none" was not found`},
		{"no interpreter", `{"argv": ["DIR/orphan"]}`, "", "", -1, muster.NotFound, "was not found"},
		{"not executable", `{"argv": ["DIR/locked"]}`, "", "", -1, muster.Denied, "may not be run"},
		{"no format", `{"argv": ["DIR/plain"]}`, "", "", -1, muster.Invalid, "exec format error"},
		{"NUL", `{"argv": ["echo", "a\u0000b"]}`, "", "", -1, muster.Invalid, "could not be started"},
		{"empty name", `{"argv": [""]}`, "", "", -1, muster.Invalid, "is empty"},
		{"neither", `{}`, "", "", -1, muster.Invalid, "exactly one of argv and shell"},
		{"both", `{"argv": ["true"], "shell": "true"}`, "", "", -1, muster.Invalid, "exactly one of argv and shell"},
		{"no dir", `{"argv": ["true"], "dir": "DIR/none"}`, "", "", -1, muster.NotFound, "DIR/none"},
		{"dir is a file", `{"argv": ["true"], "dir": "DIR/plain"}`, "", "", -1, muster.Invalid, "is not a directory"},
		{"relative dir", `{"argv": ["true"], "dir": "x"}`, "", "", -1, muster.Invalid, "expected an absolute path"},
		{"no user", `{"argv": ["true"], "user": "nobody-has-this-name"}`, "", "", -1, muster.NotFound, "does not exist here"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var c call
			c.invoke(t.Context(), builtinNamed(t, "shell.run"), inDir(tt.input, dir), "TAG=of-the-run")
			c.want(t, tt.kind, inDir(tt.want, dir))
			if got := c.stdout.String(); got != tt.stdout {
				t.Errorf("got stdout %.100q, want %.100q", got, tt.stdout)
			}
			if got := c.stderr.String(); got != tt.stderr {
				t.Errorf("got stderr %q, want %q", got, tt.stderr)
			}
			code := -1
			if c.outcome.ExitCode != nil {
				code = *c.outcome.ExitCode
			}
			if code != tt.code {
				t.Errorf("got exit code %d, want %d", code, tt.code)
			}
			if c.child.PID == 0 {
				return // it was not started
			}
			out := decodeOutput[shellOutput](t, &c)
			if out.PID != c.child.PID || c.child.Started.IsZero() || (out.ExitCode == nil) != (tt.code < 0) || (out.Signal == "") != (tt.code >= 0) {
				t.Errorf("got output %s, child %+v", c.outcome.Output, c.child)
			}
		})
	}
}

func TestShellRunDefaultPath(t *testing.T) {
	t.Setenv("PATH", "")
	var c call
	c.invoke(t.Context(), builtinNamed(t, "shell.run"), `{"argv": ["sh", "-c", "echo $PATH"]}`)
	c.want(t, "", "")
	if got := c.stdout.String(); got != defaultPath+"\n" {
		t.Errorf("got %q", got)
	}
}

func TestShellRunAsUser(t *testing.T) {
	self, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	const script = `{"shell": "id -u; id -G; echo $HOME $USER $LOGNAME", "user": %s}`
	names := []string{self.Username}
	if os.Geteuid() == 0 {
		names = append(names, "nobody")
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			u, err := user.Lookup(name)
			if err != nil {
				t.Skipf("there is no user %s here: %v", name, err)
			}
			var c call
			c.invoke(t.Context(), builtinNamed(t, "shell.run"), fmt.Sprintf(script, quote(name)))
			c.want(t, "", "")
			lines := strings.Split(c.stdout.String(), "\n")
			if want := fmt.Sprintf("%s %s %s", u.HomeDir, name, name); lines[0] != u.Uid || lines[2] != want {
				t.Errorf("got %q, want %s and %q", lines, u.Uid, want)
			}
			if name == self.Username {
				return // its groups are those of this process
			}
			groups, _ := u.GroupIds()
			got := strings.Fields(lines[1])
			slices.Sort(got)
			slices.Sort(groups)
			if !slices.Equal(got, groups) {
				t.Errorf("got groups %q, want %q", got, groups)
			}
		})
	}
}

func TestShellRunAsUserNeedsRoot(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may run commands as anyone")
	}
	var c call
	c.invoke(t.Context(), builtinNamed(t, "shell.run"), `{"argv": ["true"], "user": "root"}`)
	c.want(t, muster.Denied, "only an agent that runs as root")
}

// What was started in the background does not outlive the command.
func TestShellRunEndsBackground(t *testing.T) {
	var c call
	c.invoke(t.Context(), builtinNamed(t, "shell.run"), `{"shell": "sleep 1000 & echo $!"}`)
	c.want(t, "", "")
	awaitGone(t, pidIn(t, c.stdout.String()))
}

func TestShellRunStops(t *testing.T) {
	// A shell acts on SIGTERM when the command that it waits for ends. That one
	// may be started just after the signal was sent, so that it has to be short.
	const forever = "while :; do sleep 0.05; done"
	tests := []struct {
		name, script string
		grace        time.Duration
		stdout, want string
		code         int // -1 for killed
	}{
		{"by SIGTERM", "echo $$; " + forever, patience, "", "killed by SIGTERM", -1},
		{"cleans up", "trap 'echo bye; exit 7' TERM; echo $$; " + forever, patience, "bye\n", "it exited with status 7", 7},
		{"exits with 0", "trap 'exit 0' TERM; echo $$; " + forever, patience, "", "it exited with status 0", 0},
		{"does not listen", "trap '' TERM; echo $$; " + forever, 20 * time.Millisecond, "", "killed by SIGKILL", -1},
		{"is stopped", "echo $$; kill -STOP $$", patience, "", "killed by SIGTERM", -1},
		{"child cleans up", "(trap 'echo bye; exit' TERM; echo $$; " + forever + "); true", patience, "bye\n", "killed by SIGTERM", -1},
		// The shell acts on SIGTERM, unless it has no CPU before SIGKILL comes.
		{"child does not listen", "(trap '' TERM; echo $$; " + forever + "); true", 20 * time.Millisecond, "", "killed by SIG", -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var c call
			wait := c.start(ctx, shellRun(tt.grace), `{"shell": `+quote(tt.script)+`}`, "TAG=x")
			c.stdout.await(t, "\n")
			cancel()
			wait(t)
			c.want(t, muster.Interrupted, tt.want)
			first, rest, _ := strings.Cut(c.stdout.String(), "\n")
			if rest != tt.stdout {
				t.Errorf("got %q, want %q", rest, tt.stdout)
			}
			if pid := pidIn(t, first); pid != c.child.PID || groupAlive(pid) && !gone(pid) {
				t.Errorf("group of %d (child %d) is still there", pid, c.child.PID)
			}
			if code := c.outcome.ExitCode; (code == nil) != (tt.code < 0) || code != nil && *code != tt.code {
				t.Errorf("got output %s, want exit code %d", c.outcome.Output, tt.code)
			}
		})
	}
}

// gone waits for a group that was killed to end, and reports whether it did.
func gone(pgid int) bool {
	for deadline := time.Now().Add(patience); groupAlive(pgid); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

func TestShellRunTimesOut(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var c call
	c.invoke(ctx, builtinNamed(t, "shell.run"), `{"argv": ["sleep", "1000"]}`)
	c.want(t, muster.TimedOut, "its time was up")
}

// A child that left the group keeps the pipes open; the run ends nevertheless,
// and EndTagged finds the child.
func TestShellRunIsNotHeldByDaemon(t *testing.T) {
	tag := testTag("daemon")
	dir := t.TempDir()
	// The fifo keeps the shell until setsid has happened.
	script := `mkfifo ready; setsid sh -c 'echo $$; echo > ready; exec sleep 1000' & read x < ready`
	var c call
	wait := c.start(t.Context(), builtinNamed(t, "shell.run"), `{"shell": `+quote(script)+`, "dir": `+quote(dir)+`}`, tag)
	wait(t)
	c.want(t, "", "")
	pid := pidIn(t, c.stdout.String())
	if !running(pid) {
		t.Errorf("process %d, which had left the group, was killed with it", pid)
	}
	ended, err := EndTagged(t.Context(), tag)
	if err != nil || len(ended) != 1 || ended[0].PID != pid {
		t.Errorf("got %v, %v; want process %d", ended, err, pid)
	}
	awaitGone(t, pid)
}

// The process dies with the agent, even when that is killed.
func TestShellRunDiesWithAgent(t *testing.T) {
	agent := helper(t, "agent")
	out, err := agent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatalf("the agent did not start: %v", lines.Err())
	}
	pid := pidIn(t, lines.Text())
	if !running(pid) {
		t.Fatalf("process %d does not run", pid)
	}
	_ = agent.Process.Kill()
	_ = agent.Wait()
	awaitGone(t, pid)
}

// helperAgent runs a command that it never ends, and prints its process id.
func helperAgent() {
	_, err := shellRun(DefaultGrace).Invoke(context.Background(), method.Invocation{
		Input: []byte(`{"argv": ["sleep", "1000"]}`), Stdout: io.Discard, Stderr: io.Discard,
		Started: func(child muster.Child) { fmt.Println(child.PID) },
	})
	fmt.Println(err)
}

func TestShellRunMany(t *testing.T) {
	var group sync.WaitGroup
	calls := make([]call, 30)
	m := builtinNamed(t, "shell.run")
	for i := range calls {
		group.Go(func() { calls[i].invoke(t.Context(), m, fmt.Sprintf(`{"shell": "echo %d"}`, i)) })
	}
	group.Wait()
	for i := range calls {
		calls[i].want(t, "", "")
		if got, want := calls[i].stdout.String(), fmt.Sprintf("%d\n", i); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestEndTagged(t *testing.T) {
	tag := testTag("end-tagged")
	start := func(env string, attr *syscall.SysProcAttr, script string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", script)
		cmd.Env = append(os.Environ(), env)
		cmd.SysProcAttr = attr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil { // it has executed, and so has its environment
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		return cmd
	}
	const sleep = "echo; exec sleep 1000"
	ownGroup := start(tag, nil, sleep)
	leader := start(tag, &syscall.SysProcAttr{Setpgid: true}, sleep)
	member := start("OTHER=1", &syscall.SysProcAttr{Setpgid: true, Pgid: leader.Process.Pid}, sleep)
	second := start(tag, &syscall.SysProcAttr{Setpgid: true, Pgid: leader.Process.Pid}, sleep)
	// It starts others as fast as it can, each in a session of its own.
	spawner := start(tag, &syscall.SysProcAttr{Setsid: true}, "echo; while :; do setsid sleep 1000 & done")
	longer := start(tag+"-2", &syscall.SysProcAttr{Setpgid: true}, sleep)
	named := start(tag, &syscall.SysProcAttr{Setsid: true}, "export MUSTER_COMMAND=01CALL; exec sh -c '"+sleep+"'")
	other := start("OTHER="+tag, &syscall.SysProcAttr{Setpgid: true}, sleep)

	ended, err := EndTagged(t.Context(), tag)
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]method.Orphan{}
	for _, c := range ended {
		found[c.PID] = c
	}
	for _, cmd := range []*exec.Cmd{ownGroup, leader, member, second, spawner} {
		awaitGone(t, cmd.Process.Pid)
	}
	for _, cmd := range []*exec.Cmd{ownGroup, leader, second, spawner} {
		c, ok := found[cmd.Process.Pid]
		if age := time.Since(c.Started); !ok || age < -time.Minute || age > time.Hour {
			t.Errorf("process %d: got %+v, %t", cmd.Process.Pid, c, ok)
		}
	}
	if c := found[named.Process.Pid]; c.Command != "01CALL" {
		t.Errorf("it is of the command %q", c.Command)
	}
	for _, cmd := range []*exec.Cmd{longer, other} {
		if !running(cmd.Process.Pid) {
			t.Errorf("process %d has another tag, but was killed", cmd.Process.Pid)
		}
	}
	if left, err := killTagged(tag); err != nil || len(left) > 0 {
		t.Errorf("%v are left, %v", left, err)
	}
	if again, err := EndTagged(t.Context(), tag); err != nil || len(again) > 0 {
		t.Errorf("a second time: got %v, %v", again, err)
	}
	t.Logf("%d processes: %v", len(ended), slices.Sorted(maps.Keys(found)))
}

// It never signals itself, even if it has the tag.
func TestEndTaggedSparesItself(t *testing.T) {
	cmd := helper(t, "end-tagged", testTag("self"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that a mistake would not end this test as well
	out, err := cmd.Output()
	if err != nil || string(out) != "alive\n" {
		t.Errorf("got %q, %v", out, err)
	}
}

func helperEndTagged() {
	ended, err := EndTagged(context.Background(), tagVariable+"="+os.Getenv(tagVariable))
	if err != nil || len(ended) > 0 {
		fmt.Println(ended, err)
		os.Exit(1)
	}
	fmt.Println("alive")
}

func TestEndTaggedRefuses(t *testing.T) {
	for _, tag := range []string{"", "A", "A=", "=A", "A=b\x00c"} {
		if _, err := EndTagged(t.Context(), tag); muster.KindOf(err) != muster.Invalid {
			t.Errorf("%q: got %v", tag, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := EndTagged(ctx, "A=b"); muster.KindOf(err) != muster.Interrupted {
		t.Errorf("cancelled: got %v", err)
	}
}

func TestParseStat(t *testing.T) {
	rest := " S 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 1"
	tests := []struct {
		line string
		want stat
		ok   bool
	}{
		{"5 (sh)" + rest, stat{pid: 5, state: 'S', group: 77, start: 4242}, true},
		{"5 (a) R 1 2 (b)" + rest, stat{pid: 5, state: 'S', group: 77, start: 4242}, true},
		{"5 (sh) S 1", stat{}, false},
		{"", stat{}, false},
	}
	for _, tt := range tests {
		if got, err := parseStat(5, tt.line); got != tt.want || (err == nil) != tt.ok {
			t.Errorf("%q: got %+v, %v; want %+v", tt.line, got, err, tt.want)
		}
	}
}

// Opening a pipe that nobody writes to would block for ever.
func TestFileReadRefusesPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, m := range []muster.Method{"file.read", "file.append", "file.write"} {
		var c call
		wait := c.start(t.Context(), builtinNamed(t, m), `{"path": `+quote(path)+`, "content": "x"}`)
		wait(t)
		c.want(t, muster.Invalid, "is a pipe")
	}
}

func TestFileReadProc(t *testing.T) {
	var c call
	c.invoke(t.Context(), builtinNamed(t, "file.read"), `{"path": "/proc/self/status"}`)
	c.want(t, "", "")
	if out := decodeOutput[readOutput](t, &c); out.Size != 0 || out.Bytes == 0 || !strings.HasPrefix(c.stdout.String(), "Name:") {
		t.Errorf("got %+v, %q", out, c.stdout.String())
	}
}

func TestFileWriteOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may give files away")
	}
	for owner, want := range map[string][2]uint32{"12345:54321": {12345, 54321}, "12345": {12345, 0}, "root:root": {0, 0}} {
		path := filepath.Join(t.TempDir(), "file")
		var c call
		c.invoke(t.Context(), builtinNamed(t, "file.write"), fmt.Sprintf(`{"path": %s, "content": "x", "mode": "4755", "owner": %q}`, quote(path), owner))
		c.want(t, "", "")
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		s := info.Sys().(*syscall.Stat_t)
		if got := [2]uint32{s.Uid, s.Gid}; got != want || octal(info.Mode()) != "4755" {
			t.Errorf("%s: got %v, mode %v; want %v", owner, got, info.Mode(), want)
		}
	}
}
