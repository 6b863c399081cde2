package interposer_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
)

// A client and a server, neither of which has a key, establish a context and exchange a message.
// Between programs the tokens go over a connection; each program has a daemon that it calls with
// New("", interposer.Options{}).
func Example() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	ctx := context.Background()
	daemon := interposer.New(fake.Socket, interposer.Options{})
	defer daemon.Close()

	// The client begins. The server accepts, and proves its name with a token of its own.
	client, token, err := daemon.InitSecContext(ctx, interposer.InitRequest{
		Target: interposer.HostbasedName("imap", "mail.example.test"),
		Cred:   interposer.ServiceCred,
		Flags:  mech.FlagMutual | mech.FlagConf | mech.FlagInteg,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	server, token, err := daemon.AcceptSecContext(ctx, interposer.AcceptRequest{Token: token})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	if _, err = client.Step(ctx, token); err != nil {
		log.Fatal(err)
	}

	// Both are established now. Messages are protected here, without the daemon.
	if token, err = client.Wrap(nil, []byte("good morning"), true); err != nil {
		log.Fatal(err)
	}
	msg, encrypted, err := server.Unwrap(nil, token)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%v says %q, encrypted: %t\n", server.Source(), msg, encrypted)
	// Output: alice@EXAMPLE.TEST says "good morning", encrypted: true
}

// Contexts of some mechanisms and flags take several tokens. Whoever has one reads them from the
// connection until the context is established.
func ExampleSecContext_Step() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	ctx := context.Background()
	daemon := interposer.New(fake.Socket, interposer.Options{})
	defer daemon.Close()

	toServer, toClient := make(chan []byte, 1), make(chan []byte, 1)
	go func() { // the server
		s, reply, err := daemon.AcceptSecContext(ctx, interposer.AcceptRequest{Token: <-toServer})
		for {
			if err != nil {
				log.Fatal(err)
			}
			if len(reply) > 0 {
				toClient <- reply
			}
			if s.Established() {
				break
			}
			reply, err = s.Step(ctx, <-toServer)
		}
		defer s.Close()
		close(toClient)
	}()
	s, token, err := daemon.InitSecContext(ctx, interposer.InitRequest{
		Target: interposer.HostbasedName("imap", "mail.example.test"), Cred: interposer.ServiceCred,
		Mech: mech.SPNEGO, Flags: mech.FlagMutual,
	})
	for {
		if err != nil {
			log.Fatal(err)
		}
		if len(token) > 0 {
			toServer <- token
		}
		if s.Established() {
			break
		}
		token, err = s.Step(ctx, <-toClient)
	}
	defer s.Close()
	<-toClient // closed
	fmt.Println(s, "by", s.Flags())
	// Output: context of alice@EXAMPLE.TEST with imap@mail.example.test by mutual, integrity, transferable
}

// Who the client is, what was granted, and what it has delegated. As the client a server acts with
// Delegated alone: it is nil if nothing was delegated, which InitSecContext refuses.
func ExampleSecContext_Peer() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	ctx := context.Background()
	daemon := interposer.New(fake.Socket, interposer.Options{})
	defer daemon.Close()

	token := interposertest.Token("bob@EXAMPLE.TEST", "imap@mail.example.test", mech.FlagDeleg, false)
	server, _, err := daemon.AcceptSecContext(ctx, interposer.AcceptRequest{Token: token, Delegate: true})
	if err != nil {
		log.Fatal(err)
	}
	peer, err := server.Peer()
	server.Close() // what the peer is stays known
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%v: %v\n", peer, peer.Flags)

	backend, _, err := daemon.InitSecContext(ctx, interposer.InitRequest{
		Target: interposer.HostbasedName("postgres", "db.example.test"),
		Cred:   peer.Delegated,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer backend.Close()
	fmt.Println(backend)
	// Output:
	// bob@EXAMPLE.TEST: delegation, transferable
	// context of bob@EXAMPLE.TEST with postgres@db.example.test
}

// A daemon that is being exchanged for another one is waited for. Programs of one that is always
// there do without, and with [interposer.Options] that are zero.
func ExampleNew() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	daemon := interposer.New(fake.Socket, interposer.Options{WaitForDaemon: 10 * time.Second})
	defer daemon.Close()

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	own, err := daemon.AcquireCred(ctx, interposer.AcquireRequest{Usage: interposer.Initiate})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("we are", own.Name())
	// Output: we are alice@EXAMPLE.TEST
}

