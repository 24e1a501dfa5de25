package aaa

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/musterfleet/muster"
)

// Limits of a policy file.
const (
	MaxPolicy = 256 << 10 // bytes
	MaxRules  = 1000
)

// ParsePolicy reads a policy file (see [Policy]). The name of the file is for
// messages only, which are of the form FILE:LINE: what is wrong; what was
// expected. Nothing is guessed: unknown and repeated keys, empty lists, aliases
// and values of another type are errors. An empty file is a policy that denies
// everything.
func ParsePolicy(file string, data []byte) (*Policy, error) {
	if len(data) > MaxPolicy {
		return nil, muster.Errorf(muster.Invalid, "%s: policy has %d bytes; at most %d are allowed", file, len(data), MaxPolicy)
	}
	p := policyParser{file: file}
	if blank(data) {
		return &Policy{}, nil
	}
	var document yaml.Node
	if err := yaml.Load(data, &document); err != nil {
		return nil, p.syntax(err).WithHint("%s", policyHint)
	}
	root := &document
	if root.Kind == yaml.DocumentNode && len(root.Content) == 1 {
		root = root.Content[0]
	}
	return p.policy(root)
}

// syntax gives an error of the YAML library the form of our own.
func (p policyParser) syntax(err error) *muster.Error {
	if at, ok := errors.AsType[*yaml.LoadError](err); ok && at.Mark.Line > 0 {
		return muster.Errorf(muster.Invalid, "%s:%d: not YAML: %s", p.file, at.Mark.Line, clip(at.Message, 200))
	}
	return muster.Errorf(muster.Invalid, "%s: not YAML: %w", p.file, err)
}

// blank reports whether there are only comments and empty lines.
func blank(data []byte) bool {
	for line := range bytes.Lines(data) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return false
		}
	}
	return true
}

// A policyParser turns YAML nodes into rules. It walks the nodes itself rather
// than decode into a struct, because it has to know the line of everything.
type policyParser struct{ file string }

func (p policyParser) errorf(n *yaml.Node, format string, args ...any) error {
	return muster.Errorf(muster.Invalid, "%s:%d: %w", p.file, n.Line, fmt.Errorf(format, args...))
}

// at adds file and line to an error and keeps its hint.
func (p policyParser) at(n *yaml.Node, key string, err error) error {
	located := muster.Errorf(muster.Invalid, "%s:%d: %s: %w", p.file, n.Line, clip(key, 80), err)
	if hint := muster.AsError(muster.Invalid, err).Hint; hint != "" {
		return located.WithHint("%s", hint)
	}
	return located
}

// fields calls f for each key of a mapping, in order.
func (p policyParser) fields(n *yaml.Node, what string, f func(key, value *yaml.Node) error) error {
	if n.Kind != yaml.MappingNode {
		return p.errorf(n, "%s is %s; expected keys and values", what, kindName(n))
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			return p.errorf(key, "key of %s is %s; expected text", what, kindName(key))
		}
		if line := seen[key.Value]; line > 0 {
			return p.errorf(key, "key %q of %s is there twice; first on line %d", clip(key.Value, 80), what, line)
		}
		seen[key.Value] = key.Line
		if err := f(key, value); err != nil {
			return err
		}
	}
	return nil
}

