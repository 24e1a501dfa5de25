package test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/musterfleet/muster"
)

// A counter counts what a process writes, and lines that are not as they should be.
type counter struct {
	pid    int
	lines  bool // look at them
	bytes  int64
	other  int
	rest   []byte
	memory int // the most that the process used so far, in KiB
}

func (c *counter) Write(b []byte) (int, error) {
	c.bytes += int64(len(b))
	c.memory = max(c.memory, mostMemory(c.pid))
	if !c.lines {
		return len(b), nil
	}
	c.rest = append(c.rest, b...)
	for {
		line, rest, ended := bytes.Cut(c.rest, []byte("\n"))
		if !ended {
			c.rest = bytes.Clone(line)
			return len(b), nil
		}
		if string(line) != outputLine {
			c.other++
		}
		c.rest = rest
	}
}

// mostMemory returns the most memory that a process has used since it began to run
// its program, in KiB, and 0 of one that has ended. What the kernel tells when it has
// ended includes the memory of the process that started it.
func mostMemory(pid int) (kib int) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := bytes.Cut(status, []byte("VmHWM:"))
	_, _ = fmt.Sscan(string(rest), &kib) // 0 if it is not there
	return kib
}

var outputLine = strings.Repeat("0123456789", 100)

// Output that is larger than what the broker sends ahead comes whole, and not
// by way of the memory.
func TestShowLargeOutput(t *testing.T) {
	const lines, memory = 100_000, 128 << 10
	l, _, c := realFleet(t)
	s := final(t, c, shell(t, c, "yes "+outputLine+" | head -n 100000", nil))
	const size = lines * 1001
	if s.State != muster.Done || s.Result == nil || s.Result.Stdout.Size != size {
		t.Fatalf("got %s with %+v, want done with %d bytes", s.State, s.Result, int64(size))
	}
	for form, check := range map[string]func(c *counter) bool{
		"table": func(c *counter) bool { return c.bytes >= size && c.bytes <= size+10_000 && c.other <= 20 },
		// Each line break takes two bytes, and all is one line.
		"json": func(c *counter) bool { return c.bytes >= size+lines && c.bytes <= size+lines+10_000 },
	} {
		cmd := l.Muster(t.Context(), "command", "show", string(s.ID), "-o", form)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var complaint bytes.Buffer
		cmd.Stderr = &complaint
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		got := counter{pid: cmd.Process.Pid, lines: form == "table"}
		_, copyErr := io.Copy(&got, out)
		if err := cmd.Wait(); err != nil || copyErr != nil {
			t.Fatalf("command show -o %s: %v, %v\n%s", form, err, copyErr, complaint.Bytes())
		}
		if !check(&got) {
			t.Errorf("%s: got %d bytes with %d lines of other text, want %d and some more", form, got.bytes, got.other, int64(size))
		}
		t.Logf("%s: %d MiB of memory were used", form, got.memory>>10)
		if got.memory == 0 || got.memory > memory {
			t.Errorf("%s: %d KiB of memory were used, want at most %d", form, got.memory, memory)
		}
	}
}
