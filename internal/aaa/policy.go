package aaa

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"github.com/musterfleet/muster"
)

// A Policy says which caller may run which method with which input on the node
// that holds it. Rules are asked in order, and the first one that matches
// decides; when none does, the command is denied. A nil Policy has no rules.
//
// The file is YAML:
//
//	rules:
//	  - name: operators run uptime    # optional, else "rule 1"
//	    effect: allow                 # or deny
//	    callers: ["alice", "ops-*"]   # optional: any of these globs
//	    groups: ["admin"]             # optional: the caller is in any of these
//	    methods: ["shell.run"]        # optional: any of these globs
//	    input:                        # optional: all of these must hold
//	      argv.0: "/usr/bin/uptime"
//	      argv.*: '/[-a-z\/]+/'
//
// In globs '*' is any characters including dots, and '?' is one. An input
// pattern is a glob, or a regular expression (RE2) between slashes, in which
// slashes are written \/ and a dot matches line breaks too. Either must match
// the whole value. So "/etc/" is the regular expression etc; the text /etc/ is
// '/\/etc\//'. Values that are no text are compared as JSON writes them:
// 1000, true, null.
//
// An input path goes through objects by key and arrays by index from 0; '*' is
// every element, and a backslash takes the meaning from '.' and '*'. When
// something is in doubt the safe side is taken, which depends on the effect:
//
//	                                       allow        deny
//	several values (argv.*)                all match    one matches
//	no value at the path                   no match     match
//	'*' on an empty array or object        no match     no match
//	the value is an array or object        no match     match
//	the key is there in another case too   no match     match
//
// So a deny rule on an optional field denies commands that leave the field
// out: what the method does then is not visible in the input. To allow those,
// put a rule before it.
type Policy struct {
	rules []rule
	fault string // not empty: it cannot be read, and denies everything
}

// maxFault is the longest account of what is wrong with a policy, in bytes:
// refusals and problems of nodes repeat it.
const maxFault = 400

// UnreadablePolicy stands for a policy that is there and cannot be read. It
// denies everything, for the reason that the error gives.
func UnreadablePolicy(cause error) *Policy {
	return &Policy{fault: clip(strings.Join(strings.Fields(cause.Error()), " "), maxFault)}
}

// Fault returns why the policy cannot be read, as one line of bounded length;
// empty for all but those of UnreadablePolicy.
func (p *Policy) Fault() string {
	if p == nil {
		return ""
	}
	return p.fault
}

type rule struct {
	name    string
	allow   bool
	callers []string // globs; nil is any
	groups  []string // globs; nil is any
	methods []string // globs; nil is any
	input   []condition
}

type condition struct {
	path   path
	glob   string
	regexp *regexp.Regexp // instead of glob, when not nil
}

// A Decision is what became of one command, and why.
type Decision struct {
	Allowed bool
	Rule    string // that decided; empty when no rule did
	Reason  string // for people, one line
	Hint    string // what to try; empty when there is nothing to say
}

// Err returns the refusal as an error of kind Denied, or nil when allowed.
func (d Decision) Err() error {
	if d.Allowed {
		return nil
	}
	err := muster.Errorf(muster.Denied, "%s", d.Reason)
	if d.Hint != "" {
		return err.WithHint("%s", d.Hint)
	}
	return err
}

const policyHint = `write a policy on the node, for example: rules: [{effect: allow, groups: ["admin"], methods: ["service.*"]}]`

// Decide says whether the caller may run the command: first the rights that
// the issuer gave, then the rules of this node. The command must have been
// verified.
func (p *Policy) Decide(caller Caller, c muster.Command) Decision {
	if !caller.May(c.Method, c.Node) {
		return Decision{
			Reason: fmt.Sprintf("no right of caller %q covers method %s on node %s", caller.Name, c.Method, c.Node),
			Hint:   "ask the fleet's issuer for an identity with that right",
		}
	}
	if fault := p.Fault(); fault != "" {
		return Decision{
			Reason: "the policy of this node cannot be read: " + fault,
			Hint:   "repair it on the node; until then the node denies everything",
		}
	}
	if p == nil || len(p.rules) == 0 {
		return Decision{Reason: "no rule allows it: this node has no policy", Hint: policyHint}
	}
	in := input{raw: c.Input}
	var others []string // names of the rules that allow another input
	for _, r := range p.rules {
		if !r.concerns(caller, c.Method) {
			continue
		}
		if !r.accepts(&in) {
			if r.allow {
				others = append(others, r.name)
			}
			continue
		}
		if r.allow {
			return Decision{Allowed: true, Rule: r.name, Reason: fmt.Sprintf("allowed by %q", r.name)}
		}
		return Decision{Rule: r.name, Reason: fmt.Sprintf("denied by %q", r.name), Hint: "ask whoever keeps the policy of this node"}
	}
	return Decision{
		Reason: fmt.Sprintf("no rule allows it: method %s for caller %q", c.Method, caller.Name) + withThisInput(others),
		Hint:   "ask whoever keeps the policy of this node for a rule that allows it",
	}
}

