package stores

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/keystore/delivery"
	"gssproxyd/keytab"
	"gssproxyd/mech/reason"
)

// never starts no helper: what is kept is all there is.
func never(*os.File) (nss.Process, error) { return nil, errors.New("none is started here") }

// The helper, as a process of its own, gets deliveries, the daemon has them, and the store hears of
// that; through new keys, a withdrawal, a restart without the store, and its return.
func TestStores(t *testing.T) {
	f := newFakeStore(t)
	f.put(of(www, 1))
	d := newDaemon(t, f, StartChild)
	web := d.follow(www)
	web.until(t, "the first keys", kvno(1))
	f.await(www, mark{1, 1})
	permission := d.Permission("main", www)
	if w := permission().Withheld; w != nil {
		t.Errorf("withheld: %+v", w)
	}

	second := of(www, 2, aes(2, "pending"), aes(1, "current"))
	second.Aliases, second.Rules = []string{"HTTP/www@EXAMPLE.COM"}, map[string][]string{"operations": {"accept"}}
	f.put(second)
	web.until(t, "pending keys", func(keys []keytab.Entry, err error) bool {
		return len(keys) == 4 && keys[0].Pending && keys[1].Pending && keys[1].Principal == "HTTP/www@EXAMPLE.COM" && !keys[2].Pending
	})
	f.await(www, mark{1, 2})
	if p := permission(); p.Operations != conf.OpAccept {
		t.Errorf("%+v", p)
	}
	if _, _, err := d.follow(ldap).now(); err == nil || !strings.Contains(err.Error(), "nothing has come of it yet") {
		t.Error(err)
	}

	// A restart without the store.
	f.stop()
	d.again(StartChild)
	web = d.follow(www)
	if keys, _, err := web.now(); len(keys) != 4 || err != nil {
		t.Errorf("%d keys, %v after a restart", len(keys), err)
	}
	until(t, "that there is no contact", func() bool { return d.States()[0].Lost != "" })
	s := d.States()[0]
	if e := s.Entries[0]; s.Store != "main" || !s.Contact.IsZero() || e.Principal != www || e.Epoch != 1 || e.Revision != 2 || e.Issued.Unix() != 1750000000 || e.Text != "" {
		t.Errorf("%+v", s)
	}
	until(t, "the line about that", func() bool {
		return strings.Contains(d.log.String(), "no contact to a key store: the keys that are here stay in use")
	})

	// It is back, and takes the keys away.
	gone := of(www, 3)
	gone.Sealed, gone.Withdrawn, gone.Text = nil, "nonsense?", "the host is retired"
	f.put(gone)
	f.start(strings.TrimPrefix(f.url, "https://"))
	web.until(t, "a withdrawal", func(keys []keytab.Entry, err error) bool {
		return len(keys) == 0 && err != nil && strings.Contains(err.Error(), `has withdrawn the keys of `+www+`: the host is retired ("nonsense?")`)
	})
	f.await(www, mark{1, 3})
	if w := d.Permission("main", www)().Withheld; w == nil || w.Reason != reason.KeysWithdrawn {
		t.Errorf("%+v", w)
	}
	until(t, "contact", func() bool { s := d.States()[0]; return s.Lost == "" && !s.Contact.IsZero() })
	if got := d.denied(); got != nil {
		t.Errorf("denied: %q", got)
	}
	if e := d.States()[0].Entries[0]; e.Withdrawn != "nonsense?" || e.Text == "" {
		t.Errorf("%+v", e)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.ContainsFunc(f.asked, func(name string) bool { return name != host }) {
		t.Errorf("asked by %q", f.asked)
	}
}

// until waits until something is so.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so: %s", what)
		}
	}
}

// A store that does not send an entry is quoted, and its word takes no keys away.
func TestRefusedByStore(t *testing.T) {
	f := newFakeStore(t)
	f.put(of(www, 1))
	f.refused = []refusedByThem{{www, "host-not-enrolled", "not\nyours", "ask"}, {ldap, "no-entry", "there is no such entry", "import it"}}
	d := newDaemon(t, f, inside)
	web := d.follow(www)
	web.until(t, "keys", kvno(1))
	until(t, "what the store says", func() bool {
		s := d.States()
		return s[0].Entries[0].Text == "the store refuses it: [host-not-enrolled] not yours; ask" && strings.Contains(s[0].Entries[1].Text, "there is no such entry")
	})
	if keys, _, err := web.now(); len(keys) != 1 || err != nil {
		t.Errorf("%d keys, %v", len(keys), err)
	}
	if w := d.Permission("main", ldap)().Withheld; w == nil || w.Reason != reason.NoDelivery || !strings.Contains(w.Text, "there is no such entry") {
		t.Errorf("%+v", w)
	}
}

