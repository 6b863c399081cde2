package proc

import (
	"errors"
	"log/slog"
	"strings"
	"syscall"

	"gssproxyd/mech"
	"gssproxyd/xdr"
)

// Reasons of refusals that are decided here; those of the mechanism are package mech's, those of matching a service
// are package conf's. docs/reasons.md has a section on each.
const (
	ReasonNotImplemented  mech.Reason = "not-implemented"
	ReasonCredsStay       mech.Reason = "credentials-stay-here"
	ReasonNoTransition    mech.Reason = "protocol-transition-not-allowed"
	ReasonNoDelegation    mech.Reason = "constrained-delegation-not-allowed"
	ReasonUsageNotAllowed mech.Reason = "usage-not-allowed"
	ReasonMechNotAllowed  mech.Reason = "mechanism-not-allowed"
	ReasonCredMismatch    mech.Reason = "credential-mismatch"
	ReasonDuplicate       mech.Reason = "duplicate-element"
	ReasonBadOption       mech.Reason = "bad-option"
	ReasonBadArgument     mech.Reason = "bad-argument"
	ReasonCredStore       mech.Reason = "cred-store-unusable"
	ReasonUnknownUser     mech.Reason = "unknown-user"
	ReasonUserLookup      mech.Reason = "user-lookup-failed"
	ReasonKernelLimit     mech.Reason = "kernel-limit"
	ReasonOverLimit       mech.Reason = "over-limit"
)

// Reasons lists the reasons above with a text and what to do, for the log and the documentation.
var Reasons = []mech.ReasonDoc{
	{ID: ReasonNotImplemented, Text: "what was asked for is not implemented", Hint: "see docs/differences.md for what is"},
	{ID: ReasonCredsStay, Text: "credentials are not exported, imported or stored by request", Hint: "keep the credential handle; with cred_store = ccache:... the daemon keeps tickets in a cache"},
	{ID: ReasonNoTransition, Text: "the service may not act for users who are not there", Hint: "set allow_protocol_transition for the service if it may"},
	{ID: ReasonNoDelegation, Text: "the service may not use a user's credential towards other services", Hint: "set allow_constrained_delegation for the service if it may"},
	{ID: ReasonUsageNotAllowed, Text: "the service's cred_usage does not allow what was asked", Hint: "set cred_usage of the service to the usage its clients need"},
	{ID: ReasonMechNotAllowed, Text: "none of the mechanisms asked for is served", Hint: "have the client ask for krb5 (1.2.840.113554.1.2.2)"},
	{ID: ReasonCredMismatch, Text: "the credential handle sent is for another name, mechanism or usage", Hint: "release the credential and acquire one for the name wanted"},
	{ID: ReasonDuplicate, Text: "the credential handle sent already has what was to be added to it", Hint: "use the handle as it is"},
	{ID: ReasonBadOption, Text: "an option of the call has a value that is not known", Hint: "update the client or the daemon"},
	{ID: ReasonBadArgument, Text: "an argument that the procedure needs is absent or malformed", Hint: "correct the client"},
	{ID: ReasonCredStore, Text: "a cred_store line of the service cannot be used for this caller", Hint: "read the text for the line and correct it; gssproxyd check shows them"},
	{ID: ReasonUnknownUser, Text: "the user that a principal maps to does not exist on this host", Hint: "compare the name with getent passwd; principal_map and unmapped_user of the service, and auth_to_local in krb5.conf, decide who a principal is"},
	{ID: ReasonUserLookup, Text: "the system's name service did not say in time, or not sensibly, who a user is", Hint: "try getent passwd and getent initgroups with the user's name; look at the service behind them (sssd, LDAP, winbind)"},
	{ID: ReasonKernelLimit, Text: "the result does not fit into what the kernel has room for", Hint: "the text names the part; a shorter principal is the only way out"},
	{ID: ReasonOverLimit, Text: "the caller's user has more under way than its share", Hint: "the text names what there is too much of: find the program of that user that asks so often, or try again later"},
}

// hints maps every reason to its hint.
var hints = func() map[mech.Reason]string {
	m := make(map[mech.Reason]string)
	for _, list := range [][]mech.ReasonDoc{mech.Reasons, Reasons} {
		for _, r := range list {
			m[r.ID] = r.Hint
		}
	}
	return m
}()

// failure is GSS_S_FAILURE with errno EINVAL, what the C daemon answers to arguments that make no sense.
func failure(reason mech.Reason, text string) *mech.Error {
	return &mech.Error{Major: mech.Failure, Minor: uint32(syscall.EINVAL), Text: text, Reason: reason}
}

// refusal is a refusal with a major status of its own.
func refusal(major mech.Major, reason mech.Reason, text string) *mech.Error {
	return &mech.Error{Major: major, Reason: reason, Text: text, Mech: mech.KRB5}
}

// probe is the refusal of what a library tries on its own and does without: nothing for the log at its usual level.
type probe struct{ error }

func (p probe) Unwrap() error { return p.error }

// refuse logs a refusal and makes its GSS status. The minor text begins with the stable reason in brackets, so that it
// reaches the user of the client and can be looked up; both texts end in a NUL as libgssapi clients expect.
func (p *Procedures) refuse(c *call, err error) xdr.Status {
	var e *mech.Error
	known := errors.As(err, &e)
	if !known {
		e = &mech.Error{Major: mech.Failure, Minor: uint32(syscall.EIO), Text: "internal error", Reason: reasonOf(err)}
	}
	text := e.MinorString()
	text = strings.ToValidUTF8(text[:min(len(text), maxText)], "")
	switch {
	case known && errors.As(err, new(probe)):
		p.note(slog.LevelDebug, c, e.Reason, "refused", "status", e.Major.Text(), "error", text)
	case known:
		p.logRefusal(c, e.Reason, "refused", "status", e.Major.Text(), "error", text)
	default:
		p.note(slog.LevelError, c, e.Reason, "call failed", "error", err)
	}
	p.tracef("%v of service %s refused: %s: %s [%s]", xdr.Proc(c.Proc), c.svc.Name, e.Major.Text(), text, e.Reason)
	return xdr.Status{
		MajorStatus:       uint64(e.Major),
		Mech:              []byte(e.Mech),
		MinorStatus:       uint64(e.Minor),
		MajorStatusString: []byte(e.Major.Text() + "\x00"),
		MinorStatusString: []byte(e.Reason.Before(text) + "\x00"),
	}
}

// reasonOf is the reason of a refusal.
func reasonOf(err error) mech.Reason {
	if e := (*mech.Error)(nil); errors.As(err, &e) {
		return e.Reason
	}
	return mech.ReasonInternal
}

// maxText bounds a status text, here and in the log: the kernel has one page for each, and a name may be as long as a
// record.
const maxText = 2048
