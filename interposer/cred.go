package interposer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// Usage is what a credential is for.
type Usage int

// Values of Usage, for AcquireRequest.
const (
	Initiate = Usage(xdr.CredInitiate) // for InitSecContext: tickets
	Accept   = Usage(xdr.CredAccept)   // for AcceptSecContext: keys
	Both     = Usage(xdr.CredBoth)
)

// String returns "initiate", "accept" or "both".
func (u Usage) String() string {
	switch u {
	case Initiate:
		return "initiate"
	case Accept:
		return "accept"
	case Both:
		return "both"
	}
	return fmt.Sprintf("usage %d", int(u))
}

// Never is when something ends that does not: a time that is after every other one.
var Never = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// Cred is a credential that the daemon has. This end holds a handle that only the daemon can open,
// together with a description. A Cred is immutable and may be used by any number of goroutines.
//
// The zero Cred is none, and is refused wherever it is used. So is, by the daemon, a handle that it
// cannot open (the reason is bad-credential): no Cred ever stands for another one. Only the C daemon
// takes such a handle for none, and then uses the service's own credential.
type Cred struct {
	w       xdr.Cred
	got     time.Time // when the description was made
	service bool
}

// ServiceCred is the program's own credential: the one that the daemon's configuration has for the
// service that the program belongs to. It is for a program that acts in its own name. Which name
// that is the daemon knows: it has no Name and no Elements here; AcquireCred returns one that has.
var ServiceCred = &Cred{service: true}

// Element describes a credential for one mechanism, as it was when it was acquired: to show it, or
// to acquire a new one in time.
type Element struct {
	Name  Name
	Mech  mech.OID
	Usage Usage
	// When the credential ends as an initiator's and as an acceptor's; Never, or the zero Time if
	// the Cred was unmarshalled, which does not say since when the lifetimes count.
	InitiatorExpires, AcceptorExpires time.Time
}

// Name returns the name the credential was acquired for, or got.
func (c *Cred) Name() Name { return nameOf(&c.w.DesiredName) }

// Elements returns the descriptions, one for each mechanism; none of ServiceCred.
func (c *Cred) Elements() []Element {
	list := make([]Element, len(c.w.Elements))
	for i := range c.w.Elements {
		w := &c.w.Elements[i]
		list[i] = Element{Name: nameOf(&w.MN), Mech: mech.OID(w.Mech), Usage: Usage(w.CredUsage)}
		if !c.got.IsZero() {
			list[i].InitiatorExpires, list[i].AcceptorExpires = end(c.got, w.InitiatorTimeRec), end(c.got, w.AcceptorTimeRec)
		}
	}
	return list
}

// String says whose credential it is.
func (c Cred) String() string {
	switch {
	case c.service:
		return "the service's credential"
	case c.usable() != nil:
		return "no credential"
	}
	return fmt.Sprintf("credential of %s", c.Name())
}

// Format writes what String returns, whatever the verb: the handle is a secret.
func (c Cred) Format(f fmt.State, _ rune) { io.WriteString(f, c.String()) }

// LogValue returns what String does.
func (c *Cred) LogValue() slog.Value {
	if c == nil {
		return slog.StringValue(Cred{}.String())
	}
	return slog.StringValue(c.String())
}

// errNotText is for logs and answers to browsers, where a Cred gets by mistake.
var errNotText = errors.New("gssproxy: a credential is not written as text, as it would be into logs and answers: use MarshalBinary")

// MarshalText returns an error, for MarshalJSON and others who would write the Cred as text: it is
// kept with MarshalBinary.
func (c Cred) MarshalText() ([]byte, error) { return nil, errNotText }

// UnmarshalText returns an error, as MarshalText does.
func (c *Cred) UnmarshalText([]byte) error { return errNotText }

// MarshalBinary returns the credential in the form that the protocol has and that clients keep in
// credential caches: an encoded gssx_cred. It is for UnmarshalBinary in a program of the same
// service; whoever else has it can do nothing with it. ServiceCred and the zero Cred have none.
func (c *Cred) MarshalBinary() ([]byte, error) {
	if err := c.usable(); err != nil {
		return nil, err
	}
	if c.service {
		return nil, errors.New("gssproxy: the service's credential has no handle to be kept")
	}
	return c.w.Append(nil), nil
}

// UnmarshalBinary is the inverse of MarshalBinary. What it does not understand leaves c as it is.
func (c *Cred) UnmarshalBinary(b []byte) error {
	if c == ServiceCred {
		return errors.New("gssproxy: ServiceCred is not to be changed")
	}
	read, err := readCred(b)
	if err != nil {
		return err
	}
	*c = *read
	return nil
}

