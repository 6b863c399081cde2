package proc

import (
	"bytes"
	"encoding/binary"
	"syscall"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// Options of calls and replies (gssx_option). Names, and values that are strings, end in a NUL that
// counts.
var (
	optExportedContextType = []byte("exported_context_type\x00") // call_ctx: format of exported contexts
	valLucid               = []byte("linux_lucid_v1\x00")
	optExportedCredsType   = []byte("exported_creds_type\x00") // call_ctx: initiator's uid and groups wanted
	valLinuxCreds          = []byte("linux_creds_v1\x00")
	optAcquireType         = []byte("acquire_type\x00") // ACQUIRE_CRED
	valImpersonateName     = []byte("impersonate_name\x00")
	optLocalname           = []byte("localname\x00")           // IMPORT_AND_CANON_NAME
	optSyncModifiedCreds   = []byte("sync_modified_creds\x00") // INIT_SEC_CONTEXT
	valDefault             = []byte("default\x00")
	optSyncCreds           = []byte("sync_creds\x00")          // its reply: a gssx_cred
	optRefuseStale         = []byte("refuse_stale_handle\x00") // calls with a credential handle; ours alone
	valYes                 = []byte("yes\x00")

	optService = []byte("service\x00") // reply to GET_CALL_CONTEXT: name of the service

	// Of an element of a credential that a client sends.
	optAllowedEnctypes = []byte("krb5_set_allowed_enctype_values\x00") // int32 each, in native byte order
	optNoCIFlags       = []byte("krb5_set_no_ci_flags\x00")
)

// refusesStale reads the option with which a client says that a credential handle is to open or the
// call to be refused: what it names is a user, and nothing else will do.
func refusesStale(options []xdr.Option) (bool, error) {
	v, ok := option(options, optRefuseStale)
	if ok && !bytes.Equal(v, valYes) {
		return false, badOption(optRefuseStale, v, valYes)
	}
	return ok, nil
}

// allowedEnctypes returns the encryption types that a client has set for the credential it sends; nil
// if it has set none.
func allowedEnctypes(cred *xdr.Opt[xdr.Cred]) (list []etype.ID) {
	for i := range cred.V.Elements {
		v, _ := option(cred.V.Elements[i].Options, optAllowedEnctypes)
		for ; len(v) >= 4; v = v[4:] {
			list = append(list, etype.ID(int32(binary.NativeEndian.Uint32(v))))
		}
	}
	return list
}

// badOption refuses an option with a value that is not the one known.
func badOption(name, value, known []byte) error {
	return mech.Errorf(mech.Failure, uint32(syscall.EINVAL), reason.BadOption, "%s has the value %.32q, known is %q", bytes.TrimRight(name, "\x00"), value, known).Of("")
}

// option returns the value of the first option with this name.
func option(options []xdr.Option, name []byte) ([]byte, bool) {
	for i := range options {
		if bytes.Equal(options[i].Option, name) {
			return options[i].Value, true
		}
	}
	return nil, false
}
