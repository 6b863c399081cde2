package stores

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gssproxyd/keytab"
)

// A fleet whose store has left it at one moment comes again spread over time, later and later, and all
// of it comes.
func TestFleetIsSpread(t *testing.T) {
	const hosts = 5000
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var mu sync.Mutex
		var tries []time.Duration
		back := 0
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var running sync.WaitGroup
		for range hosts {
			ours, theirs := net.Pipe()
			a := newAsker(&helper{conn: theirs}, "main")
			a.told(&order{How: &how{URLs: []string{"https://one", "https://two"}, Wrong: "it has left"}})
			a.waits = true
			running.Go(func() { a.run(ctx) })
			running.Go(func() { // the daemon
				defer theirs.Close()
				defer ours.Close()
				defer context.AfterFunc(ctx, func() { ours.Close() })()
				for n := uint64(1); ; n++ {
					var r report
					if readMessage(ours, &r) != nil {
						return
					}
					o := &order{Store: "main", Answers: n}
					mu.Lock()
					if n > 1 { // the first was when it left
						tries = append(tries, time.Since(began))
					}
					if time.Since(began) > 20*time.Second { // it is back
						back++
						o.How = new(how)
					}
					mu.Unlock()
					a.told(o)
				}
			})
		}
		time.Sleep(20*time.Second + pauseMost)
		cancel()
		running.Wait()
		perSecond := make(map[int]int)
		for _, at := range tries {
			perSecond[int(at/time.Second)]++
			if at < pauseLeast {
				t.Fatalf("one comes after %v", at)
			}
		}
		most := 0
		for second, n := range perSecond {
			if n > hosts*4/10 {
				t.Errorf("%d come in second %d", n, second)
			}
			most = max(most, n)
		}
		if back != hosts {
			t.Errorf("%d of %d have come back", back, hosts)
		}
		t.Logf("%d attempts, at most %d in one second", len(tries), most)
	})
}

// Pauses are within their bounds, and as long as they may be after a while.
func TestBackoff(t *testing.T) {
	var b backoff
	for i := range 100 {
		if p := b.next(false); p < pauseLeast || p > pauseMost || i == 0 && p > 2*pauseLeast {
			t.Errorf("pause %d is %v", i, p)
		}
	}
	if b.window != pauseMost-pauseLeast {
		t.Errorf("the window is %v", b.window)
	}
}

// A store that says that it ends, or closes the connection, is no trouble until that lasts: the next
// url is asked.
func TestOrderlyEnd(t *testing.T) {
	f := newFakeStore(t)
	for name, serve := range map[string]http.HandlerFunc{
		"says so": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "5")
			w.WriteHeader(http.StatusServiceUnavailable)
			w.Write([]byte(`{"reason":"store-stopping","text":"it ends","hint":"ask another one"}`))
		},
		"closes the connection": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			d := newDaemon(t, f, never)
			d.Close()
			d.config.KeyStores[0].URLs = []string{httptestServer(t, f, serve), f.url}
			d.again(inside)
			until(t, "the other one's answer", func() bool { s := d.States()[0]; return s.Lost == "" && s.URL == f.url })
			if text := d.log.String(); strings.Contains(text, "no contact") {
				t.Error(text)
			}
		})
	}
}

// What is logged of a lost contact is one line, with what to do: at once, or of an orderly end when it
// has lasted for half a minute.
func TestLostContact(t *testing.T) {
	f := newFakeStore(t)
	for name, test := range map[string]struct {
		lost  []*contact
		lines []int // after each
	}{
		"failure":        {[]*contact{{Error: "x", Hint: "do y"}, {Error: "z"}}, []int{1, 1}},
		"in order":       {[]*contact{{Error: "x", Orderly: true}, {Error: "refused"}, {Error: "refused"}, {Error: "refused", Hint: "do y"}, {Error: "x"}}, []int{0, 0, 0, 1, 1}},
		"order and back": {[]*contact{{Error: "x", Orderly: true}, {}, {Error: "x", Orderly: true}, {Error: "x"}, {}}, []int{0, 0, 0, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			d := newDaemon(t, f, never)
			now := time.Unix(1750000000, 0)
			d.Stores.o.Now = func() time.Time { return now }
			d.contact("main", &contact{URL: "u"})
			for i, c := range test.lost {
				d.contact("main", c)
				if got := strings.Count(d.log.String(), "no contact to a key store"); got != test.lines[i] {
					t.Errorf("after %d: %d lines, not %d", i, got, test.lines[i])
				}
				now = now.Add(10 * time.Second)
			}
			if n := test.lines[len(test.lines)-1]; n > 0 && !strings.Contains(d.log.String(), `hint="do y"`) {
				t.Error(d.log.String())
			} else if n == 0 && strings.Count(d.log.String(), "contact to a key store") != 1 {
				t.Error(d.log.String())
			}
		})
	}
}

