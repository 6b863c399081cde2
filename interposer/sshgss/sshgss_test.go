package sshgss_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/interposer/sshgss"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
)

var _ ssh.GSSAPIClient = (*sshgss.Client)(nil)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hostKeys returns a configuration with a host key, and the check of it.
func hostKeys(t *testing.T) (*ssh.ServerConfig, ssh.HostKeyCallback) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	base := new(ssh.ServerConfig)
	base.AddHostKey(signer)
	return base, ssh.FixedHostKey(signer.PublicKey())
}

// connection returns both ends of one: a net.Pipe has no room for the two first lines, which the
// ends send at once.
func connection(t *testing.T) (server, client net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return server, client
}

// login has package ssh's two ends talk to each other, and returns how either ended.
func login(t *testing.T, server *ssh.ServerConfig, client *ssh.ClientConfig) (serverErr, clientErr error) {
	t.Helper()
	here, there := connection(t)
	for _, c := range []net.Conn{here, there} {
		c.SetDeadline(time.Now().Add(time.Minute))
	}
	done := make(chan error)
	go func() {
		conn, channels, requests, err := ssh.NewServerConn(here, server)
		if err == nil {
			go ssh.DiscardRequests(requests)
			for c := range channels {
				c.Reject(ssh.Prohibited, "")
			}
			conn.Wait()
		}
		here.Close()
		done <- err
	}()
	conn, channels, requests, clientErr := ssh.NewClientConn(there, "www", client)
	if clientErr == nil {
		ssh.NewClient(conn, channels, requests).Close()
	}
	there.Close()
	return <-done, clientErr
}

// as returns a client's configuration that logs in by Kerberos.
func as(user string, check ssh.HostKeyCallback, clients ...ssh.GSSAPIClient) *ssh.ClientConfig {
	config := &ssh.ClientConfig{User: user, HostKeyCallback: check}
	for _, c := range clients {
		config.Auth = append(config.Auth, ssh.GSSAPIWithMICAuthMethod(c, "www.example.test"))
	}
	return config
}

// ownName lets a principal log in as the user whose name it has.
func ownName(conn ssh.ConnMetadata, p *interposer.Peer) (*ssh.Permissions, error) {
	if p.Name.Display != conn.User()+"@EXAMPLE.TEST" {
		return nil, errors.New("not allowed")
	}
	return &ssh.Permissions{Extensions: map[string]string{"principal": p.Name.Display}}, nil
}

func TestLogin(t *testing.T) {
	d := interposertest.Start(t)
	daemon := d.Client(t)
	base, check := hostKeys(t)
	for _, flags := range []interposer.Flags{0, mech.FlagDeleg} {
		var peers []*interposer.Peer
		s := &sshgss.Server{Daemon: daemon, Delegate: true, Allow: func(conn ssh.ConnMetadata, p *interposer.Peer) (*ssh.Permissions, error) {
			peers = append(peers, p)
			return ownName(conn, p)
		}}
		c := sshgss.NewClient(t.Context(), daemon, interposer.ServiceCred)
		c.Flags = flags
		if c.Peer() != nil {
			t.Error("a server has proven itself already")
		}
		for range 2 { // one Client for one connection after the other
			if err1, err2 := login(t, s.Config(t.Context(), base), as("alice", check, c)); err1 != nil || err2 != nil {
				t.Fatal(err1, err2)
			}
			if p := c.Peer(); p == nil || p.Name.Display != "host@www.example.test" || !p.Flags.Has(mech.FlagMutual|mech.FlagInteg|flags) {
				t.Errorf("the server is %v", p)
			}
		}
		if len(peers) != 2 {
			t.Fatalf("%d were let in", len(peers))
		}
		for _, p := range peers {
			if p.Name.Display != "alice@EXAMPLE.TEST" || !p.Flags.Has(mech.FlagInteg) || (p.Delegated != nil) != (flags != 0) {
				t.Errorf("%v with %v, delegated %v", p, p.Flags, p.Delegated)
			}
		}
	}
	if base.GSSAPIWithMICConfig != nil {
		t.Error("the configuration for all connections was changed")
	}
}

// A delegated credential logs in further as the user.
func TestLoginAsUser(t *testing.T) {
	d := interposertest.Start(t)
	daemon := d.Client(t)
	base, check := hostKeys(t)
	var user *interposer.Cred
	s := &sshgss.Server{Daemon: daemon, Delegate: true, Allow: func(conn ssh.ConnMetadata, p *interposer.Peer) (*ssh.Permissions, error) {
		user = p.Delegated
		return ownName(conn, p)
	}}
	c := sshgss.NewClient(t.Context(), daemon, interposer.ServiceCred)
	c.Flags = mech.FlagDeleg
	if err1, err2 := login(t, s.Config(t.Context(), base), as("alice", check, c)); err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	further := &sshgss.Server{Daemon: daemon, Allow: ownName}
	if err1, err2 := login(t, further.Config(t.Context(), base), as("alice", check, sshgss.NewClient(t.Context(), daemon, user))); err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	d.Forget()
	err1, err2 := login(t, further.Config(t.Context(), base), as("alice", check, sshgss.NewClient(t.Context(), daemon, user)))
	if err1 == nil || !errors.Is(err2, reason.BadCredential) {
		t.Errorf("with a credential that does not open: %v, %v", err1, err2)
	}
}

