package krb5

import (
	"bytes"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// What is read of an AP-REQ. Every slice aliases the message or the plaintext it was read from. As MIT
// krb5 does, octets after an element's last known field are passed over, so that later versions of the
// protocol can extend it; a required field that is not there is an error.

// wireName is a PrincipalName (RFC 4120 section 5.2.2) with its realm.
type wireName struct {
	realm []byte
	kind  int32
	comps []byte // contents of the SEQUENCE OF KerberosString
}

// same compares realm and components; the name type is a hint (RFC 4120 section 6.2). Lengths being
// canonical, equal encodings are equal names.
func (n wireName) same(m wireName) bool {
	return string(n.realm) == string(m.realm) && string(n.comps) == string(m.comps)
}

// appendString appends the name as [Principal.String] has it.
func (n wireName) appendString(dst []byte) []byte {
	dst = n.appendComponents(dst, true)
	dst = append(dst, '@')
	return appendQuotedBytes(dst, n.realm)
}

// appendComponents appends the components joined by slashes, quoted or as they are.
func (n wireName) appendComponents(dst []byte, quote bool) []byte {
	r := der.NewReader(n.comps)
	for i := 0; r.More(); i++ {
		if i > 0 {
			dst = append(dst, '/')
		}
		if c := r.String(); quote {
			dst = appendQuotedBytes(dst, c)
		} else {
			dst = append(dst, c...)
		}
	}
	return dst
}

// appendQuotedBytes is appendQuoted, with a shortcut for names that need none.
func appendQuotedBytes(dst, s []byte) []byte {
	for _, c := range s {
		if c < ' ' || c == '/' || c == '@' || c == '\\' {
			return appendQuoted(dst, string(s), true)
		}
	}
	return append(dst, s...)
}

// fault says why nobody is to be known by this name, "" if nothing is wrong with it. These are the names that
// [ParsePrincipal] never returns, as what it reads may not be what was meant, and those of the empty realm, for which other
// programs put in the default realm. (Names of more than MaxComponents are not even read.)
func (n wireName) fault() string {
	if len(n.realm) == 0 {
		return "the realm is empty"
	}
	if len(n.comps) == 0 {
		return "there is no component"
	}
	nul := bytes.IndexByte(n.realm, 0) >= 0
	for r := der.NewReader(n.comps); r.More(); {
		nul = bytes.IndexByte(r.String(), 0) >= 0 || nul
	}
	if nul {
		return "there is a NUL octet in it"
	}
	return ""
}

// principal returns a copy that outlives the message.
func (n wireName) principal() Principal {
	p := Principal{Realm: string(n.realm), Type: n.kind}
	r := der.NewReader(n.comps)
	for r.More() {
		p.Components = append(p.Components, string(r.String()))
	}
	return p
}

// readName reads a PrincipalName.
func readName(r *der.Reader, n *wireName) {
	seq := r.Enter(der.Sequence)
	f := r.Field(0)
	n.kind = r.Int32()
	r.Leave(f)
	f = r.Field(1)
	list := r.Enter(der.Sequence)
	start := *r
	for i := 0; r.More(); i++ {
		if i == MaxComponents {
			r.Fail(der.OutOfRange)
			break
		}
		r.String()
	}
	n.comps = start.Rest()
	r.Leave(list)
	r.Leave(f)
	r.LeaveOpen(seq)
}

// readRealmAndName reads the fields [n] realm and [n+1] name.
func readRealmAndName(r *der.Reader, field int, n *wireName) {
	f := r.Field(field)
	n.realm = r.String()
	r.Leave(f)
	f = r.Field(field + 1)
	readName(r, n)
	r.Leave(f)
}

// encrypted is an EncryptedData (RFC 4120 section 5.2.9).
type encrypted struct {
	etype  etype.ID
	kvno   uint32 // 0 when absent
	cipher []byte
}

func readEncrypted(r *der.Reader, e *encrypted) {
	seq := r.Enter(der.Sequence)
	f := r.Field(0)
	e.etype = etype.ID(r.Int32())
	r.Leave(f)
	e.kvno = 0
	if r.Has(1) {
		f = r.Field(1)
		e.kvno = r.Uint32() // signed by some KDCs, like sequence numbers
		r.Leave(f)
	}
	f = r.Field(2)
	e.cipher = r.Octets()
	r.Leave(f)
	r.LeaveOpen(seq)
}

// wireKey is an EncryptionKey (RFC 4120 section 5.2.9).
type wireKey struct {
	etype.Redacted
	etype etype.ID
	value []byte // nil when there is no key
}

func readKey(r *der.Reader, k *wireKey) {
	seq := r.Enter(der.Sequence)
	f := r.Field(0)
	k.etype = etype.ID(r.Int32())
	r.Leave(f)
	f = r.Field(1)
	k.value = r.Octets()
	r.Leave(f)
	r.LeaveOpen(seq)
}

// readTyped reads the shape HostAddress, AuthorizationData's elements and Checksum share: an Int32 and
// an OCTET STRING.
func readTyped(r *der.Reader) (kind int32, data []byte) {
	seq := r.Enter(der.Sequence)
	f := r.Field(0)
	kind = r.Int32()
	r.Leave(f)
	f = r.Field(1)
	data = r.Octets()
	r.Leave(f)
	r.LeaveOpen(seq)
	return kind, data
}

// readTime reads the optional field [n].
func readTime(r *der.Reader, n int) uint32 {
	if !r.Has(n) {
		return 0
	}
	f := r.Field(n)
	t := r.Time()
	r.Leave(f)
	return t
}

// readSequence reads the optional field [n], a SEQUENCE, and returns its contents, nil when absent.
func readSequence(r *der.Reader, n int) []byte {
	if !r.Has(n) {
		return nil
	}
	f := r.Field(n)
	b := r.Value(der.Sequence)
	r.Leave(f)
	return b
}

// readVersion reads the field [n], which must be 5.
func readVersion(r *der.Reader, n int) (ok bool) {
	f := r.Field(n)
	v := r.Int32()
	r.Leave(f)
	return v == 5 || r.Fault() != 0
}

// ticket is a Ticket (RFC 4120 section 5.3).
type ticket struct {
	raw    []byte // the whole Ticket
	server wireName
	enc    encrypted
}

// readTicket reads a Ticket; false means that its version is not 5.
func readTicket(r *der.Reader, t *ticket) bool {
	start := *r
	t.raw = start.Raw()
	app := r.Enter(der.Application(1))
	seq := r.Enter(der.Sequence)
	ok := readVersion(r, 0)
	readRealmAndName(r, 1, &t.server)
	f := r.Field(3)
	readEncrypted(r, &t.enc)
	r.Leave(f)
	r.LeaveOpen(seq)
	r.Leave(app)
	return ok
}

// apReq is an AP-REQ (RFC 4120 section 5.5.1).
type apReq struct {
	options uint32
	ticket  ticket
	auth    encrypted
}

// parse reads b. The error's text says where b is wrong.
func (q *apReq) parse(b []byte) *mech.Error {
	r := der.NewReader(b)
	app := r.Enter(der.Application(14))
	seq := r.Enter(der.Sequence)
	ok := readVersion(&r, 0)
	f := r.Field(1)
	r.Int32() // msg-type: the tag has said it
	r.Leave(f)
	f = r.Field(2)
	q.options = r.Flags()
	r.Leave(f)
	f = r.Field(3)
	ok = readTicket(&r, &q.ticket) && ok
	r.Leave(f)
	f = r.Field(4)
	readEncrypted(&r, &q.auth)
	r.Leave(f)
	r.LeaveOpen(seq)
	r.Leave(app)
	return malformed("AP-REQ", &r, ok)
}

// malformed makes the error of a message that r could not read, or whose version is not 5; nil if it
// could.
func malformed(what string, r *der.Reader, versionOK bool) *mech.Error {
	if err, bad := r.Err().(*der.Error); bad {
		return mech.Errorf(mech.Failure, err.Fault.Minor(), reason.DefectiveToken, ": malformed %s: %v", what, err)
	}
	if !versionOK {
		return mech.Errorf(mech.Failure, wire.MinorBadPVNO, reason.DefectiveToken, ": %s is not of Kerberos version 5", what)
	}
	return nil
}

// encTicket is an EncTicketPart (RFC 4120 section 5.3).
type encTicket struct {
	etype.Redacted
	flags         uint32
	key           wireKey
	client        wireName
	transitedType int32
	transited     []byte
	authTime      uint32
	startTime     uint32 // 0 when absent
	endTime       uint32
	renewTill     uint32 // 0 when absent
	addresses     []byte // contents of the SEQUENCE OF HostAddress, nil when absent
	authData      []byte // contents of the SEQUENCE OF, nil when absent
}

// parse reads the plaintext b.
func (t *encTicket) parse(b []byte) *mech.Error {
	r := der.NewReader(b)
	app := r.Enter(der.Application(3))
	seq := r.Enter(der.Sequence)
	f := r.Field(0)
	t.flags = r.Flags()
	r.Leave(f)
	f = r.Field(1)
	readKey(&r, &t.key)
	r.Leave(f)
	readRealmAndName(&r, 2, &t.client)
	f = r.Field(4)
	t.transitedType, t.transited = readTyped(&r)
	r.Leave(f)
	f = r.Field(5)
	t.authTime = r.Time()
	r.Leave(f)
	t.startTime = readTime(&r, 6)
	f = r.Field(7)
	t.endTime = r.Time()
	r.Leave(f)
	t.renewTill = readTime(&r, 8)
	t.addresses = readSequence(&r, 9)
	t.authData = readSequence(&r, 10)
	r.LeaveOpen(seq)
	r.Leave(app)
	return malformed("ticket (its encrypted part)", &r, true)
}
