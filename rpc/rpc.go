// Package rpc carries calls of program 400112, or another [Program], over unix stream sockets: ONC
// RPC version 2 (RFC 5531) without authentication in the message, because package
// [gssproxyd/rpc/peer] knows who is calling.
//
// On the wire a record is one or more fragments (RFC 5531 section 11):
//
//	uint32  bit 31: this is the last fragment; bits 0-30: length
//	opaque  that many bytes
//
// A record is at most MaxRecord bytes. The server takes records of several fragments and always
// answers in one, with a single write(2): clients exist that want the four bytes of the mark in one
// read(2).
//
// A call is the record (every item a big endian uint32 unless said):
//
//	xid  0 (CALL)  2 (RPC version)  400112  1  procedure
//	cred: flavor, opaque<400>     verf: flavor, opaque<400>     arguments
//
// and the answers, after the xid, are in this order of precedence:
//
//	no header can be decoded, or not a CALL       closed without an answer
//	no service for the peer (Server.Match)        closed without an answer
//	RPC version is not 2     1 1 0 2 2            MSG_DENIED RPC_MISMATCH
//	another program          1 0 0 0 1            PROG_UNAVAIL
//	another version          1 0 0 0 2 1 1        PROG_MISMATCH
//	procedure over 15        1 0 0 0 3            PROC_UNAVAIL
//	cred flavor not NONE     1 1 1 7              MSG_DENIED AUTH_ERROR
//	arguments do not decode  1 0 0 0 4            GARBAGE_ARGS
//	no result, or too long   1 0 0 0 5            SYSTEM_ERR
//	procedure 0              1 0 0 0 0            SUCCESS, a health probe
//	otherwise                1 0 0 0 0 results    SUCCESS
//
// The verf of a call is ignored, as are bytes after the arguments.
package rpc

import (
	"errors"
	"fmt"

	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// MaxRecord is the longest record in bytes, without the fragments' marks, of calls and of replies.
const MaxRecord = 1 << 20

// Program is what calls are for.
type Program struct {
	Number, Version uint32
	Last            uint32                   // number of a procedure; procedure 0 does nothing
	Name            func(proc uint32) string // of a procedure, any number
}

// The programs there are.
var (
	GSSProxy = Program{xdr.Program, xdr.Version, uint32(xdr.ProcWrapSizeLimit), func(proc uint32) string { return xdr.Proc(proc).String() }}
	Admin    = Program{xdr.AdminProgram, xdr.AdminVersion, uint32(xdr.AdminProcMount), func(proc uint32) string { return xdr.AdminProc(proc).String() }}
	Pods     = Program{xdr.PodsProgram, xdr.PodsVersion, uint32(xdr.PodsList), func(proc uint32) string { return xdr.PodsProc(proc).String() }}
)

const (
	lastFragment = 1 << 31
	markLen      = 4
	replyLen     = 24 // header of a SUCCESS: xid 1 0 0 0 0
	callLen      = 40 // header of a call with empty cred and verf

	// maxFragments bounds the work for one record. Senders that split at all do so every few
	// kilobytes.
	maxFragments = 1024
)

// AcceptStat is the fate of an accepted call (RFC 5531 section 9).
type AcceptStat = xdr.AcceptStat

// Values of AcceptStat.
const (
	Success      = xdr.AcceptSuccess
	ProgUnavail  = xdr.AcceptProgUnavail
	ProgMismatch = xdr.AcceptProgMismatch
	ProcUnavail  = xdr.AcceptProcUnavail
	GarbageArgs  = xdr.AcceptGarbageArgs
	SystemErr    = xdr.AcceptSystemErr
)

// Error is a reply that says something else than SUCCESS. It does not end the connection.
type Error struct {
	Reply xdr.Reply
}

// Error names the status, as in "the server answered GARBAGE_ARGS".
func (e *Error) Error() string {
	if e.Reply.Stat != xdr.ReplyDenied {
		return fmt.Sprintf("the server answered %v", e.Reply.Accepted.Outcome.Stat)
	}
	if e.Reply.Denied.Stat == xdr.RejectAuthError {
		return fmt.Sprintf("the server denied the call: %v %v", e.Reply.Denied.Stat, e.Reply.Denied.AuthStat)
	}
	return fmt.Sprintf("the server denied the call: %v", e.Reply.Denied.Stat)
}

var (
	// ErrNotSent is wrapped by Client.Call's error if the call did not leave whole: the server is
	// gone, nothing was executed, and the call may be made again on a new connection.
	ErrNotSent = errors.New("the server has closed the connection")

	// ErrNoAnswer is wrapped by Client.Call's error if the server closed the connection instead of
	// answering: it has no service for this caller, or it ended. Whether the call was executed is
	// unknown.
	ErrNoAnswer = errors.New("the server closed the connection without an answer")

	// ErrShutdown is what Serve and Local return if they are called after Shutdown.
	ErrShutdown = errors.New("rpc: the server was shut down")

	errNoCall     = &Fault{reason.BadRecord, "the record holds no RPC call header"}
	errNoService  = errors.New("no service for this caller")
	errTooLong    = &Fault{reason.BadRecord, fmt.Sprintf("record is longer than %d bytes", MaxRecord)}
	errFragments  = &Fault{reason.BadRecord, fmt.Sprintf("record has more than %d fragments", maxFragments)}
	errCutShort   = &Fault{reason.BadRecord, "the connection ended within a record"}
	errIncomplete = &Fault{reason.RecordTimeout, "record was not complete in time"}
	errUnread     = &Fault{reason.ReplyUnread, "reply was not read in time"}
)
