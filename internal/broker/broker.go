// Package broker runs a NATS server with JetStream inside this process. It
// alone imports nats-server.
//
// Every accepted message is synced to disk before its receipt is sent: what
// muster calls accepted survives a power cut.
package broker

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"

	"github.com/musterfleet/muster"
)

// Auth makes a broker admit only users that the fleet's accounts have signed.
type Auth struct {
	OperatorJWT   string
	SystemAccount string            // public key
	Accounts      map[string]string // public key to account JWT
}

// Options configure a broker.
type Options struct {
	Name     string
	Host     string // address to listen on; empty for none but in-process connections
	Port     int    // -1 for any free one
	StoreDir string // JetStream's files
	MaxStore int64  // bytes on disk; 0 for what the disk has at any time
	Auth     *Auth  // nil admits everyone: only for a broker that does not listen
	TLS      *tls.Config
	Reserve  int64 // bytes of the disk that are left free: with less, nothing is stored; default 64 MiB
	// Unsynced leaves syncing to the operating system. What was accepted then
	// survives the end of the process, not that of the machine.
	Unsynced bool
	Log      *slog.Logger
}

// DefaultPort is where a broker listens unless told otherwise.
const DefaultPort = 4222

// A Broker is a running server.
type Broker struct {
	o        Options
	log      *slog.Logger
	unlock   func() // of the folder
	resolver *server.MemAccResolver
	broken   atomic.Bool // the server failed to write
	quit     chan struct{}
	watching sync.WaitGroup
	stop     sync.Once

	mu     sync.Mutex // guards the fields below
	server *server.Server
	full   bool // the disk has no room; told to the server as a limit
}

// Start runs a broker and returns when it is ready for connections.
func Start(ctx context.Context, o Options) (*Broker, error) {
	if o.Host != "" && o.Auth == nil {
		return nil, muster.Errorf(muster.Invalid, "a broker that listens on %s needs accounts", o.Host)
	}
	unlock, err := lockStore(o.StoreDir)
	if err != nil {
		return nil, err
	}
	o.Reserve = cmp.Or(o.Reserve, 64<<20)
	b := &Broker{o: o, log: o.Log, unlock: unlock, resolver: &server.MemAccResolver{}, quit: make(chan struct{})}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	b.log = b.log.With("component", "broker")
	if err := b.start(ctx); err != nil {
		unlock()
		return nil, err
	}
	b.o.Port = cmp.Or(b.Port(), o.Port) // it keeps a free one that it found
	b.watching.Go(b.watch)
	return b, nil
}

// start runs a server. The caller holds the mutex, or nobody else knows of b.
func (b *Broker) start(ctx context.Context) error {
	opts, err := b.options(b.o)
	if err != nil {
		return err
	}
	s, err := server.NewServer(opts)
	if err != nil {
		return muster.Errorf(muster.Invalid, "broker: %w", err)
	}
	l := newLogger(b.log, &b.broken)
	s.SetLoggerV2(l, false, false, false)
	s.Start()
	b.server = s
	if err = b.ready(ctx, l); err == nil {
		err = b.checkStore(b.o.StoreDir)
	}
	if err != nil {
		s.Shutdown()
		s.WaitForShutdown()
	}
	return err
}

// ready waits for the server in short steps, so that ctx can end the wait.
func (b *Broker) ready(ctx context.Context, l *logger) error {
	for !b.server.ReadyForConnections(200 * time.Millisecond) {
		reason := "it has ended"
		select {
		case reason = <-l.fatal:
		case <-ctx.Done():
			reason = ctx.Err().Error()
		default:
			if b.server.Running() {
				continue
			}
		}
		return muster.Errorf(muster.Unavailable, "broker: does not start on %s: %s", net.JoinHostPort(b.o.Host, fmt.Sprint(b.o.Port)), reason).
			WithHint("another program may use the port, or %s may belong to another user", b.o.StoreDir)
	}
	return nil
}

// never is the time between two syncs of a server that leaves them to the operating
// system. By itself it would sync every stream every two minutes, also those to
// which nothing was written: for hours of virtual time that is thousands of times.
const never = 100 * 365 * 24 * time.Hour

