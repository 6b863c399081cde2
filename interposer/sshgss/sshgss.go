// Package sshgss authenticates SSH users with Kerberos (gssapi-with-mic, RFC 4462 section 3) for
// programs that have no keys: a gssproxy daemon does the cryptography, and package
// golang.org/x/crypto/ssh speaks the protocol.
//
// A server has one [Server], and asks it for a configuration for each connection:
//
//	s := &sshgss.Server{Daemon: daemon, Allow: allow}
//	...
//	ssh.NewServerConn(conn, s.Config(ctx, base))
//
// A client makes a [Client] for each connection:
//
//	gss := sshgss.NewClient(ctx, daemon, interposer.ServiceCred)
//	ssh.Dial("tcp", "www.example.com:22", &ssh.ClientConfig{
//		User: "alice", HostKeyCallback: callback,
//		Auth: []ssh.AuthMethod{ssh.GSSAPIWithMICAuthMethod(gss, "www.example.com")},
//	})
//
// Package ssh has a context taken without telling whose it is, so neither is for two connections: a
// second one is refused and so is what goes on with the first.
package sshgss

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"gssproxyd/interposer"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
)

// callTimeout is how long a call to the daemon may take, if the context does not say less.
const callTimeout = 30 * time.Second

// Server says which users are let in. It may be used by any number of goroutines; the fields are
// not to be changed once it is used.
type Server struct {
	Daemon *interposer.Client // required

	// Cred is whom users have tickets for, from AcquireCred; nil is the service's own, as
	// interposer.ServiceCred.
	Cred *interposer.Cred

	// Delegate takes the credential that a user delegates: Peer.Delegated.
	Delegate bool

	// Require has the flags without which a user is refused, such as mech.FlagDeleg. mech.FlagInteg
	// always is among them.
	Require interposer.Flags

	// Allow decides whether the authenticated peer may log in as conn.User(), and with which
	// permissions; they may be nil. What Kerberos proves is the principal: that it may be that user
	// is for Allow to say, for example by interposer.Client.LocalName. Its error is logged by package
	// ssh, and the client may try to authenticate in another way. Required.
	Allow func(conn ssh.ConnMetadata, p *interposer.Peer) (*ssh.Permissions, error)
}

// Config returns a copy of base, which has the host keys and everything else, for one connection to
// be served with ssh.NewServerConn. Its GSSAPIWithMICConfig is s's; for a second step of
// authentication it may be put into an ssh.PartialSuccessError. Calls to the daemon end with ctx.
//
// Without a Daemon, Allow or base it panics.
func (s *Server) Config(ctx context.Context, base *ssh.ServerConfig) *ssh.ServerConfig {
	switch {
	case s.Daemon == nil:
		panic("sshgss: Server.Daemon is nil: set it to an interposer.Client, from interposer.New")
	case s.Allow == nil:
		panic("sshgss: Server.Allow is nil: set it to a function that says which principal may log in as which user")
	case base == nil:
		panic("sshgss: Server.Config was given no ssh.ServerConfig: it takes one with the host keys")
	}
	c := &acceptor{server: *s, ctx: ctx}
	config := *base
	config.GSSAPIWithMICConfig = &ssh.GSSAPIWithMICConfig{Server: c, AllowLogin: c.allow}
	return &config
}

// acceptor is the ssh.GSSAPIServer of one connection. An attempt to authenticate has any number of
// calls of AcceptSecContext, then VerifyMIC and allow, and in any case ends with DeleteSecContext.
type acceptor struct {
	server Server
	ctx    context.Context

	mu      sync.Mutex
	sec     *interposer.SecContext // nil before the first token
	session string                 // the connection's session identifier; empty before the first MIC
	peer    *interposer.Peer       // set from VerifyMIC on until the attempt ends
	shared  bool                   // by two connections: nothing is believed any more
}

var (
	errNoContext = mech.Errorf(mech.NoContext, 0, reason.BadContext, "no context is established")
	errShared    = errors.New("sshgss: a second connection was given the configuration of another: call Server.Config for each connection")
)

// AcceptSecContext implements ssh.GSSAPIServer: it takes a token of the user's.
func (c *acceptor) AcceptSecContext(token []byte) (reply []byte, principal string, more bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sec != nil && c.sec.Established() {
		c.shared = true // this connection's next call would be VerifyMIC
	}
	if c.shared {
		return nil, "", false, errShared
	}
	ctx, cancel := context.WithTimeout(c.ctx, callTimeout)
	defer cancel()
	if c.sec == nil {
		c.sec, reply, err = c.server.Daemon.AcceptSecContext(ctx, interposer.AcceptRequest{
			Token: token, Mech: mech.KRB5, Cred: c.server.Cred, Delegate: c.server.Delegate,
		})
	} else {
		reply, err = c.sec.Step(ctx, token)
	}
	if err != nil {
		return nil, "", false, err
	}
	if !c.sec.Established() {
		return reply, "", true, nil
	}
	if err := lacking((c.server.Require | mech.FlagInteg) &^ c.sec.Flags()); err != nil {
		return nil, "", false, err
	}
	return reply, c.sec.Source().Display, false, nil
}

func lacking(missing interposer.Flags) error {
	if missing == 0 {
		return nil
	}
	return fmt.Errorf("sshgss: the context lacks what is required of it: %v", missing)
}

