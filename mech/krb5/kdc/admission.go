package kdc

import (
	"context"

	"gssproxyd/mech"
)

// Admission decides what a [Client] may do now. On whose behalf it is done is in the context. Its
// methods may be called from any goroutine.
type Admission interface {
	// Turn waits until so many requests may be sent.
	Turn(ctx context.Context, requests int) (refused *mech.Error)
	// Request is asked before a request that has had its turn goes to the KDCs of a realm. What it
	// returns is told what came of the request: nil when a KDC has answered, or else why none did.
	// That is left out when nothing is known of the KDCs, since the context was over or a socket
	// refused.
	Request(ctx context.Context, realm string) (came func(*mech.Error), refused *mech.Error)
	// Socket is asked before each look-up of a name and each connection to a KDC; it may wait for
	// its turn. What it returns is called when that is over.
	Socket(ctx context.Context) (closed func(), refused *mech.Error)
}

// turn waits for the turn of so many requests.
func (c *Client) turn(ctx context.Context, requests int) (refused *mech.Error) {
	if c.Admission == nil {
		return nil
	}
	return c.Admission.Turn(ctx, requests)
}

// admit asks for a request.
func (c *Client) admit(ctx context.Context, realm string) (came func(*mech.Error), refused *mech.Error) {
	if c.Admission == nil {
		return func(*mech.Error) {}, nil
	}
	return c.Admission.Request(ctx, realm)
}

// notAdmitted is the error of a socket that was refused.
type notAdmitted struct{ refused *mech.Error }

func (e notAdmitted) Error() string { return e.refused.Error() }

// socket asks for one.
func (c *Client) socket(ctx context.Context) (closed func(), err error) {
	if c.Admission == nil {
		return func() {}, nil
	}
	closed, refused := c.Admission.Socket(ctx)
	if refused != nil {
		return nil, notAdmitted{refused}
	}
	return closed, nil
}
