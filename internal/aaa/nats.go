package aaa

import (
	"encoding/json"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/musterfleet/muster"
)

// Unlimited is the value of a limit that does not limit.
const Unlimited = jwt.NoLimit

// ResponseTTL is how long after a request a user may respond to it.
const ResponseTTL = 10 * time.Second

// MaxResponses is how many messages a user may be allowed to send in response
// to one request.
const MaxResponses = 1

// FleetKeys are the private keys of a fleet's broker, for the decentralised
// authentication of NATS. They are not the issuer's: what they sign lets
// somebody connect and move messages, never run a command.
type FleetKeys struct {
	Operator Secret // SO..., signs the accounts
	System   Secret // SA..., of the system account
	Account  Secret // SA..., of the main account, in which the fleet lives
	Signing  Secret // SA..., signs the users of the main account
	Nodes    Secret // SA..., of the account in which nodes and newcomers are
}

var _ slog.LogValuer = FleetKeys{}

// LogValue returns REDACTED.
func (FleetKeys) LogValue() slog.Value { return slog.StringValue(redacted) }

// NewFleetKeys makes the keys of a new fleet.
func NewFleetKeys() (FleetKeys, error) {
	var k FleetKeys
	for _, made := range []struct {
		prefix nkeys.PrefixByte
		seed   *Secret
	}{
		{nkeys.PrefixByteOperator, &k.Operator},
		{nkeys.PrefixByteAccount, &k.System},
		{nkeys.PrefixByteAccount, &k.Account},
		{nkeys.PrefixByteAccount, &k.Signing},
		{nkeys.PrefixByteAccount, &k.Nodes},
	} {
		pair, err := newKeyPair(made.prefix)
		if err != nil {
			return FleetKeys{}, err
		}
		*made.seed = pair.seed
	}
	return k, nil
}

// fleetKeysFile is the form in which the keys are stored.
type fleetKeysFile struct {
	Operator string `json:"operator"`
	System   string `json:"system"`
	Account  string `json:"account"`
	Signing  string `json:"signing"`
	Nodes    string `json:"nodes"`
}

var fleetKeysShape = shapeOf[fleetKeysFile]()

// maxFleetKeys is the largest file of keys in bytes; five seeds have 290.
const maxFleetKeys = 4 << 10

// Marshal returns the keys as JSON, in clear: store it with mode 0600.
func (k FleetKeys) Marshal() []byte {
	data, _ := json.MarshalIndent(fleetKeysFile{ // five strings
		Operator: string(k.Operator.Reveal()),
		System:   string(k.System.Reveal()),
		Account:  string(k.Account.Reveal()),
		Signing:  string(k.Signing.Reveal()),
		Nodes:    string(k.Nodes.Reveal()),
	}, "", "  ")
	return append(data, '\n')
}

// ParseFleetKeys reads what Marshal wrote. Errors never quote a seed.
func ParseFleetKeys(data []byte) (FleetKeys, error) {
	if len(data) > maxFleetKeys {
		return FleetKeys{}, muster.Errorf(muster.Invalid, "fleet keys have %d bytes; at most %d are allowed", len(data), maxFleetKeys)
	}
	var f fleetKeysFile
	if err := decodeStrict(data, fleetKeysShape, &f); err != nil {
		return FleetKeys{}, muster.Errorf(muster.Invalid, "fleet keys: %w", err)
	}
	k := FleetKeys{
		Operator: NewSecret([]byte(f.Operator)),
		System:   NewSecret([]byte(f.System)),
		Account:  NewSecret([]byte(f.Account)),
		Signing:  NewSecret([]byte(f.Signing)),
		Nodes:    NewSecret([]byte(f.Nodes)),
	}
	if _, err := k.pairs(); err != nil {
		return FleetKeys{}, muster.Errorf(muster.Invalid, "fleet keys: %w", err)
	}
	return k, nil
}

// FleetPublicKeys are the public halves of FleetKeys, as nkeys.
type FleetPublicKeys struct {
	Operator, System, Account, Signing, Nodes string
}

