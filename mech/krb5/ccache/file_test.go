package ccache

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/mech/krb5"
	"gssproxyd/tests/lab"
)

// filed is a FILE cache with that content.
func filed(t *testing.T, b []byte) (c Cache, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "cc")
	must(t, os.WriteFile(path, b, 0o600))
	return open(t, &Resolver{}, "FILE:"+path), path
}

// Every version is read, appended to and removed from.
func TestFileVersions(t *testing.T) {
	for v := 1; v <= 4; v++ {
		t.Run(fmt.Sprint(v), func(t *testing.T) {
			client := principal("alice")
			host, nfs := testCred("alice", "host/lab", 18, never), testCred("alice", "nfs/lab", 20, never)
			if v == 1 { // has no name types
				for _, p := range []*krb5.Principal{&client, &host.Client, &host.Server, &nfs.Client, &nfs.Server} {
					p.Type = 0
				}
			}
			c, path := filed(t, image(v, client, host))
			must(t, Store(t.Context(), c, nfs))
			must(t, Remove(t.Context(), c, Query{Server: host.Server}))
			got, err := c.Credentials(t.Context())
			must(t, err)
			if len(got) != 1 || !got[0].Server.Equal(nfs.Server) || !bytes.Equal(got[0].Key, nfs.Key) || got[0].KeyType != 20 {
				t.Errorf("read %v", got)
			}
			b, _ := os.ReadFile(path)
			want := image(v, client, host, nfs)
			if len(b) != len(want) || b[1] != byte(v) {
				t.Errorf("%d bytes of version %d, expected %d", len(b), b[1], len(want))
			}
		})
	}
	for _, b := range []string{"\x05\x00", "\x05\x05", "\x06\x04", "ab", "{}"} {
		c, _ := filed(t, []byte(b))
		_, err := c.Principal(t.Context())
		wantErr(t, err, ErrVersion, "expected 05 04")
	}
}

func TestFileHeader(t *testing.T) {
	body := image(4, principal("alice"), testCred("alice", "host/lab", 18, never))[4:]
	tag := func(tag uint16, value string) string {
		b := binary.BigEndian.AppendUint16(nil, tag)
		return string(binary.BigEndian.AppendUint16(b, uint16(len(value)))) + value
	}
	for _, test := range []struct {
		fields string
		err    string
	}{
		{tag(1, "\x00\x00\x00\x05\x00\x00\x00\x01"), ""},
		{tag(7, "unknown") + tag(1, "12345678") + tag(9, ""), ""},
		{tag(1, "1234"), "clock offset of 4 bytes"},
		{tag(7, "x")[:4], "header field"},
		{"abc", "header field"},
	} {
		b := binary.BigEndian.AppendUint16([]byte{5, 4}, uint16(len(test.fields)))
		c, _ := filed(t, append(append(b, test.fields...), body...))
		p, err := c.Principal(t.Context())
		if test.err != "" {
			wantErr(t, err, ErrFormat, test.err)
		} else if err != nil || !p.Equal(principal("alice")) {
			t.Errorf("%q: %v, %v", test.fields, p, err)
		}
	}
}

