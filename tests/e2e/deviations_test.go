package e2e

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"gssproxyd/mech"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// deviation is a way in which our daemon differs from the C daemon on purpose. docs/differences.md
// tells their users' side.
type deviation struct {
	call *regexp.Regexp // the names of the calls it is about
	why  string
	// same says what is wrong with our reply, if anything, and makes the two the same where they
	// may differ. A reply that does not deviate is left alone.
	same func(c, ours *reply) error
}

// deviations are applied in this order.
var deviations = []deviation{
	{calls("."), "every failure has a GSS status; the C daemon answers SYSTEM_ERR when its library has no text for an error, which depends on what it was asked before", notSystemErr},
	{calls("^unimplemented GET_CALL_CONTEXT"), "the answer tells which service the caller is", namesService},
	{calls("^unimplemented "), "what is not implemented is unavailable, not an empty success", refusedWith(mech.Unavailable)},
	{calls("^ACCEPT_SEC_CONTEXT [0-9]+ flags 0x103e"), "DCE style has three legs: the context goes on, and travels sealed until then", goesOn},
	{calls("^ACCEPT_SEC_CONTEXT framed as "), "an AP-REQ is one in the frame of any krb5 mechanism", acceptedInstead},
	{calls("^ACCEPT_SEC_CONTEXT with a handle of another's name"), "a credential for one name accepts for that name only, as MIT's library does without a daemon", refusedWith(mech.Failure)},
	{calls("^ACCEPT_SEC_CONTEXT (empty|an? .*'?s? id)$"), "the token is what is wrong: the C daemon's library takes an empty one for SPNEGO, and another id for a token of a context that there is not", refusedWith(mech.DefectiveToken)},
	{calls("^ACQUIRE_CRED .*: handle: named, asked for another$"), "a handle to accept for another name counts as none", acquiredInstead},
	{calls("^(name|localname) .* mech 1.3.6.1.5.5.2$"), "names are krb5's; SPNEGO is negotiated on the client's side", refusedWith(mech.BadMech, mech.BadName, mech.BadNameType, mech.Failure)},
	{calls("^name .* mech (1.2.3.4)?$"), "a name that is none is refused whatever the mechanism, and without one", badName},
	{calls(`^name "@lab.example.test" .* type 1.2.840.113554.1.2.1.4 `), "a service needs a name", badName},
	{calls(`^name "x" .* type 1.2.840.113554.1.2.1.3 `), "a uid is digits: what is none is not root", badName},
	{calls(`^name "cert" .* type 1.2.840.113554.1.2.2.7 `), "a certificate is no acceptor's or initiator's name", badName},
	{calls("^(VERIFY|UNWRAP) again"), "a token that is old or a duplicate is so beside its result (RFC 2743 1.2.3), not instead of it", beside},
	{calls("."), "the minor text says more, behind the reason's id", moreText},
	{calls("."), "a refusal names the mechanism, which is krb5", refusalMech},
	{calls("^ACCEPT_SEC_CONTEXT "), "a refusal has the KRB-ERROR for the peer", errorToken},
}

var calls = regexp.MustCompile

func (r *reply) refused() bool { return lab.Success(r.Header) && r.Status.MajorStatus>>16 != 0 }

func notSystemErr(c, ours *reply) error {
	if c.Header.Accepted.Outcome.Stat != xdr.AcceptSystemErr {
		return nil
	}
	if !ours.refused() || len(ours.Status.MajorStatusString) == 0 {
		return fmt.Errorf("%v", ours)
	}
	take(c, ours)
	return nil
}

// take makes the C daemon's reply ours.
func take(c, ours *reply) {
	c.Header = ours.Header
	c.Res = ours.Res
	c.Status = ours.Status
}

