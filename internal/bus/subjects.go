package bus

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
)

// Subjects, with P for the prefix (the fleet's collective). A node name has
// dots, so it stands where its length is no question: last, or before the
// fixed number of tokens that end a command's subject.
//
//	P.command.<queue>.<node>.<kind>.<method>  work queue     to the node
//	P.control.<mailbox>.<node>                last value     to the node: withdrawals
//	P.settings                                last value     to all: the layout
//	P.fleet.<mailbox>.<record>                last values    among operators: records of nodes and invitations
//	P.sent.<id>                               history        what was sent to whom
//	P.report.<id>.<node>                      history        what became of it
//	P.event.<type>.<node>                     history        what happened on a node
//	P.output.<id>.<stream>.<node>             output         bytes that a run wrote
//	P.dead.<mailbox>.<node>                   dead letters   what a node could not read
//	P.node.<mailbox>.<node>                   last value     what a node says of itself
//	P.alive.<mailbox>.<node>                  memory         heartbeats
//	P.ping                                    not stored     who is there now: each node answers with a heartbeat
//	P.enrol.<token id>                        not stored     a newcomer presents its token
//	P.order.<caller>.<mailbox>.<node>         not stored     a frame of an Order, to the node
//	P.ordered.<caller>.<mailbox>.<node>       not stored     a frame of an Order, from the node to one caller
//	P.peers.<mailbox>.<node>                  not stored     a node asks the service for others of its constellation

// A mailbox is a random token that each node shares with the operators, and the
// operators among themselves. It stands in the subjects whose older messages
// give way to newer ones. A NATS server answers a request to whatever subject
// the request names, also one to which the client may not publish, so that a
// node could have its answers take the place of what is there, if it knew the
// subject. (In the other streams such an answer takes nobody's place, and
// readers recognise that it is not what belongs there.)

// OpenMailbox is that of nodes whose credentials name none.
const OpenMailbox = "-"

// AnyMailbox stands for all mailboxes in a filter.
const AnyMailbox = "*"

// NewMailbox makes one.
func NewMailbox() string { return rand.Text() }

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
	Prefix     string
	Shards     int // of the current set of command streams
	Generation int // of that set
}

// Queues are a set of command streams, among which nodes are spread. Another
// number of streams is another set, with the next generation.
type Queues struct {
	Generation int `json:"generation,omitempty"`
	Shards     int `json:"shards"`
}

// token names one stream of the set in subjects and in the stream's name.
func (q Queues) token(shard int) string {
	if q.Generation == 0 {
		return strconv.Itoa(shard)
	}
	return strconv.Itoa(q.Generation) + "-" + strconv.Itoa(shard)
}

func (q Queues) stream(shard int) string { return "MUSTER_COMMAND_" + q.token(shard) }

// of returns the subjects with another set of command streams.
func (s Subjects) of(q Queues) Subjects {
	s.Shards, s.Generation = q.Shards, q.Generation
	return s
}

func (s Subjects) queues() Queues { return Queues{Generation: s.Generation, Shards: s.Shards} }

// queue is the token of the node's command stream.
func (s Subjects) queue(n muster.NodeName) string { return s.queues().token(s.Shard(n)) }

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
	return fmt.Sprintf("%s.command.%s.%s.%s.%s", s.Prefix, s.queue(n), n, k, methodToken(m))
}

// Commands is the filter for all commands of a node, and of no other.
func (s Subjects) Commands(n muster.NodeName) string {
	return fmt.Sprintf("%s.command.%s.%s.*.*", s.Prefix, s.queue(n), n)
}

// Requeued is where a command of the node that was stored under the given
// subject, perhaps of an earlier set of streams, is to be stored now. It is
// not ok when the subject is not one of the node's commands.
func (s Subjects) Requeued(n muster.NodeName, subject string) (_ string, ok bool) {
	f, tail, ok := s.rest(subject, "command", 1)
	lane, mine := strings.CutPrefix(string(tail), string(n)+".")
	if !ok || f[0] == "" || !mine || strings.Count(lane, ".") != 1 {
		return "", false
	}
	return fmt.Sprintf("%s.command.%s.%s.%s", s.Prefix, s.queue(n), n, lane), true
}

// CommandStream is the stream that holds the node's commands.
func (s Subjects) CommandStream(n muster.NodeName) string { return s.queues().stream(s.Shard(n)) }

// sealed is the only subject of a command stream that takes no more commands.
func (s Subjects) sealed(q Queues, shard int) string { return s.Prefix + ".sealed." + q.token(shard) }

// The streams beside those of commands.
const (
	StreamControl  = "MUSTER_CONTROL"
	StreamSettings = "MUSTER_SETTINGS"
	StreamHistory  = "MUSTER_HISTORY"
	StreamOutput   = "MUSTER_OUTPUT"
	StreamDead     = "MUSTER_DEAD"
	StreamNodes    = "MUSTER_NODES"
	StreamAlive    = "MUSTER_ALIVE"
	StreamFleet    = "MUSTER_FLEET"
)