// Cut anywhere, a file says so; what is before the cut is there, and an entry not written to its
// end gives way to the next one.
func TestFileCut(t *testing.T) {
	one, two := testCred("alice", "host/lab", 18, never), testCred("alice", "nfs/lab", 18, never)
	head, first, whole := len(image(4, principal("alice"))), len(image(4, principal("alice"), one)), image(4, principal("alice"), one, two)
	for n := range len(whole) {
		c, path := filed(t, whole[:n])
		creds, err := c.Credentials(t.Context())
		switch {
		case n == 0: // nobody is about to write
			wantErr(t, err, ErrFormat, "empty")
		case n == 4:
			wantErr(t, err, ErrNoCache, "not initialized")
		case n < head:
			wantErr(t, err, ErrFormat, "cut short")
		case n == head, n == first:
			must(t, err)
		default:
			wantErr(t, err, ErrFormat, "cut short or damaged after")
			if want := (n - head) / (first - head); len(creds) != want {
				t.Errorf("cut at %d: %d credentials, expected %d", n, len(creds), want)
			}
			// Found although something else is missing; and what is missing is put down to the
			// damage.
			if n > first {
				_, err := Find(t.Context(), c, Query{Server: one.Server})
				must(t, err)
			}
			_, err = Find(t.Context(), c, Query{Server: two.Server})
			wantErr(t, err, ErrFormat, "cut short")
			must(t, Store(t.Context(), c, two))
			b, _ := os.ReadFile(path)
			if want := image(4, principal("alice"), append([]*krb5.Credential{one}[:len(creds)], two)...); !bytes.Equal(b, want) {
				t.Errorf("cut at %d: %d bytes after storing, expected %d", n, len(b), len(want))
			}
		}
	}
	// A length that cannot be is no writer's doing: nothing is thrown away for it.
	bad := bytes.Clone(whole)
	bad[first+4] = 0xff
	c, path := filed(t, bad)
	wantErr(t, Store(t.Context(), c, one), ErrFormat, "after 1 entries")
	if b, _ := os.ReadFile(path); !bytes.Equal(b, bad) {
		t.Error("a damaged file was changed")
	}
}

// Removed entries stay in their place with MIT's marks, and are seen by nobody; entries without any
// time are.
func TestFileRemoved(t *testing.T) {
	one, two := testCred("alice", "host/lab", 18, never), testCred("alice", "nfs/lab", 18, never)
	conf := ConfigEntry(principal("alice"), RefreshTime, nil, []byte("7"))
	sealed := &krb5.Credential{Client: principal("alice"), Ticket: []byte("sealed"),
		Server: krb5.Principal{Realm: "X-GSSPROXY:", Components: []string{"Encrypted", "Credentials", "v1"}, Type: 1}}
	c, path := filed(t, image(4, principal("alice"), one, conf, sealed, two))
	has(t, c, "alice", one, conf, sealed, two)
	must(t, Remove(t.Context(), c, Query{Server: one.Server}))
	must(t, Remove(t.Context(), c, Query{Server: conf.Server}))
	has(t, c, "alice", sealed, two)
	goneOne, goneConf := one.Clone(), conf.Clone()
	goneOne.EndTime, goneOne.AuthTime = 0, 1<<32-1
	goneConf.AuthTime, goneConf.Server.Realm = 1<<32-1, "X-RMED-CONF:"
	if b, _ := os.ReadFile(path); !bytes.Equal(b, image(4, principal("alice"), goneOne, goneConf, sealed, two)) {
		t.Errorf("file after removing:\n%q", b)
	}
}

