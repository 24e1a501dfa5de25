package cli

import (
	"strings"

	"github.com/mattn/go-runewidth"
)

// wrapIndent is how far the further lines of a text are indented.
const wrapIndent = 2

// wrap breaks a line of text between words, so that it fits a terminal; 0 is
// unlimited. Commands of muster to be copied stay on one line where they can.
func wrap(text string, width, indent int) string {
	lines := wrapLines(text, width, width-indent)
	return strings.Join(lines, "\n"+strings.Repeat(" ", indent))
}

// wrapLines breaks a text into a first line, which keeps its indent, and further
// ones.
func wrapLines(text string, first, further int) []string {
	rest := strings.TrimLeft(text, " ")
	indent := text[:len(text)-len(rest)]
	if first <= len(indent) || further <= 0 || visibleWidth(text) <= first {
		return []string{text}
	}
	var lines []string
	line, limit := "", first-len(indent)
	for _, word := range phrases(rest, further) {
		if line != "" && visibleWidth(line)+1+visibleWidth(word) > limit {
			lines = append(lines, line)
			line, limit = "", further
		}
		for visibleWidth(word) > limit && line == "" { // longer than a line
			piece := runewidth.Truncate(word, limit, "")
			if piece == "" || len(piece) == len(word) {
				break
			}
			lines, word, limit = append(lines, piece), word[len(piece):], further
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	lines = append(lines, line)
	lines[0] = indent + lines[0]
	return lines
}

// phrases are the words of a text, in which a command is one word: what begins with
// muster in quotes or after a colon.
func phrases(text string, width int) (list []string) {
	words := strings.Split(text, " ")
	for i := 0; i < len(words); i++ {
		end := i + 1
		if w := strings.TrimLeft(words[i], "'("); w == "muster" && (w != words[i] || i == 0 || strings.HasSuffix(words[i-1], ":")) {
			quoted := strings.HasPrefix(words[i], "'")
			for end < len(words) && !strings.HasSuffix(words[end-1], ";") && !(quoted && strings.Contains(words[end-1], "'") && end > i+1) {
				end++
			}
		}
		phrase := strings.Join(words[i:end], " ")
		if end > i+1 && visibleWidth(phrase) > width {
			phrase, end = words[i], i+1
		}
		list = append(list, phrase)
		i = end - 1
	}
	return list
}

// visibleWidth is the width of a text without its colours.
func visibleWidth(s string) int { return runewidth.StringWidth(cleanLine(s, false)) }
