// Package filter is the selector language of muster: which nodes does an
// expression such as "role=web and not /^db/" choose?
//
// Parse an expression once, then Match every node against it:
//
//	f, err := filter.Parse("os.id=debian and (role=web or rack>=10)")
//	f.Match(filter.Subject{Name: "web1", Labels: labels, Facts: facts})
//
// Operators, from the weakest to the strongest, with parentheses to group:
//
//	or   ||   ,      either
//	and  &&  (space) both
//	not  !           the opposite
//
// Terms about the identity of a node:
//
//	web1             this node
//	web*.example.net a glob with *, ? and [a-z] or [!a-z]
//	/^web\d+$/       a regular expression (RE2), found anywhere in the name
//	all  *           every node
//
// Terms about labels and facts, with or without spaces around the operator:
//
//	role=web         equal, or for a glob: matching; a list needs one such element
//	role!=web        the opposite, so that it also holds when there is no role
//	role=*           there is a role
//	role=~^w  !~     a regular expression, bare, as /^w/ or quoted (role=/^w/ also works)
//	cores>=4  < <= > numbers by value, other text with runs of digits by value: 1.10 > 1.9
//
// A key is a dotted path. "label.X" and "fact.X" say which of the two is
// meant; any other key is looked for among the labels first. The path of a
// fact walks through maps by key and through lists by index from 0. A fact
// that is null counts as missing.
//
// A comma separates whole terms: "role=web,db" is the role web or the node db.
//
// Names and values in single or double quotes are taken literally: they are
// neither globs nor keywords. Within quotes a backslash escapes the quote and
// itself and is otherwise an ordinary character.
//
// The package has no side effects. Where names, labels and facts come from,
// and how current they are, is up to the caller.
package filter

import (
	"strings"

	"github.com/musterfleet/muster"
)

// Limits of an expression.
const (
	MaxExpression = 16 << 10 // bytes, as given and in canonical form
	MaxNesting    = 100      // parentheses and nots within one another
	MaxRegexp     = 50_000   // about the number of instructions that all regular expressions compile to
)

// A Subject is what a filter is matched against: one node.
type Subject struct {
	Name   muster.NodeName
	Labels map[string]string
	// Facts holds values as decoded from JSON: maps of string to any, lists of
	// any, strings, numbers, booleans and nil. Integer types are numbers too.
	Facts map[string]any
}

// A Filter chooses nodes. It does not change after Parse and may be used by
// several goroutines. The zero Filter matches nothing.
type Filter struct {
	root node
}

// Match reports whether the filter chooses the subject.
func (f *Filter) Match(s Subject) bool {
	return f.root != nil && f.root.match(&s)
}

// Names returns the nodes that the expression lists when it is nothing but
// literal identities joined by "or", each name once and in the order written;
// otherwise it returns false. A sender can address such nodes without having
// seen them.
func (f *Filter) Names() ([]muster.NodeName, bool) {
	terms := []node{f.root}
	if or, ok := f.root.(disjunction); ok {
		terms = or
	}
	names := make([]muster.NodeName, 0, len(terms))
	seen := make(map[muster.NodeName]bool, len(terms))
	for _, t := range terms {
		id, ok := t.(identity)
		if !ok {
			return nil, false
		}
		if name := muster.NodeName(id); !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names, true
}

// String returns the canonical form of the expression. Parsed again, it makes
// an equal filter with the same canonical form.
func (f *Filter) String() string {
	if f.root == nil {
		return ""
	}
	var b strings.Builder
	f.root.write(&b, bindsOr)
	return b.String()
}

// A node is a part of the expression's tree.
type node interface {
	match(s *Subject) bool
	// write appends the canonical form, in parentheses if the node binds less
	// tightly than its surroundings.
	write(b *strings.Builder, outer binding)
}

// A binding says how tightly an operator holds its operands.
type binding int

const (
	bindsOr binding = iota
	bindsAnd
	bindsNot
)

// Conjunctions and disjunctions are flat: a parenthesised "or" within an "or"
// is merged by the parser. So long lists cost no stack, and the canonical
// form is unique.
type (
	disjunction []node
	conjunction []node
	negation    struct{ of node }
	everyone    struct{}
	identity    muster.NodeName
	identities  struct{ pattern } // a glob or regular expression
)

func (d disjunction) match(s *Subject) bool {
	for _, n := range d {
		if n.match(s) {
			return true
		}
	}
	return false
}

func (c conjunction) match(s *Subject) bool {
	for _, n := range c {
		if !n.match(s) {
			return false
		}
	}
	return true
}

func (n negation) match(s *Subject) bool   { return !n.of.match(s) }
func (everyone) match(*Subject) bool       { return true }
func (i identity) match(s *Subject) bool   { return s.Name == muster.NodeName(i) }
func (i identities) match(s *Subject) bool { return i.re.MatchString(string(s.Name)) }

func (d disjunction) write(b *strings.Builder, outer binding) {
	writeJoined(b, d, " or ", bindsOr, outer)
}

func (c conjunction) write(b *strings.Builder, outer binding) {
	writeJoined(b, c, " and ", bindsAnd, outer)
}

func writeJoined(b *strings.Builder, nodes []node, operator string, own, outer binding) {
	if outer > own {
		b.WriteByte('(')
		defer b.WriteByte(')')
	}
	for i, n := range nodes {
		if i > 0 {
			b.WriteString(operator)
		}
		n.write(b, own+1)
	}
}

func (n negation) write(b *strings.Builder, _ binding) {
	b.WriteString("not ")
	n.of.write(b, bindsNot)
}

func (everyone) write(b *strings.Builder, _ binding) { b.WriteString("all") }

func (i identity) write(b *strings.Builder, _ binding) {
	if name := string(i); isKeyword(name) || name == "all" {
		b.WriteString(quote(name))
	} else {
		b.WriteString(name)
	}
}

func (i identities) write(b *strings.Builder, _ binding) {
	if i.glob {
		b.WriteString(i.text)
		return
	}
	// An identity's expression was written between slashes, so its own are
	// escaped already.
	b.WriteString("/" + i.text + "/")
}