// VerifyMIC implements ssh.GSSAPIServer: it checks that it is the user of the context who wants to
// log in on this connection.
func (c *acceptor) VerifyMIC(field, mic []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	session, ok := sessionID(field)
	if !ok {
		return errors.New("sshgss: what the MIC is for does not begin with a session identifier")
	}
	if c.session != "" && c.session != session {
		c.shared = true
	}
	switch {
	case c.shared:
		return errShared
	case c.sec == nil:
		return errNoContext
	}
	if err := c.sec.VerifyMIC(field, mic); err != nil {
		return err
	}
	p, err := c.sec.Peer()
	if err != nil {
		return err
	}
	c.session, c.peer = session, p
	return nil
}

// sessionID returns the string that begins what a MIC is for (RFC 4462 section 3.5).
func sessionID(field []byte) (string, bool) {
	if len(field) < 4 {
		return "", false
	}
	n := binary.BigEndian.Uint32(field)
	if n == 0 || uint64(n) > uint64(len(field)-4) {
		return "", false
	}
	return string(field[4 : 4+n]), true
}

// allow implements ssh.GSSAPIWithMICConfig's AllowLogin.
func (c *acceptor) allow(conn ssh.ConnMetadata, _ string) (*ssh.Permissions, error) {
	p, err := c.verified(string(conn.SessionID()))
	if err != nil {
		return nil, err
	}
	return c.server.Allow(conn, p)
}

// verified returns who has proven to be at the other end of a session.
func (c *acceptor) verified(session string) (*interposer.Peer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.shared || c.peer != nil && c.session != session:
		c.shared = true
		return nil, errShared
	case c.peer == nil:
		return nil, errNoContext
	}
	return c.peer, nil
}

// DeleteSecContext implements ssh.GSSAPIServer: it overwrites the context's keys.
func (c *acceptor) DeleteSecContext() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sec != nil {
		c.sec.Close()
	}
	c.sec, c.peer = nil, nil
	return nil
}

// Client proves to one server who we are, and has the server prove its name: it is an
// ssh.GSSAPIClient for ssh.GSSAPIWithMICAuthMethod, whose target is the server's host name. It is for
// one connection at a time.
type Client struct {
	// Flags are asked for besides mech.FlagMutual and mech.FlagInteg, such as mech.FlagDelegPolicy,
	// which delegates our credential to servers that the KDC trusts with it. To be set before the
	// Client is used. What was granted says Peer.
	Flags interposer.Flags

	ctx    context.Context
	daemon *interposer.Client
	cred   *interposer.Cred

	mu     sync.Mutex
	sec    *interposer.SecContext
	peer   *interposer.Peer
	shared bool
}

var errSharedClient = errors.New("sshgss: two connections use one Client at once: call NewClient for each connection")

// NewClient returns a Client that logs in with cred: interposer.ServiceCred for the program's own
// credential, or a user's. Calls to the daemon end with ctx.
func NewClient(ctx context.Context, daemon *interposer.Client, cred *interposer.Cred) *Client {
	return &Client{ctx: ctx, daemon: daemon, cred: cred}
}

// Peer returns the server that has proven its name, with the flags that were granted: whether our
// credential was delegated says mech.FlagDeleg among them. It is nil before that, and stays what it
// is until the Client is used again.
func (c *Client) Peer() *interposer.Peer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peer
}

// InitSecContext implements ssh.GSSAPIClient: it takes the server's token, nil to begin. target is a
// service and a host, such as "host@www.example.com".
func (c *Client) InitSecContext(target string, token []byte, isGSSDelegCreds bool) (outputToken []byte, needContinue bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.daemon == nil {
		return nil, false, errors.New("sshgss: NewClient was given no daemon: it takes an interposer.Client, from interposer.New")
	}
	if token == nil && c.sec != nil {
		c.shared = true // a connection ends its context before it begins another
	}
	if c.shared {
		return nil, false, errSharedClient
	}
	ctx, cancel := context.WithTimeout(c.ctx, callTimeout)
	defer cancel()
	switch {
	case token == nil:
		c.peer = nil
		r := interposer.InitRequest{
			Target: interposer.Name{Display: target, Type: mech.NTHostbased}, Cred: c.cred, Flags: c.Flags | mech.FlagMutual | mech.FlagInteg,
		}
		if isGSSDelegCreds {
			r.Flags |= mech.FlagDeleg
		}
		c.sec, outputToken, err = c.daemon.InitSecContext(ctx, r)
	case c.sec == nil:
		return nil, false, errNoContext
	default:
		outputToken, err = c.sec.Step(ctx, token)
	}
	if err != nil {
		return nil, false, err
	}
	if !c.sec.Established() {
		return outputToken, true, nil
	}
	if err := lacking((mech.FlagMutual | mech.FlagInteg) &^ c.sec.Flags()); err != nil {
		return nil, false, err
	}
	if c.peer, err = c.sec.Peer(); err != nil {
		return nil, false, err
	}
	return outputToken, false, nil
}

// GetMIC implements ssh.GSSAPIClient: it protects what says who wants to log in where.
func (c *Client) GetMIC(micField []byte) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.shared:
		return nil, errSharedClient
	case c.sec == nil:
		return nil, errNoContext
	}
	return c.sec.GetMIC(nil, micField)
}

// DeleteSecContext implements ssh.GSSAPIClient: it overwrites the context's keys.
func (c *Client) DeleteSecContext() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sec != nil {
		c.sec.Close()
	}
	c.sec = nil
	return nil
}
