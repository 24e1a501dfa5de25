package cli

import (
	"strings"
	"testing"
)

func TestWrap(t *testing.T) {
	for _, test := range []struct {
		text  string
		width int
		want  string
	}{
		{"short", 20, "short"},
		{"no terminal, and so it is never broken", 0, "no terminal, and so it is never broken"},
		{"one two three four five", 12, "one two\n  three four\n  five"},
		{"\x1b[31merror:\x1b[0m one two three", 12, "\x1b[31merror:\x1b[0m one\n  two three"},
		{"sent to 1 node; follow with: muster command follow X1", 40, "sent to 1 node; follow with:\n  muster command follow X1"},
		{"the next send, or 'muster outbox flush', sends it first", 30, "the next send, or\n  'muster outbox flush', sends\n  it first"},
		{"see: muster command ls --state failed; then go on", 24, "see: muster command ls\n  --state failed; then\n  go on"},
		{"0123456789012345", 10, "0123456789\n  012345"},
		{"another muster uses the folder", 16, "another muster\n  uses the\n  folder"},
		{"    one two three", 12, "    one two\n  three"},
		{"世界世界 世界", 8, "世界世界\n  世界"},
	} {
		got := wrap(test.text, test.width, wrapIndent)
		if got != test.want {
			t.Errorf("width %d: got %q, want %q", test.width, got, test.want)
		}
		for line := range strings.SplitSeq(got, "\n") {
			if test.width > 0 && visibleWidth(line) > test.width {
				t.Errorf("width %d: %q is wider", test.width, line)
			}
		}
	}
}

// A table that says what to do loses no word on a narrow terminal.
func TestTableWraps(t *testing.T) {
	tab := newTable("CHECK", "MESSAGE", "WHAT TO DO")
	tab.wraps = true
	tab.row("broker", "no broker answers at nats://127.0.0.1:4222", "is it running?")
	tab.row("disk", "ok", "")
	var b strings.Builder
	if err := tab.write(&b, terminal{width: 40}); err != nil {
		t.Fatal(err)
	}
	want := `CHECK   MESSAGE           WHAT TO DO
broker  no broker         is it running?
        answers at
        nats://127.0.0.1
        :4222
disk    ok                -
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}
