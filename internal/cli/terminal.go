package cli

import (
	"hash/fnv"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// A terminal is what is known of an output. The zero terminal is a file or a
// pipe.
type terminal struct {
	is    bool
	color bool
	width int // 0 is unlimited
}

func terminalOf(w io.Writer, env func(string) string) terminal {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return terminal{}
	}
	t := terminal{is: true, color: env("NO_COLOR") == "" && env("TERM") != "dumb"}
	if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
		t.width = width
	}
	return t
}

func isTerminal(r io.Reader) bool {
	f, ok := r.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// The colours, as parameters of SGR.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
	dim    = "2"
)

// paint colours a text if the terminal shows colours.
func (t terminal) paint(color, s string) string {
	if !t.color || color == "" || s == "" {
		return s
	}
	return "\x1b[" + color + "m" + s + "\x1b[0m"
}

// nodeColor gives a node the same colour in every run. Red is left to errors.
func nodeColor(name string) string {
	colors := []string{"32", "33", "34", "35", "36", "92", "93", "94", "95", "96"}
	h := fnv.New32a()
	_, _ = io.WriteString(h, name) // never fails
	return colors[h.Sum32()%uint32(len(colors))]
}

// clean takes from a text what would move the cursor or change the terminal.
// What is printed comes from many machines, and one of them may be hostile.
func clean(s string) string {
	if !strings.ContainsFunc(s, control) && utf8.ValidString(s) {
		return s
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t':
			return ' '
		case control(r):
			return -1
		}
		return r
	}, s)
}

// control reports characters that do something instead of being seen,
// including those which change the direction of writing.
func control(r rune) bool {
	return unicode.IsControl(r) || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069
}

// cleanLine is clean for a line of a program's output: tabs stay, and so do
// colours when they are wanted.
func cleanLine(line string, color bool) string {
	var b strings.Builder
	colored := false
	for i := 0; i < len(line); {
		if line[i] == 0x1b {
			n := sgr(line[i:])
			if n > 0 {
				if color {
					b.WriteString(line[i : i+n])
					colored = true
				}
				i += n
				continue
			}
		}
		r, size := utf8.DecodeRuneInString(line[i:])
		if r == '\t' || !control(r) {
			b.WriteString(line[i : i+size])
		}
		i += size
	}
	if colored {
		b.WriteString("\x1b[0m") // the next line is of another node
	}
	return b.String()
}

// sgr returns the length of the colour sequence that s begins with, or 0.
func sgr(s string) int {
	if len(s) < 3 || s[1] != '[' {
		return 0
	}
	for i := 2; i < len(s); i++ {
		switch c := s[i]; {
		case c == 'm':
			return i + 1
		case (c < '0' || c > '9') && c != ';' && c != ':':
			return 0
		}
	}
	return 0
}
