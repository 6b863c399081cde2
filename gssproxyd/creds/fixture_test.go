package creds_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/gssproxyd/proc"
	"gssproxyd/keytab/seal"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// daemon is one without a socket, whose clock can be moved.
type daemon struct {
	*proc.Procedures
	t      testing.TB
	ahead  atomic.Int64
	users  users
	stores creds.Stores
	conf   *conf.Config
}

// direct is who calls a daemon.
type direct struct {
	*daemon
	uid uint32
}

// users is a user database that can be exchanged.
type users struct{ conf.Users }

func (u *users) For(ctx context.Context) conf.Users {
	if each, ok := u.Users.(interface {
		For(context.Context) conf.Users
	}); ok {
		return each.For(ctx)
	}
	return u.Users
}

// newDirect starts one with sections of services, each with mechs, and euid = 0 unless it has one,
// and a krb5.conf.
func newDirect(t testing.TB, krb5Conf string, services map[string]string) *direct {
	t.Helper()
	t.Setenv("KRB5RCACHENAME", "none:")
	before := goleak.IgnoreCurrent() // the realm
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	d := &direct{daemon: &daemon{t: t}}
	d.start(func() time.Time { return time.Now().Add(time.Duration(d.ahead.Load())) })
	d.load(krb5Conf, services)
	return d
}

func (d *daemon) start(now func() time.Time) {
	d.users.Users = conf.FixedUsers{"root": 0}
	d.Procedures = proc.New(proc.Options{Box: seal.New(), Users: &d.users, Stores: d.stores, Log: slog.New(slog.DiscardHandler), Now: now})
	d.t.Cleanup(d.Close)
}

func (d *daemon) load(krb5Conf string, services map[string]string) {
	d.t.Helper()
	c, k := creds.Config(d.t, krb5Conf, services)
	must(d.t, d.Load(c, k))
	d.conf = c
}

func must(t testing.TB, err error) {
	t.Helper()
	creds.Must(t, err)
}

// of is the service of a name.
func (d *daemon) of(service string) *proc.Service {
	d.t.Helper()
	for _, s := range d.conf.Services {
		if s.Name == service {
			matched, ok := d.Match(d.t.Context(), &rpc.Conn{Peer: &peer.Info{UID: s.EUID}, Socket: s.Socket}, 0)
			if ok {
				return matched.(*proc.Service)
			}
		}
	}
	d.t.Fatalf("no service %s", service)
	return nil
}

// granted is the ticket-granting ticket that a call to a service that names nobody initiates with.
func (d *direct) granted(service string) *krb5.Credential {
	d.t.Helper()
	tgt, err := d.caller(service).Granted(d.t.Context())
	must(d.t, err)
	return tgt
}

// tgt is the ticket-granting ticket of a cache in a service's memory.
func (d *direct) tgt(service, cache string) []byte {
	d.t.Helper()
	tgt, err := creds.TGT(d.t.Context(), creds.MemoryOf(d.of(service).Service).Open(cache))
	must(d.t, err)
	return tgt.Ticket
}

// as returns the daemon with another caller.
func (d *direct) as(uid uint32) *direct { return &direct{d.daemon, uid} }

// asked is a call to a service before its procedure runs.
func (d *direct) asked(service string) *rpc.Call {
	p := new(peer.Info)
	p.UID = d.uid
	return &rpc.Call{Conn: &rpc.Conn{Peer: p}}
}

// caller is on whose behalf that is.
func (d *direct) caller(service string) *creds.Caller {
	r := d.asked(service)
	return &creds.Caller{
		Peer: r.Conn.Peer, Service: d.of(service).Service, Now: time.Now().Add(time.Duration(d.ahead.Load())),
		Context: limits.WithPayer(d.t.Context(), r.Conn.Peer.UID), Left: &r.Conn.Left,
	}
}

// settled waits until no exchange with a KDC is under way: a call waits for one that it can do
// without for a second only.
func (d *direct) settled() {
	for creds.Exchanges(d.of(d.conf.Services[0].Name).Service) > 0 {
		time.Sleep(time.Millisecond)
	}
}

// call makes a call to a service and returns the status as an error.
func (d *direct) call(service string, p xdr.Proc, arg, res xdr.Message, status *xdr.Status) error {
	d.t.Helper()
	r := d.asked(service)
	r.Proc, r.Args = uint32(p), arg.Append(nil)
	reply, stat := d.of(service).Handle(limits.WithPayer(d.t.Context(), r.Conn.Peer.UID), r, nil)
	if stat != rpc.Success {
		return fmt.Errorf("%v", stat)
	}
	res.Decode(xdr.NewDecoder(reply))
	if m := status.MajorStatus; m != 0 {
		return fmt.Errorf("major %#x: %s", m, status.MinorStatusString)
	}
	return nil
}

func (d *direct) acquire(service string, arg xdr.ArgAcquireCred) (xdr.Cred, error) {
	d.t.Helper()
	var res xdr.ResAcquireCred
	err := d.call(service, xdr.ProcAcquireCred, &arg, &res, &res.Status)
	return res.OutputCredHandle.V, err
}

// init starts a context, without mutual authentication, and returns its lifetime in seconds.
func (d *direct) init(service string, cred *xdr.Cred, target string, change ...func(*xdr.ArgInitSecContext)) (lifetime uint64, err error) {
	d.t.Helper()
	arg := xdr.ArgInitSecContext{TargetName: xdr.Some(named(target, mech.NTHostbased)), MechType: []byte(mech.KRB5), ReqFlags: lab.Usual}
	if cred != nil {
		arg.CredHandle = xdr.Some(*cred)
	}
	for _, f := range change {
		f(&arg)
	}
	var res xdr.ResInitSecContext
	err = d.call(service, xdr.ProcInitSecContext, &arg, &res, &res.Status)
	return res.ContextHandle.V.Lifetime, err
}

func named(display string, t mech.OID) xdr.Name {
	return xdr.Name{DisplayName: []byte(display), NameType: []byte(t)}
}

func realm(t testing.TB) (r *lab.Realm, svcs, alices string) { return creds.Realm(t) }

const svc = "svc@" + lab.Host
