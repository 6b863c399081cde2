package ccache

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
)

func TestMain(m *testing.M) {
	unix.Umask(0o022) // directories that a group can write are others' too
	goleak.VerifyTestMain(m)
}

const realm = "EXAMPLE.TEST"

func principal(s string) krb5.Principal {
	p, err := krb5.ParsePrincipal(s, realm)
	if err != nil {
		panic(err)
	}
	return p
}

// testCred makes a credential that no other call makes, unless of the same arguments.
func testCred(client, server string, kind etype.ID, end uint32) *krb5.Credential {
	key := sha256.Sum256([]byte(client + server))
	return &krb5.Credential{
		Client: principal(client), Server: principal(server), KeyType: kind, Key: bytes.Clone(key[:kind.KeySize()]),
		AuthTime: 1_700_000_000, StartTime: 1_700_000_001, EndTime: end, RenewTill: 1_800_000_000,
		Flags: 0x50e10000, Ticket: []byte("ticket for " + server),
	}
}

const never = 2_000_000_000

// kinds gives every kind of cache the same test.
func kinds(t *testing.T, test func(t *testing.T, r *Resolver, name string)) {
	for _, kind := range []string{"FILE", "DIR", "DIR::", "MEMORY", "KCM", "KEYRING"} {
		t.Run(strings.Trim(kind, ":")+fmt.Sprint(len(kind)), func(t *testing.T) {
			r := &Resolver{}
			switch kind {
			case "FILE":
				test(t, r, "FILE:"+filepath.Join(t.TempDir(), "cc"))
			case "DIR":
				test(t, r, "DIR:"+filepath.Join(t.TempDir(), "new"))
			case "DIR::":
				test(t, r, "DIR::"+filepath.Join(t.TempDir(), "tktx"))
			case "MEMORY":
				r.Memory = new(Memory)
				test(t, r, "MEMORY:x")
			case "KCM":
				r.KCMSocket = serveKCM(t, false)
				test(t, r, "KCM:")
				r.KCMSocket = serveKCM(t, true)
				test(t, r, "KCM:x")
			case "KEYRING":
				r.Keyrings = keyrings(t)
				test(t, r, "KEYRING:process:test")
			}
		})
	}
}

func open(t *testing.T, r *Resolver, name string) Cache {
	t.Helper()
	c, err := r.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err error, code Code, text string) {
	t.Helper()
	if !errors.Is(err, code) || !strings.Contains(err.Error(), text) || Minor(err) != uint32(code) {
		t.Errorf("error %v, expected %v with %q", err, code, text)
	}
}

// has compares the cache's content, whatever the order: keyrings have none.
func has(t *testing.T, c Cache, client string, creds ...*krb5.Credential) {
	t.Helper()
	p, err := c.Principal(t.Context())
	must(t, err)
	if want := principal(client); !p.Equal(want) || p.Type != want.Type {
		t.Errorf("principal %v of type %d, expected %v", p, p.Type, want)
	}
	got, err := c.Credentials(t.Context())
	must(t, err)
	byServer := func(list []*krb5.Credential) map[string]*krb5.Credential {
		m := make(map[string]*krb5.Credential)
		for _, c := range list {
			m[c.Server.String()] = c
		}
		return m
	}
	if d := cmp.Diff(byServer(creds), byServer(got), sameBytes); d != "" || len(got) != len(creds) {
		t.Errorf("%d credentials, expected %d; difference (- expected):\n%s", len(got), len(creds), d)
	}
}

