// Package decode says what a token is made of, or what somebody took for one, without any key: what
// travels in the clear, and of all else its length.
//
// The messages are read with the parsers that the daemon reads them with. What comes back is a tree
// of [Part], of kinds and with fields of closed sets, for people (text.go) and for programs
// (encoding/json). No field has a byte of a ciphertext or a key; what a peer wrote is shown through
// [wire.Shown] only.
package decode

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"gssproxyd/keytab/seal"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
)

// Kind is what a part is, one of a closed set.
type Kind string

// The kinds there are; [Kinds] says what each is.
const (
	NegTokenInit    Kind = "spnego-init"
	NegTokenResp    Kind = "spnego-response"
	GSSToken        Kind = "gss-token"
	APReq           Kind = "ap-req"
	APRep           Kind = "ap-rep"
	KRBError        Kind = "krb-error"
	Ticket          Kind = "ticket"
	Authenticator   Kind = "authenticator"
	KRBCred         Kind = "krb-cred"
	ASRep           Kind = "as-rep"
	TGSRep          Kind = "tgs-rep"
	OtherMessage    Kind = "other-kerberos-message"
	MIC             Kind = "mic-token"
	Wrap            Kind = "wrap-token"
	OldMessage      Kind = "rfc1964-token"
	NTLM            Kind = "ntlm"
	ExportedName    Kind = "exported-name"
	ExportedContext Kind = "exported-context"
	Sealed          Kind = "sealed"
	Credential      Kind = "gssproxy-credential"
	Keytab          Kind = "keytab"
	CCache          Kind = "credential-cache"
	Unknown         Kind = "unknown"
)

// KindDoc documents a kind.
type KindDoc struct {
	Kind Kind
	Text string
}

// Kinds documents every kind, in the order of the documents.
var Kinds = []KindDoc{
	{NegTokenInit, "SPNEGO NegTokenInit, the first token of a negotiation"},
	{NegTokenResp, "SPNEGO NegTokenResp, a later token of a negotiation"},
	{GSSToken, "token with the framing of GSS-API"},
	{APReq, "Kerberos AP-REQ, the client's proof of who it is"},
	{APRep, "Kerberos AP-REP, the service's proof of who it is"},
	{KRBError, "Kerberos KRB-ERROR"},
	{Ticket, "Kerberos ticket"},
	{Authenticator, "Kerberos authenticator"},
	{KRBCred, "Kerberos KRB-CRED, a forwarded credential"},
	{ASRep, "Kerberos AS-REP, a KDC's answer with a first ticket"},
	{TGSRep, "Kerberos TGS-REP, a KDC's answer with a ticket for a service"},
	{OtherMessage, "Kerberos message that is not looked into"},
	{MIC, "MIC token: a checksum of a message of an established context (RFC 4121)"},
	{Wrap, "wrap token: a message of an established context (RFC 4121)"},
	{OldMessage, "message, or checksum of one, of an established context with an old encryption type (RFC 1964)"},
	{NTLM, "NTLM message, not Kerberos"},
	{ExportedName, "exported name (RFC 2743)"},
	{ExportedContext, "exported security context of MIT krb5"},
	{Sealed, "object that gssproxyd has sealed for a client to keep"},
	{Credential, "credential as gssproxy's protocol has it (gssx_cred)"},
	{Keytab, "keytab file"},
	{CCache, "credential cache file"},
	{Unknown, "nothing that is known"},
}

// Field is the name of something that is known of a part, one of a closed set.
type Field string

// The fields there are; [Fields] says what each is.
const (
	Mechanism     Field = "mechanism"
	Mechanisms    Field = "mechanisms"
	State         Field = "state"
	Options       Field = "options"
	Server        Field = "server"
	Client        Field = "client"
	Enctype       Field = "enctype"
	KVNO          Field = "kvno"
	Ciphertext    Field = "ciphertext_octets"
	Checksum      Field = "checksum_octets"
	Code          Field = "code"
	CodeName      Field = "code_name"
	CodeText      Field = "code_text"
	ServerTime    Field = "server_time"
	ClientTime    Field = "client_time"
	ErrorText     Field = "error_text"
	ErrorData     Field = "error_data_octets"
	Tickets       Field = "tickets"
	Message       Field = "message"
	Flags         Field = "flags"
	Sequence      Field = "sequence_number"
	ExtraCount    Field = "extra_count"
	Rotation      Field = "right_rotation_count"
	Payload       Field = "payload_octets"
	Name          Field = "name"
	FormatVersion Field = "version"
	Holds         Field = "holds"
)

// FieldDoc documents a field.
type FieldDoc struct {
	Field Field
	Text  string
}

