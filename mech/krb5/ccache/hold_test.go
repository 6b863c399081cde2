package ccache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/mech/krb5"
)

// purse is a Payer with so much.
type purse struct {
	mu          sync.Mutex
	limit       int
	taken, most int
	turns       int // under way
	sizes       []int64
}

var errPoor = errors.New("uid 4711 has no more")

func (p *purse) Take(n int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken+n > p.limit {
		return errPoor
	}
	p.taken += n
	p.most = max(p.most, p.taken)
	return nil
}

func (p *purse) Give(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken -= n; p.taken < 0 {
		panic("more given than taken")
	}
}

func (p *purse) Turn(_ context.Context, size int64) (end func(), err error) {
	p.turns, p.sizes = p.turns+1, append(p.sizes, size)
	return func() { p.turns-- }, nil
}

func weigh(creds ...*krb5.Credential) (n int) {
	for _, c := range creds {
		n += weight(c)
	}
	return n
}

func padded(client, server string, end uint32, n int) *krb5.Credential {
	c := testCred(client, server, 18, end)
	c.Ticket = []byte(strings.Repeat("t", n))
	return c
}

// A file is read in its turn, which begins when whoever had it locked is done with it: he might
// never be.
func TestReadInTurn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cc")
	content := AppendContent(nil, testCred("alice", "krbtgt/EXAMPLE.TEST", 18, never).Client, []*krb5.Credential{testCred("alice", "krbtgt/EXAMPLE.TEST", 18, never)})
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	p := &purse{limit: 1 << 20}
	r := &Resolver{Payer: p}
	c, err := r.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	locked, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer locked.Close()
	if err := unix.FcntlFlock(locked.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := r.Read(ctx, c); !errors.Is(err, context.DeadlineExceeded) || len(p.sizes) != 0 {
		t.Errorf("while it is locked: %v, turns for %d", err, p.sizes)
	}
	locked.Close()
	got, err := r.Read(t.Context(), c)
	if err != nil || len(got.Credentials) != 1 || !slices.Equal(p.sizes, []int64{int64(len(content))}) || p.turns != 0 {
		t.Errorf("%v, turns for %d, of which %d have not ended", err, p.sizes, p.turns)
	}
	if err := c.Update(t.Context(), nil, testCred("alice", "HTTP/a.example.test", 18, never)); err != nil || len(p.sizes) != 2 || p.turns != 0 {
		t.Errorf("adding to it: %v, turns for %d, of which %d have not ended", err, p.sizes, p.turns)
	}
}

// A cache of any size is read with little memory, which is charged; what is left out could be had
// again.
func TestReadLarge(t *testing.T) {
	ctx := t.Context()
	tgt := testCred("alice", "krbtgt/EXAMPLE.TEST", 18, never)
	setting := ConfigEntry(principal("alice"), RefreshTime, nil, []byte("7"))
	b := image(4, principal("alice"), tgt, setting)
	for i := 0; len(b) < maxFile-4000; i++ {
		b = appendCredential(b, version, padded("alice", fmt.Sprint("host/lab", i), never, 2000))
	}
	last := testCred("alice", "host/last", 18, never)
	b = appendCredential(b, version, last)
	path := filepath.Join(t.TempDir(), "cc")
	must(t, os.WriteFile(path, b, 0o600))

	p := &purse{limit: 2 << 20}
	r := &Resolver{Payer: p}
	got, err := r.Read(ctx, open(t, r, path))
	must(t, err)
	if !got.Client.Equal(principal("alice")) || got.Charged != p.taken || got.Charged != weigh(got.Credentials...) || got.Charged > maxHeld {
		t.Errorf("%v, %d bytes charged, %d taken", got.Client, got.Charged, p.taken)
	}
	has := func(c *krb5.Credential) bool {
		for _, g := range got.Credentials {
			if g.Server.Equal(c.Server) {
				return true
			}
		}
		return false
	}
	if !has(tgt) || !has(setting) || !has(last) || len(got.Credentials) < 200 {
		t.Errorf("%d credentials, with the ticket-granting ticket: %v, the setting: %v, the last: %v", len(got.Credentials), has(tgt), has(setting), has(last))
	}
	if p.most < maxHeld/2 || p.most > p.limit {
		t.Errorf("at most %d were charged at a time", p.most)
	}
	p.Give(got.Charged)

	for _, limit := range []int{0, 100 << 10, 200 << 10} { // not for the window, nor for all there is
		p := &purse{limit: limit}
		r := &Resolver{Payer: p}
		_, err := r.Read(ctx, open(t, r, path))
		wantErr(t, err, ErrQuota, errPoor.Error())
		_, err = open(t, r, path).Credentials(ctx)
		wantErr(t, err, ErrQuota, errPoor.Error())
		if p.taken != 0 {
			t.Errorf("%d bytes stay charged after a failure", p.taken)
		}
	}
	_, err = open(t, r, path).Credentials(ctx)
	must(t, err)
	if p.taken != 0 {
		t.Errorf("%d bytes stay charged though nobody can give them back", p.taken)
	}
}

