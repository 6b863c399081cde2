package decode

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"gssproxyd/keytab/seal"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/spnego"
	"gssproxyd/xdr"
)

// Tokens of GSS-API and what else is no Kerberos message.

// framed reads the framing of RFC 2743 section 3.1, and what its mechanism is for.
func (p *Part) framed(b []byte, depth int) {
	r := der.NewReader(b)
	outer := r.Enter(der.Application(0))
	oid := mech.OID(r.Value(der.ObjectID))
	if oid == mech.SPNEGO && r.Fault() == 0 {
		if r.Peek() == der.Context(1) {
			p.negTokenResp(b, depth)
		} else {
			p.negTokenInit(b, depth)
		}
		return
	}
	inner := r.Rest()
	r.Leave(outer)
	if r.More() {
		r.Fail(der.BadLength)
	}
	p.Kind = GSSToken
	p.set(Mechanism, oid.Mechanism())
	if p.problem(r.Err()); p.Problem != "" {
		if oid == "" && len(b) > 2 && b[1] >= 0x80 { // its beginning is there: a mechanism behind a length of so many octets
			cut := der.NewReader(b[min(len(b), 2+int(b[1]&0x7f)):])
			p.set(Mechanism, mech.OID(cut.Value(der.ObjectID)).Mechanism())
		}
		return
	}
	switch oid {
	case mech.KRB5, mech.KRB5Old, mech.KRB5Wrong, mech.IAKERB:
		p.kerberos(inner, depth)
	default:
		p.Hint = "gssproxyd does not know this mechanism; the client has to offer Kerberos"
	}
}

// kerberos reads what is behind the framing: a token identifier (RFC 4121 section 4.1, RFC 1964
// section 1), and a message.
func (p *Part) kerberos(b []byte, depth int) {
	if len(b) < 2 {
		p.Problem = "it ends behind its mechanism"
		return
	}
	switch id := binary.BigEndian.Uint16(b); id {
	case 0x0100, 0x0200, 0x0300:
		p.add(token(b[2:], depth+1))
	case 0x0101, 0x0102, 0x0201:
		p.Kind = OldMessage
		p.set(Message, map[uint16]string{0x0101: "MIC", 0x0102: "deletion of the context", 0x0201: "wrap"}[id])
	case 0x0501:
		p.set(Message, "IAKERB proxy message")
	default:
		p.Problem = fmt.Sprintf("the token identifier %04x is not known", id)
	}
}

// maxMechanisms bounds the list of them that is shown.
const maxMechanisms = 16

func (p *Part) negTokenInit(b []byte, depth int) {
	p.Kind = NegTokenInit
	t, err := spnego.ParseInit(b)
	if p.problem(err); err != nil {
		return
	}
	mechs := t.Mechs()
	var names []string
	for _, m := range mechs[:min(len(mechs), maxMechanisms)] {
		names = append(names, m.Mechanism())
	}
	p.set(Mechanisms, names)
	if t.MechListMIC != nil {
		p.set(Checksum, uint64(len(t.MechListMIC)))
	}
	if t.MechToken != nil {
		p.add(token(t.MechToken, depth+1))
	}
	kerberos := false
	for _, m := range mechs {
		kerberos = kerberos || m == mech.KRB5 || m == mech.KRB5Old || m == mech.KRB5Wrong
	}
	if !kerberos {
		p.Hint = "the client does not offer Kerberos: " + whyNTLM
	}
}

func (p *Part) negTokenResp(b []byte, depth int) {
	if der.Tag(b[0]) == der.Context(0) {
		p.Kind, p.Problem = NegTokenInit, "the framing of GSS-API around it is missing"
		return
	}
	p.Kind = NegTokenResp
	t, err := spnego.ParseResp(b)
	if p.problem(err); err != nil {
		return
	}
	p.set(State, t.State.String())
	p.set(Mechanism, mech.OID(t.SupportedMech).Mechanism())
	if t.MechListMIC != nil {
		p.set(Checksum, uint64(len(t.MechListMIC)))
	}
	if t.ResponseToken != nil {
		p.add(token(t.ResponseToken, depth+1))
	}
	switch t.State {
	case spnego.Reject:
		p.Hint = "the service refuses all mechanisms, or the token; its log says why"
	case spnego.RequestMIC, spnego.AcceptIncomplete:
		p.Hint = "the negotiation is not over: the client has to answer on the same connection"
	}
}

// whyNTLM is why a client sends NTLM where Kerberos was expected.
const whyNTLM = "it has no ticket for the service. Look whether the user has a ticket at all (klist), whether the name in the URL is the one " +
	"that the KDC knows as HTTP/NAME and no address, and whether the browser trusts the site (AuthServerAllowlist, network.negotiate-auth.trusted-uris, the zone Intranet)"

// ntlm reads which of the three messages it is ([MS-NLMP] section 2.2.1).
func (p *Part) ntlm(b []byte, _ int) {
	p.Kind = NTLM
	kind := uint32(0)
	if len(b) >= 12 {
		kind = binary.LittleEndian.Uint32(b[8:])
	}
	switch kind {
	case 1:
		p.set(Message, "NEGOTIATE, the client's first")
	case 2:
		p.set(Message, "CHALLENGE, the server's")
	case 3:
		p.set(Message, "AUTHENTICATE, the client's second")
	default:
		p.Problem = "it is none of the three messages"
	}
	p.Hint = "the client sent NTLM instead of Kerberos, which gssproxyd does not serve: " + whyNTLM
}

