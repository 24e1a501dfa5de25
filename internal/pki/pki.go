// Package pki makes the certificates of a fleet's broker: one authority, which
// the members of the fleet pin, and the server certificates that it signs.
//
// It is pure but for the randomness of keys: the time is a parameter, and what
// goes in and comes out is PEM.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"slices"
	"time"

	"github.com/musterfleet/muster"
)

// How long certificates are valid.
const (
	AuthorityYears = 10
	ServerYears    = 2
	// RenewBefore is how long before its end a certificate should be renewed.
	RenewBefore = 30 * 24 * time.Hour
	// leeway is how far a member's clock may be behind.
	leeway = time.Hour
)

const (
	certificateBlock = "CERTIFICATE"
	keyBlock         = "PRIVATE KEY"
)

// A Pair is a certificate and its private key, both as PEM. The key is in
// PKCS #8, in clear: store it with mode 0600.
type Pair struct {
	Certificate []byte
	Key         []byte
}

// NewAuthority makes the self-signed authority of a fleet, valid from now for
// AuthorityYears. It can sign server certificates, and no other authorities.
func NewAuthority(name string, now time.Time) (Pair, error) {
	key, err := newKey()
	if err != nil {
		return Pair{}, err
	}
	template, err := newTemplate(name, key, now, AuthorityYears)
	if err != nil {
		return Pair{}, err
	}
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	return sign(template, template, key, key)
}

// NewServer makes a server certificate for host names and IP addresses, at
// least one, valid from now for ServerYears but not beyond its authority.
func NewServer(authority Pair, hosts []string, now time.Time) (Pair, error) {
	if len(hosts) == 0 {
		return Pair{}, muster.Errorf(muster.Invalid, "a server certificate needs a host name or IP address")
	}
	parent, err := ParseCertificate(authority.Certificate)
	if err != nil {
		return Pair{}, err
	}
	parentKey, err := parseKey(authority.Key)
	if err != nil {
		return Pair{}, err
	}
	if !parentKey.PublicKey.Equal(parent.PublicKey) {
		return Pair{}, muster.Errorf(muster.Corrupt, "the authority's key does not belong to its certificate")
	}
	if !now.Before(parent.NotAfter) {
		return Pair{}, muster.Errorf(muster.Invalid, "the authority expired on %s", parent.NotAfter.Format(time.DateOnly)).
			WithHint("make a new authority, and let the nodes join again")
	}
	key, err := newKey()
	if err != nil {
		return Pair{}, err
	}
	template, err := newTemplate(hosts[0], key, now, ServerYears)
	if err != nil {
		return Pair{}, err
	}
	if template.NotAfter.After(parent.NotAfter) {
		template.NotAfter = parent.NotAfter
	}
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, h := range hosts {
		switch ip := net.ParseIP(h); {
		case h == "":
			return Pair{}, muster.Errorf(muster.Invalid, "an empty host name is not allowed in a certificate")
		case ip != nil:
			template.IPAddresses = append(template.IPAddresses, ip)
		default:
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	return sign(template, parent, key, parentKey)
}

// ParseCertificate reads the first certificate of a PEM text.
func ParseCertificate(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != certificateBlock {
		return nil, muster.Errorf(muster.Corrupt, "the certificate cannot be read; expected PEM with a block %s", certificateBlock)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, muster.Errorf(muster.Corrupt, "the certificate cannot be read: %w", err)
	}
	return c, nil
}

// Hosts returns the names and addresses that a server certificate is for.
func Hosts(c *x509.Certificate) []string {
	hosts := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return hosts
}

// parseKey reads a private key. Its errors never quote the key.
func parseKey(text []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != keyBlock {
		return nil, muster.Errorf(muster.Corrupt, "the private key cannot be read; expected PEM with a block %s", keyBlock)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		return nil, muster.Errorf(muster.Corrupt, "the private key cannot be read; expected ECDSA in PKCS #8")
	}
	return key, nil
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, muster.Errorf(muster.Internal, "make a key: %w", err)
	}
	return key, nil
}

func newTemplate(name string, key *ecdsa.PrivateKey, now time.Time, years int) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, muster.Errorf(muster.Internal, "make a serial number: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, muster.Errorf(muster.Internal, "encode a key: %w", err)
	}
	id := sha256.Sum256(public)
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: clip(name)}, SubjectKeyId: id[:20],
		NotBefore: now.Add(-leeway), NotAfter: now.AddDate(years, 0, 0),
	}, nil
}

// clip keeps a common name within the 64 characters that X.509 allows.
func clip(name string) string { return name[:min(len(name), 64)] }

func sign(template, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) (Pair, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		return Pair{}, muster.Errorf(muster.Invalid, "make a certificate: %w", err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, muster.Errorf(muster.Internal, "encode a key: %w", err)
	}
	return Pair{
		Certificate: pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: der}),
		Key:         pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: encoded}),
	}, nil
}
