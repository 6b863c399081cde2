package proc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"time"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// The Linux kernel's NFS server asks one thing, ACCEPT_SEC_CONTEXT, and wants the result in two
// forms of its own: the context as "linux_lucid_v1" and who the initiator is here as
// "linux_creds_v1". It reads the result into buffers of fixed sizes and refuses what does not fit,
// without a word to anybody; 6.1 panics when output_token is absent. It gives up after ten seconds.
// It cannot go on with an exchange of several legs, and has no use for a delegated credential, for
// composite names, or for the token of a failure.

// Limits of the kernel's decoder (net/sunrpc/auth_gss/gss_rpc_xdr.c).
const (
	kernelMaxToken = 1024 // output_token
	kernelMaxName  = 256  // display_name of either name
	kernelMaxCreds = 65000
)

// kernelCalls is how many calls of the kernel's one connection are executed at once: as many as
// there may be threads of its server waiting.
const kernelCalls = 64

// defaultKernelEnctypes is what every kernel knows that takes contexts at all, and all that those
// before 6.2 know.
var defaultKernelEnctypes = []etype.ID{etype.AES256SHA1, etype.AES128SHA1}

// SetKernelEnctypes says which encryption types the kernel takes contexts of; without any it is
// what old kernels take.
func (p *Procedures) SetKernelEnctypes(list []etype.ID) {
	list = slices.Clone(list)
	p.kernelEnctypes.Store(&list)
}

// forKernel sets an acceptor up for a context that the kernel is to import.
func (p *Procedures) forKernel(a *krb5.Acceptor) {
	a.IgnoreDelegated, a.DCEStyle = true, false
	a.MessageEnctypes = defaultKernelEnctypes
	if list := p.kernelEnctypes.Load(); list != nil && len(*list) > 0 {
		a.MessageEnctypes = *list
	}
}

// fillLucid makes the gssx_ctx of a context that the kernel is to import.
func (c *call) fillLucid(x *xdr.Ctx, ctx *krb5.Context) error {
	var err error
	x.ExportedContextToken = c.keep(func(b []byte) []byte {
		b, err = ctx.AppendLucid(b)
		return b
	})
	if err != nil {
		return err
	}
	for _, name := range []*xdr.Name{&x.SrcName, &x.TargName} {
		if n := len(name.DisplayName); n > kernelMaxName {
			return mech.Errorf(mech.BadName, 0, reason.KernelLimit, "the name %.64q... has %d bytes, the kernel takes %d", name.DisplayName, n, kernelMaxName)
		}
		name.ExportedCompositeName = nil
	}
	return nil
}

// fillForKernel brings an accepted context's result into the forms asked for. On an error nothing
// is left of it.
func (c *call) fillForKernel(ctx context.Context, f format, res *xdr.ResAcceptSecContext, established *krb5.Context) error {
	fill := func() error {
		if f.creds {
			a, known, err := c.accountOf(ctx, established.There)
			if err != nil {
				return err
			}
			if !known {
				established.EndTime = min(established.EndTime, uint32(c.Now.Add(unknownFor).Unix()))
			}
			creds := c.keep(func(b []byte) []byte { return appendLinuxCreds(b, &a) })
			res.Options = append(res.Options, xdr.Option{Option: valLinuxCreds, Value: creds})
		}
		if f.lucid {
			if err := c.fillLucid(&res.ContextHandle.V, established); err != nil {
				return err
			}
			if n := len(res.OutputToken.V); n > kernelMaxToken {
				return mech.Errorf(mech.Failure, 0, reason.KernelLimit, "the token for the initiator has %d bytes, the kernel takes %d", n, kernelMaxToken)
			}
		}
		return nil
	}
	err := fill()
	if err != nil {
		*res = xdr.ResAcceptSecContext{}
	}
	return err
}

// mappingTimeout bounds finding out who a principal is, within the time that the kernel waits.
const mappingTimeout = 8 * time.Second

// unknownFor is how long a context lives whose initiator is nobody because the name service did not
// answer. The kernel then has the client begin a new one, and asks again; it would go by its first
// answer until the ticket ends otherwise.
const unknownFor = time.Minute

// appendLinuxCreds appends the value of the option that says who the initiator is here: uid, gid,
// and the number of groups and the groups, in host byte order.
func appendLinuxCreds(b []byte, a *nss.Account) []byte {
	b, _ = binary.Append(b, binary.NativeEndian, []uint32{a.UID, a.GID, uint32(len(a.Groups))})
	b, _ = binary.Append(b, binary.NativeEndian, a.Groups) // which fails for what has no fixed size only
	return b
}

// nobody is the account of who is no user of this host.
var nobody = nss.Account{UID: 1<<32 - 1, GID: 1<<32 - 1}

// accountOf finds the user that a principal is: by principal_map, by krb5.conf's rules, else by
// unmapped_user. What it returns is not known to be right if the name service did not answer.
func (c *call) accountOf(ctx context.Context, principal string) (a nss.Account, known bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, mappingTimeout)
	defer cancel()
	user, _, err := c.Service.LocalUser(principal)
	if err != nil {
		return c.unmapped(ctx, principal, reason.NoLocalName, err)
	}
	a, err = c.account(ctx, user)
	switch {
	case err == nil:
		return a, true, nil
	case errors.Is(err, conf.ErrNoUser):
		return c.unmapped(ctx, principal, reason.UnknownUser, err)
	case c.Service.UnmappedUser == conf.RefuseUser:
		return nobody, false, mech.Errorf(mech.Unauthorized, 0, reason.UserLookup, "%s: %v", principal, err)
	}
	c.note(slog.LevelWarn, reason.UserLookup, "the initiator is nobody for a while", "principal", principal, "error", err)
	return nobody, false, nil
}

// account asks the name service.
func (c *call) account(ctx context.Context, user string) (nss.Account, error) {
	accounts := c.p.accounts
	if callers, ok := c.p.users.(Accounts); ok && !c.Service.KernelNFSD {
		accounts = callers // whoever else asks in the kernel's way pays
	}
	if accounts == nil {
		return nss.Account{}, errors.New("there is no name service")
	}
	limits.EndTurn(ctx)
	a, err := accounts.Account(ctx, user)
	if err == nil && a.Name == "" {
		err = errors.New("the name service answered with no user") // and with uid 0, which it must never be by mistake
	}
	if err == nil && len(a.Groups) > kernelMaxCreds {
		err = fmt.Errorf("user %s is in %d groups, the kernel takes %d", a.Name, len(a.Groups), kernelMaxCreds)
	}
	return a, err
}

// unmapped is the account of a principal that is no user of this host.
func (c *call) unmapped(ctx context.Context, principal string, id reason.ID, why error) (a nss.Account, known bool, err error) {
	if e, ok := errors.AsType[*mech.Error](why); ok {
		why = errors.New(e.Text)
	}
	switch instead := c.Service.UnmappedUser; instead {
	case conf.RefuseUser:
		return nobody, false, mech.Errorf(mech.Unauthorized, 0, id, "%s: %v", principal, why)
	case conf.NobodyUser, "":
	default:
		a, err := c.account(ctx, instead)
		if err == nil {
			return a, true, nil
		}
		c.note(slog.LevelWarn, reason.UserLookup, "unmapped_user cannot be used: the initiator is nobody for a while", "principal", principal, "error", err)
		return nobody, false, nil
	}
	c.note(slog.LevelInfo, id, "the initiator is nobody", "principal", principal, "error", why)
	return nobody, true, nil
}
