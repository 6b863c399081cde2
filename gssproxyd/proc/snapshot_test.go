package proc

import (
	"testing"
	"time"

	"gssproxyd/conf"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/krb5/krb5conf"
)

// What a cache held that is gone is not kept.
func TestSnapshotOfNoCache(t *testing.T) {
	p := new(Procedures)
	c := &call{svc: &service{Service: &conf.Service{Name: "a"}, p: p, krb5: new(krb5conf.Config)}, now: time.Now()}
	client, err := krb5.ParsePrincipal("alice@LAB.TEST", "")
	if err != nil {
		t.Fatal(err)
	}
	cache := new(ccache.Memory).Open("x")
	tgt := &krb5.Credential{Client: client, Server: client, EndTime: uint32(c.now.Unix() + 3600), Ticket: []byte("t")}
	if err := cache.Initialize(t.Context(), client, tgt); err != nil {
		t.Fatal(err)
	}
	if s, err := c.look(t.Context(), cache, 0); err != nil || s == nil || len(p.snapshots.byName) != 1 {
		t.Fatalf("%v, %v, %d snapshots; expected one", s, err, len(p.snapshots.byName))
	}
	if err := cache.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s, err := c.look(t.Context(), cache, 0); err != nil || s != nil || len(p.snapshots.byName) != 0 {
		t.Errorf("%v, %v, %d snapshots; expected none", s, err, len(p.snapshots.byName))
	}
}

// The key of a ticket that a call got for itself ends with the call, that of a snapshot with the snapshot.
func TestInitiatingRelease(t *testing.T) {
	own, seen, forwarded := &krb5.Credential{Key: []byte("own")}, &krb5.Credential{Key: []byte("seen")}, &krb5.Credential{Key: []byte("forwarded")}
	i := &initiator{seen: &snapshot{creds: []*krb5.Credential{{}, seen}}}
	for _, ticket := range []*krb5.Credential{own, seen, nil} {
		in := initPool.Get().(*initiating)
		in.credential, in.initiator.Ticket, in.initiator.Delegate = i, ticket, forwarded
		in.release()
	}
	if string(own.Key) != "\x00\x00\x00" || string(forwarded.Key) != string(make([]byte, 9)) {
		t.Errorf("keys %q and %q after their call", []byte(own.Key), []byte(forwarded.Key))
	}
	if string(seen.Key) != "seen" {
		t.Errorf("the snapshot's key is %q", []byte(seen.Key))
	}
}
