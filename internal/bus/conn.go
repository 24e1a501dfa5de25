package bus

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/musterfleet/muster"
)

// Options say how to reach a broker.
type Options struct {
	URLs   []string // nats://, tls:// or ws://; tried in random order
	Name   string   // shown by the broker's monitoring
	JWT    string   // NATS user JWT; empty for a broker without accounts
	Seed   string   // the user's key; never logged
	CA     []byte   // PEM of the only authority trusted for the broker; nil for the system's
	Prefix string   // of subjects, default DefaultPrefix
	Inbox  string   // prefix of inboxes, default _INBOX
	// Mailbox of the node that connects, see MailboxOf; default OpenMailbox. One
	// with a mailbox of its own is in the account of nodes.
	Mailbox string
	// InProcess is a broker in this process, used instead of the URLs.
	InProcess nats.InProcessConnProvider
	Timeout   time.Duration // of dialling, default 5 s
	Ping      time.Duration // two of these without an answer and the connection is dead, default 20 s
	Log       *slog.Logger
}

// LogValue keeps the seed out of logs.
func (o Options) LogValue() slog.Value {
	return slog.GroupValue(slog.Any("urls", o.URLs), slog.String("name", o.Name), slog.String("prefix", o.Prefix))
}

// A Conn is one connection to the broker, from Dial until Done. It is safe for
// concurrent use once Load or Setup has returned.
type Conn struct {
	nc       *nats.Conn
	js       jetstream.JetStream
	mailbox  string
	api      string // prefix of the JetStream API
	subjects Subjects
	settings Settings
	log      *slog.Logger
	done     chan struct{}
	once     sync.Once

	mu      sync.Mutex // guards records
	records string     // subject of the fleet's records, once it is known

	deniedMu sync.Mutex // guards denied
	denied   map[*int]func(subject string)

	beforeStep func() // of a change of the layout; set by tests
}

// Dial connects. It does not try again; the caller decides when to.
func Dial(ctx context.Context, o Options) (*Conn, error) {
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Conn{mailbox: cmp.Or(o.Mailbox, OpenMailbox), api: usualAPI, subjects: Subjects{Prefix: o.Prefix, Shards: 1}, log: o.Log, done: make(chan struct{})}
	if c.mailbox != OpenMailbox {
		c.api = NodeAPI
	}
	opts, err := c.natsOptions(ctx, o)
	if err != nil {
		return nil, err
	}
	c.nc, err = nats.Connect(strings.Join(o.URLs, ","), opts...)
	if err != nil {
		return nil, dialError(err, o)
	}
	c.js, err = jetstream.NewWithAPIPrefix(c.nc, c.api)
	if err != nil {
		c.nc.Close()
		return nil, natsError(err, "start JetStream client")
	}
	return c, nil
}

func (c *Conn) natsOptions(ctx context.Context, o Options) ([]nats.Option, error) {
	timeout, ping := o.Timeout, o.Ping
	if timeout == 0 {
		timeout = 5 * time.Second
	}
	if ping == 0 {
		ping = 20 * time.Second
	}
	if d, ok := ctx.Deadline(); ok {
		timeout = max(min(timeout, time.Until(d)), time.Millisecond)
	}
	opts := []nats.Option{
		nats.Name(o.Name), nats.NoReconnect(), nats.Timeout(timeout),
		nats.PingInterval(ping), nats.MaxPingsOutstanding(2),
		nats.ClosedHandler(func(*nats.Conn) { c.once.Do(func() { close(c.done) }) }),
		nats.ErrorHandler(c.asyncError),
	}
	if o.JWT != "" {
		opts = append(opts, nats.UserJWTAndSeed(o.JWT, o.Seed))
	}
	if o.Inbox != "" {
		opts = append(opts, nats.CustomInboxPrefix(o.Inbox))
	}
	if len(o.CA) > 0 {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(o.CA) {
			return nil, muster.Errorf(muster.Invalid, "the broker's CA certificate cannot be read; expected PEM")
		}
		opts = append(opts, nats.Secure(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}))
	}
	if o.InProcess != nil {
		opts = append(opts, nats.InProcessServer(o.InProcess))
	}
	return opts, nil
}

// asyncError logs what the broker complains of outside of any call. A
// violation of permissions is news for an operator; it names a subject only.
func (c *Conn) asyncError(_ *nats.Conn, _ *nats.Subscription, err error) {
	c.log.Warn("broker reports an error", "component", "bus", "err", err)
	if subject, ok := deniedSubject(err); ok {
		c.tellDenied(subject)
	}
}

func dialError(err error, o Options) error {
	where := strings.Join(o.URLs, ", ")
	if o.InProcess != nil {
		where = "in this process"
	}
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var misnamed x509.HostnameError
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		return muster.Errorf(muster.Denied, "the broker at %s refuses these credentials: %w", where, err).
			WithHint("they may have expired or been revoked. %s", renewal(o))
	case errors.As(err, &unknown):
		return muster.Errorf(muster.Denied, "the broker at %s shows a certificate of an authority that is not trusted here: %w", where, err).
			WithHint("check that this is the right broker; its CA is pinned when a node joins")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return muster.Errorf(muster.Unavailable, "the certificate of the broker at %s is not valid now: %w", where, err).
			WithHint("if the clock here is right, renew it on the broker's machine: 'muster broker renew-certificate'")
	case errors.As(err, &misnamed):
		return muster.Errorf(muster.Unavailable, "the certificate of the broker at %s is not for that host: %w", where, err).
			WithHint("on the broker's machine: 'muster broker renew-certificate --host NAME'")
	}
	return muster.Errorf(muster.Unavailable, "no broker answers at %s: %w", where, err).
		WithHint("is it running and reachable from here? 'muster doctor' looks")
}