func refusedWith(majors ...mech.Major) func(c, ours *reply) error {
	return func(c, ours *reply) error {
		if c.Status.MajorStatus == ours.Status.MajorStatus && lab.Success(c.Header) {
			return nil
		}
		if !ours.refused() || !slices.Contains(majors, mech.Major(ours.Status.MajorStatus)) {
			return fmt.Errorf("%v", ours)
		}
		return onlyStatus(c, ours)
	}
}

// namesService: the name of the service is all there is in our answer.
func namesService(c, ours *reply) error {
	r := ours.Res.(*xdr.ResGetCallContext)
	if ours.Status.MajorStatus != 0 || len(r.Options) != 1 || string(r.Options[0].Option) != "service\x00" || len(r.ServerCallCtx) != 0 {
		return fmt.Errorf("%v, %v", ours, r.Options)
	}
	take(c, ours)
	return nil
}

// goesOn: both have a token and say that there is another leg; the C daemon's context has keys in
// clear and cannot be continued, ours is nothing to its client.
func goesOn(c, ours *reply) error {
	theirs, r := c.Res.(*xdr.ResAcceptSecContext), ours.Res.(*xdr.ResAcceptSecContext)
	const needed = uint64(mech.ContinueNeeded)
	x := &r.ContextHandle.V
	if c.Status.MajorStatus != needed || ours.Status.MajorStatus != needed || string(c.Status.MajorStatusString) != string(ours.Status.MajorStatusString) ||
		!sameLength(r.OutputToken.V, theirs.OutputToken.V) || x.CtxFlags != theirs.ContextHandle.V.CtxFlags ||
		x.Open || x.LocallyInitiated || len(x.ExportedContextToken) == 0 || bytes.Contains(x.ExportedContextToken, []byte(mech.KRB5)) {
		return fmt.Errorf("%v, C %v", ours, c)
	}
	take(c, ours)
	return nil
}

// sameLength: up to the few octets by which numbers in DER differ.
func sameLength(a, b []byte) bool { return len(a)-len(b) <= 4 && len(b)-len(a) <= 4 }

// onlyStatus: a refusal of ours has a status and nothing else that counts. It stands for C's reply
// from here on.
func onlyStatus(c, ours *reply) error {
	if r, ok := ours.Res.(*xdr.ResAcceptSecContext); ok && (r.ContextHandle.Set || r.DelegatedCredHandle.Set) {
		return fmt.Errorf("a context beside a refusal")
	}
	take(c, ours)
	return nil
}

func badName(c, ours *reply) error {
	if !ours.refused() || c.Status.MajorStatus == ours.Status.MajorStatus {
		return nil
	}
	return refusedWith(mech.BadName, mech.BadNameType, mech.BadMech, mech.Failure)(c, ours)
}

// acquiredInstead: the C daemon refuses, ours answers with a credential of the name asked for.
func acquiredInstead(c, ours *reply) error {
	got := &ours.Res.(*xdr.ResAcquireCred).OutputCredHandle.V
	if !c.refused() || ours.Status.MajorStatus != 0 || string(got.DesiredName.DisplayName) != "e17/"+lab.Host+"@"+lab.Name {
		return fmt.Errorf("%v", ours)
	}
	take(c, ours)
	return nil
}

// acceptedInstead: C has a credential for one of krb5's OIDs only.
func acceptedInstead(c, ours *reply) error {
	r := ours.Res.(*xdr.ResAcceptSecContext)
	if c.Status.MajorStatus != uint64(mech.NoCred) || ours.Status.MajorStatus != 0 || string(r.ContextHandle.V.SrcName.DisplayName) != "alice@"+lab.Name {
		return fmt.Errorf("%v, C %v", ours, c)
	}
	take(c, ours)
	return nil
}

func beside(c, ours *reply) error {
	if c.Status.MajorStatus != uint64(mech.DuplicateToken) || c.Status.MajorStatus != ours.Status.MajorStatus {
		return nil
	}
	if r, ok := ours.Res.(*xdr.ResUnwrap); ok && len(r.MessageBuffer) != 1 {
		return fmt.Errorf("%d messages", len(r.MessageBuffer))
	}
	take(c, ours)
	return nil
}

