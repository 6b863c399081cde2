package proc

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/keytab/seal"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// direct is a daemon without a socket, with one service, and who calls it.
type direct struct {
	*Procedures
	t       testing.TB
	service *Service
	uid     uint32
}

func newDirect(t testing.TB, krb5Conf, lines string) *direct {
	t.Helper()
	before := goleak.IgnoreCurrent() // the realm
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	p := New(Options{Box: seal.New(), Users: conf.FixedUsers{"root": 0}, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(p.Close)
	file := filepath.Join(t.TempDir(), "gssproxy.conf")
	must(t, os.WriteFile(file, []byte("[service/web]\nmechs = krb5\neuid = 0\nsocket = /web\n"+lines), 0o600))
	c, err := conf.Load(conf.Source{Users: conf.FixedUsers{"root": 0}, File: file})
	must(t, err)
	k, err := krb5conf.Load([]string{krb5Conf})
	must(t, err)
	must(t, p.Load(c, k))
	return &direct{p, t, p.current.Load().services[c.Services[0]], 0}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// call makes a call and returns the status as an error.
func (d *direct) call(p xdr.Proc, arg, res xdr.Message, status *xdr.Status) error {
	d.t.Helper()
	r := &rpc.Call{Conn: &rpc.Conn{Peer: &peer.Info{UID: d.uid}}, Proc: uint32(p), Args: arg.Append(nil)}
	reply, stat := d.service.Handle(limits.WithPayer(d.t.Context(), d.uid), r, nil)
	if stat != rpc.Success {
		return fmt.Errorf("%v", stat)
	}
	res.Decode(xdr.NewDecoder(reply))
	if m := status.MajorStatus; m != 0 {
		return fmt.Errorf("major %#x: %s", m, status.MinorStatusString)
	}
	return nil
}

const svc = "svc@" + lab.Host

// initArg is the argument of a call that starts a context.
func initArg(mechanism mech.OID, flags uint64) xdr.ArgInitSecContext {
	target := xdr.Name{DisplayName: []byte(svc), NameType: []byte(mech.NTHostbased)}
	return xdr.ArgInitSecContext{TargetName: xdr.Some(target), MechType: []byte(mechanism), ReqFlags: flags}
}

// TestInitWithoutMechanism: the refusal says that none was sent, and not that one of an empty name
// is not served.
func TestInitWithoutMechanism(t *testing.T) {
	d := newDirect(t, filepath.Join(t.TempDir(), "none"), "cred_store = client_keytab:/nonexistent")
	for _, test := range []struct{ mech, want string }{{"", "no mechanism was sent"}, {"\x2b\x06", "mechanism 1.3.6 is not served"}} {
		arg := initArg(mech.OID(test.mech), lab.Usual)
		var res xdr.ResInitSecContext
		err := d.call(xdr.ProcInitSecContext, &arg, &res, &res.Status)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: %v", test.mech, err)
		}
	}
}

// TestMechanisms: a mechanism that is not served is refused by its name, and in the log unless it
// is one that libgssapi asks for on its own.
func TestMechanisms(t *testing.T) {
	d := newDirect(t, filepath.Join(t.TempDir(), "none"), "cred_store = keytab:/nonexistent")
	var lines bytes.Buffer
	const iakerb, older, ntlm = "IAKERB (1.3.6.1.5.2.5)", "Microsoft's krb5 (1.2.840.48018.1.2.2)", "NTLM (1.3.6.1.4.1.311.2.2.10)"
	oids := map[string][]byte{iakerb: []byte(mech.IAKERB), older: []byte(mech.KRB5Wrong), ntlm: []byte("\x2b\x06\x01\x04\x01\x82\x37\x02\x02\x0a")}
	for _, test := range []struct {
		level slog.Level
		mechs []string
		want  string
		line  string // begins so
	}{
		{slog.LevelInfo, []string{iakerb}, iakerb, ""},
		{slog.LevelDebug, []string{iakerb}, iakerb, "level=DEBUG msg=refused"},
		{slog.LevelInfo, []string{older}, older, ""},
		{slog.LevelInfo, []string{ntlm}, ntlm, "level=WARN msg=refused"},
		{slog.LevelInfo, []string{iakerb, ntlm}, iakerb + ", " + ntlm, "level=WARN msg=refused"},
		{slog.LevelInfo, []string{ntlm, ntlm, ntlm, ntlm, ntlm, ntlm}, strings.Repeat(ntlm+", ", 4) + "2 more", "level=WARN msg=refused"},
	} {
		lines.Reset()
		d.log.Logger = slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: test.level}))
		arg := xdr.ArgAcquireCred{CredUsage: xdr.CredAccept}
		for _, m := range test.mechs {
			arg.DesiredMechs = append(arg.DesiredMechs, oids[m])
		}
		var res xdr.ResAcquireCred
		err := d.call(xdr.ProcAcquireCred, &arg, &res, &res.Status)
		if err == nil || !strings.Contains(err.Error(), "[mechanism-not-allowed] krb5 is served, and not "+test.want+" (call ") {
			t.Errorf("%q: %v", test.mechs, err)
		}
		_, line, _ := strings.Cut(lines.String(), " ")
		if !strings.HasPrefix(line, test.line) || test.line == "" && line != "" || test.line != "" && !strings.Contains(line, test.want) {
			t.Errorf("%q: the log has %q", test.mechs, line)
		}
	}
}

