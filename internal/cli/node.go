package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/enrol"
)

func (p *program) nodeCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "node",
		Short: "List, invite, label and remove nodes",
		Long: `A node is a machine with a muster agent. It joins the fleet with an invitation,
says itself what it is (facts), and carries the labels that operators give it.`,
		Example: `  muster node ls -t role=web
  muster node invite web1
  muster node label web1 role=web`,
	})
	cmd.AddCommand(p.nodeList(), p.nodeShow(), p.nodeInvite(), p.nodeLabel(), p.nodeRemove())
	return cmd
}

func onlineCell(n client.Node) cell {
	switch {
	case n.Online:
		return cell{"online", green}
	case n.LastSeen.IsZero():
		return cell{"invited", cyan}
	}
	return cell{"away", yellow}
}

func labelText(labels map[string]string) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		list = append(list, k+"="+labels[k])
	}
	return strings.Join(list, " ")
}

// someNodes are the nodes of a selector, all without one, with what waits for
// them at the broker.
func (p *program) someNodes(ctx context.Context, c SDK, selector string) (nodes []client.Node, err error) {
	if selector == "" {
		nodes, err = c.Nodes(ctx)
	} else {
		nodes, err = c.Select(ctx, selector)
	}
	if err != nil {
		return nil, err
	}
	return nodes, c.CountWaiting(ctx, nodes)
}

// noNodeWords refuses words where nodes are chosen with -t.
func noNodeWords(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	e := usagef(cmd, "unexpected word %q", args[0])
	e.hint = fmt.Sprintf("nodes are chosen with -t: %s -t %s", cmd.CommandPath(), shellWord(strings.Join(args, ",")))
	return e
}

// shellWord is a text as a shell takes it for one word.
func shellWord(text string) string {
	if strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.,:=/@%+") == "" {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

func (p *program) nodeList() *cobra.Command {
	var chosen selectorFlags
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List nodes",
		Long: `List nodes, whether they answer now, and how many commands are queued for each:
those that the node has accepted and not finished, as it last said ("queue" in
JSON), and those that the broker keeps until the node takes them ("waiting"). A
node that is away gets its commands when it comes back.`,
		Example: `  muster node ls
  muster node ls -t 'os.id=debian and role=web'
  muster node ls -o jsonl`,
		Args: noNodeWords,
		RunE: func(cmd *cobra.Command, _ []string) error {
			selector, err := chosen.expression()
			if err != nil {
				return err
			}
			return p.ask(cmd.Context(), func(ctx context.Context, c SDK) error {
				nodes, err := p.someNodes(ctx, c, selector)
				if err != nil {
					return err
				}
				if len(nodes) == 0 && p.format == "table" {
					p.say("there are no nodes yet; invite one with: muster node invite NAME")
					return nil
				}
				if err := list(p, nodes, func() *table {
					t := newTable("NODE", "STATE", "LAST SEEN", "VERSION", "QUEUE", "LABELS", "PROBLEMS")
					for _, n := range nodes {
						t.row(n.Name, onlineCell(n), ago(p.now(), n.LastSeen), n.Version, n.Queue+n.Waiting, labelText(n.Labels), strings.Join(n.Problems, "; "))
					}
					return t
				}); err != nil {
					return err
				}
				if p.format == "table" {
					p.say("%d of %s online", len(online(nodes)), plural(len(nodes), "node"))
				}
				return nil
			})
		},
	}
	chosen.add(p, cmd, "`selector` of the nodes (default: every node)")
	return cmd
}

