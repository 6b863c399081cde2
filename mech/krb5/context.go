package krb5

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/etype"
)

// Context is an established Kerberos security context: who the two ends are, the keys they share,
// and how far the numbered messages between them have come. The acceptor fills one in;
// [ImportContext] makes one of a token. It must not be used by two goroutines at once, nor be
// copied once it is in use.
//
// Printing a Context, or anything that holds one, shows no key bytes.
type Context struct {
	Initiator bool     // this end started the exchange
	Flags     uint32   // mech.Flag bits
	Mech      mech.OID // the mechanism the initiator named in its first token; empty for mech.KRB5

	// Here and There are this end and the peer: unparsed principals with realm.
	Here, There string

	// The ticket's times in Unix seconds, 0 where it has none, and its flags (RFC 4120 section 5.3,
	// bit 0 being the most significant).
	AuthTime, StartTime, EndTime, RenewTill uint32
	TicketFlags                             uint32

	SendSeq uint64 // number of the next message to send
	RecvSeq uint64 // initial number of the peer; the messages since are in Window
	Window  Window // what has arrived of the peer's messages

	// Subkey is the initiator's subkey, or the session key if it sent none. AcceptorSubkey is nil
	// if the acceptor chose none. SessionKey is the ticket's. They belong to the Context.
	Subkey, AcceptorSubkey, SessionKey *etype.Key

	// AuthData is the ticket's and the authenticator's authorization data, top-level elements as
	// they came (acceptor only). PAC is the raw PAC, nil if there is none; PACVerified says that
	// its server signature is this service's KDC's. Indicators are the ticket's authentication
	// indicators.
	AuthData    []AuthData
	PAC         []byte
	PACVerified bool
	Indicators  []string

	// The token the context was imported from is kept, so that what this package has no use for
	// returns to where it came from. It holds keys, and fmt follows no pointer to a pointer (see
	// etype.Key).
	imported **importedToken
}

// AuthData is one authorization data element (RFC 4120 section 5.2.6).
type AuthData struct {
	Type int32
	Data []byte
}

// Destroy overwrites every key of the context, and the token it was imported from, in which
// AuthData and PAC lie. The context is of no use afterwards.
func (c *Context) Destroy() {
	for _, k := range []*etype.Key{c.Subkey, c.AcceptorSubkey, c.SessionKey} {
		if k != nil {
			k.Destroy()
		}
	}
	if c.imported != nil {
		(*c.imported).token.Zero()
	}
	*c = Context{}
}

// key returns the key that protects messages of this end, nil for a context that was never filled
// in.
func (c *Context) key() *etype.Key {
	if c.AcceptorSubkey != nil {
		return c.AcceptorSubkey
	}
	return c.Subkey
}

// mech returns the mechanism in use.
func (c *Context) mech() mech.OID { return cmp.Or(c.Mech, mech.KRB5) }

// cfx reports whether this end sends the tokens of RFC 4121 rather than those of RFC 1964.
func (c *Context) cfx() bool { return c.key().Enctype().CFX() }

// rc4Key returns the key for tokens of RFC 1964 and RFC 4757, nil if the context has none. An RC4
// subkey keeps that role when an acceptor subkey of a newer type supersedes it (RFC 4537).
func (c *Context) rc4Key() *etype.Key {
	for _, k := range []*etype.Key{c.AcceptorSubkey, c.Subkey} {
		if k != nil && k.Enctype() == etype.RC4 {
			return k
		}
	}
	return nil
}

// String says who is talking to whom.
func (c *Context) String() string {
	role := "acceptor"
	if c.Initiator {
		role = "initiator"
	}
	return fmt.Sprintf("krb5 context (%s %s, peer %s)", role, c.Here, c.There)
}

// Format writes what String returns, whatever the verb.
func (c *Context) Format(f fmt.State, _ rune) { io.WriteString(f, c.String()) }

// MarshalText returns what String does.
func (c *Context) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// LogValue returns the two names and the role.
func (c *Context) LogValue() slog.Value {
	return slog.GroupValue(slog.Bool("initiator", c.Initiator), slog.String("here", c.Here), slog.String("there", c.There))
}
