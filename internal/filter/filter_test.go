package filter_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/filter"
)

const factsOfWeb1 = `{
	"os": {"id": "debian", "name": "Debian GNU/Linux", "version": "12.10", "kernel": "6.1.0-13-amd64"},
	"cpu": {"cores": 8, "load": 0.5},
	"memory": {"total_bytes": 68719476736},
	"big": 9007199254740993,
	"roles": ["web", "cache"],
	"ports": [80, 443],
	"empty": [],
	"none": null,
	"virtual": true,
	"disks": [{"mount": "/", "fs": "ext4"}, {"mount": "/var/lib", "fs": "xfs"}],
	"net.ipv4.ip_forward": "1",
	"net": {"ipv4": {"mtu": 1500}, "ipv4.x": {"y": "z"}},
	"rack": 99,
	"10": {"20": "thirty"}
}`

func web1(t testing.TB) filter.Subject {
	var facts map[string]any
	if err := json.Unmarshal([]byte(factsOfWeb1), &facts); err != nil {
		t.Fatal(err)
	}
	facts["big"] = int64(9007199254740993)
	return filter.Subject{
		Name: "web1.example.net",
		Labels: map[string]string{
			"role": "web", "rack": "7", "version": "1.10", "decimal": "2.5", "note": "it's \"it\" \\o/",
			"topology.kubernetes.io/zone": "eu-1", "empty": "", "path": "/srv/www", "debian": "5.3~rc1",
		},
		Facts: facts,
	}
}

func TestMatch(t *testing.T) {
	s := web1(t)
	for _, test := range []struct {
		name string
		yes  []string // expressions that choose web1
		no   []string
	}{
		{"identity",
			[]string{"web1.example.net", "all", "*", `"web1.example.net"`, "'web1.example.net'"},
			[]string{"web1", "web2.example.net", "WEB1.example.net", `"all"`, `"or"`}},
		{"glob",
			[]string{"web*", "web?.example.net", "web[0-9].*", "web[!2-9].*", "web[^a-z]*", "*.net", "w*1*", "[v-x]*", "web[1,2]*"},
			[]string{"web", "web?", "web[!1]*", "*.org", "eb*", "[a-c]*"}},
		{"regular expression",
			[]string{"/web/", `/^web\d\./`, "/example/", "/a b|web/", `/^(web|db)[0-9]+/`, `/(?i)WEB/`},
			[]string{"/^example/", "/web$/", `/a\/b/`}},
		{"or and not",
			[]string{"db,web1.example.net", "db or web*", "db || web*", "db OR web*", "not db", "! db", "!db", "not not web*", "web* and role=web",
				"web* && role=web", "web* role=web", "db role=db or web*", "web* or db role=db", "not db and web*", "(db or web*) role=web",
				"(web*)(role=web)", "not (db or role=db)", "not(db)", "all and not db"},
			[]string{"db", "db or mail", "not web*", "web* and db", "web* db", "db and (web* or web*)", "not (web* or db)", "not db and db", "! !db"}},
		{"equal",
			[]string{"role=web", "role = web", "role= web", `role="web"`, "role='web'", "label.role=web", "os.id=debian", "fact.os.id=debian",
				`os.name="Debian GNU/Linux"`, "virtual=true", "cpu.cores=8", "cpu.cores=8.0", "cpu.load=0.50", "memory.total_bytes=68719476736",
				"big=9007199254740993", `note="it's \"it\" \\o/"`, `note='it\'s "it" \o/'`, `empty=""`, "path=/srv/www", "debian=5.3~rc1",
				"label.topology.kubernetes.io/zone=eu-1", "topology.kubernetes.io/zone=eu-1"},
			[]string{"role=db", "role=Web", "fact.role=web", "label.os.id=debian", "os.id=ubuntu", "missing=x", `missing=""`, "cpu.cores=9",
				"big=9007199254740992", "version=1.1", "role=8", "virtual=1", "os=debian", "none=null", `none=""`}},
		{"not equal",
			[]string{"role!=db", "role != db", "missing!=x", "none!=x", "fact.role!=web", "os!=debian", "roles!=mail", "empty!=x", "cpu.cores!=9"},
			[]string{"role!=web", "cpu.cores!=8", "cpu.cores!=8.0", "roles!=web", "roles!=cache"}},
		{"existence",
			[]string{"role=*", "os=*", "os.id=*", "roles=*", "fact.empty=*", "missing!=*", "none!=*", "cpu.load=*", "disks.1=*"},
			[]string{"role!=*", "missing=*", "none=*", "os.missing=*", "os.id.deeper=*", "disks.2=*", "disks.-1=*", "disks.x=*"}},
		{"value patterns",
			[]string{"role=w*", "role=w?b", "os.name=Debian*", "path=/srv/*", "path=*/www", "role=[vw]eb", "role=/^w/", "role!=/^d/", "role=/^(web|db)$/",
				"role=~^w", "role =~ ^(web|db)$", "role=~/e/", "role=~'^w.b$'", "role!~^d", "missing!~.", "os.name=~'GNU/Linux$'", `cpu.cores=~^\d$`,
				"role=~web|db", "(role=~(web|db))", "role=~w{1,2}", "role=~[,w]eb", "role=~web,db", "os.name=~/n G/"},
			[]string{"role=d*", "role!=w*", "role=/^d/", "role!=/^w/", "role!~^w", "missing=~.", `role="w*"`, "role='*'", "missing=x*", "role=eb*", "os=~."}},
		{"numbers",
			[]string{"rack>6", "rack<10", "rack>=7", "rack<=7.0", "rack<1e1", "fact.rack>98", "cpu.cores>=8", "cpu.cores > 7.5", "cpu.load<1", "cpu.load>.4",
				"memory.total_bytes>68719476735", "big>9007199254740992", "rack>-5", "decimal>2"},
			[]string{"rack>7", "rack>10", "cpu.cores<8", "cpu.cores>8", "missing<1", "missing>=0", "none<1", "virtual<2", "virtual>0", "os>0"}},
		{"versions",
			[]string{"version>1.9", "version<1.11", "version>=1.10", "version>1.9.9", "os.version>12.9", "os.kernel>=6.1", "os.kernel>6.1.0-9-amd64",
				"os.kernel<6.1.0-14", "os.id>arch", "decimal<2.25", "decimal>=2.05"},
			[]string{"version<1.9", "version>1.10", "version>1.10.1", "os.kernel<6.1", "os.id<arch"}},
		{"lists",
			[]string{"roles=web", "roles=cache", "roles=c*", "roles=~^ca", "ports=443", "ports>400", "ports<100", "roles.0=web", "roles.1=cache",
				"disks.0.mount=/", "disks.1.mount=/var/lib", "disks.1.fs=xfs", "roles!~mail"},
			[]string{"roles=mail", "roles.0=cache", "ports>443", "roles.2=web", "disks=ext4", "disks.mount=/", "roles!~web", "roles!=c*", "fact.empty=x"}},
		{"dotted keys",
			[]string{"net.ipv4.ip_forward=1", "net.ipv4.mtu=1500", "net.ipv4.x.y=z", "10.20=thirty"},
			[]string{"net.ipv4.other=1", "10.30=thirty"}},
		{"quoted keys",
			[]string{`"role"=web`, `'label.role' = web`, `"not"!=x`},
			[]string{`"role"=db`, `"ro*"=web`, `"not"=x`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, expr := range test.yes {
				check(t, s, expr, true)
			}
			for _, expr := range test.no {
				check(t, s, expr, false)
			}
		})
	}
}

