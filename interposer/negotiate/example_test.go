package negotiate_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"log"
	"net/http"

	"gssproxyd/interposer"
	"gssproxyd/interposer/negotiate"
	"gssproxyd/mech"
)

// A client that authenticates wherever it is asked to.
func ExampleTransport() {
	daemon, err := interposer.Dial(context.Background(), "", interposer.Options{})
	if err != nil {
		log.Fatal(err)
	}
	client := &http.Client{Transport: &negotiate.Transport{Daemon: daemon}}
	resp, err := client.Get("https://www.example.com/")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status, negotiate.FromContext(resp.Request.Context()))
}

// A server that demands proof which is bound to its certificate.
func ExampleBind() {
	daemon, err := interposer.Dial(context.Background(), "", interposer.Options{})
	if err != nil {
		log.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair("cert.pem", "key.pem")
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{
		Handler:   &negotiate.Handler{Daemon: daemon, Next: http.FileServer(http.Dir(".")), Require: mech.FlagChannelBound},
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
	}
	negotiate.Bind(server)
	log.Fatal(server.ListenAndServeTLS("", ""))
}
