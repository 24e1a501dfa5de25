package bus

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	"github.com/musterfleet/muster"
)

// Subjects, with P for the prefix (the fleet's collective). A node name has
// dots, so it stands where its length is no question: last, or before the
// fixed number of tokens that end a command's subject.
//
//	P.command.<shard>.<node>.<kind>.<method>  work queue     to the node
//	P.control.<node>                          last value     to the node: withdrawals
//	P.settings                                last value     to all: the layout
//	P.sent.<id>                               history        what was sent to whom
//	P.report.<id>.<node>                      history        what became of it
//	P.event.<type>.<node>                     history        what happened on a node
//	P.output.<id>.<stream>.<node>             output         bytes that a run wrote
//	P.dead.<node>                             dead letters   what a node could not read
//	P.node.<node>                             last value     what a node says of itself
//	P.alive.<node>                            memory         heartbeats
//	P.ping                                    not stored     who is there now
//	P.enrol.<token id>                        not stored     a newcomer presents its token

// DefaultPrefix begins all subjects of a fleet, unless its settings differ.
const DefaultPrefix = "muster"

// Headers of a chunk of output.
const (
	HeaderOffset  = "Muster-Offset"  // of the chunk's first byte in its stream
	HeaderAttempt = "Muster-Attempt" // of the run, from 1
)

// Headers of a dead letter.
const (
	HeaderReason  = "Muster-Reason"
	HeaderSubject = "Muster-Subject" // of the queue that it was in
)

// Subjects makes the subjects of one fleet.
type Subjects struct {
	Prefix string
	Shards int
}

// methodToken writes a method as one token of a subject.
func methodToken(m muster.Method) string { return strings.ReplaceAll(string(m), ".", ":") }

// Shard returns the number of the stream that holds the node's commands.
func (s Subjects) Shard(n muster.NodeName) int {
	h := fnv.New32a()
	h.Write([]byte(n))
	return int(h.Sum32() % uint32(s.Shards))
}

// Command is the subject of a command.
func (s Subjects) Command(n muster.NodeName, k muster.Kind, m muster.Method) string {
	return fmt.Sprintf("%s.command.%d.%s.%s.%s", s.Prefix, s.Shard(n), n, k, methodToken(m))
}

// Commands is the filter for all commands of a node, and of no other.
func (s Subjects) Commands(n muster.NodeName) string {
	return fmt.Sprintf("%s.command.%d.%s.*.*", s.Prefix, s.Shard(n), n)
}

// CommandStream is the stream that holds the node's commands.
func (s Subjects) CommandStream(n muster.NodeName) string { return commandStream(s.Shard(n)) }

func commandStream(shard int) string { return "MUSTER_COMMAND_" + strconv.Itoa(shard) }

// The streams beside those of commands.
const (
	StreamControl  = "MUSTER_CONTROL"
	StreamSettings = "MUSTER_SETTINGS"
	StreamHistory  = "MUSTER_HISTORY"
	StreamOutput   = "MUSTER_OUTPUT"
	StreamDead     = "MUSTER_DEAD"
	StreamNodes    = "MUSTER_NODES"
	StreamAlive    = "MUSTER_ALIVE"
	// BucketFleet is the key-value bucket of what operators say of nodes.
	BucketFleet = "muster-fleet"
)

// The streams of bytes that a run writes.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

func (s Subjects) Control(n muster.NodeName) string { return s.Prefix + ".control." + string(n) }
func (s Subjects) Settings() string                 { return s.Prefix + ".settings" }
func (s Subjects) Sent(id muster.CommandID) string  { return s.Prefix + ".sent." + string(id) }
func (s Subjects) Report(k muster.Key) string {
	return s.Prefix + ".report." + string(k.ID) + "." + string(k.Node)
}
func (s Subjects) Event(kind string, n muster.NodeName) string {
	return s.Prefix + ".event." + kind + "." + string(n)
}
func (s Subjects) Output(k muster.Key, stream string) string {
	return s.Prefix + ".output." + string(k.ID) + "." + stream + "." + string(k.Node)
}
func (s Subjects) Dead(n muster.NodeName) string  { return s.Prefix + ".dead." + string(n) }
func (s Subjects) Node(n muster.NodeName) string  { return s.Prefix + ".node." + string(n) }
func (s Subjects) Alive(n muster.NodeName) string { return s.Prefix + ".alive." + string(n) }
func (s Subjects) Ping() string                   { return s.Prefix + ".ping" }
func (s Subjects) Enrol(token string) string      { return s.Prefix + ".enrol." + token }

