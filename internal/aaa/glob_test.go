package aaa

import (
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/musterfleet/muster"
)

func TestMatchGlob(t *testing.T) {
	for _, c := range []struct {
		glob, s string
		want    bool
	}{
		{"", "", true}, {"", "a", false}, {"a", "", false},
		{"*", "", true}, {"*", "a.b\nc", true}, {"**", "x", true},
		{"?", "", false}, {"?", "é", true}, {"?", "ab", false},
		{"shell.*", "shell.run", true}, {"shell.*", "shell.", true}, {"shell.*", "shell", false},
		{"shell.*", "xshell.run", false}, {"*.run", "shell.run", true}, {"*.run", "shell.runx", false},
		{"a*b*c", "aXbXbXc", true}, {"a*b*c", "aXcXb", false}, {"*a", "aaab", false},
		{"ops-*", "ops-", true}, {"OPS", "ops", false}, {"[a]", "a", false}, {"[a]", "[a]", true},
		{`\*`, `\x`, true}, {"a?c", "a.c", true}, {"*é?", "xéz", true},
	} {
		if got := matchGlob(c.glob, c.s); got != c.want {
			t.Errorf("matchGlob(%q, %q) = %v; want %v", c.glob, c.s, got, c.want)
		}
	}
}

// The slow, obvious version is a regular expression.
func FuzzMatchGlob(f *testing.F) {
	f.Add("a*b?c", "axxbxc")
	f.Add("*a*a*a*", strings.Repeat("a", 20))
	f.Fuzz(func(t *testing.T, glob, s string) {
		if !utf8.ValidString(glob) || !utf8.ValidString(s) || len(glob) > 100 || len(s) > 1000 {
			t.Skip()
		}
		re := regexp.QuoteMeta(glob)
		re = strings.ReplaceAll(strings.ReplaceAll(re, `\*`, `.*`), `\?`, `.`)
		want := regexp.MustCompile(`\A(?s:` + re + `)\z`).MatchString(s)
		if got := matchGlob(glob, s); got != want {
			t.Errorf("matchGlob(%q, %q) = %v; want %v", glob, s, got, want)
		}
	})
}

func TestCheckGlobs(t *testing.T) {
	checkError(t, checkGlobs("methods", []string{"a*"}), muster.Invalid, "")
	checkError(t, checkGlobs("methods", nil), muster.Invalid, "methods has no pattern")
	checkError(t, checkGlobs("methods", []string{""}), muster.Invalid, "methods is empty")
	checkError(t, checkGlobs("methods", make([]string, MaxPatterns+1)), muster.Invalid, "at most 256")
	checkError(t, checkGlobs("methods", []string{strings.Repeat("x", MaxPattern+1)}), muster.Invalid, "at most 1024")
}
