package app_test

import (
	"crypto/tls"
	"crypto/x509"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/app"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/enrol"
	"github.com/musterfleet/muster/internal/pki"
)

// shown returns the certificate that the broker shows to a new connection, which
// trusts what members of the fleet trust.
func (f fleet) shown() *x509.Certificate {
	f.t.Helper()
	folder, err := config.OpenFleet(f.dir)
	if err != nil {
		f.t.Fatal(err)
	}
	now := time.Now()
	creds, err := enrol.NewCreds(folder.Keys, "test", bus.OperatorPermissions(folder.Fleet.Prefix), now.Add(time.Hour), now)
	if err != nil {
		f.t.Fatal(err)
	}
	user, seed, err := config.ParseCreds(creds)
	if err != nil {
		f.t.Fatal(err)
	}
	conn, err := bus.Dial(f.t.Context(), bus.Options{URLs: folder.Fleet.URLs, JWT: user, Seed: string(seed.Reveal()), CA: folder.MemberCA()})
	if err != nil {
		f.t.Fatal(err)
	}
	defer conn.Close()
	return conn.Certificate()
}

// A renewed certificate is shown without a restart, is for the same hosts, and is
// trusted by those who trust the fleet.
func TestRenewCertificate(t *testing.T) {
	f := startFleet(t, carrier{tls: true})
	before := f.shown()
	made, err := app.RenewCertificate(f.dir, []string{"second.test", "192.0.2.7"})
	if err != nil {
		t.Fatal(err)
	}
	after := f.shown()
	if after.SerialNumber.Cmp(before.SerialNumber) == 0 {
		t.Error("the broker shows the old certificate")
	}
	for _, h := range append(pki.Hosts(before), "second.test", "192.0.2.7") {
		if !slices.Contains(pki.Hosts(after), h) || !slices.Contains(made.Hosts, h) {
			t.Errorf("%s is missing among %q", h, pki.Hosts(after))
		}
	}
	if !after.NotAfter.Equal(made.Until) || made.Until.Before(before.NotAfter) {
		t.Errorf("it ends at %s, was said to end at %s; the one before ended at %s", after.NotAfter, made.Until, before.NotAfter)
	}
	if _, err := app.RenewCertificate(f.dir, nil); err != nil {
		t.Fatal(err)
	}
	if again := f.shown(); !slices.Contains(pki.Hosts(again), "second.test") {
		t.Errorf("a further host is lost by the next renewal: %q", pki.Hosts(again))
	}
}

// A crash in the middle of a renewal leaves files that do not belong together. The
// broker that runs goes on with what it has; one that starts says what to do; and
// renewing mends it.
func TestRenewalThatWasInterrupted(t *testing.T) {
	f := startFleet(t, carrier{tls: true})
	before := f.shown()
	folder, err := config.OpenFleet(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.NewServer(folder.CA, []string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.dir, "tls", "server.key"), other.Key, 0o600); err != nil {
		t.Fatal(err)
	}
	if f.shown().SerialNumber.Cmp(before.SerialNumber) != 0 {
		t.Error("the broker does not go on with the certificate that it has")
	}
	if _, err := tls.LoadX509KeyPair(filepath.Join(f.dir, "tls", "server.pem"), filepath.Join(f.dir, "tls", "server.key")); err == nil {
		t.Fatal("the files belong together")
	}
	copied := filepath.Join(t.TempDir(), "fleet")
	if err := os.CopyFS(copied, withoutStore{os.DirFS(f.dir)}); err != nil {
		t.Fatal(err)
	}
	err = app.RunBroker(t.Context(), app.BrokerOptions{Dir: copied, Listen: "127.0.0.1:0"}, func(app.BrokerInfo) { t.Error("the broker starts") })
	if e := muster.AsError(muster.Internal, err); e.Kind != muster.Corrupt || !strings.Contains(e.Hint, "renew-certificate") {
		t.Errorf("the start of a broker: %v, hint %q", err, e.Hint)
	}
	if _, err := app.RenewCertificate(f.dir, nil); err != nil {
		t.Fatal(err)
	}
	if f.shown().SerialNumber.Cmp(before.SerialNumber) == 0 {
		t.Error("the broker does not show the renewed certificate")
	}
}

// withoutStore is the folder of a fleet without what its broker stores, where files
// come and go while it runs.
type withoutStore struct{ fs.FS }

func (w withoutStore) ReadDir(name string) ([]fs.DirEntry, error) {
	all, err := fs.ReadDir(w.FS, name)
	return slices.DeleteFunc(all, func(e fs.DirEntry) bool { return e.Name() == "jetstream" }), err
}
