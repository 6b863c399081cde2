package pggss_test

import (
	"context"
	"fmt"
	"log"

	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/interposer/pggss"
)

// What a driver does with the GSS that it was given: with pgx it is registered once, before the
// first connection, by
//
//	pgconn.RegisterGSSProvider(func() (pgconn.GSS, error) { return pggss.New(ctx, daemon), nil })
func Example() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	ctx := context.Background()
	daemon, err := interposer.Dial(ctx, fake.Socket, interposer.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer daemon.Close()

	gss := pggss.New(ctx, daemon)
	token, err := gss.GetInitToken("db.example.test", "postgres")
	if err != nil {
		log.Fatal(err)
	}
	server, err := daemon.AcceptSecContext(ctx, interposer.AcceptRequest{Token: token}) // PostgreSQL's part
	if err != nil {
		log.Fatal(err)
	}
	defer server.Context.Close()
	done, _, err := gss.Continue(server.Token)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%v logs in to %v, done: %t\n", server.Context.Source(), server.Context.Target(), done)
	// Output: alice@EXAMPLE.TEST logs in to postgres@db.example.test, done: true
}
