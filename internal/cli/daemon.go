package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/agent"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/methods/onsite"
)

// stateDir is the default folder of a part of muster: under XDG_STATE_HOME
// where that is set, else under /var/lib/muster for root and under the user's
// folder of state for others.
func (p *program) stateDir(part string) string {
	switch home := p.env("XDG_STATE_HOME"); {
	case filepath.IsAbs(home):
		return filepath.Join(home, "muster", part)
	case os.Geteuid() == 0:
		return filepath.Join("/var/lib/muster", part)
	}
	return filepath.Join(p.env("HOME"), ".local/state/muster", part)
}

// orderly makes the end by a signal, which is how daemons end, no error.
func orderly(ctx context.Context, err error) error {
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	if ctx.Err() != nil {
		// Said here: Main takes any error after an interrupt for the interrupt.
		return fmt.Errorf("stop: %w", err)
	}
	return err
}

func (p *program) devCommand() *cobra.Command {
	var o app.DevOptions
	restart := durationFlag(10 * time.Second)
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole fleet on this machine, to try and to develop",
		Long: `Run a broker and some nodes on this machine until Ctrl-C, and make a context
"dev" that leads to them. It becomes the current one if there is none; else add
--context dev to the commands that are for these nodes. Each node is a process
of its own, so that you can kill one and see what becomes of its commands; it
comes back by itself. The state stays, and the next start finds it again.`,
		Example: `  muster dev
  muster dev --nodes 10 --restart-after 1m
  muster run -t all -- uname -a       # in another terminal`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Nodes < 1 {
				return usagef(cmd, "--nodes %d is out of range; expected 1 or more", o.Nodes)
			}
			exe, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program, to start nodes with: %w", err)
			}
			o.Exe, o.Out, o.RestartAfter, o.Log = exe, p.stdout, time.Duration(restart), p.logger()
			if p.context != "" {
				o.ContextName = p.context
			}
			return orderly(cmd.Context(), p.back.RunDev(cmd.Context(), o))
		},
	}
	cmd.Flags().IntVar(&o.Nodes, "nodes", 3, "number of nodes")
	cmd.Flags().StringVar(&o.Dir, "state", p.stateDir("dev"), "folder for all state")
	cmd.Flags().Var(&restart, "restart-after", "how long a node that died stays away")
	setting(cmd.Flags(), "nodes", "dev.nodes")
	setting(cmd.Flags(), "state", "dev.state")
	setting(cmd.Flags(), "restart-after", "dev.restart_after")
	return cmd
}

func (p *program) initCommand() *cobra.Command {
	var o app.InitOptions
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a fleet: its keys, and you as its first operator",
		Long: `Make a fleet in the folder --state: the keys of its broker and of its issuer,
who says who is who; and a context for you, who may do everything. The folder
holds the secrets of the fleet. Keep it, and keep it safe.

--host names the broker as nodes reach it. Without it the fleet is for this
machine alone.`,
		Example: `  muster init --host broker.example.net
  muster init --name lab --state ./lab --context lab`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, host := range o.Hosts {
				if err := config.ValidateHost(host); err != nil {
					return usagef(cmd, "--host: %w", err)
				}
			}
			o.Context = p.context
			before, by, err := config.Chosen()
			if err != nil {
				return err
			}
			r, err := p.back.Init(o)
			if err != nil {
				return err
			}
			switch {
			case before == "" || before == r.Context:
			case by == "MUSTER_CONTEXT":
				p.say("MUSTER_CONTEXT still chooses %s; unset it to use %s", clean(before), r.Context)
			default:
				p.say("the current context was %s and is %s now; back to it: muster context use %[1]s", clean(before), r.Context)
			}
			data := map[string]any{
				"fleet": r.Fleet.ID, "name": r.Fleet.Name, "urls": r.Fleet.URLs, "state": o.Dir,
				"context": r.Context, "context_dir": r.ContextDir, "caller": r.Caller,
			}
			err = show(p, data, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "fleet    %s (%s)\nstate    %s\nbroker   %s\ncontext  %s (current now)\ncaller   %s\n",
					r.Fleet.Name, r.Fleet.ID, o.Dir, strings.Join(r.Fleet.URLs, " "), r.Context, r.Caller)
				return err
			})
			p.say("next: start the broker with 'muster broker', then invite a node with 'muster node invite NAME'")
			return err
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&o.Dir, "state", p.stateDir("fleet"), "folder to make the fleet in")
	setting(fs, "state", "broker.state")
	fs.StringVar(&o.Name, "name", "fleet", "name of the fleet, for people")
	fs.StringSliceVar(&o.Hosts, "host", nil, "name or address of the broker; can be repeated (default 127.0.0.1)")
	fs.IntVar(&o.Port, "port", 0, "port of the broker (default: that of NATS)")
	fs.StringVar(&o.Caller, "caller", "", "your name in the fleet (default $USER)")
	return cmd
}