func TestRefusedLogin(t *testing.T) {
	d := interposertest.Start(t)
	daemon := d.Client(t)
	base, check := hostKeys(t)
	us := func() *sshgss.Client { return sshgss.NewClient(t.Context(), daemon, interposer.ServiceCred) }
	s := &sshgss.Server{Daemon: daemon, Allow: ownName}
	refused := func(what string, s *sshgss.Server, c *ssh.ClientConfig, want1, want2 string) {
		t.Helper()
		err1, err2 := login(t, s.Config(t.Context(), base), c)
		if err1 == nil || err2 == nil || !strings.Contains(err1.Error(), want1) || !strings.Contains(err2.Error(), want2) {
			t.Errorf("%s: %v (want %q), %v (want %q)", what, err1, want1, err2, want2)
		}
	}
	refused("another user", s, as("bob", check, us()), "not allowed", "")
	refused("missing flags", &sshgss.Server{Daemon: daemon, Allow: ownName, Require: mech.FlagConf}, as("alice", check, us()), "lacks what is required of it: confidentiality", "")
	refused("no daemon", s, as("alice", check, sshgss.NewClient(t.Context(), nil, interposer.ServiceCred)), "", "NewClient was given no daemon")
	refused("no credential", s, as("alice", check, sshgss.NewClient(t.Context(), daemon, nil)), "", "there is no credential")
	refused("an empty credential", s, as("alice", check, sshgss.NewClient(t.Context(), daemon, new(interposer.Cred))), "", "the credential is empty")
	ended, end := context.WithCancel(t.Context())
	end()
	refused("its context has ended", s, as("alice", check, sshgss.NewClient(ended, daemon, interposer.ServiceCred)), "", "canceled")
	err1, err2 := login(t, s.Config(ended, base), as("alice", check, us()))
	if err1 == nil || err2 == nil || !strings.Contains(err1.Error(), "canceled") {
		t.Errorf("the server's context has ended: %v, %v", err1, err2)
	}
	d.Services = []string{"host@elsewhere"}
	refused("no ticket", s, as("alice", check, us()), "", "server-unknown")
}

// TestSecondAttempt has a client that is refused try again on the same connection.
func TestSecondAttempt(t *testing.T) {
	d := interposertest.Start(t)
	daemon := d.Client(t)
	base, check := hostKeys(t)
	attempts := 0
	s := &sshgss.Server{Daemon: daemon, Allow: func(conn ssh.ConnMetadata, p *interposer.Peer) (*ssh.Permissions, error) {
		if attempts++; attempts < 3 {
			return nil, errors.New("not yet")
		}
		return ownName(conn, p)
	}}
	config := as("alice", check)
	config.Auth = []ssh.AuthMethod{ssh.RetryableAuthMethod(ssh.GSSAPIWithMICAuthMethod(sshgss.NewClient(t.Context(), daemon, interposer.ServiceCred), "www.example.test"), 5)}
	if err1, err2 := login(t, s.Config(t.Context(), base), config); err1 != nil || err2 != nil || attempts != 3 {
		t.Errorf("%d attempts: %v, %v", attempts, err1, err2)
	}
}

// TestLoginsAtOnce has users come at once: everybody is let in as himself.
func TestLoginsAtOnce(t *testing.T) {
	base, check := hostKeys(t)
	server := interposertest.Start(t).Client(t)
	s := &sshgss.Server{Daemon: server, Allow: ownName}
	var all sync.WaitGroup
	for i := range 8 {
		user := fmt.Sprintf("user%d", i)
		d := interposertest.Start(t)
		d.Principal = user + "@EXAMPLE.TEST"
		daemon := d.Client(t)
		all.Go(func() {
			for range 5 {
				c := sshgss.NewClient(t.Context(), daemon, interposer.ServiceCred)
				if err1, err2 := login(t, s.Config(t.Context(), base), as(user, check, c)); err1 != nil || err2 != nil {
					t.Errorf("%s: %v, %v", user, err1, err2)
				}
			}
		})
	}
	all.Wait()
}

