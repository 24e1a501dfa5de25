package config

import (
	"encoding/json"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/pki"
)

// A Fleet is what fleet.yaml says: how members find and trust the fleet.
type Fleet struct {
	ID      string // unique in the world
	Name    string // for people
	Prefix  string // of subjects
	URLs    []string
	Issuers []string // public nkeys that nodes trust
}

func (f *Fleet) fields() []field {
	return []field{
		{key: "id", text: &f.ID}, {key: "name", text: &f.Name}, {key: "prefix", text: &f.Prefix},
		{key: "urls", list: &f.URLs}, {key: "issuers", list: &f.Issuers},
	}
}

func (f Fleet) validate(file string) error {
	if f.ID == "" || len(f.Issuers) == 0 {
		return muster.Errorf(muster.Invalid, "%s: id and issuers must not be empty", file)
	}
	return validateBus(file, f.Prefix, f.URLs)
}

// TLS reports whether members reach the broker by TLS. Only a broker that is
// reached over loopback alone does without.
func (f Fleet) TLS() bool {
	return slices.ContainsFunc(f.URLs, func(u string) bool { return strings.HasPrefix(u, "tls://") || strings.HasPrefix(u, "wss://") })
}

func validateBus(file, prefix string, urls []string) error {
	if prefix == "" || strings.ContainsAny(prefix, " \t\r\n*>$") || slices.Contains(strings.Split(prefix, "."), "") {
		return muster.Errorf(muster.Invalid, "%s: prefix %.80q cannot begin subjects; expected words of letters and digits with dots between them", file, prefix)
	}
	if len(urls) == 0 {
		return muster.Errorf(muster.Invalid, "%s: urls is empty; expected at least one, such as tls://broker.example.org:4222", file)
	}
	for _, u := range urls {
		if err := ValidateURL(u); err != nil {
			return muster.Errorf(muster.Invalid, "%s: %w", file, err)
		}
	}
	return nil
}

// ValidateURL checks the address of a broker.
func ValidateURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) || u.Hostname() == "" || u.User != nil {
		return muster.Errorf(muster.Invalid, "broker address %.200q cannot be used; expected nats://HOST:PORT, tls://, ws:// or wss://, without a password", text)
	}
	return nil
}

// ValidateHost checks the name or IP address of a machine, without a port.
func ValidateHost(host string) error {
	if net.ParseIP(host) != nil || len(host) <= maxHost && hostName.MatchString(host) {
		return nil
	}
	return muster.Errorf(muster.Invalid, "%.80q is neither a host name nor an IP address", host)
}

const maxHost = 253 // characters, of DNS

// Underscores are no part of names by the book, but are in use.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?$`)

// Loopback reports whether a host is this machine and no other can reach it.
func Loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// A FleetFolder is the folder of a fleet, where its broker runs: whoever can
// read it is master of the fleet.
type FleetFolder struct {
	Dir   string
	Fleet Fleet
	Keys  aaa.FleetKeys
	// CA is the broker's authority. Server is the certificate that it shows.
	CA, Server pki.Pair
}

func (f FleetFolder) path(name string) string { return filepath.Join(f.Dir, filepath.FromSlash(name)) }

// StoreDir is where the embedded broker keeps JetStream's files.
func (f FleetFolder) StoreDir() string { return f.path("jetstream") }

// AccountsDir is where a server of one's own keeps the JWTs of accounts.
func (f FleetFolder) AccountsDir() string { return f.path("accounts") }

// FleetExists reports whether there is a fleet in the folder.
func FleetExists(dir string) bool { return exists(filepath.Join(dir, "fleet.yaml")) }

// NoFleet returns an error of the kind [muster.Conflict] if a fleet, or a part
// of one, is in the folder.
func NoFleet(dir string) error {
	switch {
	case FleetExists(dir):
		return muster.Errorf(muster.Conflict, "there is a fleet in %s already", dir).
			WithHint("'muster broker' runs it, 'muster context make' makes contexts for it; another fleet needs another folder (--state) and another context (--context)")
	case exists(filepath.Join(dir, "keys.json")): // a crash left it
		return muster.Errorf(muster.Conflict, "there is a fleet in %s that was not completed", dir).
			WithHint("choose another folder with --state, or remove this one")
	}
	return nil
}

// CreateFleet writes a new fleet's folder. It never overwrites one.
func CreateFleet(f FleetFolder, issuer *aaa.Issuer) error {
	if err := f.Fleet.validate(f.path("fleet.yaml")); err != nil {
		return err
	}
	if err := NoFleet(f.Dir); err != nil {
		return err
	}
	for _, d := range []string{f.Dir, f.path("tls"), f.StoreDir()} {
		if err := makeFolder(d); err != nil {
			return err
		}
	}
	text, err := render("The fleet; see 'muster init'. Members keep a copy of what is here.", f.Fleet.fields())
	if err != nil {
		return err
	}
	callers, err := json.Marshal(Callers{Issued: []CallerRecord{}})
	if err != nil {
		return muster.Errorf(muster.Internal, "write the callers: %w", err)
	}
	// fleet.yaml is last: it stands for a complete folder.
	for _, file := range []struct {
		name string
		data []byte
	}{
		{"keys.json", f.Keys.Marshal()}, {"issuer.seed", issuer.Seed().Reveal()},
		{"tls/ca.pem", f.CA.Certificate}, {"tls/ca.key", f.CA.Key},
		{"tls/server.pem", f.Server.Certificate}, {"tls/server.key", f.Server.Key},
		{"callers.json", append(callers, '\n')}, {"fleet.yaml", text},
	} {
		if err := createFile(f.path(file.name), file.data); err != nil {
			return err
		}
	}
	return syncFolder(f.Dir)
}

