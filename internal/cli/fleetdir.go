package cli

import (
	"cmp"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/config"
)

// fleetKey is the setting of the folder of a fleet, in which commands work that
// need its keys. It has a default, which need not be the fleet of the context.
const fleetKey = "broker.state"

// checkFleet tells a person who works in another fleet than the current context
// leads to, unless the folder was named: they may not know. What cannot be
// undone is refused.
func (p *program) checkFleet(cmd *cobra.Command) error {
	folder := cmd.Flag("state")
	if folder == nil || folder.Changed || cmd.Name() == "init" {
		return nil
	}
	if key := folder.Annotations[settingAnnotation]; len(key) == 0 || key[0] != fleetKey {
		return nil
	}
	dir := folder.Value.String()
	fleet, context, differ := p.twoFleets(dir)
	if !differ {
		return nil
	}
	if cmd.CommandPath() == "muster caller revoke" {
		e := usagef(cmd, "the folder %s is of fleet %s, but the current context %q leads to fleet %s", dir, clean(fleet), clean(context.Name), clean(context.Fleet))
		e.hint = "say which fleet is meant with --state FOLDER: there is no way back"
		return e
	}
	p.say("%s this is about fleet %s in %s; your current context %q leads to fleet %s (--state FOLDER names another one)",
		p.errTerm.paint(yellow, "warning:"), clean(fleet), dir, clean(context.Name), clean(context.Fleet))
	return nil
}

// twoFleets reports whether a folder is of another fleet than the current context.
// What cannot be read is no difference: whoever needs it will say so.
func (p *program) twoFleets(dir string) (fleet string, context config.Context, differ bool) {
	name, _, err := p.contextName()
	if err != nil {
		return "", context, false
	}
	if context, err = config.OpenContext(name); err != nil {
		return "", context, false
	}
	f, err := config.OpenFleet(dir)
	if err != nil {
		return "", context, false
	}
	return f.Fleet.ID, context, f.Fleet.ID != context.Fleet
}

// revokedSelf warns of what a revocation took from the person who made it, and
// says how to get it back.
func (p *program) revokedSelf(dir string, revoked []app.Caller) {
	_, context, differ := p.twoFleets(dir)
	name := ""
	if own := ownKey(context); own != "" && !differ {
		for _, c := range revoked {
			if c.Key == own {
				name = c.Name
				p.say("%s that was the identity of your current context %q, which is worth nothing now", p.errTerm.paint(yellow, "warning:"), clean(context.Name))
			}
		}
	}
	if len(revoked) > 0 && p.noneLeft(dir) {
		name = cmp.Or(name, revoked[0].Name)
		p.say("%s no caller with unbounded rights is left in this fleet", p.errTerm.paint(yellow, "warning:"))
	}
	if name == "" {
		return
	}
	out := "FOLDER"
	if folder, err := config.ContextDir(context.Name); err == nil && context.Name != "" && !differ {
		out = shellWord(folder)
	}
	p.say("a new one: muster context make %s --group admin --state %s --out %s", shellWord(clean(name)), shellWord(dir), out)
}

// ownKey is the public key of a context's identity, "" if it cannot be read.
func ownKey(c config.Context) string {
	id, err := aaa.ParseIdentity(c.Identity.Reveal())
	if err != nil {
		return ""
	}
	claims, err := id.Claims()
	if err != nil {
		return ""
	}
	return claims.PublicKey
}

// noneLeft reports whether no caller of a fleet has unbounded rights that are
// valid; it must be known of all.
func (p *program) noneLeft(dir string) bool {
	all, partial, err := p.back.Callers(dir)
	if err != nil || partial {
		return false
	}
	for _, c := range all {
		if c.Revoked.IsZero() && !c.Bounded && p.now().Before(c.Expires) {
			return false
		}
	}
	return true
}
