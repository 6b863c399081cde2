package conf

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing that is wrong, or odd, in the configuration.
type Problem struct {
	File     string
	Line     int    // 0 if it concerns the whole file
	What     string // is wrong
	Expected string // instead; may be empty
	Do       string // what to do about it; may be empty

	// Temporary says that nothing is known to be wrong: the name service did not answer.
	Temporary bool

	nth int // of the file
}

// String returns "file:line: what; expected; do".
func (p Problem) String() string {
	s := p.File + ": "
	if p.Line > 0 {
		s = fmt.Sprintf("%s:%d: ", p.File, p.Line)
	}
	s += p.What
	for _, part := range []string{p.Expected, p.Do} {
		if part != "" {
			s += "; " + part
		}
	}
	return s
}

// Errors is what [Load] returns when the configuration cannot be used: all that is wrong with it,
// in the order of the files and lines.
type Errors struct {
	Problems []Problem

	// Read is what could be read, with its warnings, to be looked through for more that is wrong
	// and for nothing else.
	Read *Config
}

// Add adds problems that were found elsewhere, see [Service.Problem].
func (e *Errors) Add(problems ...Problem) {
	e.Problems = append(e.Problems, problems...)
	slices.SortStableFunc(e.Problems, inOrder)
}

// Error returns the problems, one a line.
func (e *Errors) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Temporary reports whether every problem is, so that loading again may work.
func (e *Errors) Temporary() bool {
	return !slices.ContainsFunc(e.Problems, func(p Problem) bool { return !p.Temporary })
}

// position is where something was read. nth counts files, for sorting.
type position struct {
	file string
	nth  int
	line int
}

func (p position) String() string { return fmt.Sprintf("%s:%d", p.file, p.line) }

// origins says for the options of a section where their values were read; defaults are not in it.
type origins map[string][]position

// report collects problems. A problem of a configuration that the C daemon would start with goes
// through odd; its errors become warnings with compat.
type report struct {
	compat   bool
	errors   []Problem
	warnings []Problem
}

func (r *report) fail(at position, what, expected, do string) {
	r.errors = append(r.errors, problem(at, what, expected, do))
}

func (r *report) warn(at position, what, do string) {
	r.warnings = append(r.warnings, problem(at, what, "", do))
}

// odd reports what the C daemon accepts without a word. Its result reports whether to go on as C
// does, which asC describes.
func (r *report) odd(at position, what, expected, do, asC string) bool {
	if !r.compat {
		r.fail(at, what, expected, do)
		return false
	}
	r.warnings = append(r.warnings, problem(at, what, asC, do))
	return true
}

func problem(at position, what, expected, do string) Problem {
	return Problem{File: at.file, Line: at.line, What: what, Expected: expected, Do: do, nth: at.nth}
}

// inOrder compares problems by file and line.
func inOrder(a, b Problem) int {
	return cmp.Or(a.nth-b.nth, a.Line-b.Line)
}
