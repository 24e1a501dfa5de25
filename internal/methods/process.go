package methods

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/musterfleet/muster"
)

const (
	// pipeDelay is how long output is still read after the process has ended
	// and its group was killed. Only a child that left the group can keep a
	// pipe open that long.
	pipeDelay = time.Second
	// defaultPath is used when the agent was started without PATH, as a
	// minimal init does.
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// A process is one to be run, together with the group that it leads.
type process struct {
	argv           []string // the first is looked up in the PATH of env
	env            []string
	dir            string   // absolute; "" is the agent's
	account        *account // nil is the agent's
	stdin          string
	stdout, stderr io.Writer
	started        func(muster.Child) // may be nil
	grace          time.Duration      // from SIGTERM to SIGKILL
}

// An ending is how a process ended.
type ending struct {
	pid      int
	code     *int   // nil when it was killed
	signal   string // that killed it, as "SIGKILL"
	duration time.Duration
}

// run starts the process and waits until it and its group have ended. When ctx
// ends first, the group is stopped; then the error is of kind TimedOut or
// Interrupted. A process that did not exit with 0 is an error of kind Failed.
// The ending is nil when there was no process.
func (p *process) run(ctx context.Context) (*ending, error) {
	if ctx.Err() != nil {
		return nil, interrupted(ctx)
	}
	cmd, err := p.command()
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	w := watch(cmd)
	if err := <-w.started; err != nil {
		return nil, startError(p.argv[0], err)
	}
	if p.started != nil {
		p.started(muster.Child{PID: cmd.Process.Pid, Started: begun})
	}
	stopped := false
	select {
	case <-w.exited:
	case <-ctx.Done():
		stopped = !closed(w.exited) // it may have ended at the same time
	}
	if stopped {
		terminateGroup(cmd.Process)
		p.awaitGroup(cmd.Process.Pid)
	}
	killGroup(cmd.Process)
	<-w.exited
	close(w.release)
	err = <-w.done
	end := endingOf(cmd.ProcessState, time.Since(begun))
	if stopped {
		return end, stopError(ctx, end)
	}
	return end, p.exitError(end, err)
}

// awaitGroup waits until no process of the group is left, at most the grace.
// It is not enough to wait for the leader: of "sh -c 'a; b'" the shell ends at
// once, while a may have to clean up.
func (p *process) awaitGroup(pid int) {
	deadline := time.NewTimer(p.grace)
	defer deadline.Stop()
	for pause := 2 * time.Millisecond; groupAlive(pid); pause = min(2*pause, 100*time.Millisecond) {
		select {
		case <-deadline.C:
			return
		case <-time.After(pause):
		}
	}
}

// A watcher is the goroutine that starts a process and waits for it.
type watcher struct {
	started chan error    // gets one error or nil
	exited  chan struct{} // closed when the process has ended
	release chan struct{} // to be closed when the group has been dealt with
	done    chan error    // gets the result of cmd.Wait
}

// watch starts cmd in a goroutine that keeps its thread until the process has
// ended. On Linux the process is killed when the thread that started it ends
// (Pdeathsig), and a thread that is not kept may be given to a goroutine which
// ends it.
func watch(cmd *exec.Cmd) *watcher {
	w := &watcher{make(chan error, 1), make(chan struct{}), make(chan struct{}), make(chan error, 1)}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		w.started <- err
		if err == nil {
			w.done <- reap(cmd, w.exited, w.release)
		}
	}()
	return w
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (p *process) command() (*exec.Cmd, error) {
	if p.dir != "" {
		// The error of a failed start would name the program instead.
		if err := checkDir(p.dir); err != nil {
			return nil, err
		}
	}
	path, err := lookPath(p.argv[0], p.env, p.dir)
	if err != nil {
		return nil, err
	}
	cmd := &exec.Cmd{
		Path: path, Args: p.argv, Env: p.env, Dir: p.dir,
		// A file would be handed to the process itself, and stay with its
		// children; what is no file is fed through a pipe.
		Stdout: struct{ io.Writer }{p.stdout}, Stderr: struct{ io.Writer }{p.stderr},
		WaitDelay:   pipeDelay,
		SysProcAttr: attributes(p.account),
	}
	if p.stdin != "" {
		cmd.Stdin = strings.NewReader(p.stdin)
	}
	return cmd, nil
}

func checkDir(dir string) error {
	if !filepath.IsAbs(dir) {
		return muster.Errorf(muster.Invalid, "dir %q: expected an absolute path", dir)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fileError(err)
	}
	if !info.IsDir() {
		return muster.Errorf(muster.Invalid, "dir %s is not a directory", dir)
	}
	return nil
}

// lookPath finds a program in the PATH that the process will have, which need
// not be that of the agent.
func lookPath(name string, env []string, dir string) (string, error) {
	if name == "" {
		return "", muster.Errorf(muster.Invalid, "the name of the command is empty")
	}
	if strings.ContainsRune(name, filepath.Separator) || runtime.GOOS == "windows" {
		return name, nil // relative to dir; that it does not exist is seen at the start
	}
	for _, folder := range filepath.SplitList(variable(env, "PATH")) {
		if !filepath.IsAbs(folder) {
			continue // the working directory is no place to run programs from by accident
		}
		path := filepath.Join(folder, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", muster.Errorf(muster.NotFound, "command %q was not found", name).
		WithHint("searched in %s; give a full path, or set PATH in env", variable(env, "PATH"))
}

func startError(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return muster.Errorf(muster.NotFound, "command %q was not found: %w", name, err).
			WithHint("if the file exists, the interpreter in its first line does not")
	case errors.Is(err, fs.ErrPermission):
		return muster.Errorf(muster.Denied, "command %q may not be run: %w", name, err).
			WithHint("check that it is executable for the user who runs it")
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE),
		errors.Is(err, syscall.ETXTBSY): // someone writes the file just now
		return muster.Errorf(muster.Unavailable, "command %q could not be started: %w", name, err)
	}
	// What is left lies in the request: too long, no known format, a NUL byte.
	return muster.Errorf(muster.Invalid, "command %q could not be started: %w", name, err)
}

func endingOf(state *os.ProcessState, duration time.Duration) *ending {
	end := &ending{pid: state.Pid(), duration: duration}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		end.signal = signalName(status.Signal())
		return end
	}
	code := state.ExitCode()
	end.code = &code
	return end
}