// Every kind charges for what is read, and says what it was.
func TestReadKinds(t *testing.T) {
	kinds(t, func(t *testing.T, r *Resolver, name string) {
		one := testCred("alice", "host/lab", 18, never)
		c := open(t, r, name)
		must(t, c.Initialize(t.Context(), principal("alice"), one))
		p := &purse{limit: 1 << 20}
		r.Payer = p
		got, err := r.Read(t.Context(), open(t, r, name))
		must(t, err)
		if len(got.Credentials) != 1 || !got.Client.Equal(principal("alice")) || got.Charged != weight(one) || p.taken != got.Charged {
			t.Errorf("%v, %d credentials, %d charged, %d taken", got.Client, len(got.Credentials), got.Charged, p.taken)
		}
		r.Payer = &purse{}
		_, err = r.Read(t.Context(), open(t, r, name))
		wantErr(t, err, ErrQuota, errPoor.Error())
		must(t, c.Destroy(t.Context()))
	})
}

// Who asks for ever new tickets does not make a cache grow without end: what is superseded or
// expired goes, and only then what can be had again.
func TestGrowth(t *testing.T) {
	for _, kind := range []string{"FILE:", "DIR::", "MEMORY:", "KCM:", "KCM:old:", "KEYRING:process:"} {
		t.Run(strings.Trim(kind, ":"), func(t *testing.T) {
			ctx := t.Context()
			dir := t.TempDir()
			name := kind + dir + "/tkt"
			r := &Resolver{Memory: new(Memory)}
			file := false
			switch kind {
			case "KCM:", "KCM:old:":
				r.KCMSocket = serveKCM(t, kind == "KCM:old:")
			case "KEYRING:process:":
				r.Keyrings = keyrings(t)
			default:
				file = kind != "MEMORY:"
			}
			c := open(t, r, name)
			tgt := testCred("alice", "krbtgt/EXAMPLE.TEST", 18, never)
			setting := ConfigEntry(principal("alice"), RefreshTime, nil, []byte("7"))
			kept := testCred("alice", "host/kept", 18, never)
			kept.StartTime--
			must(t, c.Initialize(ctx, principal("alice"), tgt, setting, kept))
			size := func() int {
				if kind == "MEMORY:" {
					_, n := r.Memory.Len()
					return n
				}
				if !file {
					creds, err := c.Credentials(ctx)
					must(t, err)
					return weigh(creds...)
				}
				st, err := os.Stat(dir + "/tkt")
				must(t, err)
				return int(st.Size())
			}
			var last *krb5.Credential
			for i := range 60 { // 1.8 MB
				last = padded("alice", "host/again", never+uint32(i), 30_000)
				must(t, Store(ctx, c, last))
				most := maxHeld
				if file { // all of it is read again after each
					most = 3 * 31_000
				}
				if n := size(); n > most {
					t.Fatalf("%d bytes after %d tickets", n, i)
				}
			}
			find := func(c Cache, want *krb5.Credential) bool {
				creds, err := c.Credentials(ctx)
				must(t, err)
				for _, got := range creds {
					if same(got, want) && got.EndTime == want.EndTime {
						return true
					}
				}
				return false
			}
			for _, want := range []*krb5.Credential{tgt, setting, kept, last} {
				if !find(c, want) {
					t.Errorf("%v is gone", want.Server)
				}
			}
			// Of tickets that are all good the oldest go.
			for i := range 60 {
				last = padded("alice", fmt.Sprint("host/", i), never, 30_000)
				last.StartTime += uint32(i)
				must(t, Store(ctx, c, last))
				if n := size(); n > maxHeld {
					t.Fatalf("%d bytes after %d tickets", n, i)
				}
			}
			for _, want := range []*krb5.Credential{tgt, setting, last} {
				if !find(c, want) {
					t.Errorf("%v is gone", want.Server)
				}
			}
			if find(c, kept) {
				t.Error("the oldest is still there")
			}
			if entries, _ := os.ReadDir(dir); len(entries) > 1 {
				t.Errorf("left behind: %v", entries)
			}
		})
	}
}

// What is removed from a file again and again does not make it grow without end.
func TestGrowthByRemoval(t *testing.T) {
	path := t.TempDir() + "/tkt"
	r := &Resolver{}
	c := open(t, r, "FILE:"+path)
	kept := testCred("alice", "host/kept", 18, never)
	must(t, c.Initialize(t.Context(), principal("alice"), kept))
	for range 100 {
		must(t, SetConfig(t.Context(), c, RefreshTime, nil, make([]byte, 4000)))
	}
	st, err := os.Stat(path)
	must(t, err)
	if st.Size() > maxUseless+3*5000 {
		t.Errorf("%d bytes", st.Size())
	}
	if got, err := Find(t.Context(), c, Query{Server: kept.Server}); err != nil || got.EndTime != kept.EndTime {
		t.Errorf("what was kept: %v, %v", got, err)
	}
}

