package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/method"
)

// A program is one run of the command line: where it reads and writes, and the
// global flags.
type program struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            func(string) string
	environ        []string // all variables
	back           Backend
	now            func() time.Time
	folders        []string // of settings files

	format   string
	context  string
	logLevel string
	noColor  bool
	outTerm  terminal // stdout
	errTerm  terminal // stderr
	inTerm   bool     // stdin is a terminal

	origins     map[string]string // of settings, by key
	fileContext config.Setting    // the context that a settings file names
}

// Main runs one command line and returns its exit code. The end of ctx
// interrupts it.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, env func(string) string) int {
	ctx, gone := context.WithCancel(ctx)
	defer gone()
	return run(ctx, &program{
		stdin: stdin, stdout: &reader{w: stdout, gone: gone}, stderr: stderr, env: env, environ: os.Environ(),
		back: application{}, now: time.Now, folders: config.SettingsFolders(),
		outTerm: terminalOf(stdout, env), errTerm: terminalOf(stderr, env), inTerm: isTerminal(stdin),
	}, args)
}

// A reader is who reads the standard output. When it goes away, as head does,
// the command is interrupted: an Order is released, and nothing follows for ever.
type reader struct {
	w    io.Writer
	gone func()
}

func (r *reader) Write(b []byte) (int, error) {
	n, err := r.w.Write(b)
	if errors.Is(err, syscall.EPIPE) {
		r.gone()
	}
	return n, err
}

func run(ctx context.Context, p *program, args []string) int {
	root := p.root()
	// Not nil even when there are none: nil makes cobra read os.Args.
	root.SetArgs(append([]string{}, args...))
	root.SetIn(p.stdin)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	if ctx.Err() != nil && !isExit(err) {
		return ExitInterrupted
	}
	p.printError(err)
	return exitCode(err)
}

const rootLong = `muster runs commands on machines that you cannot always reach.

A command that you send is stored by the broker until its node has taken it,
runs at most once, and always gets an outcome: done, failed, expired,
cancelled, refused or unknown. Never silence.

Nodes are chosen with a selector, -t EXPRESSION: names (web1), globs (web*),
regular expressions (/^web/), labels and facts (role=web, os.id=debian,
cores>=4), joined by and, or, not and parentheses. "all" is every node. -F
(fact), -C (class), -I (identity) and -W (classes and facts) are short forms as
in Choria; they can be repeated, and all must hold together with -t.

Flags get other defaults from settings files and MUSTER_ variables: see
'muster config --help'.

Exit codes:
  0    ok
  1    error
  2    the command line is wrong
  3    some nodes failed
  4    nothing matched: no such node, no such command
  5    pending, expired or timed out
  6    denied
  130  interrupted

When the commands of one send end differently, one that failed or was denied
makes it 3, whatever the others did; without one, any that is pending or expired
makes it 5. It is 6 only when all were denied.`

const rootExample = `  # try it on this machine: a broker and three nodes
  muster dev

  # in another terminal
  muster node ls
  muster run -t all -- uname -a
  muster send echo hello -t all --wait
  muster command ls`

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "muster",
		Short:         "Run commands on machines that you cannot always reach",
		Long:          rootLong,
		Example:       rootExample,
		Version:       Version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return p.prepare(cmd)
		},
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	group(root)
	// Cobra's own template, but for descriptions of flags that fit the terminal.
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages ", fmt.Sprintf(".FlagUsagesWrapped %d ", p.outTerm.width)))
	root.SetVersionTemplate("muster {{.Version}}\n")
	flags := root.PersistentFlags()
	flags.StringVarP(&p.format, "output", "o", "table", "form of the output: table, json, jsonl or yaml")
	flags.StringVar(&p.context, "context", "", "context to use (default: the one that 'muster context show' shows)")
	flags.StringVar(&p.logLevel, "log-level", "info", "least level of the log on stderr: debug, info, warn or error")
	flags.BoolVar(&p.noColor, "no-color", false, "no colours, as with NO_COLOR in the environment")
	setting(flags, "output", "output")
	setting(flags, "log-level", "log_level")
	setting(flags, "no-color", "no_color")
	root.SetFlagErrorFunc(flagError)

	root.AddGroup(
		&cobra.Group{ID: "daily", Title: "Daily use:"},
		&cobra.Group{ID: "look", Title: "Look and mend:"},
		&cobra.Group{ID: "daemon", Title: "Set up and run:"},
	)
	add := func(id string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	add("daily", p.runCommand(), p.sendCommand(), p.statusCommand(), p.pingCommand(), p.nodeCommand(), p.commandCommand(), p.methodCommand())
	add("look", p.doctorCommand(), p.deadLetterCommand(), p.eventCommand(), p.auditCommand(), p.outboxCommand(), p.contextCommand(), p.configCommand(), p.orderCommand())
	add("daemon", withoutData(p.devCommand()), p.initCommand(), withoutData(p.brokerCommand()), p.callerCommand(), withoutData(p.agentCommand()))
	root.AddCommand(p.versionCommand(), withoutData(p.completionCommand()))
	root.SetHelpCommand(helpCommand())
	usageErrors(root)
	p.completeGlobals(root)
	return root
}

