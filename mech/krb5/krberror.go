package krb5

import (
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// Minor codes of the other tables, and the two errno values MIT's PAC and authorization data code
// uses.
const (
	minorBadLength = mech.MinorK5G + 6   // KG_BAD_LENGTH
	minorWrongMech = mech.MinorGGSS + 11 // G_WRONG_MECH
	minorBadHeader = mech.MinorGGSS + 12 // G_BAD_TOK_HEADER
	minorEINVAL    = 22
	minorERANGE    = 34
)

// malformed makes the error of a message that could not be read; nil if it could.
func malformed(what string, err error) *mech.Error {
	e, bad := err.(*der.Error)
	switch {
	case !bad:
		return nil
	case e.Fault == der.BadVersion:
		return mech.Errorf(mech.Failure, wire.MinorBadPVNO, reason.DefectiveToken, ": %s is not of Kerberos version 5", what)
	}
	return mech.Errorf(mech.Failure, e.Fault.Minor(), reason.DefectiveToken, ": malformed %s: %v", what, e)
}

// appendKRBError appends the KRB-ERROR for a failure, framed (RFC 4121 section 4.1). server is the
// ticket's.
func appendKRBError(dst []byte, oid mech.OID, minor uint32, now time.Time, server wire.Name) []byte {
	dst, frame := beginFrame(dst, oid, tokKRBError)
	return der.End(wire.AppendKRBError(dst, minor, now, server), frame)
}

// peerError returns the error that the KRB-ERROR b reports.
func peerError(b []byte, now time.Time) *mech.Error {
	if !wire.IsKRBError(b) {
		return mech.Errorf(mech.Failure, wire.MinorMsgType, reason.DefectiveToken, ": expected a KRB-ERROR")
	}
	var e wire.KRBError
	if err := malformed("KRB-ERROR", e.Parse(b)); err != nil {
		return err
	}
	if e.Version != 5 {
		return mech.Errorf(mech.Failure, wire.MinorBadPVNO, reason.DefectiveToken, ": KRB-ERROR is not of Kerberos version 5")
	}
	said := "answer of " + wire.Shown(e.Server.AppendString(nil))
	if len(e.Text) > 0 {
		said += ": " + wire.Shown(e.Text)
	}
	minor := mech.MinorKRB5 + uint32(e.Code)
	switch minor {
	case mech.MinorKRB5:
		return mech.Errorf(mech.Failure, 0, reason.PeerError, ": %s reports an error without a code", said)
	case wire.MinorSkew:
		way, by := "ahead of", int64(e.STime)-now.Unix()
		if by < 0 {
			way, by = "behind", -by
		}
		return mech.Errorf(mech.Failure, wire.MinorSkew, reason.ClockSkew, ": %s, whose clock is %ds %s this one", said, by, way)
	}
	return mech.Errorf(mech.Failure, minor, reason.PeerError, ": %s", said)
}
