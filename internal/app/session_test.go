package app

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"

	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/enrol"
)

// A caller that is revoked while the service has no connection is cut off when it
// has one again, and not only made known to nodes.
func TestRevokedBetweenSessions(t *testing.T) {
	dir := t.TempDir()
	fleet := fleetIn(t, dir)
	b, err := StartBroker(t.Context(), dir, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Stop()
	at := bus.Options{Name: "service", InProcess: b, Log: slog.New(slog.DiscardHandler)}
	var pushed accounts
	s := session{
		fleet: fleet, log: at.Log, at: at, update: pushed.add,
		dial: func(ctx context.Context) (*bus.Conn, error) { return dialService(ctx, fleet, at) },
	}
	callers, err := fleet.Callers()
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"", "thief"} {
		if name != "" {
			if _, _, err := signRevocation(t.Context(), fleet, RevokeOptions{Who: []string{name}}); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_ = s.once(ctx, cancel) // until newcomers can come; it ends as ctx does
		if ctx.Err() != context.Canceled {
			t.Fatalf("session %d was never ready", i+1)
		}
	}
	key := callers.Issued[0].BrokerKey
	if !slices.ContainsFunc(pushed.all, func(a enrol.Account) bool { return revokes(t, a, key) }) {
		t.Errorf("the broker was given %d accounts; none revokes the caller", len(pushed.all))
	}
}

// fleetIn makes a fleet with a caller, thief.
func fleetIn(t *testing.T, dir string) config.FleetFolder {
	t.Helper()
	if err := createFleet(dir, InitOptions{Dir: dir, Name: "test", Hosts: []string{"127.0.0.1"}, Port: 1}); err != nil {
		t.Fatal(err)
	}
	rights := []aaa.Right{{Methods: []string{"echo"}, Nodes: []string{"*"}}}
	if err := AddOperator(OperatorOptions{Dir: dir, Name: "thief", Rights: rights, Out: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	fleet, err := config.OpenFleet(dir)
	if err != nil {
		t.Fatal(err)
	}
	return fleet
}

// accounts are those that a broker was given.
type accounts struct {
	mu  sync.Mutex // guards all
	all []enrol.Account
}

func (a *accounts) add(_ context.Context, x enrol.Account) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = append(a.all, x)
	return nil
}

func revokes(t *testing.T, a enrol.Account, user string) bool {
	t.Helper()
	claims, err := jwt.DecodeAccountClaims(a.JWT)
	if err != nil {
		t.Fatal(err)
	}
	return claims.IsClaimRevoked(&jwt.UserClaims{ClaimsData: jwt.ClaimsData{Subject: user, IssuedAt: time.Now().Add(-time.Minute).Unix()}})
}

func TestAccountTaken(t *testing.T) {
	for answer, want := range map[string]struct{ kept, failed bool }{
		`{"server":{"name":"a"},"data":{"account":"A","code":200,"message":"jwt updated"}}`:                            {true, false},
		`{"server":{"name":"a"},"data":{"account":"A","code":200,"message":"jwt update skipped"}}`:                     {false, false},
		`{"server":{"name":"a"},"error":{"account":"A","code":500,"description":"jwt update resulted in error - no"}}`: {false, true},
		`{}`: {false, true},
		``:   {false, true},
	} {
		if kept, err := accountTaken([]byte(answer)); kept != want.kept || (err != nil) != want.failed {
			t.Errorf("%s: %t, %v", answer, kept, err)
		}
	}
}

func FuzzAccountTaken(f *testing.F) {
	f.Add([]byte(`{"data":{"message":"jwt updated"}}`))
	f.Fuzz(func(t *testing.T, answer []byte) {
		if kept, err := accountTaken(answer); kept && err != nil {
			t.Errorf("%q: %v", answer, err)
		}
	})
}
