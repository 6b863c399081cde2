package conf

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

func seeds(f *testing.F, add func(main, dropIn string)) {
	files, err := filepath.Glob("testdata/cases/*.txtar")
	if err != nil || len(files) == 0 {
		f.Fatal("no cases", err)
	}
	for _, name := range files {
		ar, err := txtar.ParseFile(name)
		if err != nil {
			f.Fatal(err)
		}
		main, dropIn := "", ""
		for _, m := range ar.Files {
			switch {
			case m.Name == "main.conf":
				main = string(m.Data)
			case strings.HasPrefix(m.Name, "d/"):
				dropIn = string(m.Data)
			}
		}
		add(main, dropIn)
	}
}

// Whatever the bytes: no panic, every problem has its file and a line of it, and what comes out
// keeps the promises of the syntax.
func FuzzParse(f *testing.F) {
	seeds(f, func(main, _ string) { f.Add([]byte(main)) })
	f.Fuzz(func(t *testing.T, data []byte) {
		var r report
		lines := strings.Count(string(data), "\n") + 1
		sections := parse("x.conf", 0, data, &r, knownSections)
		for _, p := range append(r.errors, r.warnings...) {
			if p.File != "x.conf" || p.Line < 1 || p.Line > lines || p.What == "" {
				t.Fatalf("%+v", p)
			}
		}
		for i, s := range sections {
			if s.name == "" && i > 0 || s.name != trim(s.name) || len(s.name) > maxName || s.at.line < 1 {
				t.Fatalf("section %+v", s)
			}
			for _, e := range s.entries {
				if e.key == "" || e.key != trim(e.key) || strings.Contains(e.key, "=") || len(e.key) >= maxName || e.value != trim(e.value) || strings.ContainsAny(e.key+e.value, "\x00\n") {
					t.Fatalf("entry %+v", e)
				}
			}
		}
	})
}

// The same for a whole configuration, which either has a problem or a service; and what loads
// strictly means the same with Compat.
func FuzzInterpret(f *testing.F) {
	seeds(f, func(main, dropIn string) { f.Add(main, dropIn) })
	interpret := func(main, dropIn string, compat bool) (*Config, error) {
		r := newReader(Source{File: "main.conf", Users: testUsers, Compat: compat})
		return r.interpret([]file{
			{"main.conf", parse("main.conf", 0, []byte(main), &r.report, knownSections)},
			{"10-x.conf", parse("10-x.conf", 1, []byte(dropIn), &r.report, knownSections)},
		})
	}
	f.Fuzz(func(t *testing.T, main, dropIn string) {
		c, err := interpret(main, dropIn, false)
		if err != nil {
			for _, p := range err.(*Errors).Problems {
				if p.File != "main.conf" && p.File != "10-x.conf" || p.Line < 1 {
					t.Fatalf("%+v", p)
				}
			}
		}
		d, errCompat := interpret(main, dropIn, true)
		if err != nil {
			return
		}
		if len(c.Services) == 0 || errCompat != nil || len(d.Services) != len(c.Services) {
			t.Fatalf("%v; with compat %v, %v", c, d, errCompat)
		}
	})
}
