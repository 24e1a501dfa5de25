package muster_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/musterfleet/muster"

// floors are the packages from the ground up. One imports only what is on
// lower floors; packages on one floor do not know each other.
var floors = [][]string{
	{"", "internal/cbor"},
	{"internal/delivery", "internal/aaa", "internal/filter", "internal/method", "internal/pki", "internal/order", "internal/rendezvous", "internal/seal", "internal/scheduler", "internal/rpc"},
	{"internal/bus", "internal/broker", "internal/journal", "internal/methods", "internal/facts", "internal/config", "internal/constellation", "internal/lan", "internal/systemd", "internal/podman", "internal/caddy", "internal/cgi"},
	{"internal/playbook", "internal/deploy", "internal/discovery", "internal/datastore", "internal/federation"},
	{"client", "internal/agent", "internal/enrol", "internal/participant"},
	{"internal/fleet", "internal/web"},
	{"internal/app"},
	{"internal/cli"},
	{"cmd", "test/lab"},
	{"test", "bench"}, // try the whole program
}

// foreign are the packages that may import what begins so. Each is one
// foreign thing's only door.
var foreign = map[string][]string{
	"github.com/nats-io/nats.go":     {"internal/bus", "bench"}, // bench measures it bare
	"github.com/nats-io/nats-server": {"internal/broker"},
	"go.etcd.io/bbolt":               {"internal/journal"},
	"golang.org/x/net/ipv4":          {"internal/lan"},
	"golang.org/x/net/ipv6":          {"internal/lan"},
}

// impure are packages that the floors 0 and 1 do not import, with the
// exceptions that are allowed now.
var impure = map[string][]string{
	"os": {}, "net": {"internal/pki"}, // net.IP is what crypto/x509 takes
	"os/exec": {}, "os/signal": {}, "io/ioutil": {}, "syscall": {}, "net/http": {}, "log": {},
}

// group returns the entry of floors that a folder belongs to, as its
// sub-packages do, and its floor.
func group(folder string) (string, int, bool) {
	for floor, all := range floors {
		for _, p := range all {
			if folder == p || p != "" && strings.HasPrefix(folder, p+"/") {
				return p, floor, true
			}
		}
	}
	return "", 0, false
}

// files calls f for each Go file of the module.
func files(t *testing.T, mode parser.Mode, f func(folder, path string, set *token.FileSet, parsed *ast.File)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		name := d.Name()
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && (name[0] == '.' || name[0] == '_' || name == "testdata"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, ".go"):
			return nil
		}
		set := token.NewFileSet()
		parsed, err := parser.ParseFile(set, path, nil, mode)
		if err != nil {
			return err
		}
		folder := filepath.ToSlash(filepath.Dir(path))
		if folder == "." {
			folder = ""
		}
		f(folder, path, set, parsed)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// imports calls f for each import of each Go file of the module.
func imports(t *testing.T, f func(folder, file, path string)) {
	t.Helper()
	files(t, parser.ImportsOnly, func(folder, path string, _ *token.FileSet, parsed *ast.File) {
		for _, spec := range parsed.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			f(folder, path, imported)
		}
	})
}

// clock is what of package time a pure package does not use: it is told what
// time it is.
var clock = []string{"Now", "Since", "Until", "After", "AfterFunc", "Sleep", "Tick", "NewTicker", "NewTimer"}

// TestPure: packages of the floors 0 and 1 are values. They start nothing and
// look at no clock.
func TestPure(t *testing.T) {
	seen := 0
	files(t, parser.SkipObjectResolution, func(folder, path string, _ *token.FileSet, parsed *ast.File) {
		if _, floor, ok := group(folder); !ok || floor > 1 || strings.HasSuffix(path, "_test.go") {
			return
		}
		seen++
		for _, what := range effects(parsed) {
			t.Errorf("%s has %s; floors 0 and 1 are pure", path, what)
		}
	})
	if seen == 0 {
		t.Error("no file was looked at")
	}
}

// effects returns what a pure file does not have.
func effects(file *ast.File) (found []string) {
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			found = append(found, "a go statement")
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clock, n.Sel.Name) {
				found = append(found, "time."+n.Sel.Name)
			}
		}
		return true
	})
	return found
}

func TestEffects(t *testing.T) {
	const source = `package p
import "time"
func f() { go f(); t := time.Now(); _ = t.After(t); g := time.Sleep; g(time.Second) }`
	parsed, err := parser.ParseFile(token.NewFileSet(), "p.go", source, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := effects(parsed), []string{"a go statement", "time.Now", "time.Sleep"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFloors(t *testing.T) {
	unknown := map[string]bool{}
	imports(t, func(folder, file, path string) {
		if strings.HasSuffix(file, "_test.go") {
			return // tests may wire what they need
		}
		from, floor, ok := group(folder)
		if !ok {
			if !unknown[folder] {
				t.Errorf("%s has no floor: add it to the table of this test and of the design", folder)
			}
			unknown[folder] = true
			return
		}
		if rest, ours := strings.CutPrefix(path, module); ours {
			to, below, known := group(strings.TrimPrefix(rest, "/"))
			if known && to != from && below >= floor {
				t.Errorf("%s (floor %d) imports %s (floor %d)", file, floor, path, below)
			}
			return
		}
		if floor == 0 && strings.Contains(strings.Split(path, "/")[0], ".") {
			t.Errorf("%s imports %s; the ground floor has the standard library only", file, path)
		}
		if allowed, bad := impure[path]; floor <= 1 && bad && !slices.Contains(allowed, from) {
			t.Errorf("%s imports %s; floor %d does no input or output", file, path, floor)
		}
		for prefix, allowed := range foreign {
			if (path == prefix || strings.HasPrefix(path, prefix+"/")) && !slices.Contains(allowed, from) {
				t.Errorf("%s imports %s; only %q may", file, path, allowed)
			}
		}
	})
}

// screen is how many lines a function may have: it is read as a whole.
const screen = 60

// TestFunctionsFitOnAScreen has no exceptions. A function that grows beyond is
// split by what its parts mean.
func TestFunctionsFitOnAScreen(t *testing.T) {
	seen := 0
	files(t, parser.SkipObjectResolution, func(_, path string, set *token.FileSet, parsed *ast.File) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		seen++
		for name, lines := range longer(set, parsed, screen) {
			t.Errorf("%s: %s has %d lines, of which %d fit on a screen", path, name, lines, screen)
		}
	})
	if seen == 0 {
		t.Error("no file was looked at")
	}
}

// longer returns the functions of a file that have more lines, with how many,
// from the line of func to that of the last brace.
func longer(set *token.FileSet, file *ast.File, most int) map[string]int {
	found := map[string]int{}
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok {
			if n := set.Position(f.End()).Line - set.Position(f.Type.Func).Line + 1; n > most {
				found[f.Name.Name] = n
			}
		}
	}
	return found
}

func TestLonger(t *testing.T) {
	const source = `package p

// A comment
// is not counted.
func short() {
}

func (t) long() {
	_ = func() {
	}
}
`
	set := token.NewFileSet()
	parsed, err := parser.ParseFile(set, "p.go", source, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := longer(set, parsed, 2), map[string]int{"long": 4}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
