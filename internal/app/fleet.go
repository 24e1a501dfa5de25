package app

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/broker"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/enrol"
	"github.com/musterfleet/muster/internal/pki"
)

// OperatorTTL is how long a caller's identity is valid unless told otherwise.
const OperatorTTL = 365 * 24 * time.Hour

// InitOptions say what fleet to make.
type InitOptions struct {
	Dir     string
	Name    string   // for people; default "fleet"
	Hosts   []string // names and addresses of the broker; default 127.0.0.1
	Port    int      // default broker.DefaultPort
	Context string   // of the first operator; default config.DefaultContext
	Caller  string   // name of the first operator; default that of the user
	// Replace allows that a context of this name is there already. Its
	// credentials and identity are lost.
	Replace bool
	// Aside leaves the current context what it is.
	Aside bool
}

// InitResult says what was made.
type InitResult struct {
	Fleet      config.Fleet
	Context    string
	ContextDir string
	Caller     string
}

// Init makes a fleet: its folder with all keys, and a first operator who may
// do everything, as a context that becomes the current one. Hosts that are all
// of this machine alone make a fleet without TLS.
func Init(o InitOptions) (InitResult, error) {
	o.Name = cmp.Or(o.Name, "fleet")
	o.Port = cmp.Or(o.Port, broker.DefaultPort)
	o.Context = cmp.Or(o.Context, config.DefaultContext)
	o.Caller = cmp.Or(o.Caller, os.Getenv("USER"), "admin")
	if len(o.Hosts) == 0 {
		o.Hosts = []string{"127.0.0.1"}
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return InitResult{}, muster.Errorf(muster.Invalid, "the folder %q: %w", o.Dir, err)
	}
	contextDir, err := config.ContextDir(o.Context) // before anything is made
	if err != nil {
		return InitResult{}, err
	}
	// Before the context: whoever makes a fleet a second time has both, and
	// another name for the context would not help.
	if err := config.NoFleet(dir); err != nil {
		return InitResult{}, err
	}
	if c, err := config.ReadContext(contextDir); err == nil && !o.Replace {
		return InitResult{}, muster.Errorf(muster.Conflict, "there is a context %q already, which leads to fleet %s", o.Context, c.Fleet).
			WithHint("name another one with --context")
	}
	if err := createFleet(dir, o); err != nil {
		return InitResult{}, err
	}
	fleet, err := config.OpenFleet(dir)
	if err != nil {
		return InitResult{}, err
	}
	result := InitResult{Fleet: fleet.Fleet, Context: o.Context, ContextDir: contextDir, Caller: o.Caller}
	if err := AddOperator(OperatorOptions{Dir: dir, Name: o.Caller, Groups: []string{"admin"}, Out: contextDir}); err != nil {
		return result, err
	}
	if o.Aside {
		return result, nil
	}
	return result, config.SetCurrent(o.Context)
}

func createFleet(dir string, o InitOptions) error {
	now := time.Now()
	keys, err := aaa.NewFleetKeys()
	if err != nil {
		return err
	}
	issuer, err := aaa.GenerateIssuer()
	if err != nil {
		return err
	}
	ca, err := pki.NewAuthority("muster "+o.Name, now)
	if err != nil {
		return err
	}
	server, err := pki.NewServer(ca, distinct(o.Hosts, local), now)
	if err != nil {
		return err
	}
	scheme := "tls"
	if !slices.ContainsFunc(o.Hosts, func(h string) bool { return !config.Loopback(h) }) {
		scheme = "nats"
	}
	f := config.Fleet{ID: "fleet-" + rand.Text(), Name: o.Name, Prefix: bus.DefaultPrefix, Issuers: []string{issuer.PublicKey()}}
	for _, h := range o.Hosts {
		f.URLs = append(f.URLs, scheme+"://"+net.JoinHostPort(h, strconv.Itoa(o.Port)))
	}
	return config.CreateFleet(config.FleetFolder{Dir: dir, Fleet: f, Keys: keys, CA: ca, Server: server}, issuer)
}

// InviteOptions say who is invited to which fleet.
type InviteOptions struct {
	Dir string // of the fleet
	enrol.Invitation
	Log *slog.Logger
}

// Invite makes a join token, as text. The broker must be running.
func Invite(ctx context.Context, o InviteOptions) (string, error) {
	token, err := invite(ctx, o)
	if err != nil {
		return "", err
	}
	return token.Encode()
}

