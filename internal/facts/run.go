package facts

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/musterfleet/muster"
)

const (
	maxStderr = 1 << 10 // bytes of error output that are kept to explain a failure
	// pipesTimeout is how long output is awaited from processes that an
	// executable left behind when it ended.
	pipesTimeout = time.Second
)

// Why a run was ended, beside the end of the caller's context.
var (
	errTimeout = errors.New("time limit")
	errTooMuch = errors.New("output limit")
)

// runFile runs an executable and returns what it printed. When it returns, no
// process of the run's group is left.
func runFile(ctx context.Context, path string, info fs.FileInfo, timeout time.Duration) ([]byte, error) {
	if err := checkTrusted(path, info); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errTimeout)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)

	stdout := &limitedBuffer{limit: MaxFile, full: func() { stop(errTooMuch) }}
	stderr := &limitedBuffer{limit: maxStderr, full: func() {}}
	cmd := exec.CommandContext(ctx, path)
	cmd.Dir = string(os.PathSeparator)
	cmd.Env = environment()
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.WaitDelay = pipesTimeout
	inOwnGroup(cmd)
	err := cmd.Start()
	switch {
	case err == nil:
		err = cmd.Wait()
		killGroup(cmd) // what it left behind
	case ctx.Err() == nil: // else its time was over before it began
		return nil, muster.Errorf(muster.Failed, "not started: %w", bare(err))
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it ended well itself
	}
	switch cause := context.Cause(ctx); {
	case stdout.dropped: // whatever became of it
		return nil, muster.Errorf(muster.Full, "it printed more than %d bytes", MaxFile)
	case err == nil:
		return stdout.kept.Bytes(), nil
	case errors.Is(cause, errTimeout):
		return nil, muster.Errorf(muster.TimedOut, "it did not end within %s and was killed", timeout)
	case cause != nil:
		return nil, muster.Errorf(muster.Interrupted, "it was killed: %w", cause)
	}
	said, _, _ := strings.Cut(strings.TrimSpace(stderr.kept.String()), "\n")
	return nil, muster.Errorf(muster.Failed, "it failed: %w: %s", err, cmp.Or(strings.ToValidUTF8(said, "?"), "no error output"))
}

// environment is all that executables are given: secrets that this process
// was started with are none of their business.
func environment() []string {
	env := []string{"LANG=C.UTF-8", "PATH=" + cmp.Or(os.Getenv("PATH"), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")}
	if home := os.Getenv("HOME"); home != "" {
		env = append(env, "HOME="+home)
	}
	return env
}

// A limitedBuffer keeps the first bytes written to it and drops the others,
// without an error: a process that may not write could hang or fail for it.
// It does not embed its buffer, whose ReadFrom would pass the limit by.
type limitedBuffer struct {
	kept    bytes.Buffer
	limit   int
	full    func() // called when bytes are dropped
	dropped bool
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if room := b.limit - b.kept.Len(); len(p) > room {
		b.kept.Write(p[:room])
		b.dropped = true
		b.full()
		return len(p), nil
	}
	return b.kept.Write(p)
}
