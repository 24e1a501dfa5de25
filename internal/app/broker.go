package app

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/broker"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/enrol"
)

// BrokerOptions configure the embedded broker.
type BrokerOptions struct {
	Dir    string // of the fleet
	Listen string // HOST:PORT; empty for what the fleet's URLs say; port 0 for any free one
	Log    *slog.Logger
}

// BrokerInfo says where the broker is.
type BrokerInfo struct{ URL string }

// RunBroker runs the broker of a fleet, with JetStream and the service that
// admits nodes, until ctx ends. It calls ready when nodes and callers can
// come.
func RunBroker(ctx context.Context, o BrokerOptions, ready func(BrokerInfo)) error {
	o.Log = orDiscard(o.Log)
	fleet, err := config.OpenFleet(o.Dir)
	if err != nil {
		return err
	}
	unlock, err := fleet.Lock("broker")
	if err != nil {
		return err
	}
	defer unlock()
	known := stampOf(fleet.RevokedCallersFile()) // of what the accounts are made with
	options, err := brokerOptions(fleet, o)
	if err != nil {
		return err
	}
	b, err := broker.Start(ctx, options)
	if err != nil {
		return err
	}
	defer b.Stop()
	at := bus.Options{Name: "service", InProcess: b, Log: o.Log}
	s := session{
		fleet: fleet, log: o.Log, at: at, known: known, ready: func() { ready(brokerInfo(fleet, options, b)) },
		dial:   func(ctx context.Context) (*bus.Conn, error) { return dialService(ctx, fleet, at) },
		update: func(_ context.Context, a enrol.Account) error { return b.UpdateAccount(a.Key, a.JWT) },
	}
	return s.run(ctx)
}

func brokerInfo(fleet config.FleetFolder, o broker.Options, b *broker.Broker) BrokerInfo {
	scheme, host := "nats", o.Host
	if fleet.Fleet.TLS() {
		scheme = "tls"
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if u, err := url.Parse(fleet.Fleet.URLs[0]); err == nil {
			host = u.Hostname() // by which members come
		}
	}
	return BrokerInfo{scheme + "://" + net.JoinHostPort(host, strconv.Itoa(b.Port()))}
}

func brokerOptions(fleet config.FleetFolder, o BrokerOptions) (broker.Options, error) {
	host, port, err := listenOn(fleet, o.Listen)
	if err != nil {
		return broker.Options{}, err
	}
	auth, err := authOf(fleet)
	if err != nil {
		return broker.Options{}, err
	}
	if port == 0 {
		port = -1
	}
	options := broker.Options{
		Name: "muster-" + fleet.Fleet.ID, Host: host, Port: port, StoreDir: fleet.StoreDir(), Auth: &auth, Log: o.Log,
	}
	if fleet.Fleet.TLS() {
		certificate, err := openCertificate(fleet, o.Log)
		if err != nil {
			return options, err
		}
		options.TLS = &tls.Config{GetCertificate: certificate.get, MinVersion: tls.VersionTLS13}
	}
	return options, nil
}

// listenOn says where the broker listens. Without TLS that is loopback alone.
func listenOn(fleet config.FleetFolder, listen string) (host string, port int, err error) {
	if listen == "" {
		u, err := url.Parse(fleet.Fleet.URLs[0])
		if err != nil {
			return "", 0, muster.Errorf(muster.Invalid, "broker address %q: %w", fleet.Fleet.URLs[0], err)
		}
		host = "0.0.0.0"
		if !fleet.Fleet.TLS() {
			host = "127.0.0.1"
		}
		listen = net.JoinHostPort(host, portOf(u))
	}
	host, text, err := net.SplitHostPort(listen)
	if err == nil {
		port, err = strconv.Atoi(text)
	}
	if err != nil || port < 0 || port > 65535 {
		return "", 0, muster.Errorf(muster.Invalid, "cannot listen on %q; expected HOST:PORT", listen)
	}
	if host == "" {
		host = "0.0.0.0"
	}
	if !fleet.Fleet.TLS() && !config.Loopback(host) {
		return "", 0, muster.Errorf(muster.Invalid, "the fleet %s was made for this machine alone, without TLS; it cannot listen on %s", fleet.Fleet.Name, listen).
			WithHint("make a fleet with the broker's host name: 'muster init --host NAME'")
	}
	return host, port, nil
}

func portOf(u *url.URL) string {
	if u.Port() == "" {
		return strconv.Itoa(broker.DefaultPort)
	}
	return u.Port()
}

func authOf(fleet config.FleetFolder) (broker.Auth, error) {
	now := time.Now()
	operator, err := fleet.Keys.OperatorJWT(fleet.Fleet.Name, now)
	if err != nil {
		return broker.Auth{}, err
	}
	system, err := fleet.Keys.SystemAccountJWT(now)
	if err != nil {
		return broker.Auth{}, err
	}
	public, err := fleet.Keys.PublicKeys()
	if err != nil {
		return broker.Auth{}, err
	}
	main, nodes, err := enrol.Accounts(fleet, now)
	if err != nil {
		return broker.Auth{}, err
	}
	return broker.Auth{
		OperatorJWT: operator, SystemAccount: public.System,
		Accounts: map[string]string{public.System: system, main.Key: main.JWT, nodes.Key: nodes.JWT},
	}, nil
}

