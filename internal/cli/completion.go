package cli

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// completionPatience bounds what a completion may take: somebody has pressed a
// key and waits.
const completionPatience = time.Second

func (p *program) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print a script that completes commands, nodes and methods",
		Long: `Print a script for bash, zsh, fish or powershell. With it the tab key completes
commands and flags, and the names of nodes and methods as the broker knows them.`,
		Example: `  source <(muster completion bash)
  muster completion zsh > "${fpath[1]}/_muster"
  muster completion fish > ~/.config/fish/completions/muster.fish`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.FixedCompletions([]string{"bash", "zsh", "fish", "powershell"}, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				if err := root.GenBashCompletionV2(p.stdout, true); err != nil {
					return err
				}
				_, err := io.WriteString(p.stdout, bashWithout)
				return err
			case "zsh":
				return root.GenZshCompletion(p.stdout)
			case "fish":
				return root.GenFishCompletion(p.stdout, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(p.stdout)
			}
			return usagef(cmd, "shell %q is unknown; expected bash, zsh, fish or powershell", args[0])
		},
	}
}

// bashWithout is for machines without the package bash-completion, from which
// the script takes how the line is split into words.
const bashWithout = `
if ! declare -F _get_comp_words_by_ref >/dev/null; then
    _get_comp_words_by_ref()
    {
        words=("${COMP_WORDS[@]}")
        cword=$COMP_CWORD
        cur=${words[cword]}
        prev=${words[cword-1]}
    }
fi
`

func (p *program) completeGlobals(root *cobra.Command) {
	fixed := func(words ...string) cobra.CompletionFunc {
		return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
	}
	_ = root.RegisterFlagCompletionFunc("output", fixed(formats...)) // fails only for a flag that is not there
	_ = root.RegisterFlagCompletionFunc("log-level", fixed("debug", "info", "warn", "error"))
	_ = root.RegisterFlagCompletionFunc("context", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return p.contextNames(), cobra.ShellCompDirectiveNoFileComp
	})
}

// quickly asks the broker for what a completion needs. The broker may be away;
// then nothing is completed. The answer is not waited for longer than
// completionPatience even if the SDK does not heed its context.
func quickly[T any](p *program, cmd *cobra.Command, ask func(ctx context.Context, c SDK) ([]T, error)) []T {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionPatience)
	defer cancel()
	result := make(chan []T, 1)
	// A completion runs no command, so that nobody has read the settings. When
	// they are wrong, the next command says so.
	_ = p.settings(cmd.Root())
	name, _, err := p.contextName()
	if err != nil {
		return nil
	}
	go func() {
		c, err := p.back.Connect(ctx, name)
		if err != nil {
			result <- nil
			return
		}
		all, _ := ask(ctx, c)
		result <- all
		c.Close() // after the answer: the program may end meanwhile
	}()
	select {
	case all := <-result:
		return all
	case <-ctx.Done():
		return nil
	}
}

func (p *program) known(cmd *cobra.Command) []client.Node {
	return quickly(p, cmd, func(ctx context.Context, c SDK) ([]client.Node, error) { return c.Nodes(ctx) })
}

// Of the commands, the latest are completed: they are what is looked at.
const (
	completeSince = 24 * time.Hour
	completeMost  = 20
)

// completeCommands completes ID@NODE, the latest first.
func (p *program) completeCommands(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all := quickly(p, cmd, func(ctx context.Context, c SDK) ([]client.Status, error) {
		return c.History(ctx, client.HistoryQuery{Since: p.now().Add(-completeSince)})
	})
	slices.Reverse(all)
	var list []string
	for _, s := range all[:min(len(all), completeMost)] {
		list = append(list, cobra.CompletionWithDesc(muster.Key{ID: s.ID, Node: s.Node}.String(), string(s.Method)+" "+string(s.State)))
	}
	return list, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
}

// completeSends completes ID, the latest first.
func (p *program) completeSends(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	list, directive := p.completeCommands(cmd, args, word)
	for i, text := range list {
		key, _, _ := strings.Cut(text, "@")
		list[i] = key
	}
	return slices.Compact(list), directive
}

func (p *program) completeNodes(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	var list []string
	for _, n := range p.known(cmd) {
		list = append(list, cobra.CompletionWithDesc(string(n.Name), onlineCell(n).text))
	}
	return list, cobra.ShellCompDirectiveNoFileComp
}

// completeClasses completes what -C takes.
func (p *program) completeClasses(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	var list []string
	for _, n := range p.known(cmd) {
		for class := range n.Labels {
			list = append(list, class)
		}
		classes, _ := n.Facts["classes"].([]any)
		for _, class := range classes {
			if name, ok := class.(string); ok {
				list = append(list, name)
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list), cobra.ShellCompDirectiveNoFileComp
}

// completeOneNode completes the first argument only.
func (p *program) completeOneNode(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return p.completeNodes(cmd, args, word)
}

func (p *program) completeMethods(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return p.completeKeys(args[0])
	}
	cat, err := catalogueOf(p.known(cmd))
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var list []string
	for _, s := range cat.registry.Specs() {
		list = append(list, cobra.CompletionWithDesc(string(s.Name), clean(s.Description)))
	}
	return list, cobra.ShellCompDirectiveNoFileComp
}

// completeKeys completes the properties of a built-in method.
func (p *program) completeKeys(name string) ([]string, cobra.ShellCompDirective) {
	cat, err := catalogueOf(nil)
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	spec, err := cat.spec(muster.Method(name))
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	var list []string
	for _, k := range properties(spec.Input) {
		list = append(list, k+"=")
	}
	return list, cobra.ShellCompDirectiveNoSpace
}
