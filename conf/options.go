package conf

import (
	"io/fs"
	"slices"
	"time"
)

// Sections of an [Option].
const (
	DaemonSection  = "gssproxy"
	ServiceSection = "service/NAME"
	StoreSection   = "store/NAME"
	servicePrefix  = "service/"
	storePrefix    = "store/"
)

// Option is one key of the configuration. To add one, add it to [Options] and a field to [Config],
// [Service] or [KeyStore] to bind it to.
type Option struct {
	Section  string // DaemonSection, ServiceSection or StoreSection
	Key      string
	Default  string // as it would be written; "" if there is none
	Required bool
	Instead  string // the option is gone; what to write instead, with VALUE for its value
	Text     string // paragraphs for the manual; `literal` words in backquotes
	binding
}

// binding ties an option to a field.
type binding struct {
	Type   string // of the value, in words
	Repeat bool   // every occurrence counts; otherwise the first
	ours   bool   // it forbids something, and the C daemon does not have it: to leave it out is an error
	set    func(r *reader, t target, v value)
	get    func(t target) []string
}

// target is what a section is read into: svc and store are nil for [gssproxy].
type target struct {
	cfg   *Config
	svc   *Service
	store *KeyStore
}

// section is that of the options that are read into t.
func (t target) section() string {
	switch {
	case t.svc != nil:
		return ServiceSection
	case t.store != nil:
		return StoreSection
	}
	return DaemonSection
}

func daemon[T any](k kind[T], field func(*Config) *T) binding {
	return binding{
		Type: k.name, ours: k.ours,
		set: func(r *reader, t target, v value) { k.read(r, v, field(t.cfg)) },
		get: func(t target) []string { return k.write(*field(t.cfg)) },
	}
}

func service[T any](k kind[T], field func(*Service) *T) binding {
	return binding{
		Type: k.name, ours: k.ours,
		set: func(r *reader, t target, v value) { k.read(r, v, field(t.svc)) },
		get: func(t target) []string { return k.write(*field(t.svc)) },
	}
}

// keyStore ties an option to a field of a [KeyStore].
func keyStore[T any](k kind[T], field func(*KeyStore) *T) binding {
	k = ours(k)
	return binding{
		Type: k.name, ours: true,
		set: func(r *reader, t target, v value) { k.read(r, v, field(t.store)) },
		get: func(t target) []string { return k.write(*field(t.store)) },
	}
}

// permission ties an option to a field of a [Permission]: that of a service, or in [gssproxy] the
// ceiling.
func permission[T any](section string, k kind[T], field func(*Permission) *T) binding {
	k = ours(k)
	if section == DaemonSection {
		return daemon(k, func(c *Config) *T { return field(&c.Ceiling) })
	}
	return service(k, func(s *Service) *T { return field(&s.Permission) })
}

// access ties an option to a field of a [SocketAccess], of a service or in [gssproxy].
func access[T any](section string, k kind[T], field func(*SocketAccess) *T) binding {
	k = ours(k)
	if section == DaemonSection {
		return daemon(k, func(c *Config) *T { return field(&c.Access) })
	}
	return service(k, func(s *Service) *T { return field(&s.Access) })
}

func (b binding) repeated() binding {
	b.Repeat = true
	return b
}

// Options is every key there is, in the order of the manual.
//
//go:generate go run ./gen
var Options = slices.Concat(daemonOptions, accessOptions(DaemonSection), permissionOptions(DaemonSection), serviceOptions, accessOptions(ServiceSection), permissionOptions(ServiceSection), storeOptions, goneOptions)

