package ccache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gssproxyd/mech/krb5"
)

// shared returns a directory as /tmp is, and one that only we can write.
func shared(t *testing.T) (sticky, own string) {
	dir := t.TempDir()
	sticky, own = filepath.Join(dir, "sticky"), filepath.Join(dir, "own")
	must(t, os.Mkdir(sticky, 0o700))
	must(t, os.Chmod(sticky, fs.ModeSticky|0o777))
	must(t, os.Mkdir(own, 0o700))
	return sticky, own
}

const alices, bobs = 4711, 4712 // uids

func forUser(uid uint32) *Resolver { return &Resolver{For: &uid} }

// What this program wrote for one user does not count for another one, under whatever name and in
// whatever kind.
func TestWrittenForAnother(t *testing.T) {
	ctx := t.Context()
	sticky, own := shared(t)
	ticket := testCred("bob", "host/lab", 18, never)
	for _, dir := range []string{sticky, own} {
		for _, name := range []string{"FILE:" + dir + "/bobs", "DIR::" + dir + "/tktbobs"} {
			c := open(t, forUser(bobs), name)
			must(t, c.Initialize(ctx, principal("bob")))
			must(t, Store(ctx, c, ticket))
			has(t, open(t, forUser(bobs), name), "bob", ticket)

			path := c.Name()[len("FILE:"):]
			if _, dir := c.(*dirCache); dir {
				path = c.Name()[len("DIR::"):]
			}
			other := dir + "/alices"
			must(t, os.Link(path, other)) // as every user can, without protected_hardlinks
			for name, r := range map[string]*Resolver{name: forUser(alices), "FILE:" + other: forUser(alices), "FILE:" + path: {}} {
				c := open(t, r, name)
				_, err := c.Principal(ctx)
				wantErr(t, err, ErrAccess, "written for uid 4712")
				_, err = c.Credentials(ctx)
				wantErr(t, err, ErrAccess, "written for uid 4712")
				_, err = r.Read(ctx, c)
				wantErr(t, err, ErrAccess, "written for uid 4712")
				wantErr(t, Store(ctx, c, ticket), ErrAccess, "written for uid 4712")
				wantErr(t, c.Destroy(ctx), ErrAccess, "written for uid 4712")
			}
			// Who is to have one there gets a new one.
			must(t, open(t, forUser(alices), other).Initialize(ctx, principal("alice"), ticket))
			has(t, open(t, forUser(alices), other), "alice", ticket)
			has(t, open(t, forUser(bobs), name), "bob", ticket)
			must(t, os.Remove(other))
			must(t, open(t, forUser(bobs), name).Destroy(ctx))
		}
	}
}

// Nor does what it wrote for the user it runs as, which is root without a unit.
func TestWrittenForOurselves(t *testing.T) {
	ctx := t.Context()
	sticky, own := shared(t)
	self := uint32(os.Geteuid())
	for _, dir := range []string{sticky, own} {
		for _, name := range []string{"FILE:" + dir + "/cc", "DIR::" + dir + "/tktcc"} {
			ours := open(t, forUser(self), name)
			must(t, ours.Initialize(ctx, principal("root")))
			for i := range 60 { // until it is written anew, too
				must(t, Store(ctx, ours, padded("root", "host/again", never+uint32(i), 1000)))
			}
			c := open(t, forUser(alices), name)
			_, err := c.Principal(ctx)
			wantErr(t, err, ErrAccess, fmt.Sprint("written for uid ", self))
			wantErr(t, Store(ctx, c, testCred("alice", "host/lab", 18, never)), ErrAccess, "written for uid")
			wantErr(t, c.Destroy(ctx), ErrAccess, "written for uid")
			for _, r := range []*Resolver{{}, forUser(self)} {
				if p, err := open(t, r, name).Principal(ctx); err != nil || !p.Equal(principal("root")) {
					t.Errorf("%s, for whom it was written: %v, %v", name, p, err)
				}
			}
		}
	}
}

// A cache of ours that does not say for whom it is, as kinit makes them, counts for others only
// where nobody else can have put it. When it is written anew it counts for no fewer.
func TestWrittenForNobody(t *testing.T) {
	sticky, own := shared(t)
	group := filepath.Join(filepath.Dir(own), "group")
	must(t, os.MkdirAll(group+"/sub", 0o755))
	must(t, os.Chmod(group, 0o775))
	must(t, os.Mkdir(sticky+"/sub", 0o755))
	for dir, ok := range map[string]bool{sticky: false, own: true, group: false, group + "/sub": false, sticky + "/sub": true} {
		path := dir + "/cc"
		must(t, os.WriteFile(path, image(4, principal("alice")), 0o600))
		has(t, open(t, &Resolver{}, path), "alice") // our own use
		c := open(t, forUser(alices), path)
		if !ok {
			_, err := c.Principal(t.Context())
			wantErr(t, err, ErrAccess, "does not say that it is for uid 4711")
		}
		before, err := os.Stat(path)
		must(t, err)
		anew := false
		for i := 0; i < 100 && !anew; i++ {
			must(t, Store(t.Context(), open(t, &Resolver{}, path), padded("alice", "host/again", never+uint32(i), 1000)))
			after, err := os.Stat(path)
			must(t, err)
			anew = !os.SameFile(before, after)
		}
		if !anew {
			t.Fatalf("%s was not written anew", path)
		}
		_, err = open(t, &Resolver{}, path).Principal(t.Context())
		must(t, err)
		if _, err = c.Principal(t.Context()); ok {
			must(t, err)
		} else {
			wantErr(t, err, ErrAccess, "for uid")
		}
	}
}