// TestOthersContext: a context that is not established yet goes on for the caller who has begun it
// only, and as the service he has begun it with: not as another one of the same uid and keytab.
func TestOthersContext(t *testing.T) {
	r := lab.New(t)
	must(t, r.RandKey("svc/"+lab.Host))
	alices, err := r.Keytab("alice.keytab", "alice")
	must(t, err)
	lines := "cred_store = client_keytab:" + alices + "\nallow_any_uid = yes\n"
	d := newDirect(t, r.Conf, lines+"[service/api]\nmechs = krb5\neuid = 0\nsocket = /api\n"+lines)
	services := make(map[string]*Service)
	for _, s := range d.current.Load().services {
		services[s.Name] = s
	}
	begin := initArg(mech.KRB5, lab.Usual|lab.Mutual)
	var res xdr.ResInitSecContext
	must(t, ignoreContinue(d.call(xdr.ProcInitSecContext, &begin, &res, &res.Status)))
	for _, test := range []struct {
		service string
		uid     uint32
		want    reason.ID
	}{{"web", 0, reason.DefectiveToken}, {"web", 1000, reason.BadContext}, {"api", 0, reason.BadContext}} {
		arg := begin
		arg.ContextHandle, arg.InputToken = res.ContextHandle, xdr.Some([]byte("no token"))
		var res xdr.ResInitSecContext
		d.service, d.uid = services[test.service], test.uid
		err := d.call(xdr.ProcInitSecContext, &arg, &res, &res.Status)
		if err == nil || !strings.Contains(err.Error(), "["+string(test.want)+"]") {
			t.Errorf("%s, uid %d: %v, want [%s]", test.service, test.uid, err, test.want)
		}
	}
}

func ignoreContinue(err error) error {
	if err != nil && strings.HasPrefix(err.Error(), majorPrefix(mech.ContinueNeeded)) {
		return nil
	}
	return err
}

// The key of a ticket that a call got for itself ends with the call, and that of one forwarded.
func TestInitiatingRelease(t *testing.T) {
	own, forwarded := &krb5.Credential{Key: []byte("own")}, &krb5.Credential{Key: []byte("forwarded")}
	for _, ticket := range []*krb5.Credential{own, nil} {
		in := initPool.Get().(*initiating)
		in.credential, in.initiator.Ticket, in.initiator.Delegate = new(creds.Credential), ticket, forwarded
		in.release()
	}
	if string(own.Key) != "\x00\x00\x00" || string(forwarded.Key) != string(make([]byte, 9)) {
		t.Errorf("keys %q and %q after their call", []byte(own.Key), []byte(forwarded.Key))
	}
}

func majorPrefix(m mech.Major) string { return fmt.Sprintf("major %#x:", uint64(m)) }
