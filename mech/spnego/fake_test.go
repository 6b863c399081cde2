package spnego_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/der"
	"gssproxyd/mech/reason"
	"gssproxyd/mech/spnego"
)

// fake is one end of a mechanism whose context takes a given number of tokens in all. Its tokens
// are framed with the mechanism, a number, and who sends it.
type fake struct {
	oid       mech.OID
	tokens    int // of both ends together
	flags     uint32
	initiator bool

	at     int // tokens seen and sent
	broken bool
	sent   byte // MICs
	got    byte
}

var errFake = &mech.Error{Major: mech.Failure, Minor: 7, Mech: mech.KRB5, Text: "the fake's reason", Reason: reason.BadIntegrity, Token: []byte("ERR")}

func (f *fake) token() []byte {
	f.at++
	body := der.AppendValue(nil, der.ObjectID, []byte(f.oid))
	return der.AppendValue(nil, der.Application(0), fmt.Appendf(body, "%d", f.at))
}

func (f *fake) Step(_ context.Context, in []byte) ([]byte, bool, error) {
	if f.broken || string(in) == "ERR" {
		return nil, false, errFake
	}
	if f.at >= f.tokens {
		return nil, false, errors.New("the context is established and is given a token")
	}
	if (f.at == 0 && f.initiator) != (in == nil) {
		return nil, false, errors.New("a token where there is to be none, or none")
	}
	if in != nil && !bytes.Equal(in, f.token()) {
		return nil, false, errFake
	}
	if f.at == f.tokens {
		return nil, true, nil
	}
	return f.token(), f.at == f.tokens, nil
}

func (f *fake) Flags() uint32 { return f.flags }

func (f *fake) GetMIC(dst, msg []byte) ([]byte, error) {
	if f.at < f.tokens {
		return dst, errors.New("no context")
	}
	f.sent++
	return fmt.Appendf(dst, "MIC %v %d %x", f.initiator, f.sent, msg), nil
}

func (f *fake) VerifyMIC(msg, mic []byte) (mech.Major, error) {
	if f.at < f.tokens {
		return 0, errors.New("no context")
	}
	f.got++
	want := fmt.Appendf(nil, "MIC %v %d %x", !f.initiator, f.got, msg)
	if string(mic) == "MIC again" {
		return mech.DuplicateToken, nil
	}
	if !bytes.Equal(mic, want) {
		return 0, &mech.Error{Major: mech.BadMIC, Mech: f.oid, Text: "the fake's MIC"}
	}
	return mech.Complete, nil
}

// fakeMech is a mechanism of fakes.
func fakeMech(oid mech.OID, tokens int, flags uint32, initiator bool) spnego.Mech {
	return spnego.Mech{OID: oid, New: func() spnego.Context {
		f := &fake{oid: oid, tokens: tokens, flags: flags, initiator: initiator}
		if oid == mech.KRB5Wrong {
			f.oid = mech.KRB5
		}
		return f
	}}
}

// list makes a MechTypeList.
func list(mechs ...mech.OID) []byte {
	var b []byte
	for _, m := range mechs {
		b = der.AppendValue(b, der.ObjectID, []byte(m))
	}
	return der.AppendValue(nil, der.Sequence, b)
}

// octets are the contents of a word: hex, or if it is none, the text.
func octets(word string) []byte {
	_, text, _ := strings.Cut(word, "=")
	if b, err := hex.DecodeString(text); err == nil {
		return b
	}
	return []byte(text)
}

// resp makes a NegTokenResp of words: a state, a mechanism, and t= and mic= with their contents.
func resp(words string) []byte {
	r := spnego.NegTokenResp{State: spnego.StateAbsent}
	for _, w := range strings.Fields(words) {
		name, _, _ := strings.Cut(w, "=")
		switch name {
		case "accept-completed":
			r.State = spnego.AcceptCompleted
		case "accept-incomplete":
			r.State = spnego.AcceptIncomplete
		case "reject":
			r.State = spnego.Reject
		case "request-mic":
			r.State = spnego.RequestMIC
		case "krb5":
			r.SupportedMech = []byte(mech.KRB5)
		case "ms":
			r.SupportedMech = []byte(mech.KRB5Wrong)
		case "old":
			r.SupportedMech = []byte(mech.KRB5Old)
		case "ntlm":
			r.SupportedMech = []byte(spnego.NTLM)
		case "negoex":
			r.SupportedMech = []byte(spnego.NegoEx)
		case "t":
			r.ResponseToken = octets(w)
		case "mic":
			r.MechListMIC = octets(w)
		default:
			panic("unknown word " + w)
		}
	}
	return r.Append(nil)
}
