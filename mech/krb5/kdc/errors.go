package kdc

import (
	"encoding/binary"
	"fmt"
	"strings"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/reason"
)

// Codes of RFC 4120 section 7.5.9 and of MIT's library, as offsets in its krb5 table.
const (
	codeClientExpired   = 1
	codeClientUnknown   = 6
	codeServerUnknown   = 7
	codeNeverValid      = 11
	codePolicy          = 12
	codeBadOption       = 13
	codeEtypeNoSupp     = 14
	codePadataNoSupp    = 16
	codeClientRevoked   = 18
	codeClientNotYet    = 21
	codeKeyExpired      = 23
	codePreauthFailed   = 24
	codePreauthRequired = 25
	codeTransited       = 28
	codeUnavailable     = 29
	codeBadIntegrity    = 31
	codeTicketExpired   = 32
	codeNotYetValid     = 33
	codeSkew            = 37
	codeBadAddress      = 38
	codeMsgType         = 40
	codeBadChecksum     = 50
	codeTransitedPath   = 51
	codeTooBig          = 52
	codeGeneric         = 60
	codeWrongRealm      = 68
	codePreauthExpired  = 90
	codeMorePreauth     = 91
	codeNoCredential    = 141
	codeNoTicket        = 143
	codeWrongPrincipal  = 144
	codeNoMatch         = 146
	codeReplyModified   = 147
	codeReplySkew       = 148
	codeProgEtype       = 150
	codeRealmUnknown    = 154
	codeUnreachable     = 156
	codeNoKey           = 181
	codePreauth         = 210
	codeHostRealm       = 217
	codeLoop            = 223
	codeNotPermitted    = 236
	codeConfigEtype     = 237
)

// code returns the code in the krb5 table, -1 for an error of another kind.
func code(err error) int {
	if e, ok := err.(*mech.Error); ok && e != nil && e.Minor-mech.MinorKRB5 < 256 {
		return int(e.Minor - mech.MinorKRB5)
	}
	return -1
}

// refusals are the reasons of what KDCs refuse, by code; any other code is ReasonKDCRefused.
var refusals = map[int32]reason.ID{
	codeClientUnknown: reason.ClientUnknown,
	codeServerUnknown: reason.ServerUnknown,
	codeClientExpired: reason.ClientRevoked,
	codeClientRevoked: reason.ClientRevoked,
	codeClientNotYet:  reason.ClientRevoked,
	codeKeyExpired:    reason.ClientRevoked,
	codeEtypeNoSupp:   reason.EnctypeNotPermitted,
	codePreauthFailed: reason.PreauthFailed,
	codeTransited:     reason.Transited,
	codeUnavailable:   reason.KDCUnreachable,
	codeTicketExpired: reason.TicketExpired,
	codeNotYetValid:   reason.TicketNotYetValid,
	codeSkew:          reason.ClockSkew,
	codeBadAddress:    reason.BadAddress,
	codeTransitedPath: reason.Transited,
}

// refused makes the error of a KRB-ERROR. client and server are those of the request; for an unknown server the
// KDC's idea of the name counts, since it may have been rewritten. with is what else was used, such as whose keys; it may
// be empty.
func (k *krbError) refused(realm string, client, server krb5.Principal, with ...string) *mech.Error {
	why, ok := refusals[k.code]
	if !ok {
		why = reason.KDCRefused
	}
	c := uint8(codeGeneric)
	if k.code > 0 && k.code < 128 {
		c = uint8(k.code)
	}
	var e *mech.Error
	about := []string{"client " + shown(client.String()), "target " + shown(server.String())}
	text := shown(k.text)
	switch {
	case k.code == codeClientUnknown:
		e = mech.Errorf(mech.Failure, mech.KRB5Minor(c), why, "Client '%s' not found in Kerberos database", shown(client.String()))
		about = nil // it is not known what for
	case k.code == codeServerUnknown:
		if len(k.server.Components) > 0 {
			server = k.server
		}
		e = mech.Errorf(mech.Failure, mech.KRB5Minor(c), why, "Server %s not found in Kerberos database", shown(server.String()))
		about = about[:1]
	case k.code == codeGeneric && text != "":
		e = mech.Errorf(mech.Failure, mech.KRB5Minor(c), why, "KDC returned error string: %s", text)
	case int32(c) != k.code:
		e = mech.Errorf(mech.Failure, mech.KRB5Minor(c), why, "the KDC of realm '%s' answers with the unknown error code %d", shown(realm), k.code)
	case text != "":
		e = mech.Errorf(mech.Failure, mech.KRB5Minor(c), why, ": the KDC of realm '%s' says %s", shown(realm), text)
	default:
		e = mech.Errorf(mech.Failure, mech.KRB5Minor(c), why, ": says the KDC of realm '%s'", shown(realm))
	}
	if status, ok := ntStatus(k.data); ok {
		e.Text += "; " + status.String()
	}
	if about = append(about, with...); len(about) > 0 {
		e.Text += " (" + strings.Join(about, ", ") + ")"
	}
	return e
}

// status is an NTSTATUS ([MS-ERREF] section 2.3.1), by which Active Directory says more than Kerberos has codes for.
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

// errDataExtended is KERB_ERR_TYPE_EXTENDED, the data-type of KERB-ERROR-DATA ([MS-KILE] section 2.2.2) whose value is a
// KERB-EXT-ERROR: status, reserved and flags, each of four octets.
const errDataExtended = 3

// ntStatus finds the status in the e-data of a KRB-ERROR. Windows sends a KERB-ERROR-DATA, Samba a list of one: it has the
// shape of a PA-DATA. What else has that number (PA-PW-SALT) is a salt, and no error status.
func ntStatus(data []byte) (status, bool) {
	list := parsePAData(data)
	if list == nil {
		list = parsePAData(sequence(data))
	}
	value, _ := find(list, errDataExtended)
	if len(value) != 12 || binary.LittleEndian.Uint32(value[4:]) != 0 {
		return 0, false
	}
	s := status(binary.LittleEndian.Uint32(value))
	return s, s>>30 == 3
}

// shown makes s, which somebody else chose, fit for messages: printable and of bounded length.
func shown(s string) string {
	const limit = 200
	t := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' || 0x80 <= r && r < 0xa0 {
			return '?'
		}
		return r
	}, strings.TrimRight(s[:min(len(s), limit)], "\x00"))
	if len(s) > limit {
		t += "..."
	}
	return t
}
