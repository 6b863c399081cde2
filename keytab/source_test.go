package keytab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"gssproxyd/mech/krb5/etype"
)

// What is sealed in these tests begins as an age file does, and has the keytab behind that, with
// every bit turned. Package sealed and its tests are about the real thing.
const sealIntro = "age-encryption.org/v1\n"

func turned(b []byte) []byte {
	out := bytes.Clone(b)
	for i := range out {
		out[i] ^= 0xff
	}
	return out
}

func pretendToSeal(b []byte) []byte { return append([]byte(sealIntro), turned(b)...) }

// opener opens what pretendToSeal makes, and remembers what it has returned.
type opener struct {
	mu     sync.Mutex
	opened []etype.Secret
	err    error
}

func (o *opener) open(content []byte) (etype.Secret, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	rest, ok := bytes.CutPrefix(content, []byte(sealIntro))
	if !ok || o.err != nil {
		return nil, fmt.Errorf("sealed to another: %w", o.err)
	}
	b := etype.Secret(turned(rest))
	o.opened = append(o.opened, b)
	return b, nil
}

func (o *opener) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err = err
}

// left returns how many of the keytabs that were opened are in memory still.
func (o *opener) left() (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, b := range o.opened {
		if len(bytes.Trim(b, "\x00")) > 0 {
			n++
		}
	}
	return n
}