func (p *program) brokerCommand() *cobra.Command {
	var f brokerFlags
	cmd := &cobra.Command{
		Use:   "broker",
		Short: "Run the broker of a fleet",
		Long: `Run the broker of the fleet in --state until Ctrl-C. It is a NATS server with
JetStream within this process.

With --broker, a NATS server of your own is used instead: this process does the
rest (it admits nodes). 'muster broker config' prints what that server needs.
One that does not sync what it stores is warned of, here and by 'muster doctor'.`,
		Example: `  muster broker
  muster broker --listen 0.0.0.0:4222
  muster broker --broker nats://nats.example.net:4222 --creds service.creds`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			if err := f.check(cmd); err != nil {
				return err
			}
			ctx := cmd.Context()
			if f.url != "" {
				o := app.ServiceOptions{Dir: f.dir, BrokerURL: f.url, CredsFile: f.creds, Replicas: f.replicas, Log: p.logger()}
				return orderly(ctx, p.back.RunService(ctx, o, func() { p.say("ready, with the broker at %s", f.url) }))
			}
			o := app.BrokerOptions{Dir: f.dir, Listen: f.listen, Log: p.logger()}
			return orderly(ctx, p.back.RunBroker(ctx, o, func(i app.BrokerInfo) { p.say("ready at %s", i.URL) }))
		},
	}
	f.add(p, cmd)
	cmd.AddCommand(p.brokerReshard(&f.dir), p.brokerConfig(&f.dir), p.brokerRenewCertificate(&f.dir))
	return cmd
}

// brokerFlags are those of 'muster broker' itself; dir is for its subcommands, too.
type brokerFlags struct {
	dir, listen, url, creds string
	replicas                int
}

func (f *brokerFlags) add(p *program, cmd *cobra.Command) {
	cmd.PersistentFlags().StringVar(&f.dir, "state", p.stateDir("fleet"), "folder of the fleet, as given to 'muster init'")
	cmd.Flags().StringVar(&f.listen, "listen", "", "HOST:PORT to listen on (default: as the fleet was made)")
	cmd.Flags().StringVar(&f.url, "broker", "", "address of a NATS server of your own")
	cmd.Flags().StringVar(&f.creds, "creds", "", "file with credentials for it (default: made with the fleet's keys)")
	cmd.Flags().IntVar(&f.replicas, "replicas", 0, "servers of its cluster that store each message (default: as before, 1 at first)")
	setting(cmd.PersistentFlags(), "state", "broker.state")
	setting(cmd.Flags(), "listen", "broker.listen")
	setting(cmd.Flags(), "broker", "broker.server")
	setting(cmd.Flags(), "creds", "broker.creds")
}

// check finds flags that are not for the kind of broker that was chosen.
func (f *brokerFlags) check(cmd *cobra.Command) error {
	switch {
	case f.url == "" && f.creds != "":
		return usagef(cmd, "--creds is for a server of your own: --broker is missing")
	case f.url != "" && f.listen != "":
		e := usagef(cmd, "--broker and --listen exclude each other")
		e.hint = "'muster config show --origin' shows where broker.server and broker.listen are set"
		return e
	case f.url == "" && f.replicas != 0:
		return usagef(cmd, "--replicas is for a cluster of your own: --broker is missing")
	case f.replicas < 0 || f.replicas > 5:
		return usagef(cmd, "--replicas %d is out of range; expected 1 to 5", f.replicas)
	}
	return nil
}

func (p *program) brokerConfig(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "config",
		Short: "Print the configuration for a NATS server of your own",
		Long: `Print the configuration that makes a nats-server the broker of the fleet: its
operator, accounts and JetStream. It holds no secret keys.`,
		Example: `  muster broker config > nats-server.conf
  nats-server -c nats-server.conf`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			b, err := p.back.ServerConfig(*dir)
			if err != nil {
				return err
			}
			return show(p, map[string]any{"config": string(b)}, func(w io.Writer) error {
				_, err := w.Write(b)
				return err
			})
		},
	}
}