func TestFileOwnerAndMode(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	c := open(t, &Resolver{}, dir+"/cc")
	must(t, c.Initialize(ctx, principal("alice")))
	stat := func() (fs.FileMode, uint32) {
		st, err := os.Stat(dir + "/cc")
		must(t, err)
		return st.Mode(), st.Sys().(*syscall.Stat_t).Uid
	}
	if mode, _ := stat(); mode != 0o600 {
		t.Errorf("new file of mode %v", mode)
	}
	must(t, os.Chmod(dir+"/cc", 0o640))
	must(t, c.Initialize(ctx, principal("bob")))
	must(t, Store(ctx, c, testCred("bob", "x", 18, never)))
	if mode, _ := stat(); mode != 0o640 {
		t.Errorf("mode became %v", mode)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
	must(t, os.Mkdir(dir+"/sub", 0o700))
	for _, name := range []string{dir + "/sub", "/dev/null"} {
		c := open(t, &Resolver{}, name)
		wantErr(t, c.Initialize(ctx, principal("alice")), ErrAccess, "not a regular file")
		_, err := c.Principal(ctx)
		wantErr(t, err, ErrAccess, "not a regular file")
	}
	_, err := open(t, &Resolver{}, dir+"/cc/cc").Principal(ctx)
	wantErr(t, err, ErrNoCache, "")

	if os.Geteuid() != 0 {
		t.Skip("the rest is not run: needs root to give files away")
	}
	// Another user's file counts if it is the one we act for; else it is not ours to read or to
	// write, and a new one takes nothing from it.
	give := func() { must(t, os.Chown(dir+"/cc", 4711, 4712)); must(t, os.Chmod(dir+"/cc", 0o666)) }
	give()
	_, err = c.Principal(ctx)
	wantErr(t, err, ErrAccess, "uid 4711")
	wantErr(t, Store(ctx, c, testCred("bob", "x", 18, never)), ErrAccess, "uid 4711")
	wantErr(t, c.Destroy(ctx), ErrAccess, "uid 4711")
	for _, user := range []*uint32{nil, new(uint32(4711))} {
		give()
		c := open(t, &Resolver{For: user}, dir+"/cc")
		if user != nil { // what his own tickets got him is his
			must(t, Store(ctx, c, testCred("bob", "x", 18, never)))
			if mode, uid := stat(); uid != 4711 || mode != 0o666 {
				t.Errorf("mode %v and owner %d after storing", mode, uid)
			}
		}
		must(t, c.Initialize(ctx, principal("bob")))
		if mode, uid := stat(); uid != 0 || mode != 0o600 {
			t.Errorf("mode %v and owner %d after initializing in another's place", mode, uid)
		}
	}

	// A link that others can have made leads nowhere, be it to a file of who made it.
	must(t, os.Symlink("cc", dir+"/link"))
	linked := open(t, &Resolver{For: new(uint32(4711))}, dir+"/link")
	has(t, linked, "bob")
	must(t, os.Lchown(dir+"/link", 4711, 4711))
	for range 2 {
		_, err = linked.Principal(ctx)
		wantErr(t, err, ErrAccess, "symbolic link of uid 4711 is not followed")
		must(t, os.Chown(dir+"/cc", 4711, 4711))
	}
	// A new cache takes the place of the link, not of what it leads to.
	must(t, linked.Initialize(ctx, principal("dave")))
	if st, err := os.Lstat(dir + "/link"); err != nil || !st.Mode().IsRegular() {
		t.Errorf("%v, %v; expected a file in place of the link", st, err)
	}
}

// A user who puts a file of his in the place of ours, while tickets are got with what ours held,
// gets none of them.
func TestFileSwapped(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root to give files away")
	}
	ctx := t.Context()
	for name, use := range map[string]func(c Cache){
		"read":    func(c Cache) { has(t, c, "alice") },
		"stamped": func(c Cache) { StampOf(c) },
		"made":    func(c Cache) { must(t, c.Initialize(ctx, principal("alice"))) },
	} {
		path := filepath.Join(t.TempDir(), "cc")
		r := &Resolver{For: new(uint32(4711))}
		must(t, open(t, r, path).Initialize(ctx, principal("alice")))
		c := open(t, r, path)
		use(c)
		theirs := image(4, principal("alice"))
		must(t, os.WriteFile(path+".theirs", theirs, 0o600))
		must(t, os.Chown(path+".theirs", 4711, 4711))
		must(t, os.Rename(path+".theirs", path))
		wantErr(t, Store(ctx, c, testCred("alice", "x", 18, never)), ErrAccess, "uid 4711 has taken the place")
		if b, _ := os.ReadFile(path); !bytes.Equal(b, theirs) {
			t.Errorf("%s: the user's file has %d bytes, expected the %d of before", name, len(b), len(theirs))
		}
		has(t, c, "alice") // what is theirs serves them
	}
}

// timesOut expects do to wait until its context's deadline for what text says, with ever later
// deadlines until one comes after do has begun to wait.
func timesOut(t *testing.T, text string, do func(context.Context) error) {
	t.Helper()
	var err error
	for limit := 10 * time.Millisecond; limit < time.Minute; limit *= 8 {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		err = do(ctx)
		cancel()
		if err != nil && strings.Contains(err.Error(), text) {
			break
		}
	}
	wantErr(t, err, ErrIO, text)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, expected a deadline", err)
	}
}