// renewal says where credentials that the broker takes come from.
func renewal(o Options) string {
	if strings.HasPrefix(o.Inbox, NodeInbox("")) || strings.HasPrefix(o.Inbox, EnrolInbox("")) {
		return "Ask for a new invitation: 'muster node invite NAME' where the fleet was made, then 'muster agent --join -' here"
	}
	return "Ask for a new context: 'muster context make NAME --out FOLDER' where the fleet was made"
}

// Close ends the connection and waits until it has ended.
func (c *Conn) Close() {
	c.nc.Close()
	<-c.done
}

// Done is closed when the connection has ended, for whatever reason.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Subjects returns the subjects of the fleet.
func (c *Conn) Subjects() Subjects { return c.subjects }

// Mailbox returns that of the node that has connected.
func (c *Conn) Mailbox() string { return c.mailbox }

// Settings returns what Load or Setup has read.
func (c *Conn) Settings() Settings { return c.settings }

// ClientIP returns the address that the broker sees this connection come from, the
// zero one if it does not tell. The broker may say what it likes.
func (c *Conn) ClientIP() netip.Addr {
	ip, err := c.nc.GetClientIP()
	if err != nil {
		return netip.Addr{}
	}
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}

// RTT measures one round trip to the broker.
func (c *Conn) RTT() (time.Duration, error) {
	d, err := c.nc.RTT()
	return d, natsError(err, "ping the broker")
}

// Server returns the name and version of the server at the other end.
func (c *Conn) Server() (name, version string) {
	return c.nc.ConnectedServerName(), c.nc.ConnectedServerVersion()
}

// Address returns the HOST:PORT that the connection was made to, "" within a
// process.
func (c *Conn) Address() string {
	u, err := url.Parse(c.nc.ConnectedUrl())
	if err != nil {
		return ""
	}
	return u.Host
}

// Certificate returns what the broker showed, nil without TLS.
func (c *Conn) Certificate() *x509.Certificate {
	state, err := c.nc.TLSConnectionState()
	if err != nil || len(state.PeerCertificates) == 0 {
		return nil
	}
	return state.PeerCertificates[0]
}

// A Request is a message that wants an answer.
type Request struct {
	Subject string
	Reply   string // where Respond publishes; the sender chose it
	Data    []byte
	Respond func([]byte) error
}

// Serve calls handle for each message on the subject, one after the other,
// until the connection ends or stop is called. Stop returns after the last
// call of handle has.
func (c *Conn) Serve(subject string, handle func(Request)) (stop func(), err error) {
	msgs := make(chan *nats.Msg, 1024)
	sub, err := c.nc.ChanSubscribe(subject, msgs)
	if err != nil {
		return nil, natsError(err, "subscribe to "+subject)
	}
	// The subscription must be there before whatever the caller does next.
	if err := c.nc.Flush(); err != nil {
		return nil, natsError(err, "subscribe to "+subject)
	}
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case m := <-msgs:
				handle(Request{m.Subject, m.Reply, m.Data, m.Respond})
			case <-quit:
				return
			case <-c.done:
				return
			}
		}
	}()
	return sync.OnceFunc(func() {
		_ = sub.Unsubscribe() // fails only when the connection has ended
		close(quit)
		<-ended
	}), nil
}

// Ask sends one request and returns the first answer.
func (c *Conn) Ask(ctx context.Context, subject string, data []byte) ([]byte, error) {
	m, err := c.nc.RequestWithContext(ctx, subject, data)
	if err != nil {
		return nil, natsError(err, "ask "+subject)
	}
	return m.Data, nil
}

// AskAll publishes a question and calls answer for each message on the subject
// of answers, until it returns false or ctx ends. The end of ctx is no error: it
// bounds the wait.
func (c *Conn) AskAll(ctx context.Context, subject string, data []byte, answers string, answer func(subject string, data []byte) bool) error {
	sub, err := c.nc.SubscribeSync(answers)
	if err != nil {
		return natsError(err, "ask "+subject)
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only when the connection has ended
	if err := c.nc.Publish(subject, data); err != nil {
		return natsError(err, "ask "+subject)
	}
	for {
		m, err := sub.NextMsgWithContext(ctx)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			return nil
		case err != nil:
			return natsError(err, "ask "+subject)
		case !answer(m.Subject, m.Data):
			return nil
		}
	}
}

// How patient requests are that the broker may not hear.
const (
	requestTries = 10                     // times the time of one, if each gets no answer
	requestAgain = 300 * time.Millisecond // after it has said that it cannot answer now
)

// patiently makes a request that can be repeated again while the broker has no
// leader, or when no answer came in time: a cluster that chooses a leader may answer
// nobody for seconds, one that has lost a server gives every third consumer to that
// until it has noticed the loss, and answers are lost while an account is changed.
func (c *Conn) patiently(ctx context.Context, timeout time.Duration, request func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, requestTries*timeout)
	defer cancel()
	for {
		try, end := context.WithTimeout(ctx, timeout)
		err := request(try)
		end()
		if !leaderless(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-c.done:
			return err
		case <-time.After(requestAgain):
		}
	}
}

func leaderless(err error) bool {
	const unavailable, notLeader, notActive = 10008, 10009, 10006 // codes of a cluster's API
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return api.ErrorCode == unavailable || api.ErrorCode == notLeader || api.ErrorCode == notActive
	}
	return errors.Is(err, context.DeadlineExceeded)
}
