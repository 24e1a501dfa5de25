package aaa

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/musterfleet/muster"
)

func TestParsePolicyRefuses(t *testing.T) {
	const head = "rules:\n  - effect: allow\n"
	for _, c := range []struct{ name, yaml, want string }{
		{"empty", "", ""},
		{"comment", "# nothing\n\n", ""},
		{"no rules", "rules: []", ""},
		{"one rule", head, ""},
		{"syntax", "rules:\n  - effect: [\n", "p.yaml:3: not YAML: "},
		{"two documents", "rules: []\n---\nrules: []\n", "p.yaml"},
		{"list", "- rules\n", "p.yaml:1: policy is a list; expected keys and values"},
		{"unknown key", "rule: []\n", `p.yaml:1: unknown key "rule"; expected rules`},
		{"repeated key", "rules: []\nrules: []\n", `p.yaml:2: key "rules" of policy is there twice; first on line 1`},
		{"rules is a mapping", "rules: {}\n", "p.yaml:1: rules is a mapping; expected a list"},
		{"rules is null", "rules:\n", "p.yaml:1: rules is empty; expected a list"},
		{"rule is text", "rules:\n  - allow\n", `p.yaml:2: rule 1 is text ("allow"); expected keys and values`},
		{"unknown key in a rule", head + "    methdos: [a]\n", `p.yaml:3: unknown key "methdos"; expected name, effect, callers, groups, methods or input`},
		{"case", head + "    Methods: [a]\n", `p.yaml:3: unknown key "Methods"`},
		{"merge", head + "    <<: {callers: [a]}\n", `p.yaml:3: unknown key "<<"`},
		{"alias", "rules:\n  - &a\n    effect: allow\n  - *a\n", "p.yaml:4: rule 2 is an alias"},
		{"no effect", "rules:\n  - methods: [a]\n", "p.yaml:2: rule 1 has no effect; expected effect: allow or effect: deny"},
		{"other effect", "rules:\n  - effect: permit\n", `p.yaml:2: effect is "permit"; expected allow or deny`},
		{"empty name", head + "    name: ''\n", "p.yaml:3: name: name is empty"},
		{"empty list", head + "    callers: []\n", "p.yaml:3: callers is an empty list; leave it out for any"},
		{"no list", head + "    callers: alice\n", "p.yaml:3: callers is text"},
		{"number", head + "    callers: [1]\n", "p.yaml:3: callers is of type int (1); expected text in quotes"},
		{"null list", head + "    callers:\n", "p.yaml:3: callers is empty"},
		{"empty glob", head + "    callers: ['']\n", "p.yaml:3: callers: callers is empty"},
		{"empty input", head + "    input: {}\n", "p.yaml:3: input is empty; leave it out for any"},
		{"input list", head + "    input: [a]\n", "p.yaml:3: input is a list"},
		{"input of a list", head + "    input:\n      a: [b]\n", "p.yaml:4: a is a list; expected a glob"},
		{"input null", head + "    input:\n      a:\n", "p.yaml:4: a is empty"},
		{"input path", head + "    input:\n      a..b: x\n", `p.yaml:4: a..b: path "a..b" has an empty part`},
		{"input path escape", head + "    input:\n      'a\\b': x\n", "backslash stands before"},
		{"regexp", head + "    input:\n      a: '/(/'\n", "p.yaml:4: a: pattern /(/ is not a regular expression"},
		{"regexp with brackets across", head + "    input:\n      a: '/a)|(b/'\n", "not a regular expression"},
		{"path that looks like a regexp", head + "    input:\n      a: /usr/bin/\n", "a regular expression with a slash in it"},
		{"input number", head + "    input: {a: 1, b: true, c: -1.5}\n", ""},
		{"input number in another form", head + "    input: {a: 0x10}\n", "of type int (0x10)"},
		{"input float in another form", head + "    input: {a: 1.0}\n", "of type float (1.0)"},
		{"input boolean in another form", head + "    input: {a: True}\n", "of type bool (True)"},
		{"too large", strings.Repeat("#", MaxPolicy+1), "at most 262144"},
		{"too many rules", "rules:\n" + strings.Repeat("- effect: deny\n", MaxRules+1), "at most 1000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParsePolicy("p.yaml", []byte(c.yaml))
			checkError(t, err, muster.Invalid, c.want)
		})
	}
	_, err := ParsePolicy("p.yaml", []byte(head+"    input:\n      a: /usr/bin/\n"))
	if hint := muster.AsError(muster.Invalid, err).Hint; !strings.Contains(hint, `'/\/usr\/bin\//'`) {
		t.Errorf("hint = %q", hint)
	}
}

