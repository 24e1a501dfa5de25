package app

import (
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/config"
)

// TestAddRevocations: which entry revokes what, and until when it is needed.
func TestAddRevocations(t *testing.T) {
	_, key, err := aaa.NewUserKey()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	day := 24 * time.Hour
	issued := []config.CallerRecord{
		{Name: "alice", Key: "KEY1", BrokerKey: "BROKER1", Issued: now.Add(-day), Expires: now.Add(day)},
		{Name: "alice", Key: key, BrokerKey: "BROKER2", Issued: now.Add(time.Hour), Expires: now.Add(3 * day)}, // by a clock that was ahead
		{Name: "bob", Key: "KEY3", Issued: now.Add(-3 * day), Expires: now.Add(-day)},
	}
	for name, c := range map[string]struct {
		who     string
		partial bool
		want    aaa.Revocation
		matched int
		kind    muster.ErrorKind
	}{
		"a name":                     {"alice", false, aaa.Revocation{Name: "alice", At: now.Add(time.Hour), Until: now.Add(3 * day)}, 2, ""},
		"a key":                      {key, false, aaa.Revocation{Name: "alice", Key: key, At: now.Add(time.Hour), Until: now.Add(3 * day)}, 1, ""},
		"a name, others unknown":     {"alice", true, aaa.Revocation{Name: "alice", At: now.Add(time.Hour)}, 2, ""},
		"what has expired":           {"bob", false, aaa.Revocation{}, 0, muster.NotFound},
		"expired, others unknown":    {"bob", true, aaa.Revocation{Name: "bob", At: now}, 0, ""},
		"nobody":                     {"carol", false, aaa.Revocation{}, 0, muster.NotFound},
		"nobody, but there are more": {"carol", true, aaa.Revocation{Name: "carol", At: now}, 0, ""},
	} {
		callers := config.Callers{Partial: c.partial, Issued: issued}
		old := []aaa.Revocation{
			{Name: "dan", At: now.Add(-9 * day), Until: now.Add(-2 * day)}, // nothing of it is left
			{Name: c.want.Name, Key: c.want.Key, At: now.Add(-day), Until: now.Add(day), Reason: "before"},
			{Name: "erin", At: now.Add(-day)},
		}
		result, all, err := addRevocations(callers, old, RevokeOptions{Who: []string{c.who}}, now)
		if muster.KindOf(err) != c.kind {
			t.Errorf("%s: %v", name, err)
		}
		if c.kind != "" || err != nil {
			continue
		}
		c.want.Reason = "before"
		if len(all) != 2 || all[0].Name != "erin" || all[1] != c.want || len(result.Revoked) != c.matched || (len(result.Unknown) == 1) != (c.matched == 0) {
			t.Errorf("%s: got %+v with %+v, want %+v", name, all, result, c.want)
		}
	}
}
