package interposer

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	"gssproxyd/xdr"
)

// Peer is what an established context says of the other end. Unlike the context it holds no keys,
// and outlives it. What it prints is the name: a PAC may have more about a user than a log should.
type Peer struct {
	Name       Name        // Display is the principal with its realm
	Flags      Flags       // granted
	Expires    time.Time   // of the context; Never if it does not
	Attributes []Attribute // an initiator's
	Delegated  *Cred       // what the initiator has delegated: nil if nothing, or if it was not asked for
}

// Attribute is one value of an attribute of a name (RFC 6680). An attribute of several values is
// there as often. Decide by one only if it is Authenticated.
type Attribute struct {
	Name          string // such as AuthIndicator or PAC
	Value         []byte
	Authenticated bool // signed by the KDC, which was verified
}

// Attributes of Kerberos principals, under the names that MIT krb5 gives them.
const (
	AuthIndicator = "auth-indicators" // how the initiator proved who it is (RFC 8129)
	PAC           = "urn:mspac:"      // the whole PAC ([MS-PAC])
)

// String returns the name.
func (p Peer) String() string { return p.Name.Display }

// Format writes what String returns, whatever the verb.
func (p Peer) Format(f fmt.State, _ rune) { io.WriteString(f, p.String()) }

// MarshalText returns what String does, for JSON and logs. Who has to keep a Peer keeps what there
// is use for, field by field.
func (p Peer) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// String returns the name: the value may be a whole PAC.
func (a Attribute) String() string { return a.Name }

// Format writes what String returns, whatever the verb.
func (a Attribute) Format(f fmt.State, _ rune) { io.WriteString(f, a.String()) }

// MarshalText returns what String does, for JSON and logs.
func (a Attribute) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// Peer describes the other end of an established context; the error is a *[mech.Error]. Of an
// acceptor it is proven only with mech.FlagMutual: without, it is whom the token was made for.
func (s *SecContext) Peer() (*Peer, error) {
	c, err := s.lock()
	defer s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	p := &Peer{Name: s.target, Flags: s.flags, Expires: s.expires}
	if s.initiator {
		return p, nil
	}
	p.Name, p.Delegated = s.source, s.delegated
	for _, value := range c.Indicators {
		p.Attributes = append(p.Attributes, Attribute{AuthIndicator, []byte(value), true})
	}
	if c.PAC != nil {
		p.Attributes = append(p.Attributes, Attribute{PAC, bytes.Clone(c.PAC), c.PACVerified})
	}
	return p, nil
}

// Flags are those of a context: mech.FlagMutual and others, or-ed together.
type Flags uint32

// Has reports whether all of these are among them, such as those that a program requires.
func (f Flags) Has(all Flags) bool { return f&all == all }

// String lists their names, for people to read: "mutual, integrity"; bits without a name are one
// number at the end.
func (f Flags) String() string {
	list, rest := xdr.FlagNames(uint64(f))
	if rest != 0 {
		list = append(list, fmt.Sprintf("%#x", rest))
	}
	return strings.Join(list, ", ")
}
