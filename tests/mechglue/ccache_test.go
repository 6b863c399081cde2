package mechglue

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gssproxyd/tests/lab"
)

// caches runs csrc/ccache.c, with a home of its own.
type caches struct {
	testing.TB
	program, dir string
}

// newCaches builds csrc/ccache.c with all of the plugin.
func newCaches(tb testing.TB) *caches {
	tb.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		lab.Lacking(tb, "gcc", err)
	}
	if _, err := os.Stat("/usr/include/gssapi/gssapi_ext.h"); err != nil {
		lab.Lacking(tb, "libkrb5-dev", err)
	}
	sources, err := filepath.Glob(plugin + "*.c")
	if err != nil {
		tb.Fatal(err)
	}
	sources = append(sources, "csrc/ccache.c")
	// The go command keeps a test's result until a file changes that the test itself has looked at.
	for _, f := range append([]string{plugin + "plugin.h", plugin + "xdr.h", plugin + "gss_proxy_xdr.h"}, sources...) {
		if _, err := os.Stat(f); err != nil {
			tb.Fatal(err)
		}
	}
	c := &caches{TB: tb, dir: tb.TempDir()}
	c.program = filepath.Join(c.dir, "program")
	// A cache that is being written is looked at again for two seconds, and not a tenth of one: others are at work here.
	args := append([]string{"-DLOOKS=400", "-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-fsanitize=address,undefined",
		"-fno-sanitize-recover=all", "-I" + plugin, "-o", c.program}, sources...)
	args = append(args, "-lgssapi_krb5", "-lkrb5", "-lpthread", "-Wl,--wrap=mkostemp")
	if text, err := exec.Command("gcc", args...).CombinedOutput(); err != nil || len(text) > 0 {
		tb.Fatalf("gcc: %v\n%s", err, text)
	}
	c.write("krb5.conf", "[libdefaults]\ndefault_realm = EXAMPLE.TEST\n")
	return c
}

// of returns c for a part of the test.
func (c *caches) of(tb testing.TB) *caches { return &caches{tb, c.program, c.dir} }

func (c *caches) path(name string) string { return filepath.Join(c.dir, name) }

func (c *caches) write(name, text string) {
	c.Helper()
	if err := os.WriteFile(c.path(name), []byte(text), 0o600); err != nil {
		c.Fatal(err)
	}
}

// run returns what the program prints; the default cache is def.
func (c *caches) run(def string, args ...string) string {
	c.Helper()
	cmd := exec.Command(c.program, args...)
	cmd.Env = append(os.Environ(), "KRB5CCNAME="+def, "KRB5_CONFIG="+c.path("krb5.conf"), "GSSPROXY_TRACE="+c.path("trace"))
	text, err := cmd.CombinedOutput()
	if err != nil {
		trace, _ := os.ReadFile(c.path("trace"))
		c.Fatalf("ccache %s: %v\n%s\n%s", strings.Join(args, " "), err, text, trace)
	}
	return strings.TrimSuffix(string(text), "\n")
}

// want runs the program, whose output is to begin with want.
func (c *caches) want(want, def string, args ...string) {
	c.Helper()
	if got := c.run(def, args...); !strings.HasPrefix(got, want) {
		trace, _ := os.ReadFile(c.path("trace"))
		c.Errorf("ccache %s: %q, want %q\n%s", strings.Join(args, " "), got, want, trace)
	}
}

// only checks that dir holds these files and no others.
func (c *caches) only(dir string, want ...string) {
	c.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		c.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		c.Errorf("in the directory are %q, want %q", got, want)
	}
}

// sub makes a directory below the home, and a FILE cache's name in it.
func (c *caches) sub(name string) (dir, file string) {
	c.Helper()
	dir = c.path(name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		c.Fatal(err)
	}
	return dir, "FILE:" + filepath.Join(dir, "cc")
}

func TestCaches(t *testing.T) {
	c := newCaches(t)
	for name, test := range map[string]func(*testing.T, *caches){
		"stored": testStored, "planted": testPlanted, "elsewhere": testElsewhere, "types": testTypes,
	} {
		t.Run(name, func(t *testing.T) {
			test(t, c.of(t))
		})
	}
}

