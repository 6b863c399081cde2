// Package packages tests the packages, deb and rpm: what is in them, and, for make nightly, their
// whole life in a root of Debian's. -root has the latter run, in a network namespace of its own
// that has nothing but the loopback interface.
package packages

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"gssproxyd/tests/lab"
)

var rootFlag = flag.String("root", "", "`directory` with a root of Debian's, as install-deps makes it (root only)")

// inside says to a process that it is in the namespaces.
const inside = "PACKAGES_TEST_INSIDE"

// built is where the packages are, once they are built.
var built string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if built = os.Getenv(inside); built != "" {
		if err := prepare(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "packages-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	once = sync.OnceValue(func() error {
		built = filepath.Join(dir, "built")
		return build(filepath.Join(dir, "tree"), built)
	})
	if *rootFlag == "" {
		return m.Run()
	}
	if err := once(); err != nil { // where there is a network
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return again()
}

// once builds the packages at the first call.
var once func() error

// again runs this program in namespaces of its own.
func again() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"="+built)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// prepare has the loopback interface up, and mounts that nobody else sees.
func prepare() error {
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w %s", err, out)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount(2): %w", err)
	}
	return nil
}

// epoch is the time of the files in the packages, whatever the last commit is.
const epoch = "1700000000"

// build copies the project to the directory tree, which it makes, and builds the packages there,
// into the directory out.
func build(tree, out string, env ...string) error {
	top, err := os.ReadDir("../..")
	if err != nil {
		return err
	}
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	for _, e := range top {
		if name := e.Name(); name == ".git" || name == "bin" || name == "tmp" {
			continue
		}
		// In this process, so that the go command knows on which files the result depends.
		from, to := filepath.Join("../..", e.Name()), filepath.Join(tree, e.Name())
		if e.IsDir() {
			err = os.CopyFS(to, os.DirFS(from))
		} else {
			var text []byte
			if text, err = os.ReadFile(from); err == nil {
				err = os.WriteFile(to, text, 0o644)
			}
		}
		if err != nil {
			return err
		}
	}
	cmd := exec.Command("make", "packages", "PACKAGES="+out)
	cmd.Dir = tree
	cmd.Env = append(append(os.Environ(), "SOURCE_DATE_EPOCH="+epoch, "MAKEFLAGS="), env...)
	text, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("make packages: %w\n%s", err, text)
	}
	made, err := filepath.Glob(filepath.Join(out, "*"))
	for _, name := range made {
		if !strings.Contains(string(text), name) {
			return fmt.Errorf("make packages does not say that it made %s:\n%s", name, text)
		}
	}
	return err
}

// file is the one of the packages built whose name the pattern matches.
func file(t *testing.T, pattern string) string {
	t.Helper()
	if once != nil {
		for _, path := range []string{"/usr/bin/cc", "/usr/include/gssapi/gssapi_ext.h"} {
			if _, err := os.Stat(path); err != nil {
				lab.Lacking(t, path, err)
			}
		}
		check(t, once())
	}
	names, err := filepath.Glob(filepath.Join(built, pattern))
	if err != nil || len(names) != 1 {
		t.Fatal(pattern, names, err)
	}
	return names[0]
}

// output runs a program that must succeed and returns what it writes to stdout.
func output(t *testing.T, program string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		lab.Lacking(t, program, err)
	}
	cmd := exec.Command(path, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", program, strings.Join(args, " "), err, out, &stderr)
	}
	return string(out)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
