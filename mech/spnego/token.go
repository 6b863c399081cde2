package spnego

import (
	"bytes"
	"errors"
	"slices"
	"strconv"
	"strings"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/reason"
)

// maxMechTypes bounds the list of mechanisms, which is kept until the negotiation is over. Windows
// sends four.
const maxMechTypes = 4096

// NegTokenInit is the initiator's first token (RFC 4178 section 4.2.1), or with Hints the
// NegTokenInit2 that an acceptor may begin with ([MS-SPNG] section 2.2.1). reqFlags, which nothing
// protects, are neither read nor written.
type NegTokenInit struct {
	MechTypes   []byte // DER of the MechTypeList, tag and all: what a mechListMIC is made over
	MechToken   []byte // of the first mechanism; nil: absent
	Hints       []byte // DER of the NegHints; nil: absent
	MechListMIC []byte // nil: absent
}

// NegState is the field negState of a NegTokenResp.
type NegState uint8

// States (RFC 4178 section 4.2.2), and that none is given.
const (
	AcceptCompleted  NegState = 0
	AcceptIncomplete NegState = 1
	Reject           NegState = 2
	RequestMIC       NegState = 3
	StateAbsent      NegState = 0xff
)

// String returns the name RFC 4178 has.
func (s NegState) String() string {
	if s == StateAbsent {
		return "absent"
	}
	if names := [...]string{"accept-completed", "accept-incomplete", "reject", "request-mic"}; int(s) < len(names) {
		return names[s]
	}
	return "negState " + strconv.Itoa(int(s))
}

// NegTokenResp is every other token (RFC 4178 section 4.2.2).
type NegTokenResp struct {
	State         NegState
	SupportedMech []byte // contents of the identifier; nil: absent
	ResponseToken []byte // nil: absent
	MechListMIC   []byte // nil: absent
}

// ParseInit reads a NegTokenInit or NegTokenInit2 with its GSS-API framing. What it returns aliases
// token. The error is a *[mech.Error].
func ParseInit(token []byte) (t NegTokenInit, _ error) {
	r := der.NewReader(token)
	framing := r.Enter(der.Application(0))
	if oid := r.Value(der.ObjectID); r.Fault() == 0 && string(oid) != string(mech.SPNEGO) {
		return t, otherMech(oid)
	}
	choice := r.Field(0)
	seq := r.Enter(der.Sequence)
	f := r.Field(0)
	t.MechTypes = r.Raw()
	r.Leave(f)
	if r.Has(1) {
		r.Raw()
	}
	t.MechToken = octetField(&r, 2)
	if r.Has(3) {
		f := r.Field(3)
		if r.Peek() == der.Sequence {
			t.Hints = r.Raw()
		} else {
			t.MechListMIC = r.Octets()
		}
		r.Leave(f)
	}
	if t.Hints != nil {
		t.MechListMIC = octetField(&r, 4)
	}
	r.LeaveOpen(seq)
	r.Leave(choice)
	r.Leave(framing)
	if r.More() {
		r.Fail(der.BadLength)
	}
	if r.Fault() != 0 {
		return t, malformed("NegTokenInit", &r)
	}
	if len(t.MechTypes) > maxMechTypes {
		return t, mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: the list of mechanisms has %d octets, at most %d are read", len(t.MechTypes), maxMechTypes).Of(mech.SPNEGO)
	}
	if r := checkMechTypes(t.MechTypes); r.Fault() != 0 {
		return t, malformed("the list of mechanisms", &r)
	}
	return t, nil
}

// ParseResp reads a NegTokenResp. Some peers leave out the SEQUENCE, some put GSS-API framing
// around it, and Windows 2000 repeats responseToken as mechListMIC, which is then taken for absent.
// What it returns aliases token. The error is a *[mech.Error].
func ParseResp(token []byte) (t NegTokenResp, _ error) {
	r := der.NewReader(token)
	framed := r.Peek() == der.Application(0)
	var framing, seq int
	if framed {
		framing = r.Enter(der.Application(0))
		if oid := r.Value(der.ObjectID); r.Fault() == 0 && string(oid) != string(mech.SPNEGO) {
			return t, otherMech(oid)
		}
	}
	choice := r.Field(1)
	sequence := r.Peek() == der.Sequence
	if sequence {
		seq = r.Enter(der.Sequence)
	}
	t.State = StateAbsent
	if r.Has(0) {
		f := r.Field(0)
		v := r.Value(der.Enumerated)
		if r.Fault() == 0 && (len(v) != 1 || v[0] > byte(RequestMIC)) {
			r.Fail(der.BadFormat)
		}
		if r.Fault() == 0 {
			t.State = NegState(v[0])
		}
		r.Leave(f)
	}
	if r.Has(1) {
		f := r.Field(1)
		if t.SupportedMech = r.Value(der.ObjectID); len(t.SupportedMech) > maxOID {
			r.Fail(der.BadLength)
		}
		r.Leave(f)
	}
	t.ResponseToken = octetField(&r, 2)
	t.MechListMIC = octetField(&r, 3)
	if sequence {
		r.LeaveOpen(seq)
	}
	r.Leave(choice)
	if framed {
		r.Leave(framing)
	}
	if r.More() {
		r.Fail(der.BadLength)
	}
	if r.Fault() != 0 {
		return t, malformed("NegTokenResp", &r)
	}
	if t.ResponseToken != nil && bytes.Equal(t.MechListMIC, t.ResponseToken) {
		t.MechListMIC = nil
	}
	return t, nil
}