func TestLife(t *testing.T) {
	kinds(t, func(t *testing.T, r *Resolver, name string) {
		ctx := t.Context()
		c := open(t, r, name)
		if again := open(t, r, c.Name()); again.Name() != c.Name() {
			t.Errorf("%s opens %s, and that %s", name, c.Name(), again.Name())
		}
		_, err := c.Principal(ctx)
		wantErr(t, err, ErrNoCache, c.Name())
		_, err = c.Credentials(ctx)
		wantErr(t, err, ErrNoCache, "")
		wantErr(t, Store(ctx, c, testCred("alice", "a", 18, never)), ErrNoCache, "")

		tgt := testCred("alice", "krbtgt/EXAMPLE.TEST", 18, never)
		svc := testCred("alice", "host/lab", 17, never)
		svc.Addresses = []krb5.Address{{Type: 2, Data: []byte{127, 0, 0, 1}}, {Type: 24, Data: make([]byte, 16)}}
		svc.AuthData = []krb5.AuthData{{Type: -5, Data: []byte("x")}}
		svc.SecondTicket = []byte("evidence")
		u2u := testCred("alice", "bob", 20, never)
		u2u.IsSKey = true
		must(t, c.Initialize(ctx, principal("alice")))
		has(t, c, "alice")
		must(t, Store(ctx, c, tgt))
		must(t, Store(ctx, c, svc, u2u))
		has(t, c, "alice", tgt, svc, u2u)
		has(t, open(t, r, c.Name()), "alice", tgt, svc, u2u)

		must(t, Remove(ctx, c, Query{Server: svc.Server}))
		has(t, c, "alice", tgt, u2u)
		must(t, Remove(ctx, c, Query{Server: svc.Server}))
		must(t, Remove(ctx, c, Query{Server: u2u.Server})) // of an ordinary ticket, which there is not
		has(t, c, "alice", tgt, u2u)
		must(t, Remove(ctx, c, Query{Server: u2u.Server, UserToUser: true}))
		newTGT := testCred("alice", "krbtgt/EXAMPLE.TEST", 17, never+1)
		must(t, c.Update(ctx, (&Query{Server: tgt.Server}).Match, newTGT))
		has(t, c, "alice", newTGT)

		must(t, c.Initialize(ctx, principal("bob/admin"), u2u, svc))
		has(t, c, "bob/admin", u2u, svc)
		must(t, c.Destroy(ctx))
		_, err = c.Principal(ctx)
		wantErr(t, err, ErrNoCache, c.Name())
		wantErr(t, c.Destroy(ctx), ErrNoCache, c.Name())
	})
}

func TestConfig(t *testing.T) {
	kinds(t, func(t *testing.T, r *Resolver, name string) {
		ctx := t.Context()
		c := open(t, r, name)
		must(t, c.Initialize(ctx, principal("alice"), testCred("alice", "host/lab", 18, never)))
		tgs := principal("krbtgt/EXAMPLE.TEST")
		_, err := Config(ctx, c, FastAvail, &tgs)
		wantErr(t, err, ErrNotFound, "fast_avail")
		must(t, SetConfig(ctx, c, FastAvail, &tgs, []byte("yes")))
		must(t, SetConfig(ctx, c, RefreshTime, nil, []byte("1")))
		must(t, SetConfig(ctx, c, RefreshTime, nil, []byte("1795327138")))
		for _, test := range []struct {
			key   string
			about *krb5.Principal
			want  string
		}{{FastAvail, &tgs, "yes"}, {RefreshTime, nil, "1795327138"}} {
			got, err := Config(ctx, c, test.key, test.about)
			if err != nil || string(got) != test.want {
				t.Errorf("%s: %q, %v; expected %q", test.key, got, err, test.want)
			}
		}
		creds, err := c.Credentials(ctx)
		must(t, err)
		if len(creds) != 3 {
			t.Errorf("%d entries, expected 3: %v", len(creds), creds)
		}
		for _, e := range creds {
			if IsConfig(e.Server) == (e.Server.Realm == realm) {
				t.Errorf("%s: a setting is taken for a ticket or the other way round", e.Server)
			}
		}
		must(t, SetConfig(ctx, c, FastAvail, &tgs, nil))
		_, err = Config(ctx, c, FastAvail, &tgs)
		wantErr(t, err, ErrNotFound, "fast_avail")
		must(t, c.Destroy(ctx))
	})
}

