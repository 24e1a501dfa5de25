package aaa

import (
	"crypto/sha256"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
)

func TestTrail(t *testing.T) {
	l := testLog(8)
	anew := slices.Clone(l[:5]) // the same decisions, and others after them
	var prev [sha256.Size]byte
	for i := range 3 {
		r := testRecord(10 + i)
		r.Caller = "mallory"
		var line []byte
		line, prev = AuditLine(prev, r, nil)
		anew = append(anew, line)
	}
	fork, _ := AuditLine(AuditHash(l[2]), testRecord(20), nil)
	at := func(i int) time.Time { return testRecord(i).Time }
	const missing, begins, two = "decisions before this one are missing", "the log begins anew", "two decisions follow the same one"
	for _, c := range []struct {
		name  string
		lines [][]byte
		whole bool
		gaps  map[time.Time]string
	}{
		{"none", nil, false, nil},
		{"all", l, true, nil},
		{"all twice", slices.Concat(l, l), true, nil},
		{"without the first", l[2:], false, nil},
		{"without one", slices.Concat(l[:3], l[4:]), true, map[time.Time]string{at(4): missing}},
		{"without two", slices.Concat(l[1:3], l[4:6], l[7:]), false, map[time.Time]string{at(4): missing, at(7): missing}},
		{"begun anew", anew, true, map[time.Time]string{at(10): begins}},
		{"rewritten", append(slices.Clone(l), fork), true, map[time.Time]string{at(20): two}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var trail Trail
			for _, line := range slices.Backward(c.lines) {
				if err := trail.Add(line); err != nil {
					t.Fatal(err)
				}
			}
			if trail.Whole() != c.whole {
				t.Errorf("whole: got %v", trail.Whole())
			}
			gaps := trail.Gaps()
			if len(gaps) != len(c.gaps) {
				t.Errorf("got %v, want %v", gaps, c.gaps)
			}
			for _, g := range gaps {
				if want := c.gaps[g.Time]; want == "" || !strings.HasPrefix(g.Reason, want) {
					t.Errorf("at %v: %q, want %q", g.Time, g.Reason, want)
				}
			}
		})
	}
}

func TestTrailKnowsItsLines(t *testing.T) {
	l := testLog(3)
	var trail Trail
	for _, line := range [][]byte{l[1], l[1][:len(l[1])-1], l[0]} { // with or without its break it is the same line
		if err := trail.Add(line); err != nil {
			t.Fatal(err)
		}
	}
	checkError(t, trail.Add([]byte("{}")), muster.Corrupt, "is no audit record")
	if trail.Len() != 2 || !trail.Has(AuditHash(l[0])) || trail.Has(AuditHash(l[2])) {
		t.Errorf("%d lines", trail.Len())
	}
	if first, last := trail.Span(); !first.Equal(testRecord(0).Time) || !last.Equal(testRecord(1).Time) {
		t.Errorf("from %v to %v", first, last)
	}
}
