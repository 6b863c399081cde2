package ccache

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"gssproxyd/mech/krb5"
)

// A DIR collection is a directory of FILE caches whose names begin with "tkt", and a file "primary" with the name
// of the primary one in its only line. "DIR:dir" is the collection, "DIR::dir/tktname" one cache of it.
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

// primaryName reads the file "primary". A collection without one is new, and its first cache is "tkt".
func (d directory) primaryName() (string, error) {
	bad := func(text string) error { return &Error{Name: "DIR:" + d.path, Code: ErrFormat, Text: text} }
	st, err := os.Stat(d.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "tkt", nil // Initialize makes it
	case err != nil:
		return "", d.fail(err)
	case !st.IsDir():
		return "", bad("not a directory")
	}
	path := filepath.Join(d.path, "primary")
	f, err := (&file{name: "DIR:" + d.path, path: path, r: d.r}).openChecked(os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return "tkt", nil
	}
	if err != nil {
		return "", d.fail(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return "", d.fail(err)
	}
	name, _, whole := strings.Cut(string(b), "\n")
	if !whole || !isTicketFile(name) || strings.ContainsAny(name, `/\`) {
		return "", bad(`the file primary has no line that is a file name beginning with "tkt"; remove it`)
	}
	return name, nil
}

func (d directory) primary(context.Context) (Cache, error) {
	name, err := d.primaryName()
	if err != nil {
		return nil, err
	}
	return d.cache(name), nil
}

func (d directory) all(context.Context) ([]Cache, error) {
	first, err := d.primaryName()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, d.fail(err)
	}
	caches := []Cache{d.cache(first)}
	for _, e := range entries {
		if isTicketFile(e.Name()) && e.Name() != first {
			caches = append(caches, d.cache(e.Name()))
		}
	}
	return caches, nil
}

// unique reserves the name with a file that has a header and no more.
func (d directory) unique(context.Context) (Cache, error) {
	if err := d.make(); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(d.path, "tkt*")
	if err != nil {
		return nil, d.fail(err)
	}
	_, err = f.Write([]byte{5, version, 0, 0})
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return nil, d.fail(err)
	}
	return d.cache(filepath.Base(f.Name())), nil
}

func (d directory) make() error {
	if err := os.Mkdir(d.path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
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

func (c *dirCache) makePrimary(context.Context) error {
	f, err := os.CreateTemp(c.dir.path, "primary.*")
	if err != nil {
		return c.dir.fail(err)
	}
	_, err = f.WriteString(filepath.Base(c.path) + "\n")
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(c.dir.path, "primary"))
	}
	if err != nil {
		os.Remove(f.Name())
		return c.dir.fail(err)
	}
	return nil
}
