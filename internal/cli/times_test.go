package cli

import (
	"testing"
	"time"
)

func TestTimesForPeople(t *testing.T) {
	day := 24 * time.Hour
	for _, test := range []struct {
		at   time.Duration
		want string
	}{
		{7*day - time.Millisecond, "in 7d"}, {24*time.Hour - time.Second, "in 24h"}, {time.Hour - time.Millisecond, "in 1h"},
		{time.Hour, "in 1h"}, {90 * time.Second, "in 90s"}, {-7*day + time.Second, "6d ago"}, {0, "now"},
	} {
		if got := ago(noon, noon.Add(test.at)); got != test.want {
			t.Errorf("%s from now: got %q, want %q", test.at, got, test.want)
		}
	}
	for d, want := range map[time.Duration]string{time.Hour: "1h", time.Minute: "1m", 90 * time.Minute: "90m", 24 * time.Hour: "24h", 7 * day: "7d"} {
		if got := short(d); got != want {
			t.Errorf("%s: got %q, want %q", d, got, want)
		}
	}
}