// OpenFleet reads a fleet's folder, but for the issuer's seed.
func OpenFleet(dir string) (FleetFolder, error) {
	f := FleetFolder{Dir: dir}
	text, err := readFile(f.path("fleet.yaml"))
	if muster.KindOf(err) == muster.NotFound {
		return f, muster.Errorf(muster.NotFound, "there is no fleet in %s", dir).
			WithHint("make one with 'muster init', or name the folder of yours with --state")
	}
	if err != nil {
		return f, err
	}
	if err := parse(f.path("fleet.yaml"), text, f.Fleet.fields()); err != nil {
		return f, err
	}
	if err := f.Fleet.validate(f.path("fleet.yaml")); err != nil {
		return f, err
	}
	keys, err := readFile(f.path("keys.json"))
	if err != nil {
		return f, err
	}
	if f.Keys, err = aaa.ParseFleetKeys(keys); err != nil {
		return f, muster.Errorf(muster.Corrupt, "%s: %w", f.path("keys.json"), err)
	}
	for name, to := range map[string]*[]byte{
		"tls/ca.pem": &f.CA.Certificate, "tls/ca.key": &f.CA.Key,
		"tls/server.pem": &f.Server.Certificate, "tls/server.key": &f.Server.Key,
	} {
		if *to, err = readFile(f.path(name)); err != nil {
			return f, err
		}
	}
	return f, nil
}

// MemberCA is the authority that members pin, nil when there is no TLS.
func (f FleetFolder) MemberCA() []byte {
	if !f.Fleet.TLS() {
		return nil
	}
	return f.CA.Certificate
}

// Issuer reads the key that makes callers.
func (f FleetFolder) Issuer() (*aaa.Issuer, error) {
	seed, err := readFile(f.path("issuer.seed"))
	if err != nil {
		return nil, err
	}
	return aaa.NewIssuer(aaa.NewSecret([]byte(strings.TrimSpace(string(seed)))))
}

// RenewServer replaces the certificate that the broker shows.
func (f FleetFolder) RenewServer(p pki.Pair) error {
	if err := WriteFile(f.path("tls/server.key"), p.Key); err != nil {
		return err
	}
	return WriteFile(f.path("tls/server.pem"), p.Certificate)
}

// Revocations reads which users' credentials are worth nothing any more.
func (f FleetFolder) Revocations() (map[string]time.Time, error) {
	all := map[string]time.Time{}
	data, err := readOptional(f.path("revoked.json"))
	if err != nil || data == nil {
		return all, err
	}
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, muster.Errorf(muster.Corrupt, "%s cannot be read: %w", f.path("revoked.json"), err).
			WithHint("restore it from a backup: without it, removed nodes could come back")
	}
	return all, nil
}

// Revoke adds a user to the revoked ones. One process at a time may do so.
func (f FleetFolder) Revoke(publicKey string, now time.Time) error {
	all, err := f.Revocations()
	if err != nil {
		return err
	}
	all[publicKey] = now.UTC().Truncate(time.Second)
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(f.path("revoked.json"), append(data, '\n'))
}

// A Member is a node that has joined.
type Member struct {
	PublicKey string    `json:"public_key"` // of its credentials
	Joined    time.Time `json:"joined"`
	// Removal is a sequence of the fleet's records: only an order to remove the
	// node that comes later is meant for this member.
	Removal uint64 `json:"removal"`
}

// Members reads which nodes have joined, and with which key. It is kept here
// and not on the bus, because what a node could write there must not protect
// its key from being revoked.
func (f FleetFolder) Members() (map[string]Member, error) {
	all := map[string]Member{}
	data, err := readOptional(f.path("members.json"))
	if err != nil || data == nil {
		return all, err
	}
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, muster.Errorf(muster.Corrupt, "%s cannot be read: %w", f.path("members.json"), err).
			WithHint("restore it from a backup: without it, nodes cannot be removed")
	}
	return all, nil
}

// SetMember records a node that joins. One process at a time may do so.
func (f FleetFolder) SetMember(node string, m Member) error {
	all, err := f.Members()
	if err != nil {
		return err
	}
	all[node] = m
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(f.path("members.json"), append(data, '\n'))
}

// Lock makes sure that one process at a time serves the folder. Unlock ends
// it, as does the end of the process.
func (f FleetFolder) Lock(purpose string) (unlock func(), err error) {
	return LockFile(f.path(purpose + ".lock"))
}

// LockFile takes a lock that ends with unlock or with the process.
func LockFile(path string) (unlock func(), err error) {
	if err := makeFolder(filepath.Dir(path)); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|noFollow, fileMode)
	if err != nil {
		return nil, fileError(err, "lock", path)
	}
	if err := keepOwner(file, filepath.Dir(path)); err != nil {
		_ = file.Close() // nothing was written
		return nil, fileError(err, "lock", path)
	}
	if err := lock(file); err != nil {
		_ = file.Close() // nothing was written
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fileError(err, "lock", path)
		}
		return nil, muster.Errorf(muster.Conflict, "another muster uses %s", filepath.Dir(path)).
			WithHint("stop it first, or choose another folder")
	}
	return func() { _ = file.Close() }, nil // closing releases the lock
}
