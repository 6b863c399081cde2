package reason

// Refusals of tokens from a peer.
const (
	Replay              ID = "replay"
	ReplayCache         ID = "replay-cache"
	ClockSkew           ID = "clock-skew"
	TicketExpired       ID = "ticket-expired"
	TicketNotYetValid   ID = "ticket-not-yet-valid"
	TicketInvalid       ID = "ticket-invalid"
	NoKeytab            ID = "no-keytab"
	NoKey               ID = "no-key"
	KVNOMismatch        ID = "kvno-mismatch"
	WrongPrincipal      ID = "wrong-principal"
	BadIntegrity        ID = "bad-integrity"
	EnctypeNotPermitted ID = "enctype-not-permitted"
	ContextEnctype      ID = "context-enctype"
	BadMatch            ID = "bad-match"
	BadClient           ID = "bad-client"
	BadAddress          ID = "bad-address"
	Transited           ID = "transited"
	BadChecksum         ID = "bad-checksum"
	BadBindings         ID = "bad-bindings"
	BadDelegation       ID = "bad-delegation"
	UserToUser          ID = "user-to-user"
	DefectiveToken      ID = "defective-token"
	WrongMech           ID = "wrong-mech"
	PeerError           ID = "peer-error"
	MutualFailed        ID = "mutual-failed"
	DCEStyle            ID = "dce-style"
)

// Failures to get a ticket from a KDC.
const (
	KDCUnreachable    ID = "kdc-unreachable"
	KDCReply          ID = "kdc-reply"
	KDCRefused        ID = "kdc-refused"
	ClientUnknown     ID = "client-unknown"
	UserUnknown       ID = "impersonated-user-unknown"
	UserRefused       ID = "impersonated-user-refused"
	ServerUnknown     ID = "server-unknown"
	PreauthFailed     ID = "preauth-failed"
	ClientRevoked     ID = "client-revoked"
	DelegationRefused ID = "delegation-refused"
)

// Refusals of what the caller asks for.
const (
	BadName       ID = "bad-name"
	BadNameType   ID = "bad-name-type"
	NoLocalName   ID = "no-local-name"
	NoCredential  ID = "no-credential"
	BadCredential ID = "bad-credential"
	BadContext    ID = "bad-context"
	BadMIC        ID = "bad-mic"
	OutOfOrder    ID = "out-of-order"
	BadQOP        ID = "bad-qop"
	Internal      ID = "internal"
)

