package reason

// Connections that are refused or closed. Whoever connected cannot be told: these are in the
// log, and events.
const (
	TooManyConnections ID = "too-many-connections"
	TooMuchBuffered    ID = "too-much-buffered"
	TooManyLargeCalls  ID = "too-many-large-calls"
	TooManyExecutions  ID = "too-many-executions"
	CallerUnknown      ID = "caller-unknown"
	BadRecord          ID = "bad-record"
	RecordTimeout      ID = "record-timeout"
	ReplyUnread        ID = "reply-unread"
)

// Connection documents why connections are refused or closed.
var Connection = []Doc{
	{TooManyConnections, "the caller's uid has as many connections as it may have", "look at what the uid runs; a program that leaks connections holds them until it ends. LimitNOFILE of the daemon's unit decides how many there are for all"},
	{TooMuchBuffered, "unfinished records and unread replies of the caller's uid hold as much memory as they may", "look at what the uid runs: it sends large messages and does not finish them, or does not read the answers"},
	{TooManyLargeCalls, "as many calls with large arguments of the caller's uid wait as may", "look at what the uid runs; messages are better wrapped by the program itself, with the exported context"},
	{CallerUnknown, "the kernel did not say who connected", "look at the error; the daemon may be out of open files (LimitNOFILE) or memory"},
	{BadRecord, "what was received is no record with an RPC call in it", "look at what the process with this pid is: it is no client of this protocol, or a broken one"},
	{TooManyExecutions, "the caller's uid has as many executions and contexts in the file system as it may have, or as many steps at a time", "remove what is not needed any more: rmdir execution/TOKEN, echo drop >contexts/ID/ctl; they end by themselves with their session, and after ten idle minutes"},
	{RecordTimeout, "a record had begun and was not complete in time", "look at what the process with this pid is doing: it may be stopped, or holds connections on purpose"},
	{ReplyUnread, "the answer to a call was not read in time", "look at what the process with this pid is doing: it may be stopped, or holds connections on purpose"},
}
