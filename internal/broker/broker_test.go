package broker_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/broker"
	"github.com/musterfleet/muster/internal/pki"
)

// patience is how long a test waits for what takes milliseconds.
const patience = time.Minute

func start(t *testing.T, o broker.Options) *broker.Broker {
	t.Helper()
	b, err := broker.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Stop)
	return b
}

func stream(t *testing.T, b *broker.Broker) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(b), nats.Timeout(patience))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(patience))
	if err == nil {
		_, err = js.CreateOrUpdateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

// TestStartStop: what was stored is there after a stop and another start, and
// connections end with the broker.
func TestStartStop(t *testing.T) {
	o := broker.Options{StoreDir: filepath.Join(t.TempDir(), "deep", "store")}
	b := start(t, o)
	nc, js := stream(t, b)
	if _, err := js.Publish(t.Context(), "s", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if b.Port() != 0 {
		t.Errorf("it listens on port %d", b.Port())
	}
	closed := nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	b.Stop()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Error("a connection outlives the broker")
	}
	_, js = stream(t, start(t, o))
	s, err := js.Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	if n := s.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("%d messages are left", n)
	}
}

// TestSync: each message is synced unless the caller says otherwise; then none is.
func TestSync(t *testing.T) {
	for _, unsynced := range []bool{false, true} {
		b := start(t, broker.Options{StoreDir: t.TempDir(), Unsynced: unsynced})
		always, every := b.Syncs()
		if always == unsynced || unsynced && every < 365*24*time.Hour {
			t.Errorf("unsynced %v: the server syncs always: %v, and every %s", unsynced, always, every)
		}
	}
}

// auth makes accounts, and the credentials of a user.
func auth(t *testing.T) (*broker.Auth, nats.Option) {
	t.Helper()
	now := time.Now()
	keys, err := aaa.NewFleetKeys()
	if err != nil {
		t.Fatal(err)
	}
	operator, err1 := keys.OperatorJWT("test", now)
	system, err2 := keys.SystemAccountJWT(now)
	account, err3 := keys.AccountJWT(aaa.AccountSpec{Name: "test", Limits: aaa.NoLimits()}, now)
	public, err4 := keys.PublicKeys()
	seed, user, err5 := aaa.NewUserKey()
	token, err6 := keys.UserJWT(aaa.UserSpec{Name: "u", PublicKey: user, Expires: now.Add(time.Hour), PubAllow: []string{">"}, SubAllow: []string{">"}}, now)
	if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
		t.Fatal(err)
	}
	return &broker.Auth{
		OperatorJWT: operator, SystemAccount: public.System,
		Accounts: map[string]string{public.System: system, public.Account: account},
	}, nats.UserJWTAndSeed(token, string(seed.Reveal()))
}

// TestErrors: each way not to start gives an error that says why.
func TestErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	held := t.TempDir()
	start(t, broker.Options{StoreDir: held})
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	accounts, _ := auth(t)
	for name, c := range map[string]struct {
		o    broker.Options
		kind muster.ErrorKind
		text string
	}{
		"without accounts":     {broker.Options{Host: "127.0.0.1", Port: -1}, muster.Invalid, "needs accounts"},
		"damaged operator":     {broker.Options{Auth: &broker.Auth{OperatorJWT: "?"}}, muster.Corrupt, "operator"},
		"port taken":           {broker.Options{Host: "127.0.0.1", Port: taken.Addr().(*net.TCPAddr).Port, Auth: accounts}, muster.Unavailable, fmt.Sprint(taken.Addr())},
		"no such address":      {broker.Options{Host: "192.0.2.1", Port: -1, Auth: accounts}, muster.Unavailable, "192.0.2.1"},
		"folder of another":    {broker.Options{StoreDir: held}, muster.Conflict, held},
		"folder is a file":     {broker.Options{StoreDir: file}, muster.Unavailable, file},
		"folder below a file":  {broker.Options{StoreDir: filepath.Join(file, "x")}, muster.Unavailable, file},
		"folder of the kernel": {broker.Options{StoreDir: "/proc/self/x"}, muster.Unavailable, "/proc/self/x"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.o.StoreDir == "" {
				c.o.StoreDir = t.TempDir()
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			b, err := broker.Start(ctx, c.o)
			if err == nil {
				b.Stop()
			}
			if muster.KindOf(err) != c.kind || !strings.Contains(fmt.Sprint(err), c.text) {
				t.Errorf("got %v (%s), want %s with %q", err, muster.KindOf(err), c.kind, c.text)
			}
			if ctx.Err() != nil {
				t.Errorf("after %s it still waited for its start", patience)
			}
		})
	}
}