// noLimit is what the server may store if nothing else is said: more than any
// disk has. By itself the server takes what is free when it starts, for as long as
// it runs: one that was started on a full disk would never store anything again.
// What is free is the watch's matter.
const noLimit = 1 << 50

func (b *Broker) options(o Options) (*server.Options, error) {
	opts := &server.Options{
		ServerName: o.Name, Host: o.Host, Port: o.Port, DontListen: o.Host == "",
		JetStream: true, StoreDir: o.StoreDir, JetStreamMaxStore: cmp.Or(o.MaxStore, noLimit), SyncAlways: !o.Unsynced,
		NoSigs: true, MaxPayload: 2 << 20, MaxConn: 65536,
		TLSConfig: o.TLS, TLSTimeout: 10, DisableShortFirstPing: true,
		PingInterval: 30 * time.Second, MaxPingsOut: 2,
	}
	if o.Unsynced {
		opts.SyncInterval = never
	}
	if o.Auth == nil {
		return opts, nil
	}
	operator, err := jwt.DecodeOperatorClaims(o.Auth.OperatorJWT)
	if err != nil {
		return nil, muster.Errorf(muster.Corrupt, "broker: the operator's JWT cannot be read: %w", err)
	}
	opts.TrustedOperators = []*jwt.OperatorClaims{operator}
	opts.SystemAccount = o.Auth.SystemAccount
	opts.AccountResolver = b.resolver
	for key, token := range o.Auth.Accounts {
		if err := b.resolver.Store(key, token); err != nil {
			return nil, muster.Errorf(muster.Corrupt, "broker: store account %s: %w", key, err)
		}
	}
	return opts, nil
}

// UpdateAccount puts a new account JWT in force: users that it revokes are
// disconnected.
func (b *Broker) UpdateAccount(key, token string) error {
	claims, err := jwt.DecodeAccountClaims(token)
	if err != nil {
		return muster.Errorf(muster.Invalid, "broker: the account's JWT cannot be read: %w", err)
	}
	if err := b.resolver.Store(key, token); err != nil {
		return muster.Errorf(muster.Internal, "broker: store account: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.apply(key, claims)
}

// apply puts an account's claims in force. The caller holds the mutex.
func (b *Broker) apply(key string, claims *jwt.AccountClaims) error {
	account, err := b.server.LookupAccount(key)
	if err != nil {
		return muster.Errorf(muster.Internal, "broker: look up account: %w", err)
	}
	if b.full && claims.Limits.DiskStorage != 0 {
		claims.Limits.DiskStorage = 1 // byte: less than what is stored
	}
	b.server.UpdateAccountClaims(account, claims)
	return nil
}

// InProcessConn makes a connection that needs no socket.
func (b *Broker) InProcessConn() (net.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.server.InProcessConn()
}

// Port is where the broker listens, 0 when it does not.
func (b *Broker) Port() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a, ok := b.server.Addr().(*net.TCPAddr); ok {
		return a.Port
	}
	return 0
}

// Stop ends the server and waits for it. It can be called again.
func (b *Broker) Stop() {
	b.stop.Do(func() {
		close(b.quit)
		b.watching.Wait()
		b.server.Shutdown()
		b.server.WaitForShutdown()
		b.unlock()
	})
}

// logger passes the server's messages on. What it calls a notice is of use to
// developers only. A write that failed is known by its message alone.
type logger struct {
	log    *slog.Logger
	broken *atomic.Bool
	fatal  chan string // the first reason why the server cannot work
}

func newLogger(log *slog.Logger, broken *atomic.Bool) *logger {
	return &logger{log, broken, make(chan string, 1)}
}

func (l *logger) Noticef(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l *logger) Warnf(format string, v ...any)   { l.log.Warn(fmt.Sprintf(format, v...)) }
func (l *logger) Debugf(format string, v ...any)  { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l *logger) Tracef(format string, v ...any)  { l.log.Debug(fmt.Sprintf(format, v...)) }

func (l *logger) Fatalf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	l.log.Error(text)
	select {
	case l.fatal <- text:
	default:
	}
}

func (l *logger) Errorf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	l.log.Error(text)
	if strings.Contains(text, "write error") || strings.Contains(text, "failed to store") || strings.Contains(text, "will be DISABLED") {
		l.broken.Store(true)
	}
}