// TestSharedConfig gives two connections one configuration, one after the other and at once.
func TestSharedConfig(t *testing.T) {
	daemon := interposertest.Start(t).Client(t)
	base, check := hostKeys(t)
	us := func() ssh.GSSAPIClient { return sshgss.NewClient(t.Context(), daemon, interposer.ServiceCred) }
	s := &sshgss.Server{Daemon: daemon, Allow: ownName}
	const want = "call Server.Config for each connection"

	config := s.Config(t.Context(), base)
	if err1, err2 := login(t, config, as("alice", check, us())); err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	for range 2 {
		if err1, err2 := login(t, config, as("alice", check, us())); err1 == nil || err2 == nil || !strings.Contains(err1.Error(), want) {
			t.Errorf("one after the other: %v, %v", err1, err2)
		}
	}

	// While the first is being asked about, the second comes.
	asked, goOn := make(chan bool), make(chan bool)
	slow := &sshgss.Server{Daemon: daemon, Allow: func(conn ssh.ConnMetadata, p *interposer.Peer) (*ssh.Permissions, error) {
		asked <- true
		<-goOn
		return ownName(conn, p)
	}}
	config = slow.Config(t.Context(), base)
	first := make(chan error)
	go func() {
		err1, err2 := login(t, config, as("alice", check, us()))
		first <- errors.Join(err1, err2)
	}()
	<-asked
	if err1, err2 := login(t, config, as("alice", check, us())); err1 == nil || err2 == nil || !strings.Contains(err1.Error(), want) {
		t.Errorf("the second one: %v, %v", err1, err2)
	}
	close(goOn)
	if err := <-first; err != nil {
		t.Errorf("the first one, which had been asked about: %v", err)
	}
}

// pair is a server's end of one connection, and a client's, without package ssh around them.
type pair struct {
	server *ssh.GSSAPIWithMICConfig
	client *sshgss.Client
}

// begin has the two establish a context.
func (p pair) begin(t *testing.T) {
	t.Helper()
	token, more, err := p.client.InitSecContext("host@www", nil, false)
	if err != nil || !more {
		t.Fatal(more, err)
	}
	answer, name, more, err := p.server.Server.AcceptSecContext(token)
	if err != nil || more || name != "alice@EXAMPLE.TEST" {
		t.Fatal(name, more, err)
	}
	if out, more, err := p.client.InitSecContext("host@www", answer, false); err != nil || more || len(out) != 0 {
		t.Fatal(out, more, err)
	}
}

// field is what a MIC is for, in a session.
func field(session string) []byte {
	b := append(binary.BigEndian.AppendUint32(nil, uint32(len(session))), session...)
	return append(b, "\x32 and who wants to log in"...)
}

// conn is a connection, as the callbacks see it.
type conn struct {
	ssh.ConnMetadata
	session string
}

func (c conn) SessionID() []byte { return []byte(c.session) }

func newPair(t *testing.T, daemon *interposer.Client) pair {
	s := &sshgss.Server{Daemon: daemon, Allow: func(ssh.ConnMetadata, *interposer.Peer) (*ssh.Permissions, error) { return nil, nil }}
	return pair{s.Config(t.Context(), new(ssh.ServerConfig)).GSSAPIWithMICConfig, sshgss.NewClient(t.Context(), daemon, interposer.ServiceCred)}
}

func isNoContext(err error) bool {
	e, ok := errors.AsType[*mech.Error](err)
	return ok && e.Major == mech.NoContext
}

// TestOrder calls things when it is not their turn.
func TestOrder(t *testing.T) {
	daemon := interposertest.Start(t).Client(t)
	p := newPair(t, daemon)
	s := p.server.Server
	if err := s.VerifyMIC(field("a session"), []byte("mic")); !isNoContext(err) {
		t.Errorf("a MIC before the context: %v", err)
	}
	if _, err := p.client.GetMIC(field("a session")); !isNoContext(err) {
		t.Errorf("a MIC before the context: %v", err)
	}
	if _, _, err := p.client.InitSecContext("host@www", []byte("token"), false); !isNoContext(err) {
		t.Errorf("a token before the first: %v", err)
	}
	if _, err := p.server.AllowLogin(conn{session: "a session"}, ""); !isNoContext(err) {
		t.Errorf("let in before the context: %v", err)
	}
	if err := errors.Join(s.DeleteSecContext(), p.client.DeleteSecContext()); err != nil {
		t.Error(err)
	}
	p.begin(t)
	if _, err := p.server.AllowLogin(conn{session: "a session"}, ""); !isNoContext(err) {
		t.Errorf("let in before the MIC: %v", err)
	}
	if _, _, err := p.client.InitSecContext("host@www", []byte("token"), false); !isNoContext(err) {
		t.Errorf("a token after the last: %v", err)
	}
	mic, err := p.client.GetMIC(field("a session"))
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range [][]byte{field("another"), nil, {0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 2, 'a'}, {255, 255, 255, 255, 'a'}} {
		if err := s.VerifyMIC(other, mic); err == nil {
			t.Errorf("the MIC of %q", other)
		}
	}
	if err := s.VerifyMIC(field("a session"), mic); err != nil {
		t.Error(err)
	}
	if _, err := p.server.AllowLogin(conn{session: "a session"}, ""); err != nil {
		t.Error(err)
	}
	if err := s.VerifyMIC(field("a session"), mic); !errors.Is(err, reason.OutOfOrder) {
		t.Errorf("the MIC, repeated: %v", err)
	}
	if err := s.DeleteSecContext(); err != nil {
		t.Error(err)
	}
	if _, err := p.server.AllowLogin(conn{session: "a session"}, ""); !isNoContext(err) {
		t.Errorf("let in after the context: %v", err)
	}
	if _, _, _, err := newPair(t, daemon).server.Server.AcceptSecContext([]byte("\x60\x0a\x06\x06\x2b\x06\x01\x05\x05\x02\xa0\x00")); err == nil {
		t.Error("SPNEGO in SSH")
	}
}

