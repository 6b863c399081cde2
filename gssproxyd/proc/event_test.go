package proc

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"gssproxyd/audit"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// connected is the server's end of a connection with this process at the other one.
func connected(t *testing.T) *peer.Info {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "sock"))
	must(t, err)
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	must(t, err)
	t.Cleanup(func() { c.Close() })
	s, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { s.Close() })
	p, err := peer.FromConn(s.(*net.UnixConn))
	must(t, err)
	return p
}

// recorded has the events of d go to a list.
func recorded(d *direct) *[]audit.Event {
	var list []audit.Event
	d.record = func(_ context.Context, e *audit.Event) error {
		kept, from := *e, *e.Caller
		kept.Caller = &from
		list = append(list, kept)
		return nil
	}
	return &list
}

// TestEventAsksNothing: what an event could have of a caller is asked for only if somebody wants it.
func TestEventAsksNothing(t *testing.T) {
	d := newDirect(t, filepath.Join(t.TempDir(), "none"), "cred_store = keytab:/nonexistent")
	events := recorded(d)
	p := connected(t)
	call := func() audit.Caller {
		t.Helper()
		r := &rpc.Call{Conn: &rpc.Conn{Peer: p}, Proc: uint32(xdr.ProcGetCallContext), Args: new(xdr.ArgGetCallContext).Append(nil)}
		if _, stat := d.service.Handle(t.Context(), r, nil); stat != rpc.Success {
			t.Fatal(stat)
		}
		return *(*events)[len(*events)-1].Caller
	}
	if c := call(); c.Program != "" || p.Read() != 0 {
		t.Errorf("%+v, and %b was read", c, p.Read())
	}
	d.evidence = func() peer.Evidence { return peer.EvidenceProgram | peer.EvidencePlace }
	if c := call(); c.Program == "" || p.Read() != peer.EvidenceProgram|peer.EvidencePlace {
		t.Errorf("%+v, and %b was read", c, p.Read())
	}
	d.evidence = func() peer.Evidence { return 0 }
	if c := call(); c.Program == "" {
		t.Errorf("%+v, though the program is known", c)
	}
}

// TestEventOfFailures: a call whose arguments do not decode, or in which this program fails, is an event
// like any other refusal.
func TestEventOfFailures(t *testing.T) {
	d := newDirect(t, filepath.Join(t.TempDir(), "none"), "cred_store = keytab:/nonexistent")
	events := recorded(d)
	r := &rpc.Call{Conn: &rpc.Conn{Peer: &peer.Info{}}, Proc: uint32(xdr.ProcIndicateMechs), Args: []byte{1}}
	if _, stat := d.service.Handle(t.Context(), r, nil); stat != rpc.GarbageArgs {
		t.Error(stat)
	}
	fails := procedure(func(context.Context, *Procedures, *call, *xdr.ArgIndicateMechs, *xdr.ResIndicateMechs) error {
		panic("as a test")
	},
		func(r *xdr.ResIndicateMechs) *xdr.Status { return &r.Status })
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic is not there for package rpc to see")
			}
		}()
		r.Args = new(xdr.ArgIndicateMechs).Append(nil)
		fails(t.Context(), d.service, r, nil)
	}()
	for i, want := range []reason.ID{reason.BadArgument, reason.Internal} {
		if len(*events) <= i {
			t.Fatalf("%d events", len(*events))
		}
		if e := (*events)[i]; e.Kind != audit.CallDenied || e.Reason != string(want) || e.Text == "" || e.Procedure != "INDICATE_MECHS" {
			t.Errorf("%+v", e)
		}
	}
	if len(*events) != 2 {
		t.Errorf("%d events", len(*events))
	}
}

// TestEventOfUnknownCaller: a connection that is closed since the caller could not be looked at is not
// recorded as one that a rule was not met by, but by the server, once.
func TestEventOfUnknownCaller(t *testing.T) {
	d := newDirect(t, filepath.Join(t.TempDir(), "none"), "program = /usr/bin/true\ncred_store = keytab:/nonexistent")
	events := recorded(d)
	p := connected(t)
	p.UID = 0
	conn := &rpc.Conn{Peer: p, Socket: "/web"}
	if _, ok := d.Match(t.Context(), conn, uint32(xdr.ProcIndicateMechs)); ok || len(*events) != 1 || (*events)[0].Reason != string(reason.ProgramMismatch) {
		t.Errorf("%v, %+v", ok, *events)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "sock"))
	must(t, err)
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	must(t, err)
	conn.Peer, err = peer.FromConn(c.(*net.UnixConn))
	must(t, err)
	conn.Peer.UID = 0
	c.Close() // so that nothing can be asked
	if _, ok := d.Match(t.Context(), conn, uint32(xdr.ProcIndicateMechs)); ok || len(*events) != 1 {
		t.Errorf("%v, %+v", ok, *events)
	}
	d.Denied(t.Context(), conn, reason.CallerUnknown, "why")
	if e := (*events)[len(*events)-1]; len(*events) != 2 || e.Kind != audit.ConnectionDenied || e.Reason != string(reason.CallerUnknown) || e.Text != "why" || e.Caller.PID != conn.Peer.PID || e.Socket != "/web" {
		t.Errorf("%+v", *events)
	}
}