// A directory that another user has put on the way, or a link to one, leads nowhere.
func TestLinkOnTheWay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root to give files away")
	}
	ctx := t.Context()
	sticky, own := shared(t)
	must(t, open(t, &Resolver{}, own+"/tkt").Initialize(ctx, principal("root")))
	must(t, os.Symlink(own, sticky+"/home"))
	must(t, os.Lchown(sticky+"/home", alices, alices))
	for _, name := range []string{sticky + "/home/tkt", "DIR::" + sticky + "/home/tkt"} {
		_, err := open(t, forUser(alices), name).Principal(ctx)
		wantErr(t, err, ErrAccess, "symbolic link of uid 4711 is not followed")
		wantErr(t, open(t, forUser(alices), name).Initialize(ctx, principal("alice")), ErrAccess, "is not followed")
	}
	_, err := forUser(alices).Open(ctx, "DIR:"+sticky+"/home")
	wantErr(t, err, ErrAccess, "is not followed")
	// A link of root's where only root can write is one of the directory tree: /var/run.
	must(t, os.Symlink(own, filepath.Dir(own)+"/run"))
	has(t, open(t, &Resolver{}, filepath.Dir(own)+"/run/tkt"), "root")
}

// A new cache has the mode of what it replaces only if that was the same cache.
func TestModeOfAnother(t *testing.T) {
	_, dir := shared(t)
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root to write for others")
	}
	path := dir + "/cc"
	written := func(uid uint32) []byte {
		return image(4, principal("bob"), ConfigEntry(principal("bob"), RecordUID, nil, []byte{byte('0' + uid)}))
	}
	for name, test := range map[string]struct {
		content []byte
		mode    fs.FileMode
	}{
		"no cache":        {[]byte("root:x:0:0::/root:/bin/sh\n"), 0o600},
		"empty":           {nil, 0o600},
		"another's cache": {written(7), 0o600},
		"the cache":       {written(8), 0o640},
	} {
		must(t, os.WriteFile(path, test.content, 0o600))
		must(t, os.Chmod(path, 0o640))
		must(t, open(t, forUser(8), path).Initialize(t.Context(), principal("alice")))
		if st, err := os.Stat(path); err != nil || st.Mode() != test.mode {
			t.Errorf("%s: mode %v, %v; expected %v", name, st.Mode(), err, test.mode)
		}
		must(t, os.Remove(path))
	}
}

// The setting is in the file alone: none is taken from elsewhere.
func TestRecord(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root to write for others")
	}
	_, dir := shared(t)
	forged := ConfigEntry(principal("bob"), RecordUID, nil, []byte("4711"))
	c := open(t, forUser(bobs), dir+"/cc")
	must(t, c.Initialize(t.Context(), principal("bob"), forged, testCred("bob", "host/lab", 18, never)))
	has(t, c, "bob", testCred("bob", "host/lab", 18, never))
	must(t, c.Update(t.Context(), func(*krb5.Credential) bool { return true }))
	has(t, c, "bob")
	// And without it nothing is written over.
	b, err := os.ReadFile(dir + "/cc")
	must(t, err)
	if want := image(4, principal("bob"), ConfigEntry(principal("bob"), RecordUID, nil, []byte("4712"))); string(b[:len(want)]) != string(want) {
		t.Errorf("the file begins with %q", b)
	}
}

// busy has no memory for the first so many times that it is asked.
type busy int

func (b *busy) Take(int) error {
	if *b--; *b >= 0 {
		return errors.New("too much in use")
	}
	return nil
}

func (b *busy) Give(int) {}

func (b *busy) Turn(context.Context, int64) (func(), error) { return func() {}, nil }

// That there is no memory to find out for whom a cache was written does not make it one that was
// written for nobody.
func TestWrittenForAnotherUnread(t *testing.T) {
	ctx := t.Context()
	_, own := shared(t)
	must(t, open(t, forUser(bobs), own+"/cc").Initialize(ctx, principal("bob"), testCred("bob", "host/lab", 18, never)))
	// A name that does not fit into the memory that the beginning is read with.
	long := principal(strings.Repeat("x", 5000))
	must(t, open(t, forUser(bobs), own+"/long").Initialize(ctx, long))
	for name, refusals := range map[string]int{"cc": 1, "long": 1} {
		for skip := range 3 {
			r := forUser(alices)
			r.Payer = &skipping{skip: skip, busy: busy(refusals)}
			if _, err := r.Read(ctx, open(t, r, own+"/"+name)); err == nil {
				t.Errorf("%s: what was written for bob was read for alice, after no memory the %d. time", name, skip+1)
			}
		}
	}
}

// skipping is busy after it has been asked so often.
type skipping struct {
	skip int
	busy
}

func (s *skipping) Take(n int) error {
	if s.skip--; s.skip >= 0 {
		return nil
	}
	return s.busy.Take(n)
}
