package pggss_test

import (
	"errors"
	"testing"

	"go.uber.org/goleak"

	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/interposer/pggss"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
)

// The drivers' interfaces, as pgx 5 and lib/pq 1 declare them.
var (
	_ interface {
		GetInitToken(host, service string) ([]byte, error)
		GetInitTokenFromSPN(spn string) ([]byte, error)
		Continue(inToken []byte) (done bool, outToken []byte, err error)
	} = (*pggss.GSS)(nil)
	_ interface {
		GetInitToken(host string, service string) ([]byte, error)
		GetInitTokenFromSpn(spn string) ([]byte, error)
		Continue(inToken []byte) (done bool, outToken []byte, err error)
	} = (*pggss.GSS)(nil)
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestGSS(t *testing.T) {
	d := interposertest.Start(t)
	daemon := d.Client(t)
	for _, tt := range []struct {
		target string
		begin  func(*pggss.GSS) ([]byte, error)
	}{
		{"postgres@db.example.test", func(g *pggss.GSS) ([]byte, error) { return g.GetInitToken("db.example.test", "postgres") }},
		{"pg/db.example.test", func(g *pggss.GSS) ([]byte, error) { return g.GetInitTokenFromSPN("pg/db.example.test") }},
		{"pg/db.example.test", func(g *pggss.GSS) ([]byte, error) { return g.GetInitTokenFromSpn("pg/db.example.test") }},
	} {
		g := pggss.New(t.Context(), daemon)
		g.Delegate = true
		token, err := tt.begin(g)
		if err != nil {
			t.Fatal(err)
		}
		a, err := daemon.AcceptSecContext(t.Context(), interposer.AcceptRequest{Token: token, Delegate: true})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Context.Close()
		if a.Context.Target().Display != tt.target || a.Context.Flags()&mech.FlagMutual == 0 || a.Delegated == nil {
			t.Errorf("%v with %s, delegated %v", a.Context, interposer.FlagNames(a.Context.Flags()), a.Delegated)
		}
		done, out, err := g.Continue(a.Token)
		if !done || len(out) != 0 || err != nil {
			t.Errorf("done %v, %d bytes, %v", done, len(out), err)
		}
		var e *mech.Error
		if _, _, err := g.Continue(a.Token); !errors.As(err, &e) || e.Major != mech.NoContext {
			t.Errorf("after the end: %v", err)
		}
	}
}

func TestRefused(t *testing.T) {
	d := interposertest.Start(t)
	d.Services = []string{"postgres@db.example.test"}
	g := pggss.New(t.Context(), d.Client(t))
	var e *mech.Error
	if _, _, err := g.Continue(nil); !errors.As(err, &e) || e.Major != mech.NoContext {
		t.Errorf("before the beginning: %v", err)
	}
	if _, err := g.GetInitToken("elsewhere.example.test", "postgres"); !errors.As(err, &e) || e.Reason != reason.ServerUnknown {
		t.Errorf("%v, want server-unknown", err)
	}
	for _, answer := range [][]byte{nil, {}, []byte("another's answer")} {
		if _, err := g.GetInitToken("db.example.test", "postgres"); err != nil {
			t.Fatal(err)
		}
		if done, _, err := g.Continue(answer); done || !errors.As(err, &e) || e.Reason != reason.MutualFailed {
			t.Errorf("%q: done %v, %v", answer, done, err)
		}
	}
}
