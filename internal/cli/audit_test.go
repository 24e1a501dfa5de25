package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/aaa"
)

// auditLines makes the log of a node with so many decisions.
func auditLines(node muster.NodeName, n int) (lines []string) {
	var prev [32]byte
	for i := range n {
		r := aaa.Record{Time: noon.Add(time.Duration(i) * time.Minute), Node: node, ID: muster.CommandID(fmt.Sprint("id-", i)), Caller: "alice",
			Method: "echo", Verdict: aaa.Allowed}
		if i%3 == 2 {
			r.Caller, r.Verdict, r.Reason = "mallory", aaa.Denied, "no rule allows it"
		}
		var line []byte
		line, prev = aaa.AuditLine(prev, r, nil)
		lines = append(lines, string(line))
	}
	return lines
}

// published is a broker that has lines of nodes as events.
type published struct {
	fakeSDK
	lines map[muster.NodeName][]string
}

func (f *published) Events(_ context.Context, q client.EventQuery, handle func(client.Event) error) error {
	for node, lines := range f.lines {
		if q.Node != "" && q.Node != node || q.Type != muster.EventAudit {
			continue
		}
		for _, line := range lines {
			e := client.Event{Time: noon, Node: node, Type: muster.EventAudit, Data: map[string]string{"line": strings.TrimSuffix(line, "\n")}}
			if err := handle(e); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestAuditList(t *testing.T) {
	f := &published{lines: map[muster.NodeName][]string{"web1": append(auditLines("web1", 6), "{}\n"), "web2": auditLines("web2", 3)}}
	for _, c := range []struct {
		args string
		want int
		more string
	}{
		{"", 9, ""}, {"--node web1", 6, ""}, {"--decision denied", 3, ""}, {"--caller alice --node web2", 2, ""},
		{"--method echo", 9, ""}, {"--method none", 0, ""}, {"--node web1 --last 2", 2, "4 earlier ones"}, {"--last 4", 4, "5 earlier ones"},
	} {
		code, out, errs := tryWith(t.Context(), f, append(strings.Fields("audit ls -o jsonl --since 0"), strings.Fields(c.args)...)...)
		if code != ExitOK || strings.Count(out, "\n") != c.want || !strings.Contains(errs, c.more) {
			t.Errorf("%q: exit code %d, %q and %q; want %d lines", c.args, code, out, errs, c.want)
		}
	}
	code, out, _ := tryWith(t.Context(), f, "audit", "ls", "--node", "web1", "--last", "1")
	if code != ExitOK || !strings.Contains(out, "denied") || !strings.Contains(out, "no rule allows it") {
		t.Errorf("exit code %d, %s", code, out)
	}
	for _, wrong := range []string{"--decision maybe", "--last 0", "--last x"} {
		if code, _, _ := tryWith(t.Context(), f, append([]string{"audit", "ls"}, strings.Fields(wrong)...)...); code != ExitUsage {
			t.Errorf("%s: exit code %d", wrong, code)
		}
	}
}

func TestAuditVerifyEvents(t *testing.T) {
	l := auditLines("web1", 6)
	for name, c := range map[string]struct {
		lines []string
		code  int
		want  string
	}{
		"all, some twice":       {append(l[:6:6], l[2:4]...), ExitOK, "in order from the first on"},
		"the oldest gone":       {l[2:], ExitOK, "earlier ones are gone"},
		"one is missing":        {append(l[:2:2], l[3:]...), ExitError, "1 gap"},
		"one is another node's": {append(l[:6:6], auditLines("web2", 1)...), ExitError, "1 unreadable line"},
		"none":                  {nil, ExitNothing, ""},
	} {
		code, out, errs := tryWith(t.Context(), &published{lines: map[muster.NodeName][]string{"web1": c.lines}}, "audit", "verify")
		if code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("%s: exit code %d, want %d; %s%s", name, code, c.code, out, errs)
		}
	}
	code, out, _ := tryWith(t.Context(), &published{lines: map[muster.NodeName][]string{"web1": append(l[:2:2], l[3:]...)}}, "audit", "verify", "-o", "json")
	var reports []trailReport
	if err := json.Unmarshal([]byte(out), &reports); err != nil || code != ExitError || len(reports) != 1 || reports[0].Decisions != 5 ||
		len(reports[0].Gaps) != 1 || !reports[0].Gaps[0].Time.Equal(noon.Add(3*time.Minute)) {
		t.Errorf("exit code %d, %s, %v", code, out, err)
	}
}

func TestAuditVerifyFiles(t *testing.T) {
	l := auditLines("web1", 6)
	dir := t.TempDir()
	file := func(name string, lines ...string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	first, second, changed := file("audit.log.1", l[:3]...), file("audit.log", l[3:]...), file("changed", l[0], strings.Replace(l[1], "alice", "bob", 1), l[2])
	lastChanged := file("lastchanged", l[3], l[4], strings.Replace(l[5], "mallory", "bob", 1))
	f := &published{lines: map[muster.NodeName][]string{"web1": l, "web2": auditLines("web2", 3)}}
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"both", []string{first, second}, ExitOK, "6, in order from the first on"},
		{"the second alone", []string{second}, ExitOK, "3, in order from where an older file ends"},
		{"in the wrong order", []string{second, first}, ExitError, "audit.log.1: audit line 1 does not follow"},
		{"changed", []string{changed}, ExitError, "changed: audit line 3 does not follow"},
		{"the last one changed", []string{first, lastChanged}, ExitOK, "6, in order from the first on"},
		{"the last one changed, with events", []string{first, lastChanged, "--events"}, ExitError, "the log lacks 1 decision that web1 published"},
		{"help says what does not show", []string{"--help"}, ExitOK, "does not show a change to that one alone"},
		{"not there", []string{filepath.Join(dir, "none")}, ExitError, "no such file"},
		{"empty", []string{file("empty")}, ExitNothing, "no decisions"},
		{"with events", []string{first, second, "--events"}, ExitOK, "6 of these, and 0 that"},
		{"the second with events", []string{second, "--events"}, ExitOK, "3 of these, and 0 that"},
		{"cut off, with events", []string{first, "--events"}, ExitError, "the log lacks 3 decisions that web1 published"},
		{"events of no files", []string{"--events"}, ExitUsage, "name the files"},
		{"files of a node", []string{first, "--node", "web1"}, ExitUsage, "choose events"},
	} {
		code, out, errs := tryWith(t.Context(), f, append([]string{"audit", "verify"}, c.args...)...)
		if code != c.code || !strings.Contains(out+errs, c.want) {
			t.Errorf("%s: exit code %d, want %d; %s%s", c.name, code, c.code, out, errs)
		}
	}
}

// Something long says on a terminal how far it is, and takes that away.
func TestCounter(t *testing.T) {
	var errs bytes.Buffer
	now := noon
	p := &program{stderr: &errs, errTerm: terminal{is: true}, now: func() time.Time { return now }}
	c := counter{p: p, what: "read", next: now.Add(time.Second)}
	for range 5 {
		c.add()
		now = now.Add(400 * time.Millisecond)
	}
	c.end()
	if got := errs.String(); got != "\r\x1b[K4 read\r\x1b[K5 read\r\x1b[K" {
		t.Errorf("got %q", got)
	}
}
