package kdc

import (
	"fmt"
	"strings"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
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
	codeFASTRequired    = 252
)

// fail makes an error of a code of the krb5 table: MIT's words for it, a colon, and what else is to be said.
func fail(code uint8, reason mech.Reason, format string, args ...any) *mech.Error {
	e := worded(code, reason, format, args...)
	e.Text = strings.TrimSuffix(mech.MinorText(e.Minor)+": "+e.Text, ": ")
	return e
}

// worded is fail with words that stand alone, where MIT has its own for the case.
func worded(code uint8, reason mech.Reason, format string, args ...any) *mech.Error {
	return &mech.Error{Major: mech.Failure, Minor: mech.KRB5Minor(code), Mech: mech.KRB5, Text: fmt.Sprintf(format, args...), Reason: reason}
}

// modified says that a reply is not an answer to the request.
func modified(format string, args ...any) *mech.Error {
	return fail(codeReplyModified, mech.ReasonKDCReply, format, args...)
}

// code returns the code in the krb5 table, -1 for an error of another kind.
func code(err error) int {
	if e, ok := err.(*mech.Error); ok && e != nil && e.Minor-mech.MinorKRB5 < 256 {
		return int(e.Minor - mech.MinorKRB5)
	}
	return -1
}

// refusals are the reasons of what KDCs refuse, by code; any other code is ReasonKDCRefused.
var refusals = map[int32]mech.Reason{
	codeClientUnknown: mech.ReasonClientUnknown,
	codeServerUnknown: mech.ReasonServerUnknown,
	codeEtypeNoSupp:   mech.ReasonEnctypeNotPermitted,
	codePreauthFailed: mech.ReasonPreauthFailed,
	codeTransited:     mech.ReasonTransited,
	codeUnavailable:   mech.ReasonKDCUnreachable,
	codeTicketExpired: mech.ReasonTicketExpired,
	codeNotYetValid:   mech.ReasonTicketNotYetValid,
	codeSkew:          mech.ReasonClockSkew,
	codeBadAddress:    mech.ReasonBadAddress,
	codeTransitedPath: mech.ReasonTransited,
}

// refused makes the error of a KRB-ERROR. client and server are those of the request; for an unknown server the
// KDC's idea of the name counts, since it may have been rewritten.
func (k *krbError) refused(realm string, client, server krb5.Principal) *mech.Error {
	reason, ok := refusals[k.code]
	if !ok {
		reason = mech.ReasonKDCRefused
	}
	c := uint8(codeGeneric)
	if k.code > 0 && k.code < 128 {
		c = uint8(k.code)
	}
	text := shown(k.text)
	switch {
	case k.code == codeClientUnknown:
		return worded(c, reason, "Client '%s' not found in Kerberos database", shown(client.String()))
	case k.code == codeServerUnknown:
		if len(k.server.Components) > 0 {
			server = k.server
		}
		return worded(c, reason, "Server %s not found in Kerberos database", shown(server.String()))
	case k.code == codeGeneric && text != "":
		return worded(c, reason, "KDC returned error string: %s", text)
	case int32(c) != k.code:
		return worded(c, reason, "the KDC of realm '%s' answers with the unknown error code %d", shown(realm), k.code)
	case text != "":
		return fail(c, reason, "the KDC of realm '%s' says %s", shown(realm), text)
	}
	return fail(c, reason, "says the KDC of realm '%s'", shown(realm))
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
