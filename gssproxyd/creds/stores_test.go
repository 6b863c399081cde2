package creds_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"gssproxyd/conf"
	"gssproxyd/keytab"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
)

// fakeStores have one entry, with what tests give it.
type fakeStores struct {
	permission *conf.Permission
	coming     *conf.Permission // when it is waited for
	put        func([]keytab.Entry, error)
}

func (f *fakeStores) Follow(_, _ string, put func([]keytab.Entry, error), _ func() []keytab.Previous) func() {
	f.put = put
	put(nil, errors.New("nothing has come of it yet"))
	return func() {}
}

func (f *fakeStores) Permission(_, _ string) func() *conf.Permission {
	return func() *conf.Permission { return f.permission }
}

// Await implements [creds.Stores]: what is awaited comes.
func (f *fakeStores) Await(context.Context, string, string) {
	if f.coming != nil {
		f.permission, f.coming = f.coming, nil
	}
}

// storeSection is that of a store which is never asked.
const storeSection = "\n[store/main]\nurl = https://localhost\nca = /ca\ncert = /cert\nkey = /key\nsigner = ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n"

// withStore starts a daemon whose service initiates as alice, with the keys of an entry.
func withStore(t *testing.T, r *lab.Realm, f *fakeStores, lines string) *direct {
	t.Setenv("KRB5RCACHENAME", "none:")
	d := &direct{daemon: &daemon{t: t, stores: f}}
	d.start(func() time.Time { return time.Now() })
	d.load(r.Conf, map[string]string{"web": "euid = 0\ncred_usage = initiate\ncred_store = client_keytab:STORE:main:alice@" + lab.Name + "\n" + lines + storeSection})
	return d
}

// alicesKeys are those of a realm.
func alicesKeys(t *testing.T) (*lab.Realm, []keytab.Entry) {
	r, _, path := realm(t)
	b, err := os.ReadFile(path)
	must(t, err)
	entries, err := keytab.Parse(b)
	must(t, err)
	return r, entries
}

func refused(t *testing.T, err error, want reason.ID) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), "["+string(want)+"]") {
		t.Errorf("%v, want [%s]", err, want)
	}
}

// A call waits for the first keys of an entry, which are in use then.
func TestEntryAwaited(t *testing.T) {
	r, keys := alicesKeys(t)
	f := &fakeStores{permission: &conf.Permission{Withheld: &conf.Refusal{Reason: reason.NoDelivery, Text: "not yet"}}, coming: new(conf.Permission)}
	d := withStore(t, r, f, "")
	f.put(keys, nil)
	_, err := d.init("web", nil, svc)
	must(t, err)
	f.permission, f.coming = &conf.Permission{Withheld: &conf.Refusal{Reason: reason.KeysWithdrawn, Text: "gone"}}, new(conf.Permission)
	_, err = d.init("web", nil, svc)
	refused(t, err, reason.KeysWithdrawn) // nobody waits for what was taken away
}

// What an entry of a key store says narrows what its service's callers may do, whatever the service's own
// mode; without keys all is refused for the store's reason, with tickets that were got before as well.
func TestEntryNarrows(t *testing.T) {
	r, keys := alicesKeys(t)
	f := &fakeStores{permission: &conf.Permission{Withheld: &conf.Refusal{Reason: reason.NoDelivery, Text: "not yet"}}}
	d := withStore(t, r, f, "mode = observe")
	init := func(rules map[string][]string) (uint64, error) {
		t.Helper()
		p, err := conf.EntryRules(rules, etype.IsName)
		must(t, err)
		f.permission = p
		return d.init("web", nil, svc)
	}
	_, err := d.init("web", nil, svc)
	refused(t, err, reason.NoDelivery)
	f.put(keys, nil)
	_, err = init(nil)
	must(t, err)
	for key, want := range map[string]reason.ID{"targets": reason.TargetNotAllowed, "operations": reason.OperationNotAllowed, "enctypes": reason.EnctypeNotAllowed} {
		value := map[string]string{"targets": "other@*", "operations": "accept", "enctypes": "aes256-cts-hmac-sha384-192"}[key]
		_, err := init(map[string][]string{key: {value}})
		refused(t, err, want)
		_, err = init(map[string][]string{key: {value}, "mode": {"observe"}})
		must(t, err)
	}
	if lifetime, err := init(map[string][]string{"max_lifetime": {"60"}}); err != nil || lifetime > 60 {
		t.Errorf("%d seconds, %v", lifetime, err)
	}
	rate := map[string][]string{"calls_per_second": {"1"}}
	_, err = init(rate)
	must(t, err)
	for range 2 { // a second may have ended in between
		if _, err = init(rate); err != nil {
			break
		}
	}
	refused(t, err, reason.RateLimited)
	f.permission = &conf.Permission{Withheld: &conf.Refusal{Reason: reason.KeysWithdrawn, Text: "the host is retired"}}
	f.put(nil, errors.New("the host is retired"))
	_, err = d.init("web", nil, svc)
	refused(t, err, reason.KeysWithdrawn)
	if !strings.Contains(err.Error(), "the host is retired") {
		t.Error(err)
	}
}

// Once the KDC has refused the current key the pending one is tried, and then only.
func TestPendingInitiates(t *testing.T) {
	r, keys := alicesKeys(t)
	var entries []keytab.Entry
	for _, k := range keys {
		k.Pending, k.Key = true, bytes.Clone(k.Key)
		former := k
		former.Pending, former.Key, former.KVNO = false, bytes.Repeat([]byte{1}, len(k.Key)), k.KVNO-1
		entries = append(entries, k, former)
	}
	f := &fakeStores{permission: new(conf.Permission)}
	d := withStore(t, r, f, "")
	f.put(entries, nil)
	_, err := d.init("web", nil, svc)
	must(t, err)
	initiated := 0
	for _, k := range d.Keytabs()[0].Keys {
		if !k.Initiated.IsZero() {
			initiated++
			if !k.Pending {
				t.Errorf("%+v", k)
			}
		}
	}
	if initiated != 1 {
		t.Errorf("%d keys have got a ticket", initiated)
	}

	// Where the current one is good, the pending one is left alone.
	for i := range entries {
		entries[i].Pending = !entries[i].Pending
	}
	d = withStore(t, r, f, "")
	f.put(entries, nil)
	_, err = d.init("web", nil, svc)
	must(t, err)
	for _, k := range d.Keytabs()[0].Keys {
		if k.Pending && !k.Initiated.IsZero() {
			t.Errorf("%+v", k)
		}
	}
}
