package kadm

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gssproxyd/keytab"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
)

// The tests in this file talk to MIT's krb5kdc and kadmind.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantErr fails the test unless err has the reason and all of the words.
func wantErr(t testing.TB, err error, id reason.ID, words ...string) {
	t.Helper()
	if !errors.Is(err, id) {
		t.Errorf("error %v, expected %s", err, id)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %v does not say %q", err, w)
		}
	}
}

var aes = []etype.ID{etype.AES256SHA384, etype.AES128SHA256, etype.AES256SHA1, etype.AES128SHA1}

// realm is one with a kadmind.
type realm struct {
	*lab.Realm
	kadmind *lab.Kadmind
}

func newRealm(t *testing.T) *realm {
	t.Helper()
	r := lab.New(t)
	k, err := r.Kadmind()
	check(t, err)
	return &realm{r, k}
}

// client is one with that krb5.conf. It remembers nothing of others.
func client(t testing.TB, conf string) *kdc.Client {
	t.Helper()
	c, err := krb5conf.Load([]string{conf})
	check(t, err)
	return &kdc.Client{Conf: c}
}

// entries returns the keys that the KDC has of a principal.
func (r *realm) entries(t testing.TB, name string) []keytab.Entry {
	t.Helper()
	path, err := r.Keytab("kadm.keytab", name)
	check(t, err)
	b, err := os.ReadFile(path)
	check(t, err)
	all, err := keytab.Parse(b)
	check(t, err)
	return all
}

// self is a principal of the realm with its keys.
func (r *realm) self(t testing.TB, name string) Self {
	t.Helper()
	p, err := krb5.ParsePrincipal(name, lab.Name)
	check(t, err)
	return Self{p, kdc.Keytab(keytab.Compile("FILE:/test/kadm.keytab", r.entries(t, name)))}
}

// service makes a principal with random keys that must prove itself to the KDC.
func (r *realm) service(t testing.TB, name string) Self {
	t.Helper()
	check(t, r.RandKey(name))
	check(t, r.Kadmin("modprinc", "+requires_preauth", name))
	return r.self(t, name)
}

// known are the keys that a store has: pending ones first, then those of before.
func (r *realm) known(t testing.TB, self Self, before []keytab.Entry, pending etype.Secret) []*etype.Key {
	t.Helper()
	keys, err := Keys(pending, kdc.Salt(self.Principal), nil, aes)
	check(t, err)
	for _, e := range before {
		k, err := etype.NewKey(e.Enctype, e.Key)
		check(t, err)
		keys = append(keys, k)
	}
	return keys
}

// probe logs in and tells whether the KDC has the pending keys, and the version of its key.
func probe(t testing.TB, c *kdc.Client, self Self, known []*etype.Key, logins ...kdc.KeySource) (pending bool, kvno uint32) {
	t.Helper()
	p := &Prober{Client: c, Principal: self.Principal}
	defer p.Close()
	check(t, p.Login(t.Context(), logins...))
	i, kvno, err := p.Probe(t.Context(), known)
	check(t, err)
	return i < len(aes), kvno
}

// ticket is one of alice for the service that can be renewed.
func (r *realm) ticket(t testing.TB, self Self) *krb5.Credential {
	t.Helper()
	alice, err := krb5.ParsePrincipal("alice", lab.Name)
	check(t, err)
	b, err := os.ReadFile(r.Conf)
	check(t, err)
	conf := t.TempDir() + "/krb5.conf"
	check(t, os.WriteFile(conf, bytes.Replace(b, []byte("[libdefaults]\n"), []byte("[libdefaults]\n  renew_lifetime = 1d\n"), 1), 0o600))
	server := self.Principal
	server.Type = krb5.NTSrvInst
	cred, err := client(t, conf).Login(t.Context(), alice, kdc.Password(etype.Secret("alice")), kdc.LoginOptions{Server: server})
	check(t, err)
	return cred
}

func TestMIT(t *testing.T) {
	r := newRealm(t)
	password := etype.Secret("vIuVfxzCOuSSc8qn3aEWC9ib2cJNBLrTZVpTJjhVmcE") // as a store makes them

	t.Run("Kadmin", func(t *testing.T) { r.testKadmin(t, password) })
	t.Run("Kpasswd", func(t *testing.T) { r.testKpasswd(t, password) })
	t.Run("SpecialSalts", func(t *testing.T) { r.testSpecialSalts(t, password) })
	t.Run("Refusals", func(t *testing.T) { r.testRefusals(t, password) })
	t.Run("LostReplies", func(t *testing.T) { r.testLostReplies(t, password) })
	t.Run("Unreachable", func(t *testing.T) { r.testUnreachable(t, password) })
}

