package creds

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"gssproxyd/keytab"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/reason"
)

// overLimit is the refusal of what the caller would have to pay for and cannot now.
func overLimit(err error) *mech.Error {
	return mech.Errorf(mech.Failure, uint32(syscall.EAGAIN), reason.OverLimit, "%v", err)
}

// cacheError makes a credential cache's error the refusal of a call.
func cacheError(err error) error {
	if limits.Refused(err) {
		return overLimit(err)
	}
	return mech.Errorf(mech.NoCred, ccache.Minor(err), reason.NoCredential, "%v", err)
}

// badCredential refuses a handle whose credential is not there any more.
func badCredential(err error) error {
	return mech.Errorf(mech.DefectiveCredential, 0, reason.BadCredential, "the credential of the handle cannot be used: %v", err)
}

// AsBadName makes whatever is wrong with a name GSS_S_BAD_NAME, where libgssapi does so before the
// mechanism is asked: for exported names and in gss_acquire_cred.
func AsBadName(err error) error {
	if e, ok := errors.AsType[*mech.Error](err); ok {
		e.Major, e.Mech = mech.BadName, mech.KRB5
	}
	return err
}

// asNoCred makes a failure to get tickets GSS_S_NO_CRED, as gss_acquire_cred has it.
func asNoCred(err error) error {
	if e, ok := errors.AsType[*mech.Error](err); ok && e.Major == mech.Failure {
		e.Major = mech.NoCred
	}
	return err
}

// keyMayBeNew reports whether a refusal could be due to a ring that is older than the file.
func keyMayBeNew(r reason.ID) bool {
	switch r {
	case reason.NoKeytab, reason.NoKey, reason.KVNOMismatch, reason.BadIntegrity:
		return true
	}
	return false
}

// withKeytab adds to a refusal for want of a key, or of credentials that a key would get, what is
// wrong with the file of the keytab, if anything is: who is refused sees no log.
func withKeytab(err error, kt *keytab.Keytab) error {
	e, ok := errors.AsType[*mech.Error](err)
	if kt == nil || !ok || e.Reason != reason.NoCredential && !keyMayBeNew(e.Reason) {
		return err
	}
	refused := *e
	switch wrong := kt.Err(); {
	case e.Reason == reason.NoKeytab:
		refused.Text = noKeys(kt)
	case kt.Ring().Len() == 0:
		if e.Reason != reason.NoCredential {
			refused.Reason = reason.NoKeytab // what is to be done is about the file, and not about one key
		}
		refused.Text += "; " + noKeys(kt)
	case wrong == nil:
		return err
	default:
		refused.Text += "; keytab " + keytabName(kt) + " cannot be used as it now is, and its former keys are in use: " + wrong.Error()
	}
	return &refused
}

// noKeys says why a keytab has no keys; missing and empty ones are the same to libkrb5, whose words
// these are.
func noKeys(kt *keytab.Keytab) string {
	ring, wrong := kt.Ring(), kt.Err()
	switch skipped := ring.Skipped(); {
	case errors.Is(wrong, fs.ErrNotExist):
		return "Keytab " + ring.Name() + " is nonexistent or empty: there is no such file"
	case wrong != nil:
		return fmt.Sprintf("Keytab %s cannot be used: %v", ring.Name(), wrong)
	case len(skipped) > 0:
		return fmt.Sprintf("Keytab %s has no usable keys: of its %d entries, the first is skipped because %s", ring.Name(), len(skipped), skipped[0].Reason)
	}
	return "Keytab " + ring.Name() + " is nonexistent or empty: the file has no entries"
}

func keytabName(k *keytab.Keytab) string {
	if k == nil {
		return "no keytab"
	}
	return k.Ring().Name()
}

// has reports whether a keytab has keys of a principal.
func has(k *keytab.Keytab, p krb5.Principal) bool {
	var name [128]byte
	return hasName(k, p.AppendString(name[:0]))
}

// hasName is has for a principal as text, with its realm.
func hasName(k *keytab.Keytab, principal []byte) bool {
	return k != nil && len(k.Ring().ByPrincipal(principal)) > 0
}
