package creds

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gssproxyd/conf"
	"gssproxyd/keytab/seal"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc/peer"
	"gssproxyd/tests/lab"
)

func newHolder(l *limits.Limits) *Holder {
	return New(Options{
		Box: seal.New(), Limits: l, Users: conf.FixedUsers{"root": 0},
		Log: &Log{slog.New(slog.DiscardHandler), l.Lines, time.Now, nil},
	})
}

// callerOf is a caller of a service.
func callerOf(t testing.TB, s *Service, uid uint32) *Caller {
	return &Caller{Peer: &peer.Info{UID: uid}, Service: s, Now: time.Now(), Context: limits.WithPayer(t.Context(), uid), Left: new(atomic.Value)}
}

// inside is a holder of credentials without procedures, and who calls it.
type inside struct {
	*Holder
	t   testing.TB
	uid uint32
}

func newInside(t testing.TB, krb5Conf string, services map[string]string) *inside {
	t.Helper()
	t.Setenv("KRB5RCACHENAME", "none:")
	d := &inside{Holder: newHolder(limits.ForProcess()), t: t}
	t.Cleanup(d.Close)
	d.load(krb5Conf, services)
	return d
}

func (d *inside) load(krb5Conf string, services map[string]string) {
	d.t.Helper()
	c, k := Config(d.t, krb5Conf, services)
	Must(d.t, d.Load(c, k))
}

func (d *inside) of(service string) *Service { return d.Current().named(service) }

func (d *inside) as(uid uint32) *inside { return &inside{d.Holder, d.t, uid} }

func (d *inside) asked(service string) *Caller { return callerOf(d.t, d.of(service), d.uid) }

// Config makes a configuration of sections of services, each with mechs, and euid = 0 unless it has
// one, and a krb5.conf.
func Config(t testing.TB, krb5Conf string, services map[string]string) (*conf.Config, *krb5conf.Config) {
	t.Helper()
	var text strings.Builder
	for name, lines := range services {
		if !strings.Contains(lines, "euid =") {
			lines += "\neuid = 0"
		}
		fmt.Fprintf(&text, "[service/%s]\nmechs = krb5\nsocket = /%s\n%s\n", name, name, lines)
	}
	file := filepath.Join(t.TempDir(), "gssproxy.conf")
	Must(t, os.WriteFile(file, []byte(text.String()), 0o600))
	c, err := conf.Load(conf.Source{Users: conf.FixedUsers{"root": 0}, File: file})
	Must(t, err)
	k, err := krb5conf.Load([]string{krb5Conf})
	Must(t, err)
	return c, k
}

// Must ends a test at an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Realm raises a realm with svc and alice, and keytabs of the two.
func Realm(t testing.TB) (r *lab.Realm, svcs, alices string) {
	t.Helper()
	r = lab.New(t)
	Must(t, r.RandKey("svc/"+lab.Host))
	svcs, err := r.Keytab("svc.keytab", "svc/"+lab.Host)
	Must(t, err)
	alices, err = r.Keytab("alice.keytab", "alice")
	Must(t, err)
	return r, svcs, alices
}

// NewContent is the content of an empty cache of a client.
func NewContent(t testing.TB, client string) []byte {
	t.Helper()
	p, err := krb5.ParsePrincipal(client, "")
	Must(t, err)
	return ccache.AppendContent(nil, p, nil)
}

// reasonOf is the reason of a refusal.
func reasonOf(err error) reason.ID {
	if e := (*mech.Error)(nil); errors.As(err, &e) {
		return e.Reason
	}
	return ""
}