func TestNames(t *testing.T) {
	r := &Resolver{Default: "FILE:/tmp/krb5cc_0", KCMSocket: "-"}
	for _, test := range []struct {
		name, want string
		err        Code
	}{
		{"", "FILE:/tmp/krb5cc_0", 0},
		{"/tmp/x", "FILE:/tmp/x", 0},
		{"relative", "FILE:relative", 0},
		{"FILE:x:y", "FILE:x:y", 0},
		{"DIR::/x/tkt1", "DIR::/x/tkt1", 0},
		{"DIR:/nonexistent", "DIR::/nonexistent/tkt", 0},
		{"DIR:", "", ErrBadName},
		{"DIR::tkt", "", ErrBadName},
		{"DIR::/x/y", "", ErrBadName},
		{"FILE:", "", ErrBadName},
		{"MEMORY:x", "", ErrKind},
		{"KEYRING:x", "", ErrKind},
		{"KCM:", "", ErrKind},
		{"API:x", "", ErrKind},
		{"file:x", "", ErrKind},
	} {
		c, err := r.Open(t.Context(), test.name)
		if test.err != 0 {
			wantErr(t, err, test.err, test.name)
		} else if err != nil || c.Name() != test.want {
			t.Errorf("%q: %v, %v; expected %s", test.name, c, err, test.want)
		}
	}
	env := map[string]string{}
	getenv := func(k string) string { return env[k] }
	if got := DefaultName(getenv, "KCM:"); got != "KCM:" {
		t.Errorf("default name %q", got)
	}
	env["KRB5CCNAME"] = "DIR:/x"
	if got := DefaultName(getenv, "KCM:"); got != "DIR:/x" {
		t.Errorf("default name %q", got)
	}
}

func TestCollections(t *testing.T) {
	for _, kind := range []string{"DIR", "KEYRING", "KCM"} {
		t.Run(kind, func(t *testing.T) {
			ctx := t.Context()
			r := &Resolver{}
			var name, other string   // the collection, and a cache of it that is not the first
			var primary func() error // makes the other the primary one, as other programs do
			switch kind {
			case "DIR":
				dir := filepath.Join(t.TempDir(), "d")
				name, other = "DIR:"+dir, "DIR::"+dir+"/tktother"
				primary = func() error { return os.WriteFile(dir+"/primary", []byte("tktother\n"), 0o600) }
			case "KEYRING":
				r.Keyrings = keyrings(t)
				name, other = "KEYRING:process:col", "KEYRING:process:col:other"
				primary = func() error {
					return r.Keyrings.do(ctx, name, func() error {
						ring, err := open(t, r, other).(*keyringCache).keyring(false)
						must(t, err)
						return setPrimary(ring, "other")
					})
				}
			case "KCM":
				r.KCMSocket = serveKCM(t, false)
				name, other = "KCM:", "KCM:other"
				primary = func() error {
					return (&kcm{r.KCMSocket, "other"}).session(ctx, func(c *kcmConn) error {
						_, err := c.call(21, c.param())
						return err
					})
				}
			}
			if all, err := r.existing(ctx, name); err != nil || len(all) != 0 {
				t.Errorf("%v, %v; expected an empty collection", all, err)
			}
			first := open(t, r, name)
			must(t, first.Initialize(ctx, principal("alice")))
			second := open(t, r, other)
			if all, err := r.existing(ctx, name); err != nil || len(all) != 1 {
				t.Errorf("%v, %v; expected the one that is initialized", all, err)
			}
			must(t, second.Initialize(ctx, principal("bob")))
			if second.Name() == first.Name() {
				t.Fatalf("both are %s", first.Name())
			}
			names := func() string {
				all, err := r.existing(ctx, name)
				must(t, err)
				s := ""
				for _, c := range all {
					s += c.Name() + " "
				}
				return s
			}
			if got, want := names(), first.Name()+" "+second.Name()+" "; got != want {
				t.Errorf("collection %s, expected %s", got, want)
			}
			must(t, primary())
			if got, want := names(), second.Name()+" "+first.Name()+" "; got != want {
				t.Errorf("after switching: collection %s, expected %s", got, want)
			}
			if c := open(t, r, name); c.Name() != second.Name() {
				t.Errorf("primary is %s, expected %s", c.Name(), second.Name())
			}
			if c, err := r.Match(ctx, name, principal("alice")); err != nil || c.Name() != first.Name() {
				t.Errorf("alice's is %v, %v; expected %s", c, err, first.Name())
			}
			_, err := r.Match(ctx, name, principal("carol"))
			wantErr(t, err, ErrNotFound, "carol")
			must(t, first.Destroy(ctx))
			must(t, second.Destroy(ctx))
		})
	}
}

