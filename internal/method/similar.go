package method

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Similar returns up to three of the known names that a person may have meant
// by name, the best first.
func Similar(name string, known []string) []string {
	if name == "" || len(name) > 64 { // the distance is quadratic, and a name that long was not mistyped
		return nil
	}
	type candidate struct {
		name string
		cost int
	}
	var found []candidate
	for _, k := range known {
		cost := distance(name, k)
		switch {
		case cost <= min(3, len(name)/2):
		case strings.HasPrefix(k, name), strings.HasSuffix(k, "."+name):
			cost = len(k) // a part that was left out ranks behind a slip of a finger
		default:
			continue
		}
		found = append(found, candidate{k, cost})
	}
	slices.SortFunc(found, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.cost, b.cost), strings.Compare(a.name, b.name))
	})
	var names []string
	for _, c := range found[:min(3, len(found))] {
		names = append(names, c.name)
	}
	return names
}

// distance is the number of bytes to insert, remove or replace (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// orList joins words as a person does: a, b or c.
func orList(words []string) string {
	switch n := len(words); n {
	case 0:
		return ""
	case 1:
		return words[0]
	default:
		return strings.Join(words[:n-1], ", ") + " or " + words[n-1]
	}
}

// clip keeps hostile input from filling an error message.
func clip(s string) string {
	if len(s) > 80 {
		return fmt.Sprintf("%s... (%d bytes)", s[:80], len(s))
	}
	return s
}
