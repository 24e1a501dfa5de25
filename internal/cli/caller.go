package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/app"
)

func (p *program) callerCommand() *cobra.Command {
	var dir string
	cmd := group(&cobra.Command{
		Use:   "caller",
		Short: "List and revoke callers",
		Long: `A caller is a person or program that may send commands. 'muster context make'
makes one. The commands here work in the folder of the fleet, where 'muster
init' made it: they need the key of its issuer.`,
		Example: `  muster caller ls
  muster caller revoke alice --reason 'laptop stolen'`,
	})
	cmd.PersistentFlags().StringVar(&dir, "state", p.stateDir("fleet"), "folder of the fleet, as given to 'muster init'")
	setting(cmd.PersistentFlags(), "state", "broker.state")
	cmd.AddCommand(p.callerList(&dir), p.callerRevoke(&dir))
	return cmd
}

func (p *program) callerList(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the callers that this fleet's issuer has made",
		Long: `List the identities that were made with the fleet's folder, each with its key:
a name has several when its context was made anew. Those that expired more than
90 days ago are left out at times.`,
		Example: `  muster caller ls
  muster caller ls -o json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			all, partial, err := p.back.Callers(*dir)
			if err != nil {
				return err
			}
			err = list(p, all, func() *table {
				t := newTable("NAME", "STATE", "ISSUED", "EXPIRES", "GROUPS", "KEY", "REASON")
				t.whole = "KEY"
				for _, c := range all {
					t.row(c.Name, callerState(c, p.now()), c.Issued.Format(time.DateOnly), c.Expires.Format(time.DateOnly), strings.Join(c.Groups, " "), c.Key, c.Reason)
				}
				return t
			})
			if err == nil && partial {
				p.say("callers that an older muster has made are not listed")
			}
			return err
		},
	}
}

func callerState(c app.Caller, now time.Time) cell {
	switch {
	case !c.Revoked.IsZero():
		return cell{"revoked", red}
	case !now.Before(c.Expires):
		return cell{"expired", yellow}
	}
	return cell{"valid", green}
}

func (p *program) callerRevoke(dir *string) *cobra.Command {
	var o app.RevokeOptions
	cmd := &cobra.Command{
		Use:   "revoke NAME|KEY...",
		Short: "Make what was issued to a caller worthless, before it expires",
		Long: `Revoke callers: all that was issued to a NAME until now, or one KEY, as 'muster
caller ls' shows it. There is no way back; 'muster context make' gives the name
another identity.

Nodes refuse commands of a revoked caller from the moment at which they know of
it: those that are there within seconds, the others when they come back, before
they read the commands that wait for them. What a node has accepted and not
begun is refused, too; what runs goes on, see 'muster command cancel'. The
broker cuts the caller's connections off and lets it in no more. Keep the
fleet's folder in your backups: the list of who is revoked is in it.

With a NATS server that does not know this fleet's accounts (--creds), revoke
the caller's user there by hand.

When the current context leads to another fleet than that of the folder, the
folder has to be named with --state.

The exit code is 5 when the running broker did not take the list up: it will
when 'muster broker' runs with this folder.`,
		Example: `  muster caller revoke alice --reason 'laptop stolen'
  muster caller revoke UBMAJ6JAGBJUQ3CQFG5KBTLLLEWMQFD4EYXWUTHKU3Q4ZKTOXUULCCDV`,
		Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return p.completeCallers(*dir)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(o.Reason) > aaa.MaxRevocationReason {
				return usagef(cmd, "--reason has %d bytes; at most %d are allowed", len(o.Reason), aaa.MaxRevocationReason)
			}
			o.Dir, o.Who, o.Log = *dir, args, p.logger()
			r, err := p.back.RevokeCallers(cmd.Context(), o)
			if err != nil {
				return err
			}
			if err := show(p, r, func(w io.Writer) error { return p.revokedText(w, r) }); err != nil {
				return err
			}
			p.revokedAdvice(r)
			p.revokedSelf(*dir, r.Revoked)
			if r.Broker != "ok" {
				return exitError(ExitPending)
			}
			return nil
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&o.Reason, "reason", "", "why, for people; nodes say it when they refuse a command")
	fs.StringVar(&o.BrokerURL, "broker", "", "address of the broker (default: as the fleet was made)")
	fs.StringVar(&o.CredsFile, "creds", "", "file with credentials for a NATS server of your own (default: made with the fleet's keys)")
	setting(fs, "broker", "broker.server")
	setting(fs, "creds", "broker.creds")
	return cmd
}

func (p *program) completeCallers(dir string) ([]string, cobra.ShellCompDirective) {
	all, _, _ := p.back.Callers(dir) // for completion: none is fine
	var names []string
	for _, c := range all {
		if !slices.Contains(names, c.Name) {
			names = append(names, c.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (p *program) revokedText(w io.Writer, r app.RevokeResult) error {
	for _, c := range r.Revoked {
		fmt.Fprintf(w, "revoked  %s %s\n", clean(c.Name), c.Key)
	}
	for _, who := range r.Unknown {
		fmt.Fprintf(w, "revoked  %s, of whom there is no record\n", clean(who))
	}
	broker := "cuts off connections and lets nobody in with the credentials"
	switch {
	case r.Broker != "ok":
		broker = "not reached: " + r.Broker
	case r.ByHand:
		broker = "has the list for nodes; its users are revoked by hand"
	}
	_, err := fmt.Fprintf(w, "broker   %s\n", clean(broker))
	switch {
	case err != nil || r.Broker != "ok":
	case r.Uncounted != "":
		_, err = fmt.Fprintf(w, "nodes    could not be counted: %s; each will refuse the commands before it reads the next one\n", clean(r.Uncounted))
	default:
		_, err = fmt.Fprintf(w, "nodes    %d of %d refuse the commands; the others will before they read the next ones\n", r.Current, r.Nodes)
	}
	return err
}

// revokedAdvice says what is left to do.
func (p *program) revokedAdvice(r app.RevokeResult) {
	if r.Broker != "ok" {
		p.say("nothing is in force yet: it will be when 'muster broker' runs with this folder")
	}
	if r.ByHand {
		p.say("the server's accounts are not those of this fleet. Until you revoke the users there, they can connect, read what is stored and fill queues. With nsc:")
		p.say("  nsc revocations add-user --account ACCOUNT --name USER")
		p.say("  nsc push --account ACCOUNT")
	}
	if len(r.Unknown) > 0 && !r.ByHand {
		p.say("what an older muster has made is not on record: nodes refuse the commands, but the broker lets it in until its credentials expire")
	}
}