func (r *realm) testKadmin(t *testing.T, password etype.Secret) {
	const name = "HTTP/kadmin." + lab.Domain
	self := r.service(t, name)
	check(t, r.Kadmin("modprinc", "-maxlife", "3h", "-maxrenewlife", "2d", name))
	before := r.entries(t, name)
	c := client(t, r.kadmind.Conf)
	way := &Kadmin{Client: c}
	old := r.ticket(t, self)

	was, err := way.Record(t.Context(), self)
	check(t, err)
	if was.KVNO != before[0].KVNO || len(was.Keys) != len(before) || was.MaxLife != 3*time.Hour || was.MaxRenewable != 48*time.Hour || was.LockedDown || was.Policy != "" || time.Since(was.Changed).Abs() > time.Hour {
		t.Errorf("the record is %+v", was)
	}

	check(t, way.Change(t.Context(), self, password, aes))
	kvno := was.KVNO + 1
	now, err := way.Record(t.Context(), Self{self.Principal, kdc.Password(password)})
	check(t, err)
	if now.KVNO != kvno || len(now.Keys) != len(before)+len(aes) || now.Keys[0].KVNO != kvno || now.Keys[len(aes)].KVNO != was.KVNO {
		t.Errorf("after the change the record is %+v, before it %+v", now, was)
	}

	// What acceptors were given before is what the KDC has now.
	derived, err := Keys(password, kdc.Salt(self.Principal), nil, aes)
	check(t, err)
	same := 0
	for _, e := range r.entries(t, name) {
		for _, k := range derived {
			if e.KVNO == kvno && e.Enctype == k.Enctype() {
				same++
				if !bytes.Equal(e.Key, k.Secret()) {
					t.Errorf("the KDC has another key of type %v", e.Enctype)
				}
			}
		}
	}
	if same != len(aes) {
		t.Errorf("%d new keys, expected %d", same, len(aes))
	}
	if pending, got := probe(t, client(t, r.Conf), self, r.known(t, self, before, password), kdc.Password(password)); !pending || got != kvno {
		t.Errorf("the KDC has the pending key: %t, version %d, expected %d", pending, got, kvno)
	}

	// Old tickets are good; the old key is none to log in with.
	if _, err := c.Renew(t.Context(), old); err != nil {
		t.Errorf("a ticket of before the change: %v", err)
	}
	_, err = c.Login(t.Context(), self.Principal, self.Keys, kdc.LoginOptions{})
	wantErr(t, err, reason.PreauthFailed)

	// Fewer types are what they say, and the same password once more is another version.
	self.Keys = kdc.Password(password)
	check(t, way.Change(t.Context(), self, password, aes[2:3]))
	kvno++
	if now, err = way.Record(t.Context(), self); err != nil || now.KVNO != kvno || now.Keys[0] != (KeyVersion{kvno, aes[2]}) || now.Keys[1].KVNO != kvno-1 {
		t.Errorf("with one type the record is %+v, %v", now, err)
	}

	check(t, way.Purge(t.Context(), self, kvno))
	if now, err = way.Record(t.Context(), self); err != nil || len(now.Keys) != 1 || now.Keys[0].KVNO != kvno {
		t.Errorf("after purging the record is %+v, %v", now, err)
	}
	if _, err := c.Renew(t.Context(), old); err == nil {
		t.Error("a ticket of before the change is renewed after its key was purged")
	}

	// Somebody has changed it beside us.
	p := &Prober{Client: client(t, r.Conf), Principal: self.Principal}
	defer p.Close()
	_, _, err = p.Probe(t.Context(), nil)
	wantErr(t, err, reason.NoCredential)
	check(t, p.Login(t.Context(), self.Keys))
	check(t, r.Rotate(name))
	_, _, err = p.Probe(t.Context(), derived)
	wantErr(t, err, reason.KeyChangedElsewhere, name)
}

