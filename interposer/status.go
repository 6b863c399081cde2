package interposer

import (
	"bytes"
	"strings"

	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// failure returns nil for a status that is no failure, else a *mech.Error with the texts of the
// daemon. token is what the daemon would have us send to the peer nonetheless.
func failure(s *xdr.Status, token *[]byte) error {
	major := mech.Major(s.MajorStatus)
	if !major.Failed() {
		return nil
	}
	e := &mech.Error{Major: major, Minor: uint32(s.MinorStatus), Mech: mech.OID(s.Mech)}
	if token != nil {
		e.Token = some(*token)
	}
	e.Text, e.Reason = cutReason(trimNUL(s.MinorStatusString))
	if e.Text == "" && mech.MinorText(e.Minor) == "" {
		e.Text = trimNUL(s.MajorStatusString)
	}
	return e
}

// cutReason takes off the reason that our daemon puts before its texts, as in "[replay] Request is
// a replay". Its first builds put it behind them.
func cutReason(text string) (string, reason.ID) {
	if head, rest, ok := strings.Cut(text, "]"); ok {
		if id, ok := strings.CutPrefix(head, "["); ok && isReason(id) {
			return strings.TrimPrefix(rest, " "), reason.ID(id)
		}
	}
	if head, ok := strings.CutSuffix(text, "]"); ok {
		if i := strings.LastIndex(head, " ["); i >= 0 && isReason(head[i+2:]) {
			return head[:i], reason.ID(head[i+2:])
		}
	}
	return text, ""
}

// isReason reports whether s looks like the id of a reason.
func isReason(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// trimNUL returns a text of the protocol, in which the terminating NUL of C may be counted.
func trimNUL(b []byte) string { return string(bytes.TrimRight(b, "\x00")) }