// A service that the KDC trusts to do so acts for a user who has proved in some other way who he is.
func ExampleClient_AcquireCred_impersonate() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	ctx := context.Background()
	daemon := interposer.New(fake.Socket, interposer.Options{})
	defer daemon.Close()

	bob, err := daemon.AcquireCred(ctx, interposer.AcquireRequest{
		Usage: interposer.Initiate, Name: interposer.Principal("bob@EXAMPLE.TEST"), Impersonate: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	backend, _, err := daemon.InitSecContext(ctx, interposer.InitRequest{
		Target: interposer.HostbasedName("postgres", "db.example.test"),
		Cred:   bob,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer backend.Close()
	fmt.Println(bob, "makes a", backend)
	// Output: credential of bob@EXAMPLE.TEST makes a context of bob@EXAMPLE.TEST with postgres@db.example.test
}

// A server that gives its clients accounts asks which one a principal has.
func ExampleClient_LocalName() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	ctx := context.Background()
	daemon := interposer.New(fake.Socket, interposer.Options{})
	defer daemon.Close()

	for _, principal := range []string{"alice@EXAMPLE.TEST", "alice@ELSEWHERE.TEST"} {
		user, err := daemon.LocalName(ctx, interposer.Principal(principal), mech.KRB5)
		switch {
		case errors.Is(err, reason.NoLocalName):
			fmt.Println(principal, "has no account here")
		case err != nil:
			log.Fatal(err)
		default:
			fmt.Println(principal, "is", user)
		}
	}
	// Output:
	// alice@EXAMPLE.TEST is alice
	// alice@ELSEWHERE.TEST has no account here
}

// Names are compared as the mechanism's: without a realm one is of the default realm.
func ExampleClient_ImportName() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	daemon := interposer.New(fake.Socket, interposer.Options{})
	defer daemon.Close()

	name, err := daemon.ImportName(context.Background(), interposer.Principal("alice"), mech.KRB5)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(name)
	// Output: alice@EXAMPLE.TEST
}

// A credential is kept in a file or a database as bytes, which only the daemon can open. One that it
// cannot open any more is refused: the user has to come again.
func ExampleCred_MarshalBinary() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	ctx := context.Background()
	daemon := interposer.New(fake.Socket, interposer.Options{})
	defer daemon.Close()

	cred, err := daemon.AcquireCred(ctx, interposer.AcquireRequest{Usage: interposer.Initiate})
	if err != nil {
		log.Fatal(err)
	}
	kept, err := cred.MarshalBinary()
	if err != nil {
		log.Fatal(err)
	}

	// Later, perhaps in another process of the service.
	cred = new(interposer.Cred)
	if err := cred.UnmarshalBinary(kept); err != nil {
		log.Fatal(err)
	}
	fake.Forget() // the key is lost with which the daemon had sealed it
	_, _, err = daemon.InitSecContext(ctx, interposer.InitRequest{
		Target: interposer.HostbasedName("imap", "mail.example.test"),
		Cred:   cred,
	})
	fmt.Println(errors.Is(err, reason.BadCredential))
	// Output: true
}

// What the daemon refuses has a reason, which stays the same from release to release, and may have
// a token that tells the client why.
func ExampleClient_AcceptSecContext_refused() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	daemon := interposer.New(fake.Socket, interposer.Options{})
	defer daemon.Close()

	broken := interposertest.Token("alice@EXAMPLE.TEST", "imap@mail.example.test", mech.FlagMutual, true)
	_, _, err := daemon.AcceptSecContext(context.Background(), interposer.AcceptRequest{Token: broken})
	if errors.Is(err, reason.ClockSkew) {
		fmt.Println("the clocks differ")
	}
	if refusal, ok := errors.AsType[*mech.Error](err); ok {
		fmt.Printf("reason: %s\nto the client: %s\n", refusal.Reason, refusal.Token)
	}
	// Output:
	// the clocks differ
	// reason: clock-skew
	// to the client: KRB-ERROR
}
