package lab

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// GSSServer is MIT's example server, for one connection.
type GSSServer struct {
	*Process
	Port int
}

// GSSServer starts gss-server as user u for a hostbased service and waits until it listens. What it
// says is in its output once it has ended, which it does after its one connection.
func (r *Realm) GSSServer(u User, env []string, service string) (*GSSServer, error) {
	for range 5 {
		port, err := FreePort()
		if err != nil {
			return nil, err
		}
		cmd := r.Command(u, env, "/usr/bin/gss-server", "-port", strconv.Itoa(port), "-once", "-verbose", service)
		p, err := r.Start(cmd, r.Path("gss-server.log"))
		if err != nil {
			return nil, err
		}
		err = p.wait(Patience, "listen", func() bool { return Listening(port) })
		if err == nil {
			return &GSSServer{p, port}, nil
		}
		if !strings.Contains(p.Output(), "binding socket") {
			return nil, err
		}
	}
	return nil, errors.New("gss-server finds every port taken")
}

// GSSClient runs MIT's example client as user u against s: it sends the message and verifies the
// MIC that comes back. options are the client's. It returns what the client said.
func (r *Realm) GSSClient(u User, env []string, s *GSSServer, service, message string, options ...string) (string, error) {
	args := append([]string{"-port", strconv.Itoa(s.Port)}, options...)
	return r.Run(u, env, "/usr/bin/gss-client", append(args, "127.0.0.1", service, message)...)
}

// Wait waits for the server's end, and returns what it said.
func (s *GSSServer) Wait() (string, error) {
	select {
	case <-s.Done():
		return s.Output(), nil
	case <-time.After(Patience):
		return s.Output(), fmt.Errorf("gss-server does not end; its output:\n%s", s.Output())
	}
}
