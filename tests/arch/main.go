// Arch prints the project's plan as the code has it: each room of arch_test.go's table with what it
// may import, its packages with their lines, and how many arrows between a package's files run
// upward.
//
//	go run ./tests/arch                    the plan
//	go run ./tests/arch ./gssproxyd/proc   one package: its files in order, and the upward arrows
//
// Lines are those of production files that were written by hand: tests and files with the header
// "Code generated" are left out.
//
// There is an arrow from file A to file B if A uses a package-level name, a method or a field that
// is declared in B. Files are put in the order, users above what they use, that has the fewest
// arrows against it; these are the upward ones. Where there are none, the files could be packages.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

func main() {
	verbose := flag.Bool("v", false, "print each package's files in order, and the upward arrows")
	flag.Parse()
	if err := run(os.Stdout, flag.Args(), *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "arch:", err)
		os.Exit(1)
	}
}

func run(w io.Writer, patterns []string, verbose bool) error {
	all := len(patterns) == 0
	if all {
		patterns = []string{"./..."}
	}
	listed, err := list(patterns)
	if err != nil {
		return err
	}
	var packages []*pkg
	for _, l := range listed.targets {
		if name := l.name(); name == "" || all && strings.HasPrefix(name, "tests/") {
			continue // no code but arch_test.go; no production code
		}
		p, err := load(l, listed.exports)
		if err != nil {
			return err
		}
		packages = append(packages, p)
	}
	if !all {
		for _, p := range packages {
			fmt.Fprintln(w, p)
			p.describe(w)
		}
		return nil
	}
	rooms, err := readRooms("arch_test.go")
	if err != nil {
		return err
	}
	// A package is in the first room that fits it, as in the test.
	in := make(map[string]int)
	for _, p := range packages {
		in[p.name] = -1
		for i, r := range rooms {
			if r.holds(p.name) {
				in[p.name] = i
				break
			}
		}
	}
	lines := 0
	for i, r := range rooms {
		if r.name == "tests/..." {
			continue
		}
		fmt.Fprintf(w, "%s  imports %s\n", r.name, r.imports)
		for _, p := range packages {
			if in[p.name] != i {
				continue
			}
			lines += p.lines
			fmt.Fprintln(w, "   ", p)
			if verbose {
				p.describe(w)
			}
		}
	}
	fmt.Fprintf(w, "%d lines in %d packages\n", lines, len(packages))
	return nil
}

type room struct{ name, imports string }

func (r room) holds(name string) bool {
	base, tree := strings.CutSuffix(r.name, "/...")
	return name == base || tree && strings.HasPrefix(name, base+"/")
}

// readRooms reads the table out of the test, which is its one home.
func readRooms(file string) ([]room, error) {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		return nil, err
	}
	var table *ast.CompositeLit
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && v.Names[0].Name == "rooms" && len(v.Values) == 1 {
			table, _ = v.Values[0].(*ast.CompositeLit)
		}
		return table == nil
	})
	if table == nil {
		return nil, fmt.Errorf("%s has no table of rooms", file)
	}
	var rooms []room
	for _, row := range table.Elts {
		var cells []string
		for _, cell := range row.(*ast.CompositeLit).Elts {
			s, err := strconv.Unquote(cell.(*ast.BasicLit).Value)
			if err != nil {
				return nil, err
			}
			cells = append(cells, s)
		}
		imports := strings.Join(strings.Fields(cells[1]+" "+cells[2]), ", ")
		if imports == "" {
			imports = "nothing"
		}
		rooms = append(rooms, room{cells[0], imports})
	}
	return rooms, nil
}

// listing is what go list says of one package.
type listing struct {
	Dir, ImportPath, Export string
	DepOnly                 bool
	GoFiles                 []string
	Module                  *struct{ Path string }
}

// name is the package's path within the module; empty for the module's own directory.
func (l *listing) name() string {
	return strings.TrimPrefix(strings.TrimPrefix(l.ImportPath, l.Module.Path), "/")
}

type listings struct {
	targets []*listing
	exports map[string]string // import path → file with the types it exports
}

func list(patterns []string) (*listings, error) {
	args := append([]string{"list", "-buildvcs=false", "-export", "-deps",
		"-json=Dir,ImportPath,Export,DepOnly,GoFiles,Module"}, patterns...)
	cmd := exec.Command("go", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	all := &listings{exports: make(map[string]string)}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		l := new(listing)
		if err := dec.Decode(l); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all.exports[l.ImportPath] = l.Export
		if !l.DepOnly {
			all.targets = append(all.targets, l)
		}
	}
}

// pkg is one package: its files, from users down to what they use.
type pkg struct {
	name  string
	lines int
	graph
}

func (p *pkg) String() string {
	return fmt.Sprintf("%-28s %5d lines %3d files %3d of %3d arrows upward",
		p.name, p.lines, len(p.files), len(p.upward()), p.count())
}

// load type-checks a package's production files and notes which uses what of which.
func load(l *listing, exports map[string]string) (*pkg, error) {
	p := &pkg{name: l.name()}
	fset := token.NewFileSet()
	var syntax []*ast.File
	index := make(map[string]int)
	for i, name := range l.GoFiles {
		path := filepath.Join(l.Dir, name)
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		f, err := parser.ParseFile(fset, path, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		if !ast.IsGenerated(f) {
			p.lines += bytes.Count(text, []byte("\n"))
		}
		syntax = append(syntax, f)
		index[path] = i
	}
	uses := make(map[*ast.Ident]types.Object)
	reader := func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) }
	conf := types.Config{Importer: importer.ForCompiler(fset, "gc", reader)}
	checked, err := conf.Check(l.ImportPath, fset, syntax, &types.Info{Uses: uses})
	if err != nil {
		return nil, err
	}
	p.graph = newGraph(l.GoFiles)
	for id, o := range uses {
		if o.Pkg() == checked && shared(o) {
			from, to := fset.Position(id.Pos()).Filename, fset.Position(o.Pos()).Filename
			p.use(index[from], index[to], id.Name)
		}
	}
	p.sort()
	return p, nil
}

// shared reports whether o can be used from another file than its own: at package level, a method
// or a field.
func shared(o types.Object) bool {
	switch o := o.(type) {
	case *types.PkgName:
		return false
	case *types.Var:
		if o.IsField() {
			return true
		}
	case *types.Func:
		return true
	}
	return o.Parent() == o.Pkg().Scope()
}