func (r *realm) testKpasswd(t *testing.T, password etype.Secret) {
	const name = "HTTP/kpasswd." + lab.Domain
	self := r.service(t, name)
	before := r.entries(t, name)
	c := client(t, r.kadmind.Conf)
	var way KDC = &Kpasswd{Client: c}
	old := r.ticket(t, self)
	was, err := way.Record(t.Context(), self)
	check(t, err)
	if was.Salt != kdc.Salt(self.Principal) || was.Ticket != before[0].Enctype {
		t.Errorf("the record is %+v", was)
	}
	check(t, way.Change(t.Context(), self, password, nil))
	if pending, kvno := probe(t, client(t, r.Conf), self, r.known(t, self, before, password), self.Keys, kdc.Password(password)); !pending || kvno != was.KVNO+1 {
		t.Errorf("the KDC has the pending key: %t, version %d after %d", pending, kvno, was.KVNO)
	}
	self.Keys = kdc.Password(password)
	if now, err := way.Record(t.Context(), self); err != nil || now.KVNO != was.KVNO+1 || now.Salt != was.Salt {
		t.Errorf("the record is %+v, %v", now, err)
	}
	if _, err := c.Renew(t.Context(), old); err == nil {
		t.Error("kpasswd keeps old keys: the documentation of Kpasswd.Change says that it does not")
	}
	if err := way.Purge(t.Context(), self, 2); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("purging: %v", err)
	}
}

// A realm whose default salts are others: those that are named count.
func (r *realm) testSpecialSalts(t *testing.T, password etype.Secret) {
	const name = "HTTP/special." + lab.Domain
	self := r.service(t, name)
	before := r.entries(t, name)
	special, err := r.Realm.Kadmind("supported_enctypes = aes256-cts-hmac-sha1-96:special")
	check(t, err)
	c := client(t, special.Conf)
	check(t, (&Kadmin{Client: c}).Change(t.Context(), self, password, aes))
	known := r.known(t, self, before, password)
	if pending, _ := probe(t, client(t, r.Conf), self, known, kdc.Password(password)); !pending {
		t.Error("the KDC does not have the derived keys")
	}
	// Without names for them they do not: the realm is what it should be.
	check(t, (&Kpasswd{Client: c}).Change(t.Context(), Self{self.Principal, kdc.Password(password)}, password, aes))
	p := &Prober{Client: client(t, r.Conf), Principal: self.Principal}
	defer p.Close()
	check(t, p.Login(t.Context(), kdc.Password(password)))
	_, _, err = p.Probe(t.Context(), known)
	wantErr(t, err, reason.KeyChangedElsewhere)
}

func (r *realm) testRefusals(t *testing.T, password etype.Secret) {
	const soon, locked, wrong = "HTTP/soon." + lab.Domain, "HTTP/locked." + lab.Domain, "HTTP/wrong." + lab.Domain
	c := client(t, r.kadmind.Conf)
	kadmin, kpasswd := &Kadmin{Client: c}, &Kpasswd{Client: c}

	check(t, r.Kadmin("addpol", "-minlife", "1d", "daily"))
	self := r.service(t, soon)
	check(t, r.Kadmin("modprinc", "-policy", "daily", soon))
	wantErr(t, kadmin.Change(t.Context(), self, password, aes), reason.KeyChangeTooSoon, soon, "minimum life")
	wantErr(t, kpasswd.Change(t.Context(), self, password, aes), reason.KeyChangeRefused, soon, "too recently", "until")
	if now, err := kadmin.Record(t.Context(), self); err != nil || now.Policy != "daily" || now.KVNO != 1 {
		t.Errorf("the record is %+v, %v", now, err)
	}
	check(t, r.Kadmin("modpol", "-minlife", "0", "-minlength", "60", "daily"))
	wantErr(t, kadmin.Change(t.Context(), self, password, aes), reason.KeyChangeRefused, "longer password")
	wantErr(t, kpasswd.Change(t.Context(), self, password, aes), reason.KeyChangeRefused, "60")

	self = r.service(t, locked)
	check(t, r.Kadmin("modprinc", "+lockdown_keys", locked))
	wantErr(t, kadmin.Change(t.Context(), self, password, aes), reason.KeyChangeRefused, "lockdown_keys")
	if now, err := kadmin.Record(t.Context(), self); err != nil || !now.LockedDown {
		t.Errorf("the record is %+v, %v", now, err)
	}
	check(t, kpasswd.Change(t.Context(), self, password, aes))

	// Another one's key.
	other := r.service(t, wrong)
	p, err := krb5.ParsePrincipal(soon, lab.Name)
	check(t, err)
	entries := r.entries(t, wrong)
	for i := range entries {
		entries[i].Principal = p.String()
	}
	stranger := Self{p, kdc.Keytab(keytab.Compile("FILE:/test/stranger.keytab", entries))}
	for _, way := range []KDC{kadmin, kpasswd} {
		wantErr(t, way.Change(t.Context(), stranger, password, aes), reason.PreauthFailed)
		_, err := way.Record(t.Context(), stranger)
		wantErr(t, err, reason.PreauthFailed)
		wantErr(t, way.Change(t.Context(), other, etype.Secret("with\x00NUL"), aes), reason.Internal)
		wantErr(t, way.Change(t.Context(), other, nil, aes), reason.Internal)
	}
	wantErr(t, kadmin.Change(t.Context(), other, password, nil), reason.Internal)
	wantErr(t, kadmin.Change(t.Context(), other, password, []etype.ID{99}), reason.KeyChangeUnknown) // of the library's table: who knows where
	if now, err := kadmin.Record(t.Context(), other); err != nil || now.KVNO != 1 {
		t.Errorf("the record is %+v, %v", now, err)
	}
}

