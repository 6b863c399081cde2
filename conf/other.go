package conf

import (
	"fmt"
	"slices"
	"strings"
)

// What follows is for other programs, which have files of the same syntax with keys of their own.

// A File is a file that was read, and what was found to be wrong with it.
type File struct {
	Sections []Section
	name     string
	report
}

// A Section is a section of a [File].
type Section struct {
	Name    string
	at      position
	entries []entry
}

// A Key is what a section may have.
type Key struct {
	Name     string
	Repeat   bool // it may be there more than once
	Required bool

	// Set takes a value, which is not empty. The error says what is wrong with it, as what follows
	// KEY = "VALUE", with "; " before what is expected instead.
	Set func(value string) error
}

// ReadFile reads a file. expected says which sections there are, as in "[gssproxy] is expected". What
// is wrong is in [File.Err].
func ReadFile(name, expected string) *File {
	f := &File{name: name}
	at := position{file: name}
	data, err := f.readFile(at)
	if err != nil {
		f.fail(at, "the configuration file cannot be read: "+withoutPath(err), "", "create it, or name another with -c")
		return f
	}
	for _, s := range parse(name, 0, data, &f.report, expected) {
		f.Sections = append(f.Sections, Section{s.name, s.at, s.entries})
	}
	return f
}

// Apply sets what the keys of a section are for. Each key that is not one of them is an error, as is
// one that is there twice or is required and missing.
func (f *File) Apply(s *Section, keys []Key) {
	first := make(map[string]position)
	for _, e := range s.entries {
		v := value{key: e.key, text: e.value, at: e.at}
		i := slices.IndexFunc(keys, func(k Key) bool { return strings.EqualFold(k.Name, e.key) })
		if i < 0 {
			names := make([]string, len(keys))
			for j, k := range keys {
				names[j] = k.Name
			}
			f.fail(e.at, fmt.Sprintf("unknown key %q in [%s]", shorten(e.key), s.Name), "", DidYouMean(e.key, names))
			continue
		}
		k := keys[i]
		v.key = k.Name
		before, twice := first[k.Name]
		if !twice {
			first[k.Name] = e.at
		}
		switch odd := oddBlank(e.value); {
		case twice && !k.Repeat:
			f.fail(e.at, fmt.Sprintf("%s is there twice: line %d already sets it", k.Name, before.line), "one line is expected", "remove one of them")
		case hasComment(e.value):
			f.fail(e.at, behindValue(k.Name), "a value alone is expected", ownLine)
		case e.value == "":
			f.fail(e.at, v.is("has no value"), "", "write one, or remove the line")
		default:
			if err := k.Set(e.value); err != nil {
				f.fail(e.at, v.is(err.Error()), "", "")
			} else if odd != 0 {
				f.warn(e.at, fmt.Sprintf("%s has the character %U in its value, which looks like a blank and is part of it", k.Name, odd), "remove it")
			}
		}
	}
	for _, k := range keys {
		if _, there := first[k.Name]; k.Required && !there {
			f.fail(s.at, fmt.Sprintf("[%s] has no %s", s.Name, k.Name), "", "add "+k.Name+" = ...")
		}
	}
}

// Fail adds an error about a section, or about the file if it is nil: what is wrong, what is expected
// and what to do, of which the last two may be empty.
func (f *File) Fail(s *Section, what, expected, do string) {
	at := position{file: f.name}
	if s != nil {
		at = s.at
	}
	f.fail(at, what, expected, do)
}

// Err returns an [*Errors] with all that is wrong, nil if nothing is.
func (f *File) Err() error {
	if len(f.errors) == 0 {
		return nil
	}
	errs := new(Errors)
	errs.Add(f.errors...)
	return errs
}

// Warnings are what is odd.
func (f *File) Warnings() (list []string) {
	for _, w := range f.warnings {
		list = append(list, w.String())
	}
	return list
}

// Line returns the number of the line that begins the section.
func (s *Section) Line() int { return s.at.line }
