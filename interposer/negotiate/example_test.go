package negotiate_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"

	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/interposer/negotiate"
	"gssproxyd/mech"
)

// A server that knows who asks, and a client that authenticates wherever it is asked to.
func Example() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	daemon, err := interposer.Dial(context.Background(), fake.Socket, interposer.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer daemon.Close()

	server := httptest.NewServer(&negotiate.Handler{
		Daemon: daemon,
		Allow:  negotiate.Principals("alice@EXAMPLE.TEST"),
		Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "hello, %v", negotiate.FromContext(r.Context()).Name)
		}),
	})
	defer server.Close()

	client := &http.Client{Transport: &negotiate.Transport{Daemon: daemon, Base: server.Client().Transport}}
	resp, err := client.Get(server.URL)
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %s\n", resp.Status, body)
	// Output: 200 OK: hello, alice@EXAMPLE.TEST
}

// A client authenticates, and is told who the server has proven to be.
func ExampleTransport() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	daemon, err := interposer.Dial(context.Background(), fake.Socket, interposer.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer daemon.Close()
	server := httptest.NewServer(&negotiate.Handler{Daemon: daemon, Next: http.NotFoundHandler()})
	defer server.Close()

	client := &http.Client{Transport: &negotiate.Transport{Daemon: daemon, Base: server.Client().Transport}}
	resp, err := client.Get(server.URL)
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	peer := negotiate.FromContext(resp.Request.Context())
	fmt.Printf("%v with %s: %s\n", peer.Name, interposer.FlagNames(peer.Flags), resp.Status)
	// Output: HTTP@127.0.0.1 with mutual, integrity, transferable: 404 Not Found
}

// A server demands proof that is bound to its certificate.
func ExampleBind() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	daemon, err := interposer.Dial(context.Background(), fake.Socket, interposer.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer daemon.Close()
	lender := httptest.NewTLSServer(nil) // has a certificate, and a client that believes it
	lender.Close()

	server := &http.Server{
		Handler: &negotiate.Handler{
			Daemon:  daemon,
			Require: mech.FlagChannelBound,
			Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprint(w, interposer.FlagNames(negotiate.FromContext(r.Context()).Flags))
			}),
		},
		TLSConfig: &tls.Config{Certificates: lender.TLS.Certificates},
	}
	negotiate.Bind(server)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- server.ServeTLS(listener, "", "") }()

	client := &http.Client{Transport: &negotiate.Transport{Daemon: daemon, Base: lender.Client().Transport}}
	resp, err := client.Get("https://" + listener.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	flags, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %s\n", resp.Status, flags)
	client.CloseIdleConnections()
	server.Close()
	<-served
	// Output: 200 OK: mutual, integrity, transferable, channel-bound
}
