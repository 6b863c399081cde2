package krb5

import (
	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// minorKeytabNoMatch is KG_KEYTAB_NOMATCH.
const minorKeytabNoMatch = mech.MinorK5G + 1

// Check tells whether there are keys to accept with, as gss_acquire_cred does for an acceptor: any
// at all, or with a Name those of the principals it stands for. keys are the keytab's in the order
// of the file. It returns the principal to show for the credential: the Name, or without one the
// keytab's first. The error's status is GSS_S_NO_CRED.
func (a *Acceptor) Check(keys []etype.ServiceKey) (principal string, err error) {
	if a.Name == nil {
		if len(keys) == 0 {
			return "", mech.Errorf(mech.NoCred, wire.MinorNotInKeytab, reason.NoKeytab, "Keytab %s is nonexistent or empty", a.Keys.Name())
		}
		return keys[0].Principal, nil
	}
	name := *a.Name
	if name.Realm == "" && a.Conf != nil && name.Type != NTSrvHst {
		name.Realm = a.Conf.DefaultRealm
	}
	own := name.String()
	for i := range keys {
		if keys[i].Principal == own || name.Type == NTSrvHst && a.matches(keys[i].Principal) {
			return own, nil
		}
	}
	return "", mech.Errorf(mech.NoCred, minorKeytabNoMatch, reason.NoKey, "No key table entry found matching %s%s", wire.Shown(own), a.keytab())
}