var daemonOptions = []Option{
	{
		Section: DaemonSection, Key: "debug", Default: "no",
		binding: daemon(boolean, func(c *Config) *bool { return &c.debug }),
		Text:    "The same as `debug_level = 1`, which takes precedence.",
	},
	{
		Section: DaemonSection, Key: "debug_level", Default: "0",
		binding: daemon(integer("number", 0, 0), func(c *Config) *int { return &c.Debug }),
		Text: "How much is logged: 0 errors and refusals, 1 each connection and call, " +
			"2 and above the arguments and results of calls too. Keys, tokens and tickets are never logged.",
	},
	{
		Section: DaemonSection, Key: "syslog_status", Default: "no",
		binding: daemon(boolean, func(c *Config) *bool { return &c.SyslogStatus }),
		Text:    "Accepted for compatibility: refusals are always logged.",
	},
	{
		Section: DaemonSection, Key: "run_as_user",
		binding: daemon(userName, func(c *Config) *string { return &c.RunAsUser }),
		Text: "Run as this user once the sockets exist, with the groups that the system's name service says it has. It has no capability but " +
			"CAP_SYS_PTRACE, which reading a peer's program takes, and those that systemd's AmbientCapabilities= gives the daemon. The state directory, krb5.conf, keytabs, credential caches, the replay cache and, for a reload, " +
			"the configuration must be accessible to it. Under the unit that is shipped, whose directories are gssproxyd's, a copy of its tmpfiles.d file makes them another user's: see " +
			"troubleshooting.md, run_as_user. root is to stay root, with all that the unit leaves it. A process without keys stays root: it opens the sockets that a reload adds, and starts the helpers that " +
			"ask the name service or serve metrics. Without this line the user is that of the option --run-as-user: the unit that is shipped names gssproxyd.",
	},
	{
		Section: DaemonSection, Key: "worker threads", Default: "5",
		binding: daemon(integer("number", 1, 5), func(c *Config) *int { return &c.Workers }),
		Text:    "Accepted for compatibility: the size of the C daemon's thread pool, which gssproxyd does not have. Note the blank in the key.",
	},
	{
		Section: DaemonSection, Key: "admin_socket",
		binding: daemon(socketPath, func(c *Config) *string { return &c.AdminSocket }),
		Text: "Listen on this path for what an administrator asks: `gssproxyd status`, `denials` and others, see gssproxyd(8). Only root is answered, " +
			"and with the option -u who has started the daemon. Without this line it is " + AdminPath + ", and with the option -s PATH it is PATH with `-admin` behind it.",
	},
	{
		Section: DaemonSection, Key: "metrics",
		binding: daemon(ours(metricsAddress), func(c *Config) *string { return &c.Metrics }),
		Text: "Serve metrics for Prometheus, at the path /metrics of this address and port, such as `127.0.0.1:9118`, or of the unix socket `unix:/path`, to which root alone may connect. " +
			"A process without keys does it, as a user of its own. Whoever can connect is answered, without encryption: keep it to the loopback interface. What there is, and rules for alarms, are in " +
			"metrics.md. Without this line nothing is counted or timed.",
	},
	{
		Section: DaemonSection, Key: "program_sockets",
		binding: daemon(programNames, func(c *Config) *[]string { return &c.ProgramSockets }),
		Text: "Listen on the path of the default socket with `.NAME` behind it too, for each of these names, separated by blanks or commas. " +
			"They are for programs that run with more rights than who starts them, as `su` does: those ignore GSSPROXY_SOCKET and GSS_USE_PROXY, and ask at " +
			"the socket that has their file's name, the last component of /proc/self/exe, if there is one; see gssproxyd-mech(8). For a service such a socket is the default " +
			"socket: one without `socket` is reached there, and `program = /usr/bin/su` leaves it to that program.",
	},
	{
		Section: DaemonSection, Key: "audit",
		binding: daemon(ours(filePath), func(c *Config) *string { return &c.Audit }),
		Text: "Write a line to this file for every call that is allowed or refused, every key that comes, goes or is replaced, and every configuration that is read. Its lines are chained: " +
			"`gssproxyd audit verify` names the first one that was changed or taken out; see audit.md. The path is absolute, and nobody but root and the daemon's user may be able to replace the file or to write to it. " +
			"The daemon writes as the user that it runs as, and under the unit that is shipped only below /var/log/gssproxyd and /var/lib/gssproxy/state, unless ReadWritePaths= has more.",
	},
	{
		Section: DaemonSection, Key: "audit_failure", Default: "count",
		binding: daemon(ours(either("count", "refuse")), func(c *Config) *bool { return &c.AuditRefuse }),
		Text: "What becomes of a call whose line cannot be written, since the disk is full or does not answer. With `count` it goes on, and the log and a later line say how many lines are missing. " +
			"With `refuse` its reply waits until the line is written, for a second at most, and the call is refused when it is not.",
	},
	{
		Section: DaemonSection, Key: "pod_socket",
		binding: daemon(ours(socketPath), func(c *Config) *string { return &c.PodSocket }),
		Text: "Listen on this path for the CSI driver gssproxyd-csi, which registers the pods of Kubernetes on this host: uid 0 alone may connect, and can do nothing else there. " +
			"The unit that is shipped has the directories for /run/gssproxyd/csi/register.sock. Each pod's own socket is in a directory of `pods` beside the directory of this path, " +
			"/run/gssproxyd/pods there. Registrations are kept in the directory of this path until the host is started anew. See containers.md.",
	},
}

