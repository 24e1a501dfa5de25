package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/mattn/go-runewidth"
)

// A cell is one field of a table.
type cell struct {
	text  string
	color string
}

// A table is rows under headings. It fits the width of its terminal: the
// widest column gives way.
type table struct {
	head  []string
	rows  [][]cell
	below map[int][]string // lines under a row
	wraps bool             // cells take several lines, where others are cut
	whole string           // heading of the column that is not cut: it is for copying
}

func newTable(head ...string) *table { return &table{head: head} }

// row adds a row of cells and of other values, which are printed with %v.
func (t *table) row(values ...any) {
	cells := make([]cell, len(values))
	for i, v := range values {
		c, ok := v.(cell)
		if !ok {
			c = cell{text: fmt.Sprint(v)}
		}
		c.text = clean(c.text)
		if c.text == "" {
			c.text = "-"
		}
		cells[i] = c
	}
	t.rows = append(t.rows, cells)
}

// note adds a line under the last row.
func (t *table) note(text string) {
	if t.below == nil {
		t.below = map[int][]string{}
	}
	last := len(t.rows) - 1
	t.below[last] = append(t.below[last], text)
}

const gap = 2 // spaces between columns

// minColumn is what a column is not narrowed below, so that what is left can
// be recognised. A table of many columns may then exceed a narrow terminal.
const minColumn = 6

func (t *table) widths(limit int) []int {
	widths := make([]int, len(t.head))
	for i, h := range t.head {
		widths[i] = runewidth.StringWidth(h)
	}
	for _, r := range t.rows {
		for i, c := range r {
			widths[i] = max(widths[i], runewidth.StringWidth(c.text))
		}
	}
	if limit <= 0 {
		return widths
	}
	total := gap * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	narrow := slices.Clone(widths)
	for ; total > limit; total-- {
		widest := -1
		for i, w := range narrow {
			if t.head[i] != t.whole && w > minColumn && (widest < 0 || w > narrow[widest]) {
				widest = i
			}
		}
		switch {
		case widest >= 0:
			narrow[widest]--
		case t.whole != "":
			return widths // to cut the others would be of no use
		default:
			return narrow
		}
	}
	return narrow
}

// lines breaks or cuts the cells of a row to the widths.
func (t *table) lines(cells []cell, widths []int) [][]cell {
	all := [][]cell{make([]cell, len(cells))}
	for i, c := range cells {
		texts := []string{runewidth.Truncate(c.text, widths[i], "…")}
		if t.wraps {
			texts = wrapLines(c.text, widths[i], widths[i])
		}
		for n, text := range texts {
			if n == len(all) {
				all = append(all, make([]cell, len(cells)))
			}
			all[n][i] = cell{text, c.color}
		}
	}
	return all
}

func (t *table) write(w io.Writer, on terminal) error {
	widths := t.widths(on.width)
	var b strings.Builder
	line := func(cells []cell) {
		for _, part := range t.lines(cells, widths) {
			text, blanks := "", 0
			for i, c := range part {
				if c.text != "" { // no blanks at the end of a line
					text += strings.Repeat(" ", blanks) + on.paint(c.color, c.text)
					blanks = 0
				}
				blanks += widths[i] - runewidth.StringWidth(c.text) + gap
			}
			b.WriteString(text + "\n")
		}
	}
	head := make([]cell, len(t.head))
	for i, h := range t.head {
		head[i] = cell{h, dim}
	}
	line(head)
	for i, r := range t.rows {
		line(r)
		for _, text := range t.below[i] {
			text = strings.Repeat(" ", gap) + strings.TrimRight(cleanLine(text, false), " ")
			if on.width > 0 {
				text = runewidth.Truncate(text, on.width, "…")
			}
			b.WriteString(text + "\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