// maxOthers is how many rules a refusal names.
const maxOthers = 3

// withThisInput says that it is the input that no rule allows, and which rules
// allow another. It has names alone: what is in the input may be secret.
func withThisInput(rules []string) string {
	if len(rules) == 0 {
		return ""
	}
	var text strings.Builder
	text.WriteString(" with this input; another input may be allowed by ")
	for i, name := range rules[:min(len(rules), maxOthers)] {
		if i > 0 {
			text.WriteString(", ")
		}
		fmt.Fprintf(&text, "%q", clip(name, 80))
	}
	if more := len(rules) - maxOthers; more > 0 {
		fmt.Fprintf(&text, " and %d more", more)
	}
	return text.String()
}

// An input is decoded when the first rule asks for it, and then once.
type input struct {
	raw     json.RawMessage
	value   any
	decoded bool
	ok      bool
}

func (i *input) find(p path) finding {
	if !i.decoded {
		i.decoded = true
		i.value, i.ok = decodeAny(i.raw)
	}
	var f finding
	if !i.ok {
		f.missing = true
		return f
	}
	p.find(i.value, &f)
	return f
}

// concerns reports whether caller and method are among those of the rule.
func (r rule) concerns(caller Caller, method muster.Method) bool {
	if r.callers != nil && !matchAny(r.callers, caller.Name) {
		return false
	}
	if r.methods != nil && !matchAny(r.methods, string(method)) {
		return false
	}
	return r.groups == nil || anyGroup(r.groups, caller.Groups)
}

// accepts reports whether all conditions on the input hold.
func (r rule) accepts(in *input) bool {
	for _, c := range r.input {
		if !c.holds(in.find(c.path), r.allow) {
			return false
		}
	}
	return true
}

func anyGroup(globs, groups []string) bool {
	for _, group := range groups {
		if matchAny(globs, group) {
			return true
		}
	}
	return false
}

// holds applies the table in the documentation of Policy.
func (c condition) holds(f finding, allow bool) bool {
	doubt := f.missing || f.unclear
	matched := 0
	for _, text := range f.texts {
		if c.match(text) {
			matched++
		}
	}
	if allow {
		return !doubt && !f.empty && matched > 0 && matched == len(f.texts)
	}
	return doubt || matched > 0
}

func (c condition) match(text string) bool {
	if c.regexp != nil {
		return c.regexp.MatchString(text)
	}
	return matchGlob(c.glob, text)
}

// newCondition reads a path and its pattern.
func newCondition(pathText, pattern string) (condition, error) {
	p, err := parsePath(pathText)
	if err != nil {
		return condition{}, err
	}
	if len(pattern) > MaxPattern {
		return condition{}, muster.Errorf(muster.Invalid, "pattern has %d bytes; at most %d are allowed", len(pattern), MaxPattern)
	}
	c := condition{path: p}
	if len(pattern) < 2 || pattern[0] != '/' || pattern[len(pattern)-1] != '/' {
		c.glob = pattern
		return c, nil
	}
	c.regexp, err = compile(pattern[1 : len(pattern)-1])
	return c, err
}

// compile makes an anchored regular expression of what stood between slashes.
func compile(text string) (*regexp.Regexp, error) {
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '/':
			// Without this rule "/usr/bin/" would silently be a regular expression.
			return nil, muster.Errorf(muster.Invalid, "pattern /%s/ is a regular expression with a slash in it", text).
				WithHint(`write such a slash as \/ ; to match the text itself write '/%s/'`, strings.ReplaceAll("/"+regexp.QuoteMeta(text)+"/", "/", `\/`))
		}
	}
	// Alone first: "a)|(b" is no expression, but would become one in brackets.
	if _, err := regexp.Compile(text); err != nil {
		return nil, muster.Errorf(muster.Invalid, "pattern /%s/ is not a regular expression: %w", clip(text, 80), err)
	}
	re, err := regexp.Compile(`\A(?s:` + text + `)\z`)
	if err != nil {
		return nil, muster.Errorf(muster.Invalid, "pattern /%s/ is not a regular expression: %w", clip(text, 80), err)
	}
	return re, nil
}
