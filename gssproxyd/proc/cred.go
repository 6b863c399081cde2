package proc

import (
	"cmp"
	"log/slog"
	"slices"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/keytab/seal"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// usageOf is a usage as a client asks for it. Numbers outside the enumeration mean BOTH, as in the
// C daemon.
func usageOf(u xdr.CredUsage) conf.Usage {
	if u == xdr.CredInitiate || u == xdr.CredAccept { // which GSS-API has the same numbers for
		return conf.Usage(u)
	}
	return conf.UsageBoth
}

// input opens the handle of the gssx_cred that came with a call. One that does not open counts as
// none (see [creds.Input]), unless the call has the option refuse_stale_handle. So does an empty one,
// and a gssx_cred that has neither a handle nor a name is none at all.
func (c *call) input(x *xdr.Opt[xdr.Cred], options []xdr.Option) (creds.Input, error) {
	strict, err := refusesStale(options)
	if err != nil || !x.Set {
		return creds.Input{}, err
	}
	if h := c.Open(x.V.CredHandleReference); h != nil {
		return creds.Input{Handle: h, Strict: strict}, nil
	}
	if strict {
		return creds.Input{}, errStale
	}
	in := lost(&x.V)
	if len(x.V.CredHandleReference) == 0 && (in.Initiates == nil || len(in.Initiates.Text) == 0) {
		return creds.Input{}, nil
	}
	c.note(slog.LevelDebug, reason.BadCredential, "a credential handle does not open: it counts as none")
	return in, nil
}

// errStale refuses a handle that does not open. Why it does not is nobody's business.
var errStale = mech.Errorf(mech.DefectiveCredential, 0, reason.BadCredential,
	"the credential handle does not open: it is damaged, was made for another service or user, or by a daemon whose sealing key is gone")

// lost is what a gssx_cred whose handle does not open says in clear. The name to accept for counts
// if the handle is one of ours that says a name was asked for.
func lost(x *xdr.Cred) creds.Input {
	in := creds.Input{Lost: true}
	desired := nameOf(&x.DesiredName)
	if seal.KindOf(x.CredHandleReference) == seal.KindNamedCred {
		in.Accepts = &desired
	}
	name, initiates := desired, len(x.Elements) == 0
	for i := range x.Elements {
		if e := &x.Elements[i]; e.CredUsage != xdr.CredAccept {
			initiates = true
			if len(e.MN.DisplayName) > 0 {
				name = nameOf(&e.MN)
			}
		}
	}
	if initiates {
		in.Initiates = &name
	}
	return in
}

// wireCred makes the gssx_cred of a handle.
func (c *call) wireCred(h *creds.Handle) xdr.Cred {
	mn := c.mechName(h.Name, nil)
	element := xdr.CredElement{MN: mn, Mech: oidKRB5, CredUsage: cmp.Or(xdr.CredUsage(h.Usage), xdr.CredBoth)}
	if h.Usage != conf.UsageAccept {
		element.InitiatorTimeRec = c.left(h.Expires)
	}
	if h.Usage != conf.UsageInitiate {
		element.AcceptorTimeRec = indefinite
	}
	return xdr.Cred{DesiredName: mn, Elements: []xdr.CredElement{element}, CredHandleReference: c.keep(func(b []byte) []byte { return c.Seal(b, h) })}
}

// left is how long it is, in seconds, until tickets expire.
func (c *call) left(expires uint32) uint64 { return uint64(max(0, int64(expires)-c.Now.Unix())) }

// still returns the elements of a credential that serves on with what its tickets have left, unless
// nobody has looked at them.
func (c *call) still(elements []xdr.CredElement, expires uint32) []xdr.CredElement {
	if expires == 0 {
		return elements
	}
	elements = slices.Clone(elements)
	for i := range elements {
		if e := &elements[i]; e.CredUsage != xdr.CredAccept {
			e.InitiatorTimeRec = c.left(expires)
		}
	}
	return elements
}

// indefinite is GSS_C_INDEFINITE: keys in a keytab do not expire.
const indefinite = 0xffffffff