// A change whose reply is lost, and one whose request is.
func (r *realm) testLostReplies(t *testing.T, password etype.Secret) {
	for _, test := range []struct {
		name            string
		kadmin, kpasswd int // the reply that is lost, -1 for none
		want            reason.ID
		changed         bool
	}{
		{"lost1", 2, -1, reason.KeyChangeUnknown, true},
		{"lost2", 1, -1, reason.AdminServerReply, false},
		{"lost3", 0, -1, reason.AdminServerReply, false},
		{"lost4", -1, 0, reason.KeyChangeUnknown, true},
	} {
		name := "HTTP/" + test.name + "." + lab.Domain
		self := r.service(t, name)
		before := r.entries(t, name)
		kadmin, endKadmin, err := lab.Swallow(r.kadmind.Kadmin, test.kadmin)
		check(t, err)
		defer endKadmin()
		kpasswd, endKpasswd, err := lab.Swallow(r.kadmind.Kpasswd, test.kpasswd)
		check(t, err)
		defer endKpasswd()
		conf, err := r.kadmind.Via(kadmin, kpasswd)
		check(t, err)
		c := client(t, conf)
		var way KDC = &Kadmin{Client: c}
		if test.kpasswd >= 0 {
			way = &Kpasswd{Client: c}
		}
		p := &Prober{Client: c, Principal: self.Principal}
		defer p.Close()
		check(t, p.Login(t.Context(), self.Keys))
		wantErr(t, way.Change(t.Context(), self, password, aes), test.want, name)
		known := r.known(t, self, before, password)
		i, kvno, err := p.Probe(t.Context(), known)
		if want := before[0].KVNO; err != nil || (i < len(aes)) != test.changed || test.changed && kvno != want+1 || !test.changed && kvno != want {
			t.Errorf("%s: key %d, version %d, %v", test.name, i, kvno, err)
		}
		// Another process, which has no ticket of before.
		if pending, _ := probe(t, client(t, r.Conf), self, known, self.Keys, kdc.Password(password)); pending != test.changed {
			t.Errorf("%s: another process finds the pending key: %t", test.name, pending)
		}
	}
}

func (r *realm) testUnreachable(t *testing.T, password etype.Secret) {
	const name = "HTTP/unreachable." + lab.Domain
	self := r.service(t, name)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	gone := l.Addr().String()
	check(t, l.Close())
	conf, err := r.kadmind.Via(gone, gone)
	check(t, err)
	c := client(t, conf)
	for _, way := range []KDC{&Kadmin{Client: c}, &Kpasswd{Client: c}} {
		wantErr(t, way.Change(t.Context(), self, password, aes), reason.AdminServerUnreachable, gone)
	}
	wantErr(t, (&Kadmin{Client: client(t, r.Conf)}).Change(t.Context(), self, password, aes), reason.AdminServerUnreachable, "no admin_server line")

	// One that does not answer: the wait ends with the caller's context.
	if l, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	silent := l.Addr().String()
	if conf, err = r.kadmind.Via(silent, silent); err != nil {
		t.Fatal(err)
	}
	c = client(t, conf)
	for _, test := range []struct {
		way  KDC
		want reason.ID
	}{{&Kadmin{Client: c}, reason.AdminServerReply}, {&Kpasswd{Client: c}, reason.KeyChangeUnknown}} {
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan struct{})
		go func() {
			defer close(served)
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			conn.Read(make([]byte, 1)) // it is one segment: the request is there, whole
			cancel()
			var rest [1 << 16]byte
			for {
				if _, err := conn.Read(rest[:]); err != nil {
					return
				}
			}
		}()
		wantErr(t, test.way.Change(ctx, self, password, aes), test.want, "context canceled")
		<-served
		cancel()
	}
}
