package onsite

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/musterfleet/muster"
)

const (
	pipeDelay    = time.Second // for which output is read after the process group was ended
	defaultLines = 100
)

func logs(ctx context.Context, l Logs) (Output, error) {
	lines := l.Lines
	if lines == 0 {
		lines = defaultLines
	}
	argv := []string{"journalctl", "--no-pager", "--quiet", "-o", "short-iso", "-n", strconv.Itoa(lines)}
	if l.Unit != "" {
		if err := checkUnit(l.Unit); err != nil {
			return Output{}, err
		}
		argv = append(argv, "-u", l.Unit)
	}
	return run(ctx, argv, nil)
}

func service(ctx context.Context, s Service) (Output, error) {
	if err := checkUnit(s.Unit); err != nil {
		return Output{}, err
	}
	if !slices.Contains([]string{"status", "start", "stop", "restart", "reload"}, s.Action) {
		return Output{}, muster.Errorf(muster.Invalid, "%q is nothing that can be done with a service", s.Action).
			WithHint("choose of: status, start, stop, restart, reload")
	}
	out, err := run(ctx, []string{"systemctl", "--no-pager", "--full", s.Action, s.Unit}, nil)
	if s.Action == "status" && out.ExitCode > 0 && out.ExitCode <= 4 {
		err = nil // it says that the unit does not run, which is an answer
	}
	return out, err
}

// checkUnit keeps what is no unit's name from becoming an option.
func checkUnit(unit string) error {
	good := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(":-_.\\@", r)
	}
	if unit == "" || unit[0] == '-' || strings.ContainsFunc(unit, func(r rune) bool { return !good(r) }) {
		return muster.Errorf(muster.Invalid, "%q is no name of a unit", unit)
	}
	return nil
}

func script(ctx context.Context, s Script) (Output, error) {
	argv := s.Argv
	switch {
	case (len(argv) == 0) == (s.Script == ""):
		return Output{}, muster.Errorf(muster.Invalid, "either a program or a script is to be given")
	case s.Script != "" && runtime.GOOS == "windows":
		return Output{}, muster.Errorf(muster.Unsupported, "this machine has no /bin/sh").WithHint("give a program with arguments")
	case s.Script != "":
		argv = []string{"/bin/sh", "-c", s.Script}
	}
	if s.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.Timeout)
		defer cancel()
	}
	return run(ctx, argv, s.Stdin)
}

// run runs a process in a group of its own, and ends the group when the process
// or the context ends.
func run(ctx context.Context, argv []string, stdin []byte) (Output, error) {
	stdout, stderr := &tail{}, &tail{}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), stdout, stderr
	cmd.WaitDelay = pipeDelay
	inGroup(cmd)
	begun := time.Now()
	err := cmd.Start()
	switch {
	case err == nil:
		err = cmd.Wait()
		endGroup(cmd)
	case ctx.Err() == nil: // else its time was over before it began
		return Output{}, muster.Errorf(muster.Failed, "start %s: %w", argv[0], err)
	}
	out := Output{ExitCode: cmd.ProcessState.ExitCode(), TimedOut: errors.Is(ctx.Err(), context.DeadlineExceeded), Duration: time.Since(begun)}
	out.Stdout, out.Stderr = stdout.bytes(), stderr.bytes()
	out.Truncated = stdout.cut || stderr.cut
	switch {
	case out.TimedOut:
		return out, muster.Errorf(muster.TimedOut, "%s was ended since its time was over", argv[0])
	case ctx.Err() != nil:
		return out, muster.Errorf(muster.Interrupted, "%s was ended with its Order", argv[0])
	case out.ExitCode > 0:
		return out, muster.Errorf(muster.Failed, "%s ended with exit code %d", argv[0], out.ExitCode)
	case out.ExitCode < 0:
		return out, muster.Errorf(muster.Failed, "%s was ended: %s", argv[0], cmd.ProcessState.String())
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return out, muster.Errorf(muster.Failed, "run %s: %w", argv[0], err)
	}
	return out, nil
}

// A tail keeps the end of what is written to it.
type tail struct {
	data []byte
	cut  bool
}

// Write keeps twice as much as is wanted, so that it moves bytes seldom.
func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p[max(0, len(p)-MaxStream):]...)
	t.cut = t.cut || len(p) > MaxStream
	if len(t.data) > 2*MaxStream {
		t.data = append(t.data[:0], t.bytes()...)
	}
	return len(p), nil
}

func (t *tail) bytes() []byte {
	if len(t.data) > MaxStream {
		t.cut = true
		return t.data[len(t.data)-MaxStream:]
	}
	return t.data
}