var serviceOptions = []Option{
	{
		Section: ServiceSection, Key: "mechs", Required: true,
		binding: service(mechs, func(s *Service) *[]string { return &s.Mechs }),
		Text:    "The mechanisms the service may use. There is one: `krb5`.",
	},
	{
		Section: ServiceSection, Key: "euid", Required: true,
		binding: service(user, func(s *Service) *uint32 { return &s.EUID }),
		Text: "The user the service runs as: a uid up to 4294967294, or a name that the system's name service " +
			"knows when the configuration is read. Peers with this effective uid match.",
	},
	{
		Section: ServiceSection, Key: "allow_any_uid", Default: "no",
		binding: service(boolean, func(s *Service) *bool { return &s.AllowAnyUID }),
		Text: "Peers with any uid match. `euid` still says who is the service itself. Such a service must be the last " +
			"one of its socket, program, SELinux context and the other rules about who the peer is.",
	},
	{
		Section: ServiceSection, Key: "socket",
		binding: service(socketPath, func(s *Service) *string { return &s.Socket }),
		Text: "Listen on this path too, and serve this service only there. Without it the service is " +
			"reached through the default socket. Nobody but root and the daemon may be able to replace the path or a directory on the way. " +
			"Under the unit that is shipped it is below /run, /tmp or /var/lib/gssproxy, unless ReadWritePaths= has more.",
	},
	{
		Section: ServiceSection, Key: "program",
		binding: service(programPath, func(s *Service) *string { return &s.Program }),
		Text: "Only peers that run this executable file match. The path must be the one the kernel reports " +
			"(`readlink /proc/PID/exe`): absolute, without symbolic links, without `|`. A peer whose program is not known never matches. " +
			"One that is replaced or removed while it runs, by an upgrade, matches until it ends. " +
			"This separates programs of one user from each other by mistake, not by force.",
	},
	{
		Section: ServiceSection, Key: "program_trusted", Default: "no",
		binding: service(ours(boolean), func(s *Service) *bool { return &s.ProgramTrusted }),
		Text: "Only peers match whose program's file belongs to root and may be written by nobody else, and is not on a file system that a user's process serves. " +
			"With `program` it keeps out a file that somebody put in that place.",
	},
	{
		Section: ServiceSection, Key: "group",
		binding: service(ours(groups), func(s *Service) *[]uint32 { return &s.Groups }).repeated(),
		Text: "Only peers in this group match, a gid or a name, one a line; with several, in one of them. The group that a process runs as counts, and each of its supplementary ones, " +
			"as they were when it connected. For a service for a whole group add `allow_any_uid = yes`.",
	},
	{
		Section: ServiceSection, Key: "unit",
		binding: service(ours(patterns("unit", `a unit of systemd, such as "httpd.service" or "backup@*.service"`)), func(s *Service) *[]string { return &s.Units }).repeated(),
		Text: "Only peers in this unit of systemd match, one a line; with several, in one of them. `*` stands for any characters, `?` for one. The unit is the outermost one: for what a user's own " +
			"manager runs that is `user@UID.service`. It is read from the peer's control group, of version 2; without that no peer matches.",
	},
	{
		Section: ServiceSection, Key: "pod",
		binding: service(ours(pods), func(s *Service) *[]string { return &s.Pods }).repeated(),
		Text: "Only peers in this pod of Kubernetes match, `NAMESPACE/SERVICEACCOUNT/POD`, one a line; with several, in one of them. `*` stands for any characters of one of the three, `?` for one. " +
			"A peer has to come through the socket that the CSI driver shows to the pod (`pod_socket`), and its control group has to be that pod's. " +
			"Such a service is reached there only, and is all that is reached there. Where pods have user namespaces of their own their uids are others here: then add `allow_any_uid = yes`.",
	},
	{
		Section: ServiceSection, Key: "container",
		binding: service(ours(patterns("container", `the id of a container, 64 hexadecimal digits, or "*" for any`)), func(s *Service) *[]string { return &s.Containers }).repeated(),
		Text: "Only peers in this container match, by the id that its runtime (containerd, CRI-O, Docker, Podman as root) has given it, one a line. `*` stands for any characters: alone it is any container. " +
			"It is read as for `unit`.",
	},
	{
		Section: ServiceSection, Key: "apparmor_label",
		binding: service(ours(appArmor), func(s *Service) *string { return &s.AppArmorLabel }),
		Text:    "Only peers match that AppArmor holds to the profile of this name (`ps -Z` shows it, with `(enforce)` behind it).",
	},
	{
		Section: ServiceSection, Key: "selinux_context",
		binding: service(seLinux, func(s *Service) *string { return &s.SELinuxContext }),
		Text: "Only peers with this context match: the same user, role and type, and the same range if both have one. " +
			"Deprecated.",
	},
	{
		Section: ServiceSection, Key: "cred_usage", Default: "both",
		binding: service(usage, func(s *Service) *Usage { return &s.CredUsage }),
		Text:    "What credentials may be got for: `initiate`, `accept` or `both`.",
	},
	{
		Section: ServiceSection, Key: "cred_store",
		binding: service(credStore, func(s *Service) *[]KeyValue { return &s.CredStore }).repeated(),
		Text: "Where credentials are, one `key:value` a line, without blanks around the first colon. " +
			"The keys are `keytab` and `client_keytab` (`FILE:/path` or a path; `SEALED:/path` for one that `gssproxyd keytab seal` or age has " +
			"sealed to this host, which root or the daemon's user must have and nobody else may write, like each directory on the way; `STORE:NAME:PRINCIPAL@REALM` for the keys of a principal in the key store [store/NAME]), `ccache` (a cache of the kinds FILE, DIR, MEMORY, KEYRING or KCM) " +
			"and `rcache` (`dfl:`, `file2:/path` or `none:`). There is no `password`: a keytab has the key made from one. " +
			"A FILE or DIR cache that the daemon writes is for the one user it was got for; put `%U` into its name where there are several. " +
			"The value is subject to the substitutions below.",
	},
	{
		Section: ServiceSection, Key: "krb5_principal",
		binding: service(principal, func(s *Service) *string { return &s.Krb5Principal }),
		Text: "Who the service is where a request names nobody: to initiate, with whichever of its keytabs has it, and with `trusted` to accept. " +
			"Without it that is the first principal of the client keytab; Active Directory takes only an account's own name, like " +
			"WEB1$@EXAMPLE.COM, for a client. It is not substituted.",
	},
	{
		Section: ServiceSection, Key: "min_lifetime", Default: "15",
		binding: service(seconds, func(s *Service) *time.Duration { return &s.MinLifetime }),
		Text:    "Credentials that a client hands in are replaced when they live for less than this many seconds.",
	},
	{
		Section: ServiceSection, Key: "filter_flags", Default: "+DELEGATE",
		binding: service(flags(delegate), func(s *Service) *uint32 { return &s.FilterFlags }),
		Text: "Flags that are taken away from requests to initiate a context, as a list of `+NAME`, which adds to the default, " +
			"and `-NAME`, which removes from it, separated by blanks or commas. The names are DELEGATE, MUTUAL_AUTH, REPLAY_DETECT, SEQUENCE, " +
			"CONFIDENTIALITY, INTEGRITY (also spelt INTEGRITIY) and ANONYMOUS, in any case; a number such as `+0x20` is a set of bits.",
	},
	{
		Section: ServiceSection, Key: "enforce_flags",
		binding: service(flags(0), func(s *Service) *uint32 { return &s.EnforceFlags }),
		Text:    "Flags that are added to such requests, before `filter_flags` takes its own away.",
	},
	{
		Section: ServiceSection, Key: "trusted", Default: "no",
		binding: service(boolean, func(s *Service) *bool { return &s.Trusted }),
		Text: "A peer whose uid is `euid` may act for any user, by naming a uid, " +
			"and may use the keytab without naming a principal.",
	},
	{
		Section: ServiceSection, Key: "kernel_nfsd", Default: "no",
		binding: service(boolean, func(s *Service) *bool { return &s.KernelNFSD }),
		Text: "Register with the kernel's NFS server, which then asks this daemon who its clients are. The service's socket must be /run/gssproxy.sock, " +
			"the only one the kernel knows; the kernel comes as uid 0 and accepts. Once the daemon is another user than root, as under the unit, it takes a restart to register.",
	},
	{
		Section: ServiceSection, Key: "principal_map",
		binding: service(principalMap, func(s *Service) *[]PrincipalUser { return &s.PrincipalMap }).repeated(),
		Text: "Which user of this host a principal is to the kernel's NFS server, as `PRINCIPAL:USER`, one a line. " +
			"It counts before the rules of krb5.conf (`auth_to_local` and `auth_to_local_names`), which map the others. " +
			"The principal is written with its realm and must be the same to the letter. " +
			"With `host/client.example.com@EXAMPLE.COM:root` the machine credential of that client, and so its root, is root here; " +
			"the export's `root_squash` still applies to it.",
	},
	{
		Section: ServiceSection, Key: "unmapped_user", Default: NobodyUser,
		binding: service(unmappedUser, func(s *Service) *string { return &s.UnmappedUser }),
		Text: "What a principal that is no user of this host is to the kernel's NFS server. " +
			"`nobody` gives it no user at all, so that the export's `anonuid` and `anongid` apply. " +
			"`refuse` refuses its context. Anything else is the name of a user to be instead. " +
			"When the system's name service does not answer in time, `refuse` refuses too, and otherwise the principal is nobody for a minute, and asked for again.",
	},
	{
		Section: ServiceSection, Key: "impersonate", Default: "no",
		binding: service(boolean, func(s *Service) *bool { return &s.Impersonate }),
		Text: "Get the credentials of the calling user with the service's keytab, by protocol transition " +
			"and constrained delegation to itself. A user whom the realm does not have is refused.",
	},
	{
		Section: ServiceSection, Key: "allow_protocol_transition", Default: "no",
		binding: service(boolean, func(s *Service) *bool { return &s.AllowProtocolTransition }),
		Text:    "Peers whose uid is `euid` may ask for credentials of a user they name (S4U2Self).",
	},
	{
		Section: ServiceSection, Key: "allow_constrained_delegation", Default: "no",
		binding: service(boolean, func(s *Service) *bool { return &s.AllowConstrainedDelegation }),
		Text: "Peers whose uid is `euid` may use such credentials, and those of users who have come to the service, towards other " +
			"services (S4U2Proxy). The service's own ticket-granting ticket is asked for as a forwardable one then.",
	},
	{
		Section: ServiceSection, Key: "allow_client_ccache_sync", Default: "no",
		binding: service(boolean, func(s *Service) *bool { return &s.AllowClientCcacheSync }),
		Text:    "Credentials that got new tickets are sent back to clients that want them.",
	},
}