func (p *process) exitError(end *ending, err error) error {
	switch {
	case end.signal != "":
		return muster.Errorf(muster.Failed, "killed by %s", end.signal)
	case *end.code != 0:
		return muster.Errorf(muster.Failed, "exit status %d", *end.code)
	case err != nil && !errors.Is(err, exec.ErrWaitDelay): // a pipe left open was someone else's
		return muster.Errorf(muster.Internal, "output of %q: %w", p.argv[0], err)
	}
	return nil
}

// stopError says how a process ended that was told to.
func stopError(ctx context.Context, end *ending) error {
	err := interrupted(ctx)
	if end.signal != "" {
		return muster.Errorf(err.Kind, "%w; killed by %s", err, end.signal)
	}
	return muster.Errorf(err.Kind, "%w; it exited with status %d", err, *end.code)
}

// environment returns the agent's environment as a process may see it, with
// the given variables added; of two with one name the last counts. systemd tells
// a service of root neither its home nor, always, a path.
func environment(more ...[]string) []string {
	env := slices.DeleteFunc(os.Environ(), private)
	if variable(env, "HOME") == "" {
		if self, err := user.Current(); err == nil {
			env = append(env, "HOME="+self.HomeDir)
		}
	}
	if variable(env, "PATH") == "" {
		env = append(env, "PATH="+defaultPath)
	}
	return append(env, slices.Concat(more...)...)
}

// private reports whether a variable is meant for the agent alone: its own
// configuration may hold a secret, and with those of systemd a child could
// speak in the agent's name or take the agent's folder for its own.
func private(variable string) bool {
	name, _, _ := strings.Cut(variable, "=")
	switch name {
	case "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "INVOCATION_ID", "JOURNAL_STREAM",
		"SYSTEMD_EXEC_PID", "STATE_DIRECTORY", "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE":
		return true
	}
	return strings.HasPrefix(name, "MUSTER_")
}

// variable returns the value of the last variable with the name, or "".
func variable(env []string, name string) string {
	for _, v := range slices.Backward(env) {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}
