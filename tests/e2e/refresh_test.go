package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// ticketLife is the life of the tickets in the tests of this file.
const ticketLife = 12 * time.Second

// shortLived makes a principal whose tickets do not live for long, and returns its keytab.
func shortLived(t *testing.T, name string) string {
	t.Helper()
	r := realm(t)
	check(t, r.RandKey(name))
	check(t, r.Attribute(name, "-maxlife", "12s"))
	path, err := r.Keytab(name+".keytab", name)
	check(t, err)
	return path
}

// initiator is a caller of a service that is to have a credential.
type initiator struct {
	t       *testing.T
	service string
	w       *lab.Wire
	got     time.Time // its first ticket was there
}

func newInitiator(t *testing.T, d *lab.Daemon, service string) initiator {
	t.Helper()
	w, err := d.WireAs(lab.Root, filepath.Join(d.Options.Dir, "sock-"+service))
	check(t, err)
	t.Cleanup(func() { w.Close() })
	return initiator{t: t, service: service, w: w}
}

func (i initiator) acquire(input *xdr.Cred) (xdr.Cred, error) {
	i.t.Helper()
	arg := &xdr.ArgAcquireCred{CredUsage: xdr.CredInitiate}
	if input != nil {
		arg.InputCredHandle = xdr.Some(*input)
	}
	var res xdr.ResAcquireCred
	check(i.t, i.w.Call(xdr.ProcAcquireCred, arg, &res))
	return res.OutputCredHandle.V, lab.StatusError(res.Status)
}

// init starts a context; it lives as long as the ticket.
func (i initiator) init(cred *xdr.Cred) (life time.Duration, err error) {
	i.t.Helper()
	res := initContext(i.t, i.w, cred, service, lab.Usual, nil)
	return time.Duration(res.ContextHandle.V.Lifetime) * time.Second, lab.StatusError(res.Status)
}

// must is init that succeeds with a ticket of a life between two bounds, in no more than the time
// given.
func (i initiator) must(what string, cred *xdr.Cred, least, most, limit time.Duration) {
	i.t.Helper()
	start := time.Now()
	life, err := i.init(cred)
	if took := time.Since(start); err != nil || life < least || life > most || took > limit {
		i.t.Errorf("%s, %s: %v; the ticket lives for %v, want %v to %v; it took %v", i.service, what, err, life, least, most, took.Round(time.Millisecond))
	}
}