// PublicKeys returns the public halves. It fails when a seed cannot be read.
func (k FleetKeys) PublicKeys() (FleetPublicKeys, error) {
	p, err := k.pairs()
	if err != nil {
		return FleetPublicKeys{}, err
	}
	return FleetPublicKeys{p.operator.public, p.system.public, p.account.public, p.signing.public, p.nodes.public}, nil
}

type fleetPairs struct{ operator, system, account, signing, nodes keyPair }

func (k FleetKeys) pairs() (fleetPairs, error) {
	var p fleetPairs
	for _, read := range []struct {
		name   string
		prefix nkeys.PrefixByte
		seed   Secret
		pair   *keyPair
	}{
		{"operator", nkeys.PrefixByteOperator, k.Operator, &p.operator},
		{"system account", nkeys.PrefixByteAccount, k.System, &p.system},
		{"account", nkeys.PrefixByteAccount, k.Account, &p.account},
		{"signing key", nkeys.PrefixByteAccount, k.Signing, &p.signing},
		{"nodes' account", nkeys.PrefixByteAccount, k.Nodes, &p.nodes},
	} {
		pair, err := parseSeed(read.prefix, read.seed)
		if err != nil {
			return fleetPairs{}, muster.Errorf(muster.Invalid, "%s: %w", read.name, err)
		}
		*read.pair = pair
	}
	return p, nil
}

// OperatorJWT returns the JWT of the operator, which names the system account.
// A broker trusts what descends from it.
func (k FleetKeys) OperatorJWT(name string, now time.Time) (string, error) {
	p, err := k.pairs()
	if err != nil {
		return "", err
	}
	if err := checkName("operator name", name, MaxName); err != nil {
		return "", err
	}
	c := jwt.NewOperatorClaims(p.operator.public)
	c.Name = name
	c.SystemAccount = p.system.public
	c.Type, c.Version = jwt.OperatorClaim, jwtVersion
	return signJWT(c, &c.ClaimsData, p.operator, now)
}

// SystemAccountJWT returns the JWT of the broker's system account, which is
// called SYS and has no JetStream. Its users are signed by the System key.
func (k FleetKeys) SystemAccountJWT(now time.Time) (string, error) {
	p, err := k.pairs()
	if err != nil {
		return "", err
	}
	c := jwt.NewAccountClaims(p.system.public)
	c.Name = "SYS"
	c.Limits.DisallowBearer = true
	c.Type, c.Version = jwt.AccountClaim, jwtVersion
	return signJWT(c, &c.ClaimsData, p.operator, now)
}

// AccountLimits bound the main account. Unlimited (-1) is no limit, 0 is none
// of it.
type AccountLimits struct {
	Connections int64 // clients at a time
	LeafNodes   int64 // at a time
	Payload     int64 // bytes of one message
	Disk        int64 // bytes of JetStream on disk
	Memory      int64 // bytes of JetStream in memory
	Streams     int64
	Consumers   int64
}

// NoLimits returns limits that do not limit: what one broker for one fleet
// wants.
func NoLimits() AccountLimits {
	return AccountLimits{Unlimited, Unlimited, Unlimited, Unlimited, Unlimited, Unlimited, Unlimited}
}

// A Share is a subject of the main account that nodes may use, as far as each
// node's own permissions go.
type Share struct {
	Subject string
	Local   string // the subject in the nodes' account; empty for the same
	ToNodes bool   // messages flow to the nodes; otherwise requests come from them
	Many    bool   // a request has any number of answers instead of one
}

// An AccountSpec describes the main account, or that of the nodes.
type AccountSpec struct {
	Name   string
	Limits AccountLimits // of the main account
	Shares []Share
	// Revocations are users by public key (U...). Each JWT that was issued to
	// the key at that time or before, in whole seconds, is worth nothing any
	// more. The key "*" means every user.
	Revocations map[string]time.Time
}

