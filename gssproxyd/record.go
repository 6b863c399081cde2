package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gssproxyd/audit"
	"gssproxyd/conf"
	"gssproxyd/limits"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc/peer"
)

// Where events go: into the audit log, to who asks for the last refusals, and to the metrics.

// record has an event go where events go. It must not be kept. An error is that of an audit log that
// must have it (audit_failure = refuse).
func (d *daemon) record(ctx context.Context, e *audit.Event) error {
	m, l := d.exported.counted.Load(), d.audit.Load()
	if e.Call > 0 && (m != nil || l != nil) { // what nobody wants to know is not measured
		e.Took = time.Since(e.Time)
	}
	err := d.write(ctx, l, e)
	if err != nil && e.Kind == audit.CallAllowed { // and is refused for that
		denied := *e
		denied.Kind, denied.Reason, denied.Text = audit.CallDenied, string(reason.AuditFailed), err.Error()
		e = &denied
	}
	if m != nil {
		m.Record(e)
	}
	d.files.record(e)
	switch e.Kind {
	case audit.CallDenied, audit.CallObserved, audit.ConnectionDenied:
		if !e.Routine {
			d.denials.add(e, d.limits.Lines.Reserved())
		}
	}
	return err
}

// write has an event go into the audit log, if there is one, or into the one that has come meanwhile.
func (d *daemon) write(ctx context.Context, l *auditLog, e *audit.Event) error {
	for l != nil {
		err := l.Record(ctx, e)
		now := d.audit.Load()
		if now == l || !errors.Is(err, audit.ErrClosed) {
			return err
		}
		l = now // a reload has come in between
	}
	return nil
}

// evidence is what the audit log, if there is one, has of a caller.
func (d *daemon) evidence() peer.Evidence {
	if d.audit.Load() == nil {
		return 0
	}
	return peer.EvidenceProgram | peer.EvidencePlace | peer.EvidenceAppArmor
}

// audited is the audit log that a configuration names, from before that is in force.
type audited struct {
	log *auditLog // nil: none
	old *auditLog // nil, or the same
}

// openAudit opens the audit log of a configuration, or goes on in a new file of the one in force. Events
// go there from then on. What is returned is to be used, or dropped.
func (d *daemon) openAudit(c *conf.Config) (a audited, err error) {
	a.old = d.audit.Load()
	switch {
	case c == d.conf: // krb5.conf alone has changed, which is no reason to touch the log
		a.log = a.old
		return a, nil
	case a.old != nil && d.conf.Audit == c.Audit:
		a.log = a.old
		return a, a.log.Reopen()
	}
	if c.Audit == "" {
		d.audit.Store(nil)
		return a, nil
	}
	l, err := audit.Open(c.Audit, audit.Options{Refuse: c.AuditRefuse, Waits: limits.EndTurn, Log: d.log})
	if err != nil {
		return a, fmt.Errorf("%w; correct audit in [gssproxy], or the file", err)
	}
	a.log = newAuditLog(l, d.limits.Refusals)
	d.audit.Store(a.log)
	return a, nil
}

// use has the log be as the configuration says, and lets go of the former one.
func (a audited) use(d *daemon, c *conf.Config) {
	if a.log != nil {
		a.log.SetRefuse(c.AuditRefuse)
	}
	if a.old != nil && a.old != a.log {
		d.closeAudit(a.old)
	}
}

// drop has events go where they went before: the configuration does not come into force.
func (a audited) drop(d *daemon) {
	d.audit.Store(a.old)
	if a.log != nil && a.log != a.old {
		d.closeAudit(a.log)
	}
}

// auditLost is how many events the audit log has lost, if there is one.
func (d *daemon) auditLost() (events uint64, logs bool) {
	if l := d.audit.Load(); l != nil {
		return l.Lost(), true
	}
	return 0, false
}

func (d *daemon) closeAudit(l *auditLog) {
	if l == nil {
		return
	}
	if err := l.Close(); err != nil {
		d.log.Error("the audit log may lack its end", "error", err)
	}
}
