package config

import (
	"os"
	"path/filepath"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
)

// A Node is what agent.yaml says: which node this is, and of which fleet.
type Node struct {
	Node    string
	Fleet   string // id
	Prefix  string
	URLs    []string
	Issuers []string
}

func (n *Node) fields() []field {
	return []field{
		{key: "node", text: &n.Node}, {key: "fleet", text: &n.Fleet}, {key: "prefix", text: &n.Prefix},
		{key: "urls", list: &n.URLs}, {key: "issuers", list: &n.Issuers},
	}
}

func (n Node) validate(file string) error {
	if err := muster.NodeName(n.Node).Validate(); err != nil {
		return muster.Errorf(muster.Invalid, "%s: %w", file, err)
	}
	if n.Fleet == "" || len(n.Issuers) == 0 {
		return muster.Errorf(muster.Invalid, "%s: fleet and issuers must not be empty", file)
	}
	return validateBus(file, n.Prefix, n.URLs)
}

// A NodeFolder is the folder of a node that has joined.
type NodeFolder struct {
	Node        Node
	Credentials aaa.Secret // .creds text
	CA          []byte     // PEM, nil for none
	Policy      []byte     // written when joining if there is none yet; not read back
	Revoked     []byte     // lists of revoked callers, as RevokedFile has them; like Policy
}

// PolicyFile is the policy in a node's folder.
func PolicyFile(dir string) string { return filepath.Join(dir, "policy.yaml") }

// RevokedFile has the lists of revoked callers in a node's folder.
func RevokedFile(dir string) string { return filepath.Join(dir, "revoked.json") }

// NodeExists reports whether a node has joined with this folder.
func NodeExists(dir string) bool { return exists(filepath.Join(dir, "agent.yaml")) }

// WriteNode writes a node's folder. A policy that is there already stays.
func WriteNode(dir string, n NodeFolder) error {
	if err := n.Node.validate(filepath.Join(dir, "agent.yaml")); err != nil {
		return err
	}
	if err := makeFolder(dir); err != nil {
		return err
	}
	text, err := render("Written when this node joined its fleet.", n.Node.fields())
	if err != nil {
		return err
	}
	if len(n.Policy) > 0 && !exists(PolicyFile(dir)) {
		if err := WriteFile(PolicyFile(dir), n.Policy); err != nil {
			return err
		}
	}
	if len(n.Revoked) > 0 && !exists(RevokedFile(dir)) {
		if err := WriteFile(RevokedFile(dir), n.Revoked); err != nil {
			return err
		}
	}
	if len(n.CA) > 0 {
		if err := WriteFile(filepath.Join(dir, "ca.pem"), n.CA); err != nil {
			return err
		}
	}
	if err := WriteFile(filepath.Join(dir, "node.creds"), n.Credentials.Reveal()); err != nil {
		return err
	}
	return WriteFile(filepath.Join(dir, "agent.yaml"), text) // last: it stands for a complete folder
}

// OpenNode reads a node's folder.
func OpenNode(dir string) (NodeFolder, error) {
	var n NodeFolder
	file := filepath.Join(dir, "agent.yaml")
	text, err := readFile(file)
	if muster.KindOf(err) == muster.NotFound {
		return n, muster.Errorf(muster.NotFound, "no node has joined with the folder %s", dir).
			WithHint("make a token with 'muster node invite NAME' and start the agent with --join - or --join-file")
	}
	if err != nil {
		return n, err
	}
	if err := parse(file, text, n.Node.fields()); err != nil {
		return n, err
	}
	if err := n.Node.validate(file); err != nil {
		return n, err
	}
	creds, err := readFile(filepath.Join(dir, "node.creds"))
	if err != nil {
		return n, err
	}
	n.Credentials = aaa.NewSecret(creds)
	n.CA, err = readOptional(filepath.Join(dir, "ca.pem"))
	return n, err
}

// JoinKey returns the seed of the key that a node is about to join with: the
// one in the file, or a new one that is stored there.
func JoinKey(path string) (aaa.Secret, error) {
	data, err := readOptional(path)
	if err != nil {
		return aaa.Secret{}, err
	}
	if data != nil {
		seed := aaa.NewSecret(data)
		if _, err := aaa.PublicUserKey(seed); err == nil {
			return seed, nil
		}
	}
	seed, _, err := aaa.NewUserKey()
	if err != nil {
		return seed, err
	}
	if err := makeFolder(filepath.Dir(path)); err != nil {
		return seed, err
	}
	return seed, WriteFile(path, seed.Reveal())
}

// RemoveFile removes a file, if it is there.
func RemoveFile(path string) error {
	if err := os.RemoveAll(path); err != nil {
		return fileError(err, "remove", path)
	}
	return nil
}