// ServiceOptions configure the service beside a separate NATS server.
type ServiceOptions struct {
	Dir       string // of the fleet
	BrokerURL string // empty for what the fleet says
	CredsFile string // empty for credentials made with the fleet's keys
	Replicas  int    // of what the server stores, for a cluster; 0 for what the layout has, 1 at first
	Log       *slog.Logger
}

// RunService does what RunBroker does but for the broker, which is a NATS
// server of its own (see ServerConfig), until ctx ends. While the server is
// away it waits for it.
func RunService(ctx context.Context, o ServiceOptions, ready func()) error {
	o.Log = orDiscard(o.Log)
	fleet, err := config.OpenFleet(o.Dir)
	if err != nil {
		return err
	}
	unlock, err := fleet.Lock("broker")
	if err != nil {
		return err
	}
	defer unlock()
	at := bus.Options{URLs: fleet.Fleet.URLs, Name: "service", CA: fleet.MemberCA(), Prefix: fleet.Fleet.Prefix, Log: o.Log}
	if o.BrokerURL != "" {
		at.URLs = []string{o.BrokerURL}
	}
	update := func(ctx context.Context, a enrol.Account) error {
		err := pushAccount(ctx, fleet, at, a)
		if err != nil && o.CredsFile != "" && !errors.Is(err, errAway) {
			o.Log.Warn("the server does not take this fleet's accounts: revoke there by hand who is to be kept out, with 'nsc revocations add-user' or what the server has",
				"component", "app", "err", err)
			return nil
		}
		return err
	}
	s := session{
		fleet: fleet, log: o.Log, at: at, ready: ready, update: update, patient: true, replicas: o.Replicas,
		// The server's configuration may be older than the last removal.
		prepare: func(ctx context.Context) error { return pushAccounts(ctx, fleet, update) },
		dial:    func(ctx context.Context) (*bus.Conn, error) { return dialAs(ctx, fleet, o.CredsFile, at) },
	}
	return s.run(ctx)
}

// pushAccounts has the server know who was removed and revoked.
func pushAccounts(ctx context.Context, fleet config.FleetFolder, update func(context.Context, enrol.Account) error) error {
	main, nodes, err := enrol.Accounts(fleet, time.Now())
	if err != nil {
		return err
	}
	if err := update(ctx, nodes); err != nil {
		return err
	}
	if _, any, err := fleet.RevokedCallers(); err != nil || !any {
		return err
	}
	return update(ctx, main)
}

// errAway is in the chain of an error when the server does not answer: whose
// accounts it has is not known then.
var errAway = errors.New("the server is away")

// pushAccount gives the server a new JWT of the account, as a user of its
// system account.
func pushAccount(ctx context.Context, fleet config.FleetFolder, at bus.Options, a enrol.Account) error {
	subject := "$SYS.REQ.ACCOUNT." + a.Key + ".CLAIMS.UPDATE"
	creds, err := systemCreds(fleet, subject)
	if err != nil {
		return err
	}
	conn, err := dialWith(ctx, creds, at)
	if muster.KindOf(err) == muster.Unavailable {
		return muster.Errorf(muster.Unavailable, "%w: %w", errAway, err)
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	answer, err := conn.Ask(ctx, subject, []byte(a.JWT))
	if err != nil {
		return err
	}
	kept, err := accountTaken(answer)
	if err == nil && !kept {
		at.Log.Warn("the server does not keep accounts that nobody uses at the moment: who was removed or revoked since its configuration was made can come back when it starts; make that anew with 'muster broker config'",
			"component", "app", "account", a.Key)
	}
	return err
}

// accountTaken reads the server's answer to a JWT of an account: whether it keeps
// it, or why it does not take it. One that has accounts in memory alone skips
// those of which nobody is there.
func accountTaken(answer []byte) (kept bool, err error) {
	var r struct {
		Data  *struct{ Message string }
		Error *struct{ Description string }
	}
	switch err := json.Unmarshal(answer, &r); {
	case err != nil || r.Data == nil && r.Error == nil:
		return false, muster.Errorf(muster.Unavailable, "the server's answer to a JWT of an account cannot be read: %.100q", answer)
	case r.Error != nil:
		return false, muster.Errorf(muster.Unavailable, "the server does not take a JWT of an account: %s", r.Error.Description)
	}
	return !strings.Contains(r.Data.Message, "skipped"), nil
}

// A session is the service's work on one connection after another.
type session struct {
	fleet   config.FleetFolder
	log     *slog.Logger
	at      bus.Options                 // where the broker is
	prepare func(context.Context) error // nil, or called before the session's connection is made
	dial    func(context.Context) (*bus.Conn, error)
	update  func(context.Context, enrol.Account) error
	ready   func()
	patient bool  // the first connection may fail, too
	known   stamp // of the list of revoked callers that the broker keeps out

	replicas int // of the layout; 0 for what it has
}

// run works until ctx ends, or what is wrong cannot get better by itself.
func (s *session) run(ctx context.Context) error {
	was := false
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		began := time.Now()
		err := s.once(ctx, func() {
			if !was && s.ready != nil {
				s.ready()
			}
			was = true
		})
		if ctx.Err() != nil {
			return nil
		}
		switch muster.KindOf(err) {
		case muster.Conflict, muster.Unsupported, muster.Invalid, muster.Corrupt:
			return err
		}
		if !was && !s.patient {
			return err
		}
		if time.Since(began) > time.Minute {
			wait = 100 * time.Millisecond
		}
		s.log.Warn("the service's connection to the broker ended; it tries again", "component", "app", "err", err, "in", wait)
		if !pause(ctx, wait) {
			return nil
		}
	}
}