func (p *program) brokerRenewCertificate(dir *string) *cobra.Command {
	var hosts []string
	cmd := &cobra.Command{
		Use:   "renew-certificate",
		Short: "Make a new certificate for the broker, before the old one ends",
		Long: `Make a new certificate and key for the broker, which 'muster init' made for two
years. 'muster doctor' warns 30 days before the end. Nodes and callers need
nothing: the authority that they trust stays, and signs the new one. Run it
where the fleet was made.

'muster broker' shows the new certificate from the next connection on, without a
restart. A NATS server of your own has to read its files again.`,
		Example: `  muster broker renew-certificate
  muster broker renew-certificate --host broker2.example.net`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			c, err := p.back.RenewCertificate(*dir, hosts)
			if err != nil {
				return err
			}
			return show(p, map[string]any{"hosts": c.Hosts, "until": c.Until}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "hosts  %s\nuntil  %s\n", strings.Join(c.Hosts, " "), c.Until.Format(time.DateTime))
				return err
			})
		},
	}
	cmd.Flags().StringSliceVar(&hosts, "host", nil, "further name or address of the broker; can be repeated")
	return cmd
}

func (p *program) brokerReshard(dir *string) *cobra.Command {
	o := app.ReshardOptions{}
	cmd := &cobra.Command{
		Use:   "reshard STREAMS",
		Short: "Change the number of streams that commands are spread over",
		Long: `Change the number of streams that the running broker spreads the commands for
nodes over, 16 at first. More are faster with many thousands of nodes.

It is done while senders and nodes work: both connect anew once, and commands
keep their order. The old streams go when nodes have emptied them. If this is
interrupted, the next start of the broker completes it.`,
		Example: `  muster broker reshard 64`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := strconv.Atoi(args[0])
			if err != nil {
				return usagef(cmd, "%q is no number of streams", args[0])
			}
			o.Dir, o.Shards, o.Log = *dir, n, p.logger()
			if err := p.back.Reshard(cmd.Context(), o); err != nil {
				return err
			}
			return p.deed(map[string]any{"streams": n}, "commands are spread over %d streams", n)
		},
	}
	cmd.Flags().StringVar(&o.BrokerURL, "broker", "", "address of the broker (default: as the fleet was made)")
	return cmd
}

func (p *program) agentCommand() *cobra.Command {
	f := agentFlags{heartbeat: durationFlag(agent.DefaultHeartbeat)}
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent of a node",
		Long: `Run the agent that makes this machine a node, until Ctrl-C. The first start
needs the token of 'muster node invite'; the agent makes its own key with it and
keeps it in --state. Later starts need nothing; a node that was removed needs a
new token to join again.

While the broker cannot be reached, the agent goes on with what it has accepted
and tries again. What the flags do not say comes from the settings, see
'muster config'.

Give the token on stdin (--join -), in a file (--join-file) or in the variable
MUSTER_JOIN. It can also stand behind --join, but arguments are seen by every
user of the machine.

With the file of a constellation the agent also takes part in Orders, with which
operators work on machines whose broker is away: see 'muster order --help'.`,
		Example: `  muster agent --join -
  muster agent --join-file /run/token --state /var/lib/muster/agent
  muster agent`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.complete(p, cmd); err != nil {
				return err
			}
			f.o.Ready = func() { p.say("connected") }
			return orderly(cmd.Context(), p.back.RunAgent(cmd.Context(), f.o))
		},
	}
	f.add(p, cmd.Flags())
	return cmd
}

// agentFlags are the options of an agent, and what they are made of.
type agentFlags struct {
	o                     app.AgentOptions
	join, joinFile, allow string
	heartbeat             durationFlag
}

