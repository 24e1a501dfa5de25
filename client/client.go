package client

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/nats-io/jwt/v2"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/bus"
)

// Options say who sends, and where to.
type Options struct {
	URLs        []string // of the broker
	Credentials []byte   // content of a NATS .creds file; nil for a broker without accounts
	CA          []byte   // PEM of the only authority trusted for the broker; nil for the system's
	Prefix      string   // of subjects, default "muster"
	Identity    []byte   // content of the caller's identity file, which signs commands
	// OutboxDir keeps what was accepted but not yet stored by the broker. Empty
	// for none: then Send fails while the broker is away.
	OutboxDir string
	Name      string // shown by the broker's monitoring
	InProcess interface {
		InProcessConn() (net.Conn, error)
	} // a broker in this process, instead of the URLs
	Log *slog.Logger
}

// A Client talks to one fleet.
type Client struct {
	dial   bus.Options
	signer *aaa.Signer
	caller string
	until  time.Time // end of the caller's identity
	outbox *outbox
	log    *slog.Logger

	mu       sync.Mutex // guards the fields below
	conn     *bus.Conn
	pipeline *bus.Pipeline
	closed   bool
	failed   error     // of the last attempt to connect
	retry    time.Time // before this, the next attempt fails alike
}

// retryAfter is how long after an attempt in vain the next ones fail at once. A
// host that is dead lets each attempt wait for seconds, and what a person asks
// for makes several.
const retryAfter = 2 * time.Second

// Connect prepares a client. The broker may be away if there is an outbox;
// otherwise the first connection is made here.
func Connect(ctx context.Context, o Options) (*Client, error) {
	c := &Client{log: o.Log}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.dial = bus.Options{URLs: o.URLs, Name: o.Name, CA: o.CA, Prefix: o.Prefix, Log: c.log}
	if o.InProcess != nil {
		c.dial.InProcess = o.InProcess
	}
	if err := c.authenticate(o); err != nil {
		return nil, err
	}
	if o.OutboxDir != "" {
		var err error
		if c.outbox, err = openOutbox(o.OutboxDir); err != nil {
			return nil, err
		}
		return c, nil
	}
	if _, _, err := c.connection(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Client) authenticate(o Options) error {
	if len(o.Credentials) > 0 {
		token, err := jwt.ParseDecoratedJWT(o.Credentials)
		if err != nil {
			return muster.Errorf(muster.Invalid, "the broker credentials cannot be read: %w", err)
		}
		key, err := jwt.ParseDecoratedNKey(o.Credentials)
		if err != nil {
			return muster.Errorf(muster.Invalid, "the broker credentials hold no key: %w", err)
		}
		seed, err := key.Seed()
		if err != nil {
			return muster.Errorf(muster.Invalid, "the broker credentials hold no seed: %w", err)
		}
		c.dial.JWT, c.dial.Seed = token, string(seed)
		if user, err := jwt.DecodeUserClaims(token); err == nil { // else the broker says what is wrong with it
			c.dial.Inbox = bus.CallerInbox(user.Sub.Allow)
		}
	}
	if len(o.Identity) == 0 {
		return nil
	}
	id, err := aaa.ParseIdentity(o.Identity)
	if err != nil {
		return err
	}
	claims, err := id.Claims()
	if err != nil {
		return err
	}
	c.caller, c.until = claims.Name, claims.Expires
	c.signer, err = aaa.NewSigner(id)
	return err
}

// Close ends the connection.
func (c *Client) Close() {
	c.mu.Lock()
	conn, p := c.conn, c.pipeline
	c.conn, c.pipeline, c.closed = nil, nil, true
	c.mu.Unlock()
	if conn != nil {
		conn.Close()
		p.Wait()
	}
}

// Caller returns the name under which commands are signed.
func (c *Client) Caller() string { return c.caller }

// connection returns the current connection, or makes one.
func (c *Client) connection(ctx context.Context) (*bus.Conn, *bus.Pipeline, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, nil, muster.Errorf(muster.Interrupted, "the client is closed")
	}
	if c.conn != nil {
		select {
		case <-c.conn.Done():
			c.pipeline.Wait()
			c.conn = nil
		default:
			return c.conn, c.pipeline, nil
		}
	}
	if time.Now().Before(c.retry) {
		return nil, nil, c.failed
	}
	began := time.Now()
	conn, err := bus.Dial(ctx, c.dial)
	if err != nil {
		if took := time.Since(began); took > retryAfter/2 && ctx.Err() == nil {
			c.failed, c.retry = err, time.Now().Add(retryAfter)
		}
		return nil, nil, err
	}
	if _, err := conn.Load(ctx); err != nil {
		conn.Close()
		return nil, nil, err
	}
	p, err := conn.Pipeline()
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	c.conn, c.pipeline = conn, p
	return conn, p, nil
}

// with calls f with a connection, again after a loss, until ctx ends.
func (c *Client) with(ctx context.Context, f func(*bus.Conn) error) error {
	for attempt := 0; ; attempt++ {
		conn, _, err := c.connection(ctx)
		if err == nil {
			if err = f(conn); err == nil {
				return nil
			}
			select {
			case <-conn.Done(): // the reason of the error, perhaps
			default:
				return err
			}
		}
		if attempt == 0 && c.outbox != nil || ctx.Err() != nil || muster.KindOf(err) != muster.Unavailable {
			return err
		}
		if !pause(ctx, attempt) {
			return err
		}
	}
}

// retryMost is the longest pause between attempts.
const retryMost = 5 * time.Second

// pause waits before the next attempt, unless ctx ends.
func pause(ctx context.Context, attempt int) bool {
	t := time.NewTimer(min(100*time.Millisecond<<min(attempt, 10), retryMost))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// lastValues reads the newest message of each subject of a stream.
func lastValues[T any](ctx context.Context, conn *bus.Conn, stream, filter string, handle func(bus.Stored, T)) error {
	return conn.Read(ctx, bus.Query{Stream: stream, Filters: []string{filter}, Last: true}, func(s bus.Stored) error {
		var v T
		if json.Unmarshal(s.Data, &v) == nil { // what another version wrote is left out
			handle(s, v)
		}
		return nil
	})
}
