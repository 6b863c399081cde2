package interposer

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"gssproxyd/xdr"
)

// Peer is what an established context says of the other end. Unlike the context it holds no keys,
// and outlives it.
type Peer struct {
	Name       Name        // Display is the principal with its realm
	Flags      uint32      // of the context: mech.Flag bits
	Expires    time.Time   // of the context; zero if it does not expire
	Attributes []Attribute // an initiator's
	Delegated  *Cred       // what it has delegated, if that was asked for
}

// Attribute is one value of an attribute of a name (RFC 6680). An attribute of several values is
// there as often.
type Attribute struct {
	Name          string
	Value         []byte
	Authenticated bool // signed by the KDC, which was verified
}

// Attributes of Kerberos principals, under the names that MIT krb5 gives them.
const (
	AuthIndicator = "auth-indicators" // how the initiator proved who it is (RFC 8129)
	PAC           = "urn:mspac:"      // the whole PAC ([MS-PAC])
)

// Peer describes the other end of an established context; the error is a *[mech.Error].
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
	p.Name = s.source
	for _, value := range c.Indicators {
		p.Attributes = append(p.Attributes, Attribute{AuthIndicator, []byte(value), true})
	}
	if c.PAC != nil {
		p.Attributes = append(p.Attributes, Attribute{PAC, bytes.Clone(c.PAC), c.PACVerified})
	}
	return p, nil
}

// FlagNames lists the names of flags, which are mech.Flag bits, for people to read: "mutual,
// integrity"; bits without a name are one number at the end.
func FlagNames(flags uint32) string {
	list, rest := xdr.FlagNames(uint64(flags))
	if rest != 0 {
		list = append(list, fmt.Sprintf("%#x", rest))
	}
	return strings.Join(list, ", ")
}