// The streams of bytes that a run writes.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

func (s Subjects) Control(mailbox string, n muster.NodeName) string {
	return s.boxed("control", mailbox, n)
}
func (s Subjects) Settings() string                { return s.Prefix + ".settings" }
func (s Subjects) Sent(id muster.CommandID) string { return s.Prefix + ".sent." + string(id) }
func (s Subjects) Report(k muster.Key) string {
	return s.Prefix + ".report." + string(k.ID) + "." + string(k.Node)
}
func (s Subjects) Event(kind string, n muster.NodeName) string {
	return s.Prefix + ".event." + kind + "." + string(n)
}
func (s Subjects) Output(k muster.Key, stream string) string {
	return s.Prefix + ".output." + string(k.ID) + "." + stream + "." + string(k.Node)
}
func (s Subjects) Dead(mailbox string, n muster.NodeName) string {
	return s.boxed("dead", mailbox, n)
}
func (s Subjects) Node(mailbox string, n muster.NodeName) string {
	return s.boxed("node", mailbox, n)
}
func (s Subjects) Alive(mailbox string, n muster.NodeName) string {
	return s.boxed("alive", mailbox, n)
}
func (s Subjects) Ping() string              { return s.Prefix + ".ping" }
func (s Subjects) Enrol(token string) string { return s.Prefix + ".enrol." + token }

// Order is the subject of frames from a caller of Orders to a node. AnyCaller
// stands for all callers in the filter of a node.
func (s Subjects) Order(caller, mailbox string, n muster.NodeName) string {
	return s.boxed("order."+caller, mailbox, n)
}

// Ordered is the subject of frames from a node to one caller of Orders.
func (s Subjects) Ordered(caller, mailbox string, n muster.NodeName) string {
	return s.boxed("ordered."+caller, mailbox, n)
}

// OrderedFrom is the filter for all frames to a caller.
func (s Subjects) OrderedFrom(caller string) string { return s.Prefix + ".ordered." + caller + ".>" }

// Peers is the subject on which a node asks for others of its constellation.
func (s Subjects) Peers(mailbox string, n muster.NodeName) string {
	return s.boxed("peers", mailbox, n)
}

// AnyPeers is the filter for all who ask.
func (s Subjects) AnyPeers() string { return s.Prefix + ".peers.>" }

// AnyCaller stands for all callers of Orders in a filter.
const AnyCaller = "*"

// CallerOf reads the caller from the subject of a frame to a node.
func (s Subjects) CallerOf(subject string) (caller string, ok bool) {
	f, _, ok := s.rest(subject, "order", 2)
	if !ok {
		return "", false
	}
	return f[0], true
}

// MemberOf reads mailbox and node from the subject of a frame to a caller.
func (s Subjects) MemberOf(subject string) (mailbox string, n muster.NodeName, ok bool) {
	f, n, ok := s.rest(subject, "ordered", 2)
	if !ok {
		return "", "", false
	}
	return f[1], n, true
}

// BoxOf reads mailbox and node from a subject with a mailbox (node, alive, dead,
// control, peers).
func (s Subjects) BoxOf(subject, purpose string) (mailbox string, n muster.NodeName, ok bool) {
	f, n, ok := s.rest(subject, purpose, 1)
	if !ok {
		return "", "", false
	}
	return f[0], n, true
}

func (s Subjects) boxed(purpose, mailbox string, n muster.NodeName) string {
	return s.Prefix + "." + purpose + "." + mailbox + "." + string(n)
}

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

// NodeOf reads the node from a subject with a mailbox (node, alive, dead,
// control).
func (s Subjects) NodeOf(subject, purpose string) (muster.NodeName, bool) {
	_, n, ok := s.rest(subject, purpose, 1)
	return n, ok
}

// BeatOf reads a heartbeat. It is not ok when the node that it names is not the
// one of the subject, which the broker has checked.
func (s Subjects) BeatOf(subject string, data []byte) (b muster.Beat, ok bool) {
	n, ok := s.NodeOf(subject, "alive")
	if !ok || json.Unmarshal(data, &b) != nil || b.Node != n {
		return muster.Beat{}, false
	}
	return b, true
}

// MailboxOf finds the mailbox of a node among the subjects to which its
// credentials let it publish. Credentials that muster has not made have none.
func MailboxOf(prefix string, n muster.NodeName, publish []string) string {
	s := Subjects{Prefix: prefix}
	for _, subject := range publish {
		f, name, ok := s.rest(subject, "alive", 1)
		if ok && name == n && !strings.ContainsAny(f[0], "*>") {
			return f[0]
		}
	}
	return OpenMailbox
}