// TestNightlyRefresh: tickets that live for some seconds, used with a handle and without, from
// before half of their life until after their end.
func TestNightlyRefresh(t *testing.T) {
	lab.Nightly(t)
	needOurs(t)
	r := realm(t)
	const soon, half, over = time.Second, ticketLife / 2, ticketLife + time.Second
	at := func(start time.Time, d time.Duration) { time.Sleep(time.Until(start.Add(d))) }
	start := func(t *testing.T, krb5Conf string, services map[string][]string) *lab.Daemon {
		t.Helper()
		dir := r.Path("refresh")
		list := []svc{{"lab", 0, nil}}
		for name, lines := range services {
			list = append(list, svc{name, 0, append(lines, "min_lifetime = 1", "socket = "+filepath.Join(dir, "sock-"+name))})
		}
		return daemon(t, "ours", lab.Options{Dir: dir, Krb5Conf: krb5Conf, RCache: "none:", Config: config(list...)})
	}

	t.Run("well", func(t *testing.T) {
		t.Parallel()
		keys, file, renewable := shortLived(t, "refresh-keys"), r.Path("refresh-cc"), r.Path("refresh-renewable-cc")
		d := start(t, "", map[string][]string{
			"memory":    {"cred_store = client_keytab:" + keys},
			"file":      {"cred_store = client_keytab:" + keys, "cred_store = ccache:FILE:" + file},
			"renewable": {"cred_store = ccache:FILE:" + renewable},
		})
		made(t, r.AddPrincipal("refresh-renewable", "renew"))
		begun := time.Now()
		env, err := r.Kinit("refresh-renewable", "renew", "-l", "12s", "-r", "10m")
		check(t, err)
		check(t, os.Rename(strings.TrimPrefix(env[0], "KRB5CCNAME=FILE:"), renewable))
		check(t, os.Chmod(renewable, 0o600))
		var initiators []initiator
		var handles []*xdr.Cred
		each := func(do func(i initiator, h *xdr.Cred)) {
			for n, i := range initiators {
				do(i, handles[n])
			}
		}
		for _, name := range []string{"memory", "file", "renewable"} {
			i := newInitiator(t, d, name)
			h, err := i.acquire(nil)
			check(t, err)
			i.got = time.Now()
			i.must("at first", nil, half, ticketLife, 5*time.Second)
			initiators, handles = append(initiators, i), append(handles, &h)
		}

		at(begun, half-2*time.Second)
		each(func(i initiator, h *xdr.Cred) {
			most := ticketLife - time.Since(i.got) + time.Second // the KDC's clock has whole seconds
			i.must("before half, with the handle", h, half, most, soon)
			i.must("before half", nil, half, most, soon)
		})
		at(begun, half+2*time.Second)
		each(func(i initiator, h *xdr.Cred) {
			least := ticketLife - 2*time.Second
			if i.service == "renewable" {
				least = soon // the service's ticket is good still
			}
			i.must("after half, with the handle", h, least, ticketLife, 5*time.Second)
			i.must("after half", nil, least, ticketLife, soon)
			fresh, err := i.acquire(nil)
			check(t, err)
			if left := time.Duration(fresh.Elements[0].InitiatorTimeRec) * time.Second; left < ticketLife-2*time.Second {
				t.Errorf("%s, after half: the credential lives for %v", i.service, left)
			}
			again, err := i.acquire(h)
			if err != nil || !lab.SameCred(again, *h) {
				t.Errorf("%s: the handle does not serve any more: %v", i.service, err)
			}
		})
		at(time.Now(), over)
		each(func(i initiator, h *xdr.Cred) {
			if i.service != "renewable" {
				i.must("expired, with the handle", h, ticketLife-2*time.Second, ticketLife, 5*time.Second)
				i.must("expired", nil, half, ticketLife, soon)
				return
			}
			for _, cred := range []*xdr.Cred{h, nil} {
				_, err := i.init(cred)
				if err := tells("ours", err, reason.TicketExpired); err != nil {
					t.Errorf("expired, nothing to renew: %v", err)
				}
			}
		})
	})

	t.Run("KDC down", func(t *testing.T) {
		t.Parallel()
		keys := shortLived(t, "refresh-down")
		relay, err := r.Relay()
		check(t, err)
		t.Cleanup(func() { relay.Close() })
		d := start(t, relay.Conf, map[string][]string{"memory": {"cred_store = client_keytab:" + keys}})
		i := newInitiator(t, d, "memory")
		begun := time.Now()
		h, err := i.acquire(nil)
		check(t, err)
		i.must("at first", &h, half, ticketLife, 5*time.Second)

		at(begun, half+time.Second)
		relay.Set(lab.Hold(time.Hour))
		i.must("down, with the handle", &h, soon, half, 3*time.Second)
		i.must("down", nil, soon, half, soon)
		again, err := i.acquire(&h)
		if err != nil || !lab.SameCred(again, h) {
			t.Errorf("the handle does not serve any more: %v", err)
		}

		at(begun, over)
		for _, cred := range []*xdr.Cred{&h, nil} {
			start := time.Now()
			_, err := i.init(cred)
			if err := tells("ours", err, reason.KDCUnreachable); err != nil {
				t.Errorf("expired: %v", err)
			}
			if took := time.Since(start); took > 14*time.Second {
				t.Errorf("the refusal took %v", took)
			}
			relay.Set(lab.HangUp)
		}
		relay.Set(nil)
		i.must("the KDC is back, with the handle", &h, ticketLife-2*time.Second, ticketLife, 5*time.Second)
		i.must("the KDC is back", nil, half, ticketLife, soon)
	})

	// Each answer comes in time; all of them together would not.
	t.Run("slow KDC", func(t *testing.T) {
		t.Parallel()
		keys := shortLived(t, "refresh-slow")
		relay, err := r.Relay()
		check(t, err)
		t.Cleanup(func() { relay.Close() })
		d := start(t, relay.Conf, map[string][]string{"memory": {"cred_store = client_keytab:" + keys}})
		relay.Set(lab.Hold(7 * time.Second))
		i := newInitiator(t, d, "memory")
		begun := time.Now()
		_, err = i.init(nil)
		if err := tells("ours", err, reason.KDCUnreachable); err != nil {
			t.Error(err)
		}
		if took := time.Since(begun); took > 14*time.Second {
			t.Errorf("the refusal took %v: clients give up after 15 seconds", took)
		}
	})
}
