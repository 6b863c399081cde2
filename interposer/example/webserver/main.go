// Command webserver greets those who prove by Kerberos that they are one of the principals named.
// It has no keytab: the gssproxy daemon has it.
//
//	webserver 127.0.0.1:8080 alice@EXAMPLE.COM bob@EXAMPLE.COM
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"gssproxyd/interposer"
	"gssproxyd/interposer/negotiate"
)

func main() {
	if len(os.Args) < 3 {
		log.Fatal("usage: webserver ADDRESS PRINCIPAL...")
	}
	auth := &negotiate.Authenticator{
		// The daemon may be restarted meanwhile, and may come up after this program.
		Daemon: interposer.New("", interposer.Options{WaitForDaemon: 5 * time.Second}),
		Allow:  negotiate.Principals(os.Args[2:]...),
	}
	hello := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello, %s\n", negotiate.ClientFrom(r.Context()))
	}
	server := &http.Server{
		Addr:              os.Args[1],
		Handler:           auth.Wrap(http.HandlerFunc(hello)),
		ReadHeaderTimeout: 10 * time.Second,
	}
	negotiate.Bind(server)
	log.Fatal(server.ListenAndServe())
}
