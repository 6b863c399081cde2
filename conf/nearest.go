package conf

import "strings"

// DidYouMean suggests the nearest of the known names to one that is not known, or lists them.
func DidYouMean(name string, known []string) string {
	if n := nearest(name, known); n != "" {
		return "did you mean " + n + "?"
	}
	return "known are " + strings.Join(known, ", ")
}

// nearest returns the known name that name was probably meant to be, or "". Case and the choice
// between blank, - and _ do not count.
func nearest(name string, known []string) string {
	if len(name) > maxName {
		return ""
	}
	best, least := "", max(2, len(name)/3)+1
	for _, k := range known {
		if d := distance(normal(name), normal(k)); d < least && d < len(k) {
			best, least = k, d
		}
	}
	return best
}

func normal(s string) string {
	return strings.NewReplacer("-", "_", " ", "_").Replace(strings.ToLower(s))
}

// distance counts the bytes to insert, remove, replace or swap with their neighbour to make b of a
// (restricted Damerau-Levenshtein distance).
func distance(a, b string) int {
	before, above, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range above {
		above[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(above[j]+cost, above[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, above, row = above, row, before
	}
	return above[len(b)]
}