func invite(ctx context.Context, o InviteOptions) (aaa.Token, error) {
	fleet, err := config.OpenFleet(o.Dir)
	if err != nil {
		return aaa.Token{}, err
	}
	conn, err := dialService(ctx, fleet, bus.Options{URLs: fleet.Fleet.URLs, Name: "invite", CA: fleet.MemberCA(), Log: o.Log})
	if err != nil {
		return aaa.Token{}, err
	}
	defer conn.Close()
	return enrol.Invite(ctx, conn, fleet, o.Invitation, time.Now())
}

// dialService connects with a key and credentials that live for a day.
func dialService(ctx context.Context, fleet config.FleetFolder, o bus.Options) (*bus.Conn, error) {
	now := time.Now()
	creds, err := enrol.NewCreds(fleet.Keys, "muster "+o.Name, bus.OperatorPermissions(fleet.Fleet.Prefix), now.Add(24*time.Hour), now)
	if err != nil {
		return nil, err
	}
	o.Prefix = fleet.Fleet.Prefix
	return dialWith(ctx, creds, o)
}

func dialWith(ctx context.Context, creds aaa.Secret, o bus.Options) (*bus.Conn, error) {
	userJWT, seed, err := config.ParseCreds(creds)
	if err != nil {
		return nil, err
	}
	o.JWT, o.Seed = userJWT, string(seed.Reveal())
	return bus.Dial(ctx, o)
}

// ServerConfig returns the configuration file of a separate nats-server that
// serves the fleet in the folder, instead of 'muster broker'. Beside it runs
// the service (see RunService). It holds no secrets but names of files that
// do.
func ServerConfig(dir string) ([]byte, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, muster.Errorf(muster.Invalid, "the folder %q: %w", dir, err)
	}
	fleet, err := config.OpenFleet(dir)
	if err != nil {
		return nil, err
	}
	auth, err := authOf(fleet)
	if err != nil {
		return nil, err
	}
	host, port, err := listenOn(fleet, "")
	if err != nil {
		return nil, err
	}
	b := fmt.Appendf(nil, "# A nats-server for the fleet %s. Who is removed or revoked later is kept in the folder of the resolver.\n", fleet.Fleet.Name)
	b = fmt.Appendf(b, "server_name: %q\nlisten: %q\nmax_payload: 2MB\nmax_connections: 65536\nping_interval: \"30s\"\nping_max: 2\n\n", "muster-"+fleet.Fleet.ID, net.JoinHostPort(host, strconv.Itoa(port)))
	b = fmt.Appendf(b, "# What is accepted must survive a power cut.\njetstream {\n  store_dir: %q\n  sync_interval: always\n}\n\n", fleet.StoreDir())
	if fleet.Fleet.TLS() {
		b = fmt.Appendf(b, "tls {\n  cert_file: %q\n  key_file: %q\n  timeout: 10\n}\n\n", filepath.Join(dir, "tls", "server.pem"), filepath.Join(dir, "tls", "server.key"))
	}
	b = fmt.Appendf(b, "operator: %s\nsystem_account: %s\n", auth.OperatorJWT, auth.SystemAccount)
	// In memory, an account of which nobody is there would not be kept, and a
	// start would bring back who was removed since the configuration was made.
	b = fmt.Appendf(b, "resolver {\n  type: full\n  dir: %q\n}\nresolver_preload {\n", fleet.AccountsDir())
	for _, key := range slices.Sorted(maps.Keys(auth.Accounts)) {
		b = fmt.Appendf(b, "  %s: %s\n", key, auth.Accounts[key])
	}
	return append(b, "}\n"...), nil
}

// systemCreds lets the service tell the server of a new account JWT.
func systemCreds(fleet config.FleetFolder, subject string) (aaa.Secret, error) {
	now := time.Now()
	seed, public, err := aaa.NewUserKey()
	if err != nil {
		return aaa.Secret{}, err
	}
	p := bus.Permissions{Publish: []string{subject}, Subscribe: []string{"_INBOX.>"}}
	token, err := fleet.Keys.SystemUserJWT(enrol.UserSpec("muster service", public, p, now.Add(time.Hour)), now)
	if err != nil {
		return aaa.Secret{}, err
	}
	return aaa.Creds(token, seed)
}
