package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/musterfleet/muster"
)

func (p *program) runCommand() *cobra.Command {
	var f sendFlags
	var r runFlags
	cmd := &cobra.Command{
		Use:   "run -t SELECTOR -- CMD [ARGS...]",
		Short: "Run a program on nodes and see its output",
		Long: `Run a program on nodes, wait, and see what it writes while it writes it, each
line behind the name of its node: stdout on stdout, stderr on stderr. A summary
on stderr ends it. It is 'muster send shell.run' with waiting.

The program is started without a shell; --shell SCRIPT runs a script with
/bin/sh. What stands behind -- is not read as flags of muster.

Nodes that are away are not waited for: they run the command when they come
back before the deadline, and the exit code is 5 until then. --wait-all waits
for them, --wait-for bounds the wait. Ctrl-C ends the wait, not the commands.
When the broker, or a node that is waited for, goes away meanwhile, a line on
stderr says so, and another one that it is back; nothing is missed by that.

With -o json, jsonl or yaml the outcome of each node with its whole output is
printed instead.`,
		Example: `  muster run -t all -- uname -a
  muster run -t role=web --shell 'df -h / | tail -n 1'
  muster run -t web1,web2 --timeout 5m --user app --dir /srv/app -- ./migrate up
  muster run -t role=web --batch 1 --pause 10s -- systemctl restart nginx
  muster run -t all -o json -- cat /etc/os-release`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			input, err := r.input(cmd, args)
			if err != nil {
				return err
			}
			return p.with(cmd.Context(), func(ctx context.Context, c SDK) error {
				s := &sending{p: p, c: c, f: &f, wait: true, live: true}
				return s.send(ctx, "shell.run", func(cat *catalogue) (json.RawMessage, error) {
					return input, usage(cat.registry.ValidateInput(muster.Method("shell.run"), input))
				})
			})
		},
	}
	f.add(p, cmd)
	r.add(cmd)
	cmd.SetFlagErrorFunc(programFlag)
	return cmd
}

// programFlag is flagError, but for a flag behind a word: that is most likely
// one of the program.
func programFlag(cmd *cobra.Command, err error) error {
	unknown, ok := err.(*pflag.NotExistError)
	words := cmd.Flags().Args() // as far as they were read
	if !ok || len(words) == 0 {
		return flagError(cmd, err)
	}
	flag := "--" + unknown.GetSpecifiedName()
	if short := unknown.GetSpecifiedShortnames(); short != "" {
		flag = "-" + short
	}
	selector := cmp.Or(cmd.Flag("target").Value.String(), "SELECTOR")
	e := usagef(cmd, "%w", err)
	e.hint = fmt.Sprintf("flags of the program go behind --: %s -t %s -- %s %s", cmd.CommandPath(), selector, strings.Join(words, " "), flag)
	return e
}

// runFlags say what to run, and as whom.
type runFlags struct {
	script, dir, user string
	env               []string
}

func (r *runFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&r.script, "shell", "", "script for /bin/sh, in place of a program")
	fs.StringVar(&r.dir, "dir", "", "folder to run in")
	fs.StringVar(&r.user, "user", "", "user to run as")
	fs.StringArrayVar(&r.env, "env", nil, "variable as `NAME=VALUE`; can be repeated; the broker stores it, so it is no place for secrets")
}

// input is that of shell.run.
func (r *runFlags) input(cmd *cobra.Command, args []string) (json.RawMessage, error) {
	input := map[string]any{}
	switch {
	case r.script != "" && len(args) > 0:
		return nil, usagef(cmd, "--shell SCRIPT and a program exclude each other")
	case r.script != "":
		input["shell"] = r.script
	case len(args) > 0:
		input["argv"] = args
	default:
		return nil, usagef(cmd, "which program? expected -- CMD [ARGS...] or --shell SCRIPT")
	}
	if r.dir != "" {
		input["dir"] = r.dir
	}
	if r.user != "" {
		input["user"] = r.user
	}
	vars, err := variables(cmd, r.env)
	if err != nil {
		return nil, err
	}
	if len(vars) > 0 {
		input["env"] = vars
	}
	b, err := json.Marshal(input)
	if err != nil {
		return nil, fmt.Errorf("encode input: %w", err)
	}
	return b, nil
}

func variables(cmd *cobra.Command, words []string) (map[string]string, error) {
	vars := map[string]string{}
	for _, w := range words {
		name, value, ok := strings.Cut(w, "=")
		if !ok || name == "" {
			return nil, usagef(cmd, "%q is not a variable; expected NAME=VALUE", w)
		}
		vars[name] = value
	}
	return vars, nil
}
