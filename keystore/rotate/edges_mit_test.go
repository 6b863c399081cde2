package rotate

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"gssproxyd/keystore"
	"gssproxyd/keystore/kadm"
	"gssproxyd/keytab"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
)

// Versions of keys do not end at 255, neither at MIT's kadmind, nor in tickets, nor here.
func TestVersionsMIT(t *testing.T) {
	lab.Require(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	f := newFleet(t, ctx, &wg)
	check(t, f.Kadmin("modprinc", "-kvno", "254", principal))
	e := f.engine(0, f.kadmind.Conf, 0)
	for want := uint32(255); want <= 258; want++ {
		if want == 258 { // the other way
			realm, err := e.o.Realm(lab.Name)
			check(t, err)
			realm.KDC = &kadm.Kpasswd{Client: f.client(f.kadmind.Conf)}
		}
		check(t, e.Rotate(ctx, principal, "test", false))
		if got := f.kvno(); got != want {
			t.Fatalf("kvno is %d, want %d", got, want)
		}
		f.opens("after the rotation")
		c := f.client(f.Conf)
		for _, h := range f.hosts {
			if err := h.initiate(ctx, c); err != nil {
				t.Errorf("kvno %d: %v", want, err)
			}
		}
	}
	_, err := f.engine(1, f.kadmind.Conf, 30*24*time.Hour).attend(ctx, principal)
	check(t, err)
	n, err := f.stores[0].Entry(ctx, principal)
	check(t, err)
	defer n.Zero()
	if newest(n, keystore.Previous) != nil {
		t.Errorf("kept are %s", describe(n.Keys))
	}
	f.tickets = nil // of keys that were forgotten
	f.opens("after the previous keys were forgotten")
}

// Somebody else changes the key at the KDC, which locks an account after three refused logins: none
// is, wherever a rotation was.
func TestLockoutMIT(t *testing.T) {
	lab.Require(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	f := newFleet(t, ctx, &wg)
	check(t, f.Kadmin("addpol", "-maxfailure", "3", "-failurecountinterval", "0", "-lockoutduration", "0", "strict"))
	check(t, f.Kadmin("modprinc", "-policy", "strict", principal))
	login := func(keys kdc.KeySource) error {
		cred, err := f.client(f.Conf).Login(ctx, parsed(), keys, kdc.LoginOptions{})
		if err == nil {
			cred.Destroy()
		}
		return err
	}
	all := func() []keytab.Entry {
		path, err := f.Keytab("now.keytab", principal)
		check(t, err)
		content, err := os.ReadFile(path)
		check(t, err)
		check(t, os.Remove(path)) // ktadd would add to it
		keys, err := keytab.Parse(content)
		check(t, err)
		var kvno uint32
		for _, k := range keys {
			kvno = max(kvno, k.KVNO)
		}
		var now []keytab.Entry
		for _, k := range keys {
			if k.KVNO == kvno {
				now = append(now, k)
			}
		}
		return now
	}
	for _, at := range []string{"", "after store", "after acknowledged", "before change", "after change", "before commit"} {
		if at != "" {
			e := f.engine(0, f.kadmind.Conf, 0)
			e.step = func(name string) error {
				if name == at {
					return errKilled
				}
				return nil
			}
			if err := e.Rotate(ctx, principal, "test", false); !errors.Is(err, errKilled) {
				t.Fatalf("killed %s: %v", at, err)
			}
		}
		check(t, f.Kadmin("cpw", "-randkey", principal)) // as ktadd does
		for i := range 4 {
			e := f.engine(i%2, f.kadmind.Conf, 0)
			f.sawLongAgo(e)
			if at == "" { // as when the time for it has come
				e.o.Now = func() time.Time { return time.Now().Add(2 * checkFirst) }
				n, err := e.o.Store.Entry(ctx, principal)
				check(t, err)
				if !outOfStep(n) {
					e.checked[principal] = checkTime{newest(n, keystore.Current).Since, time.Now()}
				}
				n.Zero()
			}
			if _, err := e.attend(ctx, principal); err != nil && !errors.Is(err, reason.KeyChangedElsewhere) {
				t.Errorf("killed %q: %v", at, err)
			}
		}
		n, err := f.stores[0].Entry(ctx, principal)
		check(t, err)
		if !outOfStep(n) {
			t.Errorf("killed %q: alarm %q", at, n.Alarm)
		}
		n.Zero()
		now := all()
		if err := login(kdc.Keytab(keytab.Compile("now", now))); err != nil {
			t.Fatalf("killed %q: who has the key: %v", at, err)
		}
		n, err = f.stores[0].Change(ctx, nil, principal, "test", "import", func(n *keystore.Entry) error {
			if n.Rotation != nil {
				n.EndRotation(false, now[0].KVNO, time.Now())
			}
			n.Keys, n.Alarm = nil, ""
			for _, k := range now {
				n.Keys = append(n.Keys, keystore.Key{State: keystore.Current, KVNO: k.KVNO, Enctype: k.Enctype, Secret: k.Key, Since: time.Now()})
			}
			return nil
		})
		check(t, err)
		n.Zero()
	}
	// It would have been: three are enough.
	for range 3 {
		if err := login(kdc.Password(etype.Secret("wrong"))); !errors.Is(err, reason.PreauthFailed) {
			t.Errorf("with a wrong password: %v", err)
		}
	}
	if err := login(kdc.Keytab(keytab.Compile("now", all()))); !errors.Is(err, reason.ClientRevoked) {
		t.Errorf("after three wrong passwords: %v", err)
	}
}

// An instance whose clock is seven minutes behind the KDC's gets its tickets, as Kerberos corrects
// that, and changes nothing.
func TestClockMIT(t *testing.T) {
	lab.Require(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	f := newFleet(t, ctx, &wg)
	before := f.kvno()
	for _, off := range []time.Duration{-7 * time.Minute, 7 * time.Minute} {
		e := f.engine(0, f.kadmind.Conf, 0)
		realm, err := e.o.Realm(lab.Name)
		check(t, err)
		c := f.client(f.kadmind.Conf)
		c.Now = func() time.Time { return time.Now().Add(off) }
		realm.KDC, realm.Prober = &kadm.Kadmin{Client: c}, func(p krb5.Principal) Prober { return &kadm.Prober{Client: c, Principal: p} }
		if err := e.Rotate(ctx, principal, "test", false); !errors.Is(err, reason.ClockSkew) {
			t.Errorf("%v: %v", off, err)
		}
	}
	check(t, f.engine(1, f.kadmind.Conf, 0).Rotate(ctx, principal, "test", false))
	if got := f.kvno(); got != before+1 {
		t.Errorf("kvno is %d, before it was %d", got, before)
	}
}