// TestReleased: a stopped broker, and one that did not start, let go of the
// folder.
func TestReleased(t *testing.T) {
	dir := t.TempDir()
	if _, err := broker.Start(t.Context(), broker.Options{StoreDir: dir, Host: "192.0.2.1", Auth: &broker.Auth{}}); err == nil {
		t.Fatal("it starts")
	}
	b := start(t, broker.Options{StoreDir: dir})
	b.Stop()
	start(t, broker.Options{StoreDir: dir})
}

// TestCancelled: the end of the caller's context ends the wait.
func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	accounts, _ := auth(t)
	o := broker.Options{StoreDir: t.TempDir(), Host: "127.0.0.1", Port: taken.Addr().(*net.TCPAddr).Port, Auth: accounts}
	if _, err := broker.Start(ctx, o); muster.KindOf(err) != muster.Unavailable {
		t.Errorf("got %v", err)
	}
}

// TestDamagedStore: a stream whose files are damaged is not silently made
// anew under the same name.
func TestDamagedStore(t *testing.T) {
	dir := t.TempDir()
	b := start(t, broker.Options{StoreDir: dir})
	_, js := stream(t, b)
	if _, err := js.Publish(t.Context(), "s", []byte("x")); err != nil {
		t.Fatal(err)
	}
	b.Stop()
	meta, err := filepath.Glob(filepath.Join(dir, "jetstream", "*", "streams", "S", "meta.inf"))
	if err != nil || len(meta) != 1 {
		t.Fatalf("files of the stream: %v, %v", meta, err)
	}
	if err := os.WriteFile(meta[0], []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err = broker.Start(t.Context(), broker.Options{StoreDir: dir})
	if err == nil {
		b.Stop()
	}
	if muster.KindOf(err) != muster.Corrupt || !strings.Contains(fmt.Sprint(err), "S") {
		t.Errorf("got %v, want an error that names the stream", err)
	}
}

// TestTLS: a client that trusts the authority connects, another does not, and
// neither does one without TLS or without credentials.
func TestTLS(t *testing.T) {
	now := time.Now()
	ca, err := pki.NewAuthority("test", now)
	if err != nil {
		t.Fatal(err)
	}
	own, err := pki.NewServer(ca, []string{"127.0.0.1"}, now)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(own.Certificate, own.Key)
	if err != nil {
		t.Fatal(err)
	}
	accounts, user := auth(t)
	b := start(t, broker.Options{
		StoreDir: t.TempDir(), Host: "127.0.0.1", Port: -1, Auth: accounts,
		TLS: &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13},
	})
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(ca.Certificate)
	url := fmt.Sprintf("tls://127.0.0.1:%d", b.Port())
	for name, c := range map[string]struct {
		roots *x509.CertPool
		auth  nats.Option
		max   uint16
		works bool
	}{
		"trusted":    {trusted, user, 0, true},
		"untrusted":  {x509.NewCertPool(), user, 0, false},
		"an old TLS": {trusted, user, tls.VersionTLS12, false},
		"a stranger": {trusted, nats.Name("nobody"), 0, false},
	} {
		nc, err := nats.Connect(url, nats.Secure(&tls.Config{RootCAs: c.roots, MaxVersion: c.max}), c.auth, nats.Timeout(patience))
		if (err == nil) != c.works {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			nc.Close()
		}
	}
}