func (p *program) pingCommand() *cobra.Command {
	var chosen selectorFlags
	cmd := &cobra.Command{
		Use:   "ping",
		Short: "See which nodes answer now, and how fast",
		Long: `Ask every node for a sign of life, over the broker. The exit code is 3 when
some chosen node does not answer.`,
		Example: `  muster ping
  muster ping -t role=web`,
		Args: noNodeWords,
		RunE: func(cmd *cobra.Command, _ []string) error {
			selector, err := chosen.expression()
			if err != nil {
				return err
			}
			return p.ask(cmd.Context(), func(ctx context.Context, c SDK) error {
				nodes, err := p.someNodes(ctx, c, selector)
				if err != nil {
					return err
				}
				if len(nodes) == 0 {
					return muster.Errorf(muster.NothingFound, "there are no nodes yet").WithHint("invite one with: muster node invite NAME")
				}
				err = list(p, nodes, func() *table {
					t := newTable("NODE", "STATE", "RTT", "CLOCK", "LAST SEEN", "RUNNING", "QUEUE")
					for _, n := range nodes {
						rtt, clock := "", ""
						if n.Online {
							rtt, clock = short(n.RTT), offset(n.ClockOff)
						}
						t.row(n.Name, onlineCell(n), rtt, clock, ago(p.now(), n.LastSeen), n.Running, n.Queue+n.Waiting)
					}
					return t
				})
				if err != nil {
					return err
				}
				if here := len(online(nodes)); here < len(nodes) {
					p.say("%d of %d nodes answered", here, len(nodes))
					return exitError(ExitFailed)
				}
				return nil
			})
		},
	}
	chosen.add(p, cmd, "`selector` of the nodes (default: every node)")
	return cmd
}

// offset is a difference of clocks. What a ping cannot tell is none.
func offset(d time.Duration) string {
	switch {
	case d > -100*time.Millisecond && d < 100*time.Millisecond:
		return "ok"
	case d < 0:
		return "-" + short(-d)
	}
	return "+" + short(d)
}

func oneNode(ctx context.Context, c SDK, name string) (client.Node, error) {
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return client.Node{}, err
	}
	var known []string
	for _, n := range nodes {
		if string(n.Name) == name {
			return n, nil
		}
		known = append(known, string(n.Name))
	}
	e := muster.Errorf(muster.NothingFound, "there is no node %q", clean(name))
	if near := nearest(name, known); near != "" {
		return client.Node{}, e.WithHint("did you mean %s?", near)
	}
	return client.Node{}, e.WithHint("'muster node ls' lists all nodes")
}

func (p *program) nodeShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Show all that is known of a node",
		Long:  `Show all that is known of a node: its labels, facts, methods and problems.`,
		Example: `  muster node show web1
  muster node show web1 -o json | jq .facts`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeOneNode,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.ask(cmd.Context(), func(ctx context.Context, c SDK) error {
				n, err := oneNode(ctx, c, args[0])
				if err != nil {
					return err
				}
				asked := []client.Node{n}
				if err := c.CountWaiting(ctx, asked); err != nil {
					return err
				}
				n = asked[0]
				return show(p, n, func(w io.Writer) error { return p.nodeText(w, n) })
			})
		},
	}
}

func (p *program) nodeText(w io.Writer, n client.Node) error {
	field := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%-10s %s\n", name, clean(value))
		}
	}
	state := onlineCell(n)
	field("name", string(n.Name))
	fmt.Fprintf(w, "%-10s %s\n", "state", p.outTerm.paint(state.color, state.text))
	if n.Online {
		field("rtt", short(n.RTT))
		field("clock", offset(n.ClockOff))
	}
	field("last seen", ago(p.now(), n.LastSeen))
	field("invited", ago(p.now(), n.Invited))
	field("version", n.Version)
	field("started", ago(p.now(), n.Started))
	field("queue", fmt.Sprintf("%d, of which %d run", n.Queue, n.Running))
	field("waiting", fmt.Sprintf("%d at the broker", n.Waiting))
	field("labels", labelText(n.Labels))
	for _, problem := range n.Problems {
		fmt.Fprintf(w, "%-10s %s\n", "problem", p.outTerm.paint(yellow, clean(problem)))
	}
	if cat, err := catalogueOf([]client.Node{n}); err == nil && len(cat.nodes) > 0 {
		var own []string
		for name := range cat.nodes {
			own = append(own, string(name))
		}
		slices.Sort(own)
		field("methods", strings.Join(own, " ")+" and the built-in ones")
	}
	if len(n.Facts) > 0 {
		fmt.Fprintln(w, "facts")
		facts(w, "", n.Facts)
	}
	return nil
}

// facts prints one path on each line, in the form that selectors take.
func facts(w io.Writer, prefix string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			facts(w, strings.TrimPrefix(prefix+"."+k, "."), v[k])
		}
	case []any:
		var words []string
		for i, e := range v {
			switch e.(type) {
			case map[string]any, []any:
				facts(w, fmt.Sprintf("%s.%d", prefix, i), e)
			default:
				words = append(words, fmt.Sprint(e))
			}
		}
		if len(words) > 0 {
			fmt.Fprintf(w, "  %s = %s\n", clean(prefix), clean(strings.Join(words, ", ")))
		}
	case float64:
		fmt.Fprintf(w, "  %s = %s\n", clean(prefix), strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.6f", v), "0"), "."))
	default:
		fmt.Fprintf(w, "  %s = %s\n", clean(prefix), clean(fmt.Sprint(v)))
	}
}

