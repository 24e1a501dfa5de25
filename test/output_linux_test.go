package test

import (
	"bytes"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/musterfleet/muster"
)

// A counter counts what is written, and lines that are not as they should be.
type counter struct {
	bytes int64
	other int
	rest  []byte
}

func (c *counter) Write(b []byte) (int, error) {
	c.bytes += int64(len(b))
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

var outputLine = strings.Repeat("0123456789", 100)

// Output that is larger than what the broker sends ahead comes whole, and not
// by way of the memory.
func TestShowLargeOutput(t *testing.T) {
	const lines, memory = 100_000, 128 << 20
	l, _, c := realFleet(t)
	s := final(t, c, shell(t, c, "yes "+outputLine+" | head -n 100000", nil))
	const size = lines * 1001
	if s.State != muster.Done || s.Result == nil || s.Result.Stdout.Size != size {
		t.Fatalf("got %s with %+v, want done with %d bytes", s.State, s.Result, int64(size))
	}
	cmd := l.Muster(t.Context(), "command", "show", string(s.ID))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var got counter
	_, copyErr := io.Copy(&got, out)
	if err := cmd.Wait(); err != nil || copyErr != nil {
		t.Fatalf("command show: %v, %v\n%s", err, copyErr, complaint.Bytes())
	}
	if got.bytes < size || got.bytes > size+10_000 || got.other > 20 {
		t.Errorf("got %d bytes with %d lines of other text, want %d and some more", got.bytes, got.other, int64(size))
	}
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	t.Logf("%d MiB of memory were used", usage.Maxrss>>10)
	if usage.Maxrss<<10 > memory {
		t.Errorf("%d MiB of memory were used, want at most %d", usage.Maxrss>>10, memory>>20)
	}
}
