package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"gssproxyd/mech"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// TestHandlesSurvive: a thousand credential handles, to accept and to initiate, are stored by their
// clients. The keytab is rotated, the configuration read again and the daemon killed and started
// anew: every one still opens, comes back byte for byte, but for the time that is left, and does
// what it is for.
func TestHandlesSurvive(t *testing.T) {
	needOurs(t)
	const handles = 1000
	r := realm(t)
	principal, target := "handles/"+lab.Host, "handles@"+lab.Host
	check(t, r.RandKey(principal))
	check(t, r.RandKey("handles-client"))
	path, err := r.Keytab("handles-keytab", principal)
	check(t, err)
	clients, err := r.Keytab("handles-client-keytab", "handles-client")
	check(t, err)
	d := daemon(t, "ours", lab.Options{Keytab: path, Config: fmt.Sprintf(`[gssproxy]
[service/both]
  mechs = krb5
  euid = 0
  cred_store = keytab:%s
  cred_store = client_keytab:%s
`, path, clients)})
	w := wire(t, d)

	acquire := func(usage xdr.CredUsage, input *xdr.Cred) xdr.Cred {
		t.Helper()
		arg := &xdr.ArgAcquireCred{CredUsage: usage}
		if input != nil {
			arg.InputCredHandle = xdr.Some(*input)
		}
		var res xdr.ResAcquireCred
		check(t, w.Call(xdr.ProcAcquireCred, arg, &res))
		check(t, lab.StatusError(res.Status))
		return res.OutputCredHandle.V
	}
	usage := func(i int) xdr.CredUsage {
		if i%2 == 0 {
			return xdr.CredAccept
		}
		return xdr.CredInitiate
	}
	stored := make([]xdr.Cred, handles)
	for i := range stored {
		stored[i] = acquire(usage(i), nil)
	}

	check(t, r.Rotate(principal))
	next, err := r.Keytab("handles-next", principal)
	check(t, err)
	check(t, os.Rename(next, path))
	check(t, d.Reload())
	check(t, d.Crash())
	w = wire(t, d)

	initiator := alice(t)
	for i := range stored {
		again := acquire(usage(i), &stored[i])
		if !lab.SameCred(again, stored[i]) {
			t.Fatalf("handle %d is not the same any more", i)
		}
		if i%100 > 1 {
			continue
		}
		if usage(i) == xdr.CredAccept {
			_, token, err := initiator.Init(target, lab.Usual|lab.Mutual, nil)
			check(t, err)
			arg := lab.AcceptArg(token, nil)
			arg.CredHandle = xdr.Some(stored[i])
			var res xdr.ResAcceptSecContext
			check(t, w.Call(xdr.ProcAcceptSecContext, arg, &res))
			check(t, lab.StatusError(res.Status))
			continue
		}
		var res xdr.ResInitSecContext
		check(t, w.Call(xdr.ProcInitSecContext, &xdr.ArgInitSecContext{
			CredHandle: xdr.Some(stored[i]),
			TargetName: xdr.Some(xdr.Name{DisplayName: []byte(target), NameType: []byte(mech.NTHostbased)}),
			MechType:   []byte(mech.KRB5), ReqFlags: lab.Usual,
		}, &res))
		check(t, lab.StatusError(res.Status))
		if got := string(res.ContextHandle.V.SrcName.DisplayName); got != "handles-client@"+lab.Name {
			t.Errorf("handle %d initiates as %s", i, got)
		}
	}
}

// TestHandleOfAnotherName: Debian's plugin keeps the last acceptor's handle in the cache that
// programs of a user share, and sends it along for whatever name the next one asks for, as when the
// host has another name by then. It is stale then, and no error.
func TestHandleOfAnotherName(t *testing.T) {
	needOurs(t) // the C daemon refuses
	r := realm(t)
	former := "former." + lab.Domain
	check(t, r.RandKey("svc/"+former))
	path, err := r.Keytab("renamed-keytab", "svc/"+former)
	check(t, err)
	d := daemon(t, "ours", lab.Options{Keytab: path})
	cache := filepath.Join(nobodyDir(t), "cc")
	next := func(name string) *lab.Tool {
		t.Helper()
		acceptor := tool(t, lab.Nobody, append(d.PluginEnvOf(lab.Debians), "KRB5CCNAME=FILE:"+cache)...)
		if err := acceptor.Acquire(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return acceptor
	}
	next("svc@" + former)
	if b, err := os.ReadFile(cache); err != nil || !bytes.Contains(b, []byte("X-GSSPROXY")) {
		t.Fatalf("the plugin has left no handle (%v)", err)
	}
	check(t, os.Rename(keytab(t), path)) // the host's name is another one
	check(t, d.WaitOutput("principals=6", lab.Patience))
	client := alice(t)
	for _, name := range []string{service, "HTTP@" + lab.Host, service} {
		acceptor := next(name)
		for _, target := range []string{service, "HTTP@" + lab.Host} {
			_, token, err := client.Init(target, lab.Usual, nil)
			check(t, err)
			if _, err := acceptor.Accept(token, nil); (err == nil) != (target == name) {
				t.Errorf("asked for %s, a token for %s: %v", name, target, err)
			}
		}
	}
}
