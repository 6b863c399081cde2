package rpc

import (
	"errors"
	"log/slog"
	"time"

	"gssproxyd/limits"
	"gssproxyd/mech/reason"
)

// fault is an error of the peer's for which its connection is closed.
type fault struct {
	why  reason.ID
	text string
}

func (f *fault) Error() string { return f.text }

// unknownUID is whom lines are charged to that nobody is known to have caused.
const unknownUID = 1<<32 - 1

// complain writes a line to the log that a caller has caused, as often as the limits permit. The attributes have the
// reason and its hint if err has one.
func (s *Server) complain(level slog.Level, uid uint32, subject string, err error, msg string, attrs ...any) {
	var why reason.ID
	if f := (*fault)(nil); errors.As(err, &f) {
		why, subject = f.why, string(f.why)
	}
	suppressed, ok := s.Limits.Lines.Take(uid, subject, limits.UsualRate, time.Now())
	if !ok {
		return
	}
	attrs = append(attrs, "uid", uid)
	if err != nil {
		attrs = append(attrs, "error", err)
	}
	if why != "" {
		attrs = append(attrs, "reason", why, "hint", why.Doc().Hint)
	}
	if suppressed > 0 {
		attrs = append(attrs, "suppressed", suppressed)
	}
	s.Log.Log(s.cut, level, msg, attrs...)
}