// Reading a cache makes garbage of what it holds, not of all that there is in it.
func TestReadGarbage(t *testing.T) {
	path := t.TempDir() + "/tkt"
	var creds []*krb5.Credential
	for i := range 2000 {
		creds = append(creds, padded("alice", "host/again", never+uint32(i), 1000))
	}
	must(t, os.WriteFile(path, AppendContent(nil, principal("alice"), creds), 0o600))
	r := &Resolver{}
	c := open(t, r, "FILE:"+path)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const times = 8
	for range times {
		got, err := r.Read(t.Context(), c)
		must(t, err)
		destroy(got.Credentials)
	}
	runtime.ReadMemStats(&after)
	if n := (after.TotalAlloc - before.TotalAlloc) / times; n > 1<<20 {
		t.Errorf("%d bytes are allocated to read a cache of 2 MB in which one ticket counts", n)
	}
}

// Nothing is taken out of a file that is a user's own, nor is it made to grow beyond that.
func TestGrowthOfTheirs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root to give files away")
	}
	path := filepath.Join(t.TempDir(), "cc")
	b := image(4, principal("alice"), padded("alice", "host/lab", never, 500_000), padded("alice", "host/lab", never, 500_000))
	must(t, os.WriteFile(path, b, 0o600))
	must(t, os.Chown(path, alices, alices))
	c := open(t, forUser(alices), path)
	must(t, Store(t.Context(), c, padded("alice", "nfs/lab", never, 10_000)))
	wantErr(t, Store(t.Context(), c, padded("alice", "ldap/lab", never, 100_000)), ErrQuota, "more than")
	if after, _ := os.ReadFile(path); len(after) < len(b) || string(after[:len(b)]) != string(b) {
		t.Errorf("%d bytes, %d before", len(after), len(b))
	}
}

// What is left out, in which order.
func TestFit(t *testing.T) {
	const now = never - 1000
	impersonator := ConfigEntry(principal("alice"), ProxyImpersonator, nil, []byte(principal("http/lab").String()))
	evidence := padded("alice", "http/lab", never, 100)
	tgt := padded("http/lab", "krbtgt/EXAMPLE.TEST", never, 300_000)
	old := padded("http/lab", "krbtgt/EXAMPLE.TEST", never-1, 300_000)
	expired := padded("alice", "host/expired", now-1, 10)
	superseded := padded("alice", "host/a", never, 10)
	first, second := padded("alice", "host/b", never, 400_000), padded("alice", "host/c", never, 300_000)
	latest := padded("alice", "host/a", never, 10)
	if got, ok := fitting([]*krb5.Credential{expired, first, superseded, latest}, now); !ok || len(got) != 4 {
		t.Errorf("%d stay of what is little", len(got))
	}
	got, ok := fitting([]*krb5.Credential{evidence, impersonator, expired, superseded, old, tgt, first, second, latest}, now)
	if !ok {
		t.Error("too much is left")
	}
	want := []*krb5.Credential{evidence, impersonator, tgt, second, latest}
	if len(got) != len(want) {
		t.Fatalf("%d stay, expected %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%v stays, expected %v", got[i].Server, want[i].Server)
		}
	}
}

// What a later ticket for the same supersedes is not held, if the later one lives as long.
func TestSuperseded(t *testing.T) {
	h := (&Resolver{}).hold()
	defer h.drop()
	for i := range uint32(500) {
		must(t, h.add(padded("alice", "host/a", never-1000+i, 1000)))
	}
	if h.weight > 2*tidyFrom {
		t.Errorf("%d bytes are held of 500 tickets for one service, each of which lives longer than the one before", h.weight)
	}
	longest := padded("alice", "host/b", never, 1000)
	must(t, h.add(longest))
	for i := range uint32(200) {
		must(t, h.add(padded("alice", "host/b", never-1-i, 1000)))
	}
	if !slices.ContainsFunc(h.held, func(one held) bool { return one.Credential == longest }) {
		t.Error("a ticket is left out for one that lives shorter")
	}
}

func TestIdentity(t *testing.T) {
	one := func(change func(*krb5.Credential)) *krb5.Credential {
		c := testCred("alice", "host/lab", 18, never)
		change(c)
		return c
	}
	all := []*krb5.Credential{
		one(func(*krb5.Credential) {}),
		one(func(c *krb5.Credential) { c.EndTime, c.Key, c.Ticket, c.Server.Type = 1, nil, nil, 7 }),
		one(func(c *krb5.Credential) { c.KeyType = 17 }),
		one(func(c *krb5.Credential) { c.IsSKey = true }),
		one(func(c *krb5.Credential) { c.SecondTicket = []byte("x") }),
		one(func(c *krb5.Credential) { c.AuthData = []krb5.AuthData{{Type: 1}} }),
		one(func(c *krb5.Credential) { c.Client = principal("bob") }),
		one(func(c *krb5.Credential) { c.Server = configServer("x", nil) }),
		one(func(c *krb5.Credential) { c.Server = configServer("x", nil); c.KeyType = 17 }),
	}
	for i, a := range all {
		for j, b := range all {
			if same(a, b) != bytes.Equal(appendIdentity(nil, a), appendIdentity(nil, b)) {
				t.Errorf("%d and %d: same is %v", i, j, same(a, b))
			}
		}
	}
}