// encodeNode writes a node name as one token: dots cannot stand in the name of
// a consumer or in an inbox prefix. '=' cannot stand in a node name.
func encodeNode(n muster.NodeName) string { return strings.ReplaceAll(string(n), ".", "=") }

// consumerName is that of a node's consumer. The mailbox keeps others from
// guessing it.
func consumerName(mailbox string, n muster.NodeName) string { return mailbox + "=" + encodeNode(n) }

// NodeInbox is the prefix of the inboxes of a node, so that none can listen to
// the answers that another gets.
func NodeInbox(n muster.NodeName) string { return "_INBOX_NODE." + encodeNode(n) }

// InboxOf reports whether a reply subject is in an inbox of the node.
func InboxOf(n muster.NodeName, reply string) bool {
	return strings.HasPrefix(reply, NodeInbox(n)+".")
}

// EnrolInbox is the prefix of the inboxes of a newcomer with a token.
func EnrolInbox(token string) string { return "_INBOX_ENROL." + token }

// Permissions are the subjects that a user may publish and subscribe to.
type Permissions struct {
	Publish, Subscribe []string
	Responses          int // messages that it may send to the reply subject of what it receives
}

// NodePermissions lets a node read its own commands and withdrawals and write
// its own reports, output, events, dead letters, presence and frames of Orders, and
// ask in its own name for others of its constellation.
// The shard is a wildcard, so that credentials outlive a change of the number of
// shards; the consumer's name and filter are exact.
func NodePermissions(prefix, mailbox string, n muster.NodeName) Permissions {
	s, name := Subjects{Prefix: prefix, Shards: 1}, consumerName(mailbox, n)
	filter := prefix + ".command.*." + string(n) + ".*.*"
	return Permissions{
		Publish: []string{
			prefix + ".report.*." + string(n),
			prefix + ".output.*.*." + string(n),
			prefix + ".event.*." + string(n),
			s.Node(mailbox, n), s.Alive(mailbox, n), s.Dead(mailbox, n), s.Ordered(AnyCaller, mailbox, n),
			s.Peers(mailbox, n),
			NodeAPI + ".CONSUMER.CREATE.*." + name + "." + filter,
			NodeAPI + ".CONSUMER.DELETE.*." + name,
			NodeAPI + ".CONSUMER.INFO.*." + name,
			NodeAPI + ".CONSUMER.MSG.NEXT.*." + name,
			"$JS.ACK.*." + name + ".>",
			NodeAPI + ".DIRECT.GET." + StreamControl + "." + s.Control(mailbox, n),
			NodeAPI + ".DIRECT.GET." + StreamSettings + "." + s.Settings(),
		},
		Subscribe: []string{NodeInbox(n) + ".>", s.Control(mailbox, n), s.Ping(), s.Order(AnyCaller, mailbox, n)},
	}
}

// NodeAPI begins the subjects on which nodes reach what they may use of the
// JetStream API. The usual prefix is answered for an account that has no
// JetStream itself.
const NodeAPI = "$JSFLEET.API"

const usualAPI = "$JS.API"

// Shares are what the account of nodes gets of the main account: all that
// permissions of nodes and newcomers name. There must be nothing among it that
// does harm when the server's answer to a hostile node is published there.
func Shares(prefix string) []aaa.Share {
	var all []aaa.Share
	for _, subject := range []string{
		prefix + ".report.*.>", prefix + ".output.*.*.>", prefix + ".event.*.>",
		prefix + ".node.*.>", prefix + ".alive.*.>", prefix + ".dead.*.>", prefix + ".enrol.*", "$JS.ACK.>",
		prefix + ".ordered.*.*.>", prefix + ".peers.*.>",
	} {
		all = append(all, aaa.Share{Subject: subject})
	}
	const next = ".CONSUMER.MSG.NEXT.*.*"
	for _, request := range []string{
		".CONSUMER.CREATE.*.*." + prefix + ".command.>", ".CONSUMER.DELETE.*.*", ".CONSUMER.INFO.*.*", next,
		".DIRECT.GET." + StreamControl + "." + prefix + ".control.*.>",
		".DIRECT.GET." + StreamSettings + "." + prefix + ".settings",
	} {
		all = append(all, aaa.Share{Subject: usualAPI + request, Local: NodeAPI + request, Many: request == next})
	}
	return append(all,
		aaa.Share{Subject: prefix + ".control.*.>", ToNodes: true},
		aaa.Share{Subject: prefix + ".ping", ToNodes: true},
		aaa.Share{Subject: prefix + ".order.*.*.>", ToNodes: true},
	)
}

// Foreign reports whether an answer to the reply subject goes to another
// account. No client can name such a subject itself.
func Foreign(reply string) bool { return strings.HasPrefix(reply, "_R_.") }

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
			prefix + ".>", "$JS.API.>", "$JS.ACK.>",
		},
		Subscribe: []string{prefix + ".>", "_INBOX.>"},
		Responses: 1,
	}
}
