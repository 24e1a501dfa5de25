package filter_test

import (
	"errors"
	"slices"
	"testing"
	"unicode/utf8"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/filter"
)

// FuzzParse checks that nothing panics, that errors point into the
// expression, and that the canonical form is the same filter.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"all", "a,b", "web* and not /^db[0-9]+/", "role=web rack>=10", "(a or b) and !(c,d)", `os.name="Debian GNU/Linux"`,
		"x=~^(a|b)$ or y!~/a b/", "mount=/var/lib", "m=/a/", "x=*", "x!=*", `"and"='or'`, "[a-c]?*", "x=[!a/,]*", `x='\\\''`, "v<1.10", "a=~'b/c\\'",
		"roles.0!=web", "label.x=~1", "fact.disks.0.mount='/'", "role=", "((a)", "\xff", "/[", "a = ~b", `x=~\Qa/b`,
	} {
		f.Add(seed)
	}
	subjects := []filter.Subject{
		{Name: "n"}, {Name: "a", Labels: map[string]string{"x": "", "y": "a b", "v": "1.9", "m": "/a/"}}, web1(f),
	}
	f.Fuzz(func(t *testing.T, expr string) {
		parsed, err := filter.Parse(expr)
		if err != nil {
			checkError(t, expr, err)
			return
		}
		again, err := filter.Parse(parsed.String())
		if err != nil {
			t.Fatalf("%q: canonical form %q: %v", expr, parsed, err)
		}
		if again.String() != parsed.String() {
			t.Fatalf("%q: canonical form %q is read as %q", expr, parsed, again)
		}
		for _, s := range subjects {
			if parsed.Match(s) != again.Match(s) {
				t.Fatalf("%q and its canonical form %q differ about %s", expr, parsed, s.Name)
			}
		}
		names, ok := parsed.Names()
		if namesAgain, okAgain := again.Names(); ok != okAgain || !slices.Equal(names, namesAgain) {
			t.Fatalf("%q lists %v, its canonical form %v", expr, names, namesAgain)
		}
		for _, name := range names {
			if name.Validate() != nil || !parsed.Match(filter.Subject{Name: name}) {
				t.Fatalf("%q lists %q, which is invalid or not matched", expr, name)
			}
		}
	})
}

func checkError(t *testing.T, expr string, err error) {
	e, ok := errors.AsType[*filter.SyntaxError](err)
	if !ok || muster.KindOf(err) != muster.Invalid {
		t.Fatalf("%q: got %v, want an invalid syntax error", expr, err)
	}
	if last := utf8.RuneCountInString(expr) + 1; e.Column < 1 || e.Column > last {
		t.Fatalf("%q: got column %d, want 1 to %d", expr, e.Column, last)
	}
	if e.Caret() == "" || !utf8.ValidString(e.Caret()) {
		t.Fatalf("%q: bad caret %q", expr, e.Caret())
	}
}
