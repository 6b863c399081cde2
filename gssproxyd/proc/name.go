package proc

import (
	"encoding/binary"

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
		return krb5.Principal{}, failure(ReasonBadArgument, "the name is empty")
	}
	p, err := krb5.ImportName(name, nameType, c.svc.krb5, c.svc.p.users)
	if (nameType == mech.NTExportName || nameType == mech.NTCompositeExport) && namesMech(name) {
		err = asBadName(err)
	}
	return p, err
}

// namesMech tells whether an exported name is whole up to its mechanism. As with libgssapi one that is not is a defective
// token, and what is wrong behind it a bad name.
func namesMech(exported []byte) bool {
	return len(exported) >= 4 && exported[0] == 4 && len(exported) >= 4+int(binary.BigEndian.Uint16(exported[2:]))
}