func TestParseName(t *testing.T) {
	for name, want := range map[string]string{
		"/a/b":           "FILE:/a/b",
		"/a/SEALED:b":    "FILE:/a/SEALED:b",
		"FILE:/a//b":     "FILE:/a/b",
		"WRFILE:/a":      "FILE:/a",
		"SEALED:/a/../b": "SEALED:/b",
		"SEALED:":        "no path; expected SEALED:/path",
		"Sealed:/a":      `unknown type "Sealed"; expected FILE:/path, WRFILE:/path, SEALED:/path, STORE:NAME:PRINCIPAL or a path`,
		"KCM:":           "type KCM is not supported",
	} {
		s, err := parseName(name)
		if err != nil && !strings.Contains(err.Error(), want) || err == nil && s.String() != want {
			t.Errorf("%q: %v, want %s", name, err, want)
		}
		if err := CheckName(name); (err == nil) != (want[0] == 'F' || want[0] == 'S') {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestSealed: a sealed keytab is followed as any, and what is wrong with it leaves the keys there
// were.
func TestSealed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.keytab.age")
	s, log := newSet(quick)
	o := new(opener)
	s.Reader.Unseal = o.open
	write(t, path, pretendToSeal(encode(service(1))))
	k := mustOpen(t, s, "SEALED:"+path)
	if versions(k.Ring()) != "1" || k.Err() != nil || k.Ring().Name() != "SEALED:"+path {
		t.Fatalf("keys %q of %s, %v", versions(k.Ring()), k.Ring().Name(), k.Err())
	}
	// As a plain one it is another, and no keytab.
	as := mustOpen(t, s, "FILE:"+path)
	if as == k || as.Ring().Len() != 0 || !strings.Contains(fmt.Sprint(as.Err()), "write SEALED: before its path") {
		t.Errorf("%v", as.Err())
	}
	if again := mustOpen(t, s, "SEALED:"+filepath.Dir(path)+"/./a.keytab.age"); again != k {
		t.Error("the same keytab is open twice")
	}
	replace(t, path, pretendToSeal(encode(service(1), service(2))))
	becomes(t, k, "1 2")
	for _, bad := range []struct {
		what string
		make func()
		want string
	}{
		{"in the clear", func() { replace(t, path, encode(service(3))) }, "a keytab in the clear: write FILE:"},
		{"cut off", func() { replace(t, path, pretendToSeal(encode(service(3))[:40])) }, "cut short"},
		// A file that is missing has its keys given up after a while. An identity that is missing does not.
		{"to another", func() { o.fail(fs.ErrNotExist); replace(t, path, pretendToSeal(encode(service(3)))) }, "sealed to another"},
		{"in an open directory", func() { o.fail(nil); chmod(t, filepath.Dir(path), 0o777) }, "has mode 0777, so others could put another file there"},
	} {
		bad.make()
		within(t, bad.what, func() bool { return k.Err() != nil && strings.Contains(k.Err().Error(), bad.want) })
		if errors.Is(k.Err(), fs.ErrNotExist) || versions(k.Ring()) != "1 2" {
			t.Errorf("%s: keys %q, %v", bad.what, versions(k.Ring()), k.Err())
		}
		within(t, bad.what+", in the log", func() bool { return strings.Contains(log.String(), bad.want) })
	}
	chmod(t, filepath.Dir(path), 0o755)
	becomes(t, k, "3")
	within(t, "no error", func() bool { return k.Err() == nil })
	if n := o.left(); n > 0 || len(o.opened) < 3 {
		t.Errorf("%d of %d opened keytabs are in memory still", n, len(o.opened))
	}
	if strings.Contains(log.String(), "keytab is not protected") {
		t.Errorf("who can read a sealed keytab has no keys:\n%s", log)
	}
}

// TestNoSealed: without an opener it is said in words, before anything is read.
func TestNoSealed(t *testing.T) {
	s, _ := newSet(quick)
	if k, err := s.Open("SEALED:/etc/a.keytab.age"); err == nil || !strings.Contains(err.Error(), "no identity of the host") {
		t.Errorf("%v, %v", k, err)
	}
	path := filepath.Join(t.TempDir(), "a.keytab.age")
	write(t, path, pretendToSeal(encode(service(1))))
	if err := new(Reader).CheckFile("SEALED:" + path); err == nil || !strings.Contains(err.Error(), "no identity of the host") {
		t.Error(err)
	}
}

// TestSealedPlace: the keys of a sealed keytab are believed for its place, so that has to be root's or
// the daemon's, and nobody else's to write.
func TestSealedPlace(t *testing.T) {
	root := os.Geteuid() == 0
	for name, test := range map[string]struct {
		make func(t *testing.T, dir, file string) string
		want string
		root bool
	}{
		"ours":               {func(_ *testing.T, _, file string) string { return file }, "", false},
		"that all may read":  {func(t *testing.T, _, file string) string { chmod(t, file, 0o644); return file }, "", false},
		"by a link":          {func(t *testing.T, dir, file string) string { symlink(t, file, dir+"/link"); return dir + "/link" }, "", false},
		"an owner's":         {func(t *testing.T, _, file string) string { chown(t, file, 4711); return file }, "", true},
		"an owner's place":   {func(t *testing.T, dir, file string) string { chown(t, dir, 4711); return file }, "", true},
		"no file":            {func(_ *testing.T, dir, _ string) string { return dir + "/none" }, "no such file", false},
		"written by a group": {func(t *testing.T, _, file string) string { chmod(t, file, 0o620); return file }, "mode 0620, so others could put other keys there", false},
		"another's":          {func(t *testing.T, _, file string) string { chown(t, file, 4712); return file }, "belongs to uid 4712", true},
		"another's place":    {func(t *testing.T, dir, file string) string { chown(t, dir, 4712); return file }, "belongs to uid 4712", true},
		"an open place":      {func(t *testing.T, dir, file string) string { chmod(t, dir, os.ModeSticky|0o777); return file }, "has mode 1777", false},
		"another's link": {func(t *testing.T, dir, file string) string {
			symlink(t, file, dir+"/link")
			if err := os.Lchown(dir+"/link", 4712, 4712); err != nil {
				t.Fatal(err)
			}
			return dir + "/link"
		}, "symbolic link of uid 4712 is not followed", true},
		"a FIFO": {func(t *testing.T, dir, _ string) string {
			if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
				t.Fatal(err)
			}
			return dir + "/fifo"
		}, "not a regular file", false},
		"a directory": {func(t *testing.T, dir, _ string) string { return dir }, "it is a directory", false},
		"a huge one": {func(t *testing.T, _, file string) string {
			if err := os.Truncate(file, maxSize+1); err != nil {
				t.Fatal(err)
			}
			return file
		}, "at most 16777216 are read", false},
	} {
		t.Run(name, func(t *testing.T) {
			if test.root && !root {
				t.Skip("not run: only root can make it")
			}
			dir := t.TempDir()
			file := dir + "/a.keytab.age"
			if err := os.WriteFile(file, pretendToSeal(encode(service(1))), 0o600); err != nil {
				t.Fatal(err)
			}
			r := &Reader{Unseal: new(opener).open, Owners: []uint32{4711}}
			path := test.make(t, dir, file)
			err := r.CheckFile("SEALED:" + path)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			if missing := errors.Is(err, fs.ErrNotExist); missing != (name == "no file") {
				t.Errorf("missing: %t, %v", missing, err)
			}
		})
	}
}

func TestList(t *testing.T) {
	o := new(opener)
	r := &Reader{Unseal: o.open}
	dir := t.TempDir()
	content := encode(newKey(1, etype.AES256SHA1), newKey(2, etype.RC4))
	write(t, dir+"/plain", content)
	write(t, dir+"/sealed", pretendToSeal(content))
	chmod(t, dir, 0o777) // nobody believes what is only listed
	for name, isSealed := range map[string]bool{dir + "/plain": false, "FILE:" + dir + "/plain": false, dir + "/sealed": true} {
		l := r.List(name)
		if l.File != name || l.Sealed != isSealed || l.Error != "" || len(l.Entries) != 2 || l.Entries[1].KVNO != 2 || l.Entries[1].Enctype != "arcfour-hmac" || l.Entries[1].Written.IsZero() {
			t.Errorf("%+v", l)
		}
	}
	for name, want := range map[string]string{"SEALED:" + dir + "/sealed": "has mode 0777", dir + "/none": "no such file", "KCM:": "not supported"} {
		if l := r.List(name); !strings.Contains(l.Error, want) || l.Entries == nil {
			t.Errorf("%+v, want %s", l, want)
		}
	}
	if n := o.left(); n > 0 {
		t.Errorf("%d opened keytabs are in memory still", n)
	}
}