// AccountJWT returns the JWT of the main account, signed by the operator. It
// names the signing key, and forbids JWTs that are enough without their key.
func (k FleetKeys) AccountJWT(spec AccountSpec, now time.Time) (string, error) {
	p, err := k.pairs()
	if err != nil {
		return "", err
	}
	if err := checkName("account name", spec.Name, MaxName); err != nil {
		return "", err
	}
	c := jwt.NewAccountClaims(p.account.public)
	c.Name = spec.Name
	c.SigningKeys.Add(p.signing.public)
	l := spec.Limits
	c.Limits.Conn, c.Limits.LeafNodeConn, c.Limits.Payload = l.Connections, l.LeafNodes, l.Payload
	c.Limits.JetStreamLimits = jwt.JetStreamLimits{
		DiskStorage: l.Disk, MemoryStorage: l.Memory, Streams: l.Streams, Consumer: l.Consumers,
	}
	for _, s := range spec.Shares {
		e := &jwt.Export{Name: s.Subject, Subject: jwt.Subject(s.Subject), Type: s.kind()}
		if s.Many {
			e.ResponseType = jwt.ResponseTypeStream
		}
		c.Exports.Add(e)
	}
	return finishAccount(c, spec, p, now)
}

// NodesAccountJWT returns the JWT of the account of nodes and newcomers, signed
// by the operator. Of the main account it has what is shared, and nothing else:
// no JetStream of its own, whose server answers requests on whatever subject
// they name, even on one that makes the server delete a stream.
func (k FleetKeys) NodesAccountJWT(spec AccountSpec, now time.Time) (string, error) {
	p, err := k.pairs()
	if err != nil {
		return "", err
	}
	if err := checkName("account name", spec.Name, MaxName); err != nil {
		return "", err
	}
	c := jwt.NewAccountClaims(p.nodes.public)
	c.Name = spec.Name
	c.Limits.LeafNodeConn = 0
	for _, s := range spec.Shares {
		c.Imports.Add(&jwt.Import{
			Name: s.Subject, Subject: jwt.Subject(s.Subject), LocalSubject: jwt.RenamingSubject(s.Local),
			Account: p.account.public, Type: s.kind(),
		})
	}
	return finishAccount(c, spec, p, now)
}

func (s Share) kind() jwt.ExportType {
	if s.ToNodes {
		return jwt.Stream
	}
	return jwt.Service
}

// finishAccount adds what both accounts have in common, and signs.
func finishAccount(c *jwt.AccountClaims, spec AccountSpec, p fleetPairs, now time.Time) (string, error) {
	c.Limits.DisallowBearer = true
	for user, at := range spec.Revocations {
		if _, err := parsePublic(nkeys.PrefixByteUser, user); err != nil && user != jwt.All {
			return "", muster.Errorf(muster.Invalid, "revocation: %w", err)
		}
		c.RevokeAt(user, at)
	}
	c.Type, c.Version = jwt.AccountClaim, jwtVersion
	if err := checkClaims(func(r *jwt.ValidationResults) { c.Account.Validate(c, r) }); err != nil {
		return "", err
	}
	return signJWT(c, &c.ClaimsData, p.operator, now)
}

// A UserSpec describes who may connect to the broker, and what for.
type UserSpec struct {
	Name      string
	PublicKey string // nkey (U...), whose seed the user keeps
	// PubAllow and SubAllow are the subjects that the user may publish and
	// subscribe to. An empty list allows nothing; ">" allows everything. A
	// subscription may be limited to a queue group as "subject group".
	PubAllow, SubAllow []string
	// AllowResponses is how many messages the user may send to the reply subject
	// of a request that it received, each within ResponseTTL: 0 to MaxResponses.
	AllowResponses int
	Expires        time.Time // zero is never
	Tags           []string
}

// UserJWT returns the JWT of a user of the main account, signed by the signing
// key. The user proves with the seed of its key that it is meant.
func (k FleetKeys) UserJWT(spec UserSpec, now time.Time) (string, error) {
	return k.user(spec, now, func(p fleetPairs) (keyPair, string) { return p.signing, p.account.public })
}

// NodeUserJWT returns the JWT of a node or a newcomer.
func (k FleetKeys) NodeUserJWT(spec UserSpec, now time.Time) (string, error) {
	return k.user(spec, now, func(p fleetPairs) (keyPair, string) { return p.nodes, "" })
}

