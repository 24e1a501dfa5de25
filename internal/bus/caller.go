package bus

import (
	"slices"
	"strings"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
)

// callerInbox begins the inboxes of callers with bounded rights.
const callerInbox = "_INBOX_CALLER."

// NewCallerInbox makes the prefix of the inboxes of one caller.
func NewCallerInbox() string { return callerInbox + NewMailbox() }

// CallerInbox finds the prefix of inboxes among the subjects to which
// credentials let subscribe. It is empty for those that name none, such as an
// operator's: theirs is the usual one.
func CallerInbox(subscribe []string) string {
	for _, subject := range subscribe {
		if inbox, ok := strings.CutSuffix(subject, ".>"); ok && strings.HasPrefix(inbox, callerInbox) {
			return inbox
		}
	}
	return ""
}

// maxNarrow bounds the subjects of commands and withdrawals in credentials, in
// bytes: a NATS server takes 4096 for all of what a client says of itself.
const maxNarrow = 800

// CallerPermissions lets a caller with bounded rights send and withdraw
// commands, and read what became of them. It may write no records of nodes and
// change no stream, and it makes consumers on no queue: they take commands away.
func CallerPermissions(prefix, inbox string, rights []aaa.Right) Permissions {
	publish := append(callerWrites(prefix, rights), prefix+".sent.*", prefix+".ping")
	for _, stream := range []string{StreamHistory, StreamOutput, StreamNodes, StreamAlive, StreamFleet} {
		publish = append(publish,
			usualAPI+".CONSUMER.CREATE."+stream+".>",
			usualAPI+".CONSUMER.MSG.NEXT."+stream+".*",
			usualAPI+".CONSUMER.DELETE."+stream+".*")
	}
	publish = append(publish,
		usualAPI+".CONSUMER.INFO.*.*",
		usualAPI+".STREAM.INFO.*",
		usualAPI+".STREAM.LIST",
		usualAPI+".STREAM.MSG.GET."+StreamFleet,
		usualAPI+".DIRECT.GET."+StreamControl+"."+prefix+".control.>",
		usualAPI+".DIRECT.GET."+StreamSettings+"."+prefix+".settings",
	)
	return Permissions{Publish: publish, Subscribe: []string{prefix + ".alive.>", inbox + ".>"}}
}

// callerWrites are the subjects of the commands and withdrawals that the rights
// allow, or of all: a glob of nodes cannot be said in a subject, since a name has
// any number of tokens. Nodes check the rights in any case.
func callerWrites(prefix string, rights []aaa.Right) []string {
	all := []string{prefix + ".command.>", prefix + ".control.*.>"}
	var narrow []string
	size := 0
	add := func(subject string) {
		if !slices.Contains(narrow, subject) {
			narrow, size = append(narrow, subject), size+len(subject)
		}
	}
	for _, r := range rights {
		for _, n := range r.Nodes {
			if strings.ContainsAny(n, "*?") {
				return all
			}
			if muster.NodeName(n).Validate() != nil {
				continue // it matches no node, and must not become a wildcard of NATS
			}
			add(prefix + ".control.*." + n)
			for _, m := range r.Methods {
				switch {
				case strings.ContainsAny(m, "*?"):
					add(prefix + ".command.*." + n + ".*.*")
				case muster.Method(m).Validate() == nil:
					add(prefix + ".command.*." + n + ".*." + methodToken(muster.Method(m)))
				}
			}
			if size > maxNarrow {
				return all
			}
		}
	}
	return narrow
}
