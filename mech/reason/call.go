package reason

// Refusals of a call by the daemon: the service that the caller belongs to may not, or the
// arguments say nothing that can be done.
const (
	NotImplemented  ID = "not-implemented"
	CredsStay       ID = "credentials-stay-here"
	NoTransition    ID = "protocol-transition-not-allowed"
	NoDelegation    ID = "constrained-delegation-not-allowed"
	UsageNotAllowed ID = "usage-not-allowed"
	MechNotAllowed  ID = "mechanism-not-allowed"
	CredMismatch    ID = "credential-mismatch"
	Duplicate       ID = "duplicate-element"
	BadOption       ID = "bad-option"
	BadArgument     ID = "bad-argument"
	CredStore       ID = "cred-store-unusable"
	UnknownUser     ID = "unknown-user"
	UserLookup      ID = "user-lookup-failed"
	KernelLimit     ID = "kernel-limit"
	OverLimit       ID = "over-limit"

	OperationNotAllowed ID = "operation-not-allowed"
	TargetNotAllowed    ID = "target-not-allowed"
	UserNotAllowed      ID = "user-not-allowed"
	ClientNotAllowed    ID = "client-not-allowed"
	EnctypeNotAllowed   ID = "enctype-not-allowed"
	BindingsRequired    ID = "channel-bindings-required"
	PACRequired         ID = "pac-required"
	AuditFailed         ID = "audit-failed"
	RateLimited         ID = "rate-limited"
)

// Call documents what the daemon refuses of a call that a service takes.
var Call = []Doc{
	{ID: NotImplemented, Text: "what was asked for is not implemented", Hint: "see docs/differences.md for what is"},
	{ID: CredsStay, Text: "credentials are not exported, imported or stored by request", Hint: "keep the credential handle; with cred_store = ccache:... the daemon keeps tickets in a cache"},
	{ID: NoTransition, Text: "the service may not act for users who are not there", Hint: "set allow_protocol_transition for the service if it may"},
	{ID: NoDelegation, Text: "the service may not use a user's credential towards other services", Hint: "set allow_constrained_delegation for the service if it may"},
	{ID: UsageNotAllowed, Text: "the service's cred_usage does not allow what was asked", Hint: "set cred_usage of the service to the usage its clients need"},
	{ID: MechNotAllowed, Text: "none of the mechanisms asked for is served", Hint: "have the client ask for krb5 (1.2.840.113554.1.2.2)"},
	{ID: CredMismatch, Text: "the credential handle sent is for another name, mechanism or usage", Hint: "release the credential and acquire one for the name wanted"},
	{ID: Duplicate, Text: "the credential handle sent already has what was to be added to it", Hint: "use the handle as it is"},
	{ID: BadOption, Text: "an option of the call has a value that is not known", Hint: "update the client or the daemon"},
	{ID: BadArgument, Text: "an argument that the procedure needs is absent or malformed", Hint: "correct the client"},
	{ID: CredStore, Text: "a cred_store line of the service cannot be used for this caller", Hint: "read the text for the line and correct it; gssproxyd check shows them"},
	{ID: UnknownUser, Text: "the user that a principal maps to does not exist on this host", Hint: "compare the name with getent passwd; principal_map and unmapped_user of the service, and auth_to_local in krb5.conf, decide who a principal is"},
	{ID: UserLookup, Text: "the system's name service did not say in time, or not sensibly, who a user is", Hint: "try getent passwd and getent initgroups with the user's name; look at the service behind them (sssd, LDAP, winbind)"},
	{ID: KernelLimit, Text: "the result does not fit into what the kernel has room for", Hint: "the text names the part; a shorter principal is the only way out"},
	{ID: OverLimit, Text: "the caller's user has more under way than its share", Hint: "the text names what there is too much of: find the program of that user that asks so often, or try again later"},
	{ID: OperationNotAllowed, Text: "callers of the service may not do that", Hint: "add it to operations of the service, and of [gssproxy] where that has the key, if they may"},
	{ID: TargetNotAllowed, Text: "callers of the service may not initiate contexts with that server", Hint: "add the principal to targets, or proxy_targets, of the service or [gssproxy]; the KDC may give a ticket for another name than was asked for, and both must be there"},
	{ID: UserNotAllowed, Text: "callers of the service may not get credentials of that user", Hint: "add the principal to impersonate_users of the service or [gssproxy] if they may"},
	{ID: ClientNotAllowed, Text: "the service does not accept that initiator", Hint: "add the principal or its realm to client_principals or client_realms of the service or [gssproxy] if it may come"},
	{ID: EnctypeNotAllowed, Text: "the ticket or the session key has an encryption type that the service does not allow", Hint: "add the type to enctypes of the service or [gssproxy], or give the principal keys of a type that is there"},
	{ID: BindingsRequired, Text: "the service accepts only with channel bindings, and there are none", Hint: "the application must pass its bindings (for TLS: those of RFC 5929), and the client must send them; require_channel_bindings of the service or [gssproxy] says so"},
	{ID: AuditFailed, Text: "what was done could not be recorded in the audit log in time, and nothing is to be done that is not", Hint: "look at the file system of audit in [gssproxy]: it may be full, or hang; audit_failure = count has calls succeed then. Of a key store it is audit in keystored.conf, and nothing was changed"},
	{ID: PACRequired, Text: "the service accepts only tickets with a PAC", Hint: "the KDC must issue PACs for the client and the service (Active Directory, FreeIPA, MIT 1.20 and later do); require_pac of the service or [gssproxy] says so"},
	{ID: RateLimited, Text: "the caller's user calls the service more often than is allowed", Hint: "find the program of that user that calls so often, by the pid, and have it keep its credential; or raise calls_per_second and calls_burst of the service, and of [gssproxy] where that has them"},
}
