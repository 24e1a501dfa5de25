package aaa

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/musterfleet/muster"
)

func testRecord(i int) Record {
	return Record{
		Time: testNow.Add(time.Duration(i) * time.Second), Node: testNode, Fleet: testFleet, ID: muster.CommandID(fmt.Sprintf("id-%d", i)),
		Caller: "alice", CallerKey: "UABC", Method: "shell.run", Input: json.RawMessage(`{"argv": ["<b>"]}`),
		Verdict: Allowed, Rule: "rule 1", Reason: "allowed by \"rule 1\"", IssuedAt: testNow, Deadline: testNow.Add(time.Hour),
	}
}

func testLog(n int) [][]byte {
	var lines [][]byte
	var prev [sha256.Size]byte
	for i := range n {
		var line []byte
		line, prev = AuditLine(prev, testRecord(i), nil)
		lines = append(lines, line)
	}
	return lines
}

func TestAuditLine(t *testing.T) {
	line, next := AuditLine([32]byte{}, testRecord(0), nil)
	const want = `{"time":"2026-03-04T05:06:07Z","node":"web1.example.com","fleet":"FLEET-1","id":"id-0","caller":"alice","caller_key":"UABC",` +
		`"method":"shell.run","input":{"argv":["<b>"]},"decision":"allowed","rule":"rule 1","reason":"allowed by \"rule 1\"",` +
		`"issued_at":"2026-03-04T05:06:07Z","deadline":"2026-03-04T06:06:07Z",` +
		`"prev":"0000000000000000000000000000000000000000000000000000000000000000"}` + "\n"
	if string(line) != want {
		t.Errorf("line = %s\nwant %s", line, want)
	}
	if next != AuditHash(line) || next != AuditHash(line[:len(line)-1]) || next != sha256.Sum256(line[:len(line)-1]) {
		t.Error("next is not the hash of the line without its line break")
	}
}

