package interposer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"gssproxyd/mech"
	"gssproxyd/xdr"
)

// Usage is what a credential is for.
type Usage = xdr.CredUsage

// Values of Usage.
const (
	Initiate = xdr.CredInitiate
	Accept   = xdr.CredAccept
	Both     = xdr.CredBoth
)

// Indefinite is the lifetime of what does not expire.
const Indefinite = time.Duration(math.MaxInt64)

// Cred is a credential that the daemon has. This end holds a handle that only the daemon can open,
// together with a description. A Cred is immutable and may be used by any number of goroutines.
type Cred struct{ w xdr.Cred }

// Element describes a credential for one mechanism.
type Element struct {
	Name                Name
	Mech                mech.OID
	Usage               Usage
	Initiator, Acceptor time.Duration // lifetimes when the credential was acquired
}

// Name returns the name the credential was acquired for, or got.
func (c Cred) Name() Name { return nameOf(&c.w.DesiredName) }

// Elements returns the descriptions, one for each mechanism.
func (c Cred) Elements() []Element {
	list := make([]Element, len(c.w.Elements))
	for i := range c.w.Elements {
		w := &c.w.Elements[i]
		list[i] = Element{
			Name: nameOf(&w.MN), Mech: mech.OID(w.Mech), Usage: w.CredUsage,
			Initiator: lifetime(w.InitiatorTimeRec), Acceptor: lifetime(w.AcceptorTimeRec),
		}
	}
	return list
}

// String returns the name.
func (c Cred) String() string { return fmt.Sprintf("credential of %s", c.Name()) }

// Format writes what String returns, whatever the verb: the handle is a secret.
func (c Cred) Format(f fmt.State, _ rune) { io.WriteString(f, c.String()) }

// MarshalBinary returns the credential in the form that the protocol has and that clients keep in
// credential caches: an encoded gssx_cred.
func (c Cred) MarshalBinary() ([]byte, error) { return c.w.Append(nil), nil }

// UnmarshalBinary is the inverse. The daemon treats a handle that it cannot open as if there were
// none.
func (c *Cred) UnmarshalBinary(b []byte) error {
	d := xdr.NewDecoder(some(b))
	var w xdr.Cred
	if w.Decode(d); d.Err() != nil {
		return fmt.Errorf("gssproxy: credential: %w", d.Err())
	}
	c.w = w
	return nil
}

// lifetime converts gssx_time: seconds, or all ones in 32 bits.
func lifetime(seconds uint64) time.Duration {
	if seconds >= math.MaxUint32 {
		return Indefinite
	}
	return time.Duration(seconds) * time.Second
}

// seconds is the inverse of lifetime.
func seconds(d time.Duration) uint64 {
	switch {
	case d <= 0:
		return 0
	case d > math.MaxUint32*time.Second:
		return math.MaxUint32
	}
	return uint64((d + time.Second - 1) / time.Second)
}

// AcquireRequest says which credential is wanted.
type AcquireRequest struct {
	Usage       Usage
	Name        Name          // zero: the one that the daemon's configuration says
	Mechs       []mech.OID    // nil: those that the daemon chooses
	Lifetime    time.Duration // 0: the default
	Input       *Cred         // to be renewed or looked at, or with Impersonate to act for Name
	Impersonate bool          // get a credential of Name by Input (S4U2Self)
}

// AcquireCred acquires a credential. Contexts can be made without: then the daemon takes the
// service's.
func (c *Client) AcquireCred(ctx context.Context, r AcquireRequest) (*Cred, error) {
	arg := xdr.ArgAcquireCred{TimeReq: seconds(r.Lifetime), CredUsage: r.Usage, InputCredHandle: r.Input.wire()}
	if r.Name.Display != "" || r.Name.Exported != nil {
		arg.DesiredName = xdr.Some(r.Name.wire())
	}
	for _, m := range r.Mechs {
		arg.DesiredMechs = append(arg.DesiredMechs, []byte(m))
	}
	if r.Impersonate {
		arg.Options = []xdr.Option{{Option: []byte("acquire_type\x00"), Value: []byte("impersonate_name\x00")}}
	}
	var res xdr.ResAcquireCred
	if err := c.call(ctx, xdr.ProcAcquireCred, &arg, &res, &res.Status, nil); err != nil {
		return nil, err
	}
	if !res.OutputCredHandle.Set {
		return nil, errors.New("gssproxy: ACQUIRE_CRED: there is no credential in the results")
	}
	return &Cred{res.OutputCredHandle.V}, nil
}

// wire returns c as an argument; a nil Cred is an absent one.
func (c *Cred) wire() xdr.Opt[xdr.Cred] {
	if c == nil {
		return xdr.Opt[xdr.Cred]{}
	}
	return xdr.Some(c.w)
}
