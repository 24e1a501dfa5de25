package bus_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/pki"
)

// A certificate that has ended or is for another host says what to do. It is no
// refusal: what is sent waits in the outbox.
func TestCertificateThatDoesNotFit(t *testing.T) {
	long := time.Now().AddDate(-pki.ServerYears, 0, -1)
	ca, err := pki.NewAuthority("fleet", long)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		host string
		made time.Time
		want string
	}{
		"ended":        {"127.0.0.1", long, "is not valid now"},
		"another host": {"broker.test", time.Now(), "is not for that host"},
	} {
		t.Run(name, func(t *testing.T) {
			server, err := pki.NewServer(ca, []string{c.host}, c.made)
			if err != nil {
				t.Fatal(err)
			}
			_, err = bus.Dial(t.Context(), bus.Options{URLs: []string{"tls://" + greet(t, server)}, CA: ca.Certificate})
			e := muster.AsError(muster.Internal, err)
			if e.Kind != muster.Unavailable || !strings.Contains(e.Message, c.want) || !strings.Contains(e.Hint, "renew-certificate") {
				t.Errorf("got %v (kind %s, hint %q), want %q", err, e.Kind, e.Hint, c.want)
			}
		})
	}
}

// greet does what a broker does until TLS begins, for one connection. It returns
// the address.
func greet(t *testing.T, p pki.Pair) string {
	t.Helper()
	pair, err := tls.X509KeyPair(p.Certificate, p.Key)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		conn, err := listener.Accept()
		if err != nil {
			return // the test is over
		}
		defer conn.Close()
		fmt.Fprint(conn, `INFO {"server_id":"test","version":"2.11.0","proto":1,"tls_required":true,"max_payload":1048576}`+"\r\n")
		secure := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}})
		_, _ = io.Copy(io.Discard, secure) // until the client turns away
	}()
	t.Cleanup(func() { listener.Close(); <-ended })
	return listener.Addr().String()
}
