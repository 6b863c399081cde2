package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gssproxyd/audit"
	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/gssproxyd/metrics"
	"gssproxyd/gssproxyd/stores"
	"gssproxyd/limits"
	"gssproxyd/mech/reason"
)

// audits puts the audit log of a configuration in force, as apply does.
func (d *daemon) audits(t *testing.T, c *conf.Config) error {
	t.Helper()
	a, err := d.openAudit(c)
	if err == nil {
		a.use(d, c)
		d.conf = c
	}
	return err
}

// TestAuditMoves: a call that is recorded while a reload names another file is in the one or the other,
// and is not refused.
func TestAuditMoves(t *testing.T) {
	d := &daemon{log: slog.New(slog.DiscardHandler), limits: limits.ForProcess()}
	dir := t.TempDir()
	defer func() { d.closeAudit(d.audit.Swap(nil)) }()
	files := [2]*conf.Config{{Audit: filepath.Join(dir, "a.log"), AuditRefuse: true}, {Audit: filepath.Join(dir, "b.log"), AuditRefuse: true}}
	if err := d.audits(t, files[0]); err != nil {
		t.Fatal(err)
	}
	var calls sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		calls.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := d.record(t.Context(), &audit.Event{Kind: audit.CallAllowed, Caller: &audit.Caller{}}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 100 {
		if err := d.audits(t, files[(i+1)%2]); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	calls.Wait()
}

// TestAuditOfKrb5Change: a krb5.conf that has changed comes into force whatever is wrong with a new file
// of the audit log.
func TestAuditOfKrb5Change(t *testing.T) {
	d := &daemon{log: slog.New(slog.DiscardHandler), limits: limits.ForProcess()}
	defer func() { d.closeAudit(d.audit.Swap(nil)) }()
	path := filepath.Join(t.TempDir(), "audit.log")
	c := &conf.Config{Audit: path}
	if err := d.audits(t, c); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.audits(t, c); err != nil {
		t.Error(err)
	}
	if err := d.audits(t, &conf.Config{Audit: path}); err == nil {
		t.Error("a reload does not say that there is no new file")
	}
}

// TestAuditFailed: a call that is refused since it could not be recorded is among the refusals, and
// counted as one.
func TestAuditFailed(t *testing.T) {
	d := &daemon{log: slog.New(slog.DiscardHandler), limits: limits.ForProcess()}
	c := &conf.Config{Audit: filepath.Join(t.TempDir(), "audit.log"), AuditRefuse: true}
	if err := d.audits(t, c); err != nil {
		t.Fatal(err)
	}
	d.audit.Load().Close()
	m := metrics.New(metrics.Sources{
		Limits: limits.ForProcess(), Keytabs: func() []creds.KeytabState { return nil }, ReplayBytes: func() int64 { return 0 },
		Configuration: func() (time.Time, bool) { return time.Time{}, true }, AuditLost: func() (uint64, bool) { return 1, true }, Stores: func() []stores.State { return nil },
	})
	d.exported.counted.Store(m)
	err := d.record(t.Context(), &audit.Event{Kind: audit.CallAllowed, Caller: &audit.Caller{}})
	list := d.denials.last(2)
	if err == nil || len(list) != 1 || list[0].Kind != audit.CallDenied || list[0].Reason != string(reason.AuditFailed) || list[0].Text != err.Error() {
		t.Errorf("%v, %+v", err, list)
	}
	text, err := m.Text(false)
	if err != nil || !strings.Contains(string(text), `reason="audit-failed"`) || strings.Contains(string(text), `outcome="allowed"`) {
		t.Errorf("%v\n%s", err, text)
	}
}
