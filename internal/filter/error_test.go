package filter_test

import (
	"errors"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/filter"
)

var update = flag.Bool("update", false, "write the golden file anew")

// TestSyntaxErrors holds the messages and columns to testdata/errors.golden:
// each block is an expression as Caret shows it, and the message.
func TestSyntaxErrors(t *testing.T) {
	const golden = "testdata/errors.golden"
	var got strings.Builder
	for _, expr := range []string{
		"", " \t", "and", "a and", "a or", "a,", ",a", "or a", "a && || b", "not", "a not", "!", "()", "(a", "a or (b", "(a))", ")",
		"a b=", "role=", "role = ", "role= and x=1", "role==web", "role=,db", "role=)", "role=~", "role=~)", "role=~ or a", "role>", "role>=<3", "role>1*", "x=~1 x= ~1",
		"=web", "role=web=db", "label.=x", "fact.=x", "ro*le=x", "label.a[b]=x", "a & b", "a | b", "a < ", "<3",
		"we@b", "a,web/1", "w@b*", "ü*", "web.", ".", `""`, `"a b"`, strings.Repeat("x", 129),
		"web(1)", `"a"b`, `a"b"`, "a'b", `a="b`, "a!b", "/a", "/a/b", "//", "/(/", "a /[z-a]/", "x=/(/", "x=~a(", `x=~""`, "x=~'a**'",
		"web[1", "web[1 2]", "web[]", "web[!]", "web[z-a]", "x=a[",
		"a\x00b", "a \xffb", "müller=1 and a b c (", "a\tb\n=\tc d)",
		strings.Repeat("web1 or ", 30) + "(web2 or web3" + strings.Repeat(" or web4", 30),
		"a and and b" + strings.Repeat(" or web4", 30),
	} {
		_, err := filter.Parse(expr)
		e, ok := errors.AsType[*filter.SyntaxError](err)
		if !ok {
			t.Errorf("Parse(%q): got %v, want a syntax error", expr, err)
			continue
		}
		if kind := muster.KindOf(err); kind != muster.Invalid {
			t.Errorf("Parse(%q): got kind %q, want %q", expr, kind, muster.Invalid)
		}
		if n := strings.Count(e.Caret(), "\n"); n != 1 {
			t.Errorf("Parse(%q): caret has %d line ends, want 1", expr, n)
		}
		got.WriteString(e.Caret() + "\n" + e.Error() + "\n\n")
	}
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("messages differ from %s; run with -update and read the difference. got:\n%s", golden, got.String())
	}
}

func TestSyntaxErrorColumns(t *testing.T) {
	for _, test := range []struct {
		expr   string
		column int
	}{
		{"", 1},
		{"  ", 1},
		{"a b=", 5},
		{"role= and x=1", 7},
		{"(a or b", 8},
		{"a or b)", 7},
		{"müller=1 (", 11},
		{"a, we@b", 6},
		{"a, w?@b", 6},
		{"a x='b c", 5},
		{"a and /b(/", 7},
	} {
		_, err := filter.Parse(test.expr)
		e, ok := errors.AsType[*filter.SyntaxError](err)
		if !ok || e.Column != test.column {
			t.Errorf("Parse(%q): got %v, want column %d", test.expr, err, test.column)
		}
	}
}

func TestSyntaxErrorTravels(t *testing.T) {
	_, err := filter.Parse("role=")
	want := `selector: column 6: expected a value after "="`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if e := muster.AsError(muster.Internal, err); e.Kind != muster.Invalid || e.Message != want {
		t.Errorf("got %s: %s; want %s: %s", e.Kind, e.Message, muster.Invalid, want)
	}
	caret := err.(*filter.SyntaxError).Caret()
	if want := "role=\n     ^"; caret != want {
		t.Errorf("got\n%s\nwant\n%s", caret, want)
	}
}

func TestCaretOutOfRange(t *testing.T) {
	for _, column := range []int{-1, 0, 99} {
		if got := (&filter.SyntaxError{Expr: "ab", Column: column}).Caret(); strings.Count(got, "\n") != 1 {
			t.Errorf("column %d: got %q, want two lines", column, got)
		}
	}
}