// Whatever a store answers, the keys that are here stay, the reason is told, and the next one of its
// addresses is asked.
func TestHostileStore(t *testing.T) {
	f := newFakeStore(t)
	for name, test := range map[string]struct {
		serve http.HandlerFunc
		want  string
	}{
		"error": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) }, "it answers 403 Forbidden"},
		"refusal": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(403)
			w.Write([]byte(`{"reason":"a","text":"b","hint":"c"}`))
		}, "it refuses: [a] b; c"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://elsewhere.invalid/", http.StatusTemporaryRedirect)
		}, "it answers 307"},
		"garbage": {func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>")) }, "its answer is not what is expected"},
		"endless": {func(w http.ResponseWriter, r *http.Request) {
			for b := make([]byte, 1<<20); ; {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		}, "its answer has more than 16777216 bytes"},
		"hangs up": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			d := newDaemon(t, f, never)
			if !d.take("main", f.sign(of(www, 1))) {
				t.Fatal(d.denied())
			}
			d.Close()
			bad := httptestServer(t, f, test.serve)
			d.config.KeyStores[0].URLs = []string{bad}
			d.again(inside)
			until(t, test.want, func() bool { return strings.Contains(d.States()[0].Lost, test.want) })
			if keys, _, err := d.follow(www).now(); len(keys) != 1 || err != nil {
				t.Errorf("%d keys, %v", len(keys), err)
			}
			other := *d.config
			two := *d.config.KeyStores[0]
			two.URLs = []string{bad, f.url}
			other.KeyStores = []*conf.KeyStore{&two}
			check(t, d.Configure(&other))
			until(t, "the other one's answer", func() bool { s := d.States()[0]; return s.Lost == "" && s.URL == f.url })
		})
	}
}

// Who is not of the authority that is named is not asked.
func TestStoreOfAnotherAuthority(t *testing.T) {
	f, other := newFakeStore(t), newFakeStore(t)
	d := newDaemon(t, f, never)
	d.Close()
	d.config.KeyStores[0].URLs = []string{other.url}
	d.again(inside)
	until(t, "why not", func() bool { return strings.Contains(d.States()[0].Lost, "certificate signed by unknown authority") })
	check(t, os.WriteFile(filepath.Join(d.dir, "key.pem"), []byte("nothing"), 0o600))
	until(t, "what is wrong with the file", func() bool {
		return strings.Contains(d.log.String(), "those that were read before stay in use")
	})
}

