package negotiate_test

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"

	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/interposer/negotiate"
	"gssproxyd/mech"
)

// A server asks another one as the user who asks it, who has to delegate for that. Without there is
// no call, and above all none as the server itself.
func ExampleTransport_As() {
	host := interposertest.StartForExample() // the daemon on the servers' host
	defer host.Stop()
	host.Principal = "HTTP/www.example.test@EXAMPLE.TEST"
	daemon := interposer.New(host.Socket, interposer.Options{})
	defer daemon.Close()
	auth := &negotiate.Authenticator{Daemon: daemon, Delegate: true}
	plain := []string{"127.0.0.1"} // there is no TLS here

	back := httptest.NewServer(auth.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "mail for %v", negotiate.ClientFrom(r.Context()))
	})))
	defer back.Close()

	outgoing := &negotiate.Transport{Daemon: daemon, Cred: interposer.ServiceCred, Plain: plain}
	defer outgoing.CloseIdleConnections()
	front := httptest.NewServer(auth.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asUser, err := outgoing.As(negotiate.ClientFrom(r.Context()))
		if errors.Is(err, negotiate.ErrNotDelegated) {
			http.Error(w, "you have not delegated", http.StatusForbidden)
			return
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer asUser.CloseIdleConnections()
		resp, err := (&http.Client{Transport: asUser}).Get(back.URL)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		io.Copy(w, resp.Body)
	})))
	defer front.Close()

	desk := interposertest.StartForExample() // the daemon on alice's host
	defer desk.Stop()
	user := interposer.New(desk.Socket, interposer.Options{})
	defer user.Close()
	for _, flags := range []interposer.Flags{0, mech.FlagDeleg} {
		alice := &http.Client{Transport: &negotiate.Transport{
			Daemon: user, Cred: interposer.ServiceCred, Flags: flags, Plain: plain,
		}}
		resp, err := alice.Get(front.URL)
		if err != nil {
			log.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		alice.CloseIdleConnections()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%d: %s\n", resp.StatusCode, body)
	}
	// Output:
	// 403: you have not delegated
	//
	// 200: mail for alice@EXAMPLE.TEST
}
