package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/constellation"
)

// Variables that are no settings: what a person sets, and what an agent sets for
// the programs that it runs, of which muster may be one.
var otherVariables = []string{
	"MUSTER_CONFIG", "MUSTER_JOIN", constellation.Variable, operatorVariable, app.ParentVariable,
	"MUSTER_AGENT", "MUSTER_COMMAND", "MUSTER_NODE", "MUSTER_CALLER", "MUSTER_ATTEMPT",
}

// maxUnknown is how many unknown variables are named. A place that makes
// variables of its own, such as a cluster for a service called muster, makes many.
const maxUnknown = 3

// warnVariables tells of variables that look like muster's and are not: one that
// was mistyped would have no effect, and nobody would know. It is no error, since
// who sets such variables for another purpose could not use muster at all.
func (p *program) warnVariables(root *cobra.Command) {
	known := knownVariables(root)
	var unknown []string
	for _, v := range p.environ {
		name, _, _ := strings.Cut(v, "=")
		if strings.HasPrefix(name, "MUSTER_") && !slices.Contains(known, name) {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	for i, name := range unknown {
		if i == maxUnknown {
			p.say("%s and %d more unknown variables MUSTER_...", p.errTerm.paint(yellow, "warning:"), len(unknown)-i)
			return
		}
		hint := "see 'muster config --help'"
		if near := nearest(name, known); near != "" {
			hint = "did you mean " + near + "?"
		}
		p.say("%s the variable %s is unknown and has no effect; %s", p.errTerm.paint(yellow, "warning:"), clean(name), hint)
	}
}

func knownVariables(root *cobra.Command) []string {
	known := append([]string{variable(contextKey)}, otherVariables...)
	for _, b := range boundSettings(root) {
		known = append(known, variable(b.key))
	}
	return known
}
