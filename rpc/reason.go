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

// complain writes a line to the log that a caller has caused, as often as the limits permit. The
// attributes have the reason and its hint if err has one.
func (s *Server) complain(level slog.Level, uid uint32, subject string, err error, msg string, attrs ...any) {
	f, isFault := errors.AsType[*fault](err)
	if isFault {
		subject = string(f.why)
	}
	s.Limits.Lines.Log(s.Log, level, uid, subject, limits.UsualRate, time.Now(), msg, func() []any {
		attrs = append(attrs, "uid", uid)
		if err != nil {
			attrs = append(attrs, "error", err)
		}
		if isFault {
			attrs = append(attrs, "reason", f.why, "hint", f.why.Doc().Hint)
		}
		return attrs
	})
}
