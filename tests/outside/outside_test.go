// Package outside tests this module as programs of another one use it: the programs in docs/go.md
// are vetted, and the tests among them run, in a module of their own.
package outside

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// program is a block of Go in docs/go.md.
type program struct {
	heading string // above it
	line    int    // where it begins
	text    string
}

// test reports whether it is a test, of the program before it.
func (p *program) test() bool { return strings.Contains(p.text, "\"testing\"\n") }

// programs returns the blocks of a page that have a package clause.
func programs(page string) (list []program) {
	var heading string
	var block *program
	for i, line := range strings.SplitAfter(page, "\n") {
		switch {
		case block == nil && strings.HasPrefix(line, "#"):
			heading = strings.TrimLeft(strings.TrimSpace(line), "# ")
		case block == nil && line == "```go\n":
			block = &program{heading: heading, line: i + 2}
		case block != nil && line == "```\n":
			if regexp.MustCompile(`(?m)^package `).MatchString(block.text) {
				list = append(list, *block)
			}
			block = nil
		case block != nil:
			block.text += line
		}
	}
	return list
}

// dir is the name of a program's directory.
func (p *program) dir() string {
	return strings.Trim(regexp.MustCompile(`[^a-z]+`).ReplaceAllString(strings.ToLower(p.heading), "-"), "-")
}

// outside makes a module with the programs in it, which has ours from the source tree and the others
// from the module cache, in the versions that we have.
func outside(t *testing.T, programs []program) (dir string) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	mod := regexp.MustCompile(`(?ms)^module .*?$|^tool \(.*?^\)$`).ReplaceAllString(read("go.mod"), "")
	stub, err := filepath.Abs("testdata/pgx")
	if err != nil {
		t.Fatal(err)
	}
	write("go.mod", fmt.Sprintf(`module example.test/outside
%s
require gssproxyd v0.0.0
replace gssproxyd => %q
require github.com/jackc/pgx/v5 v5.0.0
replace github.com/jackc/pgx/v5 => %q
`, mod, root, stub))
	write("go.sum", read("go.sum"))
	var last string
	for _, p := range programs {
		name := "main.go"
		if p.test() {
			name = "main_test.go"
		} else {
			last = p.dir()
		}
		write(filepath.Join(last, name), fmt.Sprintf("//line %s/docs/go.md:%d\n%s", root, p.line, p.text))
	}
	return dir
}

// run runs the go command in a module.
func run(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod -buildvcs=false", "GOPROXY=off", "GOWORK=off", "GOTOOLCHAIN=local")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func page(t *testing.T) []program {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("not run: the go command is not in PATH")
	}
	text, err := os.ReadFile("../../docs/go.md")
	if err != nil {
		t.Fatal(err)
	}
	list := programs(string(text))
	if len(list) < 5 || list[0].test() {
		t.Fatalf("docs/go.md has %d programs", len(list))
	}
	return list
}

// TestPrograms: what docs/go.md has for programs is right as it stands.
func TestPrograms(t *testing.T) {
	list := page(t)
	for _, p := range list {
		fmted := exec.CommandContext(t.Context(), "gofmt", "-l")
		fmted.Stdin = strings.NewReader(p.text)
		if out, err := fmted.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("docs/go.md, %s, line %d: gofmt would write it in another way: %v\n%s", p.heading, p.line, err, out)
		}
	}
	run(t, outside(t, list), "vet", "./...")
}

// TestTests runs the tests in docs/go.md: package interposertest is there for other modules, too.
func TestTests(t *testing.T) {
	list := page(t)
	var tested []program
	for i, p := range list {
		if p.test() {
			tested = append(tested, list[i-1], p)
		}
	}
	if len(tested) == 0 {
		t.Fatal("docs/go.md has no test")
	}
	run(t, outside(t, tested), "test", "-count=1", "./...")
}