func TestAuditInput(t *testing.T) {
	long := `"` + strings.Repeat("x", MaxAuditInput) + `"`
	for _, c := range []struct {
		name, in string
		redact   []string
		want     string
	}{
		{"none", "", nil, "null"},
		{"compacted", "{ \"a\" :\n1 }", nil, `{"a":1}`},
		{"redacted", `{"password":"p"}`, []string{"password"}, `{"password":"REDACTED"}`},
		{"wrong path", `{"password":"p"}`, []string{""}, `"REDACTED"`},
		{"unreadable", "hello\n", nil, `{"unreadable":6}`},
		{"unreadable and secret", `{"password":"p"`, []string{"password"}, `{"unreadable":15}`},
		{"largest", long[2:], nil, `{"unreadable":4096}`},
		{"too large", long, nil, fmt.Sprintf(`{"sha256":"%x","truncated":4098}`, sha256.Sum256([]byte(long)))},
		{"small once redacted", `{"password":` + long + `}`, []string{"password"}, `{"password":"REDACTED"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := auditInput(json.RawMessage(c.in), c.redact); string(got) != c.want {
				t.Errorf("input = %s; want %s", got, c.want)
			}
		})
	}
}

// Whatever a hostile frame put into a record, it is one line within the limit.
func TestAuditLineIsBounded(t *testing.T) {
	hostile := strings.Repeat("\x00\n\xff", 1<<18)
	far := time.Date(9999, 12, 31, 23, 59, 59, 0, time.FixedZone("", -3600))
	deep := strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth)
	r := Record{
		Time: far, Node: muster.NodeName(hostile), Fleet: hostile, ID: muster.CommandID(hostile), Caller: hostile, CallerKey: hostile,
		Method: muster.Method(hostile), Input: json.RawMessage(deep), Verdict: Verdict(hostile), Rule: hostile, Reason: hostile, Deadline: far,
	}
	line, _ := AuditLine([32]byte{}, r, nil)
	if len(line) >= MaxAuditLine || bytes.Count(line, []byte("\n")) != 1 {
		t.Errorf("line has %d bytes and %d line breaks", len(line), bytes.Count(line, []byte("\n")))
	}
	var c AuditCheck
	if err := c.Read(bytes.NewReader(line)); c.Lines != 1 || err != nil {
		t.Errorf("%d lines, %v", c.Lines, err)
	}
}

func TestAuditCheck(t *testing.T) {
	join := func(lines ...[]byte) string { return string(bytes.Join(lines, nil)) }
	l := testLog(4)
	changed := bytes.Replace(l[1], []byte("alice"), []byte("mallo"), 1)
	for _, c := range []struct {
		name, log string
		lines     int
		whole     bool
		want      string
	}{
		{"empty", "", 0, false, ""},
		{"whole", join(l...), 4, true, ""},
		{"changed", join(l[0], changed, l[2], l[3]), 2, true, "line 3 does not follow"},
		{"the last one changed, which AuditLine says does not show", join(l[0], changed), 2, true, ""},
		{"removed", join(l[0], l[2], l[3]), 1, true, "line 2 does not follow"},
		{"first removed", join(l[1:]...), 3, false, ""},
		{"swapped", join(l[0], l[2], l[1], l[3]), 1, true, "line 2 does not follow"},
		{"repeated", join(l[0], l[0]), 1, true, "line 2 does not follow"},
		{"cut", join(l[0], l[1][:50]), 1, true, "line 2 is incomplete"},
		{"no record", join(l[0], []byte("{}\n")), 1, true, "line 2 is no audit record"},
		{"prev is no hash", join(l[0], bytes.Replace(l[1], []byte(`"prev":"`), []byte(`"prev":"00`), 1)), 1, true, "line 2 is no audit record"},
		{"no JSON", join(l[0], []byte("x\n")), 1, true, "line 2 is no audit record"},
		{"empty line", join(l[0], []byte("\n")), 1, true, "line 2 is no audit record"},
		{"prev twice", join(l[0], bytes.Replace(l[1], []byte(`{`), []byte(`{"prev":"x",`), 1)), 1, true, "line 2 is no audit record"},
		{"long line", join(l[0], bytes.Repeat([]byte("x"), MaxAuditLine+1)), 1, true, "line 2 is longer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var check AuditCheck
			err := check.Read(iotest.OneByteReader(strings.NewReader(c.log)))
			if check.Lines != c.lines || check.Whole != c.whole {
				t.Errorf("lines = %d, whole %v; want %d, %v", check.Lines, check.Whole, c.lines, c.whole)
			}
			checkError(t, err, muster.Corrupt, c.want)
		})
	}
	var check AuditCheck
	err := check.Read(io.MultiReader(bytes.NewReader(l[0]), iotest.ErrReader(errors.New("disk"))))
	checkError(t, err, muster.Unavailable, "read audit line 2: disk")
}

// The chain goes from one file to the next, and a file that is missing between
// them shows.
func TestAuditCheckOfFiles(t *testing.T) {
	l := testLog(6)
	file := func(from, to int) io.Reader { return bytes.NewReader(bytes.Join(l[from:to], nil)) }
	var ids []string
	c := AuditCheck{Each: func(hash [sha256.Size]byte, r Record) {
		if hash != AuditHash(l[len(ids)]) {
			t.Errorf("%s came with another line's hash", r.ID)
		}
		ids = append(ids, string(r.ID))
	}}
	for _, f := range []io.Reader{file(0, 2), file(2, 2), file(2, 4)} {
		if err := c.Read(f); err != nil {
			t.Fatal(err)
		}
	}
	if c.Lines != 4 || !c.Whole || !c.First.Equal(testRecord(0).Time) || !c.Last.Equal(testRecord(3).Time) || len(ids) != 4 {
		t.Errorf("got %+v, told of %q", c, ids)
	}
	checkError(t, c.Read(file(5, 6)), muster.Corrupt, "line 1 does not follow")
}

func FuzzAuditCheck(f *testing.F) {
	f.Add(bytes.Join(testLog(3), nil))
	f.Fuzz(func(t *testing.T, log []byte) {
		var c AuditCheck
		err := c.Read(bytes.NewReader(log))
		if n := bytes.Count(log, []byte("\n")); c.Lines > n || err == nil && (c.Lines != n || n == 0 && len(log) > 0) {
			t.Fatalf("%d lines of %d, error %v", c.Lines, n, err)
		}
	})
}
