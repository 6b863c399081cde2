package proc

import (
	"context"
	"log/slog"
	"os"
	"time"

	"gssproxyd/limits"
	"gssproxyd/mech/reason"
)

// A caller can make itself be refused as often as it likes, so every line of the log that a caller causes goes through
// the limits of its uid.

// kernelRate is of lines about the kernel's calls. It asks eighteen times, over several seconds, for one mount that fails.
var kernelRate = limits.Rate{Burst: 5, Every: 5 * time.Second}

// logRefusal writes a refusal to the log, within the limits of lines for its caller, service and reason.
func (p *Procedures) logRefusal(c *call, id reason.ID, msg string, attrs ...any) {
	p.note(slog.LevelWarn, c, id, msg, attrs...)
}

// note writes a line about a reason to the log, within the same limits.
func (p *Procedures) note(level slog.Level, c *call, id reason.ID, msg string, attrs ...any) {
	r := limits.UsualRate
	if c.svc.KernelNFSD {
		r = kernelRate
	}
	p.line(level, c.Conn.Peer.UID, c.svc.Name+" "+string(id), r, msg, func() []any {
		return append(append(c.attrs(), "reason", string(id), "hint", id.Doc().Hint), attrs...)
	})
}

// line writes a line that uid has caused to the log if the limits permit another one on the subject.
func (p *Procedures) line(level slog.Level, uid uint32, subject string, r limits.Rate, msg string, attrs func() []any) {
	p.limits.Lines.Log(p.log, level, uid, subject, r, p.now(), msg, attrs)
}

// metered is a log for those who do not know on whose behalf they act: a line about the same costs the daemon itself.
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
