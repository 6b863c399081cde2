package pggss_test

import (
	"context"
	"errors"
	"strings"
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

// isNoContext reports whether an error says that there is no context to go on with.
func isNoContext(err error) bool {
	e, ok := errors.AsType[*mech.Error](err)
	return ok && e.Major == mech.NoContext
}

// accept is the server's part.
func accept(t *testing.T, daemon *interposer.Client, token []byte) (*interposer.SecContext, []byte) {
	t.Helper()
	s, answer, err := daemon.AcceptSecContext(t.Context(), interposer.AcceptRequest{Token: token, Delegate: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, answer
}

func TestGSS(t *testing.T) {
	d := interposertest.Start(t)
	daemon := d.Client(t)
	for _, tt := range []struct {
		target string
		flags  interposer.Flags
		begin  func(*pggss.GSS) ([]byte, error)
	}{
		{"postgres@db.example.test", 0, func(g *pggss.GSS) ([]byte, error) { return g.GetInitToken("db.example.test", "postgres") }},
		{"postgres@db.example.test", mech.FlagDeleg, func(g *pggss.GSS) ([]byte, error) { return g.GetInitToken("db.example.test", "postgres") }},
		{"pg/db.example.test", 0, func(g *pggss.GSS) ([]byte, error) { return g.GetInitTokenFromSPN("pg/db.example.test") }},
		{"pg/db.example.test", 0, func(g *pggss.GSS) ([]byte, error) { return g.GetInitTokenFromSpn("pg/db.example.test") }},
	} {
		g := pggss.New(t.Context(), daemon, interposer.ServiceCred)
		g.Flags = tt.flags
		token, err := tt.begin(g)
		if err != nil {
			t.Fatal(err)
		}
		if g.Peer() != nil {
			t.Error("the server has proven itself already")
		}
		s, answer := accept(t, daemon, token)
		p, err := s.Peer()
		if err != nil {
			t.Fatal(err)
		}
		if s.Target().Display != tt.target || !p.Flags.Has(mech.FlagMutual) || (p.Delegated != nil) != (tt.flags != 0) {
			t.Errorf("%v with %v, delegated %v", s, p.Flags, p.Delegated)
		}
		done, out, err := g.Continue(answer)
		if !done || len(out) != 0 || err != nil {
			t.Errorf("done %v, %d bytes, %v", done, len(out), err)
		}
		if p := g.Peer(); p == nil || p.Name.Display != tt.target || p.Flags.Has(mech.FlagDeleg) != (tt.flags != 0) {
			t.Errorf("the server is %v", p)
		}
		if _, _, err := g.Continue(answer); !isNoContext(err) {
			t.Errorf("after the end: %v", err)
		}
	}
}

// A user's credential logs in as the user, and not as the service when it does not open.
func TestUser(t *testing.T) {
	d := interposertest.Start(t)
	daemon := d.Client(t)
	bob, _ := accept(t, daemon, interposertest.Token("bob@EXAMPLE.TEST", "HTTP@www", mech.FlagMutual|mech.FlagDeleg, false))
	p, err := bob.Peer()
	if err != nil {
		t.Fatal(err)
	}
	token, err := pggss.New(t.Context(), daemon, p.Delegated).GetInitToken("db.example.test", "postgres")
	if err != nil {
		t.Fatal(err)
	}
	if s, _ := accept(t, daemon, token); s.Source().Display != "bob@EXAMPLE.TEST" {
		t.Errorf("it is %v who logs in", s.Source())
	}
	d.Forget()
	if _, err := pggss.New(t.Context(), daemon, p.Delegated).GetInitToken("db.example.test", "postgres"); !errors.Is(err, reason.BadCredential) {
		t.Errorf("with a credential that does not open: %v", err)
	}
}

func TestRefused(t *testing.T) {
	d := interposertest.Start(t)
	d.Services = []string{"postgres@db.example.test"}
	g := pggss.New(t.Context(), d.Client(t), interposer.ServiceCred)
	if _, _, err := g.Continue(nil); !isNoContext(err) {
		t.Errorf("before the beginning: %v", err)
	}
	if _, err := g.GetInitToken("elsewhere.example.test", "postgres"); !errors.Is(err, reason.ServerUnknown) {
		t.Errorf("%v, want server-unknown", err)
	}
	for _, answer := range [][]byte{nil, {}, []byte("another's answer")} {
		if _, err := g.GetInitToken("db.example.test", "postgres"); err != nil {
			t.Fatal(err)
		}
		if done, _, err := g.Continue(answer); done || !errors.Is(err, reason.MutualFailed) || g.Peer() != nil {
			t.Errorf("%q: done %v, %v, %v", answer, done, err, g.Peer())
		}
		if _, _, err := g.Continue([]byte("the acceptor's answer")); !isNoContext(err) {
			t.Errorf("after an error: %v", err)
		}
	}
}

// TestMissing leaves out what a GSS cannot do without.
func TestMissing(t *testing.T) {
	daemon := interposertest.Start(t).Client(t)
	ended, end := context.WithCancel(t.Context())
	end()
	for want, g := range map[string]*pggss.GSS{
		"New was given no daemon": pggss.New(t.Context(), nil, interposer.ServiceCred),
		"there is no credential":  pggss.New(t.Context(), daemon, nil),
		"the credential is empty": pggss.New(t.Context(), daemon, new(interposer.Cred)),
		"canceled":                pggss.New(ended, daemon, interposer.ServiceCred),
	} {
		if _, err := g.GetInitToken("db.example.test", "postgres"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