// Mechanism documents what mechanisms refuse, in the order above.
var Mechanism = []Doc{
	{Replay,
		"The authenticator was seen before within the permitted clock skew.",
		"Harmless when a client re-sent one request. When it repeats, look for a load balancer or proxy duplicating requests, or for somebody recording traffic; services behind one name on several hosts have separate replay caches."},
	{ReplayCache,
		"The replay cache could not be read or written, so the request could not be shown to be new.",
		"Check the file named in the message: free space, owner (the daemon's user), mode 0600, no symbolic link. KRB5RCACHENAME and default_rcache_name choose another place."},
	{ClockSkew,
		"The clocks of client and server differ by more than the permitted skew.",
		"Synchronise both clocks (chrony or NTP). The limit is clockskew in [libdefaults], 300 seconds by default."},
	{TicketExpired,
		"The service ticket has expired.",
		"The client needs a new ticket (kinit, or renew). If its ticket looks valid there, compare the clocks."},
	{TicketNotYetValid,
		"The service ticket starts in the future.",
		"Compare the clocks of the KDC and of this host; a postdated ticket has to wait for its start time."},
	{TicketInvalid,
		"The ticket carries the INVALID flag.",
		"A postdated ticket must be validated with the KDC (kinit -v) before use."},
	{NoKeytab,
		"The keytab is missing, unreadable or empty.",
		"The message names the file and says what is wrong with it; klist -k, as the daemon's user, must list keys."},
	{NoKey,
		"The keytab has no key for the principal and encryption type of the ticket.",
		"Compare klist -ke of the keytab with the principal and kvno named in the message; export the missing key (ktadd), bring a keytab up to date that has the same account (Active Directory: any of its names will do) with another kvno, or fix the client's idea of the service name (DNS, rdns, domain_realm)."},
	{KVNOMismatch,
		"The keytab has the principal and encryption type, but not the key version the ticket was made with.",
		"The key was changed at the KDC after the keytab was written, or the client holds an old ticket: bring the keytab up to date, or let the client get a new ticket."},
	{WrongPrincipal,
		"The ticket is for another principal than the one this service accepts as.",
		"Let the client use the service's name, or remove the principal from the service's configuration to accept every name in the keytab."},
	{BadIntegrity,
		"The ticket or the authenticator does not decrypt with the key that should fit.",
		"The keytab's key differs from the KDC's although the version is the same: export the keytab again. Two machines joined under one name also look like this."},
	{EnctypeNotPermitted,
		"The encryption type of the ticket or of a session key is not permitted here.",
		"Give the principal AES keys (Active Directory: msDS-SupportedEncryptionTypes = 24 of its account, and a new password if the account is older than that); or permit the type: permitted_enctypes, allow_rc4, allow_des3 and allow_weak_crypto in [libdefaults] decide."},
	{ContextEnctype,
		"The context would have a key that whoever is to use it, the kernel, cannot use.",
		"/proc/net/rpc/gss_krb5_enctypes lists what this host's kernel knows (older kernels: aes256-cts and aes128-cts). At least one of these must be in permitted_enctypes here, and known to the client."},
	{BadMatch,
		"The client named in the authenticator is not the client the ticket was issued to.",
		"Not produced by a correct client: treat it as an attack or a broken implementation, and look at the peer."},
	{BadClient,
		"The client that the ticket names has a name that nobody may have: with a NUL octet, without a component, or without a realm.",
		"No KDC gives out such a name by mistake: treat it as an attack by whoever runs the realm in the message, or a realm in between."},
	{BadAddress,
		"The ticket is limited to network addresses that do not include the peer's.",
		"Get a ticket without addresses (noaddresses = true on the client), common behind NAT."},
	{Transited,
		"The path of realms the ticket came through is not trusted.",
		"Describe the path in [capaths], or let the KDC check it (its TRANSITED-POLICY-CHECKED flag is honoured)."},
	{BadChecksum,
		"The authenticator's checksum is missing, has the wrong type or does not verify.",
		"The client does not speak GSS-API Kerberos (RFC 4121 section 4.1.1); plain Kerberos requests are not accepted."},
	{BadBindings,
		"The channel bindings of client and server differ.",
		"The client's TLS channel ends elsewhere: at a proxy in between, or at a server with another certificate. Where that is intended, turn the check off in the application."},
	{BadDelegation,
		"The delegated credential in the authenticator is malformed, does not decrypt, is too large, or names another client than the ticket.",
		"Let the client stop delegating, or update it."},
	{UserToUser,
		"The client asks for user-to-user authentication, which a keytab service cannot do.",
		"Let the client request an ordinary service ticket."},
	{DefectiveToken,
		"The token is malformed: truncated, wrongly framed, or of an unexpected kind.",
		"Check that the application passes tokens on complete and in order; an HTTP proxy that cuts long headers is a usual cause."},
	{WrongMech,
		"The token is for a mechanism that is not offered.",
		"Kerberos 5 is offered. NTLM means that the client found no Kerberos credentials or could not reach its KDC."},
	{PeerError,
		"The peer answered with a Kerberos error.",
		"The message carries the peer's error; the cause is to be looked for there."},
	{MutualFailed,
		"The peer's answer does not prove that it could read the request, or answers another one.",
		"Check that the application does not mix the tokens of several connections. If it does not, somebody else answers in the peer's place."},
	{DCEStyle,
		"The client wants the three-message exchange of DCE RPC where one message has to do.",
		"Let the client do without GSS_C_DCE_STYLE; only DCE RPC needs it."},
	{KDCUnreachable,
		"No KDC of the realm answered in time, or none is known.",
		"Check the kdc lines of the realm in [realms] and the network to the addresses named in the message; where it has none, DNS is asked for SRV records (_kerberos._udp.REALM) unless dns_lookup_kdc is off."},
	{KDCReply,
		"A KDC's answer is malformed or does not fit the request.",
		"Look at what listens at the address of the KDC: a wrong server, a broken proxy, or somebody forging answers."},
	{KDCRefused,
		"The KDC refused the request.",
		"The message carries the KDC's error, and in Active Directory an NTSTATUS; its log has the details."},
	{ClientUnknown,
		"The client principal does not exist at the KDC.",
		"Compare the principal named in the message with the KDC's database and with klist -k of the keytab. In Active Directory only an account's sAMAccountName (WEB1$) or userPrincipalName is a client, never its SPNs: set krb5_principal."},
	{UserUnknown,
		"The user whom the service wants to act for does not exist in the realm.",
		"Compare the user named in the message with the realm's users. With impersonate every caller is such a user: a local one whom the realm does not have (root, daemons) needs a service section without impersonate, or none."},
	{UserRefused,
		"The KDC does not let this service act for that user.",
		"The user's account is disabled, locked or expired, or its password is, or a policy of the KDC is against it: the message and the KDC's log have which. The service's own credential is good."},
	{ServerUnknown,
		"The service principal does not exist at the KDC.",
		"Compare the principal named in the message with the KDC's database; the host name (DNS, rdns, qualify_shortname) and domain_realm decide what is asked for. In Active Directory it must be a servicePrincipalName of an account (setspn -Q)."},
	{PreauthFailed,
		"The KDC does not accept the client's key, or asks for a proof that cannot be given.",
		"The key in the keytab is not the KDC's current one: export it again. A principal that needs smart cards or one-time passwords cannot be used from a keytab."},
	{ClientRevoked,
		"The KDC does not let the client in: the account is disabled, locked out, expired or not yet valid, or its password has expired.",
		"Mend the account named in the message at the KDC. In Active Directory the NTSTATUS says which it is, as Search-ADAccount does; elsewhere kadmin's getprinc."},
	{DelegationRefused,
		"The KDC does not let this service act for that user towards that target.",
		"Allow the delegation at the KDC (msDS-AllowedToDelegateTo, krbAllowedToDelegateTo, or the resource's list), and check that the user may be delegated and the evidence ticket is forwardable."},
	{BadName,
		"The name cannot be parsed as its type demands.",
		"Names look like user@REALM, service@host, or an exported name that arrived unchanged."},
	{BadNameType,
		"The name type is not supported.",
		"Use a host-based service, a user name, a Kerberos principal, a uid, or an exported name."},
	{NoLocalName,
		"No rule maps the principal to a local user.",
		"Add auth_to_local or auth_to_local_names to the realm in krb5.conf; names of one component in the default realm map to themselves."},
	{NoCredential,
		"No credential fits the request.",
		"Check the service's cred_store and the keytab or credential cache it names."},
	{BadCredential,
		"The credential handle is absent, damaged or was not made for this caller, and without it the call would go on as somebody else.",
		"The caller has to acquire a new credential."},
	{BadContext,
		"The context cannot be read, or is not in the state that the call needs.",
		"The context token must come back unchanged, for the mechanism it was made for. Tokens go to a context that is not established, messages to one that is."},
	{BadMIC,
		"A per-message token does not verify.",
		"The message was changed, or the token belongs to another context."},
	{OutOfOrder,
		"A message of the peer's came before, too late, or out of order.",
		"Somebody may be repeating or holding back messages. A protocol that loses or reorders them asks for a context without mech.FlagReplay and mech.FlagSequence, or takes the message nonetheless."},
	{BadQOP,
		"The quality of protection asked for does not exist.",
		"Ask for the default, 0."},
	{Internal,
		"The operation failed for a reason of the daemon's own.",
		"The log has the details; please report it."},
}