func (p policyParser) policy(root *yaml.Node) (*Policy, error) {
	policy := &Policy{}
	err := p.fields(root, "policy", func(key, value *yaml.Node) error {
		if key.Value != "rules" {
			return p.errorf(key, "unknown key %q; expected rules", clip(key.Value, 80))
		}
		if value.Kind != yaml.SequenceNode {
			return p.errorf(value, "rules is %s; expected a list", kindName(value))
		}
		if len(value.Content) > MaxRules {
			return p.errorf(value, "policy has %d rules; at most %d are allowed", len(value.Content), MaxRules)
		}
		for i, n := range value.Content {
			r, err := p.rule(n, i+1)
			if err != nil {
				return err
			}
			policy.rules = append(policy.rules, r)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return policy, nil
}

func (p policyParser) rule(n *yaml.Node, number int) (rule, error) {
	r := rule{name: fmt.Sprintf("rule %d", number)}
	effect := ""
	err := p.fields(n, r.name, func(key, value *yaml.Node) (err error) {
		switch key.Value {
		case "name":
			if r.name, err = p.text(value, "name"); err == nil {
				if bad := checkName("name", r.name, MaxName); bad != nil {
					err = p.at(value, "name", bad)
				}
			}
		case "effect":
			if effect, err = p.text(value, "effect"); err == nil && effect != "allow" && effect != "deny" {
				err = p.errorf(value, "effect is %q; expected allow or deny", clip(effect, 80))
			}
		case "callers":
			r.callers, err = p.globs(value, "callers")
		case "groups":
			r.groups, err = p.globs(value, "groups")
		case "methods":
			r.methods, err = p.globs(value, "methods")
		case "input":
			r.input, err = p.conditions(value)
		default:
			err = p.errorf(key, "unknown key %q; expected name, effect, callers, groups, methods or input", clip(key.Value, 80))
		}
		return err
	})
	if err == nil && effect == "" {
		err = p.errorf(n, "%s has no effect; expected effect: allow or effect: deny", r.name)
	}
	r.allow = effect == "allow"
	return r, err
}

func (p policyParser) globs(n *yaml.Node, what string) ([]string, error) {
	if n.Kind != yaml.SequenceNode {
		return nil, p.errorf(n, "%s is %s; expected a list such as [\"ops-*\"]", what, kindName(n))
	}
	if len(n.Content) == 0 {
		return nil, p.errorf(n, "%s is an empty list; leave it out for any", what)
	}
	globs := make([]string, 0, len(n.Content))
	for _, item := range n.Content {
		glob, err := p.text(item, what)
		if err != nil {
			return nil, err
		}
		globs = append(globs, glob)
	}
	if err := checkGlobs(what, globs); err != nil {
		return nil, p.at(n, what, err)
	}
	return globs, nil
}

func (p policyParser) conditions(n *yaml.Node) ([]condition, error) {
	var list []condition
	err := p.fields(n, "input", func(key, value *yaml.Node) error {
		pattern, err := p.pattern(value, key.Value)
		if err != nil {
			return err
		}
		c, err := newCondition(key.Value, pattern)
		if err != nil {
			return p.at(value, key.Value, err)
		}
		list = append(list, c)
		return nil
	})
	if err == nil && len(list) == 0 {
		err = p.errorf(n, "input is empty; leave it out for any")
	}
	if err == nil && len(list) > MaxPatterns {
		err = p.errorf(n, "input has %d patterns; at most %d are allowed", len(list), MaxPatterns)
	}
	return list, err
}

// text returns a value that is text. Numbers and the like are not taken for
// text, because YAML has opinions on how they are written.
func (p policyParser) text(n *yaml.Node, what string) (string, error) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		return "", p.errorf(n, "%s is %s; expected text in quotes", what, kindName(n))
	}
	return n.Value, nil
}

// pattern returns the pattern of an input. A number or boolean may stand
// without quotes when it is written as values are compared.
func (p policyParser) pattern(n *yaml.Node, what string) (string, error) {
	if n.Kind == yaml.ScalarNode {
		switch tag := n.ShortTag(); {
		case tag == "!!str",
			tag == "!!bool" && (n.Value == "true" || n.Value == "false"),
			(tag == "!!int" || tag == "!!float") && isJSONNumber(n.Value) && canonicalNumber(n.Value) == n.Value:
			return n.Value, nil
		}
	}
	return "", p.errorf(n, "%s is %s; expected a glob or a /regular expression/ in quotes", clip(what, 80), kindName(n))
}

func isJSONNumber(s string) bool {
	return s != "" && strings.IndexByte("-0123456789", s[0]) >= 0 && checkJSON([]byte(s), nil) == nil
}

// kindName names what a node is, for messages.
func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch tag := n.ShortTag(); tag {
	case "!!str":
		return fmt.Sprintf("text (%q)", clip(n.Value, 40))
	case "!!null":
		return "empty"
	default:
		return fmt.Sprintf("of type %s (%s)", strings.TrimLeft(tag, "!"), clip(n.Value, 40))
	}
}
