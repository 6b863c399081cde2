// Command webserver greets those who prove by Kerberos that they are one of the principals named.
// It has no keytab: the gssproxy daemon has it.
//
//	webserver 127.0.0.1:8080 alice@EXAMPLE.COM bob@EXAMPLE.COM
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"

	"gssproxyd/interposer"
	"gssproxyd/interposer/negotiate"
)

func main() {
	daemon, err := interposer.Dial(context.Background(), "", interposer.Options{})
	if err != nil {
		log.Fatal(err)
	}
	hello := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello, %s\n", negotiate.FromContext(r.Context()).Name)
	}
	log.Fatal(http.ListenAndServe(os.Args[1], &negotiate.Handler{
		Daemon: daemon, Allow: negotiate.Principals(os.Args[2:]...), Next: http.HandlerFunc(hello),
	}))
}