// What reads keys does not print them.
func TestReadersPrintNothing(t *testing.T) {
	b := []byte("0123456789abcdef")
	for _, v := range []any{reader{b: b}, &reader{b: b}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%x"} {
			if s := fmt.Sprintf(verb, v); s != "[redacted]" {
				t.Errorf("%s of %T: %s", verb, v, s)
			}
		}
	}
}

func TestCrashers(t *testing.T) {
	files, err := filepath.Glob("testdata/crashers/*.hex")
	if err != nil || len(files) == 0 {
		t.Fatal(err, "no crashers")
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		must(t, err)
		b, err := hex.DecodeString(strings.TrimSpace(string(text)))
		must(t, err)
		path := filepath.Join(t.TempDir(), "cc")
		must(t, os.WriteFile(path, b, 0o600))
		c := open(t, &Resolver{}, path)
		creds, err := c.Credentials(t.Context())
		t.Logf("%s: %d credentials, %v", name, len(creds), err)
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		if errors.Is(err, ErrFormat) && creds != nil {
			if _, err := c.Principal(t.Context()); err != nil {
				t.Errorf("%s: there are credentials, but %v", name, err)
			}
		}
	}
}

func FuzzFile(f *testing.F) {
	files, _ := filepath.Glob("testdata/crashers/*.hex")
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		b, _ := hex.DecodeString(strings.TrimSpace(string(text)))
		f.Add(b)
	}
	for v := 1; v <= 4; v++ {
		f.Add(image(v, principal("alice"), testCred("alice", "host/lab", 18, never), testCred("alice", "host/lab", 17, never)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &file{name: "FILE:fuzz"}
		for _, window := range []int{1, window} { // one is too small for any field
			p, err := c.parse(bytes.NewReader(b), len(b), window)
			if err != nil {
				return
			}
			at := p.end
			for cred := p.next(nil); cred != nil; cred = p.next(cred) {
				one := appendCredential(nil, p.r.version, cred)
				r := reader{b: one, version: p.r.version}
				if again := r.credential(nil); r.err != nil || cmp.Diff(cred, again, sameBytes) != "" {
					t.Fatalf("%+v becomes %+v, %v", cred, again, r.err)
				}
				if len(one) != p.end-at {
					t.Fatalf("%d bytes read, %d written", p.end-at, len(one))
				}
				if p.r.version == version && size(cred) != len(one) {
					t.Fatalf("size %d, %d bytes written", size(cred), len(one))
				}
				if cred.Key != nil && !bytes.Contains(b[at:p.end], cred.Key) {
					t.Fatalf("the key is not of the entry")
				}
				at = p.end
			}
			if p.end > len(b) || (p.damage == nil) != (p.end == len(b)) {
				t.Fatalf("end %d of %d, damage %v", p.end, len(b), p.damage)
			}
			p.close()
		}
	})
}

// image is a whole file.
func image(v int, client krb5.Principal, creds ...*krb5.Credential) []byte {
	b := []byte{5, byte(v)}
	if v == 4 {
		b = append(b, 0, 0)
	}
	b = appendPrincipal(b, v, client)
	for _, c := range creds {
		b = appendCredential(b, v, c)
	}
	return b
}
