package proc

import (
	"errors"
	"strings"
	"testing"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// What does not fit is refused here, where the reason can be told, and nothing is left of the
// result.
func TestKernelLimits(t *testing.T) {
	key, err := etype.GenerateKey(etype.AES256SHA1)
	if err != nil {
		t.Fatal(err)
	}
	rc4, err := etype.GenerateKey(etype.RC4)
	if err != nil {
		t.Fatal(err)
	}
	const realm = "@EXAMPLE.COM"
	name := func(n int) string { return strings.Repeat("x", n-len(realm)) + realm }
	for _, test := range []struct {
		title       string
		there, here string
		key         *etype.Key
		seq         uint64
		token       int
		reason      reason.ID
	}{
		{"as much as fits", name(256), name(256), key, 1<<31 - 1, 1024, ""},
		{"long initiator", name(257), name(20), key, 1, 100, reason.KernelLimit},
		{"long acceptor", name(20), name(257), key, 1, 100, reason.KernelLimit},
		{"huge initiator", name(70000), name(20), key, 1, 100, reason.KernelLimit},
		{"long token", name(20), name(20), key, 1, 1025, reason.KernelLimit},
		{"large number", name(20), name(20), key, 1 << 31, 100, reason.ContextEnctype},
		{"old key", name(20), name(20), rc4, 1, 100, reason.ContextEnctype},
	} {
		c := &call{p: &Procedures{}, Caller: creds.Caller{Service: &creds.Service{Service: &conf.Service{}, Krb5: &krb5conf.Config{}}}}
		ctx := &krb5.Context{There: test.there, Here: test.here, Subkey: test.key, SessionKey: test.key, SendSeq: test.seq}
		var res xdr.ResAcceptSecContext
		res.Status.Mech, res.OutputToken, res.ContextHandle.Set = oidKRB5, xdr.Some(make([]byte, test.token)), true
		c.fillContext(&res.ContextHandle, ctx)
		err := c.fillForKernel(t.Context(), format{lucid: true}, &res, ctx)
		if test.reason == "" {
			if err != nil || len(res.ContextHandle.V.ExportedContextToken) != 52 || len(res.ContextHandle.V.SrcName.ExportedCompositeName) != 0 {
				t.Errorf("%s: %v", test.title, err)
			}
			continue
		}
		var e *mech.Error
		if !errors.As(err, &e) || e.Reason != test.reason || len(e.Text) > maxText {
			t.Errorf("%s: %v", test.title, err)
		}
		if res.ContextHandle.Set || res.OutputToken.Set || len(res.Options) != 0 {
			t.Errorf("%s: something is left of the result", test.title)
		}
	}
}