func check(t *testing.T, s filter.Subject, expr string, want bool) {
	t.Helper()
	f, err := filter.Parse(expr)
	if err != nil {
		t.Errorf("Parse(%s): %v", expr, err)
		return
	}
	if got := f.Match(s); got != want {
		t.Errorf("%s: got %v, want %v", expr, got, want)
	}
	again, err := filter.Parse(f.String())
	if err != nil {
		t.Errorf("%s: canonical form %s: %v", expr, f, err)
		return
	}
	if again.String() != f.String() || again.Match(s) != want {
		t.Errorf("%s: canonical form %s is read as %s, which matches: %v", expr, f, again, again.Match(s))
	}
}

func TestMatchWithoutLabelsAndFacts(t *testing.T) {
	s := filter.Subject{Name: "n"}
	for expr, want := range map[string]bool{"n": true, "a=b": false, "a!=b": true, "a.b.c>1": false, "all": true} {
		check(t, s, expr, want)
	}
	if (&filter.Filter{}).Match(s) {
		t.Error("the zero filter matches")
	}
}

func TestString(t *testing.T) {
	for _, test := range []struct{ expr, want string }{
		{"a,b||c or d", "a or b or c or d"},
		{"a b&&c AND d", "a and b and c and d"},
		{"a, b c", "a or b and c"},
		{"(a,b) c", "(a or b) and c"},
		{"((a or b)) or (c)", "a or b or c"},
		{"(a and (b and c))", "a and b and c"},
		{"!a", "not a"},
		{"!(a b)", "not (a and b)"},
		{"! ! a", "not not a"},
		{"*", "all"},
		{`"all" 'OR' "a"`, `"all" and "OR" and a`},
		{"/a b/", "/a b/"},
		{`/a\/b/`, `/a\/b/`},
		{"role = web", "role=web"},
		{"role != 'web server'", `role!="web server"`},
		{"role='w*'", `role="w*"`},
		{"role=w*", "role=w*"},
		{"role = *", "role=*"},
		{"role != *", "role!=*"},
		{"role=/x/", "role=~/x/"},
		{"role!=/x/", "role!~/x/"},
		{"role=~x,y", "role=~/x/ or y"},
		{"path=~'a/b'", `path=~"a/b"`},
		{"path=/srv/www", `path="/srv/www"`},
		{"path=/srv/", "path=~/srv/"},
		{"v='~1'", `v="~1"`},
		{`v='a"b\c'`, `v="a\"b\\c"`},
		{"'a b' >= 3", `"a b">=3`},
		{`"and"=1`, `"and"=1`},
		{"all=1", "all=1"},
		{`x=""`, `x=""`},
	} {
		f, err := filter.Parse(test.expr)
		if err != nil {
			t.Errorf("Parse(%s): %v", test.expr, err)
			continue
		}
		if got := f.String(); got != test.want {
			t.Errorf("%s: got %s, want %s", test.expr, got, test.want)
		}
	}
}

