package cli

import (
	"testing"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/filter"
)

func TestSelectorShortForms(t *testing.T) {
	web := filter.Subject{Name: "web1.example.net", Labels: map[string]string{"web": "", "role": "front"}, Facts: map[string]any{
		"os": map[string]any{"id": "debian", "name": "Debian GNU/Linux"}, "cores": 4.0, "classes": []any{"apache::mod", "base"}}}
	db := filter.Subject{Name: "all", Facts: map[string]any{"os": map[string]any{"id": "alpine"}, "cores": 2.0}}
	for _, test := range []struct {
		name    string
		f       selectorFlags
		web, db bool
	}{
		{"fact", selectorFlags{facts: []string{"os.id=debian"}}, true, false},
		{"fact, Choria's equal", selectorFlags{facts: []string{"os.id == debian"}}, true, false},
		{"fact, not equal", selectorFlags{facts: []string{"os.id!=debian"}}, false, true},
		{"fact, regular expression", selectorFlags{facts: []string{"os.id=/^deb|^alp/"}}, true, true},
		{"fact, not the regular expression", selectorFlags{facts: []string{"os.id!=/^deb/"}}, false, true},
		{"fact, pattern", selectorFlags{facts: []string{"os.id=~^alp"}}, false, true},
		{"fact, order", selectorFlags{facts: []string{"cores>=4"}}, true, false},
		{"fact with blanks and a slash", selectorFlags{facts: []string{"os.name=Debian GNU/Linux"}}, true, false},
		{"a label is no fact", selectorFlags{facts: []string{"role=front"}}, false, false},
		{"two facts", selectorFlags{facts: []string{"os.id=debian", "cores<4"}}, false, false},
		{"class by label", selectorFlags{classes: []string{"web"}}, true, false},
		{"class by fact", selectorFlags{classes: []string{"apache::mod"}}, true, false},
		{"class by regular expression", selectorFlags{classes: []string{"/^apache::/"}}, true, false},
		{"identity", selectorFlags{identities: []string{"web1.example.net"}}, true, false},
		{"a node named all is one node", selectorFlags{identities: []string{"all"}}, false, true},
		{"identity, glob", selectorFlags{identities: []string{"web*"}}, true, false},
		{"identity, regular expression", selectorFlags{identities: []string{"/^web\\d/"}}, true, false},
		{"two identities", selectorFlags{identities: []string{"all", "/^web/"}}, true, true},
		{"a slash does not end it", selectorFlags{identities: []string{"/x/ or all or /y/"}}, false, false},
		{"both", selectorFlags{with: []string{"web os.id=debian"}}, true, false},
		{"both, one fails", selectorFlags{with: []string{"web cores<4"}}, false, false},
		{"with -t", selectorFlags{target: "web1.example.net or all", identities: []string{"all"}}, false, true},
		{"-t binds as one", selectorFlags{target: "cores=4 or cores=2", facts: []string{"os.id=alpine"}}, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			expr, err := test.f.expression()
			if err != nil {
				t.Fatal(err)
			}
			x, err := filter.Parse(expr)
			if err != nil {
				t.Fatal(err)
			}
			if got := x.Match(web); got != test.web {
				t.Errorf("%s on web: got %v, want %v", expr, got, test.web)
			}
			if got := x.Match(db); got != test.db {
				t.Errorf("%s on db: got %v, want %v", expr, got, test.db)
			}
		})
	}
}

func TestSelectorShortFormsRefused(t *testing.T) {
	for _, f := range []selectorFlags{
		{facts: []string{"debian"}}, {facts: []string{"=x"}}, {facts: []string{"a="}}, {facts: []string{"a!b"}},
		{classes: []string{""}}, {identities: []string{""}}, {identities: []string{"/(/"}}, {target: "a) or (b", identities: []string{"c"}},
	} {
		if expr, err := f.expression(); err == nil || muster.KindOf(err) == muster.Internal && exitCode(err) != ExitUsage {
			t.Errorf("%+v: got %q, %v; want an error of usage", f, expr, err)
		}
	}
}

// What the short forms make of any words is one expression that parses or an
// error, and never chooses more than without them.
func FuzzSelectorShortForms(f *testing.F) {
	f.Add("os.id=debian", "web", "/^web/", "base cores>=2")
	f.Add(`a="b`, "x or all", "/a/ or all or /b/", `"`)
	f.Fuzz(func(t *testing.T, fact, class, identity, with string) {
		chosen := selectorFlags{target: "nothing-is-named-so", facts: []string{fact}, classes: []string{class}, identities: []string{identity}, with: []string{with}}
		expr, err := chosen.expression()
		if err != nil {
			return
		}
		x, err := filter.Parse(expr)
		if err != nil {
			t.Fatalf("%s: %v", expr, err)
		}
		if x.Match(filter.Subject{Name: "other", Labels: map[string]string{class: ""}}) {
			t.Errorf("%s chooses what -t does not", expr)
		}
	})
}
