package ccache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/mech/krb5"
	"gssproxyd/tests/lab"
)

// keyrings is the way to keyrings, where the kernel lets us.
func keyrings(t *testing.T) *Keyrings {
	t.Helper()
	k := NewKeyrings()
	t.Cleanup(func() { k.Close() })
	NeedKeyrings(t, k)
	return k
}

// NeedKeyrings skips the test where the kernel gives us none.
func NeedKeyrings(t *testing.T, k *Keyrings) {
	t.Helper()
	err := k.do(t.Context(), "", func() error {
		_, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_PROCESS_KEYRING, true)
		return err
	})
	if err != nil {
		lab.Lacking(t, "keyctl(2)", err)
	}
}

// UnlinkLater removes what would stay behind of keyring collections.
func UnlinkLater(t *testing.T, collections ...string) {
	t.Cleanup(func() {
		for _, ring := range []int{unix.KEY_SPEC_USER_KEYRING, unix.KEY_SPEC_USER_SESSION_KEYRING, unix.KEY_SPEC_SESSION_KEYRING} {
			for _, c := range collections {
				if id, err := unix.KeyctlSearch(ring, "keyring", "_krb_"+c, 0); err == nil {
					unix.KeyctlInt(unix.KEYCTL_UNLINK, id, ring, 0, 0)
				}
			}
		}
	})
}

// Caches of every anchor keep what they are given, whatever thread asks.
func TestKeyringAnchors(t *testing.T) {
	k := keyrings(t)
	r := &Resolver{Keyrings: k}
	uniq := fmt.Sprintf("gssproxyd-test-%d", os.Getpid())
	UnlinkLater(t, uniq)
	for _, name := range []string{"thread:" + uniq, "process:" + uniq, "session:" + uniq, "user:" + uniq, uniq, "persistent:" + fmt.Sprint(os.Geteuid()) + ":" + uniq} {
		t.Run(name, func(t *testing.T) {
			c := open(t, r, "KEYRING:"+name)
			must(t, c.Initialize(t.Context(), principal("alice"), testCred("alice", "host/lab", 18, never)))
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					if err := Store(t.Context(), c, testCred("alice", fmt.Sprint("svc/", i), 17, never)); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			creds, err := c.Credentials(t.Context())
			must(t, err)
			if len(creds) != 9 {
				t.Errorf("%d credentials, expected 9", len(creds))
			}
			must(t, c.Destroy(t.Context()))
		})
	}
	for _, bad := range []string{"KEYRING:nowhere:x", "KEYRING:persistent:alice", "KEYRING:persistent:-1"} {
		_, err := r.Open(t.Context(), bad)
		wantErr(t, err, ErrBadName, bad)
	}
}

// A credential that no cache or no key can hold is refused in clear words, and the old content is
// still there.
func TestKeyringTooBig(t *testing.T) {
	r := &Resolver{Keyrings: keyrings(t)}
	c := open(t, r, "KEYRING:process:big")
	old := testCred("alice", "host/lab", 18, never)
	must(t, c.Initialize(t.Context(), principal("alice"), old))
	big := testCred("alice", "host/big", 18, never)
	big.Ticket = make([]byte, 2<<20)
	for _, test := range []struct {
		cred *krb5.Credential
		code Code
		text string
	}{
		{big, ErrQuota, "more than"},
		{testCred("alice", "host/"+strings.Repeat("x", 5000), 18, never), ErrIO, "no key for a credential of"},
	} {
		wantErr(t, c.Initialize(t.Context(), principal("bob"), testCred("bob", "x", 18, never), test.cred), test.code, test.text)
		has(t, c, "alice", old)
		wantErr(t, Store(t.Context(), c, test.cred), test.code, test.text)
		has(t, c, "alice", old)
	}
}

// poor counts the users with few keys: the kernel takes its time to count keys of an earlier run as
// gone.
var poor atomic.Int32