const examplePolicy = `
rules:
  - name: nobody reboots
    effect: deny
    methods: ["host.reboot"]
  - name: operators may look
    effect: allow
    callers: ["alice", "ops-*"]
    methods: ["file.*", "ping"]
  - effect: allow
    groups: ["admin"]
    methods: ["shell.run"]
    input:
      argv.0: "/usr/bin/uptime"
      argv.*: '/[-a-z\/]+/'
`

func TestDecide(t *testing.T) {
	everything := []Right{{Methods: []string{"*"}, Nodes: []string{"*"}}}
	policy := must(ParsePolicy("p.yaml", []byte(examplePolicy)))(t)
	all := must(ParsePolicy("all.yaml", []byte("rules: [{effect: allow, methods: ['*']}]")))(t)
	for _, c := range []struct {
		name    string
		policy  *Policy
		caller  Caller
		method  muster.Method
		input   string
		allowed bool
		rule    string
		reason  string
	}{
		{"named", policy, Caller{Name: "alice", Rights: everything}, "ping", "", true, "operators may look", "allowed by"},
		{"by glob", policy, Caller{Name: "ops-7", Rights: everything}, "file.read", "", true, "operators may look", "allowed by"},
		{"other method", policy, Caller{Name: "alice", Rights: everything}, "files", "", false, "", "no rule allows it"},
		{"first match wins", policy, Caller{Name: "alice", Groups: []string{"admin"}, Rights: everything}, "host.reboot", "", false, "nobody reboots", "denied by"},
		{"by group and input", policy, Caller{Name: "bob", Groups: []string{"x", "admin"}, Rights: everything}, "shell.run", `{"argv":["/usr/bin/uptime","-p"]}`, true, "rule 3", "allowed by"},
		{"other input", policy, Caller{Name: "bob", Groups: []string{"admin"}, Rights: everything}, "shell.run", `{"argv":["/usr/bin/uptime","; rm"]}`, false, "", `no rule allows it: method shell.run for caller "bob" with this input; another input may be allowed by "rule 3"`},
		{"no group", policy, Caller{Name: "admin", Rights: everything}, "shell.run", `{"argv":["/usr/bin/uptime"]}`, false, "", "no rule allows it"},
		{"rights come first", policy, Caller{Name: "alice", Rights: []Right{{Methods: []string{"file.*"}, Nodes: []string{"*"}}}}, "ping", "", false, "", "no right of caller"},
		{"no rights", all, Caller{Name: "alice"}, "ping", "", false, "", "no right of caller"},
		{"other node", all, Caller{Rights: []Right{{Methods: []string{"*"}, Nodes: []string{"db*"}}}}, "ping", "", false, "", "no right of caller"},
		{"any caller", all, Caller{Rights: everything}, "ping", "", true, "rule 1", "allowed by"},
		{"nil policy", nil, Caller{Rights: everything}, "ping", "", false, "", "no rule allows it: this node has no policy"},
		{"empty policy", &Policy{}, Caller{Rights: everything}, "ping", "", false, "", "no rule allows it: this node has no policy"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := testCommand()
			cmd.Method, cmd.Input = c.method, json.RawMessage(c.input)
			d := c.policy.Decide(c.caller, cmd)
			if d.Allowed != c.allowed || d.Rule != c.rule || !strings.Contains(d.Reason, c.reason) {
				t.Errorf("decision = %+v; want %v by %q because %q", d, c.allowed, c.rule, c.reason)
			}
			err := muster.AsError(muster.Internal, d.Err())
			if c.allowed != (err == nil) || err != nil && (err.Kind != muster.Denied || err.Hint == "") {
				t.Errorf("error = %+v; want one with a hint unless allowed", err)
			}
		})
	}
	// The hint is a policy that parses.
	_, example, _ := strings.Cut(policyHint, "for example: ")
	if _, err := ParsePolicy("hint", []byte(example)); err != nil {
		t.Errorf("the hint is no policy: %v", err)
	}
}

