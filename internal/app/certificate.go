package app

import (
	"crypto/tls"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/pki"
)

// A Certificate is what the broker shows.
type Certificate struct {
	Hosts []string // names and addresses that it is for
	Until time.Time
}

// RenewCertificate makes a new certificate for the broker of the fleet in the
// folder, for the hosts of the present one and for more. Members notice nothing:
// it is of the authority that they trust. A broker that runs shows it to whoever
// connects from then on.
func RenewCertificate(dir string, more []string) (Certificate, error) {
	fleet, err := config.OpenFleet(dir)
	if err != nil {
		return Certificate{}, err
	}
	hosts, err := hostsOf(fleet)
	if err != nil {
		return Certificate{}, err
	}
	server, err := pki.NewServer(fleet.CA, distinct(hosts, more), time.Now())
	if err != nil {
		return Certificate{}, err
	}
	made, err := pki.ParseCertificate(server.Certificate)
	if err != nil {
		return Certificate{}, err
	}
	return Certificate{pki.Hosts(made), made.NotAfter}, fleet.RenewServer(server)
}

// hostsOf returns the hosts of the fleet's URLs, of this machine, whose tools may
// come by loopback, and of the present certificate, if it can be read.
func hostsOf(fleet config.FleetFolder) ([]string, error) {
	var hosts []string
	for _, text := range fleet.Fleet.URLs {
		u, err := url.Parse(text)
		if err != nil {
			return nil, muster.Errorf(muster.Invalid, "broker address %q: %w", text, err)
		}
		hosts = append(hosts, u.Hostname())
	}
	hosts = distinct(hosts, local)
	if old, err := pki.ParseCertificate(fleet.Server.Certificate); err == nil {
		hosts = distinct(hosts, pki.Hosts(old))
	}
	return hosts, nil
}

// local is this machine, for its own tools.
var local = []string{"localhost", "127.0.0.1", "::1"}

// distinct joins lists of hosts, without repetitions.
func distinct(lists ...[]string) (hosts []string) {
	for _, h := range slices.Concat(lists...) {
		if ip := net.ParseIP(h); ip != nil {
			h = ip.String()
		}
		if !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// A serverCertificate is the broker's as it is on disk, so that one that was renewed
// is shown without a restart.
type serverCertificate struct {
	cert, key string // files
	log       *slog.Logger

	mu   sync.Mutex       // guards last
	last *tls.Certificate // that could be used
}

// openCertificate reads the certificate, and warns when it ends soon.
func openCertificate(fleet config.FleetFolder, log *slog.Logger) (*serverCertificate, error) {
	dir := filepath.Join(fleet.Dir, "tls")
	s := &serverCertificate{cert: filepath.Join(dir, "server.pem"), key: filepath.Join(dir, "server.key"), log: log}
	pair, err := tls.LoadX509KeyPair(s.cert, s.key)
	if err != nil {
		return nil, muster.Errorf(muster.Corrupt, "the broker's certificate in %s cannot be used: %w", dir, err).
			WithHint("'muster broker renew-certificate' makes another one")
	}
	if until := pair.Leaf.NotAfter; time.Until(until) < pki.RenewBefore {
		log.Warn("the broker's certificate ends soon: 'muster broker renew-certificate' makes another one", "until", until)
	}
	s.last = &pair
	return s, nil
}

// get returns the certificate for a handshake. While the files are being replaced
// they do not belong together, and the last one that could be used is shown.
func (s *serverCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(s.cert, s.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		if !os.IsNotExist(err) {
			s.log.Warn("the broker's certificate cannot be used; the one before is shown", "err", err)
		}
		return s.last, nil
	}
	s.last = &pair
	return s.last, nil
}
