package filter

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/musterfleet/muster"
)

// A SyntaxError says where an expression cannot be understood and what was
// expected there. Its kind (muster.KindOf) is Invalid.
type SyntaxError struct {
	Expr    string // the whole expression
	Column  int    // in characters, from 1; one past the end when something is missing there
	Message string // what is wrong, without the place
}

// Error returns the place and the message on one line.
func (e *SyntaxError) Error() string {
	return fmt.Sprintf("selector: column %d: %s", e.Column, e.Message)
}

// Unwrap returns the error as a *muster.Error of kind Invalid.
func (e *SyntaxError) Unwrap() error { return muster.Errorf(muster.Invalid, "%s", e.Error()) }

// How much of a long expression Caret shows before and after the column.
const (
	caretBefore = 50
	caretAfter  = 25
)

// Caret returns two lines to print in a fixed-width font: the expression, and
// a caret under the column. Long expressions are shortened around it.
func (e *SyntaxError) Caret() string {
	text := []rune(strings.ToValidUTF8(e.Expr, "\uFFFD"))
	at := min(max(e.Column-1, 0), len(text))
	from, to := 0, len(text)
	prefix, suffix := "", ""
	if at > caretBefore {
		from, prefix = at-caretBefore, "..."
	}
	if to-at > caretAfter {
		to, suffix = at+caretAfter, "..."
	}
	shown := strings.Map(oneCell, string(text[from:to]))
	return prefix + shown + suffix + "\n" + strings.Repeat(" ", len(prefix)+at-from) + "^"
}

// oneCell replaces what a terminal would not show in one cell, such as tabs
// and line ends, so that the caret stays below its column.
func oneCell(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return ' '
}