func (p *program) nodeRemove() *cobra.Command {
	var yes, dry bool
	cmd := &cobra.Command{
		Use:     "rm NAME...",
		Aliases: []string{"remove"},
		Short:   "Remove nodes from the fleet",
		Long: `Remove nodes from the fleet: they may not connect any more, and commands that
wait for them are given up. What is known of past commands stays. To let a
machine in again, invite it again and start its agent with --join.`,
		Example: `  muster node rm old1
  muster node rm old1 old2 --dry-run`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: p.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.with(cmd.Context(), func(ctx context.Context, c SDK) error {
				for _, name := range args { // all are checked before the first is removed
					quick, cancel := context.WithTimeout(ctx, patience)
					_, err := oneNode(quick, c, name)
					cancel()
					if err != nil {
						return err
					}
				}
				if dry {
					return p.deed(map[string]any{"would_remove": args}, "dry run: %s would be removed: %s", plural(len(args), "node"), strings.Join(args, " "))
				}
				if !yes && p.inTerm {
					if err := p.question(ctx, "remove "+strings.Join(args, " ")+" from the fleet?"); err != nil {
						return err
					}
				}
				done := deeds{p: p}
				for _, name := range args {
					quick, cancel := context.WithTimeout(ctx, patience)
					err := c.RemoveNode(quick, muster.NodeName(name))
					cancel()
					if err != nil {
						return errors.Join(fmt.Errorf("remove %s: %w", name, err), done.tell())
					}
					done.add(map[string]any{"node": name, "removed": true}, "removed %s", name)
				}
				return done.tell()
			})
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "remove nothing")
	return cmd
}

func (p *program) nodeLabel() *cobra.Command {
	return &cobra.Command{
		Use:   "label NAME KEY=VALUE... KEY-...",
		Short: "Set and remove labels of a node",
		Long: `Set labels of a node with KEY=VALUE, and remove them with KEY- (a minus at the
end). Selectors choose by labels: -t role=web.`,
		Example: `  muster node label web1 role=web rack=12
  muster node label web1 rack-`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usagef(cmd, "expected the name of a node, and KEY=VALUE or KEY-")
			}
			return nil
		},
		ValidArgsFunction: p.completeOneNode,
		RunE: func(cmd *cobra.Command, args []string) error {
			set, remove, err := labels(args[1:])
			if err != nil {
				return err
			}
			return p.ask(cmd.Context(), func(ctx context.Context, c SDK) error {
				if _, err := oneNode(ctx, c, args[0]); err != nil {
					return err
				}
				if err := c.SetLabels(ctx, muster.NodeName(args[0]), set, remove); err != nil {
					return err
				}
				done := map[string]any{"node": args[0], "set": set, "removed": append([]string{}, remove...)}
				return p.deed(done, "%s: %s", args[0], labelsDone(set, remove))
			})
		},
	}
}

// labelsDone says what became of labels.
func labelsDone(set map[string]string, remove []string) string {
	var said []string
	if len(set) > 0 {
		said = append(said, "set "+labelText(set))
	}
	if len(remove) > 0 {
		said = append(said, "removed "+strings.Join(remove, " "))
	}
	return strings.Join(said, ", ")
}

// labels reads KEY=VALUE and KEY-. White space would make two words of one label
// wherever labels are listed and chosen by; what has some from before can be
// removed.
func labels(words []string) (set map[string]string, remove []string, err error) {
	set = map[string]string{}
	for _, w := range words {
		key, value, isSet := strings.Cut(w, "=")
		bare, isRemove := strings.CutSuffix(key, "-")
		switch {
		case isSet && strings.ContainsFunc(w, unicode.IsSpace):
			return nil, nil, usagef(nil, "label %q has white space, which labels cannot have", w)
		case isSet && key != "":
			set[key] = value
		case !isSet && isRemove && bare != "":
			remove = append(remove, bare)
		default:
			return nil, nil, usagef(nil, "%q is neither KEY=VALUE nor KEY-", w)
		}
	}
	for _, key := range remove {
		if _, both := set[key]; both {
			return nil, nil, usagef(nil, "label %q is both set and removed", key)
		}
	}
	return set, remove, nil
}