// Locks are MIT's: others' keep us out for as long as the context allows, and readers are together.
func TestFileLocks(t *testing.T) {
	one := testCred("alice", "host/lab", 18, never)
	c, path := filed(t, image(4, principal("alice"), one))
	fd, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer fd.Close()
	lock := func(how int16) {
		must(t, unix.FcntlFlock(fd.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: how}))
	}
	lock(unix.F_RDLCK)
	has(t, c, "alice", one)
	timesOut(t, "locking", func(ctx context.Context) error { return Store(ctx, c, one) })
	lock(unix.F_WRLCK)
	timesOut(t, "locking", func(ctx context.Context) error { _, err := c.Principal(ctx); return err })
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := Store(t.Context(), c, testCred("alice", "nfs/lab", 18, never)); err != nil {
			t.Error(err)
		}
	})
	lock(unix.F_UNLCK)
	wg.Wait()
	has(t, c, "alice", one, testCred("alice", "nfs/lab", 18, never))
}

// Deleted, emptied or replaced while we wait for the lock: the answer is about the file that is
// there.
func TestFileReplacedWhileWaiting(t *testing.T) {
	for _, test := range []struct {
		name    string
		meddle  func(path string) error
		code    Code
		replace bool
	}{
		{"deleted", os.Remove, ErrNoCache, false},
		{"emptied", func(path string) error {
			return errors.Join(os.Truncate(path, 0), os.Chtimes(path, time.Time{}, time.Unix(1, 0)))
		}, ErrFormat, false},
		{"truncated", func(path string) error { return os.Truncate(path, 20) }, ErrFormat, false},
		{"replaced", func(path string) error {
			return errors.Join(os.WriteFile(path+".new", image(4, principal("bob")), 0o600), os.Rename(path+".new", path))
		}, 0, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, path := filed(t, image(4, principal("alice")))
			fd, err := os.OpenFile(path, os.O_RDWR, 0)
			must(t, err)
			must(t, unix.FcntlFlock(fd.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
			var wg sync.WaitGroup
			wg.Go(func() {
				p, err := c.Principal(t.Context())
				if test.replace {
					if err != nil || !p.Equal(principal("bob")) {
						t.Errorf("%v, %v; expected bob", p, err)
					}
				} else {
					wantErr(t, err, test.code, path)
				}
			})
			time.Sleep(10 * time.Millisecond) // most likely it waits by now; if not, the outcome is the same
			must(t, test.meddle(path))
			fd.Close()
			wg.Wait()
		})
	}
}

// A file that is made anew as MIT's library does it is empty for a moment, and waited for.
func TestFileMadeAnew(t *testing.T) {
	c, path := filed(t, image(4, principal("alice")))
	for try := 0; ; try++ {
		made := time.Now()
		must(t, errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600)))
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(20 * time.Millisecond)
			if err := os.WriteFile(path, image(4, principal("bob")), 0o600); err != nil {
				t.Error(err)
			}
		})
		p, err := c.Principal(t.Context())
		late := time.Since(made) > birth // the machine may have stopped one of the two for so long
		wg.Wait()
		if err == nil && p.Equal(principal("bob")) {
			return
		}
		if !late || try == 20 {
			t.Fatalf("%v, %v; expected bob", p, err)
		}
	}
}