// Flags of a token of RFC 4121 (section 4.2.2).
func tokenFlags(b byte) []string {
	return names(uint32(b), []bit{{1, "sent by the acceptor"}, {2, "sealed"}, {4, "with the acceptor's subkey"}}, 8)
}

// bit is the name of a bit.
type bit struct {
	mask uint32
	name string
}

// names names the bits of flags that are set, others by their value with so many bits.
func names(flags uint32, known []bit, width int) (list []string) {
	for _, k := range known {
		if flags&k.mask != 0 {
			list = append(list, k.name)
			flags &^= k.mask
		}
	}
	if flags != 0 {
		list = append(list, fmt.Sprintf("%0*x", width/4, flags))
	}
	return list
}

func (p *Part) mic(b []byte, _ int) {
	p.Kind = MIC
	if len(b) < 16 {
		p.Problem = "it ends within its header of 16 octets"
		return
	}
	p.set(Flags, tokenFlags(b[2]))
	p.set(Sequence, binary.BigEndian.Uint64(b[8:]))
	p.set(Checksum, uint64(len(b)-16))
	p.Hint = ofContext
}

func (p *Part) wrap(b []byte, _ int) {
	p.Kind = Wrap
	p.set(Flags, tokenFlags(b[2]))
	p.set(ExtraCount, uint64(binary.BigEndian.Uint16(b[4:])))
	p.set(Rotation, uint64(binary.BigEndian.Uint16(b[6:])))
	p.set(Sequence, binary.BigEndian.Uint64(b[8:]))
	p.set(Payload, uint64(len(b)-16))
	p.Hint = ofContext
}

const ofContext = "it is of a context that is established already, and says nothing of who that is between"

func (p *Part) exportedName(b []byte, _ int) {
	p.Kind = ExportedName
	oid, name, err := mech.ParseExportedName(b)
	if p.problem(err); err != nil {
		return
	}
	p.set(Mechanism, oid.Mechanism())
	p.set(Name, wire.Shown(name))
}

// isExportedContext reports whether b begins as what gss_export_sec_context of MIT krb5 makes: the
// mechanism behind a 32-bit length, and a magic number.
func isExportedContext(b []byte) bool {
	for _, m := range []mech.OID{mech.KRB5, mech.IAKERB} {
		begin := append(binary.BigEndian.AppendUint32(nil, uint32(len(m))), m...)
		if bytes.HasPrefix(b, append(begin, 0x02, 0x5e, 0xa1, 0x08)) {
			return true
		}
	}
	return false
}

func (p *Part) exportedContext(b []byte, _ int) {
	p.Kind = ExportedContext
	p.set(Mechanism, mech.OID(b[4:4+binary.BigEndian.Uint32(b)]).Mechanism())
	p.Hint = "it has the context's keys in it: whoever has it can read and forge the context's messages. Delete copies of it"
}

// sealed says what package seal's header says.
func (p *Part) sealed(b []byte, _ int) {
	p.Kind = Sealed
	version, kind := seal.Inspect(b)
	p.set(FormatVersion, uint64(version))
	switch kind {
	case seal.KindCred:
		p.set(Holds, "credential")
	case seal.KindNamedCred:
		p.set(Holds, "credential of a name that was asked for")
	case seal.KindContext:
		p.set(Holds, "context that is not established yet")
	default:
		p.set(Holds, fmt.Sprintf("kind %d, which this version does not know", kind))
	}
	p.Hint = "only the daemon that sealed it can open it, with its handle.key"
}

// isCredential reports whether b is a gssx_cred with a handle that gssproxyd has sealed.
func isCredential(b []byte) bool {
	if !bytes.Contains(b, []byte("GPX")) {
		return false
	}
	c, ok := credential(b)
	_, kind := seal.Inspect(c.CredHandleReference)
	return ok && kind != 0
}

func credential(b []byte) (c xdr.Cred, ok bool) {
	d := xdr.NewDecoder(b)
	c.Decode(d)
	return c, d.Err() == nil && d.Remaining() == 0
}

func (p *Part) credential(b []byte, depth int) {
	p.Kind = Credential
	c, _ := credential(b)
	p.set(Name, wire.Shown(bytes.TrimRight(c.DesiredName.DisplayName, "\x00")))
	p.add(token(c.CredHandleReference, depth+1))
}

// file says which of two kinds of files it is: they have their version behind an octet 5.
func (p *Part) file(b []byte, _ int) {
	p.set(FormatVersion, uint64(b[1]))
	if b[1] <= 2 {
		p.Kind = Keytab
		p.Hint = "it has keys in it. gssproxyd keytab lint looks at it, and klist -kte lists its entries"
		if b[1] == 1 {
			p.Hint += "; of version 1 there are credential caches, too"
		}
		return
	}
	p.Kind = CCache
	p.Hint = "it has tickets and their keys in it. klist -ef lists its entries"
}