func testStored(t *testing.T, c *caches) {
	dir, file := c.sub("file")
	const alice, bob = "alice@EXAMPLE.TEST", "bob@EXAMPLE.TEST"

	c.want("none", file, "read", "-")
	c.want("duplicate", file, "store", "-", "sync", alice, "0") // a cache that has gone is not made again
	c.want("ok", file, "store", "-", "new", alice, "1")
	c.want("1", file, "read", "-")
	c.want("1", "FILE:/nonexistent", "read", strings.TrimPrefix(file, "FILE:")) // a path without a type
	c.want("duplicate", file, "store", "-", "new", alice, "2")
	c.want("ok", file, "store", "-", "sync", alice, "3")
	c.want("duplicate", file, "store", "-", "sync", bob, "4") // who is the default user does not change by the way
	c.want("ok", file, "store", "-", "add", bob, "4")
	c.want("4", file, "read", "-")
	c.only(dir, "cc")
	info, err := os.Stat(filepath.Join(dir, "cc"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("the cache has mode %v", info.Mode())
	}

	// A ticket that is not a handle keeps everybody out but who says replace. A key is what its name says.
	b, err := os.ReadFile(filepath.Join(dir, "cc"))
	if err != nil {
		t.Fatal(err)
	}
	other := strings.ReplaceAll(string(b), "X-GSSPROXY:", "EXAMPLE.ORG")
	if other == string(b) {
		t.Fatal("there is no X-GSSPROXY: in a cache with a handle")
	}
	c.write("file/cc", other)
	c.want("none", file, "read", "-")
	for _, when := range []string{"new", "sync", "add"} {
		c.want("duplicate", file, "store", "-", when, alice, "5")
	}
	if b, err = os.ReadFile(filepath.Join(dir, "cc")); err != nil || string(b) != other {
		t.Errorf("another ticket has been written over: %v", err)
	}
	c.want("ok", file, "store", "-", "replace", alice, "6")
	c.want("6", file, "read", "-")

	// Half a cache is none, and is not written over by the way.
	c.write("file/cc", other[:len(other)/2])
	c.want("none", file, "read", "-")
	c.want("duplicate", file, "store", "-", "sync", alice, "7")
	c.only(dir, "cc")
}

// Whoever can write to a directory can put a handle there that makes others act in his name.
func testPlanted(t *testing.T, c *caches) {
	dir, file := c.sub("planted")
	path := filepath.Join(dir, "cc")

	c.want("ok", file, "store", "-", "new", "u", "1")
	link := "FILE:" + filepath.Join(dir, "link")
	if err := os.Symlink("cc", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	fifo := "FILE:" + filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{link, fifo, "FILE:" + dir} {
		c.want("none", file, "read", name)
		c.want("unavailable", file, "store", name, "sync", "u", "2")
		c.want("unavailable", file, "store", name, "add", "u", "2")
	}
	c.want("1", file, "read", "-")
	// What is asked to be replaced is replaced itself, and not what it leads to.
	c.want("ok", file, "store", link, "replace", "u", "2")
	c.want("2", file, "read", link)
	c.want("1", file, "read", "-")
	if os.Geteuid() != 0 {
		t.Skip("not run as root: nothing can be given to another user")
	}
	if err := errors.Join(os.Chown(path, 1234, 1234), os.Chmod(path, 0o660)); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o777, 0o777 | os.ModeSticky} {
		if err := os.Chmod(dir, mode); err != nil { // where everybody may put a cache
			t.Fatal(err)
		}
		c.want("none", file, "read", "-")
		for _, when := range []string{"sync", "add"} {
			c.want("unavailable", file, "store", "-", when, "u", "3")
		}
	}
	if err := errors.Join(os.Chown(dir, 1234, 0), os.Chmod(dir, 0o770)); err != nil { // and where another user says who may
		t.Fatal(err)
	}
	c.want("none", file, "read", "-")
	if err := os.Chown(dir, 0, 0); err != nil { // where we do
		t.Fatal(err)
	}
	c.want("1", file, "read", "-")
	c.want("ok", file, "store", "-", "sync", "u", "3")
	c.want("3", file, "read", "-")
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil || st.Mode&0o777 != 0o660 || st.Gid != 1234 {
		t.Errorf("the cache has mode %o and group %d, %v", st.Mode, st.Gid, err)
	}
	c.only(dir, "cc", "fifo", "link")
}

// A handle is written into the directory that was looked at, and not into one that has come into its place.
func testElsewhere(t *testing.T, c *caches) {
	dir, file := c.sub("elsewhere")
	c.sub("elsewhere.other")
	c.want("ok", file, "store", "-", "new", "u", "1")
	t.Setenv("EXCHANGE", dir)
	for i, when := range []string{"sync", "add", "replace"} {
		reference := fmt.Sprint(i + 2)
		c.want("ok", file, "store", "-", when, "u", reference)
		c.only(dir)
		c.only(dir+".other", "cc")
		c.want(reference, "FILE:"+dir+".other/cc", "read", "-")
		if err := errors.Join(os.Rename(dir, dir+".empty"), os.Rename(dir+".other", dir), os.Rename(dir+".empty", dir+".other")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(dir + "/cc"); err != nil {
		t.Fatal(err)
	}
	c.want("ok", file, "store", "-", "new", "u", "5")
	c.only(dir)
	c.only(dir+".other", "cc")
}

func testTypes(t *testing.T, c *caches) {
	dir, _ := c.sub("dir")
	names := map[string]string{"DIR": "DIR:" + dir, "FILE": "FILE:" + c.path("cc"), "MEMORY": "MEMORY:m"}
	if _, _, errno := syscall.Syscall(syscall.SYS_KEYCTL, 0, 0, 0); errno != syscall.ENOSYS && errno != syscall.EPERM {
		anchor := fmt.Sprintf("session:gssproxyd_test_%d", os.Getpid())
		names["KEYRING"] = "KEYRING:" + anchor
		t.Cleanup(func() { exec.Command("kdestroy", "-A", "-c", "KEYRING:"+anchor).Run() })
	}
	for kind, name := range names {
		t.Run(kind, func(t *testing.T) {
			d := c.of(t)
			// The keyring of a collection is there afterwards: of two that make it at once, libkrb5 loses one.
			d.want("none", name, "read", name)
			d.want("0", name, "cold", name, "u", "16")
			d.want("0", name, "sync", name, "u", "4")
			if kind == "MEMORY" { // which is gone with the process
				return
			}
			d.want("ok", name, "store", name, "replace", "u", "a")
			d.want("a", name, "read", name)
			// Another principal's handle goes into another member of a collection, if it is one.
			d.want("ok", name, "store", name, "replace", "v", "b")
			want := "a"
			if kind == "FILE" {
				want = "b"
			}
			d.want(want, name, "read", name)
			d.want("ok", name, "store", name, "replace", "v", "c", "default")
			d.want("c", name, "read", name)
		})
	}
}
