// Package interposertest gives tests of programs that use package interposer a daemon without a
// KDC, and without root:
//
//	daemon := interposertest.Start(t)
//	server := httptest.NewServer((&negotiate.Authenticator{Daemon: daemon.Client(t)}).Wrap(handler))
//
// What it initiates it accepts, for package interposer as for its adapters. It protects nothing.
package interposertest

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"gssproxyd/interposer"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/rpc"
	"gssproxyd/rpc/rpctest"
	"gssproxyd/xdr"
)

// Daemon is a fake that both initiates and accepts. Its tokens are framed as those of Kerberos and
// say in plain text what they are about. Contexts are two ends that MIT krb5 made once, always the
// same. A credential that is delegated to it or acquired initiates as the user, until Forget is
// called; whoever has one may impersonate everybody. Its realm is EXAMPLE.TEST, whose principals,
// and no others, are the local users of the same name. It lists no mechanisms.
type Daemon struct {
	Socket    string       // for interposer.New, or for GSSPROXY_SOCKET of a program
	Initiated atomic.Int32 // calls of INIT_SEC_CONTEXT
	Accepted  atomic.Int32 // calls of ACCEPT_SEC_CONTEXT

	// Principal is who initiates; Services are the targets that can be initiated to, such as
	// "HTTP@www.example.test", nil for all. To be set before the first call.
	Principal string
	Services  []string

	forgotten atomic.Bool
	stop      func()
}

// The two ends of one context, exported.
var (
	//go:embed testdata/initiator.ctx
	initiator []byte
	//go:embed testdata/acceptor.ctx
	acceptor []byte
)

// token is what a first token says.
type token struct {
	Source, Target string
	Flags          uint64
	Bindings       []byte
	Broken         bool
}

// realm is that of the users.
const realm = "EXAMPLE.TEST"

const reply = "the acceptor's answer"

// Start starts a fake that ends with the test. Its user is alice@EXAMPLE.TEST.
func Start(t testing.TB) *Daemon {
	t.Helper()
	d := &Daemon{Principal: "alice@" + realm}
	d.Socket, d.stop = rpctest.Start(t, d.handle)
	return d
}

// StartForExample starts such a fake for an example, which has no test to end with: Stop ends it.
// What fails is a panic.
func StartForExample() *Daemon {
	t := new(exampleTB)
	d := Start(t)
	d.stop = t.end
	return d
}

// exampleTB is what Start needs of a test.
type exampleTB struct {
	testing.TB // nil: its other methods are not called
	cleanups   []func()
}

func (t *exampleTB) Helper()                   {}
func (t *exampleTB) Fatal(args ...any)         { panic(fmt.Sprint(args...)) }
func (t *exampleTB) Error(args ...any)         { panic(fmt.Sprint(args...)) }
func (t *exampleTB) Errorf(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }
func (t *exampleTB) Cleanup(f func())          { t.cleanups = append(t.cleanups, f) }

func (t *exampleTB) end() {
	for _, f := range slices.Backward(t.cleanups) {
		f()
	}
}

// Stop ends the daemon, before the test does if it was started for one.
func (d *Daemon) Stop() { d.stop() }

// Client is a client of the daemon that is closed with the test. A test of other Options makes its
// own, of Socket.
func (d *Daemon) Client(t testing.TB) *interposer.Client {
	c := interposer.New(d.Socket, interposer.Options{})
	t.Cleanup(func() { c.Close() })
	return c
}

// Forget has no credential open any more, as when a daemon has lost the key that handles are sealed
// with. It is for a test of what a program does then: it has to have the user log in again.
func (d *Daemon) Forget() { d.forgotten.Store(true) }

// handleOf is the handle of a user's credential.
const handleOf = "delegated by "

// opens returns whose credential a handle is, which is refused where the caller wants that: without,
// a handle that does not open is none.
func (d *Daemon) opens(cred xdr.Opt[xdr.Cred], options []xdr.Option) (principal string, refused bool) {
	if !cred.Set {
		return d.Principal, false
	}
	user, ok := strings.CutPrefix(string(cred.V.CredHandleReference), handleOf)
	if ok && !d.forgotten.Load() {
		return user, false
	}
	stale := func(o xdr.Option) bool {
		return string(o.Option) == "refuse_stale_handle\x00" && string(o.Value) == "yes\x00"
	}
	return d.Principal, slices.ContainsFunc(options, stale)
}

