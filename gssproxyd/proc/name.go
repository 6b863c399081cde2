package proc

import (
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/mech"
	"gssproxyd/xdr"
)

// nameOf returns what a gssx_name that a client sent is imported from: its display form where there
// is one, else its exported form. The composite form and attributes are never read back. An empty
// uid stays one, to be refused as that.
func nameOf(n *xdr.Name) creds.Name {
	name := creds.Name{Text: n.DisplayName, Type: mech.OID(n.NameType)}
	if len(n.DisplayName) > 0 || len(n.ExportedName) == 0 && name.UID() {
		return name
	}
	return creds.Name{Text: n.ExportedName, Type: mech.NTExportName}
}
