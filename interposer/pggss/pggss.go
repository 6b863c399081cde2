// Package pggss authenticates to PostgreSQL with Kerberos (its authentication method gss) for
// programs that have no keys and no credential cache: a gssproxy daemon does the cryptography. The
// drivers pgx and lib/pq both take it:
//
//	pgconn.RegisterGSSProvider(func() (pgconn.GSS, error) { return pggss.New(ctx, daemon), nil })
//	pq.RegisterGSSProvider(func() (pq.GSS, error) { return pggss.New(ctx, daemon), nil })
package pggss

import (
	"context"
	"time"

	"gssproxyd/interposer"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
)

// callTimeout is how long a call to the daemon may take, if the context does not say less.
const callTimeout = 30 * time.Second

// GSS authenticates one connection; the server has to prove its name, too. It is a pgconn.GSS and a
// pq.GSS, and used by one goroutine.
type GSS struct {
	Cred     *interposer.Cred // nil: the one that the daemon's configuration says
	Delegate bool             // delegate our credential to the server

	ctx    context.Context
	daemon *interposer.Client
	target interposer.Name
	sec    *interposer.SecContext // nil: not begun, or over
}

// New returns a GSS whose calls to the daemon end with ctx.
func New(ctx context.Context, daemon *interposer.Client) *GSS {
	return &GSS{ctx: ctx, daemon: daemon}
}

// GetInitToken begins, towards a service on a host, such as "postgres".
func (g *GSS) GetInitToken(host, service string) ([]byte, error) {
	return g.begin(interposer.Name{Display: service + "@" + host, Type: mech.NTHostbased})
}

// GetInitTokenFromSPN begins, towards a principal: "postgres/db.example.com", with or without the
// realm.
func (g *GSS) GetInitTokenFromSPN(spn string) ([]byte, error) {
	return g.begin(interposer.Name{Display: spn, Type: mech.NTKrb5Principal})
}

// GetInitTokenFromSpn is GetInitTokenFromSPN under the name that lib/pq calls it by.
func (g *GSS) GetInitTokenFromSpn(spn string) ([]byte, error) { return g.GetInitTokenFromSPN(spn) }

func (g *GSS) begin(target interposer.Name) ([]byte, error) {
	if g.sec != nil {
		g.sec.Close()
	}
	g.target, g.sec = target, nil
	_, token, err := g.step(nil)
	return token, err
}

// Continue takes the server's token, and returns ours unless it is done. When it is, the server has
// proven its name.
func (g *GSS) Continue(inToken []byte) (done bool, outToken []byte, err error) {
	if g.sec == nil {
		return false, nil, mech.Errorf(mech.NoContext, 0, reason.BadContext, "there is no context to continue")
	}
	if inToken == nil {
		inToken = []byte{}
	}
	return g.step(inToken)
}

func (g *GSS) step(in []byte) (done bool, out []byte, err error) {
	ctx, cancel := context.WithTimeout(g.ctx, callTimeout)
	defer cancel()
	r := interposer.InitRequest{Target: g.target, Flags: mech.FlagMutual | mech.FlagInteg, Cred: g.Cred, Context: g.sec, Token: in}
	if g.Delegate {
		r.Flags |= mech.FlagDeleg
	}
	i, err := g.daemon.InitSecContext(ctx, r)
	if err != nil {
		return false, nil, err
	}
	if g.sec = i.Context; !g.sec.Open() {
		return false, i.Token, nil
	}
	proven := g.sec.Flags()&mech.FlagMutual != 0
	g.sec.Close() // what follows is not protected by it
	g.sec = nil
	if !proven {
		return false, nil, mech.Errorf(mech.Failure, 0, reason.MutualFailed, "the server has not proven who it is")
	}
	return true, i.Token, nil
}
