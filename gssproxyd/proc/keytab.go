package proc

import (
	"errors"
	"fmt"
	"io/fs"

	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
)

// withKeytab adds to a refusal for want of a key, or of credentials that a key would get, what is wrong with the file of
// the keytab, if anything is: who is refused sees no log.
func withKeytab(err error, kt *keytab.Keytab) error {
	var e *mech.Error
	if kt == nil || !errors.As(err, &e) || e.Reason != reason.NoCredential && !keyMayBeNew(e.Reason) {
		return err
	}
	refused := *e
	switch wrong := kt.Err(); {
	case e.Reason == reason.NoKeytab:
		refused.Text = noKeys(kt)
	case kt.Ring().Len() == 0:
		refused.Text += "; " + noKeys(kt)
	case wrong == nil:
		return err
	default:
		refused.Text += "; keytab " + keytabName(kt) + " cannot be used as it now is, and its former keys are in use: " + wrong.Error()
	}
	return &refused
}

// noKeys says why a keytab has no keys; missing and empty ones are the same to libkrb5, whose words these are.
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