func refusalMech(c, ours *reply) error {
	if ours.refused() && string(ours.Status.Mech) == string(mech.KRB5) {
		ours.Status.Mech = c.Status.Mech
	}
	return nil
}

func errorToken(c, ours *reply) error {
	r := ours.Res.(*xdr.ResAcceptSecContext)
	if !ours.refused() || !r.OutputToken.Set {
		return nil
	}
	// The frame's id of a KRB-ERROR, and its application tag.
	if !bytes.Contains(r.OutputToken.V, []byte("\x03\x00\x7e")) {
		return fmt.Errorf("token %x", r.OutputToken.V)
	}
	r.OutputToken = c.Res.(*xdr.ResAcceptSecContext).OutputToken
	return nil
}

var reasonID = regexp.MustCompile(`^\[[a-z0-9-]+\] `)

// moreText: a refusal of ours has a minor text that begins with a reason's id. What is behind it
// begins as the C daemon's text does, or that said nothing, or ours says it in other words.
func moreText(c, ours *reply) error {
	if !ours.refused() || !lab.Success(c.Header) {
		return nil
	}
	text := func(b []byte) string { return string(bytes.TrimSuffix(b, []byte{0})) }
	t, theirs := text(ours.Status.MinorStatusString), text(c.Status.MinorStatusString)
	id := reasonID.FindString(t)
	if id == "" {
		return fmt.Errorf("no reason's id in the text %q", t)
	}
	t, theirs = strings.TrimPrefix(t, id), strings.TrimPrefix(theirs, id) // C's may be ours by now
	if !strings.HasPrefix(t, theirs) && !saysNothing[theirs] && !otherWords(theirs, t) {
		return fmt.Errorf("text %q, C %q", t, theirs)
	}
	ours.Status.MinorStatusString = c.Status.MinorStatusString
	// A minor status there may be on one side only, where the text of the other is only a text.
	if ours.Status.MinorStatus == 0 || c.Status.MinorStatus == 0 {
		ours.Status.MinorStatus = c.Status.MinorStatus
	}
	return nil
}

// saysNothing are texts of the C daemon that do not tell what is wrong.
var saysNothing = map[string]bool{"": true, "Success": true, "Unknown error": true, "Invalid argument": true, "No such file or directory": true}

// words are pairs of a beginning of C's text and of ours that says the same.
var words = [][2]string{
	{"No key table entry found for ", "No key table entry found matching "},
	{"No key table entry found matching ", "No key table entry found matching "}, // C does not name the realm
	{"Malformed representation of principal", "malformed principal name "},
	{"UID does not resolve to username", "uid "},
	{"UID does not resolve to username", "a machine uid of 2 octets"},
	{"UID does not resolve to username", `"-1" is no uid`},
	{"Request ticket server absent/", "Request ticket server absent/lab.example.test@EXAMPLE.TEST not found in keytab (ticket kvno 1, enctype "},
	{"Request ticket server ", "Request ticket server liar/lab.example.test@EXAMPLE.TEST kvno 1 enctype aes256-cts-hmac-sha384-192 found in keytab but cannot decrypt ticket"},
	{"Request ticket server ", "Request ticket server svc/lab.example.test@EXAMPLE.TEST kvno 1 enctype aes256-cts-hmac-sha384-192 found in keytab but cannot decrypt ticket"},
	{"Unknown quality of protection specified", "krb5 has the default quality of protection only"},
	{"Token header is malformed or corrupt", "this is no "},
	{"Message size is incompatible with encryption type", "the MIC does not verify"},
	{"Message size is incompatible with encryption type", "wrap token too short for its encryption type"},
}

func otherWords(c, ours string) bool {
	return slices.ContainsFunc(words, func(w [2]string) bool { return strings.HasPrefix(c, w[0]) && strings.HasPrefix(ours, w[1]) })
}
