// Package spnego negotiates a GSS-API mechanism (RFC 4178), as initiator and as acceptor, for
// programs that do not have libgssapi do it for them.
//
// It does no I/O and holds no keys. What a mechanism says is the business of a [Context], whose
// legs may well be calls to a daemon; an [Initiator] and an [Acceptor] are themselves Contexts that
// wrap the legs of another. Peers that bend the protocol the way Windows, Samba and Java do are
// understood where MIT krb5 understands them.
package spnego

import (
	"context"
	"strings"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
)

// Mechanisms that are met in negotiations and not offered here.
const (
	NTLM   mech.OID = "\x2b\x06\x01\x04\x01\x82\x37\x02\x02\x0a" // 1.3.6.1.4.1.311.2.2.10
	NegoEx mech.OID = "\x2b\x06\x01\x04\x01\x82\x37\x02\x02\x1e" // 1.3.6.1.4.1.311.2.2.30
)

// Minor status codes, as MIT krb5 has them.
const (
	MinorNoMechs           uint32 = 0x20000001 // no mechanism to negotiate
	MinorNegotiationFailed uint32 = 0x20000004 // no mechanism in common
	MinorNoToken           uint32 = 0x20000005 // the acceptor's token is missing
)

// Context is one end of a context of one mechanism, from before its first leg on. A Context is used
// by one goroutine at a time.
type Context interface {
	// Step takes the peer's token, nil for the initiator's first leg, and returns the token for the
	// peer, empty if there is none, and whether the context is established. Any error is final; if
	// it is a *mech.Error its Token is for the peer.
	Step(ctx context.Context, token []byte) (reply []byte, established bool, err error)

	// Flags returns the mech.Flag bits of the established context. Without mech.FlagInteg the
	// negotiation cannot be protected from somebody in between who takes mechanisms off the list:
	// initiators ask for it.
	Flags() uint32

	// GetMIC appends to dst the token that protects msg.
	GetMIC(dst, msg []byte) ([]byte, error)

	// VerifyMIC checks the peer's token over msg; order is mech.Complete, or says that a message
	// was repeated or is out of sequence.
	VerifyMIC(msg, mic []byte) (order mech.Major, err error)
}

// Mech is a mechanism on offer, and how a context of it is begun.
type Mech struct {
	OID mech.OID
	New func() Context
}

// krb5Family reports whether the identifier is one of the three that mean Kerberos. Peers offer
// one, put another into their tokens, and answer with the third.
func krb5Family(m mech.OID) bool { return m == mech.KRB5 || m == mech.KRB5Wrong || m == mech.KRB5Old }

// same reports whether two identifiers mean one mechanism.
func same(a, b mech.OID) bool { return a == b || krb5Family(a) && krb5Family(b) }

// tokenMech returns the mechanism that a first token names, empty if it is no token.
func tokenMech(token []byte) mech.OID {
	switch {
	case len(token) == 0:
		return ""
	case token[0] == byte(der.Application(14)):
		return mech.KRB5 // an AP-REQ without framing, as DCE RPC sends it
	case strings.HasPrefix(string(token[:min(len(token), 8)]), "NTLMSSP\x00"):
		return NTLM
	}
	r := der.NewReader(token)
	r.Enter(der.Application(0))
	if v := r.Value(der.ObjectID); len(v) <= maxOID {
		return known(v)
	}
	return ""
}

// maxOID bounds identifiers that are kept or shown.
const maxOID = 64

// known returns an identifier, without allocating if it is one of the usual ones.
func known(v []byte) mech.OID {
	for _, m := range [...]mech.OID{mech.KRB5, mech.KRB5Wrong, mech.SPNEGO, NTLM, NegoEx, mech.KRB5Old, mech.IAKERB} {
		if string(v) == string(m) {
			return m
		}
	}
	return mech.OID(v)
}

// mechName names a mechanism for messages.
func mechName(m mech.OID) string {
	if name, ok := mechNamed[m]; ok {
		return name
	}
	return m[:min(len(m), maxOID)].String()
}

var mechNamed = map[mech.OID]string{
	mech.KRB5: "Kerberos", mech.KRB5Wrong: "Kerberos (Microsoft's number)", mech.KRB5Old: "Kerberos (old number)",
	mech.IAKERB: "IAKERB", mech.SPNEGO: "SPNEGO", NTLM: "NTLM", NegoEx: "NegoEx", "": "none",
}