func TestNames(t *testing.T) {
	for _, test := range []struct {
		expr string
		want []muster.NodeName // nil when it is not a list of names
	}{
		{"a", []muster.NodeName{"a"}},
		{"a,b or (c || 'd') , a", []muster.NodeName{"a", "b", "c", "d"}},
		{`"all"`, []muster.NodeName{"all"}},
		{"all", nil},
		{"a,b*", nil},
		{"a,/b/", nil},
		{"a b", nil},
		{"not a", nil},
		{"a,role=b", nil},
	} {
		f, err := filter.Parse(test.expr)
		if err != nil {
			t.Errorf("Parse(%s): %v", test.expr, err)
			continue
		}
		got, ok := f.Names()
		if !slices.Equal(got, test.want) || ok != (test.want != nil) {
			t.Errorf("%s: got %v, %v; want %v", test.expr, got, ok, test.want)
		}
	}
	if names, ok := (&filter.Filter{}).Names(); ok {
		t.Errorf("the zero filter lists %v", names)
	}
}

// TestMatchEqualsDefinition compares connectives with their truth tables.
func TestMatchEqualsDefinition(t *testing.T) {
	for bits := range 8 {
		labels := map[string]string{}
		var v [3]bool
		for i, key := range []string{"a", "b", "c"} {
			if v[i] = bits>>i&1 == 1; v[i] {
				labels[key] = "1"
			}
		}
		a, b, c := v[0], v[1], v[2]
		s := filter.Subject{Name: "n", Labels: labels}
		for expr, want := range map[string]bool{
			"a=1 or b=1 and c=1":       a || b && c,
			"(a=1 or b=1) and c=1":     (a || b) && c,
			"not a=1 or b=1":           !a || b,
			"not a=1 and b=1 or c=1":   !a && b || c,
			"not (a=1 and b=1) or c=1": !(a && b) || c,
			"a=1 !b=1, c=1":            a && !b || c,
			"a=1, !(b=1 c!=1)":         a || !(b && !c),
		} {
			check(t, s, expr, want)
		}
	}
}

func TestLimits(t *testing.T) {
	nested := func(n int) string { return strings.Repeat("(", n) + "a" + strings.Repeat(")", n) }
	for _, test := range []struct {
		name string
		expr string
		want string // part of the message, "" for none
	}{
		{"longest", strings.Repeat(" ", filter.MaxExpression-1) + "a", ""},
		{"too long", strings.Repeat(" ", filter.MaxExpression) + "a", "column 16385: the expression has 16385 bytes; at most 16384"},
		{"too long in canonical form", strings.Repeat("a,", 8000) + "a", "in canonical form; at most 16384"},
		{"many names", strings.Repeat("a,", 3000) + "a", ""},
		{"deepest", nested(filter.MaxNesting), ""},
		{"too deep", nested(filter.MaxNesting + 1), "column 101: "},
		{"too many nots", strings.Repeat("!", filter.MaxNesting+1) + "a", "column 101: "},
		{"deep and closed again", strings.Repeat(nested(60)+" ", 5), ""},
		{"large regular expression", "a x=~(a{1000}){60}", "column 6: regular expression"},
		{"large regular expressions", strings.Repeat("/a{1000}/,", 100) + "b", "too large"},
		{"some regular expressions", strings.Repeat("/a{1000}/,", 10) + "b", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := filter.Parse(test.expr)
			if test.want == "" {
				if err != nil {
					t.Errorf("got %v, want no error", err)
				}
			} else if err == nil || !strings.Contains(err.Error(), test.want) || muster.KindOf(err) != muster.Invalid {
				t.Errorf("got %v, want an invalid error containing %q", err, test.want)
			}
		})
	}
}

func Example() {
	f, err := filter.Parse("os.id=debian and (role=web, rack>=10) not /^test/")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(f)
	fmt.Println(f.Match(filter.Subject{
		Name:   "web1",
		Labels: map[string]string{"role": "web"},
		Facts:  map[string]any{"os": map[string]any{"id": "debian"}},
	}))
	// Output:
	// os.id=debian and (role=web or rack>=10) and not /^test/
	// true
}
