package pggss_test

import (
	"context"
	"fmt"
	"log"

	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/interposer/pggss"
)

// What a driver does with the GSS that it got from its provider.
func Example() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	ctx := context.Background()
	daemon := interposer.New(fake.Socket, interposer.Options{})
	defer daemon.Close()

	gss := pggss.New(ctx, daemon, interposer.ServiceCred)
	token, err := gss.GetInitToken("db.example.test", "postgres")
	if err != nil {
		log.Fatal(err)
	}
	server, answer, err := daemon.AcceptSecContext(ctx, interposer.AcceptRequest{Token: token}) // PostgreSQL's part
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	done, _, err := gss.Continue(answer)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%v logs in to %v, done: %t\n", server.Source(), gss.Peer(), done)
	// Output: alice@EXAMPLE.TEST logs in to postgres@db.example.test, done: true
}
