package interposer_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/mech"
)

// A client and a server, neither of which has a key, establish a context and exchange a message.
// Between programs the tokens go over a connection; each program has a daemon that it calls with
// Dial(ctx, "", ...).
func Example() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	ctx := context.Background()
	daemon, err := interposer.Dial(ctx, fake.Socket, interposer.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer daemon.Close()

	// The client begins. The server accepts, and proves its name with a token of its own.
	request := interposer.InitRequest{
		Target: interposer.Name{Display: "imap@mail.example.test", Type: mech.NTHostbased},
		Flags:  mech.FlagMutual | mech.FlagConf | mech.FlagInteg,
	}
	client, err := daemon.InitSecContext(ctx, request)
	if err != nil {
		log.Fatal(err)
	}
	server, err := daemon.AcceptSecContext(ctx, interposer.AcceptRequest{Token: client.Token})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Context.Close()
	request.Context, request.Token = client.Context, server.Token
	if client, err = daemon.InitSecContext(ctx, request); err != nil {
		log.Fatal(err)
	}
	defer client.Context.Close()

	// Messages are protected here, without the daemon.
	token, err := client.Context.Wrap(nil, []byte("good morning"), true)
	if err != nil {
		log.Fatal(err)
	}
	msg, encrypted, order, err := server.Context.Unwrap(nil, token)
	if err != nil || order != mech.Complete {
		log.Fatal(order, err)
	}
	fmt.Printf("%v says %q, encrypted: %t\n", server.Context.Source(), msg, encrypted)
	// Output: alice@EXAMPLE.TEST says "good morning", encrypted: true
}

// What the daemon refuses has a reason, which stays the same from release to release, and may have
// a token that tells the client why.
func ExampleClient_AcceptSecContext_refused() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	ctx := context.Background()
	daemon, err := interposer.Dial(ctx, fake.Socket, interposer.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer daemon.Close()

	broken := interposertest.Token("alice@EXAMPLE.TEST", "imap@mail.example.test", mech.FlagMutual, true)
	_, err = daemon.AcceptSecContext(ctx, interposer.AcceptRequest{Token: broken})
	var refusal *mech.Error
	if errors.As(err, &refusal) {
		fmt.Printf("reason: %s\nto the client: %s\n", refusal.Reason, refusal.Token)
	}
	// Output:
	// reason: clock-skew
	// to the client: KRB-ERROR
}