func (f *agentFlags) add(p *program, fs *pflag.FlagSet) {
	o := &f.o
	fs.StringVar(&f.join, "join", "", "token of an invitation, - for stdin")
	fs.StringVar(&f.joinFile, "join-file", "", "file with the token")
	fs.StringVar(&o.StateDir, "state", p.stateDir("agent"), "folder of the node: keys, journal, policy")
	fs.StringVar(&o.BrokerURL, "broker", "", "address of the broker (default: as the invitation said)")
	fs.StringVar(&o.CredsFile, "creds", "", "file with credentials for the broker (default: as the invitation said)")
	fs.StringVar(&o.Node, "node", "", "name of the node (default: as the invitation said)")
	fs.StringVar(&o.Fleet, "fleet", "", "id of the fleet (default: as the invitation said)")
	fs.StringSliceVar(&o.Issuers, "issuer", nil, "public key of an issuer to trust; can be repeated (default: as the invitation said)")
	fs.StringVar(&o.PolicyFile, "policy", "", "file with the policy (default: policy.yaml in --state)")
	fs.StringVar(&o.FactsDir, "facts", "", "folder with facts of your own")
	fs.StringSliceVar(&o.MethodDirs, "methods", nil, "folder with methods of your own; can be repeated")
	fs.Var(&f.heartbeat, "heartbeat", "how often to say that the node is alive")
	fs.Int64Var(&o.MaxOutput, "max-output", agent.DefaultMaxOutput, "bytes of output that are kept of each stream of a run")
	for _, name := range []string{"state", "broker", "creds", "node", "fleet", "policy", "facts", "methods", "heartbeat"} {
		setting(fs, name, "agent."+name)
	}
	setting(fs, "issuer", "agent.issuers")
	setting(fs, "max-output", "agent.max_output")
	fs.StringVar(&o.Order.Constellation, "constellation", "", "file that makes this node take part in Orders (default: constellation.json in --state, $MUSTER_CONSTELLATION, /etc/muster/constellation.json)")
	fs.StringSliceVar(&o.Order.Interfaces, "order-interface", nil, "where to multicast for Orders; can be repeated (default: each that is up, but for loopback)")
	fs.StringSliceVar(&o.Order.Peers, "order-peer", nil, "HOST:PORT of an agent to keep a connection to for Orders; can be repeated")
	fs.StringVar(&o.Order.Listen, "order-listen", "", "address to listen at for Orders, without multicast")
	fs.IntVar(&o.Order.Port, "order-port", 0, "port for Orders, of UDP and TCP (default 6776; with --order-listen any)")
	fs.StringVar(&f.allow, "order-allow", strings.Join(onsite.Methods, ","), "methods that Orders may use here")
}

// complete checks the flags and makes the options whole.
func (f *agentFlags) complete(p *program, cmd *cobra.Command) (err error) {
	if f.join != "" && f.joinFile != "" {
		return usagef(cmd, "--join and --join-file exclude each other")
	}
	if f.o.Token, err = p.token(cmd.Context(), f.join, f.joinFile); err != nil {
		return err
	}
	if f.o.Node != "" {
		if err := muster.NodeName(f.o.Node).Validate(); err != nil {
			return usage(err)
		}
	}
	if f.o.Order.Allow, err = onsite.ParseAllow(f.allow); err != nil {
		return usage(err)
	}
	f.o.Heartbeat, f.o.Log, f.o.Version = time.Duration(f.heartbeat), p.logger(), Version()
	return nil
}

// maxToken bounds what is read as a token: the longest one, and the space
// between its lines.
const maxToken = 2 * aaa.MaxToken

func (p *program) token(ctx context.Context, join, file string) (string, error) {
	from, text := "--join", join
	var err error
	switch {
	case join == "-":
		from = "stdin"
		if text, err = p.tokenOnStdin(ctx); err != nil {
			return "", fmt.Errorf("read the token from stdin: %w", err)
		}
	case join != "":
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("read the token: %w", err)
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxToken))
		if err != nil {
			return "", fmt.Errorf("read the token: %w", err)
		}
		from, text = file, string(b)
	default:
		return strings.TrimSpace(p.env("MUSTER_JOIN")), nil
	}
	if text = strings.TrimSpace(text); text == "" {
		return "", usagef(nil, "there is no token in %s", from)
	}
	return text, nil
}

// tokenOnStdin reads a file or pipe to its end, and a terminal until the token
// is there.
func (p *program) tokenOnStdin(ctx context.Context) (string, error) {
	if !p.inTerm {
		b, err := io.ReadAll(io.LimitReader(p.stdin, maxToken))
		return string(b), err
	}
	p.say("paste the token and press Enter; an empty line ends it")
	type result struct {
		text string
		err  error
	}
	// As in question, a read of a terminal cannot be interrupted: when ctx ends
	// first, the goroutine stays behind until the process ends, which is at once.
	read := make(chan result, 1)
	go func() {
		text, err := pasted(io.LimitReader(p.stdin, maxToken))
		read <- result{text, err}
	}()
	select {
	case r := <-read:
		return r.text, r.err
	case <-ctx.Done():
		p.say("")
		return "", ctx.Err()
	}
}

// pasted reads lines until they are a whole token. One that is damaged ends with
// an empty line, and not with its first line: what is left unread of a paste, the
// shell would run later.
func pasted(r io.Reader) (string, error) {
	var text strings.Builder
	for in := bufio.NewReader(r); ; {
		line, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return text.String() + line, nil
		}
		if err != nil {
			return "", err
		}
		if strings.TrimSpace(line) == "" {
			if text.Len() > 0 {
				return text.String(), nil
			}
			continue // the paste began with the end of another line
		}
		text.WriteString(line)
		if _, err := aaa.ParseToken(text.String()); err == nil {
			return text.String(), nil
		}
	}
}