func (s *session) once(ctx context.Context, ready func()) error {
	if s.prepare != nil {
		known := stampOf(s.fleet.RevokedCallersFile())
		if err := s.prepare(ctx); err != nil {
			return err
		}
		s.known = known
	}
	conn, err := s.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := s.begin(ctx, conn); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { s.lookAtDisks(ctx, conn); s.tidy(ctx) }) // newcomers need not wait for it
	wg.Go(func() { s.watchRevoked(ctx) })
	defer wg.Wait()
	defer cancel()
	meeting := newMeeting(time.Now(), s.log)
	stop, err := meeting.serve(conn)
	if err != nil {
		return err
	}
	defer stop()
	service := enrol.Service{Fleet: s.fleet, UpdateAccount: s.update, Log: s.log, Ready: ready, Removed: meeting.forget}
	err = service.Serve(ctx, conn)
	if err == nil || errors.Is(err, context.Canceled) {
		err = muster.Errorf(muster.Unavailable, "the connection ended")
	}
	return err
}

// begin brings the layout up to date, with the list of revoked callers. Who was
// revoked while there was no session is cut off before nodes are told.
func (s *session) begin(ctx context.Context, conn *bus.Conn) error {
	if err := s.setup(ctx, conn); err != nil {
		return err
	}
	if now := stampOf(s.fleet.RevokedCallersFile()); now != s.known {
		if err := s.cutOff(ctx); err != nil {
			return err
		}
		s.known = now
	}
	return s.publishRevoked(ctx, conn)
}

// setup brings the layout up to date, alone.
func (s *session) setup(ctx context.Context, conn *bus.Conn) error {
	return s.alone(ctx, func(ctx context.Context) error {
		return conn.Setup(ctx, bus.LayoutOptions{Fleet: s.fleet.Fleet.ID, Replicas: s.replicas})
	})
}

// alone does something that changes the layout, while nobody else does.
func (s *session) alone(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	unlock, err := lockPatiently(ctx, s.fleet, layoutLock)
	if err != nil {
		return err
	}
	defer unlock()
	return do(ctx)
}

// lockPatiently waits for whoever has the lock.
func lockPatiently(ctx context.Context, fleet config.FleetFolder, purpose string) (unlock func(), err error) {
	unlock, err = fleet.Lock(purpose)
	for ; muster.KindOf(err) == muster.Conflict && pause(ctx, 100*time.Millisecond); unlock, err = fleet.Lock(purpose) {
	}
	if muster.KindOf(err) == muster.Conflict {
		return nil, muster.Errorf(muster.Unavailable, "somebody else works on the fleet: %w", err)
	}
	return unlock, err
}

// tidyEvery is how often older command streams are looked at, and whether the
// broker's servers sync what they store.
const tidyEvery = time.Hour

// tidy removes older command streams that have been emptied, and looks at the
// servers again: those of a cluster are started anew one by one.
func (s *session) tidy(ctx context.Context) {
	for pause(ctx, tidyEvery) {
		conn, err := s.dial(ctx)
		if err != nil {
			continue // whatever is wrong, the session itself says so
		}
		if settings, err := conn.Load(ctx); err == nil && len(settings.Older) > 0 {
			if err := s.setup(ctx, conn); err != nil {
				s.log.Warn("older command streams were not looked at", "component", "app", "err", err)
			}
		}
		s.lookAtDisks(ctx, conn)
		conn.Close()
	}
}

// pause waits, and reports false when ctx ended.
func pause(ctx context.Context, d time.Duration) bool { return pauseOr(ctx, d, nil) }

// pauseOr is a pause that ends sooner if there is news.
func pauseOr(ctx context.Context, d time.Duration, news <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-news:
		return true
	case <-ctx.Done():
		return false
	}
}

func orDiscard(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}
