// Package sshgss authenticates SSH users with Kerberos (gssapi-with-mic, RFC 4462 section 3) for
// programs that have no keys: [Server] and [Client] are what package golang.org/x/crypto/ssh wants
// for its GSSAPIServer and GSSAPIClient, and a gssproxy daemon does the cryptography.
//
// An ssh.ServerConfig has room for one GSSAPIServer, which is not told whose token it gets. So each
// connection needs a Server, and therefore a configuration, of its
// own:
//
//	config := *base
//	config.GSSAPIWithMICConfig = &ssh.GSSAPIWithMICConfig{Server: sshgss.NewServer(ctx, daemon), AllowLogin: allow}
//	ssh.NewServerConn(conn, &config)
package sshgss

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

// Server accepts the user of one connection. Change the fields before it is used; it is used by one
// goroutine at a time.
type Server struct {
	Cred     *interposer.Cred // nil: the one that the daemon's configuration says
	Delegate bool             // take the credential that the user delegates
	Require  uint32           // mech.Flag bits that the context must have, besides mech.FlagInteg

	ctx       context.Context
	daemon    *interposer.Client
	sec       *interposer.SecContext // nil before the first token
	peer      *interposer.Peer
	delegated *interposer.Cred
}

// NewServer returns a Server whose calls to the daemon end with ctx.
func NewServer(ctx context.Context, daemon *interposer.Client) *Server {
	return &Server{ctx: ctx, daemon: daemon}
}

// Peer returns who has been authenticated: nil unless both a context was established and the user's
// MIC has been verified with it.
func (s *Server) Peer() *interposer.Peer { return s.peer }

// AcceptSecContext takes the user's token. srcName is the principal with its realm, which
// AllowLogin gets.
func (s *Server) AcceptSecContext(token []byte) (outputToken []byte, srcName string, needContinue bool, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	s.peer = nil
	if s.sec != nil && s.sec.Open() {
		return nil, "", false, errNoContext // the context takes no more tokens
	}
	a, err := s.daemon.AcceptSecContext(ctx, interposer.AcceptRequest{
		Token: token, Mech: mech.KRB5, Context: s.sec, Cred: s.Cred, Delegate: s.Delegate,
	})
	if err != nil {
		return nil, "", false, err
	}
	if s.sec = a.Context; !s.sec.Open() {
		return a.Token, "", true, nil
	}
	if missing := (s.Require | mech.FlagInteg) &^ s.sec.Flags(); missing != 0 {
		return nil, "", false, errors.New("sshgss: the context lacks: " + interposer.FlagNames(missing))
	}
	s.delegated = a.Delegated
	return a.Token, s.sec.Source().Display, false, nil
}

// VerifyMIC checks that it is the user of the context who wants to log in here.
func (s *Server) VerifyMIC(micField, micToken []byte) error {
	if s.sec == nil {
		return errNoContext
	}
	order, err := s.sec.VerifyMIC(micField, micToken)
	if err != nil {
		return err
	}
	if order != mech.Complete {
		return errors.New("sshgss: the MIC is not the user's next message: " + order.Text())
	}
	p, err := s.sec.Peer()
	if err != nil {
		return err
	}
	p.Delegated = s.delegated
	s.peer = p
	return nil
}

// DeleteSecContext overwrites the context's keys. Peer still answers.
func (s *Server) DeleteSecContext() error {
	if s.sec != nil {
		s.sec.Close()
	}
	s.sec, s.delegated = nil, nil
	return nil
}

var errNoContext = mech.Errorf(mech.NoContext, 0, reason.BadContext, "no context is established")

// Client proves to one server who we are, and has the server prove its name. Change the fields
// before it is used; it is used by one goroutine at a time.
type Client struct {
	Cred     *interposer.Cred // nil: the one that the daemon's configuration says
	Delegate bool             // delegate our credential to the server

	ctx    context.Context
	daemon *interposer.Client
	sec    *interposer.SecContext
}

// NewClient returns a Client whose calls to the daemon end with ctx. It is for
// ssh.GSSAPIWithMICAuthMethod, whose target is the server's host name.
func NewClient(ctx context.Context, daemon *interposer.Client) *Client {
	return &Client{ctx: ctx, daemon: daemon}
}

// InitSecContext takes the server's token, nil to begin. target is a service and a host,
// "host@www.example.com".
func (c *Client) InitSecContext(target string, token []byte, isGSSDelegCreds bool) (outputToken []byte, needContinue bool, err error) {
	ctx, cancel := context.WithTimeout(c.ctx, callTimeout)
	defer cancel()
	r := interposer.InitRequest{
		Target: interposer.Name{Display: target, Type: mech.NTHostbased}, Flags: mech.FlagMutual | mech.FlagInteg,
		Cred: c.Cred, Context: c.sec, Token: token,
	}
	if token == nil {
		c.DeleteSecContext()
		r.Context = nil
	} else if c.sec == nil || c.sec.Open() {
		return nil, false, errNoContext
	}
	if c.Delegate || isGSSDelegCreds {
		r.Flags |= mech.FlagDeleg
	}
	i, err := c.daemon.InitSecContext(ctx, r)
	if err != nil {
		return nil, false, err
	}
	c.sec = i.Context
	if c.sec.Open() {
		if missing := (mech.FlagMutual | mech.FlagInteg) &^ c.sec.Flags(); missing != 0 {
			return nil, false, errors.New("sshgss: the context lacks: " + interposer.FlagNames(missing))
		}
	}
	return i.Token, !c.sec.Open(), nil
}

// GetMIC protects what says who wants to log in where.
func (c *Client) GetMIC(micField []byte) ([]byte, error) {
	if c.sec == nil {
		return nil, errNoContext
	}
	return c.sec.GetMIC(nil, micField)
}

// DeleteSecContext overwrites the context's keys.
func (c *Client) DeleteSecContext() error {
	if c.sec != nil {
		c.sec.Close()
	}
	c.sec = nil
	return nil
}