// octetField reads the OCTET STRING in the optional field [n].
func octetField(r *der.Reader, n int) []byte {
	if !r.Has(n) {
		return nil
	}
	f := r.Field(n)
	v := r.Octets()
	r.Leave(f)
	return v
}

func otherMech(oid []byte) *mech.Error {
	return mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: the token is of mechanism %s", mechName(known(oid[:min(len(oid), maxOID)]))).Of(mech.SPNEGO)
}

func malformed(what string, r *der.Reader) *mech.Error {
	e, _ := errors.AsType[*der.Error](r.Err())
	err := mech.Errorf(mech.DefectiveToken, 0, reason.DefectiveToken, "SPNEGO: %s: %v", what, e).Of(mech.SPNEGO)
	err.Minor = e.Fault.Minor()
	return err
}

// Append appends the token with its framing to dst.
func (t *NegTokenInit) Append(dst []byte) []byte {
	dst = slices.Grow(dst, len(t.MechTypes)+len(t.MechToken)+len(t.Hints)+len(t.MechListMIC)+64)
	dst, framing := der.Begin(dst, der.Application(0))
	dst = der.AppendValue(dst, der.ObjectID, []byte(mech.SPNEGO))
	dst, choice := der.Begin(dst, der.Context(0))
	dst, seq := der.Begin(dst, der.Sequence)
	dst = der.AppendValue(dst, der.Context(0), t.MechTypes)
	dst = appendOctetField(dst, 2, t.MechToken)
	mic := 3
	if t.Hints != nil {
		dst = der.AppendValue(dst, der.Context(3), t.Hints)
		mic = 4
	}
	dst = appendOctetField(dst, mic, t.MechListMIC)
	return der.End(der.End(der.End(dst, seq), choice), framing)
}

// Append appends the token to dst.
func (t *NegTokenResp) Append(dst []byte) []byte {
	dst = slices.Grow(dst, len(t.SupportedMech)+len(t.ResponseToken)+len(t.MechListMIC)+48)
	dst, choice := der.Begin(dst, der.Context(1))
	dst, seq := der.Begin(dst, der.Sequence)
	if t.State != StateAbsent {
		dst = append(dst, byte(der.Context(0)), 3, byte(der.Enumerated), 1, byte(t.State))
	}
	if t.SupportedMech != nil {
		dst = der.AppendHeader(dst, der.Context(1), der.HeaderSize(len(t.SupportedMech))+len(t.SupportedMech))
		dst = der.AppendValue(dst, der.ObjectID, t.SupportedMech)
	}
	dst = appendOctetField(dst, 2, t.ResponseToken)
	dst = appendOctetField(dst, 3, t.MechListMIC)
	return der.End(der.End(dst, seq), choice)
}

func appendOctetField(dst []byte, n int, v []byte) []byte {
	if v == nil {
		return dst
	}
	dst = der.AppendHeader(dst, der.Context(n), der.HeaderSize(len(v))+len(v))
	return der.AppendOctets(dst, v)
}

// Mechs returns the mechanisms of a token that was parsed, the initiator's favourite first.
func (t *NegTokenInit) Mechs() (all []mech.OID) {
	list := mechTypes(t.MechTypes)
	for m := list.next(); m != ""; m = list.next() {
		all = append(all, m)
	}
	return all
}

// mechList walks a MechTypeList that was checked.
type mechList struct{ r der.Reader }

func mechTypes(list []byte) mechList {
	r := der.NewReader(list)
	r.Enter(der.Sequence)
	return mechList{r}
}

// next returns the next mechanism, empty at the end.
func (l *mechList) next() mech.OID {
	if !l.r.More() {
		return ""
	}
	return known(l.r.Value(der.ObjectID))
}

// checkMechTypes reads a whole MechTypeList, and returns the Reader that did.
func checkMechTypes(list []byte) der.Reader {
	r := der.NewReader(list)
	seq := r.Enter(der.Sequence)
	for r.More() {
		if len(r.Value(der.ObjectID)) == 0 {
			r.Fail(der.BadLength)
		}
	}
	r.Leave(seq)
	if r.More() {
		r.Fail(der.BadLength)
	}
	return r
}

// appendMechTypes appends the MechTypeList of what is on offer.
func appendMechTypes(dst []byte, offer []Mech) []byte {
	dst, seq := der.Begin(dst, der.Sequence)
	for _, m := range offer {
		dst = der.AppendValue(dst, der.ObjectID, []byte(m.OID))
	}
	return der.End(dst, seq)
}

// mechNames names the mechanisms of a list, the first few of them, for messages.
func mechNames(types []byte) string {
	var names []string
	list := mechTypes(types)
	for m := list.next(); m != ""; m = list.next() {
		if len(names) == 8 {
			names = append(names, "...")
			break
		}
		names = append(names, mechName(m))
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, ", ")
}

// hints are the NegHints that every acceptor sends; the name means what it says ([MS-SPNG] section
// 3.2.5.2).
var hints = der.AppendValue(nil, der.Sequence, der.AppendValue(nil, der.Context(0), der.AppendString(nil, "not_defined_in_RFC4178@please_ignore")))
