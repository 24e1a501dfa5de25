// Package broker runs a NATS server with JetStream inside this process. It
// alone imports nats-server.
//
// Every accepted message is synced to disk before its receipt is sent: what
// muster calls accepted survives a power cut.
package broker

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
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
	MaxStore int64  // bytes on disk; 0 for what the disk has
	Auth     *Auth  // nil admits everyone: only for a broker that does not listen
	TLS      *tls.Config
	// Unsynced leaves syncing to the operating system. What was accepted then
	// survives the end of the process, not that of the machine.
	Unsynced bool
	Log      *slog.Logger
}

// DefaultPort is where a broker listens unless told otherwise.
const DefaultPort = 4222

// A Broker is a running server.
type Broker struct {
	server   *server.Server
	resolver *server.MemAccResolver
}

// Start runs a broker and returns when it is ready for connections.
func Start(ctx context.Context, o Options) (*Broker, error) {
	if o.Host != "" && o.Auth == nil {
		return nil, muster.Errorf(muster.Invalid, "a broker that listens on %s needs accounts", o.Host)
	}
	if err := os.MkdirAll(o.StoreDir, 0o700); err != nil {
		return nil, muster.Errorf(muster.Unavailable, "broker: make its folder: %w", err)
	}
	b := &Broker{resolver: &server.MemAccResolver{}}
	opts, err := b.options(o)
	if err != nil {
		return nil, err
	}
	b.server, err = server.NewServer(opts)
	if err != nil {
		return nil, muster.Errorf(muster.Invalid, "broker: %w", err)
	}
	if o.Log != nil {
		b.server.SetLoggerV2(&logger{o.Log.With("component", "broker")}, false, false, false)
	}
	b.server.Start()
	if err := b.ready(ctx, o); err != nil {
		b.Stop()
		return nil, err
	}
	return b, nil
}

// ready waits for the server in short steps, so that ctx can end the wait.
func (b *Broker) ready(ctx context.Context, o Options) error {
	for !b.server.ReadyForConnections(200 * time.Millisecond) {
		if !b.server.Running() || ctx.Err() != nil {
			return muster.Errorf(muster.Unavailable, "broker: does not start on %s", net.JoinHostPort(o.Host, fmt.Sprint(o.Port))).
				WithHint("another program may use the port, or %s may belong to another user", o.StoreDir)
		}
	}
	return nil
}

func (b *Broker) options(o Options) (*server.Options, error) {
	opts := &server.Options{
		ServerName: o.Name, Host: o.Host, Port: o.Port, DontListen: o.Host == "",
		JetStream: true, StoreDir: o.StoreDir, JetStreamMaxStore: o.MaxStore, SyncAlways: !o.Unsynced,
		NoSigs: true, NoLog: o.Log == nil, MaxPayload: 2 << 20, MaxConn: 65536,
		TLSConfig: o.TLS, TLSTimeout: 10, DisableShortFirstPing: true,
		PingInterval: 30 * time.Second, MaxPingsOut: 2,
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
	account, err := b.server.LookupAccount(key)
	if err != nil {
		return muster.Errorf(muster.Internal, "broker: look up account: %w", err)
	}
	b.server.UpdateAccountClaims(account, claims)
	return nil
}

// InProcessConn makes a connection that needs no socket.
func (b *Broker) InProcessConn() (net.Conn, error) { return b.server.InProcessConn() }

// Port is where the broker listens, 0 when it does not.
func (b *Broker) Port() int {
	if a, ok := b.server.Addr().(*net.TCPAddr); ok {
		return a.Port
	}
	return 0
}

// Stop ends the server and waits for it.
func (b *Broker) Stop() {
	b.server.Shutdown()
	b.server.WaitForShutdown()
}

// logger passes the server's messages on. What it calls a notice is of use to
// developers only.
type logger struct{ log *slog.Logger }

func (l *logger) Noticef(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l *logger) Warnf(format string, v ...any)   { l.log.Warn(fmt.Sprintf(format, v...)) }
func (l *logger) Fatalf(format string, v ...any)  { l.log.Error(fmt.Sprintf(format, v...)) }
func (l *logger) Errorf(format string, v ...any)  { l.log.Error(fmt.Sprintf(format, v...)) }
func (l *logger) Debugf(format string, v ...any)  { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l *logger) Tracef(format string, v ...any)  { l.log.Debug(fmt.Sprintf(format, v...)) }
