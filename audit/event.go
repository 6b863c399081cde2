// Package audit is a log of what was allowed, what was denied and what changed, one line for each
// event. Its lines are chained by hashes, so that [Verify] names the first one that somebody has
// changed or taken out.
//
// It is for any program that decides who may do what. It knows nothing of Kerberos or sockets, and
// no field of an [Event] is for a key, a token or a ticket.
//
// # The chain
//
// A line is a JSON object, with the fields of [Fields] in that order; those that are zero are left
// out. The first is seq, which counts the lines of the chain from 1, and the last is hash: SHA-256, in
// hexadecimal, of the hash of the line before (64 digits, as it stands there; zeros before the first
// one) and of this line without its hash field. The chain goes on from file to file: the first line of
// a file has the hash of the last line of the file before.
//
// There is no key in it. A chain shows that a line in it was changed, taken out or put in, as long as
// something after it was not: it cannot show that its end was cut off, and who may write the file can
// make another chain from any line on. So the head, which is the seq and the hash of the last line, is
// written to the program's ordinary log now and then, and [Verify] is given it back from there.
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
	DeliveryDenied    Kind = "delivery-denied"
	KeyEnding         Kind = "key-ending"
	ConfigurationRead Kind = "configuration-read"
	ConfigurationBad  Kind = "configuration-bad"
	Started           Kind = "started"
	Stopped           Kind = "stopped"

	PodRegistered      Kind = "pod-registered"
	PodUnregistered    Kind = "pod-unregistered"
	RegistrationDenied Kind = "registration-denied"

	// Those of a key store.
	EntryChanged    Kind = "entry-changed"
	HostChanged     Kind = "host-changed"
	KeyringChanged  Kind = "keyring-changed"
	RecordRefused   Kind = "record-refused"
	RotationStopped Kind = "rotation-stopped"
	StoreDenied     Kind = "store-denied"
	KeyDelivered    Kind = "key-delivered"
	BackupWritten   Kind = "backup-written"
	ChangeBegun     Kind = "change-begun"

	// Those that the log itself writes.
	Begun     Kind = "begun"
	Continued Kind = "continued"
	Lost      Kind = "lost"
	Torn      Kind = "torn"
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
	{ConnectionDenied, "a connection was refused or closed, since no service is for the caller or for what he has done"},
	{KeyLoaded, "keys of a keytab are in use that were not before"},
	{KeyReplaced, "keys of a keytab have come into the place of others with the same version"},
	{KeyPruned, "keys of a keytab are in use no more"},
	{DeliveryDenied, "what a key store is said to have sent was refused, for the reason given; what was there before stays"},
	{KeyEnding, "a previous key of a key store's entry is still in use, and the store takes it away soon"},
	{ConfigurationRead, "a configuration was put in force"},
	{ConfigurationBad, "a configuration was not put in force; the former one stays"},
	{Started, "the program serves"},
	{Stopped, "the program ends"},
	{PodRegistered, "a pod was given a socket of its own"},
	{PodUnregistered, "a pod's socket was taken away"},
	{RegistrationDenied, "a pod was not registered or unregistered, for the reason given"},
	{EntryChanged, "an entry of the key store was changed, by whom and how the text says"},
	{HostChanged, "a host was enrolled in the key store or removed"},
	{KeyringChanged, "the keyring of the key store was changed: a member or a master key came or went"},
	{RecordRefused, "a record of the key store was not believed, for the reason given"},
	{RotationStopped, "a change of a principal's keys does not begin, or does not go on, for the reason given"},
	{StoreDenied, "a host or an administrator was refused what was asked of the key store, for the reason given"},
	{KeyDelivered, "a host was given keys of an entry of the key store"},
	{BackupWritten, "a backup of the key store was written, which the text says for whom"},
	{ChangeBegun, "something in the key store is about to be changed, as the text says (with audit_failure = refuse); another line says that it was"},
	{Begun, "a chain begins: no file was there before this one"},
	{Continued, "a file begins, with the hash of the last line of the file before"},
	{Lost, "events before this one were not written, since the file could not be or the queue was full"},
	{Torn, "the line before was not written to its end, and is no part of the chain; its digest is here"},
}

// FieldDoc documents a field of a line.
type FieldDoc struct {
	Name string
	Text string // what it has
}

// Fields documents every field, in the order that they have in a line.
var Fields = []FieldDoc{
	{"seq", "the number of the line in the chain, from 1"},
	{"time", "when it happened, UTC, to the microsecond"},
	{"kind", "what kind of event it is"},
	{"took_us", "how long the call took, in microseconds"},
	{"connection", "a random id of the connection, which lines of the ordinary log have too"},
	{"call", "the id of the call, as in the ordinary log and in the text that the client got"},
	{"uid", "the caller's effective uid"},
	{"pid", "the caller's process, if it has a number here"},
	{"program", "the file that the caller runs"},
	{"unit", "the unit of systemd that the caller is in"},
	{"pod", "the pod that the caller is in"},
	{"container", "the container that the caller is in"},
	{"label", "the caller's SELinux or AppArmor label"},
	{"socket", "the socket that the caller is connected to"},
	{"service", "the service of the configuration"},
	{"procedure", "what was called"},
	{"principal", "of a call, who initiates; of a key, whose it is"},
	{"target", "who accepts"},
	{"enctype", "the encryption type of the context's session key, or of the key"},
	{"reason", "the id of the refusal"},
	{"text", "the details, in words"},
	{"repeated", "of a refusal: how many more like it, of this kind, uid and reason, had no line since the last one that did"},
	{"source", "the file that it is about, a keytab or the configuration"},
	{"kvno", "the version of the key"},
	{"digest", "SHA-256, in hexadecimal: of the names in source; of kind torn, of all bytes between the chain's last line and this one"},
	{"lost", "of kind lost: how many events"},
	{"prev", "of kind continued: the hash of the line before"},
	{"hash", "what chains the line to the one before"},
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
	Repeated  uint64 // how many events like this one, before it, have no line of their own

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
