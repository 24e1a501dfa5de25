package aaa

import (
	"unicode/utf8"

	"github.com/musterfleet/muster"
)

// Limits of patterns in rights and rules.
const (
	MaxPattern  = 1024 // bytes of one glob or regular expression
	MaxPatterns = 256  // in one list
)

// matchGlob reports whether all of s matches the glob: '*' is any number of
// any characters, dots and line breaks included, '?' is one character, and
// every other character is itself. It takes at most len(glob)*len(s) steps and
// no memory.
func matchGlob(glob, s string) bool {
	g, i := 0, 0
	star, resume := -1, 0 // the last '*', and where it is tried next
	for i < len(s) {
		_, width := utf8.DecodeRuneInString(s[i:])
		switch {
		case g < len(glob) && glob[g] == '*':
			star, resume = g, i
			g++
			continue
		case g < len(glob) && glob[g] == '?':
			g, i = g+1, i+width
			continue
		case g < len(glob) && glob[g] == s[i]:
			g, i = g+1, i+1
			continue
		case star < 0:
			return false
		}
		_, width = utf8.DecodeRuneInString(s[resume:])
		resume += width
		g, i = star+1, resume
	}
	for g < len(glob) && glob[g] == '*' {
		g++
	}
	return g == len(glob)
}

// matchAny reports whether one of the globs matches.
func matchAny(globs []string, s string) bool {
	for _, glob := range globs {
		if matchGlob(glob, s) {
			return true
		}
	}
	return false
}

// checkGlobs checks a list of globs for names.
func checkGlobs(what string, globs []string) error {
	switch {
	case len(globs) == 0:
		return muster.Errorf(muster.Invalid, "%s has no pattern", what).WithHint("write \"*\" for any")
	case len(globs) > MaxPatterns:
		return muster.Errorf(muster.Invalid, "%s has %d patterns; at most %d are allowed", what, len(globs), MaxPatterns)
	}
	for _, glob := range globs {
		if err := checkName(what, glob, MaxPattern); err != nil {
			return err
		}
	}
	return nil
}
