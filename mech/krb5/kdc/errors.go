package kdc

import (
	"encoding/binary"
	"fmt"
	"strings"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// minor returns the minor status of an error, 0 for none or one of another kind.
func minor(err error) uint32 {
	if e, ok := err.(*mech.Error); ok && e != nil {
		return e.Minor
	}
	return 0
}

// refusals are the reasons of what KDCs refuse; any other one is reason.KDCRefused.
var refusals = map[uint32]reason.ID{
	wire.MinorClientUnknown: reason.ClientUnknown,
	wire.MinorServerUnknown: reason.ServerUnknown,
	wire.MinorClientExpired: reason.ClientRevoked,
	wire.MinorClientRevoked: reason.ClientRevoked,
	wire.MinorClientNotYet:  reason.ClientRevoked,
	wire.MinorKeyExpired:    reason.ClientRevoked,
	wire.MinorEtypeNoSupp:   reason.EnctypeNotPermitted,
	wire.MinorPreauthFailed: reason.PreauthFailed,
	wire.MinorKDCTransited:  reason.Transited,
	wire.MinorUnavailable:   reason.KDCUnreachable,
	wire.MinorExpired:       reason.TicketExpired,
	wire.MinorNotYetValid:   reason.TicketNotYetValid,
	wire.MinorSkew:          reason.ClockSkew,
	wire.MinorBadAddress:    reason.BadAddress,
	wire.MinorTransited:     reason.Transited,
}

// refused makes the error of a KRB-ERROR. client and server are those of the request; for an
// unknown server the KDC's idea of the name counts, since it may have been rewritten. with is what
// else was used, such as whose keys; it may be empty.
func refused(k *wire.KRBError, realm string, client, server krb5.Principal, with ...string) *mech.Error {
	c := k.Minor()
	why, ok := refusals[c]
	if !ok {
		why = reason.KDCRefused
	}
	var e *mech.Error
	about := []string{"client " + client.Shown(), "target " + server.Shown()}
	text := wire.Shown(strings.TrimRight(string(k.Text), "\x00"))
	switch {
	case c == wire.MinorClientUnknown:
		e = mech.Errorf(mech.Failure, c, why, "Client '%s' not found in Kerberos database", client.Shown())
		about = nil // it is not known what for
	case c == wire.MinorServerUnknown:
		if len(k.Server.Components) > 0 {
			server = k.Server.Principal()
		}
		e = mech.Errorf(mech.Failure, c, why, "Server %s not found in Kerberos database", server.Shown())
		about = about[:1]
	case mech.MinorKRB5+uint32(k.Code) != c:
		e = mech.Errorf(mech.Failure, c, why, "the KDC of realm '%s' answers with the unknown error code %d", wire.Shown(realm), k.Code)
	case c == wire.MinorGeneric && text != "":
		e = mech.Errorf(mech.Failure, c, why, "KDC returned error string: %s", text)
	case text != "":
		e = mech.Errorf(mech.Failure, c, why, ": the KDC of realm '%s' says %s", wire.Shown(realm), text)
	default:
		e = mech.Errorf(mech.Failure, c, why, ": says the KDC of realm '%s'", wire.Shown(realm))
	}
	if status, ok := ntStatus(k.Data); ok {
		e.Text += "; " + status.String()
	}
	if about = append(about, with...); len(about) > 0 {
		e.Text += " (" + strings.Join(about, ", ") + ")"
	}
	return e
}

// status is an NTSTATUS ([MS-ERREF] section 2.3.1), by which Active Directory says more than
// Kerberos has codes for.
type status uint32

// statuses are those that say something of an account, or of what it may do.
var statuses = map[status]string{
	0xC0000022: "access is denied",
	0xC0000064: "there is no such account",
	0xC000006A: "the key or password is wrong",
	0xC000006D: "the logon is refused",
	0xC000006E: "the account is restricted, as one that must not be delegated is",
	0xC000006F: "outside the account's logon hours",
	0xC0000070: "the account may not log on from this workstation",
	0xC0000071: "the account's password has expired",
	0xC0000072: "the account is disabled",
	0xC00000BB: "it is not supported",
	0xC000015B: "the account does not have the logon type that this needs",
	0xC0000193: "the account has expired",
	0xC0000224: "the account's password must be changed first",
	0xC0000234: "the account is locked out",
	0xC0000413: "the account may not authenticate to this computer, across a trust",
}

func (s status) String() string {
	if what, ok := statuses[s]; ok {
		return fmt.Sprintf("%s (NTSTATUS %#x)", what, uint32(s))
	}
	return fmt.Sprintf("NTSTATUS %#x", uint32(s))
}

// errDataExtended is KERB_ERR_TYPE_EXTENDED, the data-type of KERB-ERROR-DATA ([MS-KILE] section
// 2.2.2) whose value is a KERB-EXT-ERROR: status, reserved and flags, each of four octets.
const errDataExtended = 3

// ntStatus finds the status in the e-data of a KRB-ERROR. Windows sends a KERB-ERROR-DATA, Samba a
// list of one: it has the shape of a PA-DATA. What else has that number (PA-PW-SALT) is a salt, and
// no error status.
func ntStatus(data []byte) (status, bool) {
	list := wire.ParsePAData(data)
	if list == nil {
		list = wire.ParsePAData(der.AppendValue(nil, der.Sequence, data))
	}
	value, _ := wire.FindPAData(list, errDataExtended)
	if len(value) != 12 || binary.LittleEndian.Uint32(value[4:]) != 0 {
		return 0, false
	}
	s := status(binary.LittleEndian.Uint32(value))
	return s, s>>30 == 3
}