// What is no delivery for this host and entry, or an older one, is refused for its reason, audited, and
// changes nothing.
func TestJudge(t *testing.T) {
	f := newFakeStore(t)
	_, stranger, _ := ed25519.GenerateKey(nil)
	foreign, err := delivery.Sign(of(www, 9), stranger)
	check(t, err)
	with := func(change func(*delivery.Delivery)) []byte {
		d := of(www, 9)
		change(d)
		return f.sign(d)
	}
	edited := func() []byte {
		var s map[string]json.RawMessage
		var other map[string]json.RawMessage
		check(t, json.Unmarshal(f.sign(of(www, 9)), &s))
		check(t, json.Unmarshal(f.sign(of(www, 8)), &other))
		s["payload"] = other["payload"]
		b, _ := json.Marshal(s)
		return b
	}()
	for name, test := range map[string]struct {
		raw  []byte
		want reason.ID
	}{
		"nothing":             {nil, reason.DeliveryMalformed},
		"no JSON":             {[]byte("x"), reason.DeliveryMalformed},
		"huge":                {make([]byte, delivery.MaxLen+1), reason.DeliveryMalformed},
		"another's":           {foreign, reason.DeliveryUnsigned},
		"edited":              {edited, reason.DeliveryUnsigned},
		"of another host":     {with(func(d *delivery.Delivery) { d.Host = "web2.example.com" }), reason.DeliveryElsewhere},
		"of the host name":    {with(func(d *delivery.Delivery) { d.Host = "not.this.one" }), reason.DeliveryElsewhere},
		"not asked for":       {with(func(d *delivery.Delivery) { d.Principal = "x@EXAMPLE.COM" }), reason.DeliveryElsewhere},
		"older":               {f.sign(of(www, 4)), reason.DeliveryReplayed},
		"of an older epoch":   {with(func(d *delivery.Delivery) { d.Epoch = 0 }), reason.DeliveryReplayed},
		"older and withdrawn": {with(func(d *delivery.Delivery) { d.Revision, d.Withdrawn = 4, "disabled" }), reason.DeliveryReplayed},
		"sealed elsewhere":    {with(func(d *delivery.Delivery) { d.Sealed = []byte("x") }), reason.DeliveryNotOpened},
		"no list":             {with(func(d *delivery.Delivery) { d.Sealed = []byte("sealed to host:x") }), reason.DeliveryNotOpened},
		"no keys":             {with(func(d *delivery.Delivery) { d.Sealed = seal(delivery.Keys{}) }), reason.DeliveryNotOpened},
		"a key of no state":   {with(func(d *delivery.Delivery) { d.Sealed = seal(delivery.Keys{aes(1, "current"), aes(2, "next")}) }), reason.DeliveryNotOpened},
		"a rule of tomorrow":  {with(func(d *delivery.Delivery) { d.Rules = map[string][]string{"weekdays": {"monday"}} }), reason.DeliveryRules},
		"a bad rule":          {with(func(d *delivery.Delivery) { d.Rules = map[string][]string{"enctypes": {"aes"}} }), reason.DeliveryRules},
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			d := newDaemon(t, f, never)
			if !d.take("main", f.sign(of(www, 5))) {
				t.Fatal(d.denied())
			}
			before := d.files()
			if d.take("main", test.raw) {
				t.Error("taken")
			}
			if got := d.denied(); len(got) != 1 || got[0] != string(test.want) {
				t.Errorf("denied: %q, want %s", got, test.want)
			}
			if !strings.Contains(d.log.String(), "reason="+string(test.want)) {
				t.Error(d.log.String())
			}
			d.unchanged(before)
			if keys, _, err := d.follow(www).now(); !kvno(5)(keys, err) {
				t.Errorf("%v, %v", keys, err)
			}

			// What is put where it is kept is refused likewise.
			file := filepath.Join(d.dir, "stores", "main", fileOf(www))
			check(t, os.WriteFile(file, test.raw, 0o600))
			d.again(never)
			if keys, _, err := d.follow(www).now(); err == nil || len(keys) > 0 {
				t.Errorf("%d keys from a file", len(keys))
			}
			if got := d.denied(); test.want != reason.DeliveryMalformed && (len(got) != 1 || got[0] != string(test.want)) {
				t.Errorf("of a file denied: %q, want %s", got, test.want)
			}
			if w := d.Permission("main", www)().Withheld; w == nil || w.Reason != reason.NoDelivery {
				t.Errorf("%+v", w)
			}
			if !d.take("main", f.sign(of(www, 5))) {
				t.Errorf("the same again is refused: %q", d.denied())
			}
		})
	}
}

