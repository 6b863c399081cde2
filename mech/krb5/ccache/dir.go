package ccache

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"gssproxyd/mech/krb5"
	"gssproxyd/openat"
)

// A DIR collection is a directory of FILE caches whose names begin with "tkt", and a file "primary"
// with the name of the primary one in its only line. "DIR:dir" is the collection,
// "DIR::dir/tktname" one cache of it.
type directory struct {
	r    Resolver
	path string
}

// dirCache is a FILE cache that knows it is in a collection.
type dirCache struct {
	*file
	dir directory
}

func (r *Resolver) dir(residual string) (collection, error) {
	path, one := strings.CutPrefix(residual, ":")
	if !one {
		if path == "" {
			return nil, &Error{Name: "DIR:", Code: ErrBadName, Text: "no directory"}
		}
		return directory{*r, path}, nil
	}
	name := filepath.Base(path)
	if !strings.Contains(path, "/") || !isTicketFile(name) {
		return nil, &Error{Name: "DIR:" + residual, Code: ErrBadName, Text: `expected DIR::directory/file with a file name that begins with "tkt"`}
	}
	return single{directory{*r, filepath.Dir(path)}.cache(name)}, nil
}

func isTicketFile(name string) bool { return strings.HasPrefix(name, "tkt") }

func (d directory) cache(base string) *dirCache {
	path := filepath.Join(d.path, base)
	return &dirCache{d.r.file("DIR::"+path, path), d}
}

func (d directory) fail(err error) error {
	return (&file{name: "DIR:" + d.path}).system(err)
}

// open opens the directory.
func (d directory) open() (*openat.Dir, error) {
	dir, err := openat.OpenDir(d.path)
	if errors.Is(err, unix.ENOTDIR) {
		return nil, &Error{Name: "DIR:" + d.path, Code: ErrFormat, Text: "not a directory"}
	}
	return dir, err
}

// primaryName reads the file "primary". A collection without one is new, and its first cache is
// "tkt".
func (d directory) primaryName(dir *openat.Dir) (string, error) {
	o, err := d.r.file("DIR:"+d.path, "").openIn(dir, "primary", os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return "tkt", nil
	}
	if err != nil {
		return "", err
	}
	defer o.File.Close()
	b, err := io.ReadAll(io.LimitReader(o, 64))
	if err != nil {
		return "", err
	}
	name, _, whole := strings.Cut(string(b), "\n")
	if !whole || !isTicketFile(name) || strings.ContainsAny(name, `/\`) {
		return "", &Error{Name: "DIR:" + d.path, Code: ErrFormat, Text: `the file primary has no line that is a file name beginning with "tkt"; remove it`}
	}
	return name, nil
}

func (d directory) primary(context.Context) (Cache, error) {
	dir, err := d.open()
	if errors.Is(err, fs.ErrNotExist) {
		return d.cache("tkt"), nil // Initialize makes it
	}
	if err != nil {
		return nil, d.fail(err)
	}
	defer dir.Close()
	name, err := d.primaryName(dir)
	if err != nil {
		return nil, d.fail(err)
	}
	return d.cache(name), nil
}

// maxCaches bounds a collection, each of which is looked into when one of them is searched for, and
// maxNames the directory.
const (
	maxCaches = 1000
	maxNames  = 10_000
)

func (d directory) all(context.Context) ([]Cache, error) {
	dir, err := d.open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, d.fail(err)
	}
	defer dir.Close()
	first, err := d.primaryName(dir)
	if err != nil {
		return nil, d.fail(err)
	}
	list, err := dir.Self()
	if err != nil {
		return nil, d.fail(err)
	}
	defer list.Close()
	names, err := list.Readdirnames(maxNames)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, d.fail(err)
	}
	slices.Sort(names)
	caches := []Cache{d.cache(first)}
	for _, name := range names {
		if isTicketFile(name) && name != first && len(caches) < maxCaches {
			caches = append(caches, d.cache(name))
		}
	}
	return caches, nil
}

func (d directory) make() error {
	parent, name, err := openat.Find(d.path)
	if err != nil {
		return d.fail(err)
	}
	defer parent.Close()
	if err := parent.Mkdir(name); err != nil && !errors.Is(err, fs.ErrExist) {
		return d.fail(err)
	}
	return nil
}

// Initialize makes the directory too, as MIT's library does.
func (c *dirCache) Initialize(ctx context.Context, client krb5.Principal, creds ...*krb5.Credential) error {
	if err := c.dir.make(); err != nil {
		return err
	}
	return c.file.Initialize(ctx, client, creds...)
}