// prepare reads the settings and checks the global flags, before a command runs.
func (p *program) prepare(cmd *cobra.Command) error {
	switch cmd.Name() {
	case "completion", cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd: // a shell asks
	default:
		p.warnVariables(cmd.Root())
	}
	switch cmd.Name() {
	case "help", "version", "completion": // they work whatever the settings say
	default:
		if err := p.settings(cmd.Root()); err != nil {
			return err
		}
	}
	if err := p.checkGlobals(); err != nil {
		return err
	}
	if err := checkData(cmd); err != nil {
		return err
	}
	return p.checkFleet(cmd)
}

// helpCommand is cobra's, with an example and with an error for what it does
// not know.
func helpCommand() *cobra.Command {
	return withoutData(&cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show the help of a command",
		Long:  "Show the help of a command, as --help does.",
		Example: `  muster help run
  muster help node invite`,
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil || found == nil {
				return usagef(cmd, "there is no help for %q", strings.Join(args, " "))
			}
			if len(rest) > 0 {
				return unknownCommand(found, rest[0])
			}
			return found.Help()
		},
	})
}

// group makes a command one that has only subcommands.
func group(c *cobra.Command) *cobra.Command {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return unknownCommand(cmd, args[0])
	}
	return c
}

func unknownCommand(cmd *cobra.Command, name string) error {
	cmd.SuggestionsMinimumDistance = 2
	e := usagef(cmd, "unknown command %q for %q", name, cmd.CommandPath())
	if s := cmd.SuggestionsFor(name); len(s) > 0 {
		e.hint = fmt.Sprintf("did you mean '%s %s'?", cmd.CommandPath(), s[0])
	}
	return e
}

// usageErrors makes wrong numbers of arguments errors of usage, in all
// commands.
func usageErrors(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				if _, ok := err.(*usageError); ok {
					return err
				}
				return usagef(cmd, "expected: %s", strings.TrimSuffix(cmd.UseLine(), " [flags]"))
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		usageErrors(sub)
	}
}

func flagError(cmd *cobra.Command, err error) error {
	e := usagef(cmd, "%w", err)
	if unknown, ok := err.(*pflag.NotExistError); ok {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				names = append(names, f.Name)
			}
		})
		if near := nearest(unknown.GetSpecifiedName(), names); near != "" {
			e.hint = fmt.Sprintf("did you mean --%s?", near)
		}
	}
	return e
}

// nearest returns the known word that a person may have meant, or "".
func nearest(word string, known []string) string {
	if near := method.Similar(word, known); len(near) > 0 {
		return near[0]
	}
	return ""
}

var formats = []string{"table", "json", "jsonl", "yaml"}

func (p *program) checkGlobals() error {
	if !slices.Contains(formats, p.format) {
		return usagef(nil, "%soutput %q is unknown; expected table, json, jsonl or yaml", p.from("output"), p.format)
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(p.logLevel)); err != nil {
		return usagef(nil, "%slog level %q is unknown; expected debug, info, warn or error", p.from("log_level"), p.logLevel)
	}
	if p.noColor {
		p.outTerm.color, p.errTerm.color = false, false
	}
	return nil
}

// from begins an error about a setting that was not given on the command line.
func (p *program) from(key string) string {
	if origin := p.origins[key]; origin != "" && !strings.HasPrefix(origin, "--") {
		return origin + ": "
	}
	return ""
}

// logger writes to stderr.
func (p *program) logger() *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(p.logLevel)) // checked before
	return slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: level}))
}

// say writes a line for a person to stderr, broken where the terminal ends.
func (p *program) say(format string, args ...any) {
	fmt.Fprintln(p.stderr, wrap(fmt.Sprintf(format, args...), p.errTerm.width, wrapIndent))
}

// patience bounds a question to the broker. The SDK itself would wait for as
// long as the broker is away, and somebody at a terminal wants to know.
const patience = 30 * time.Second

// with connects, calls f and disconnects.
func (p *program) with(ctx context.Context, f func(ctx context.Context, c SDK) error) error {
	name, _, err := p.contextName()
	if err != nil {
		return err
	}
	quick, cancel := context.WithTimeout(ctx, patience)
	c, err := p.back.Connect(quick, name)
	cancel()
	if err != nil {
		return err
	}
	defer c.Close()
	return f(ctx, &patient{SDK: c, p: p})
}

// ask is with for a command that only asks a question or changes one thing:
// all of it must be over within patience.
func (p *program) ask(ctx context.Context, f func(ctx context.Context, c SDK) error) error {
	return p.with(ctx, func(ctx context.Context, c SDK) error {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return f(ctx, c)
	})
}

// choose resolves a selector within patience.
func choose(ctx context.Context, c SDK, selector string) ([]client.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return c.Select(ctx, selector)
}
