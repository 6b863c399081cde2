package creds

import (
	"context"
	"log/slog"
	"os"
	"time"

	"gssproxyd/limits"
)

// Log is a log within limits. A caller can make itself be refused as often as it likes, so every
// line that a caller causes goes through the limits of its uid.
type Log struct {
	*slog.Logger
	Lines *limits.Meter
	Now   func() time.Time
	Trace func(format string, args ...any) // takes the steps of calls; nil: nothing is traced
}

// Tracef is Trace where little happens: even if nothing is traced, its arguments cost something.
func (l *Log) Tracef(format string, args ...any) {
	if l.Trace != nil {
		l.Trace(format, args...)
	}
}

// Line writes a line that uid has caused if the limits permit another one on the subject.
func (l *Log) Line(level slog.Level, uid uint32, subject string, r limits.Rate, msg string, attrs func() []any) {
	l.Lines.Log(l.Logger, level, uid, subject, r, l.Now(), msg, attrs)
}

// metered is a handler for those who do not know on whose behalf they act: their lines are charged
// to the daemon itself.
type metered struct {
	slog.Handler
	lines *limits.Meter
}

// WithAttrs and WithGroup return handlers with the same limits.
func (m metered) WithAttrs(a []slog.Attr) slog.Handler {
	return metered{m.Handler.WithAttrs(a), m.lines}
}

// WithGroup is as WithAttrs.
func (m metered) WithGroup(name string) slog.Handler {
	return metered{m.Handler.WithGroup(name), m.lines}
}

// Handle writes a record if the limits permit it.
func (m metered) Handle(ctx context.Context, r slog.Record) error {
	suppressed, ok := m.lines.Take(uint32(os.Geteuid()), r.Message, limits.UsualRate, r.Time)
	if !ok {
		return nil
	}
	if suppressed > 0 {
		r.AddAttrs(slog.Int("suppressed", suppressed))
	}
	return m.Handler.Handle(ctx, r)
}
