package krb5

import (
	"fmt"
	"io"
	"slices"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// Credential is a ticket with what its holder needs to use it: one entry of a credential cache. Nothing
// in it aliases the message it came in.
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

	// IsSKey says that the ticket is encrypted in the session key of another one (user to user), not in a
	// key of the server's own; SecondTicket is the DER of that other ticket, or for constrained
	// delegation of the evidence ticket. AuthData was asked for with the ticket.
	IsSKey       bool
	SecondTicket []byte
	AuthData     []AuthData
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
type Address struct {
	Type int32
	Data []byte
}

// readDelegated reads the KRB-CRED (RFC 4120 section 5.8) that a client forwards in its authenticator and
// returns its first credential, nil if it has none. Initiators encrypt it in the ticket's session key or
// in their subkey, or leave it to the authenticator's encryption; whichever opens it is used. subkey may
// be nil.
//
// The names in it are the initiator's words, only the ticket's client is the KDC's: that is whose credential it is, and
// one that says otherwise, the service itself say, is refused.
func readDelegated(b []byte, client *wireName, subkey, session *etype.Key) (*Credential, *mech.Error) {
	r := der.NewReader(b)
	app := r.Enter(der.Application(22))
	seq := r.Enter(der.Sequence)
	ok := readVersion(&r, 0)
	f := r.Field(1)
	r.Int32()
	r.Leave(f)
	f = r.Field(2)
	list := r.Enter(der.Sequence)
	tickets := 0
	var first ticket
	for r.More() {
		var t ticket
		ok = readTicket(&r, &t) && ok
		if tickets++; tickets == 1 {
			first = t
		}
	}
	r.Leave(list)
	r.Leave(f)
	f = r.Field(3)
	var enc encrypted
	readEncrypted(&r, &enc)
	r.Leave(f)
	r.LeaveOpen(seq)
	r.Leave(app)
	if err := malformed("delegated credential", &r, ok); err != nil {
		err.Reason = reason.BadDelegation
		return nil, err
	}
	plain, opened := enc.cipher, enc.etype == 0
	for _, k := range []*etype.Key{subkey, session} {
		if k != nil && k.Enctype() == enc.etype {
			if p, err := k.Decrypt(nil, wire.UsageKRBCred, enc.cipher); err == nil {
				plain, opened = p, true
				defer clear(p)
				break
			}
		}
	}
	c, err := readCredInfo(plain, client, tickets, first.raw)
	if err != nil && !opened {
		err.Text = "the delegated credential decrypts neither with the authenticator's subkey nor with the session key"
	}
	return c, err
}

// readCredInfo reads an EncKrbCredPart (RFC 4120 section 5.8.1) that must describe at least as many
// tickets as there are, all of them the client's.
func readCredInfo(plain []byte, client *wireName, tickets int, firstTicket []byte) (*Credential, *mech.Error) {
	r := der.NewReader(plain)
	app := r.Enter(der.Application(29))
	seq := r.Enter(der.Sequence)
	f := r.Field(0)
	list := r.Enter(der.Sequence)
	var c *Credential
	n, named := 0, true
	owner := client.principal()
	var stranger *Principal
	for ; r.More(); n++ {
		var info Credential
		complete := readCredEntry(&r, client, &info)
		if n < tickets {
			named = named && complete
			if complete && !info.Client.Equal(owner) {
				stranger = &info.Client
			}
		}
		if n == 0 {
			c = &info
		} else {
			info.Key.Zero()
		}
	}
	r.Leave(list)
	r.Leave(f)
	r.LeaveOpen(seq)
	r.Leave(app)
	if err := malformed("delegated credential (its encrypted part)", &r, true); err != nil {
		err.Reason = reason.BadDelegation
		return nil, err
	}
	if n < tickets || !named {
		return nil, mech.Errorf(mech.Failure, wire.MinorModified, reason.BadDelegation, ": the delegated credential does not describe its tickets")
	}
	if stranger != nil {
		return nil, mech.Errorf(mech.Failure, wire.MinorModified, reason.BadDelegation, ": the delegated credential says that it is of %s, the ticket is of %s", shown(stranger.String()), shown(owner.String()))
	}
	if tickets == 0 {
		return nil, nil
	}
	c.Ticket = append([]byte(nil), firstTicket...)
	return c, nil
}

// readCredEntry reads a KrbCredInfo and reports whether it names the server. Without a name or realm of its client it is
// of client.
func readCredEntry(r *der.Reader, client *wireName, c *Credential) bool {
	theirs, server := *client, wireName{}
	hasServer := false
	name := func(realm int, n *wireName) bool {
		if r.Has(realm) {
			f := r.Field(realm)
			n.realm = r.String()
			r.Leave(f)
		}
		if !r.Has(realm + 1) {
			return false
		}
		f := r.Field(realm + 1)
		readName(r, n)
		r.Leave(f)
		return true
	}
	seq := r.Enter(der.Sequence)
	f := r.Field(0)
	var k wireKey
	readKey(r, &k)
	r.Leave(f)
	name(1, &theirs)
	if r.Has(3) {
		f = r.Field(3)
		c.Flags = r.Flags()
		r.Leave(f)
	}
	c.AuthTime = readTime(r, 4)
	c.StartTime = readTime(r, 5)
	c.EndTime = readTime(r, 6)
	c.RenewTill = readTime(r, 7)
	hasServer = name(8, &server)
	addresses := der.NewReader(readSequence(r, 10))
	r.LeaveOpen(seq)
	for addresses.More() {
		kind, data := readTyped(&addresses)
		c.Addresses = append(c.Addresses, Address{kind, append([]byte(nil), data...)})
	}
	if f := addresses.Fault(); f != 0 {
		r.Fail(f)
	}
	if r.Fault() != 0 {
		return false
	}
	c.Client, c.Server = theirs.principal(), server.principal()
	c.KeyType, c.Key = k.etype, append(etype.Secret(nil), k.value...)
	return hasServer
}