// Token is a first token as the daemon itself would make it, for a test that accepts somebody else's:
// source is a principal, target a service such as "HTTP@www.example.test", flags are mech.Flag bits.
// A broken one is refused, with the reason clock-skew and an answer for the initiator.
func Token(source, target string, flags interposer.Flags, broken bool) []byte {
	return frame(token{Source: source, Target: target, Flags: uint64(flags), Broken: broken})
}

func frame(t token) []byte {
	text, err := json.Marshal(t)
	if err != nil {
		panic(err) // a struct of strings and numbers
	}
	body := der.AppendValue(nil, der.ObjectID, []byte(mech.KRB5))
	return der.AppendValue(nil, der.Application(0), append(body, text...))
}

func parse(b []byte) (t token, ok bool) {
	r := der.NewReader(b)
	r.Enter(der.Application(0))
	if mech.OID(r.Value(der.ObjectID)) != mech.KRB5 {
		return t, false
	}
	text := bytes.TrimLeftFunc(b, func(c rune) bool { return c != '{' })
	return t, r.Fault() == 0 && json.Unmarshal(text, &t) == nil
}

func (d *Daemon) handle(_ context.Context, c *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
	args := xdr.NewDecoder(c.Args)
	var res xdr.Message
	switch xdr.Proc(c.Proc) {
	case xdr.ProcInitSecContext:
		var arg xdr.ArgInitSecContext
		arg.Decode(args)
		d.Initiated.Add(1)
		res = d.init(&arg)
	case xdr.ProcAcquireCred:
		var arg xdr.ArgAcquireCred
		arg.Decode(args)
		res = d.acquire(&arg)
	case xdr.ProcAcceptSecContext:
		var arg xdr.ArgAcceptSecContext
		arg.Decode(args)
		d.Accepted.Add(1)
		res = d.accept(&arg)
	case xdr.ProcImportAndCanonName:
		var arg xdr.ArgImportAndCanonName
		arg.Decode(args)
		res = canonicalize(&arg)
	default:
		return reply, rpc.ProcUnavail
	}
	if args.Err() != nil {
		return reply, rpc.GarbageArgs
	}
	return res.Append(reply), rpc.Success
}

func status(major mech.Major, text string) xdr.Status {
	return xdr.Status{MajorStatus: uint64(major), Mech: []byte(mech.KRB5), MinorStatus: 1, MinorStatusString: append([]byte(text), 0)}
}

// acquire makes a credential of Principal's or of the user's that Input is of, or of another one's
// by such a credential. As with the daemon, who impersonates without one has not asked for it.
func (d *Daemon) acquire(arg *xdr.ArgAcquireCred) *xdr.ResAcquireCred {
	principal, refused := d.opens(arg.InputCredHandle, arg.Options)
	if refused {
		return &xdr.ResAcquireCred{Status: status(mech.DefectiveCredential, "[bad-credential] the handle does not open")}
	}
	impersonate := slices.ContainsFunc(arg.Options, func(o xdr.Option) bool { return string(o.Option) == "acquire_type\x00" })
	switch name := string(arg.DesiredName.V.DisplayName); {
	case impersonate && arg.InputCredHandle.Set:
		principal = name
	case arg.DesiredName.Set && name != principal && arg.CredUsage != xdr.CredAccept:
		return &xdr.ResAcquireCred{Status: status(mech.NoCred, fmt.Sprintf("[no-credential] there is no key of %s, only of %s", name, principal))}
	}
	return &xdr.ResAcquireCred{OutputCredHandle: xdr.Some(credOf(principal))}
}

func credOf(principal string) xdr.Cred {
	name := xdr.Name{DisplayName: []byte(principal), NameType: []byte(mech.NTKrb5Principal)}
	return xdr.Cred{
		DesiredName: name, CredHandleReference: []byte(handleOf + principal),
		Elements: []xdr.CredElement{{MN: name, Mech: []byte(mech.KRB5), CredUsage: xdr.CredInitiate, InitiatorTimeRec: 3600}},
	}
}

// canonicalize makes principals of user names, and local users of principals.
func canonicalize(arg *xdr.ArgImportAndCanonName) *xdr.ResImportAndCanonName {
	const localname = "localname\x00"
	name := arg.InputName
	display := string(name.DisplayName)
	if display == "" {
		return &xdr.ResImportAndCanonName{Status: status(mech.BadName, "[bad-argument] the name is empty")}
	}
	if t := mech.OID(name.NameType); (t == mech.NTKrb5Principal || t == mech.NTUserName) && !strings.Contains(display, "@") {
		display += "@" + realm
	}
	if slices.ContainsFunc(arg.Options, func(o xdr.Option) bool { return string(o.Option) == localname }) {
		user, ok := strings.CutSuffix(display, "@"+realm)
		if !ok || strings.ContainsAny(user, "/@") {
			return &xdr.ResImportAndCanonName{Status: status(mech.Failure, "[no-local-name] No local name found for principal "+display)}
		}
		return &xdr.ResImportAndCanonName{Options: []xdr.Option{{Option: []byte(localname), Value: append([]byte(user), 0)}}}
	}
	name.DisplayName = []byte(display)
	return &xdr.ResImportAndCanonName{OutputName: xdr.Some(name)}
}