var storeOptions = []Option{
	{
		Section: StoreSection, Key: "url", Required: true,
		binding: keyStore(storeURLs, func(s *KeyStore) *[]string { return &s.URLs }).repeated(),
		Text: "Where the store answers, such as `https://keys1.example.com:8443`, one a line; with several, each is as good as the other, and what does not answer is gone by. " +
			"A process of its own asks there, which has no key of a service, and as a user of its own where the daemon was started by root.",
	},
	{
		Section: StoreSection, Key: "ca", Required: true,
		binding: keyStore(pemFile, func(s *KeyStore) *string { return &s.CA }),
		Text:    "The file with the certificates of the authorities that may have signed the store's own, in PEM. Those of the system do not count.",
	},
	{
		Section: StoreSection, Key: "cert", Required: true,
		binding: keyStore(pemFile, func(s *KeyStore) *string { return &s.Cert }),
		Text:    "The file with this host's certificate, by which the store knows it, in PEM, with those between it and its authority behind it. It is read again when it changes, and so are `ca` and `key`.",
	},
	{
		Section: StoreSection, Key: "key", Required: true,
		binding: keyStore(pemFile, func(s *KeyStore) *string { return &s.Key }),
		Text:    "The file with the certificate's private key, in PEM, unencrypted. The daemon's user must be able to read it.",
	},
	{
		Section: StoreSection, Key: "crl",
		binding: keyStore(pemFile, func(s *KeyStore) *string { return &s.CRL }),
		Text: "The file with the revocation lists of the authorities in `ca`, in PEM, or one in DER. A store is not asked whose certificate is in one, nor when there is none in date of the authority that " +
			"has signed it. It is read again when it changes. Without this line a certificate of a store counts until it ends.",
	},
	{
		Section: StoreSection, Key: "signer", Required: true,
		binding: keyStore(signers, func(s *KeyStore) *[]string { return &s.Signers }).repeated(),
		Text: "The public key that the store signs with, as `keystored` prints it, one a line. What is not signed by one of these is refused, whoever has sent it. " +
			"There are several while the store changes its key.",
	},
	{
		Section: StoreSection, Key: "host",
		binding: keyStore(hostName, func(s *KeyStore) *string { return &s.Host }),
		Text:    "By which name this host is enrolled in the store. What the store has signed for another host is refused. Without this line it is the host name.",
	},
}

