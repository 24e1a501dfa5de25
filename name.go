package muster

import (
	"fmt"
	"strings"
)

// A NodeName is the identity of a node: unique in its fleet, 1 to 128
// characters of letters, digits, '-', '_' and '.'. Dots separate labels as in
// a host name; a label is never empty.
type NodeName string

// MaxNodeName is the longest node name in bytes. A host name has at most 255,
// but a name also becomes part of subjects and file names.
const MaxNodeName = 128

// Validate returns an error that says what is wrong with the name, or nil.
func (n NodeName) Validate() error {
	return validateName("node name", string(n), MaxNodeName, func(c byte) bool {
		return isLower(c) || isUpper(c) || isDigit(c) || c == '-' || c == '_'
	})
}

// A Method names something that an agent can do, as group and verb:
// "shell.run". It has 1 to 64 characters of lower-case letters, digits, '-'
// and '.'.
type Method string

// MaxMethod is the longest method name in bytes.
const MaxMethod = 64

// Validate returns an error that says what is wrong with the name, or nil.
func (m Method) Validate() error {
	return validateName("method", string(m), MaxMethod, func(c byte) bool {
		return isLower(c) || isDigit(c) || c == '-'
	})
}

// A Kind is the purpose of a durable message. With the node and the method it
// makes a lane: commands in one lane run in the order in which they were sent.
type Kind string

// KindCommand is an instruction whose result is reported.
const KindCommand Kind = "command"

// Validate returns an error unless the kind is a known one.
func (k Kind) Validate() error {
	if k != KindCommand {
		return Errorf(Invalid, "kind %q is unknown; expected %q", clip(string(k)), KindCommand)
	}
	return nil
}

// A CommandID identifies one send. A send to many nodes has one id; a command
// is the pair of id and node. It has 1 to 64 characters of letters, digits,
// '-' and '_'; ids made by muster are ULIDs, so that they sort by time.
type CommandID string

// MaxCommandID is the longest command id in bytes.
const MaxCommandID = 64

// Validate returns an error that says what is wrong with the id, or nil.
func (id CommandID) Validate() error {
	if strings.Contains(string(id), ".") {
		return Errorf(Invalid, "command id %q contains a dot; letters, digits, '-' and '_' are allowed", clip(string(id)))
	}
	return validateName("command id", string(id), MaxCommandID, func(c byte) bool {
		return isLower(c) || isUpper(c) || isDigit(c) || c == '-' || c == '_'
	})
}

// A Key names one command: one send, addressed to one node.
type Key struct {
	ID   CommandID
	Node NodeName
}

// String returns the key as ID@NODE, the form that the command line takes.
func (k Key) String() string { return string(k.ID) + "@" + string(k.Node) }

// ParseKey reads ID@NODE, or an ID alone (then Node is empty).
func ParseKey(s string) (Key, error) {
	id, node, directed := strings.Cut(s, "@")
	k := Key{CommandID(id), NodeName(node)}
	if err := k.ID.Validate(); err != nil {
		return Key{}, err
	}
	if directed {
		if err := k.Node.Validate(); err != nil {
			return Key{}, err
		}
	}
	return k, nil
}

// validateName checks dot-separated labels made of the allowed characters.
func validateName(what, s string, limit int, allowed func(byte) bool) error {
	if s == "" {
		return Errorf(Invalid, "%s is empty", what)
	}
	if len(s) > limit {
		return Errorf(Invalid, "%s %q has %d characters; at most %d are allowed", what, clip(s), len(s), limit)
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" {
			return Errorf(Invalid, "%s %q has an empty part between dots", what, clip(s))
		}
	}
	for i := range len(s) {
		if c := s[i]; c != '.' && !allowed(c) {
			return Errorf(Invalid, "%s %q: character %q at column %d is not allowed", what, clip(s), c, i+1)
		}
	}
	return nil
}

func isLower(c byte) bool { return 'a' <= c && c <= 'z' }
func isUpper(c byte) bool { return 'A' <= c && c <= 'Z' }
func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// clip keeps hostile input from filling an error message.
func clip(s string) string {
	if len(s) > 80 {
		return fmt.Sprintf("%s... (%d bytes)", s[:80], len(s))
	}
	return s
}