// allowAllPolicy is what --allow-all writes to a new node.
const allowAllPolicy = `rules:
  - name: allow all
    effect: allow
    methods: ["*"]
`

func (p *program) nodeInvite() *cobra.Command {
	var o app.InviteOptions
	var f inviteFlags
	expires := durationFlag(enrol.DefaultTTL)
	cmd := &cobra.Command{
		Use:   "invite NAME",
		Short: "Invite a machine to the fleet",
		Long: `Print a token with which one machine can join the fleet under this name, once,
until it expires. Run it where the fleet was made, with 'muster init'.

The policy decides on the node who may run what there. Without --allow-all or
--policy the node gets no policy with the token, and denies everything until it
is given one.

The token is a secret until it is used. Hand it over on stdin or in a file: what
stands in arguments is seen by every user of the machine. It is printed in
several lines, which all belong to it; -o json has it in one.`,
		Example: `  muster node invite web1 --allow-all
  muster node invite web1 --expires 24h --policy web-policy.yaml
  muster node invite web1 --allow-all | ssh web1 muster agent --join -`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Node, o.TTL, o.Log = muster.NodeName(args[0]), time.Duration(expires), p.logger()
			if err := o.Node.Validate(); err != nil {
				return usage(err)
			}
			if err := f.complete(cmd, &o); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), patience)
			defer cancel()
			token, err := p.back.Invite(ctx, o)
			if err != nil {
				return err
			}
			err = show(p, map[string]any{"node": o.Node, "token": token}, func(w io.Writer) error {
				return inLines(w, token)
			})
			p.say("on %s within %s: muster agent --join -   (and paste the token)", o.Node, short(o.TTL))
			if o.Policy == "" {
				p.say("no policy goes with this invitation: %s will deny every command until it has one (--policy FILE or --allow-all gives it one)", o.Node)
			}
			return err
		},
	}
	cmd.Flags().Var(&expires, "expires", "how long the token can be used")
	cmd.Flags().BoolVar(&f.allowAll, "allow-all", false, "the node allows whatever the fleet's callers have the right to")
	cmd.Flags().StringVar(&f.policy, "policy", "", "file with the policy of the node")
	cmd.Flags().StringArrayVar(&f.labels, "label", nil, "label for the node as `KEY=VALUE`; can be repeated")
	cmd.Flags().StringVar(&o.Dir, "state", p.stateDir("fleet"), "folder of the fleet, as given to 'muster init'")
	setting(cmd.Flags(), "state", "broker.state")
	return cmd
}

// tokenWidth is the length of a token's lines: copied from a window of 80 columns
// they stay whole, and a terminal takes no more than 4,095 bytes as one line (some
// 1,023).
const tokenWidth = 76

// inLines writes a token in lines that can be pasted.
func inLines(w io.Writer, token string) error {
	for line := range slices.Chunk([]byte(token), tokenWidth) {
		if _, err := fmt.Fprintf(w, "%s\n", line); err != nil {
			return err
		}
	}
	return nil
}

// inviteFlags say what a node is invited with.
type inviteFlags struct {
	allowAll bool
	policy   string // a file
	labels   []string
}

// complete puts labels and the policy into an invitation.
func (f *inviteFlags) complete(cmd *cobra.Command, o *app.InviteOptions) error {
	set, remove, err := labels(f.labels)
	if err != nil || len(remove) > 0 {
		return usagef(cmd, "--label %s: expected KEY=VALUE", strings.Join(f.labels, " --label "))
	}
	o.Labels = set
	switch {
	case f.allowAll && f.policy != "":
		return usagef(cmd, "--allow-all and --policy exclude each other")
	case f.allowAll:
		o.Policy = allowAllPolicy
	case f.policy != "":
		b, err := os.ReadFile(f.policy)
		if err != nil {
			return fmt.Errorf("read the policy: %w", err)
		}
		if _, err := aaa.ParsePolicy(f.policy, b); err != nil {
			return err // it names the file, which nobody can who has the text alone
		}
		o.Policy = string(b)
	}
	return nil
}
