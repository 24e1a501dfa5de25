package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster/internal/filter"
)

// selectorFlags choose nodes: an expression, and the short forms that users of
// Choria know. All that are given must hold, but of names one.
type selectorFlags struct {
	target     string
	facts      []string
	classes    []string
	identities []string
	with       []string // classes and facts
}

// add adds the flags to a command; what says what -t is for.
func (f *selectorFlags) add(p *program, cmd *cobra.Command, what string) {
	fs := cmd.Flags()
	fs.StringVarP(&f.target, "target", "t", "", what)
	fs.StringArrayVarP(&f.facts, "with-fact", "F", nil, "only nodes with this `fact`: KEY=VALUE, also != =~ !~ < <= > >=; VALUE may be /REGEX/")
	fs.StringArrayVarP(&f.classes, "with-class", "C", nil, "only nodes of this `class`: a label of that name, or in the list of the fact \"classes\"")
	fs.StringArrayVarP(&f.identities, "with-identity", "I", nil, "only the node of this `name`, glob or /REGEX/; repeated: any of them")
	fs.StringArrayVarP(&f.with, "with", "W", nil, "`words` that are classes and facts, as in -W 'web os.id=debian'")
	_ = cmd.RegisterFlagCompletionFunc("target", p.completeNodes) // fails only for a flag that is not there
	_ = cmd.RegisterFlagCompletionFunc("with-identity", p.completeNodes)
	_ = cmd.RegisterFlagCompletionFunc("with-class", p.completeClasses)
}

// expression returns the selector, "" if there is none, and checks it: a slip
// is told before the broker is asked.
func (f *selectorFlags) expression() (string, error) {
	var parts []string
	if f.target != "" {
		if _, err := filter.Parse(f.target); err != nil {
			return "", err // alone, so that the column is that of what was written
		}
		parts = append(parts, f.target)
	}
	classes, facts := f.classes, f.facts
	for _, w := range f.with {
		for _, word := range strings.Fields(w) {
			if strings.ContainsAny(word, "=<>") && !slashed(word) {
				facts = append(facts, word)
			} else {
				classes = append(classes, word)
			}
		}
	}
	for _, c := range classes {
		if c == "" {
			return "", usagef(nil, "a class for -C or -W is empty")
		}
		parts = append(parts, classTerm(c))
	}
	for _, fact := range facts {
		term, err := factTerm(fact)
		if err != nil {
			return "", err
		}
		parts = append(parts, term)
	}
	var names []string
	for _, name := range f.identities {
		if name == "" {
			return "", usagef(nil, "a name for -I is empty")
		}
		names = append(names, identityTerm(name))
	}
	if len(names) > 0 {
		parts = append(parts, strings.Join(names, " or "))
	}
	if len(parts) == 0 {
		return "", nil
	}
	expr := parts[0]
	if len(parts) > 1 {
		expr = "(" + strings.Join(parts, ") and (") + ")"
	}
	_, err := filter.Parse(expr)
	return expr, err
}

// classTerm is a class in the selector language. Choria has the classes of a
// configuration management; here operators say with labels what a node is,
// and a facts file can list the classes.
func classTerm(class string) string {
	if slashed(class) {
		return "fact.classes=~" + quoted(class[1:len(class)-1])
	}
	return quoted("label."+class) + "=* or fact.classes=" + quoted(class)
}

// factTerm is a fact in the selector language.
func factTerm(fact string) (string, error) {
	at := strings.IndexAny(fact, "=!<>")
	if at <= 0 || strings.TrimSpace(fact[:at]) == "" {
		return "", usagef(nil, "fact %q is not KEY=VALUE", fact)
	}
	key, rest := strings.TrimSpace(fact[:at]), fact[at:]
	operator := ""
	for _, o := range []string{"==", "=~", "!=", "!~", "<=", ">=", "=", "<", ">"} {
		if strings.HasPrefix(rest, o) {
			operator = o
			break
		}
	}
	value := strings.TrimSpace(strings.TrimPrefix(rest, operator))
	if operator == "" || value == "" {
		return "", usagef(nil, "fact %q is not KEY=VALUE", fact)
	}
	if operator == "==" {
		operator = "="
	}
	pattern := strings.HasSuffix(operator, "~")
	if slashed(value) && (pattern || operator == "=" || operator == "!=") {
		value, pattern = value[1:len(value)-1], true
	}
	switch {
	case pattern && strings.HasPrefix(operator, "!"):
		return quoted("fact."+key) + "!~" + quoted(value), nil
	case pattern:
		return quoted("fact."+key) + "=~" + quoted(value), nil
	}
	return quoted("fact."+key) + operator + bare(value), nil
}

// identityTerm is a name, a glob or a regular expression.
func identityTerm(name string) string {
	if !slashed(name) {
		if name == "all" {
			return quoted(name)
		}
		return bare(name)
	}
	// A slash within would end the expression early.
	var b strings.Builder
	inner := name[1 : len(name)-1]
	for i := 0; i < len(inner); i++ {
		switch {
		case inner[i] == '\\' && i+1 < len(inner):
			b.WriteByte('\\')
			i++
		case inner[i] == '/':
			b.WriteByte('\\')
		}
		b.WriteByte(inner[i])
	}
	return "/" + b.String() + "/"
}

// slashed reports the form of a regular expression.
func slashed(s string) bool { return len(s) > 2 && s[0] == '/' && s[len(s)-1] == '/' }

// bare leaves a text alone in which the selector language sees one word, which
// may be a glob, and quotes others.
func bare(s string) string {
	if strings.ContainsAny(s, " \t\r\n(),!=<>&|'\"~/") || strings.EqualFold(s, "and") || strings.EqualFold(s, "or") || strings.EqualFold(s, "not") {
		return quoted(s)
	}
	return s
}

func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
