package ccache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"

	"gssproxyd/mech/krb5"
)

// Resolver finds caches by name. The zero value knows FILE, DIR and KCM. It may be copied, and its
// fields set for each caller; what the fields point to is shared.
type Resolver struct {
	Default string // the name that is meant when none is given; see DefaultName

	// For is the user on whose behalf FILE and DIR caches are used, nil for the one this program
	// runs as. They have to be that user's, root's or this program's user's, and what this program
	// wrote for somebody else does not count: in a directory that others can write, a file of the
	// right name may be put there by anybody.
	For *uint32

	Payer Payer // of the memory to read caches, nil for nobody

	Memory   *Memory   // the MEMORY caches, which the user pays for; nil for none
	Keyrings *Keyrings // the way to KEYRING caches, nil for none

	KCMSocket string // kcm_socket; empty for /var/run/.heim_org.h5l.kcm-socket, "-" for none
}

// Open returns the cache of a name, "KIND:residual" or the path of a file; the empty name is the
// default's. A name of a whole collection means its primary cache. That a cache is not there yet is
// no error of Open.
func (r *Resolver) Open(ctx context.Context, name string) (Cache, error) {
	col, err := r.collection(name)
	if err != nil {
		return nil, err
	}
	return col.primary(ctx)
}

// CheckName returns the error that a Resolver with everything in it has for a name that is none,
// nil for any other, also if there is no such cache.
func CheckName(name string) error {
	_, err := (&Resolver{Memory: new(Memory), Keyrings: new(Keyrings)}).collection(name)
	return err
}

// existing returns the caches that are there in the collection name belongs to, the primary one
// first. The collection of a name that means one cache is that cache.
func (r *Resolver) existing(ctx context.Context, name string) ([]Cache, error) {
	col, err := r.collection(name)
	if err != nil {
		return nil, err
	}
	all, err := col.all(ctx)
	if err != nil {
		return nil, err
	}
	var there []Cache
	var first error
	for _, c := range all {
		if _, err := c.Principal(ctx); err == nil {
			there = append(there, c)
		} else if first == nil && !errors.Is(err, ErrNoCache) {
			first = err
		}
	}
	if there == nil {
		return nil, first
	}
	return there, nil
}

// Match returns the cache of the collection whose principal is client; [ErrNotFound] if it has
// none.
func (r *Resolver) Match(ctx context.Context, name string, client krb5.Principal) (Cache, error) {
	all, err := r.existing(ctx, name)
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		if p, err := c.Principal(ctx); err == nil && p.Equal(client) {
			return c, nil
		}
	}
	return nil, &Error{Name: r.name(name), Code: ErrNotFound, Text: "no cache of " + client.String()}
}

// A collection is a set of caches one of which is the primary.
type collection interface {
	primary(ctx context.Context) (Cache, error)
	all(ctx context.Context) ([]Cache, error)
}

func (r *Resolver) name(name string) string { return cmp.Or(name, r.Default) }

func (r *Resolver) collection(name string) (collection, error) {
	name = r.name(name)
	kind, residual := split(name)
	unknown := func(why string) error { return &Error{Name: name, Code: ErrKind, Text: why} }
	switch kind {
	case "FILE":
		if residual == "" {
			return nil, &Error{Name: name, Code: ErrBadName, Text: "no path"}
		}
		return single{r.file("FILE:"+residual, residual)}, nil
	case "DIR":
		return r.dir(residual)
	case "MEMORY":
		if r.Memory == nil {
			return nil, unknown("no caches are kept in memory here")
		}
		return memoryCollection{r.Memory, memoryKey{r.user(), residual}}, nil
	case "KEYRING":
		if r.Keyrings == nil {
			return nil, unknown("kernel keyrings are not used here")
		}
		return r.Keyrings.collection(residual)
	case "KCM":
		if r.KCMSocket == "-" {
			return nil, unknown("kcm_socket is -, which means no KCM server")
		}
		return kcmCollection{&kcm{cmp.Or(r.KCMSocket, kcmSocket), residual}}, nil
	}
	return nil, unknown(fmt.Sprintf("expected FILE, DIR, MEMORY, KEYRING or KCM, not %q", kind))
}

// user is the uid that caches are used for.
func (r *Resolver) user() uint32 {
	if r.For != nil {
		return *r.For
	}
	return uint32(os.Geteuid())
}

// single is the collection of a cache that belongs to none.
type single struct{ Cache }

func (s single) primary(context.Context) (Cache, error) { return s.Cache, nil }
func (s single) all(context.Context) ([]Cache, error)   { return []Cache{s.Cache}, nil }
