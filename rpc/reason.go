package rpc

import (
	"errors"
	"log/slog"
	"time"

	"gssproxyd/limits"
)

// Reason is why a connection was refused, or closed by the server: a stable word for the log, since whoever connected
// cannot be told. docs/reasons.md has a section on each.
type Reason string

// The reasons.
const (
	ReasonConnections   Reason = "too-many-connections"
	ReasonBuffers       Reason = "too-much-buffered"
	ReasonLargeCalls    Reason = "too-many-large-calls"
	ReasonCallerUnknown Reason = "caller-unknown"
	ReasonBadRecord     Reason = "bad-record"
	ReasonRecordTimeout Reason = "record-timeout"
	ReasonReplyUnread   Reason = "reply-unread"
)

// ReasonDoc describes a Reason for people.
type ReasonDoc struct {
	ID   Reason
	Text string // what happened
	Hint string // what to do about it
}

// Reasons describes every Reason.
var Reasons = []ReasonDoc{
	{ReasonConnections, "the caller's uid has as many connections as it may have", "look at what the uid runs; a program that leaks connections holds them until it ends. LimitNOFILE of the daemon's unit decides how many there are for all"},
	{ReasonBuffers, "unfinished records and unread replies of the caller's uid hold as much memory as they may", "look at what the uid runs: it sends large messages and does not finish them, or does not read the answers"},
	{ReasonLargeCalls, "as many calls with large arguments of the caller's uid wait as may", "look at what the uid runs; messages are better wrapped by the program itself, with the exported context"},
	{ReasonCallerUnknown, "the kernel did not say who connected", "look at the error; the daemon may be out of open files (LimitNOFILE) or memory"},
	{ReasonBadRecord, "what was received is no record with an RPC call in it", "look at what the process with this pid is: it is no client of this protocol, or a broken one"},
	{ReasonRecordTimeout, "a record had begun and was not complete in time", "look at what the process with this pid is doing: it may be stopped, or holds connections on purpose"},
	{ReasonReplyUnread, "the answer to a call was not read in time", "look at what the process with this pid is doing: it may be stopped, or holds connections on purpose"},
}

// fault is an error of the peer's for which its connection is closed.
type fault struct {
	reason Reason
	text   string
}

func (f *fault) Error() string { return f.text }

// unknownUID is whom lines are charged to that nobody is known to have caused.
const unknownUID = 1<<32 - 1

// complain writes a line to the log that a caller has caused, as often as the limits permit. The attributes have the
// reason and its hint if err has one.
func (s *Server) complain(level slog.Level, uid uint32, subject string, err error, msg string, attrs ...any) {
	var reason Reason
	if f := (*fault)(nil); errors.As(err, &f) {
		reason, subject = f.reason, string(f.reason)
	}
	suppressed, ok := s.Limits.Lines.Take(uid, subject, limits.UsualRate, time.Now())
	if !ok {
		return
	}
	attrs = append(attrs, "uid", uid)
	if err != nil {
		attrs = append(attrs, "error", err)
	}
	for _, r := range Reasons {
		if r.ID == reason {
			attrs = append(attrs, "reason", reason, "hint", r.Hint)
		}
	}
	if suppressed > 0 {
		attrs = append(attrs, "suppressed", suppressed)
	}
	s.Log.Log(s.cut, level, msg, attrs...)
}