// With no room on the disk the old content is there to the byte, and nothing else.
func TestFileDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		lab.Lacking(t, "mount(2)", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	one := testCred("alice", "host/lab", 18, never)
	c := open(t, &Resolver{}, dir+"/cc")
	must(t, c.Initialize(t.Context(), principal("alice"), one))
	before, err := os.ReadFile(dir + "/cc")
	must(t, err)
	big := testCred("alice", "host/big", 18, never)
	big.Ticket = make([]byte, 128<<10)
	for _, err := range []error{
		Store(t.Context(), c, testCred("alice", "host/small", 18, never), big),
		c.Update(t.Context(), func(*krb5.Credential) bool { return true }, big),
		c.Initialize(t.Context(), principal("bob"), big),
	} {
		wantErr(t, err, ErrIO, "no room")
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%v, expected ENOSPC", err)
		}
		if after, _ := os.ReadFile(dir + "/cc"); !bytes.Equal(before, after) {
			t.Errorf("%d bytes after, %d before", len(after), len(before))
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
	has(t, c, "alice", one)
}

// What takes many times its size in memory is bounded by number.
func TestFileMany(t *testing.T) {
	many := principal("alice")
	many.Components = make([]string, krb5.MaxComponents+1)
	addressed := testCred("alice", "host/lab", 18, never)
	addressed.Addresses = make([]krb5.Address, 257)
	typed := testCred("alice", "host/lab", 18, never)
	typed.AuthData = make([]krb5.AuthData, 257)
	for text, b := range map[string][]byte{
		"a name of 33 components":            image(4, many),
		"257 elements, expected at most 256": image(4, principal("alice"), addressed),
		"damaged after 1 entries":            image(4, principal("alice"), testCred("alice", "host/lab", 18, never), typed),
	} {
		c, _ := filed(t, b)
		_, err := c.Credentials(t.Context())
		wantErr(t, err, ErrFormat, text)
	}
}

func TestFileTooBig(t *testing.T) {
	c, path := filed(t, image(4, principal("alice")))
	must(t, os.Truncate(path, maxFile+1))
	_, err := c.Principal(t.Context())
	wantErr(t, err, ErrFormat, "expected at most")
	must(t, os.WriteFile(path, image(4, principal("alice")), 0o600))
	big := testCred("alice", "x", 18, never)
	big.Ticket = make([]byte, maxHeld)
	wantErr(t, Store(t.Context(), c, big), ErrQuota, "more than")
	wantErr(t, c.Initialize(t.Context(), principal("alice"), big), ErrQuota, "more than")
	has(t, c, "alice")
	must(t, os.WriteFile(path, image(4, principal("alice"), big), 0o600))
	_, err = c.Credentials(t.Context())
	wantErr(t, err, ErrFormat, "an entry of more than")
}

// Goroutines that store, remove and make the cache anew never leave a file that cannot be read.
func TestFileConcurrent(t *testing.T) {
	ctx := t.Context()
	c := open(t, &Resolver{}, filepath.Join(t.TempDir(), "cc"))
	must(t, c.Initialize(ctx, principal("alice")))
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			own := testCred("alice", fmt.Sprint("svc/", g), 18, never)
			for i := range 50 {
				if err := Store(ctx, c, own); err != nil {
					t.Error(err)
				}
				if g == 0 && i%10 == 9 {
					if err := c.Initialize(ctx, principal("alice"), own); err != nil {
						t.Error(err)
					}
				}
				if _, err := c.Credentials(ctx); err != nil {
					t.Error(err)
				}
				if err := Remove(ctx, c, Query{Server: own.Server}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	creds, err := c.Credentials(ctx)
	must(t, err)
	// One thing may survive: what a Remove took from the file that an Initialize replaced.
	for _, cred := range creds {
		if !cred.Server.Equal(principal("svc/0")) {
			t.Errorf("%v is left", cred.Server)
		}
	}
}

func TestDirDamaged(t *testing.T) {
	dir := t.TempDir()
	r := &Resolver{}
	for _, text := range []string{"", "tkt", "krb5cc\n", "tkt/../../etc\n", "tkt\\x\n", "tkt" + string(bytes.Repeat([]byte("x"), 80)) + "\n"} {
		must(t, os.WriteFile(dir+"/primary", []byte(text), 0o600))
		_, err := r.Open(t.Context(), "DIR:"+dir)
		wantErr(t, err, ErrFormat, "primary")
	}
	must(t, os.WriteFile(dir+"/file", nil, 0o600))
	_, err := r.Open(t.Context(), "DIR:"+dir+"/file")
	wantErr(t, err, ErrFormat, "not a directory")
}
