package proc

import (
	"path/filepath"
	"strings"
	"testing"

	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// What no service does is refused, each with its own reason.
func TestNeverDone(t *testing.T) {
	d := newDirect(t, filepath.Join(t.TempDir(), "none"), "cred_store = keytab:/nonexistent")
	refused := func(want reason.ID, p xdr.Proc, arg, res xdr.Message, status *xdr.Status) {
		t.Helper()
		if err := d.call(p, arg, res, status); err == nil || !strings.Contains(err.Error(), "["+string(want)+"]") {
			t.Errorf("%v: %v, want %s", p, err, want)
		}
	}
	var exported xdr.ResExportCred
	refused(reason.CredsStay, xdr.ProcExportCred, new(xdr.ArgExportCred), &exported, &exported.Status)
	var imported xdr.ResImportCred
	refused(reason.CredsStay, xdr.ProcImportCred, new(xdr.ArgImportCred), &imported, &imported.Status)
	var stored xdr.ResStoreCred
	refused(reason.CredsStay, xdr.ProcStoreCred, new(xdr.ArgStoreCred), &stored, &stored.Status)
	var released xdr.ResReleaseHandle
	refused(reason.NotImplemented, xdr.ProcReleaseHandle, &xdr.ArgReleaseHandle{CredHandle: xdr.Handle{HandleType: xdr.HandleCred}}, &released, &released.Status)
	var name xdr.ResImportAndCanonName
	refused(reason.BadNameType, xdr.ProcImportAndCanonName, &xdr.ArgImportAndCanonName{InputName: xdr.Name{DisplayName: []byte("x"), NameType: []byte(mech.SPNEGO)}}, &name, &name.Status)
}