func (d *Daemon) init(arg *xdr.ArgInitSecContext) *xdr.ResInitSecContext {
	target := string(arg.TargetName.V.DisplayName)
	principal, refused := d.opens(arg.CredHandle, arg.Options)
	known := d.Services == nil
	for _, s := range d.Services {
		known = known || s == target
	}
	switch {
	case refused:
		return &xdr.ResInitSecContext{Status: status(mech.DefectiveCredential, "[bad-credential] the handle does not open")}
	case mech.OID(arg.MechType) != mech.KRB5:
		return &xdr.ResInitSecContext{Status: status(mech.BadMech, "not Kerberos")}
	case target == "":
		return &xdr.ResInitSecContext{Status: status(mech.BadName, "[bad-argument] the name is empty")}
	case !known:
		return &xdr.ResInitSecContext{Status: status(mech.Failure, "[server-unknown] Server not found in Kerberos database")}
	}
	ctx := xdr.Ctx{
		Mech: []byte(mech.KRB5), LocallyInitiated: true, Lifetime: 3600, CtxFlags: arg.ReqFlags | mech.FlagTrans,
		SrcName: xdr.Name{DisplayName: []byte(principal)}, TargName: xdr.Name{DisplayName: []byte(target)},
	}
	res := &xdr.ResInitSecContext{}
	mutual := arg.ReqFlags&mech.FlagMutual != 0
	switch {
	case !arg.ContextHandle.Set:
		res.OutputToken = xdr.Some(frame(token{principal, target, arg.ReqFlags, arg.InputCB.V.ApplicationData, false}))
		ctx.Open = !mutual
		ctx.State = []byte("half")
	case string(arg.ContextHandle.V.State) != "half" || string(arg.InputToken.V) != reply:
		return &xdr.ResInitSecContext{Status: status(mech.DefectiveToken, "[mutual-failed] not the acceptor's answer")}
	default:
		ctx.Open = true
	}
	if ctx.Open {
		ctx.ExportedContextToken = initiator
	} else {
		res.Status.MajorStatus = uint64(mech.ContinueNeeded)
	}
	res.ContextHandle = xdr.Some(ctx)
	return res
}

func (d *Daemon) accept(arg *xdr.ArgAcceptSecContext) *xdr.ResAcceptSecContext {
	t, ok := parse(arg.InputToken)
	bound := arg.InputCB.Set && t.Bindings != nil
	_, refused := d.opens(arg.CredHandle, arg.Options)
	switch {
	case refused:
		return &xdr.ResAcceptSecContext{Status: status(mech.DefectiveCredential, "[bad-credential] the handle does not open")}
	case !ok:
		return &xdr.ResAcceptSecContext{Status: status(mech.DefectiveToken, "[defective-token] not a token")}
	case t.Broken:
		return &xdr.ResAcceptSecContext{Status: status(mech.Failure, "[clock-skew] Clock skew too great"), OutputToken: xdr.Some([]byte("KRB-ERROR"))}
	case bound && !bytes.Equal(t.Bindings, arg.InputCB.V.ApplicationData):
		return &xdr.ResAcceptSecContext{Status: status(mech.BadBindings, "[bad-bindings] Channel bindings do not match")}
	}
	if bound {
		t.Flags |= mech.FlagChannelBound
	}
	res := &xdr.ResAcceptSecContext{
		ContextHandle: xdr.Some(xdr.Ctx{
			Mech: []byte(mech.KRB5), Open: true, Lifetime: 3600, CtxFlags: t.Flags | mech.FlagTrans, ExportedContextToken: acceptor,
			SrcName:  xdr.Name{DisplayName: []byte(t.Source), NameType: []byte(mech.NTKrb5Principal)},
			TargName: xdr.Name{DisplayName: []byte(t.Target)},
		}),
		OutputToken: xdr.Some([]byte(nil)),
	}
	if t.Flags&mech.FlagMutual != 0 {
		res.OutputToken.V = []byte(reply)
	}
	if t.Flags&mech.FlagDeleg != 0 && arg.RetDelegCred {
		res.DelegatedCredHandle = xdr.Some(credOf(t.Source))
	}
	return res
}