// What somebody has put where deliveries are kept is no keys.
func TestKept(t *testing.T) {
	f := newFakeStore(t)
	for name, plant := range map[string]func(t *testing.T, web, other string){
		"swapped": func(t *testing.T, web, other string) {
			check(t, os.Rename(web, web+".x"))
			check(t, os.Rename(other, web))
			check(t, os.Rename(web+".x", other))
		},
		"a link": func(t *testing.T, web, other string) {
			check(t, os.Rename(web, web+".x"))
			check(t, os.Symlink(web+".x", web))
			check(t, os.Rename(other, other+".x"))
			check(t, os.Symlink(filepath.Base(other)+".x", other))
		},
		"a FIFO": func(t *testing.T, web, other string) {
			for _, file := range []string{web, other} {
				check(t, os.Remove(file))
				check(t, unix.Mkfifo(file, 0o600))
			}
		},
		"a directory": func(t *testing.T, web, other string) {
			for _, file := range []string{web, other} {
				check(t, os.Remove(file))
				check(t, os.Mkdir(file, 0o700))
			}
		},
		"huge": func(t *testing.T, web, other string) {
			check(t, os.Truncate(web, 1<<40))
			check(t, os.Truncate(other, delivery.MaxLen+1))
		},
		"cut": func(t *testing.T, web, other string) {
			check(t, os.Truncate(web, 100))
			check(t, os.Truncate(other, 0))
		},
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			d := newDaemon(t, f, never)
			if !d.take("main", f.sign(of(www, 5))) || !d.take("main", f.sign(of(ldap, 5))) {
				t.Fatal(d.denied())
			}
			dir := filepath.Join(d.dir, "stores", "main")
			plant(t, filepath.Join(dir, fileOf(www)), filepath.Join(dir, fileOf(ldap)))
			d.again(never)
			for _, principal := range []string{www, ldap} {
				if keys, _, err := d.follow(principal).now(); err == nil || len(keys) > 0 {
					t.Errorf("%s: %d keys", principal, len(keys))
				}
			}
			if got := d.denied(); len(got) != 2 {
				t.Errorf("denied: %q", got)
			}
			if d.take("main", f.sign(of(www, 4))) {
				t.Error("an older one is taken, for want of the newer")
			}
		})
	}
}

// A directory in which others may write is not used, nor are marks that cannot be read.
func TestKeptPlace(t *testing.T) {
	f := newFakeStore(t)
	d := newDaemon(t, f, never)
	d.Close()
	dir := filepath.Join(d.dir, "stores", "main")
	check(t, os.Chmod(dir, 0o777))
	if err := d.Configure(d.config); err == nil || !strings.Contains(err.Error(), "others may write there") {
		t.Error(err)
	}
	check(t, os.Chmod(dir, 0o700))
	check(t, os.WriteFile(filepath.Join(dir, marksFile), []byte("{"), 0o600))
	if err := d.Configure(d.config); err == nil || !strings.Contains(err.Error(), "marks") {
		t.Error(err)
	}
}

// A configuration that trusts another signer, or knows the host by another name, has no keys of before.
func TestConfigureAnother(t *testing.T) {
	f := newFakeStore(t)
	for name, change := range map[string]func(*conf.KeyStore){
		"signer": func(s *conf.KeyStore) { s.Signers = []string{delivery.FormatSigner(make(ed25519.PublicKey, 32))} },
		"host":   func(s *conf.KeyStore) { s.Host = "" },
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			d := newDaemon(t, f, never)
			d.take("main", f.sign(of(www, 5)))
			web := d.follow(www)
			other, k := *d.config, *d.config.KeyStores[0]
			change(&k)
			other.KeyStores = []*conf.KeyStore{&k}
			check(t, d.Configure(&other))
			if keys, _, err := web.now(); err == nil || len(keys) > 0 {
				t.Errorf("%d keys", len(keys))
			}
			check(t, d.Configure(d.config))
			if keys, _, err := web.now(); !kvno(5)(keys, err) {
				t.Errorf("%v, %v", keys, err)
			}

			// Without the store nothing changes for calls in flight.
			permission := d.Permission("main", www)
			check(t, d.Configure(&conf.Config{}))
			if permission().Withheld != nil || len(d.States()) != 0 {
				t.Errorf("%+v, %+v", permission(), d.States())
			}
			d.denied()
		})
	}
}

// What is refused is not asked for again at once, and is not acknowledged; the next one is taken.
func TestRefusedNotAskedAgain(t *testing.T) {
	f := newFakeStore(t)
	d := newDaemon(t, f, inside)
	f.put(of(www, 1))
	f.await(www, mark{1, 1})
	bad := of(www, 2)
	bad.Rules = map[string][]string{"weekdays": {"monday"}}
	f.put(bad)
	until(t, "the refusal", func() bool { return strings.Contains(d.States()[0].Entries[0].Text, "weekdays") })
	if got := d.told(www); got != (have{Principal: www, mark: mark{1, 2}, Refused: true}) {
		t.Errorf("%+v", got)
	}
	f.put(of(ldap, 1))
	f.await(ldap, mark{1, 1})
	f.put(of(www, 3))
	f.await(www, mark{1, 3})
	if got := d.denied(); !slices.Equal(got, []string{"delivery-rules"}) {
		t.Errorf("denied: %q", got)
	}
}
