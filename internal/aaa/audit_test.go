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
	if n, err := VerifyAudit(bytes.NewReader(line)); n != 1 || err != nil {
		t.Errorf("VerifyAudit = %d, %v", n, err)
	}
}

func TestVerifyAudit(t *testing.T) {
	join := func(lines ...[]byte) string { return string(bytes.Join(lines, nil)) }
	l := testLog(4)
	changed := bytes.Replace(l[1], []byte("alice"), []byte("mallo"), 1)
	for _, c := range []struct {
		name, log string
		lines     int
		want      string
	}{
		{"empty", "", 0, ""},
		{"whole", join(l...), 4, ""},
		{"changed", join(l[0], changed, l[2], l[3]), 2, "line 3 does not follow"},
		{"removed", join(l[0], l[2], l[3]), 1, "line 2 does not follow"},
		{"first removed", join(l[1:]...), 0, "line 1 does not follow"},
		{"swapped", join(l[0], l[2], l[1], l[3]), 1, "line 2 does not follow"},
		{"repeated", join(l[0], l[0]), 1, "line 2 does not follow"},
		{"cut", join(l[0], l[1][:50]), 1, "line 2 is incomplete"},
		{"no record", join(l[0], []byte("{}\n")), 1, "line 2 does not follow"},
		{"no JSON", join(l[0], []byte("x\n")), 1, "line 2 is no audit record"},
		{"empty line", join(l[0], []byte("\n")), 1, "line 2 is no audit record"},
		{"prev twice", join(l[0], bytes.Replace(l[1], []byte(`{`), []byte(`{"prev":"x",`), 1)), 1, "line 2 is no audit record"},
		{"long line", join(l[0], bytes.Repeat([]byte("x"), MaxAuditLine+1)), 1, "line 2 is longer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			lines, err := VerifyAudit(iotest.OneByteReader(strings.NewReader(c.log)))
			if lines != c.lines {
				t.Errorf("lines = %d; want %d", lines, c.lines)
			}
			checkError(t, err, muster.Corrupt, c.want)
		})
	}
	lines, last, err := VerifyAuditFrom(strings.NewReader(join(l[2:]...)), AuditHash(l[1]))
	if lines != 2 || err != nil || last != AuditHash(l[3]) {
		t.Errorf("VerifyAuditFrom = %d, %v; want 2 lines and the last hash", lines, err)
	}
	_, err = VerifyAudit(io.MultiReader(bytes.NewReader(l[0]), iotest.ErrReader(errors.New("disk"))))
	checkError(t, err, muster.Unavailable, "read audit line 2: disk")
}

func FuzzVerifyAudit(f *testing.F) {
	f.Add(bytes.Join(testLog(3), nil))
	f.Fuzz(func(t *testing.T, log []byte) {
		lines, err := VerifyAudit(bytes.NewReader(log))
		if n := bytes.Count(log, []byte("\n")); lines > n || err == nil && (lines != n || n == 0 && len(log) > 0) {
			t.Fatalf("%d lines of %d, error %v", lines, n, err)
		}
	})
}

func FuzzAuditLine(f *testing.F) {
	f.Add([]byte(`{"a":{"password":"p"}}`), "a.password", "reason", int64(0))
	f.Fuzz(func(t *testing.T, in []byte, path, text string, unix int64) {
		at := time.Unix(unix, 0)
		line, next := AuditLine([32]byte{}, Record{Time: at, Caller: text, Reason: text, Input: in, Deadline: at}, []string{path})
		n, last, err := VerifyAuditFrom(bytes.NewReader(line), [32]byte{})
		if n != 1 || err != nil || last != next || len(line) > MaxAuditLine {
			t.Fatalf("%d lines, error %v: %s", n, err, line)
		}
	})
}