// goneOptions are those of earlier versions of the C daemon.
var goneOptions = []Option{
	{Section: ServiceSection, Key: "krb5_keytab", Instead: "cred_store = keytab:VALUE"},
	{Section: ServiceSection, Key: "krb5_ccache", Instead: "cred_store = ccache:VALUE"},
	{Section: ServiceSection, Key: "krb5_client_keytab", Instead: "cred_store = client_keytab:VALUE"},
}

// accessOptions are the keys about who may connect to a socket: that of a service, or in [gssproxy]
// the default socket and those beside it.
func accessOptions(section string) []Option {
	options := []Option{
		{
			Key:     "socket_owner",
			binding: access(section, socketOwner, func(a *SocketAccess) *AccountID { return &a.Owner }),
			Text: "The user that the file of the service's `socket` belongs to, a uid or a name; not set it is the daemon's first one, root. Who owns it may let others connect (`chmod`). " +
				"Nobody but root and the daemon may be able to write in the directory then, and it takes CAP_CHOWN: for the unit that is shipped see the example socket-owner.conf. `socket_group` takes nothing of that. " +
				"Once the daemon is another user (`run_as_user`), a reload knows the names of /etc/passwd and /etc/group only.",
		},
		{
			Key:     "socket_group",
			binding: access(section, socketGroup, func(a *SocketAccess) *AccountID { return &a.Group }),
			Text:    "The group that the file belongs to, a gid or a name, likewise. With `socket_mode = 0660` only its members can connect, and root.",
		},
		{
			Key:     "socket_mode",
			binding: access(section, socketMode, func(a *SocketAccess) *fs.FileMode { return &a.Mode }),
			Text: "The mode of the file in octal, such as `0660`; not set it is 0666: everybody may connect, and the rules about who the peer is decide. To connect takes the right to write. " +
				"Whom it keeps out gets EACCES from the kernel, with no reason and no line in the log. Services that share a socket have the same three lines. A reload changes sockets that are open, too.",
		},
	}
	for i := range options {
		options[i].Section = section
		if section == DaemonSection {
			options[i].Text = "The service's own key of that name, for the default socket and those of `program_sockets`."
		}
	}
	return options
}

