package creds_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gssproxyd/conf"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// asked are users that somebody asks for who pays.
type asked struct {
	conf.FixedUsers
	refuse uint32 // who may not ask
	ctx    context.Context
}

func (a asked) For(ctx context.Context) conf.Users {
	a.ctx = ctx
	return a
}

func (a asked) Name(uid uint32) (string, error) {
	if payer := limits.Payer(a.ctx); payer == a.refuse {
		return "", fmt.Errorf("uid %d: %w", uid, &limits.Error{What: "questions", UID: payer})
	}
	if uid == 7 {
		return "", fmt.Errorf("getent is asleep")
	}
	return a.FixedUsers.Name(uid)
}

// The name service is asked in the caller's name and as long as its call lasts. That it was not
// asked, or did not answer, is not that there is no such user.
func TestCallersAskForUsers(t *testing.T) {
	krb5Conf := filepath.Join(t.TempDir(), "krb5.conf")
	must(t, os.WriteFile(krb5Conf, []byte("[libdefaults]\ndefault_realm = A.TEST\n"), 0o600))
	d := newDirect(t, krb5Conf, map[string]string{
		"plain":  "allow_any_uid = yes\ncred_store = keytab:/nowhere",
		"byname": "allow_any_uid = yes\ncred_store = keytab:/nowhere/%u",
	})
	d.users.Users = asked{FixedUsers: conf.FixedUsers{"alice": 1000}, refuse: 1001}
	call := func(uid uint32, service string, p xdr.Proc, arg, res xdr.Message, status *xdr.Status) string {
		r := &rpc.Call{Conn: &rpc.Conn{Peer: &peer.Info{UID: uid}}, Proc: uint32(p), Args: arg.Append(nil)}
		reply, stat := d.of(service).Handle(limits.WithPayer(t.Context(), r.Conn.Peer.UID), r, nil)
		if stat != rpc.Success {
			t.Fatal(stat)
		}
		res.Decode(xdr.NewDecoder(reply))
		return string(status.MinorStatusString)
	}
	for _, c := range []struct {
		caller uint32
		user   string
		want   reason.ID
	}{{1000, "1000", ""}, {1000, "7", reason.UserLookup}, {1000, "8", reason.BadName}, {1001, "1000", reason.OverLimit}} {
		arg := xdr.ArgImportAndCanonName{InputName: named(c.user, mech.NTStringUID), Mech: []byte(mech.KRB5)}
		var res xdr.ResImportAndCanonName
		text := call(c.caller, "plain", xdr.ProcImportAndCanonName, &arg, &res, &res.Status)
		if c.want != "" && !strings.Contains(text, "["+string(c.want)+"]") || c.want == "" && (text != "" || string(res.OutputName.V.DisplayName) != "alice@A.TEST") {
			t.Errorf("uid %d names uid %s: %q, want reason %q", c.caller, c.user, text, c.want)
		}
	}
	for caller, want := range map[uint32]reason.ID{1001: reason.OverLimit, 7: reason.UserLookup, 8: reason.CredStore, 1000: reason.NoKeytab} {
		arg := xdr.ArgAcquireCred{CredUsage: xdr.CredAccept}
		var res xdr.ResAcquireCred
		if text := call(caller, "byname", xdr.ProcAcquireCred, &arg, &res, &res.Status); !strings.Contains(text, "["+string(want)+"]") {
			t.Errorf("uid %d, whose name the store's path has: %q, want reason %q", caller, text, want)
		}
	}
}