// SystemUserJWT returns the JWT of a user of the system account: for the
// broker's own administration, such as telling it of a new account JWT.
func (k FleetKeys) SystemUserJWT(spec UserSpec, now time.Time) (string, error) {
	return k.user(spec, now, func(p fleetPairs) (keyPair, string) { return p.system, "" })
}

// user signs a user's JWT. signer returns the key that does, and the account's
// key where that is another one.
func (k FleetKeys) user(spec UserSpec, now time.Time, signer func(fleetPairs) (keyPair, string)) (string, error) {
	p, err := k.pairs()
	if err != nil {
		return "", err
	}
	c, err := userClaims(spec, now)
	if err != nil {
		return "", err
	}
	key, account := signer(p)
	c.IssuerAccount = account
	return signJWT(c, &c.ClaimsData, key, now)
}

func userClaims(spec UserSpec, now time.Time) (*jwt.UserClaims, error) {
	if err := checkName("user name", spec.Name, MaxName); err != nil {
		return nil, err
	}
	if _, err := parsePublic(nkeys.PrefixByteUser, spec.PublicKey); err != nil {
		return nil, err
	}
	if spec.AllowResponses < 0 || spec.AllowResponses > MaxResponses {
		return nil, muster.Errorf(muster.Invalid, "user %q may not be allowed %d responses; expected 0 to %d", spec.Name, spec.AllowResponses, MaxResponses)
	}
	c := jwt.NewUserClaims(spec.PublicKey)
	c.Name = spec.Name
	c.Type, c.Version = jwt.UserClaim, jwtVersion
	c.Tags.Add(spec.Tags...)
	if !spec.Expires.IsZero() {
		if !spec.Expires.After(now) {
			return nil, muster.Errorf(muster.Invalid, "expiry %s of user %q is not after now", spec.Expires.Format(time.RFC3339), spec.Name)
		}
		c.Expires = spec.Expires.Unix()
	}
	c.Pub, c.Sub = permission(spec.PubAllow), permission(spec.SubAllow)
	if spec.AllowResponses > 0 {
		c.Resp = &jwt.ResponsePermission{MaxMsgs: spec.AllowResponses, Expires: ResponseTTL}
	}
	if err := checkSubjects(spec); err != nil {
		return nil, err
	}
	return c, checkClaims(func(r *jwt.ValidationResults) { c.User.Validate(r) })
}

// permission allows the subjects and nothing else. To NATS an empty list means
// everything, which is never what an empty list was meant to say.
func permission(allow []string) jwt.Permission {
	if len(allow) == 0 {
		return jwt.Permission{Deny: jwt.StringList{">"}}
	}
	return jwt.Permission{Allow: allow}
}

// checkSubjects refuses what the library lets pass: empty subjects and
// characters that no subject has.
func checkSubjects(spec UserSpec) error {
	for _, list := range [][]string{spec.PubAllow, spec.SubAllow} {
		for _, subject := range list {
			if subject == "" || strings.ContainsAny(subject, "\t\r\n\x00") {
				return muster.Errorf(muster.Invalid, "user %q: %q is not a subject", spec.Name, clip(subject, 80))
			}
		}
	}
	return nil
}

// checkClaims runs a validation of the library, but not the one of its
// ClaimsData, which reads the clock.
func checkClaims(validate func(*jwt.ValidationResults)) error {
	results := jwt.CreateValidationResults()
	validate(results)
	for _, issue := range results.Issues {
		if issue.Blocking {
			return muster.Errorf(muster.Invalid, "credentials: %s", issue.Description)
		}
	}
	return nil
}

// MaxCreds is the largest .creds text in bytes.
const MaxCreds = 64 << 10

// Creds returns a user's JWT and seed in the usual .creds format. It contains
// the seed. It fails when the two do not belong together.
func Creds(userJWT string, seed Secret) (Secret, error) {
	if _, err := parseSeed(nkeys.PrefixByteUser, seed); err != nil {
		return Secret{}, err
	}
	text, err := jwt.FormatUserConfig(userJWT, seed.Reveal())
	if err != nil {
		return Secret{}, muster.Errorf(muster.Invalid, "credentials: %w", err)
	}
	return NewSecret(text), nil
}