// With the user's quota used up the error says so, what was there is there, and the cache can be
// made anew.
func TestKeyringQuota(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root to be a user with few keys")
	}
	k := keyrings(t)
	uid := 54321 + uintptr(poor.Add(1))
	must(t, k.do(t.Context(), "", func() error { // of this thread only, which ends with k
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); e != 0 {
			return e
		}
		return nil
	}))
	r := &Resolver{Keyrings: k}
	c := open(t, r, "KEYRING:process:quota")
	must(t, c.Initialize(t.Context(), principal("alice")))
	var err error
	n := 0
	for ; err == nil && n < 2000; n++ {
		err = Store(t.Context(), c, testCred("alice", fmt.Sprint("svc/", n), 18, never))
	}
	wantErr(t, err, ErrQuota, "kernel.keys.maxkeys")
	if !errors.Is(err, unix.EDQUOT) {
		t.Errorf("the cause of %v is lost", err)
	}
	n-- // the one too many
	check := func() {
		t.Helper()
		p, err := c.Principal(t.Context())
		must(t, err)
		creds, err := c.Credentials(t.Context())
		must(t, err)
		if len(creds) != n || !p.Equal(principal("alice")) {
			t.Errorf("%d credentials of %s, expected %d", len(creds), p, n)
		}
	}
	check()
	var many []*krb5.Credential
	for i := range 2 * n {
		many = append(many, testCred("bob", fmt.Sprint("svc/", i), 18, never))
	}
	wantErr(t, c.Initialize(t.Context(), principal("bob"), many...), ErrQuota, "quota")
	check()
	for deadline := time.Now().Add(time.Minute); ; { // what fitted before, once the kernel counts what did not as gone
		if err = c.Initialize(t.Context(), principal("bob"), many[:n]...); !errors.Is(err, unix.EDQUOT) || time.Now().After(deadline) {
			break
		}
	}
	must(t, err)
	has(t, c, "bob", many[:n]...)
}

func TestKeyringDamaged(t *testing.T) {
	k := keyrings(t)
	r := &Resolver{Keyrings: k}
	c := open(t, r, "KEYRING:process:damaged").(*keyringCache)
	must(t, c.Initialize(t.Context(), principal("alice")))
	in := func(job func(col, ring int) error) {
		t.Helper()
		must(t, k.do(t.Context(), "", func() error {
			col, err := c.keyring(false)
			if err != nil {
				return err
			}
			ring, err := c.ring()
			if err != nil {
				return err
			}
			return job(col, ring)
		}))
	}
	in(func(_, ring int) error { _, err := addKey("user", "host/x", []byte("nonsense"), ring); return err })
	_, err := c.Credentials(t.Context())
	wantErr(t, err, ErrFormat, "damaged")
	in(func(_, ring int) error { _, err := addKey("user", principalKey, []byte("nonsense"), ring); return err })
	_, err = c.Principal(t.Context())
	wantErr(t, err, ErrFormat, "damaged")
	for _, index := range []string{"x", "\x00\x00\x00\x01\x00\x00\x00\x09x", "\x00\x00\x00\x01\xff\xff\xff\xff", "\x00\x00\x00\x02\x00\x00\x00\x01x"} {
		in(func(col, _ int) error { _, err := addKey("user", primaryKey, []byte(index), col); return err })
		if _, err = r.Open(t.Context(), "KEYRING:process:damaged"); err == nil || !strings.Contains(err.Error(), "KEYRING:process:damaged") {
			t.Errorf("%q: %v, expected an error", index, err)
		}
	}
}

func TestKeyringsClosed(t *testing.T) {
	k := NewKeyrings()
	r := &Resolver{Keyrings: k}
	must(t, k.Close())
	must(t, k.Close())
	_, err := r.Open(t.Context(), "KEYRING:process:x")
	wantErr(t, err, ErrIO, "closed")

	k = NewKeyrings()
	r.Keyrings = k
	busy, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { k.do(context.Background(), "", func() error { close(busy); <-release; return nil }) })
	<-busy
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = r.Open(ctx, "KEYRING:process:x")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, expected to be cancelled", err)
	}
	close(release)
	wg.Wait()
	must(t, k.Close())
}

// A panic in one job is that job's error; the thread goes on.
func TestKeyringsPanic(t *testing.T) {
	k := keyrings(t)
	err := k.do(t.Context(), "KEYRING:x", func() error { panic(errors.New("secret")) })
	wantErr(t, err, ErrIO, "panic: *errors.errorString")
	must(t, k.do(t.Context(), "KEYRING:x", func() error { return nil }))
}
