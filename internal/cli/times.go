package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ago says when a time was, or will be, for a person.
func ago(now, t time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := now.Sub(t)
	switch {
	case d > -time.Second && d < time.Second:
		return "now"
	case d < 0:
		return "in " + short(nearestUnit(-d))
	}
	return short(d) + " ago"
}

// nearestUnit rounds to the unit in which short says it, so that a deadline
// that was set to a week from now is in 7 days and not in 6.
func nearestUnit(d time.Duration) time.Duration {
	switch {
	case d >= 47*time.Hour:
		return d.Round(24 * time.Hour)
	case d >= 119*time.Minute:
		return d.Round(time.Hour)
	case d >= 119*time.Second:
		return d.Round(time.Minute)
	case d >= 10*time.Second:
		return d.Round(time.Second)
	}
	return d
}

// short is a duration in its largest unit.
func short(d time.Duration) string {
	switch {
	case d >= time.Hour && d < 2*time.Hour && d%time.Hour == 0:
		return "1h"
	case d == time.Minute:
		return "1m"
	case d < time.Millisecond:
		return fmt.Sprintf("%dµs", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 10*time.Second:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", d.Seconds()), ".0") + "s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// stamp is a time in full, in the zone of the reader.
func stamp(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05.000 -0700")
}

// duration reads a duration that may be in days or weeks as well. They have 24
// hours and 7 days.
func duration(s string) (time.Duration, error) {
	for unit, length := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if number, ok := strings.CutSuffix(s, unit); ok {
			f, err := strconv.ParseFloat(number, 64)
			if err == nil && f > -1e5 && f < 1e5 {
				return time.Duration(f * float64(length)), nil
			}
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration; expected a number and a unit, as in 90s, 15m, 24h, 7d or 2w", s)
	}
	return d, nil
}

// deadline reads a duration from now, or a time.
func deadline(now time.Time, s string) (time.Time, error) {
	if d, err := duration(s); err == nil {
		if d <= 0 {
			return time.Time{}, fmt.Errorf("deadline %q is not in the future", s)
		}
		return now.Add(d), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			if !t.After(now) {
				return time.Time{}, fmt.Errorf("deadline %q is not in the future", s)
			}
			return t, nil
		}
	}
	if t, err := time.ParseInLocation("15:04", s, now.Location()); err == nil {
		at := time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), 0, 0, now.Location())
		if !at.After(now) {
			at = time.Date(now.Year(), now.Month(), now.Day()+1, t.Hour(), t.Minute(), 0, 0, now.Location())
		}
		return at, nil
	}
	return time.Time{}, fmt.Errorf("%q is neither a duration nor a time; expected for example 90s, 24h, 7d, 18:30 or 2006-01-02T15:04:05Z", s)
}

// A durationFlag is a flag that takes days and weeks too.
type durationFlag time.Duration

func (f *durationFlag) String() string {
	if *f == 0 {
		return ""
	}
	return short(time.Duration(*f))
}

func (f *durationFlag) Type() string { return "duration" }

func (f *durationFlag) Set(s string) error {
	d, err := duration(s)
	if err != nil {
		return err
	}
	if d < 0 {
		return fmt.Errorf("%q is negative", s)
	}
	*f = durationFlag(d)
	return nil
}

// plural is a count of things whose plural has an s.
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