// readCred is UnmarshalBinary into a new Cred.
func readCred(b []byte) (*Cred, error) {
	d := xdr.NewDecoder(some(b))
	c := new(Cred)
	if c.w.Decode(d); d.Err() != nil {
		return nil, fmt.Errorf("gssproxy: credential: %w", d.Err())
	}
	if err := c.usable(); err != nil {
		return nil, err
	}
	return c, nil
}

// usable returns why a Cred is none.
func (c *Cred) usable() error {
	if c == nil {
		return badCred("there is no credential: interposer.ServiceCred is the program's own")
	}
	if !c.service && len(c.w.CredHandleReference) == 0 {
		return badCred("the credential is empty")
	}
	return nil
}

func badCred(text string) error {
	return mech.Errorf(mech.DefectiveCredential, 0, reason.BadCredential, "%s", text).Of("")
}

// handle returns a usable Cred as an argument, with the options that go with it: whoever sends a
// handle has one refused that does not open. The C daemon does not know the option, and ignores it.
func (c *Cred) handle() (xdr.Opt[xdr.Cred], []xdr.Option) {
	if c.service {
		return xdr.Opt[xdr.Cred]{}, nil
	}
	return xdr.Some(c.w), []xdr.Option{{Option: []byte("refuse_stale_handle\x00"), Value: []byte("yes\x00")}}
}

// end returns when something ends that has so long to live at some time: gssx_time is in seconds, or
// all ones in 32 bits.
func end(at time.Time, seconds uint64) time.Time {
	if seconds >= math.MaxUint32 {
		return Never
	}
	return at.Add(time.Duration(seconds) * time.Second)
}

// seconds converts a duration to gssx_time.
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
	Usage    Usage         // zero: Both
	Name     Name          // zero: the one that the daemon's configuration says; of an empty text: an error
	Mechs    []mech.OID    // nil: those that the daemon chooses
	Lifetime time.Duration // 0: the default
	Input    *Cred         // to be renewed or looked at; nil: none

	// Impersonate gets a credential of the user Name, who has to be named, to initiate as (S4U2Self).
	// It is got by Input, one of the service's to initiate with, or if there is none by ServiceCred,
	// which costs a call more.
	Impersonate bool
}

// AcquireCred acquires a credential: to learn whether there is one and until when, to act for a user
// (Impersonate), or to have one for a name that the daemon's configuration does not choose by
// itself. Contexts can be made without, with ServiceCred. To act for a user who has no name, or for
// a Name that is empty but for its type, is an error (mech.BadName): it would be the service's.
func (c *Client) AcquireCred(ctx context.Context, r AcquireRequest) (*Cred, error) {
	arg := xdr.ArgAcquireCred{TimeReq: seconds(r.Lifetime), CredUsage: xdr.CredUsage(cmp.Or(r.Usage, Both))}
	named := r.Name.Display != "" || r.Name.Exported != nil
	if !named && (r.Impersonate || r.Name.Type != "" || r.Name.Composite != nil) {
		// Without a name the daemon would return what is the program's own.
		return nil, mech.Errorf(mech.BadName, 0, reason.BadArgument, "the name is empty: AcquireRequest.Name says whose the credential is to be").Of("")
	}
	if r.Impersonate && (r.Input == nil || r.Input.service) {
		// The daemon looks at acquire_type only where there is a handle.
		own, err := c.AcquireCred(ctx, AcquireRequest{Usage: Initiate, Mechs: r.Mechs})
		if err != nil {
			return nil, err
		}
		r.Input = own
	}
	if r.Input != nil {
		if err := r.Input.usable(); err != nil {
			return nil, err
		}
		arg.InputCredHandle, arg.Options = r.Input.handle()
	}
	if named {
		arg.DesiredName = xdr.Some(r.Name.wire())
	}
	for _, m := range r.Mechs {
		arg.DesiredMechs = append(arg.DesiredMechs, []byte(m))
	}
	if r.Impersonate {
		arg.Options = append(arg.Options, xdr.Option{Option: []byte("acquire_type\x00"), Value: []byte("impersonate_name\x00")})
	}
	var res xdr.ResAcquireCred
	if err := c.call(ctx, xdr.ProcAcquireCred, &arg, &res, &res.Status, nil); err != nil {
		return nil, err
	}
	if cred := credOf(&res.OutputCredHandle); cred != nil {
		return cred, nil
	}
	return nil, errors.New("gssproxy: ACQUIRE_CRED: there is no credential in the results")
}

// credOf returns a credential out of results, nil if there is none: one without a handle is of no
// use.
func credOf(w *xdr.Opt[xdr.Cred]) *Cred {
	if !w.Set || len(w.V.CredHandleReference) == 0 {
		return nil
	}
	return &Cred{w: w.V, got: time.Now()}
}
