package stores

import (
	"context"
	"crypto/ed25519"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"gssproxyd/conf"
	"gssproxyd/keystore/delivery"
	"gssproxyd/keytab"
	"gssproxyd/mech/reason"
)

// Who puts a configuration in force learns when the keys of it are there, or which are not in time;
// what the store says of an entry that it does not send is an answer too.
func TestAwaitAll(t *testing.T) {
	f := newFakeStore(t)
	d := newDaemon(t, f, never)
	d.Close()
	gate := make(chan struct{})
	f.override = func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-gate:
		case <-r.Context().Done():
			return
		}
		f.mu.Lock()
		f.override = nil
		f.mu.Unlock()
		f.serve(w, r)
	}
	f.refused = []refusedByThem{{ldap, "store-no-entry", "b", "c"}}
	f.put(of(www, 1))
	d.again(inside)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if got := d.AwaitAll(over); !slices.Equal(got, []string{"STORE:main:" + www, "STORE:main:" + ldap}) {
		t.Errorf("unknown: %q", got)
	}
	close(gate)
	if got := d.AwaitAll(t.Context()); got != nil {
		t.Errorf("unknown: %q", got)
	}
	if w := d.Permission("main", www)().Withheld; w != nil {
		t.Errorf("%+v", w)
	}

	// What was kept is known at once, though nobody answers.
	f.stop()
	d.config.Services = []*conf.Service{{CredStore: []conf.KeyValue{{Key: "keytab", Value: "STORE:main:" + www}}}}
	d.again(inside)
	if got := d.AwaitAll(over); got != nil {
		t.Errorf("unknown: %q", got)
	}
}

// A call waits for the first keys of an entry, and not for those that a store does not send.
func TestAwait(t *testing.T) {
	f := newFakeStore(t)
	d := newDaemon(t, f, never)
	permission := d.Permission("main", www)
	waited := make(chan bool, 1)
	go func() {
		d.Await(t.Context(), "main", www)
		waited <- permission().Withheld == nil
	}()
	if !d.take("main", f.sign(of(www, 1))) {
		t.Fatal(d.denied())
	}
	if good := <-waited; !good {
		t.Error("there are no keys after the wait")
	}
	d.contact("main", &contact{Refused: []refusedByThem{{ldap, "a", "b", "c"}}})
	d.Await(t.Context(), "main", ldap) // which would not end
	e := d.entry(name{"main", ldap})
	d.mu.Lock()
	e.refused, e.hope = "", time.Now().Add(-time.Nanosecond)
	d.mu.Unlock()
	d.Await(t.Context(), "main", ldap) // likewise
	over, cancel := context.WithCancel(t.Context())
	cancel()
	d.mu.Lock()
	e.hope = time.Now().Add(time.Hour)
	d.mu.Unlock()
	d.Await(over, "main", ldap)
	if w := d.Permission("main", ldap)().Withheld; w == nil || w.Reason != reason.NoDelivery {
		t.Errorf("%+v", w)
	}
}

// While a configuration with another signer is not in force the keys of the former one's stay, and the
// store is asked for others.
func TestPrepareAnother(t *testing.T) {
	f, other := newFakeStore(t), newFakeStore(t)
	d := newDaemon(t, f, never)
	d.take("main", f.sign(of(www, 5)))
	web := d.follow(www)
	next, k := *d.config, *d.config.KeyStores[0]
	k.Signers = []string{delivery.FormatSigner(other.signer.Public().(ed25519.PublicKey))}
	next.KeyStores = []*conf.KeyStore{&k}
	check(t, d.Prepare(&next))
	if keys, _, err := web.now(); !kvno(5)(keys, err) {
		t.Errorf("%v, %v", keys, err)
	}
	if got := d.told(www); got != (have{Principal: www}) {
		t.Errorf("the store is told of %+v", got)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if got := d.AwaitAll(over); !slices.Contains(got, "STORE:main:"+www) {
		t.Errorf("unknown: %q", got)
	}

	// It is given up, and the former one stays.
	check(t, d.Configure(d.config))
	if keys, _, err := web.now(); !kvno(5)(keys, err) || d.told(www).mark != (mark{1, 5}) {
		t.Errorf("%v, %v", keys, err)
	}

	// What comes of the new signer is in force at once; without that nothing is, once the configuration is.
	check(t, d.Prepare(&next))
	check(t, d.Configure(&next))
	if keys, _, err := web.now(); err == nil || len(keys) > 0 {
		t.Errorf("%d keys of the former signer", len(keys))
	}
	check(t, d.Configure(d.config))
	check(t, d.Prepare(&next))
	if !d.take("main", other.sign(of(www, 5, aes(6, "current")))) {
		t.Fatal(d.denied())
	}
	check(t, d.Configure(&next))
	if keys, _, err := web.now(); !kvno(6)(keys, err) {
		t.Errorf("%v, %v", keys, err)
	}
}

// What a store says for not sending an entry, as it does just before or after it takes the keys away,
// is not taken for what the delivery has said.
func TestContactWhileTaken(t *testing.T) {
	f := newFakeStore(t)
	d := newDaemon(t, f, never)
	said := make(chan struct{})
	defer d.Follow("main", www, func(_ []keytab.Entry, err error) {
		if !strings.Contains(err.Error(), "withdrawn") {
			return
		}
		go func() {
			defer close(said)
			d.contact("main", &contact{Refused: []refusedByThem{{www, "store-no-entry", "there is none", "none"}}})
		}()
		for range 10000 { // and it is not done before the delivery is
			runtime.Gosched()
		}
	}, func() []keytab.Previous { return nil })()
	gone := of(www, 1)
	gone.Sealed, gone.Withdrawn, gone.Text = nil, "store-deleted", "it is gone"
	if !d.take("main", f.sign(gone)) {
		t.Fatal(d.denied())
	}
	<-said
	if w := d.Permission("main", www)().Withheld; w == nil || w.Reason != reason.StoreDeleted {
		t.Errorf("%+v", w)
	}
}
