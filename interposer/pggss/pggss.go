// Package pggss authenticates to PostgreSQL with Kerberos (its authentication method gss) for
// programs that have no keys and no credential cache: a gssproxy daemon does the cryptography.
//
// The drivers pgx and lib/pq both take it. A program registers it once, before its first connection,
// and connects without a password. With pgx, also below database/sql:
//
//	pgconn.RegisterGSSProvider(func() (pgconn.GSS, error) {
//		return pggss.New(ctx, daemon, interposer.ServiceCred), nil
//	})
//	pool, err := pgxpool.New(ctx, "host=db.example.com user=webapp dbname=webapp sslmode=verify-full")
//
// and with lib/pq:
//
//	pq.RegisterGSSProvider(func() (pq.GSS, error) {
//		return pggss.New(ctx, daemon, interposer.ServiceCred), nil
//	})
//	db, err := sql.Open("postgres", "host=db.example.com user=webapp dbname=webapp sslmode=verify-full")
//
// The provider is the whole process's: it does not know for whom a connection is made. So a program
// that connects as its users has no pool for several of them.
//
// What authenticates does not protect what follows: use TLS (sslmode=verify-full), as with a
// password.
package pggss

import (
	"context"
	"errors"
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
	// Flags are asked for besides mech.FlagMutual and mech.FlagInteg, such as mech.FlagDelegPolicy,
	// which delegates our credential to servers that the KDC trusts with it. To be set before the
	// GSS is used. What was granted says Peer.
	Flags interposer.Flags

	ctx    context.Context
	daemon *interposer.Client
	cred   *interposer.Cred
	sec    *interposer.SecContext // nil: not begun, or over
	peer   *interposer.Peer
}

// New returns a GSS that logs in with cred: interposer.ServiceCred for the program's own credential,
// or a user's. Calls to the daemon end with ctx, which therefore lives as long as connections are
// made. What is wrong with daemon or cred is the error of the first call.
func New(ctx context.Context, daemon *interposer.Client, cred *interposer.Cred) *GSS {
	return &GSS{ctx: ctx, daemon: daemon, cred: cred}
}

// Peer returns the server once it has proven its name, with the flags that were granted: whether our
// credential was delegated says mech.FlagDeleg among them. It is nil before.
func (g *GSS) Peer() *interposer.Peer { return g.peer }

// GetInitToken begins, towards a service on a host, such as "postgres".
func (g *GSS) GetInitToken(host, service string) ([]byte, error) {
	return g.begin(interposer.HostbasedName(service, host))
}

// GetInitTokenFromSPN begins, towards a principal: "postgres/db.example.com", with or without the
// realm.
func (g *GSS) GetInitTokenFromSPN(spn string) ([]byte, error) {
	return g.begin(interposer.Principal(spn))
}

// GetInitTokenFromSpn is GetInitTokenFromSPN under the name that lib/pq calls it by.
func (g *GSS) GetInitTokenFromSpn(spn string) ([]byte, error) { return g.GetInitTokenFromSPN(spn) }

func (g *GSS) begin(target interposer.Name) (token []byte, err error) {
	if g.daemon == nil {
		return nil, errors.New("pggss: New was given no daemon: it takes an interposer.Client, from interposer.New")
	}
	if g.sec != nil {
		g.sec.Close()
	}
	g.sec, g.peer = nil, nil
	ctx, cancel := context.WithTimeout(g.ctx, callTimeout)
	defer cancel()
	g.sec, token, err = g.daemon.InitSecContext(ctx, interposer.InitRequest{
		Target: target, Cred: g.cred, Flags: g.Flags | mech.FlagMutual | mech.FlagInteg,
	})
	return token, err
}

// Continue takes the server's token, and returns ours unless it is done. When it is, the server has
// proven its name.
func (g *GSS) Continue(inToken []byte) (done bool, outToken []byte, err error) {
	if g.sec == nil {
		return false, nil, mech.Errorf(mech.NoContext, 0, reason.BadContext, "there is no context to continue")
	}
	ctx, cancel := context.WithTimeout(g.ctx, callTimeout)
	defer cancel()
	if outToken, err = g.sec.Step(ctx, inToken); err != nil {
		g.sec = nil // it is closed
		return false, nil, err
	}
	if !g.sec.Established() {
		return false, outToken, nil
	}
	p, err := g.sec.Peer()
	g.sec.Close() // what follows is not protected by it
	g.sec = nil
	if err != nil {
		return false, nil, err
	}
	if !p.Flags.Has(mech.FlagMutual) {
		return false, nil, mech.Errorf(mech.Failure, 0, reason.MutualFailed, "the server has not proven who it is")
	}
	g.peer = p
	return true, outToken, nil
}
