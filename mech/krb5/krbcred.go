package krb5

import (
	"fmt"
	"io"
	"slices"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// Credential is a ticket with what its holder needs to use it: one entry of a credential cache.
// Nothing in it aliases the message it came in.
type Credential struct {
	Client, Server Principal
	KeyType        etype.ID
	Key            etype.Secret
	AuthTime       uint32 // Unix seconds, 0 when not told, as the other times
	StartTime      uint32
	EndTime        uint32
	RenewTill      uint32
	Flags          uint32 // ticket flags, bit 0 the most significant
	Addresses      []Address
	Ticket         []byte // DER of the Ticket

	// IsSKey says that the ticket is encrypted in the session key of another one (user to user),
	// not in a key of the server's own; SecondTicket is the DER of that other ticket, or for
	// constrained delegation of the evidence ticket. AuthData was asked for with the ticket.
	IsSKey       bool
	SecondTicket []byte
	AuthData     []AuthData
}

// TicketInClear returns what the DER of a Ticket says in clear: the server that it is for, and the
// encryption type of the key that it is encrypted in.
func TicketInClear(ticket []byte) (server Principal, enctype etype.ID, err error) {
	var t wire.Ticket
	if err := t.Parse(ticket); err != nil {
		return server, 0, err
	}
	return t.Server.Principal(), t.Enc.Etype, nil
}

// Clone returns a copy that shares no memory with c.
func (c *Credential) Clone() *Credential {
	d := *c
	d.Client.Components = slices.Clone(c.Client.Components)
	d.Server.Components = slices.Clone(c.Server.Components)
	d.Key = slices.Clone(c.Key)
	d.Ticket = slices.Clone(c.Ticket)
	d.SecondTicket = slices.Clone(c.SecondTicket)
	d.Addresses = slices.Clone(c.Addresses)
	for i := range d.Addresses {
		d.Addresses[i].Data = slices.Clone(d.Addresses[i].Data)
	}
	d.AuthData = slices.Clone(c.AuthData)
	for i := range d.AuthData {
		d.AuthData[i].Data = slices.Clone(d.AuthData[i].Data)
	}
	return &d
}

// Destroy overwrites the session key. The credential is of no use afterwards.
func (c *Credential) Destroy() { c.Key.Zero() }

// String names client and server.
func (c *Credential) String() string {
	return fmt.Sprintf("credential of %s for %s", c.Client, c.Server)
}

// Format writes what String returns, whatever the verb: tickets and keys are not for printing.
func (c *Credential) Format(f fmt.State, _ rune) { io.WriteString(f, c.String()) }

// Address is a HostAddress (RFC 4120 section 5.2.5).
type Address = wire.HostAddress

// readDelegated reads the KRB-CRED (RFC 4120 section 5.8) that a client forwards in its
// authenticator and returns its first credential, nil if it has none. Initiators encrypt it in the
// ticket's session key or in their subkey, or leave it to the authenticator's encryption; whichever
// opens it is used. subkey may be nil.
//
// The names in it are the initiator's words, only the ticket's client is the KDC's: that is whose
// credential it is, and one that says otherwise, the service itself say, is refused.
func readDelegated(b []byte, client *wire.Name, subkey, session *etype.Key) (*Credential, *mech.Error) {
	var cred wire.Cred
	if err := malformed("delegated credential", cred.Parse(b)); err != nil {
		err.Reason = reason.BadDelegation
		return nil, err
	}
	enc := &cred.Enc
	plain, opened := enc.Cipher, enc.Etype == 0
	for _, k := range []*etype.Key{subkey, session} {
		if k != nil && k.Enctype() == enc.Etype {
			if p, err := k.Decrypt(nil, wire.UsageKRBCred, enc.Cipher); err == nil {
				plain, opened = p, true
				defer clear(p)
				break
			}
		}
	}
	c, err := readCredInfo(plain, client.Principal(), &cred)
	if err != nil && !opened {
		err.Text = "the delegated credential decrypts neither with the authenticator's subkey nor with the session key"
	}
	return c, err
}

// readCredInfo reads an EncKrbCredPart (RFC 4120 section 5.8.1) that must describe at least as many
// tickets as cred has, all of them owner's.
func readCredInfo(plain []byte, owner Principal, cred *wire.Cred) (c *Credential, _ *mech.Error) {
	n, named := 0, true
	var other *Principal
	err := wire.ParseEncCred(plain, owner, func(info *wire.CredInfo) {
		if n < cred.Tickets {
			named = named && info.HasServer
			if info.HasServer && !info.Client.Equal(owner) {
				other = &info.Client
			}
		}
		if n == 0 {
			c = &Credential{
				Client: info.Client, Server: info.Server, KeyType: info.Key.Etype, Key: append(etype.Secret(nil), info.Key.Value...),
				AuthTime: info.AuthTime, StartTime: info.StartTime, EndTime: info.EndTime, RenewTill: info.RenewTill,
				Flags: info.Flags, Addresses: info.Addresses, Ticket: append([]byte(nil), cred.First.Raw...),
			}
		}
		n++
	})
	if err := malformed("delegated credential (its encrypted part)", err); err != nil {
		err.Reason = reason.BadDelegation
		return nil, err
	}
	switch {
	case n < cred.Tickets || !named:
		return nil, mech.Errorf(mech.Failure, wire.MinorModified, reason.BadDelegation, ": the delegated credential does not describe its tickets")
	case other != nil:
		return nil, mech.Errorf(mech.Failure, wire.MinorModified, reason.BadDelegation, ": the delegated credential says that it is of %s, the ticket is of %s", other.Shown(), owner.Shown())
	case cred.Tickets == 0:
		return nil, nil
	}
	return c, nil
}
