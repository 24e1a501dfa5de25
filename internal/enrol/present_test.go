package enrol

import (
	"testing"
	"time"

	"github.com/musterfleet/muster/internal/aaa"
)

func TestPresent(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	secret := aaa.RandomSecret()
	hash := aaa.HashSecret(secret)
	open := invitation{Node: "n", Secret: hash[:], Expires: now.Add(time.Hour)}
	used, void, late := open, open, open
	used.UsedBy, used.UsedAt = "UA", now
	void.Void = "because"
	late.Failures = MaxFailures - 1
	right := secret.Reveal()
	wrong := append([]byte{right[0] ^ 1}, right[1:]...)
	for name, c := range map[string]struct {
		v       invitation
		secret  []byte
		key     string
		at      time.Time
		admit   bool
		changed func(*invitation) bool // nil: the record stays
	}{
		"first use":          {open, right, "UA", now, true, func(v *invitation) bool { return v.UsedBy == "UA" && v.UsedAt.Equal(now) }},
		"same key again":     {used, right, "UA", now, true, nil},
		"same key too late":  {used, right, "UA", now.Add(time.Hour), false, nil},
		"another key":        {used, right, "UB", now, false, nil},
		"expired":            {open, right, "UA", now.Add(time.Hour), false, nil},
		"wrong secret":       {open, wrong, "UA", now, false, func(v *invitation) bool { return v.Failures == 1 && v.Void == "" }},
		"no secret":          {open, nil, "UA", now, false, func(v *invitation) bool { return v.Failures == 1 }},
		"last wrong secret":  {late, wrong, "UA", now, false, func(v *invitation) bool { return v.Void != "" }},
		"wrong when used":    {used, wrong, "UA", now, false, nil},
		"void":               {void, right, "UA", now, false, nil},
		"unknown":            {invitation{}, right, "UA", now, false, nil},
		"unknown, no secret": {invitation{}, nil, "UA", now, false, nil},
	} {
		next, err := c.v.present(request{c.secret, c.key}, c.at)
		if (err == nil) != c.admit {
			t.Errorf("%s: %v", name, err)
		}
		switch {
		case c.changed == nil && next != nil:
			t.Errorf("%s: the record changed to %+v", name, next)
		case c.changed != nil && (next == nil || !c.changed(next)):
			t.Errorf("%s: the record is %+v", name, next)
		}
	}
}

func TestOnlyRemovalsRemove(t *testing.T) {
	for text, want := range map[string]bool{
		`{}`: true, `{"by":"alice","reason":"gone"}`: true,
		``: false, `null`: false, `[]`: false, `{"stream":"MUSTER_ALIVE","seq":1}`: false, `{} {}`: false, `{"by":1}`: false,
	} {
		if got := isRemoval([]byte(text)); got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
}
