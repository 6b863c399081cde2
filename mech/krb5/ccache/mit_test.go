package ccache_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/tests/lab"
)

const (
	tgs  = "krbtgt/EXAMPLE.TEST"
	host = "host/lab.example.test"
	nfs  = "nfs/lab.example.test"
)

func name(t *testing.T, s string) krb5.Principal {
	t.Helper()
	p, err := krb5.ParsePrincipal(s, lab.Name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// mit is a realm and MIT's programs in it.
type mit struct {
	*lab.Realm
	t      *testing.T
	keytab string
}

func newMIT(t *testing.T) *mit {
	m := &mit{Realm: lab.New(t), t: t}
	m.check(m.RandKey(host))
	m.check(m.RandKey(nfs))
	m.check(m.AddPrincipal("bob", "bob"))
	var err error
	m.keytab, err = m.Keytab("users.keytab", "alice", "bob")
	m.check(err)
	return m
}

func (m *mit) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// try runs a program with a default cache.
func (m *mit) try(cc, program string, args ...string) (string, error) {
	return m.Run(lab.Root, []string{"KRB5CCNAME=" + cc}, "/usr/bin/"+program, args...)
}

func (m *mit) run(cc, program string, args ...string) string {
	m.t.Helper()
	out, err := m.try(cc, program, args...)
	m.check(err)
	return out
}

func (m *mit) kinit(cc, user string) { m.t.Helper(); m.run(cc, "kinit", "-k", "-t", m.keytab, user) }

// tickets is what klist says of a cache, without its name.
func (m *mit) tickets(cc string) string {
	m.t.Helper()
	out := m.run(cc, "klist", "-C", "-e", "-f", "-a", "-n")
	_, rest, _ := strings.Cut(out, "\n")
	return rest
}

// ownerLine is what klist says of the setting for whom a cache is, which ours have in files.
var ownerLine = regexp.MustCompile(`(?m)^config: ` + ccache.RecordUID + ` = \d+\n\tAddresses: .*\n`)

// MIT's programs write and we read; we write and they read and write on; for every kind that lives
// outside a process.
func TestMIT(t *testing.T) {
	m := newMIT(t)
	socket, noKCM := m.KCM()
	if noKCM == nil {
		var err error
		m.Conf, err = m.Krb5Conf("krb5-kcm.conf", "kcm_socket = "+socket)
		m.check(err)
	}
	keyrings := ccache.NewKeyrings()
	defer keyrings.Close()
	r := &ccache.Resolver{Keyrings: keyrings, KCMSocket: socket}
	uniq := fmt.Sprintf("gssproxyd%d", os.Getpid())
	ccache.UnlinkLater(t, "theirs"+uniq, "ours"+uniq)
	for _, pair := range [][2]string{
		{"FILE:" + m.Path("theirs"), "FILE:" + m.Path("ours")},
		{"DIR:" + m.Path("theirs.d"), "DIR:" + m.Path("ours.d")},
		{"DIR::" + m.Dir + "/tkt1", "DIR::" + m.Dir + "/tkt2"},
		{"KEYRING:user:theirs" + uniq, "KEYRING:user:ours" + uniq},
		{"KEYRING:session:theirs" + uniq, "KEYRING:session:ours" + uniq},
		{"KEYRING:theirs" + uniq, "KEYRING:ours" + uniq},
		{"KEYRING:persistent:0:theirs" + uniq, "KEYRING:persistent:0:ours" + uniq},
		{"KCM:0:theirs" + uniq, "KCM:0:ours" + uniq},
	} {
		t.Run(pair[0][:strings.LastIndexAny(pair[0], ":/")], func(t *testing.T) {
			ctx := t.Context()
			m := &mit{m.Realm, t, m.keytab}
			theirsName, oursName := pair[0], pair[1]
			if strings.HasPrefix(oursName, "KEYRING:") {
				ccache.NeedKeyrings(t, keyrings)
			}
			if strings.HasPrefix(oursName, "KCM:") && noKCM != nil {
				lab.Lacking(t, "KCM server", noKCM)
			}
			m.kinit(theirsName, "alice")
			m.run(theirsName, "kvno", host)
			theirs, err := r.Open(ctx, theirsName)
			m.check(err)
			p, err := theirs.Principal(ctx)
			m.check(err)
			if p.String() != "alice@EXAMPLE.TEST" || p.Type != krb5.NTPrincipal {
				t.Errorf("principal %s of type %d", p, p.Type)
			}
			creds, err := theirs.Credentials(ctx)
			m.check(err)
			for _, s := range []string{tgs, host} {
				c, err := ccache.Find(ctx, theirs, ccache.Query{Client: p, Server: name(t, s)})
				m.check(err)
				// Ten hours from when kinit looked at the clock, before the KDC did, whose clock is a
				// tick behind.
				life := int64(c.EndTime) - int64(c.AuthTime)
				if len(c.Key) != c.KeyType.KeySize() || len(c.Ticket) < 100 || c.Flags&0x40000000 == 0 || life > 36001 || life < 36000-60 {
					t.Errorf("%s: read as enctype %v, key of %d bytes, flags %#x, times %d to %d", c, c.KeyType, len(c.Key), c.Flags, c.AuthTime, c.EndTime)
				}
			}
			krbtgt := name(t, tgs)
			if v, err := ccache.Config(ctx, theirs, ccache.PAType, &krbtgt); err != nil || string(v) != "2" && string(v) != "138" {
				t.Errorf("pa_type is %q, %v", v, err)
			}

			// Our copy is to them what their own is.
			ours, err := r.Open(ctx, oursName)
			m.check(err)
			m.check(ours.Initialize(ctx, p, creds...))
			want := sorted(m.tickets(theirsName))
			if got := sorted(ownerLine.ReplaceAllString(m.tickets(oursName), "")); got != want {
				t.Errorf("klist of ours:\n%s\nexpected\n%s", got, want)
			}
			// They use our TGT and store what they get.
			m.run(oursName, "kvno", nfs)
			_, err = ccache.Find(ctx, ours, ccache.Query{Client: p, Server: name(t, nfs)})
			m.check(err)
			// What we store and remove they see.
			m.check(ccache.Remove(ctx, ours, ccache.Query{Server: name(t, nfs)}))
			m.check(ccache.SetConfig(ctx, ours, ccache.RefreshTime, nil, []byte("12345")))
			m.check(ccache.SetConfig(ctx, ours, ccache.RefreshTime, nil, []byte("67890")))
			got := m.tickets(oursName)
			if strings.Contains(got, nfs) || !strings.Contains(got, host) || !strings.Contains(got, "refresh_time = 67890") || strings.Contains(got, "12345") {
				t.Errorf("klist after removing nfs and setting refresh_time:\n%s", got)
			}
			m.check(ccache.SetConfig(ctx, ours, ccache.RefreshTime, nil, nil))
			m.run(oursName, "kvno", nfs)
			if got := m.tickets(oursName); !strings.Contains(got, nfs) || strings.Contains(got, "refresh_time") {
				t.Errorf("klist after getting nfs again:\n%s", got)
			}
			// One cache, whoever makes it anew.
			m.run("", "kinit", "-k", "-t", m.keytab, "-c", oursName, "bob")
			if p, err := ours.Principal(ctx); err != nil || p.String() != "bob@EXAMPLE.TEST" {
				t.Errorf("%s, %v after kinit bob", p, err)
			}
			m.run(theirsName, "kdestroy")
			_, err = theirs.Principal(ctx)
			if !errors.Is(err, ccache.ErrNoCache) {
				t.Errorf("%v after kdestroy", err)
			}
			m.check(ours.Destroy(ctx))
			if out, err := m.try(ours.Name(), "klist"); err == nil {
				t.Errorf("klist after our destroying:\n%s", out)
			}
		})
	}
}

// What the file says about whose it is does not disturb MIT's programs, nor do they disturb that.
func TestMITOfAnotherUser(t *testing.T) {
	m := newMIT(t)
	theirsName := "FILE:" + m.Path("theirs")
	m.kinit(theirsName, "alice")
	theirs, err := new(ccache.Resolver).Open(t.Context(), theirsName)
	m.check(err)
	creds, err := theirs.Credentials(t.Context())
	m.check(err)

	r := ccache.Resolver{For: new(uint32(4711))}
	ours, err := r.Open(t.Context(), m.Path("for4711"))
	m.check(err)
	m.check(ours.Initialize(t.Context(), name(t, "alice"), creds...))
	m.run(ours.Name(), "kvno", host)
	got := m.tickets(ours.Name())
	if !strings.Contains(got, host) || !strings.Contains(got, ccache.RecordUID+" = 4711") {
		t.Errorf("klist:\n%s", got)
	}
	if _, err = ccache.Find(t.Context(), ours, ccache.Query{Server: name(t, host)}); err != nil {
		t.Error(err)
	}
	_, err = theirs.Principal(t.Context())
	m.check(err)
	ours, err = (&ccache.Resolver{For: new(uint32(4712))}).Open(t.Context(), ours.Name())
	m.check(err)
	if _, err := ours.Principal(t.Context()); !errors.Is(err, ccache.ErrAccess) {
		t.Errorf("%v for another user", err)
	}
}

func sorted(s string) string {
	entries := regexp.MustCompile(`(?m)^(\d|config)`).ReplaceAllString(s, "\x00$0")
	list := strings.Split(entries, "\x00")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	slices.Sort(list[1:])
	return strings.Join(list, "\n")
}

// Both see the same collection with the same primary cache.
func TestMITCollections(t *testing.T) {
	m := newMIT(t)
	keyrings := ccache.NewKeyrings()
	defer keyrings.Close()
	r := &ccache.Resolver{Keyrings: keyrings}
	ccache.UnlinkLater(t, fmt.Sprintf("col%d", os.Getpid()))
	for _, col := range []string{"DIR:" + m.Path("col"), fmt.Sprintf("KEYRING:user:col%d", os.Getpid())} {
		t.Run(col[:4], func(t *testing.T) {
			ctx := t.Context()
			m := &mit{m.Realm, t, m.keytab}
			if strings.HasPrefix(col, "KEYRING:") {
				ccache.NeedKeyrings(t, keyrings)
			}
			m.kinit(col, "alice")
			m.kinit(col, "bob") // in a new cache, which becomes the primary one
			list := func() (theirs, ours []string) {
				all, err := ccache.Collection(ctx, r, col)
				m.check(err)
				for _, c := range all {
					p, err := c.Principal(ctx)
					m.check(err)
					ours = append(ours, p.String()+" "+c.Name())
				}
				for line := range strings.Lines(m.run(col, "klist", "-l")) {
					if f := strings.Fields(line); len(f) > 1 && strings.Contains(f[0], "@") {
						theirs = append(theirs, f[0]+" "+f[1])
					}
				}
				return theirs, ours
			}
			check := func(n int, first string) {
				t.Helper()
				theirs, ours := list()
				slices.Sort(theirs[1:]) // only the first has its place
				slices.Sort(ours[1:])
				if len(ours) != n || strings.Join(theirs, "\n") != strings.Join(ours, "\n") || !strings.HasPrefix(ours[0], first) {
					t.Errorf("they list\n%s\nwe list\n%s\nexpected %d, %s first", strings.Join(theirs, "\n"), strings.Join(ours, "\n"), n, first)
				}
			}
			check(2, "bob@")
			m.run(col, "kswitch", "-p", "alice")
			check(2, "alice@")
			bob, err := r.Match(ctx, col, name(t, "bob"))
			m.check(err)
			m.run(col, "kswitch", "-p", "bob")
			check(2, "bob@")
			m.run(col, "kvno", host)
			if _, err := ccache.Find(ctx, bob, ccache.Query{Server: name(t, host)}); err != nil {
				t.Errorf("kvno used another cache: %v", err)
			}
			third, err := r.Open(ctx, map[string]string{"DIR:": "DIR::" + m.Path("col/tktthird"), "KEYR": col + ":third"}[col[:4]])
			m.check(err)
			m.check(third.Initialize(ctx, name(t, "carol")))
			m.run(col, "kswitch", "-p", "carol")
			check(3, "carol@")
			m.run(col, "kdestroy", "-A")
			if all, err := ccache.Collection(ctx, r, col); err != nil || len(all) != 0 {
				t.Errorf("%v, %v after kdestroy -A", all, err)
			}
		})
	}
}

// MIT's programs make, read and write the file in loops while we do. Neither ever finds it damaged.
func TestMITConcurrent(t *testing.T) {
	m := newMIT(t)
	ctx := t.Context()
	r := &ccache.Resolver{}
	for _, kind := range []string{"FILE:", "DIR::"} {
		cc := kind + m.Path("tktbusy")
		m.kinit(cc, "alice")
		c, err := r.Open(ctx, cc)
		m.check(err)
		creds, err := c.Credentials(ctx)
		m.check(err)
		p, err := c.Principal(ctx)
		m.check(err)
		extra := creds[len(creds)-1].Clone()
		extra.Server = name(t, "extra/x")

		loops := func(mit ...func(i int)) {
			done, cancel := context.WithCancel(ctx)
			var ours, theirs sync.WaitGroup
			for _, run := range mit {
				theirs.Go(func() {
					for i := range 12 {
						run(i)
					}
				})
			}
			for g := range 2 {
				ours.Go(func() {
					for i := 0; done.Err() == nil; i++ {
						var err error
						switch {
						case g == 0 && i%50 == 10:
							err = c.Initialize(ctx, p, creds...)
						case i%2 == 0:
							err = ccache.Store(ctx, c, extra)
						default:
							_, err = c.Credentials(ctx)
						}
						// Between kinit's removing the file and making another there is none.
						if err != nil && !errors.Is(err, ccache.ErrNoCache) {
							t.Error(err)
						}
						if i%10 == 9 {
							if err := ccache.Remove(ctx, c, ccache.Query{Server: extra.Server}); err != nil && !errors.Is(err, ccache.ErrNoCache) {
								t.Error(err)
							}
						}
						time.Sleep(time.Millisecond)
					}
				})
			}
			theirs.Wait()
			cancel()
			ours.Wait()
		}
		// Their readers and storers against our writers: not one failure.
		loops(func(int) {
			if out, err := m.try(cc, "klist"); err != nil {
				t.Errorf("klist: %v\n%s", err, out)
			}
		}, func(i int) {
			if out, err := m.try(cc, "kvno", []string{host, nfs}[i%2]); err != nil {
				t.Errorf("kvno: %v\n%s", err, out)
			}
		})
		// Their makers too. Their own readers find a file just made empty, so these are not asked.
		loops(func(int) {
			if out, err := m.try(cc, "kinit", "-k", "-t", m.keytab, "alice"); err != nil {
				t.Errorf("kinit: %v\n%s", err, out)
			}
		}, func(i int) { m.try(cc, "kvno", host) })
		if _, err := c.Credentials(ctx); err != nil {
			t.Errorf("at the end: %v", err)
		}
		m.run(cc, "klist")
	}
	if left, _ := filepath.Glob(m.Dir + "/.tkt*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
