package methods

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/method"
)

// endTaggedLimit bounds EndTagged. A process that is still there after so many
// SIGKILLs hangs in the kernel.
const endTaggedLimit = 10 * time.Second

// EndTagged kills every process that was started with the variable tag, given
// as NAME=VALUE, in its environment, and the process groups of those. It looks
// again until none is left, and returns those that it found, with id, start time
// and the command that their environment names. The agent calls it for what an interrupted run left behind.
//
// It never signals the processes 0 and 1, its own process or its own group. A
// process whose environment it may not read is not found; as root that is
// none. It fails with kind Invalid for a tag of another form, and with kind
// TimedOut or Interrupted, and those found so far, when some are left after
// ten seconds or at the end of ctx.
func EndTagged(ctx context.Context, tag string) (ended []method.Orphan, err error) {
	if name, value, _ := strings.Cut(tag, "="); name == "" || value == "" || strings.ContainsRune(tag, 0) {
		return nil, muster.Errorf(muster.Invalid, "tag %q: expected NAME=VALUE", tag)
	}
	limit, cancel := context.WithTimeout(ctx, endTaggedLimit)
	defer cancel()
	seen := map[stat]bool{}
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		if ctx.Err() != nil {
			return ended, interrupted(ctx)
		}
		left, err := killTagged(tag)
		if err != nil {
			return ended, err
		}
		if len(left) == 0 {
			return ended, nil
		}
		for _, s := range left {
			id := stat{pid: s.pid, start: s.start} // its group may have changed since
			if !seen[id] {
				seen[id] = true
				ended = append(ended, method.Orphan{Child: muster.Child{PID: s.pid, Started: s.startTime()}, Command: s.command})
			}
		}
		select {
		case <-limit.Done():
			return ended, leftError(ctx, left)
		case <-time.After(pause):
		}
	}
}

func leftError(ctx context.Context, left []stat) error {
	if ctx.Err() != nil {
		return interrupted(ctx)
	}
	var pids []string
	for _, s := range left {
		pids = append(pids, strconv.Itoa(s.pid))
	}
	return muster.Errorf(muster.TimedOut, "processes %s are left after %s of SIGKILL", strings.Join(pids, ", "), endTaggedLimit).
		WithHint("they may wait for a disk or a network file system, or belong to another user")
}

// killTagged looks once, and kills what it finds.
func killTagged(tag string) ([]stat, error) {
	pids, err := processes()
	if err != nil {
		return nil, muster.Errorf(muster.Failed, "list processes: %w", err)
	}
	self, ownGroup := os.Getpid(), unix.Getpgrp()
	var found []stat
	groups := map[int]bool{}
	for _, pid := range pids {
		if pid <= 1 || pid == self {
			continue
		}
		// The handle is taken before the environment is read: should the id
		// pass to another process meanwhile, the signal goes nowhere.
		p, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		s, err := readStat(pid)
		env := environOf(pid)
		if err == nil && slices.Contains(env, tag) {
			s.command = commandIn(env)
			found = append(found, s)
			if s.group > 1 && s.group != ownGroup {
				groups[s.group] = true
			}
			_ = p.Kill()
		}
		_ = p.Release()
	}
	// Now, since a process that ends with its group before it is looked at is not
	// found. Ids are given out in turn: none of these is another group's so soon.
	for group := range groups {
		_ = unix.Kill(-group, unix.SIGKILL)
	}
	return found, nil
}

// environOf returns the variables that the process was started with. That of
// a zombie is empty, as is one that may not be read.
func environOf(pid int) []string {
	env, err := os.ReadFile(procFile(pid, "environ"))
	if err != nil {
		return nil
	}
	return strings.Split(string(env), "\x00")
}

// commandIn returns the command that an environment names, if it is one.
func commandIn(env []string) muster.CommandID {
	for _, v := range env {
		if id, ok := strings.CutPrefix(v, method.CommandVariable+"="); ok && muster.CommandID(id).Validate() == nil {
			return muster.CommandID(id)
		}
	}
	return ""
}

// processes returns the ids of all processes that can be seen.
func processes() ([]int, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	// A process that ends meanwhile can fail the listing; the others count.
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return pids, err
}

func procFile(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}

// A stat is part of /proc/PID/stat.
type stat struct {
	pid   int
	state byte  // R, S, D, Z ...
	group int   // process group
	start int64 // in ticks since the machine was started

	command muster.CommandID // of its environment; not from the file
}

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile(procFile(pid, "stat"))
	if err != nil {
		return stat{}, err
	}
	return parseStat(pid, string(b))
}

// parseStat reads "PID (NAME) STATE PPID PGRP ...". The name may contain
// anything, also spaces and parentheses.
func parseStat(pid int, line string) (stat, error) {
	fields := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
	if len(fields) < 20 {
		return stat{}, fmt.Errorf("stat of process %d has %d fields", pid, len(fields))
	}
	group, err := strconv.Atoi(fields[2])
	if err != nil {
		return stat{}, err
	}
	start, err := strconv.ParseInt(fields[19], 10, 64)
	return stat{pid: pid, state: fields[0][0], group: group, start: start}, err
}

// startTime is when the process was started, to a hundredth of a second; zero
// when the machine does not say when it was started itself.
func (s stat) startTime() time.Time {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}
	}
	for line := range strings.Lines(string(b)) {
		if boot, ok := strings.CutPrefix(line, "btime "); ok {
			seconds, err := strconv.ParseInt(strings.TrimSpace(boot), 10, 64)
			if err != nil {
				return time.Time{}
			}
			// A tick is a hundredth of a second to programs, whatever the kernel's own.
			return time.Unix(seconds, 0).Add(time.Duration(s.start) * 10 * time.Millisecond)
		}
	}
	return time.Time{}
}
