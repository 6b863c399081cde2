package proc

import (
	"context"
	"log/slog"
)

// Debug sets how much is logged of calls of services, by name, where that is more than what is logged
// of all. It holds for configurations to come too, until it is set anew. It is not for use at the
// same time as Load.
func (p *Procedures) Debug(levels map[string]int) {
	p.levels = levels
	if in := p.current.Load(); in != nil {
		p.setDebug(in)
	}
}

func (p *Procedures) setDebug(in *served) {
	for _, s := range in.services {
		s.debug.Store(max(p.minDebug, int32(in.conf.Debug), int32(p.levels[s.Name])))
	}
}

// unfiltered is a handler for lines that are wanted, whatever the level of the log is: that is one for
// all services.
type unfiltered struct{ slog.Handler }

// Enabled implements [slog.Handler].
func (unfiltered) Enabled(context.Context, slog.Level) bool { return true }