// TestShared has a call of a second connection come at every point of the first one's login.
func TestShared(t *testing.T) {
	daemon := interposertest.Start(t).Client(t)
	const want = "call Server.Config for each connection"
	shared := func(what string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want: %s", what, err, want)
		}
	}
	mic := func(p pair, session string) []byte {
		t.Helper()
		mic, err := p.client.GetMIC(field(session))
		if err != nil {
			t.Fatal(err)
		}
		return mic
	}
	token := interposertest.Token("bob@EXAMPLE.TEST", "host@www", mech.FlagMutual|mech.FlagInteg, false)

	p := newPair(t, daemon)
	p.begin(t)
	_, _, _, err := p.server.Server.AcceptSecContext(token)
	shared("a token when the MIC is next", err)
	shared("the first one's MIC after that", p.server.Server.VerifyMIC(field("first"), mic(p, "first")))

	p = newPair(t, daemon)
	p.begin(t)
	if err := p.server.Server.VerifyMIC(field("first"), mic(p, "first")); err != nil {
		t.Fatal(err)
	}
	_, err = p.server.AllowLogin(conn{session: "second"}, "")
	shared("to be let in with the first one's MIC", err)
	_, err = p.server.AllowLogin(conn{session: "first"}, "")
	shared("the first one after that", err)

	p = newPair(t, daemon)
	p.begin(t)
	if err := p.server.Server.VerifyMIC(field("first"), mic(p, "first")); err != nil {
		t.Fatal(err)
	}
	p.server.Server.DeleteSecContext()
	p.client.DeleteSecContext()
	p.begin(t)
	shared("a MIC of another session", p.server.Server.VerifyMIC(field("second"), mic(p, "second")))
	p.server.Server.DeleteSecContext()
	_, _, _, err = p.server.Server.AcceptSecContext(token)
	shared("the first one's next attempt", err)
}

// TestSharedClient has two connections use one Client at once.
func TestSharedClient(t *testing.T) {
	daemon := interposertest.Start(t).Client(t)
	c := sshgss.NewClient(t.Context(), daemon, interposer.ServiceCred)
	if _, _, err := c.InitSecContext("host@one", nil, false); err != nil {
		t.Fatal(err)
	}
	const want = "call NewClient for each connection"
	if _, _, err := c.InitSecContext("host@two", nil, false); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a second connection: %v", err)
	}
	if _, _, err := c.InitSecContext("host@one", []byte("the acceptor's answer"), false); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("the first one: %v", err)
	}
	if _, err := c.GetMIC(field("a session")); err == nil || !strings.Contains(err.Error(), want) || c.Peer() != nil {
		t.Errorf("the first one's MIC: %v, %v", err, c.Peer())
	}
}

// TestMissingSettings leaves out what a Server cannot do without.
func TestMissingSettings(t *testing.T) {
	daemon := interposertest.Start(t).Client(t)
	allow := func(ssh.ConnMetadata, *interposer.Peer) (*ssh.Permissions, error) { return nil, nil }
	for want, tt := range map[string]struct {
		s    *sshgss.Server
		base *ssh.ServerConfig
	}{
		"Server.Daemon is nil": {&sshgss.Server{Allow: allow}, new(ssh.ServerConfig)},
		"Server.Allow is nil":  {&sshgss.Server{Daemon: daemon}, new(ssh.ServerConfig)},
		"no ssh.ServerConfig":  {&sshgss.Server{Daemon: daemon, Allow: allow}, nil},
	} {
		func() {
			defer func() {
				if said := fmt.Sprint(recover()); !strings.Contains(said, want) {
					t.Errorf("%q, want %q", said, want)
				}
			}()
			tt.s.Config(t.Context(), tt.base)
		}()
	}
}
