package sshgss_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log"
	"net"

	"golang.org/x/crypto/ssh"

	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/interposer/sshgss"
	"gssproxyd/mech"
)

// An SSH server lets a user in, and a client logs in, without a key of either. The server runs one
// command: it says who is there.
func Example() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	ctx := context.Background()
	daemon := interposer.New(fake.Socket, interposer.Options{})
	defer daemon.Close()

	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	hostKey, err := ssh.NewSignerFromKey(key)
	if err != nil {
		log.Fatal(err)
	}
	base := new(ssh.ServerConfig)
	base.AddHostKey(hostKey)

	server := &sshgss.Server{
		Daemon:   daemon,
		Delegate: true,
		Allow: func(conn ssh.ConnMetadata, p *interposer.Peer) (*ssh.Permissions, error) {
			if p.Name.Display != conn.User()+"@EXAMPLE.TEST" {
				return nil, errors.New("the principal is not that user's")
			}
			what := fmt.Sprintf("%v, logged in as %s, delegated: %t\n", p, conn.User(), p.Delegated != nil)
			return &ssh.Permissions{ExtraData: map[any]any{"whoami": what}}, nil
		},
	}
	serve := func(conn net.Conn) error {
		defer conn.Close()
		login, channels, requests, err := ssh.NewServerConn(conn, server.Config(ctx, base))
		if err != nil {
			return err
		}
		go ssh.DiscardRequests(requests)
		for c := range channels {
			channel, requests, err := c.Accept()
			if err != nil {
				return err
			}
			for r := range requests {
				r.Reply(r.Type == "exec", nil)
				if r.Type == "exec" {
					fmt.Fprint(channel, login.Permissions.ExtraData["whoami"])
					channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{0}))
					channel.Close()
				}
			}
		}
		login.Wait()
		return nil
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()
	served := make(chan error)
	go func() {
		conn, err := listener.Accept() // a server has a goroutine for each
		if err == nil {
			err = serve(conn)
		}
		served <- err
	}()

	// The client, whose target is the server's host name.
	gss := sshgss.NewClient(ctx, daemon, interposer.ServiceCred)
	gss.Flags = mech.FlagDeleg
	client, err := ssh.Dial("tcp", listener.Addr().String(), &ssh.ClientConfig{
		User:            "alice",
		Auth:            []ssh.AuthMethod{ssh.GSSAPIWithMICAuthMethod(gss, "www.example.test")},
		HostKeyCallback: ssh.FixedHostKey(hostKey.PublicKey()),
	})
	if err != nil {
		log.Fatal(err)
	}
	session, err := client.NewSession()
	if err != nil {
		log.Fatal(err)
	}
	out, err := session.Output("whoami")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s%v proved itself\n", out, gss.Peer())
	session.Close()
	client.Close()
	if err := <-served; err != nil {
		log.Fatal(err)
	}
	// Output:
	// alice@EXAMPLE.TEST, logged in as alice, delegated: true
	// host@www.example.test proved itself
}
