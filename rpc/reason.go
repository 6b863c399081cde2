package rpc

import (
	"errors"
	"log/slog"
	"time"

	"gssproxyd/limits"
	"gssproxyd/mech/reason"
)

// Fault is something the peer does, or has too much of, for which its connection is refused or closed.
type Fault struct {
	Reason reason.ID // one of [reason.Connection]
	Text   string
}

func (f *Fault) Error() string { return f.Text }

// Is reports whether target is the reason of f.
func (f *Fault) Is(target error) bool {
	id, ok := target.(reason.ID)
	return ok && id == f.Reason
}

// unknownUID is whom lines are charged to that nobody is known to have caused.
const unknownUID = 1<<32 - 1

// complain writes a line to the log that a caller has caused, as often as the limits permit. The
// attributes have the reason and its hint if err has one.
func (s *Server) complain(level slog.Level, uid uint32, subject string, err error, msg string, attrs ...any) {
	f, isFault := errors.AsType[*Fault](err)
	if isFault {
		subject = string(f.Reason)
	}
	s.Limits.Lines.Log(s.Log, level, uid, subject, limits.UsualRate, time.Now(), msg, func() []any {
		attrs = append(attrs, "uid", uid)
		if err != nil {
			attrs = append(attrs, "error", err)
		}
		if isFault {
			attrs = append(attrs, "reason", f.Reason, "hint", f.Reason.Doc().Hint)
		}
		return attrs
	})
}
