package keytab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"gssproxyd/mech/krb5/etype"
	"gssproxyd/openat"
)

// Where keytabs are: what a name means, how the file that it stands for is read, and how what that
// has becomes a keytab's bytes.

// Reader is what reading keytabs takes that are not plain files. The zero Reader reads plain ones
// only.
type Reader struct {
	// Unseal opens the content of a sealed keytab's file, for who zeroes what it returns; nil: there
	// are no sealed keytabs here.
	Unseal func(content []byte) (etype.Secret, error)
	// Owners may have sealed keytabs and the directories on the way to them, beside root and the user
	// this program runs as.
	Owners []uint32
}

// source is what the name of a keytab stands for.
type source struct {
	*nameType
	path string // of the file, absolute and clean
}

// String returns the name in one of the ways to write it, which is the same for the same source.
func (s source) String() string { return s.name + ":" + s.path }

// nameType is what is before the colon in a name.
type nameType struct {
	name string
	// read returns the content of the file, which the caller clears.
	read func(r *Reader, path string) ([]byte, stamp, error)
	// open returns the bytes of the keytab, which the caller zeroes; nil: the content is the keytab.
	open func(r *Reader, content []byte) (etype.Secret, error)
}

var (
	plain  = nameType{"FILE", func(_ *Reader, path string) ([]byte, stamp, error) { return readFile(path) }, nil}
	sealed = nameType{"SEALED", readKept, unseal}
)

// nameTypes are those that there are.
var nameTypes = map[string]*nameType{"FILE": &plain, "WRFILE": &plain, "SEALED": &sealed}

// parseName returns what a keytab name stands for.
func parseName(name string) (source, error) {
	s := source{&plain, name}
	if prefix, rest, ok := strings.Cut(name, ":"); ok && !strings.HasPrefix(name, "/") {
		switch s = (source{nameTypes[prefix], rest}); {
		case s.nameType != nil:
		case InStore(name):
			return source{}, fmt.Errorf("keytab %q: %w", name, errInStore)
		case slices.Contains([]string{"MEMORY", "KEYRING", "SRVTAB", "KCM", "API"}, prefix):
			return source{}, fmt.Errorf("keytab %q: type %s is not supported, since it cannot be shared between processes or watched; use FILE:/path", name, prefix)
		default:
			return source{}, fmt.Errorf("keytab %q: unknown type %q; expected FILE:/path, WRFILE:/path, SEALED:/path, STORE:NAME:PRINCIPAL or a path", name, prefix)
		}
	}
	if s.path == "" {
		return source{}, fmt.Errorf("keytab %q: no path; expected %s:/path", name, s.name)
	}
	var err error
	if s.path, err = filepath.Abs(s.path); err != nil {
		return source{}, fmt.Errorf("keytab %q: %w; write an absolute path", name, err)
	}
	return s, nil
}

// open returns the bytes of the keytab whose file has that content, which may be the content itself.
func (r *Reader) open(s source, content []byte) (etype.Secret, error) {
	if s.open == nil {
		return content, nil
	}
	return s.open(r, content)
}

// readKept is readFile for a file whose keys are believed for its place, since all can seal: it has to
// be root's or the daemon's and written by nobody else, and so have the directories.
func readKept(r *Reader, path string) ([]byte, stamp, error) {
	dir, name, err := openat.FindKept(path, r.Owners...)
	if err != nil {
		return nil, stamp{}, withoutPath(path, err)
	}
	defer dir.Close()
	f, err := dir.Open(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, stamp{}, denied(path, withoutPath(path, err))
	}
	defer f.Close()
	content, s, err := readOpen(f)
	switch {
	case err != nil:
	case s.uid != 0 && s.uid != uint32(os.Geteuid()) && !slices.Contains(r.Owners, s.uid):
		err = fmt.Errorf("it belongs to uid %d, who could put other keys there; chown it to root, or to the daemon's user", s.uid)
	case s.mode&0o022 != 0:
		err = fmt.Errorf("it has mode %04o, so others could put other keys there; chmod go-w", s.mode&0o7777)
	}
	return content, s, err
}

// unseal opens a sealed keytab. The error is never that of a file that is missing, which would mean
// that the keytab is.
func unseal(r *Reader, content []byte) (etype.Secret, error) {
	switch {
	case r.Unseal == nil:
		return nil, errNoSealed
	case len(content) >= 2 && content[0] == 5:
		return nil, errors.New("it is a keytab in the clear: write FILE:, or seal it (gssproxyd keytab seal)")
	}
	b, err := r.Unseal(content)
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.New(err.Error())
	}
	return b, err
}

var errNoSealed = errors.New("this program has no identity of the host to open sealed keytabs with; use FILE:/path")

// looksSealed reports whether the content of a file is that of an age file, rather than a keytab.
func looksSealed(content []byte) bool {
	return bytes.HasPrefix(content, []byte("age-encryption.org/")) || bytes.HasPrefix(bytes.TrimLeft(content, " \t\r\n"), []byte("-----BEGIN AGE ENCRYPTED FILE-----"))
}
