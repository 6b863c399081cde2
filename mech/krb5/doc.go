// Package krb5 is the Kerberos mechanism of the GSS-API (RFC 4121, with RFC 4120 below it) from the
// first token to the last message, as MIT krb5 does it, without the files and the network: keys, a
// ticket, a replay cache and the clock come from the caller. An [Acceptor] makes a [Context] of an
// initiator's token and an [Initiator] makes the tokens; a Context protects messages, and moves
// between processes in MIT's form.
//
// # One accept
//
//	token ── unframe ── AP-REQ ── openTicket ── openAuthenticator ── checks ── establish ── AP-REP
//	         accept.go  wire      ticketkey.go  accept.go            accept.go accept.go    wire, aprep.go
//
// The order of the checks is MIT's: it decides which error a token with several faults gets, and
// whether the replay cache hears of it. The client is who the ticket says; the authenticator has to
// agree. All that is read is read in place: what an [Accepted] holds points into the token and into
// buffers of its own, which its next use overwrites.
//
// # The files
//
//	accept.go acceptdce.go acquire.go      the acceptor: RFC 4120 section 3.2.3, RFC 4121 section 4.1, the third
//	                                       message of DCE style, whether there are keys at all
//	ticketkey.go                           which key opens a ticket, and the words for none
//	transited.go                           the path of realms: RFC 4120 section 3.3.3.2, [capaths]
//	authdata.go pac.go                     authorization data: RFC 4120 section 5.2.6, RFC 4537, RFC 7751, MS-PAC
//	checksum8003.go bindings.go            flags, bindings and delegation in the checksum: RFC 4121 section 4.1.1
//	initiate.go authenticator.go           the initiator: RFC 4121 section 4.1
//	aprep.go aprepin.go                    AP-REP framed, opened and verified: RFC 4120 section 3.2.4
//	krbcred.go                             Credential, and the one that is forwarded: RFC 4120 section 5.8
//	krberror.go                            KRB-ERROR and other failures
//	context.go partial.go                  the context, and one that still waits for a token
//	permsg.go wrap.go mic.go window.go     messages and their order: RFC 4121 section 4.2; PRF: RFC 4402
//	rc4msg.go                              messages under RC4 keys: RFC 1964 section 1.2, RFC 4757 section 7
//	export.go importctx.go lucid.go        contexts in MIT's form and in the Linux kernel's
//	name.go import.go                      GSS-API names to principals: RFC 1964 section 2
//	trace.go                               what an acceptor tells for KRB5_TRACE
//
// Below are packages wire (what Kerberos messages look like), etype (encryption), der, krb5conf and
// rcache; beside, ccache (where tickets are kept), kdc (where they come from) and localname
// (principals to local users).
//
// It is one package, of more lines than others, because acceptor, initiator, messages and both
// forms of export work on the inside of one [Context]: apart they would have to show each other its
// keys and counters.
//
// # Errors and traps
//
// Errors are of type *[mech.Error], with MIT's minor code and text, and a [reason.ID]. Texts repeat
// what a peer chose only through [wire.Shown]: printable, and of bounded length.
//
// A client's name is what a KDC wrote, of any realm that has a way here, and others take it for
// text: [Acceptor.Accept] refuses what [ImportName] refuses, and what has a NUL octet is nobody
// here.
//
// A token is hostile until a key has opened it. It is walked with package der, whose sticky error
// is asked once per message; lengths are compared with what is there before memory is taken.
//
// Types that hold keys redact them however they are printed, and have a Reset or Destroy that
// overwrites them. A Context of an [Accepted] or [Initiated] goes with it: export it first.
package krb5