// A certificate that is renewed is shown to the store at once, though a poll waits; one whose key is
// not there yet is not, and that is said.
func TestCertificateRenewed(t *testing.T) {
	f := newFakeStore(t)
	f.put(of(www, 1))
	d := newDaemon(t, f, inside)
	f.await(www, mark{1, 1})
	cert, key := f.ca.issue("renewed." + host)
	check(t, os.WriteFile(filepath.Join(d.dir, "cert.pem"), cert, 0o600))
	until(t, "that they do not fit", func() bool { return strings.Contains(d.log.String(), "private key does not match public key") })
	if s := d.States()[0]; s.Lost != "" {
		t.Error(s.Lost)
	}
	check(t, os.WriteFile(filepath.Join(d.dir, "key.pem"), key, 0o600))
	until(t, "the new certificate", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return slices.Contains(f.asked, "renewed."+host)
	})
	if n := strings.Count(d.log.String(), "cannot be used"); n != 1 {
		t.Errorf("%d lines:\n%s", n, d.log)
	}
}

// list makes a revocation list.
func (a *authority) list(next time.Time, revoked ...*x509.Certificate) []byte {
	tmpl := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: next}
	for _, c := range revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, a.cert, a.key)
	check(a.t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// A store whose certificate was revoked is not asked, nor is one while there is no list that says it was
// not; what is in the file now counts.
func TestRevokedStore(t *testing.T) {
	f := newFakeStore(t)
	own, err := x509.ParseCertificate(f.server.TLS.Certificates[0].Certificate[0])
	check(t, err)
	d := newDaemon(t, f, never)
	d.Close()
	crl := filepath.Join(d.dir, "crl.pem")
	d.config.KeyStores[0].CRL = crl
	later := time.Now().Add(time.Hour)
	check(t, os.WriteFile(crl, f.ca.list(later, own), 0o600))
	d.again(inside)
	lost := func(what string) {
		t.Helper()
		until(t, what, func() bool { return strings.Contains(d.States()[0].Lost, what) })
	}
	lost("the store's certificate: it was revoked at ")
	check(t, os.WriteFile(crl, newAuthority(t).list(later), 0o600))
	lost("has no revocation list that")
	check(t, os.WriteFile(crl, f.ca.list(time.Now().Add(-time.Minute)), 0o600))
	lost("was to be replaced at")
	if len(f.asked) > 0 {
		t.Errorf("it was asked: %q", f.asked)
	}
	check(t, os.WriteFile(crl, f.ca.list(later), 0o600))
	until(t, "contact", func() bool { s := d.States()[0]; return s.Lost == "" && !s.Contact.IsZero() })
}

// Files that are of no use, or not at this time, are a line with what to do.
func TestCheckFiles(t *testing.T) {
	f := newFakeStore(t)
	d := newDaemon(t, f, never)
	k := d.config.KeyStores[0]
	k.CRL = filepath.Join(d.dir, "crl.pem")
	good := map[string][]byte{"crl.pem": f.ca.list(time.Now().Add(time.Hour))}
	for _, name := range []string{"ca.pem", "cert.pem", "key.pem"} {
		b, err := os.ReadFile(filepath.Join(d.dir, name))
		check(t, err)
		good[name] = b
	}
	for name, test := range map[string]struct {
		file string
		with []byte // nil: it is not there
		now  time.Duration
		want string
	}{
		"good":              {},
		"no ca":             {file: "ca.pem", want: "ca: open "},
		"no authority":      {file: "ca.pem", with: []byte("x"), want: "has no certificate in it"},
		"huge":              {file: "cert.pem", with: make([]byte, maxPEM+1), want: "at most 262144 are read"},
		"another's key":     {file: "cert.pem", with: f.ca.pem, want: "private key does not match public key"},
		"no list":           {file: "crl.pem", with: []byte("x"), want: "crl: "},
		"ended":             {now: 100 * 24 * time.Hour, want: "cert: this host's certificate has ended at "},
		"clock in the past": {now: -3 * 24 * time.Hour, want: "cert: this host's certificate is good from "},
		"old list":          {file: "crl.pem", with: f.ca.list(time.Now().Add(-time.Minute)), want: "was to be replaced at"},
	} {
		t.Run(name, func(t *testing.T) {
			for file, b := range good {
				path := filepath.Join(d.dir, file)
				if file == test.file {
					b = test.with
				}
				check(t, os.RemoveAll(path))
				if b != nil {
					check(t, os.WriteFile(path, b, 0o600))
				}
			}
			list := CheckFiles(k, time.Now().Add(test.now))
			if test.want == "" && len(list) > 0 || test.want != "" && (len(list) == 0 || !strings.Contains(list[0].Error(), test.want) || list[0].Hint == "") {
				t.Errorf("%v, want %q", list, test.want)
			}
		})
	}
}

// A certificate of this host that has ended, or a clock that is wrong, is said once, and the store is
// not asked.
func TestOwnCertificateEnded(t *testing.T) {
	f := newFakeStore(t)
	d := newDaemon(t, f, never)
	d.Close()
	o := d.Stores.o
	o.Now, o.Start = func() time.Time { return time.Now().Add(72 * time.Hour) }, inside
	d.Stores = New(o)
	check(t, d.Configure(d.config))
	t.Cleanup(d.Close)
	until(t, "why not", func() bool {
		return strings.Contains(d.States()[0].Lost, "has ended at") && strings.Contains(d.log.String(), "no contact")
	})
	if got := d.log.String(); strings.Count(got, "no contact") != 1 || !strings.Contains(got, "set the clock if it is wrong") {
		t.Error(got)
	}
	if len(f.asked) > 0 {
		t.Errorf("it was asked: %q", f.asked)
	}
}

// Who has no right to an entry says once that its keys are gone, and not with each poll.
func TestNoRightToAcknowledge(t *testing.T) {
	f := newFakeStore(t)
	f.denied = map[string]int{www: 0}
	gone := of(www, 1)
	gone.Sealed, gone.Withdrawn, gone.Text = nil, "store-no-right", "no more"
	f.put(gone)
	f.put(of(ldap, 1))
	newDaemon(t, f, inside)
	for n := range uint64(4) {
		f.put(of(ldap, n+1))
		f.await(ldap, mark{1, n + 1})
	}
	again := of(www, 2)
	again.Sealed, again.Withdrawn, again.Text = nil, "store-no-right", "no more"
	f.put(again)
	f.put(of(ldap, 5))
	f.await(ldap, mark{1, 5})
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.denied[www]; n < 1 || n > 2 {
		t.Errorf("it says of two withdrawals %d times that it has them", n)
	}
}

// The store is told when a previous key was used, and which, without a word of keys; the daemon says
// once that one goes soon which is in use.
func TestPreviousKeys(t *testing.T) {
	f := newFakeStore(t)
	d := newDaemon(t, f, inside)
	web := d.follow(www)
	now := time.Now().Truncate(time.Second)
	second, first := aes(2, "current"), aes(1, "previous")
	first.Since, first.Until = now.Add(-7*24*time.Hour).Unix(), now.Add(time.Hour).Unix()
	used := func(at time.Time) { // what others read is not changed
		web.mu.Lock()
		defer web.mu.Unlock()
		web.used = []keytab.Previous{{KVNO: 1, Since: time.Unix(first.Since, 0), Until: time.Unix(first.Until, 0), Used: at}}
	}
	used(now.Add(-time.Hour))
	f.put(of(www, 2, second, first))
	web.until(t, "both keys", func(keys []keytab.Entry, err error) bool {
		return len(keys) == 2 && keys[1].Previous && keys[1].Until == first.Until && !keys[0].Previous
	})
	f.await(www, mark{1, 2})
	f.put(of(www, 3, second, first)) // of which the store is told with the next poll
	f.await(www, mark{1, 3})
	want := fmt.Sprintf("1 %s", now.Add(-time.Hour).UTC().Truncate(time.Minute).Format(time.RFC3339))
	until(t, "that the store was told", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.previous[www] == want
	})
	for range 3 {
		d.lookForEnding()
	}
	if got := d.log.String(); strings.Count(got, "a previous key is still in use") != 1 || !strings.Contains(got, "kvno=1") {
		t.Error(got)
	}
	d.daemonEvents(t, "key-ending", 1)
	e := d.States()[0].Entries[0]
	if !e.Ending || !strings.Contains(e.Text, "kvno 1 is still in use") {
		t.Errorf("%+v", e)
	}

	// Used no more, and then again: it is said again.
	used(time.Time{})
	d.lookForEnding()
	if e := d.States()[0].Entries[0]; e.Ending || e.Text != "" {
		t.Errorf("%+v", e)
	}
	used(now)
	d.lookForEnding()
	d.daemonEvents(t, "key-ending", 2)
}

func (d *daemon) daemonEvents(t *testing.T, kind string, want int) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, e := range d.events {
		if string(e.Kind) == kind {
			n++
		}
	}
	if n != want {
		t.Errorf("%d events %s, not %d", n, kind, want)
	}
}