// Fields documents every field, in the order of the documents.
var Fields = []FieldDoc{
	{Mechanism, "the mechanism, by name and object identifier"},
	{Mechanisms, "list: the mechanisms on offer, the client's favourite first; 16 of them at most"},
	{State, "how the negotiation stands"},
	{Options, "list: options of an AP-REQ"},
	{Server, "principal of the service, or of the KDC"},
	{Client, "principal of the client"},
	{Enctype, "encryption type"},
	{KVNO, "number: version of the key; absent where the message does not say it"},
	{Ciphertext, "number: how long the encrypted part is"},
	{Checksum, "number: how long the checksum is"},
	{Code, "number: error code of the protocol"},
	{CodeName, "its name in RFC 4120"},
	{CodeText, "its text in MIT krb5"},
	{ServerTime, "clock of who made the error, in UTC"},
	{ClientTime, "clock of the client as the error repeats it, in UTC"},
	{ErrorText, "text that came with the error (e-text)"},
	{ErrorData, "number: how long the data is that came with it (e-data)"},
	{Tickets, "number: how many tickets there are"},
	{Message, "which message it is"},
	{Flags, "list: flags of a token"},
	{Sequence, "number: sequence number of a token"},
	{ExtraCount, "number: EC of a wrap token"},
	{Rotation, "number: RRC of a wrap token"},
	{Payload, "number: how long the message is in a wrap token, with its checksum and what encryption adds"},
	{Name, "the name in it"},
	{FormatVersion, "number: version of the format"},
	{Holds, "what is sealed"},
}

// value is what is known of a field: a string, a uint64, an int32 or a list of strings.
type value struct {
	field Field
	is    any
}

// Part is a token, or a part of one.
type Part struct {
	Kind    Kind
	Octets  int
	Problem string // why not all of it could be read
	Hint    string // what it means for who looks at it
	Parts   []Part

	values []value
}

func (p *Part) set(f Field, is any) {
	switch v := is.(type) {
	case string:
		if v == "" {
			return
		}
	case []string:
		if len(v) == 0 {
			return
		}
	}
	p.values = append(p.values, value{f, is})
}

// Whole reports whether all of it was understood.
func (p *Part) Whole() bool {
	if p.Problem != "" || p.Kind == Unknown {
		return false
	}
	for i := range p.Parts {
		if !p.Parts[i].Whole() {
			return false
		}
	}
	return true
}

// maxDepth bounds tokens within tokens: a Kerberos token in SPNEGO is the second.
const maxDepth = 4

// Token says what b is.
func Token(b []byte) Part { return token(b, 1) }

func token(b []byte, depth int) Part {
	p := Part{Octets: len(b)}
	switch read := reader(b); {
	case depth > maxDepth:
		p.Kind, p.Problem = Unknown, "nested too deep"
	case read == nil:
		p.Kind = Unknown
		p.Hint = "a token of Kerberos or SPNEGO begins with the octet 60, a1 or 6e; what is here begins with " + begins(b)
	default:
		read(&p, b, depth)
	}
	return p
}

func begins(b []byte) string {
	if len(b) == 0 {
		return "nothing: it is empty"
	}
	return fmt.Sprintf("%02x", b[0])
}

// reader returns what reads a token that begins like b, nil if there is nothing.
func reader(b []byte) func(p *Part, b []byte, depth int) {
	is := func(prefix string) bool { return bytes.HasPrefix(b, []byte(prefix)) }
	_, kind := seal.Inspect(b)
	switch {
	case is("NTLMSSP\x00"):
		return (*Part).ntlm
	case kind != 0:
		return (*Part).sealed
	case is("\x04\x01"), is("\x04\x02"):
		return (*Part).exportedName
	case is("\x04\x04"):
		return (*Part).mic
	case is("\x05\x04") && len(b) >= 16 && b[3] == 0xff: // a cache would have a header of so many octets
		return (*Part).wrap
	case is("\x05\x02"), is("\x05\x01"), is("\x05\x03"), is("\x05\x04"):
		return (*Part).file
	case isExportedContext(b):
		return (*Part).exportedContext
	case isCredential(b):
		return (*Part).credential
	case len(b) == 0:
		return nil
	}
	switch der.Tag(b[0]) {
	case der.Application(0):
		return (*Part).framed
	case der.Context(0), der.Context(1):
		return (*Part).negTokenResp
	}
	return message(b)
}

// problem notes why not all of a part could be read, and what that commonly comes from.
func (p *Part) problem(err error) {
	if err == nil {
		return
	}
	p.Problem = err.Error()
	if refusal, ok := errors.AsType[*mech.Error](err); ok {
		p.Problem = strings.TrimPrefix(refusal.Text, ": ")
	}
	if strings.Contains(p.Problem, der.Overrun.String()) {
		p.Hint = "its end is missing, it seems: logs and terminals cut long lines"
	}
}

// add adds what is within a part.
func (p *Part) add(within Part) { p.Parts = append(p.Parts, within) }