// A refusal for the input alone names the rules that allow another: those for
// this caller and method, a few of them, and nothing of the input.
func TestDecideNamesRulesForOtherInputs(t *testing.T) {
	caller := Caller{Name: "bob", Rights: []Right{{Methods: []string{"*"}, Nodes: []string{"*"}}}}
	const (
		other  = "- {effect: allow, name: other method, methods: [x]}\n- {effect: allow, name: other caller, callers: [eve]}\n"
		deny   = "- {effect: deny, name: deny, input: {a: never}}\n"
		allow  = "- {effect: allow, methods: [m], input: {a: good}}\n"
		plain  = `no rule allows it: method m for caller "bob"`
		with   = plain + " with this input; another input may be allowed by "
		secret = "hunter2"
	)
	for _, c := range []struct{ name, rules, want string }{
		{"none", other, plain},
		{"a deny rule", other + deny, plain},
		{"one", other + deny + allow, with + `"rule 4"`},
		{"three", strings.Repeat(allow, 3), with + `"rule 1", "rule 2", "rule 3"`},
		{"many", strings.Repeat(allow, MaxRules), with + `"rule 1", "rule 2", "rule 3" and 997 more`},
		{"a deny rule decides", allow + "- {effect: deny, name: rest}\n", `denied by "rest"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := testCommand()
			cmd.Method, cmd.Input = "m", json.RawMessage(`{"a":"`+secret+`"}`)
			d := must(ParsePolicy("p.yaml", []byte("rules:\n"+c.rules)))(t).Decide(caller, cmd)
			if d.Allowed || d.Reason != c.want || strings.Contains(d.Reason, secret) {
				t.Errorf("%q; want %q", d.Reason, c.want)
			}
		})
	}
	long := must(ParsePolicy("p.yaml", []byte("rules:\n"+strings.Repeat(strings.Replace(allow, "effect", "name: "+strings.Repeat("ü", MaxName/2)+", effect", 1), 4))))(t)
	cmd := testCommand()
	if d := long.Decide(caller, muster.Command{Node: cmd.Node, Method: "m", Input: json.RawMessage(`{}`)}); len(d.Reason) > 500 {
		t.Errorf("the reason has %d bytes", len(d.Reason))
	}
}

// A policy that cannot be read denies all that rights cover, and says why in one
// line of bounded length. It is not taken for one that is not there.
func TestUnreadablePolicy(t *testing.T) {
	everything := []Right{{Methods: []string{"*"}, Nodes: []string{"*"}}}
	long := muster.Errorf(muster.Invalid, "policy.yaml:3: one\nline %s", strings.Repeat("x", 10*maxFault))
	p := UnreadablePolicy(long)
	d := p.Decide(Caller{Name: "alice", Rights: everything}, testCommand())
	if d.Allowed || !strings.HasPrefix(d.Reason, "the policy of this node cannot be read: policy.yaml:3: one line x") || len(d.Reason) > maxFault+100 || d.Hint == "" {
		t.Errorf("decision = %+v", d)
	}
	if d := p.Decide(Caller{Name: "alice"}, testCommand()); !strings.HasPrefix(d.Reason, "no right of caller") {
		t.Errorf("who has no right is told %q", d.Reason)
	}
	for _, p := range []*Policy{nil, {}} {
		if fault := p.Fault(); fault != "" {
			t.Errorf("fault = %q", fault)
		}
	}
}

// The table in the documentation of Policy, line by line.
func TestInputConditions(t *testing.T) {
	for _, c := range []struct {
		name, path, pattern, input string
		allow, deny                bool // whether a rule of that effect matches
	}{
		{"equal", "a", "x", `{"a":"x"}`, true, true},
		{"different", "a", "x", `{"a":"y"}`, false, false},
		{"anchored glob", "a", "x", `{"a":"xx"}`, false, false},
		{"anchored regexp", "a", "/x/", `{"a":"axb"}`, false, false},
		{"anchored alternatives", "a", "/x|y/", `{"a":"xz"}`, false, false},
		{"regexp", "a", `/\/usr\/[a-z]+/`, `{"a":"/usr/bin"}`, true, true},
		{"line break", "a", "/.*rm.*/", `{"a":"x\nrm\n"}`, true, true},
		{"trailing line break", "a", "/x/", `{"a":"x\n"}`, false, false},
		{"deep", "a.b.1", "x", `{"a":{"b":["y","x"]}}`, true, true},
		{"several, all match", "a.*", "x*", `{"a":["x","xy"]}`, true, true},
		{"several, one matches", "a.*", "x*", `{"a":["x","y"]}`, false, true},
		{"several, none matches", "a.*", "x*", `{"a":["z","y"]}`, false, false},
		{"values of an object", "a.*", "x*", `{"a":{"k":"x","l":"x"}}`, true, true},
		{"fields of elements", "a.*.b", "x", `{"a":[{"b":"x"},{"b":"x"}]}`, true, true},
		{"a field of one element is missing", "a.*.b", "x", `{"a":[{"b":"x"},{}]}`, false, true},
		{"missing", "a", "x", `{}`, false, true},
		{"missing matches no star", "a", "*", `{}`, false, true},
		{"no input", "a", "*", ``, false, true},
		{"null input", "a", "*", `null`, false, true},
		{"input is no object", "a", "*", `"a"`, false, true},
		{"index beyond the end", "a.1", "*", `{"a":["x"]}`, false, true},
		{"negative index", "a.-1", "*", `{"a":["x"]}`, false, true},
		{"empty array", "a.*", "*", `{"a":[]}`, false, false},
		{"empty object", "a.*", "*", `{"a":{}}`, false, false},
		{"array for a scalar", "a", "*", `{"a":["x"]}`, false, true},
		{"object among scalars", "a.*", "*", `{"a":["x",{}]}`, false, true},
		{"other case", "a", "x", `{"A":"x"}`, false, true},
		{"other case beside", "a", "x", `{"a":"y","A":"x"}`, false, true},
		{"repeated key", "a", "x", `{"a":"x","a":"y"}`, false, true},
		{"number", "a", "1000", `{"a":1000}`, true, true},
		{"number in another form", "a", "1000", `{"a":1e3}`, true, true},
		{"large number in another form", "a", "100000000000000000000", `{"a":1e20}`, true, true},
		{"negative zero", "a", "0", `{"a":-0.0}`, true, true},
		{"fraction", "a", "1.5", `{"a":15e-1}`, true, true},
		{"large integers differ", "a", "9007199254740993", `{"a":9007199254740992}`, false, false},
		{"boolean", "a", "true", `{"a":true}`, true, true},
		{"null", "a", "null", `{"a":null}`, true, true},
		{"escaped dot", `a\.b`, "x", `{"a.b":"x","a":{"b":"y"}}`, true, true},
		{"escaped star", `a.\*`, "x", `{"a":{"*":"x","k":"y"}}`, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			cond := must(newCondition(c.path, c.pattern))(t)
			for _, allow := range []bool{true, false} {
				in := input{raw: json.RawMessage(c.input)}
				want := c.deny
				if allow {
					want = c.allow
				}
				if got := cond.holds(in.find(cond.path), allow); got != want {
					t.Errorf("allow=%v: holds = %v; want %v", allow, got, want)
				}
			}
		})
	}
}

func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte(examplePolicy), []byte(`{"argv":["/usr/bin/uptime"]}`))
	f.Add([]byte("rules: [{effect: deny, input: {a.*: '/x/', b: 1}}]"), []byte(`{"a":[],"b":1.0}`))
	f.Fuzz(func(t *testing.T, file, in []byte) {
		p, err := ParsePolicy("f", file)
		if err != nil {
			if muster.KindOf(err) != muster.Invalid {
				t.Fatalf("error of kind %s: %v", muster.KindOf(err), err)
			}
			return
		}
		cmd := testCommand()
		cmd.Input = in
		d := p.Decide(Caller{Name: "alice", Groups: []string{"admin"}, Rights: []Right{{[]string{"*"}, []string{"*"}}}}, cmd)
		if d.Reason == "" || d.Allowed && d.Rule == "" {
			t.Fatalf("decision %+v", d)
		}
	})
}

func TestRedact(t *testing.T) {
	for _, c := range []struct {
		name, in string
		paths    []string
		want     string
	}{
		{"field", `{"user":"a","password":"p"}`, []string{"password"}, `{"password":"REDACTED","user":"a"}`},
		{"other case", `{"Password":"p"}`, []string{"password"}, `{"Password":"REDACTED"}`},
		{"object", `{"auth":{"k":1}}`, []string{"auth"}, `{"auth":"REDACTED"}`},
		{"elements", `{"l":[{"s":1,"n":2},{"s":3}]}`, []string{"l.*.s"}, `{"l":[{"n":2,"s":"REDACTED"},{"s":"REDACTED"}]}`},
		{"index", `{"l":["a","b"]}`, []string{"l.1"}, `{"l":["a","REDACTED"]}`},
		{"missing", `{"a":1e2}`, []string{"b.c"}, `{"a":1e2}`},
		{"unreadable", `{"password":"p"`, []string{"password"}, `null`},
		{"repeated", `{"password":"p","password":"q"}`, []string{"password"}, `null`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := must(Redact(json.RawMessage(c.in), c.paths))(t); string(got) != c.want {
				t.Errorf("Redact = %s; want %s", got, c.want)
			}
		})
	}
	_, err := Redact(json.RawMessage(`{}`), []string{"a..b"})
	checkError(t, err, muster.Invalid, "empty part")
}