// last returns what follows the first n tokens of the prefix and purpose.
func (s Subjects) rest(subject, purpose string, tokens int) (fields []string, node muster.NodeName, ok bool) {
	tail, ok := strings.CutPrefix(subject, s.Prefix+"."+purpose+".")
	if !ok {
		return nil, "", false
	}
	parts := strings.SplitN(tail, ".", tokens+1)
	if len(parts) != tokens+1 {
		return nil, "", false
	}
	return parts[:tokens], muster.NodeName(parts[tokens]), true
}

// ReportKey reads the key of a command from the subject of a report.
func (s Subjects) ReportKey(subject string) (muster.Key, bool) {
	f, n, ok := s.rest(subject, "report", 1)
	if !ok {
		return muster.Key{}, false
	}
	return muster.Key{ID: muster.CommandID(f[0]), Node: n}, true
}

// OutputKey reads the key and the stream from the subject of output.
func (s Subjects) OutputKey(subject string) (muster.Key, string, bool) {
	f, n, ok := s.rest(subject, "output", 2)
	if !ok {
		return muster.Key{}, "", false
	}
	return muster.Key{ID: muster.CommandID(f[0]), Node: n}, f[1], true
}

// EventOf reads the type and the node from the subject of an event.
func (s Subjects) EventOf(subject string) (string, muster.NodeName, bool) {
	f, n, ok := s.rest(subject, "event", 1)
	if !ok {
		return "", "", false
	}
	return f[0], n, true
}

// NodeOf reads the node from a subject of which it is all that follows the
// purpose (node, alive, dead, control).
func (s Subjects) NodeOf(subject, purpose string) (muster.NodeName, bool) {
	_, n, ok := s.rest(subject, purpose, 0)
	return n, ok
}

// encodeNode writes a node name as one token: dots cannot stand in the name of
// a consumer or in an inbox prefix. '=' cannot stand in a node name.
func encodeNode(n muster.NodeName) string { return strings.ReplaceAll(string(n), ".", "=") }

// NodeInbox is the prefix of the inboxes of a node, so that none can listen to
// the answers that another gets.
func NodeInbox(n muster.NodeName) string { return "_INBOX_NODE." + encodeNode(n) }

// EnrolInbox is the prefix of the inboxes of a newcomer with a token.
func EnrolInbox(token string) string { return "_INBOX_ENROL." + token }

// Permissions are the subjects that a user may publish and subscribe to.
type Permissions struct {
	Publish, Subscribe []string
	Responses          int // messages that it may send to the reply subject of what it receives
}

// NodePermissions lets a node read its own commands and withdrawals and write
// its own reports, output, events, dead letters and presence. The shard is a
// wildcard, so that credentials outlive a change of the number of shards; the
// consumer's name and filter are exact.
func NodePermissions(prefix string, n muster.NodeName) Permissions {
	s, name := Subjects{Prefix: prefix, Shards: 1}, encodeNode(n)
	filter := prefix + ".command.*." + string(n) + ".*.*"
	return Permissions{
		Publish: []string{
			prefix + ".report.*." + string(n),
			prefix + ".output.*.*." + string(n),
			prefix + ".event.*." + string(n),
			s.Node(n), s.Alive(n), s.Dead(n),
			"$JS.API.CONSUMER.CREATE.*." + name + "." + filter,
			"$JS.API.CONSUMER.DELETE.*." + name,
			"$JS.API.CONSUMER.INFO.*." + name,
			"$JS.API.CONSUMER.MSG.NEXT.*." + name,
			"$JS.ACK.*." + name + ".>",
			"$JS.API.DIRECT.GET." + StreamControl + "." + s.Control(n),
			"$JS.API.DIRECT.GET." + StreamSettings + "." + s.Settings(),
		},
		Subscribe: []string{NodeInbox(n) + ".>", s.Control(n), s.Ping()},
		Responses: 1,
	}
}

// EnrolPermissions lets the holder of a join token present it, and no more.
func EnrolPermissions(prefix, token string) Permissions {
	s := Subjects{Prefix: prefix, Shards: 1}
	return Permissions{Publish: []string{s.Enrol(token)}, Subscribe: []string{EnrolInbox(token) + ".>"}}
}

// OperatorPermissions lets an operator send, and read everything of the fleet.
// Whether a node does what an operator sends is the node's decision.
func OperatorPermissions(prefix string) Permissions {
	return Permissions{
		Publish: []string{
			prefix + ".>", "$JS.API.>", "$JS.ACK.>", "$KV." + BucketFleet + ".>",
		},
		Subscribe: []string{prefix + ".>", "_INBOX.>", "$KV." + BucketFleet + ".>"},
		Responses: 1,
	}
}
