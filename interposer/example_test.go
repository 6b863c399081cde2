package interposer_test

import (
	"context"
	"errors"
	"fmt"
	"net"

	"gssproxyd/interposer"
	"gssproxyd/mech"
)

// A server that cannot read the keytab accepts a context and answers one
// message. receive and send carry the protocol's tokens.
func Example() {
	var (
		peer    net.Conn
		receive func(net.Conn) []byte
		send    func(net.Conn, []byte)
	)
	ctx := context.Background()
	daemon, err := interposer.Dial(ctx, "", interposer.Options{})
	if err != nil {
		return
	}
	defer daemon.Close()
	accepted, err := daemon.AcceptSecContext(ctx, interposer.AcceptRequest{Token: receive(peer)})
	if refusal := (*mech.Error)(nil); errors.As(err, &refusal) {
		send(peer, refusal.Token)
	}
	if err != nil {
		return
	}
	send(peer, accepted.Token)
	msg, sealed, _, err := accepted.Context.Unwrap(nil, receive(peer))
	fmt.Println(accepted.Context.Source(), msg, sealed, err)
}
