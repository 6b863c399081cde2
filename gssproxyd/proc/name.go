package proc

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"syscall"

	"gssproxyd/conf"
	"gssproxyd/keytab"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// Object identifiers as results carry them; shared, never written to.
var (
	oidKRB5          = []byte(mech.KRB5)
	oidKrb5Principal = []byte(mech.NTKrb5Principal)
	oidAnonymous     = []byte(mech.NTAnonymous)
)

// wellKnownAnonymous is the principal of RFC 8062 whose display type is GSS_C_NT_ANONYMOUS.
const wellKnownAnonymous = "WELLKNOWN/ANONYMOUS@WELLKNOWN:ANONYMOUS"

// mechName makes a gssx_name of a mechanism name: display form, type, and both exported forms (RFC 2743 section 3.2,
// RFC 6680 section 8). attrs is the attribute part of the composite form, empty for a name without attributes.
func (c *call) mechName(principal string, attrs []byte) xdr.Name {
	n := xdr.Name{
		DisplayName:           c.keep(func(b []byte) []byte { return append(b, principal...) }),
		NameType:              oidKrb5Principal,
		ExportedName:          c.keep(func(b []byte) []byte { return mech.AppendExportedName(b, mech.KRB5, principal) }),
		ExportedCompositeName: c.keep(func(b []byte) []byte { return mech.AppendCompositeName(b, mech.KRB5, principal, attrs) }),
	}
	if principal == wellKnownAnonymous {
		n.NameType = oidAnonymous
	}
	return n
}

// nameOf returns what a gssx_name that a client sent is imported from: its display form where there is one, else its
// exported form. The composite form and attributes are never read back.
func nameOf(n *xdr.Name) (name []byte, nameType mech.OID) {
	if len(n.DisplayName) > 0 {
		return n.DisplayName, mech.OID(n.NameType)
	}
	return n.ExportedName, mech.NTExportName
}

// importName makes a principal of a gssx_name that a client sent.
func (c *call) importName(n *xdr.Name) (krb5.Principal, error) {
	name, nameType := nameOf(n)
	if len(name) == 0 {
		return krb5.Principal{}, mech.Errorf(mech.Failure, uint32(syscall.EINVAL), reason.BadArgument, "the name is empty")
	}
	p, err := krb5.ImportName(name, nameType, c.svc.krb5, c.users())
	if (nameType == mech.NTExportName || nameType == mech.NTCompositeExport) && namesMech(name) {
		err = asBadName(err)
	}
	return p, err
}

// initiatorName makes a principal of a name to initiate with. One without a realm, as that of a host in no [domain_realm] is,
// is of the default realm, or where keys have it in another one only, of that: to accept it is the keys' as well.
func (c *call) initiatorName(n *xdr.Name, keys *keytab.Keytab) (krb5.Principal, error) {
	p, err := c.importName(n)
	if err != nil || p.Realm != "" {
		return p, err
	}
	p.Realm = c.svc.krb5.DefaultRealm
	if keys == nil || has(keys, p) {
		return p, nil
	}
	for _, k := range keys.Ring().All() {
		if own, err := krb5.ParsePrincipal(k.Principal, ""); err == nil && slices.Equal(own.Components, p.Components) {
			return own, nil
		}
	}
	return p, nil
}

// acceptorName makes a principal of a name to accept for.
func (c *call) acceptorName(n *xdr.Name) (krb5.Principal, error) {
	display, nameType := nameOf(n)
	return krb5.AcceptorName(display, nameType, c.svc.krb5, c.users())
}

// sameName reports whether two names are the same; one without a realm is that in any.
func sameName(a, b krb5.Principal) bool {
	return slices.Equal(a.Components, b.Components) && (a.Realm == b.Realm || a.Realm == "" || b.Realm == "")
}

// users is the user database as this call asks it: the caller pays, and waits no longer than the call lasts.
func (c *call) users() conf.Users { return (*callUsers)(c) }

// callUsers is a call as who asks the user database. A failure to ask is the refusal of the call; that there is no such
// user is left to who asked.
type callUsers call

func (c *callUsers) database() conf.Users {
	limits.EndTurn(c.ctx) // the answer may take seconds
	if each, ok := c.svc.p.users.(interface {
		For(context.Context) conf.Users
	}); ok {
		return each.For(c.ctx)
	}
	return c.svc.p.users
}

// UID implements conf.Users.
func (c *callUsers) UID(name string) (uint32, error) {
	uid, err := c.database().UID(name)
	return uid, asLookUp(err)
}

// Name implements conf.Users.
func (c *callUsers) Name(uid uint32) (string, error) {
	name, err := c.database().Name(uid)
	return name, asLookUp(err)
}

func asLookUp(err error) error {
	switch {
	case err == nil, errors.Is(err, conf.ErrNoUser):
		return err
	case limits.Refused(err):
		return overLimit(err)
	}
	return mech.Errorf(mech.Failure, uint32(syscall.EAGAIN), reason.UserLookup, "%v", err)
}

// overLimit is the refusal of what the caller would have to pay for and cannot now.
func overLimit(err error) *mech.Error {
	return mech.Errorf(mech.Failure, uint32(syscall.EAGAIN), reason.OverLimit, "%v", err)
}

// store returns the service's credential store for a target uid.
func (c *call) store(uid uint32) (*store, error) {
	st, err := c.svc.store(uid, c.users())
	var e *mech.Error
	switch {
	case err == nil:
		return st, nil
	case errors.As(err, &e):
		e.Major = mech.CredUnavail
		return nil, e
	}
	return nil, mech.Errorf(mech.CredUnavail, 0, reason.CredStore, "%v", err)
}

// namesMech tells whether an exported name is whole up to its mechanism. As with libgssapi one that is not is a defective
// token, and what is wrong behind it a bad name.
func namesMech(exported []byte) bool {
	return len(exported) >= 4 && exported[0] == 4 && len(exported) >= 4+int(binary.BigEndian.Uint16(exported[2:]))
}
