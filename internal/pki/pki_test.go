package pki_test

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/pki"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func TestServerCertificateIsTrustedForItsHosts(t *testing.T) {
	ca, err := pki.NewAuthority("fleet", now)
	if err != nil {
		t.Fatal(err)
	}
	server, err := pki.NewServer(ca, []string{"broker.example.org", "192.0.2.7", "::1"}, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(server.Certificate, server.Key); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca.Certificate) {
		t.Fatal("the authority is no PEM")
	}
	cert, err := pki.ParseCertificate(server.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		host string
		at   time.Time
		good bool
	}{
		{"broker.example.org", now, true},
		{"192.0.2.7", now, true},
		{"::1", now, true},
		{"other.example.org", now, false},
		{"192.0.2.8", now, false},
		{"broker.example.org", now.AddDate(1, 11, 0), true},
		{"broker.example.org", now.AddDate(2, 0, 1), false},
		{"broker.example.org", now.AddDate(0, 0, -1), false},
	} {
		_, err := cert.Verify(x509.VerifyOptions{DNSName: c.host, Roots: pool, CurrentTime: c.at})
		if (err == nil) != c.good {
			t.Errorf("%s at %s: %v", c.host, c.at.Format(time.DateOnly), err)
		}
	}
}

func TestServerDoesNotOutliveAuthority(t *testing.T) {
	ca, err := pki.NewAuthority("fleet", now)
	if err != nil {
		t.Fatal(err)
	}
	late, err := pki.NewServer(ca, []string{"h"}, now.AddDate(9, 6, 0))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pki.ParseCertificate(late.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if want := now.AddDate(pki.AuthorityYears, 0, 0); !cert.NotAfter.Equal(want) {
		t.Errorf("ends %s, want %s", cert.NotAfter, want)
	}
	if _, err := pki.NewServer(ca, []string{"h"}, now.AddDate(11, 0, 0)); muster.KindOf(err) != muster.Invalid {
		t.Errorf("expired authority: %v", err)
	}
}

func TestBadInput(t *testing.T) {
	ca, err := pki.NewAuthority("fleet", now)
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.NewAuthority("other", now)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		ca    pki.Pair
		hosts []string
		kind  muster.ErrorKind
	}{
		"no hosts":         {ca, nil, muster.Invalid},
		"empty host":       {ca, []string{""}, muster.Invalid},
		"no PEM":           {pki.Pair{Certificate: []byte("x"), Key: ca.Key}, []string{"h"}, muster.Corrupt},
		"no key":           {pki.Pair{Certificate: ca.Certificate}, []string{"h"}, muster.Corrupt},
		"key of another":   {pki.Pair{Certificate: ca.Certificate, Key: other.Key}, []string{"h"}, muster.Corrupt},
		"swapped":          {pki.Pair{Certificate: ca.Key, Key: ca.Certificate}, []string{"h"}, muster.Corrupt},
		"certificate only": {pki.Pair{Certificate: ca.Certificate, Key: ca.Certificate}, []string{"h"}, muster.Corrupt},
	} {
		if _, err := pki.NewServer(c.ca, c.hosts, now); muster.KindOf(err) != c.kind {
			t.Errorf("%s: %v, want kind %s", name, err, c.kind)
		}
	}
}