// permissionOptions are the keys about what callers may do. They are the same in [gssproxy], where
// they are a ceiling.
func permissionOptions(section string) []Option {
	options := []Option{
		{
			Key:     "operations",
			binding: permission(section, operations, func(p *Permission) *Operations { return &p.Operations }),
			Text: "What callers may do, separated by commas: `accept` contexts; `initiate` them; `impersonate` users who are not there, for a service that is allowed to; " +
				"`delegate`, without which the credentials that initiators forward are dropped, and callers' own are not forwarded; and `names`, to ask what a name is in Kerberos and on this host. " +
				"Not set it is all of them. What is done with a context that is established is beyond this: its keys are the caller's.",
		},
		{
			Key:     "targets",
			binding: permission(section, principals, func(p *Permission) *[]Pattern { return &p.Targets }).repeated(),
			Text: "Principals that contexts may be initiated with, one a line, such as `HTTP/*.example.com@EXAMPLE.COM`. `*` stands for any characters of one component, or of the realm; " +
				"a backslash takes away the meaning of `*`, `/` and `@`. Both the name that was asked for and the one that the KDC gave a ticket for must be among them.",
		},
		{
			Key:     "proxy_targets",
			binding: permission(section, principals, func(p *Permission) *[]Pattern { return &p.ProxyTargets }).repeated(),
			Text:    "The same, for contexts that are initiated in the name of a user with the service's own credential (S4U2Proxy). `targets` holds for them too.",
		},
		{
			Key:     "impersonate_users",
			binding: permission(section, principals, func(p *Permission) *[]Pattern { return &p.ImpersonateUsers }).repeated(),
			Text:    "Users whose credentials may be got without them (S4U2Self), one principal a line, written as for `targets`.",
		},
		{
			Key:     "client_realms",
			binding: permission(section, realms, func(p *Permission) *[]Pattern { return &p.ClientRealms }).repeated(),
			Text:    "Realms whose principals are accepted, one a line. `*` stands for any characters.",
		},
		{
			Key:     "client_principals",
			binding: permission(section, principals, func(p *Permission) *[]Pattern { return &p.ClientPrincipals }).repeated(),
			Text:    "Principals that are accepted, one a line, written as for `targets`.",
		},
		{
			Key:     "enctypes",
			binding: permission(section, enctypes, func(p *Permission) *[]string { return &p.Enctypes }),
			Text: "Encryption types that tickets, session keys and subkeys may have, separated by blanks or commas, such as `aes256-cts-hmac-sha1-96`. " +
				"krb5.conf must permit them as well.",
		},
		{
			Key: "require_channel_bindings", Default: "no",
			binding: permission(section, boolean, func(p *Permission) *bool { return &p.RequireChannelBindings }),
			Text:    "Contexts are accepted only with channel bindings of both sides, which then are the same.",
		},
		{
			Key: "require_pac", Default: "no",
			binding: permission(section, boolean, func(p *Permission) *bool { return &p.RequirePAC }),
			Text:    "Contexts are accepted only with a ticket that has a PAC, whose signature the service's key has made.",
		},
		{
			Key: "max_lifetime", Default: "0",
			binding: permission(section, seconds, func(p *Permission) *time.Duration { return &p.MaxLifetime }),
			Text:    "Contexts end after so many seconds, if their ticket does not before. 0 is no limit.",
		},
		{
			Key: "calls_per_second", Default: "0",
			binding: permission(section, integer("number", 0, 0), func(p *Permission) *int { return &p.CallsPerSecond }),
			Text: "How many calls a second each uid may make to the service in the long run; the next one is refused until a call is due again, and counts for nothing. " +
				"0 is no limit. A context takes a program one to three calls. Root is counted like any other uid and never together with others; so is the kernel's NFS server, which comes as root and calls once or twice for each context of all its clients.",
		},
		{
			Key: "calls_burst", Default: "0",
			binding: permission(section, integer("number", 0, 0), func(p *Permission) *int { return &p.CallsBurst }),
			Text:    "How many calls each uid may make at once, with `calls_per_second` beside it. 0 is as many as in a second.",
		},
		{
			Key: "mode", Default: "enforce",
			binding: permission(section, mode, func(p *Permission) *bool { return &p.Observe }),
			Text: "With `observe` what the keys above forbid is logged, and done, so that one can see what they would do; max_lifetime holds all the same. " +
				"It is about the keys of its own section: that of a service does not lift what [gssproxy] forbids.",
		},
	}
	for i := range options {
		options[i].Section = section
		if section == DaemonSection {
			options[i].Text = "Holds for every service, besides the service's own key of that name, which see."
		}
	}
	return options
}
