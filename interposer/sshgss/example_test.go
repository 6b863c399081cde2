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
)

// An SSH server lets a user in, and a client logs in, without a key of either.
func Example() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	ctx := context.Background()
	daemon, err := interposer.Dial(ctx, fake.Socket, interposer.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer daemon.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	hostKey, err := ssh.NewSignerFromKey(key)
	if err != nil {
		log.Fatal(err)
	}

	// The server: a configuration and an sshgss.Server for each connection.
	serve := func(conn net.Conn) error {
		defer conn.Close()
		allow := func(conn ssh.ConnMetadata, principal string) (*ssh.Permissions, error) {
			if principal != conn.User()+"@EXAMPLE.TEST" {
				return nil, errors.New("not allowed")
			}
			return nil, nil
		}
		config := &ssh.ServerConfig{
			GSSAPIWithMICConfig: &ssh.GSSAPIWithMICConfig{Server: sshgss.NewServer(ctx, daemon), AllowLogin: allow},
		}
		config.AddHostKey(hostKey)
		login, channels, requests, err := ssh.NewServerConn(conn, config)
		if err != nil {
			return err
		}
		go ssh.DiscardRequests(requests)
		for c := range channels {
			c.Reject(ssh.Prohibited, "this is an example")
		}
		login.Wait()
		fmt.Printf("%s was logged in\n", login.User())
		return nil
	}
	served := make(chan error)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			err = serve(conn)
		}
		served <- err
	}()

	// The client, whose target is the server's host name.
	client, err := ssh.Dial("tcp", listener.Addr().String(), &ssh.ClientConfig{
		User:            "alice",
		Auth:            []ssh.AuthMethod{ssh.GSSAPIWithMICAuthMethod(sshgss.NewClient(ctx, daemon), "www.example.test")},
		HostKeyCallback: ssh.FixedHostKey(hostKey.PublicKey()),
	})
	if err != nil {
		log.Fatal(err)
	}
	client.Close()
	if err := <-served; err != nil {
		log.Fatal(err)
	}
	// Output: alice was logged in
}
