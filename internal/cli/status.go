package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/config"
)

// statusSpan is how far 'muster status' looks back.
const statusSpan = 24 * time.Hour

// An overview is a fleet on one screen.
type overview struct {
	Context  string               `json:"context"`
	URLs     []string             `json:"urls,omitempty"`
	Broker   string               `json:"broker"` // "ok", or why it cannot be reached
	Hint     string               `json:"hint,omitempty"`
	Nodes    nodeCounts           `json:"nodes"`
	Since    time.Time            `json:"since"`    // of the commands
	Commands map[muster.State]int `json:"commands"` // by state
	Outbox   int                  `json:"outbox"`
	Dead     uint64               `json:"dead_letters"`
}

type nodeCounts struct {
	Total    int                 `json:"total"`
	Online   int                 `json:"online"`
	Away     int                 `json:"away"`
	Invited  int                 `json:"invited"` // not joined yet
	Problems map[string][]string `json:"problems,omitempty"`
}

func (p *program) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "See on one screen how the fleet is",
		Long: `See on one screen whether the broker can be reached, how many nodes are online
and which have problems, what became of the commands of the last 24 hours, and
what waits in the outbox and among the dead letters.

The exit code is 1 when the broker cannot be reached; 3 when something wants to
be looked at: a node with a problem, a command that failed, was refused or is
unknown, or a dead letter; and 0 otherwise. Nodes that are away and commands
that wait for them are no fault.`,
		Example: `  muster status
  muster status -o json | jq .commands.failed`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := overview{Since: p.now().Add(-statusSpan), Commands: map[muster.State]int{}}
			name, _, err := p.contextName()
			if err != nil {
				return err
			}
			o.Context = name
			if c, err := config.OpenContext(name); err == nil {
				o.URLs = c.URLs // when it cannot be read, connecting says so
			}
			err = p.ask(cmd.Context(), func(ctx context.Context, c SDK) error { return o.look(ctx, c) })
			if ctxErr := cmd.Context().Err(); ctxErr != nil {
				return ctxErr
			}
			code := o.code()
			o.Broker = "ok"
			if err != nil {
				if kind := muster.KindOf(err); kind == muster.NotFound || kind == muster.Invalid {
					return err // there is no such context: nothing to show
				}
				code, o.Broker, o.Hint = ExitError, message(err), hintOf(err)
			}
			if err := show(p, o, func(w io.Writer) error { p.overviewText(w, o); return nil }); err != nil {
				return err
			}
			return exit(code)
		},
	}
}

// look fills the overview. The outbox comes first: it is known without a broker.
func (o *overview) look(ctx context.Context, c SDK) error {
	waiting, err := c.Outbox()
	if err != nil {
		return err
	}
	o.Outbox = len(waiting) // those that cannot be read, too: they want to be seen
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return err
	}
	o.count(nodes)
	commands, err := c.History(ctx, client.HistoryQuery{Since: o.Since})
	if err != nil {
		return err
	}
	for _, s := range commands {
		o.Commands[s.State]++
	}
	o.Dead, err = c.DeadLetterCount(ctx)
	return err
}

func (o *overview) count(nodes []client.Node) {
	o.Nodes = nodeCounts{Total: len(nodes), Problems: map[string][]string{}}
	for _, n := range nodes {
		switch {
		case n.Online:
			o.Nodes.Online++
		case n.LastSeen.IsZero():
			o.Nodes.Invited++
		default:
			o.Nodes.Away++
		}
		if len(n.Problems) > 0 {
			o.Nodes.Problems[string(n.Name)] = n.Problems
		}
	}
}

// wrong are the states of commands that want to be looked at.
var wrong = []muster.State{muster.Failure, muster.Refused, muster.Unknown}

func (o *overview) code() int {
	bad := len(o.Nodes.Problems) > 0 || o.Dead > 0
	for _, s := range wrong {
		bad = bad || o.Commands[s] > 0
	}
	if bad {
		return ExitFailed
	}
	return ExitOK
}

func (p *program) overviewText(w io.Writer, o overview) {
	line := func(name, text, color string) {
		const indent = 14
		text = wrap(clean(text), p.outTerm.width-indent, 0)
		for i, part := range strings.Split(text, "\n") {
			if i > 0 {
				name = ""
			}
			fmt.Fprintf(w, "%-*s%s\n", indent, name, p.outTerm.paint(color, part))
		}
	}
	line("context", o.Context, "")
	if o.Broker != "ok" {
		line("broker", o.Broker, red)
		if o.Hint != "" {
			line("", o.Hint, "")
		}
		outboxLine(line, o.Outbox)
		return
	}
	line("broker", "answers at "+strings.Join(o.URLs, " "), green)
	text := fmt.Sprintf("%d of %d online", o.Nodes.Online, o.Nodes.Total)
	if o.Nodes.Away > 0 {
		text += fmt.Sprintf(", %d away", o.Nodes.Away)
	}
	if o.Nodes.Invited > 0 {
		text += fmt.Sprintf(", %d invited", o.Nodes.Invited)
	}
	line("nodes", text, "")
	p.problemLines(w, o.Nodes.Problems)
	line("commands", commandCounts(o.Commands), "")
	var bad []string
	for _, s := range wrong {
		if o.Commands[s] > 0 {
			bad = append(bad, string(s))
		}
	}
	if len(bad) > 0 {
		line("", "see: muster command ls --state "+strings.Join(bad, ","), yellow)
	}
	outboxLine(line, o.Outbox)
	if o.Dead > 0 {
		line("dead letters", fmt.Sprintf("%d; see: muster deadletter ls", o.Dead), yellow)
	} else {
		line("dead letters", "none", "")
	}
}

func outboxLine(line func(name, text, color string), n int) {
	if n == 0 {
		line("outbox", "empty", "")
		return
	}
	line("outbox", verb(n, "send waits", "sends wait")+"; see: muster outbox ls", yellow)
}

// maxProblems is how many nodes are named, so that the screen stays one.
const maxProblems = 10

func (p *program) problemLines(w io.Writer, problems map[string][]string) {
	for i, name := range slices.Sorted(maps.Keys(problems)) {
		if i == maxProblems {
			fmt.Fprintf(w, "%-13s %s\n", "", fmt.Sprintf("and %d more; see: muster node ls", len(problems)-maxProblems))
			return
		}
		fmt.Fprintf(w, "%-13s %s\n", "", p.outTerm.paint(yellow, clean(name+": "+strings.Join(problems[name], "; "))))
	}
}

// commandCounts says in words what became of commands.
func commandCounts(count map[muster.State]int) string {
	var words []string
	for _, s := range muster.States() {
		if n := count[s]; n > 0 {
			what := string(s)
			if s == muster.Queued {
				what = "waiting"
			}
			words = append(words, fmt.Sprintf("%d %s", n, what))
		}
	}
	if len(words) == 0 {
		return "none in the last " + short(statusSpan)
	}
	return strings.Join(words, ", ") + " in the last " + short(statusSpan)
}
