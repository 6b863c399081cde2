package interposer

import (
	"bytes"
	"strings"

	"gssproxyd/mech"
	"gssproxyd/xdr"
)

// failure returns nil for a status that is no failure, else a *mech.Error with
// the texts of the daemon. token is what the daemon would have us send to the
// peer nonetheless.
func failure(s *xdr.Status, token []byte) error {
	major := mech.Major(s.MajorStatus)
	if !major.Failed() {
		return nil
	}
	e := &mech.Error{Major: major, Minor: uint32(s.MinorStatus), Mech: mech.OID(s.Mech), Token: token}
	e.Text, e.Reason = cutReason(trimNUL(s.MinorStatusString))
	if e.Text == "" && mech.MinorText(e.Minor) == "" {
		e.Text = trimNUL(s.MajorStatusString)
	}
	return e
}

// cutReason takes off the reason that our daemon puts behind its texts, as in
// "Request is a replay [replay]".
func cutReason(text string) (string, mech.Reason) {
	head, ok := strings.CutSuffix(text, "]")
	i := strings.LastIndex(head, " [")
	if !ok || i < 0 {
		return text, ""
	}
	id := head[i+2:]
	for _, c := range id {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return text, ""
		}
	}
	return head[:i], mech.Reason(id)
}

// trimNUL returns a text of the protocol, in which the terminating NUL of C may
// be counted.
func trimNUL(b []byte) string { return string(bytes.TrimRight(b, "\x00")) }
