package e2e

import (
	"testing"

	"gssproxyd/mech"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// TestAcceptorLegs: between the legs of a DCE style exchange the acceptor's context is with its
// client, and another instance of the daemon goes on with it. The C daemon begins a new one and
// cannot read the token.
func TestAcceptorLegs(t *testing.T) {
	needOurs(t)
	d := daemon(t, "ours", lab.Options{})
	initiator, mit := alice(t), tool(t, lab.Nobody)
	for _, n := range enctypes {
		check(t, initiator.Enctypes(n))
		id, token, err := initiator.Init(service, lab.Usual|lab.Mutual|mech.FlagDCEStyle, nil)
		check(t, err)
		first, err := wire(t, d).Accept(token, nil)
		check(t, err)
		if first.Status.MajorStatus != uint64(mech.ContinueNeeded) || first.ContextHandle.V.Open {
			t.Fatalf("%d: first leg: %v, open %v", n, lab.StatusError(first.Status), first.ContextHandle.V.Open)
		}
		complete, token, err := initiator.Step(id, first.OutputToken.V)
		check(t, err)
		if !complete || len(token) == 0 {
			t.Fatalf("%d: the initiator is done %v, with a token of %d bytes", n, complete, len(token))
		}
		check(t, d.Crash())
		arg := lab.AcceptArg(token, nil)
		arg.ContextHandle = first.ContextHandle
		var last xdr.ResAcceptSecContext
		check(t, wire(t, d).Call(xdr.ProcAcceptSecContext, arg, &last))
		check(t, lab.StatusError(last.Status))
		x := &last.ContextHandle.V
		if got := string(x.SrcName.DisplayName); got != "alice@"+lab.Name || !x.Open || x.LocallyInitiated || len(last.OutputToken.V) != 0 {
			t.Errorf("%d: accepted %s, open %v, initiated here %v, a token of %d bytes", n, got, x.Open, x.LocallyInitiated, len(last.OutputToken.V))
		}
		acceptor, err := mit.Import(x.ExportedContextToken)
		check(t, err)
		check(t, lab.Converse(lab.End{Tool: initiator, ID: id}, lab.End{Tool: mit, ID: acceptor}))
	}
}

// TestForwarded: the credential that an initiator forwards comes back as a handle, and contexts are
// initiated with it, by the next instance of the daemon too.
func TestForwarded(t *testing.T) {
	overDaemons(t, func(t *testing.T, kind string) {
		d := daemon(t, kind, lab.Options{Config: config(svc{"both", 0, []string{"cred_store = keytab:" + keytab(t)}})})
		mit := tool(t, lab.Root, "KRB5_KTNAME="+d.Options.Keytab, "KRB5RCACHENAME=none:")
		check(t, mit.Acquire(""))
		for _, c := range []struct {
			what             string
			ask, wish, given bool
		}{
			{"forwarded", true, true, true},
			{"not forwarded", false, true, false},
			{"not wanted", true, false, false},
		} {
			flags := uint32(lab.Usual | lab.Mutual)
			if c.ask {
				flags |= lab.Deleg
			}
			client := alice(t, "-f")
			id, token, err := client.Init(service, flags, nil)
			check(t, err)
			arg := lab.AcceptArg(token, nil)
			arg.RetDelegCred = c.wish
			var res xdr.ResAcceptSecContext
			check(t, wire(t, d).Call(xdr.ProcAcceptSecContext, arg, &res))
			check(t, lab.StatusError(res.Status))
			_, _, err = client.Step(id, res.OutputToken.V)
			check(t, err)
			if res.DelegatedCredHandle.Set != c.given {
				t.Fatalf("%s: a credential %v, want %v", c.what, res.DelegatedCredHandle.Set, c.given)
			}
			if !c.given {
				continue
			}
			cred := &res.DelegatedCredHandle.V
			if got := string(cred.DesiredName.DisplayName); got != "alice@"+lab.Name {
				t.Errorf("a credential of %s", got)
			}
			for _, target := range []string{"HTTP@" + lab.Host, service} {
				out := initContext(t, wire(t, d), cred, target, lab.Usual, nil)
				check(t, lab.StatusError(out.Status))
				heard, err := mit.Accept(out.OutputToken.V, nil)
				check(t, err)
				if heard.Client != "alice@"+lab.Name {
					t.Errorf("%s hears %s", target, heard.Client)
				}
				check(t, d.Crash())
			}
		}
	})
}
