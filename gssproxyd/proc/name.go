package proc

import (
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
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

// importName reads a gssx_name that a client sent: the display form where there is one, else the exported form. The
// composite form and attributes are never read back.
func (c *call) importName(n *xdr.Name) (krb5.Principal, error) {
	display, nameType := n.DisplayName, mech.OID(n.NameType)
	if len(display) == 0 {
		display, nameType = n.ExportedName, mech.NTExportName
	}
	if len(display) == 0 {
		return krb5.Principal{}, failure(ReasonBadArgument, "the name is empty")
	}
	return krb5.ImportName(display, nameType, c.svc.krb5, c.svc.p.users)
}
