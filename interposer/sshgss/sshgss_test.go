package sshgss_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"gssproxyd/interposer/interposertest"
	"gssproxyd/interposer/sshgss"
	"gssproxyd/mech"
)

var (
	_ ssh.GSSAPIServer = (*sshgss.Server)(nil)
	_ ssh.GSSAPIClient = (*sshgss.Client)(nil)
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// login has package ssh's two ends talk to each other, and returns how either ended.
func login(t *testing.T, s *sshgss.Server, c *sshgss.Client, allow string) (serverErr, clientErr error) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	config := &ssh.ServerConfig{GSSAPIWithMICConfig: &ssh.GSSAPIWithMICConfig{
		Server: s,
		AllowLogin: func(conn ssh.ConnMetadata, srcName string) (*ssh.Permissions, error) {
			if p := s.Peer(); p == nil || p.Name.Display != srcName {
				t.Errorf("%q is to be let in, authenticated is %+v", srcName, p)
			}
			if srcName != allow || conn.User() != "alice" {
				return nil, errors.New("not allowed")
			}
			return nil, nil
		},
	}}
	config.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	there, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	here, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{here, there} {
		c.SetDeadline(time.Now().Add(time.Minute))
	}
	done := make(chan error)
	go func() {
		conn, _, requests, err := ssh.NewServerConn(here, config)
		if err == nil {
			go ssh.DiscardRequests(requests)
			conn.Wait()
		}
		here.Close()
		done <- err
	}()
	conn, channels, requests, clientErr := ssh.NewClientConn(there, "www", &ssh.ClientConfig{
		User: "alice", HostKeyCallback: ssh.FixedHostKey(signer.PublicKey()),
		Auth: []ssh.AuthMethod{ssh.GSSAPIWithMICAuthMethod(c, "www.example.test")},
	})
	if clientErr == nil {
		ssh.NewClient(conn, channels, requests).Close()
	}
	there.Close()
	return <-done, clientErr
}

func TestLogin(t *testing.T) {
	d := interposertest.Start(t)
	daemon := d.Client(t)
	for _, delegate := range []bool{false, true} {
		s, c := sshgss.NewServer(t.Context(), daemon), sshgss.NewClient(t.Context(), daemon)
		s.Delegate, c.Delegate = true, delegate
		if err1, err2 := login(t, s, c, "alice@EXAMPLE.TEST"); err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		p := s.Peer()
		if p == nil || p.Name.Display != "alice@EXAMPLE.TEST" || p.Flags&mech.FlagInteg == 0 || (p.Delegated != nil) != delegate {
			t.Errorf("%+v, delegating %v", p, delegate)
		}
		if err := s.VerifyMIC(nil, nil); err == nil {
			t.Error("the context outlives the login")
		}
	}
}

func TestRefusedLogin(t *testing.T) {
	d := interposertest.Start(t)
	daemon := d.Client(t)
	refused := func(what string, s *sshgss.Server, c *sshgss.Client, allow string) {
		t.Helper()
		err1, err2 := login(t, s, c, allow)
		if err1 == nil || err2 == nil {
			t.Errorf("%s: let in: %v, %v", what, err1, err2)
		}
	}
	refused("another principal", sshgss.NewServer(t.Context(), daemon), sshgss.NewClient(t.Context(), daemon), "bob@EXAMPLE.TEST")
	s := sshgss.NewServer(t.Context(), daemon)
	s.Require = mech.FlagConf
	refused("missing flags", s, sshgss.NewClient(t.Context(), daemon), "alice@EXAMPLE.TEST")
	d.Services = []string{"host@elsewhere"}
	refused("no ticket", sshgss.NewServer(t.Context(), daemon), sshgss.NewClient(t.Context(), daemon), "alice@EXAMPLE.TEST")
}

// TestOrder calls things when it is not their turn.
func TestOrder(t *testing.T) {
	daemon := interposertest.Start(t).Client(t)
	s, c := sshgss.NewServer(t.Context(), daemon), sshgss.NewClient(t.Context(), daemon)
	if err := s.VerifyMIC([]byte("field"), []byte("mic")); err == nil {
		t.Error("a MIC before the context")
	}
	if _, err := c.GetMIC([]byte("field")); err == nil {
		t.Error("a MIC before the context")
	}
	if _, _, err := c.InitSecContext("host@www", []byte("token"), false); err == nil {
		t.Error("a token before the first")
	}
	if err := errors.Join(s.DeleteSecContext(), c.DeleteSecContext()); err != nil {
		t.Error(err)
	}
	token, more, err := c.InitSecContext("host@www", nil, false)
	if err != nil || !more {
		t.Fatal(more, err)
	}
	answer, name, more, err := s.AcceptSecContext(token)
	if err != nil || more || name != "alice@EXAMPLE.TEST" {
		t.Fatal(name, more, err)
	}
	if _, _, _, err := s.AcceptSecContext(token); err == nil {
		t.Error("a token after the last")
	}
	if out, more, err := c.InitSecContext("host@www", answer, false); err != nil || more || len(out) != 0 {
		t.Fatal(out, more, err)
	}
	if _, _, err := c.InitSecContext("host@www", answer, false); err == nil {
		t.Error("a token after the last")
	}
	mic, err := c.GetMIC([]byte("field"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.VerifyMIC([]byte("another field"), mic); err == nil || s.Peer() != nil {
		t.Errorf("the MIC of another field: %v, %+v", err, s.Peer())
	}
	if err := s.VerifyMIC([]byte("field"), mic); err != nil || s.Peer() == nil {
		t.Error(err)
	}
	if err := s.VerifyMIC([]byte("field"), mic); err == nil {
		t.Error("the MIC, repeated")
	}
	if _, _, _, err := sshgss.NewServer(t.Context(), daemon).AcceptSecContext([]byte("\x60\x0a\x06\x06\x2b\x06\x01\x05\x05\x02\xa0\x00")); err == nil {
		t.Error("SPNEGO in SSH")
	}
}
