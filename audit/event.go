// Package audit is a log of what was allowed, what was denied and what changed, one line for each
// event. Its lines are chained by hashes, so that [Verify] names the first one that somebody has
// changed or taken out.
//
// It is for any program that decides who may do what. It knows nothing of Kerberos or sockets, and
// no field of an [Event] is for a key, a token or a ticket.
package audit

import (
	"strconv"
	"time"
)

// Kind is what kind of event it is, one of a closed set.
type Kind string

// The kinds there are; [Kinds] says what each is about.
const (
	CallAllowed       Kind = "call-allowed"
	CallDenied        Kind = "call-denied"
	CallObserved      Kind = "call-observed"
	ConnectionDenied  Kind = "connection-denied"
	KeyLoaded         Kind = "key-loaded"
	KeyReplaced       Kind = "key-replaced"
	KeyPruned         Kind = "key-pruned"
	ConfigurationRead Kind = "configuration-read"
	ConfigurationBad  Kind = "configuration-bad"
	Started           Kind = "started"
	Stopped           Kind = "stopped"
)

// KindDoc documents a kind.
type KindDoc struct {
	Kind Kind
	Text string // when there is such an event
}

// Kinds documents every kind, in the order of the manual.
var Kinds = []KindDoc{
	{CallAllowed, "a call was executed and succeeded, or its exchange goes on"},
	{CallDenied, "a call was refused, for the reason given"},
	{CallObserved, "a call would have been refused but for mode = observe; what became of it is another event"},
	{ConnectionDenied, "a connection was closed, since no service is for the caller"},
	{KeyLoaded, "keys of a keytab are in use that were not before"},
	{KeyReplaced, "keys of a keytab have come into the place of others with the same version"},
	{KeyPruned, "keys of a keytab are in use no more"},
	{ConfigurationRead, "a configuration was put in force"},
	{ConfigurationBad, "a configuration was not put in force; the former one stays"},
	{Started, "the program serves"},
	{Stopped, "the program ends"},
}

// Caller is who called, as the kernel says it. Of what is not known there is nothing.
type Caller struct {
	UID       uint32
	PID       int32 // 0 for the kernel, and for a process of another pid namespace
	Program   string
	Unit      string
	Pod       string
	Container string
	Label     string // of SELinux or AppArmor
}

// Event is something that happened. What does not apply is zero.
type Event struct {
	Kind Kind
	Time time.Time
	Took time.Duration // of a call, from its record to its result

	Connection string // a random id, with which lines of the log and texts of errors name it too
	Call       uint64 // counts the calls of the connection from 1
	Caller     *Caller
	Socket     string
	Service    string
	Procedure  string

	Principal string // of a call: who initiates. Of a key: whose it is
	Target    string // of a call: who accepts
	Enctype   string // of a context's session key, or of a key
	Reason    string // the id of a refusal
	Routine   bool   // a refusal of what libraries try on their own and do without, or of a probe
	Text      string

	Source string // a file: a keytab, the configuration
	KVNO   uint32
	Digest string // SHA-256 in hexadecimal: of the names in a keytab, of what gssproxyd check prints of a configuration

	// Trace returns what was considered on the way to a refusal, a line each; nil if there is nothing to
	// say. It is not in the log.
	Trace func() []string
}

// CallID is the id of the event's call, empty if it is about none.
func (e *Event) CallID() string {
	if e.Call == 0 {
		return e.Connection
	}
	return e.Connection + "-" + strconv.FormatUint(e.Call, 10)
}
