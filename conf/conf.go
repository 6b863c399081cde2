// Package conf reads the configuration and decides which service a peer belongs to.
//
// The files are those of the C gssproxy, read by the same rules: one main file and drop-ins,
// sections [gssproxy] and [service/NAME], the first matching service wins. What differs is that
// nothing is dropped in silence. A configuration with a typo does not load, every problem is
// reported at once with its file and line, and [Source.Compat] turns what the C daemon would have
// ignored into warnings.
//
// [Options] is the table all of this comes from: parsing, defaults, the printed effective
// configuration and the manual gssproxyd.conf(5). A new option is one entry there and a field in
// [Config] or [Service].
//
// [Config.Decide] is pure: it looks at what the kernel said about the peer and at nothing else, so
// the server, a dry run and tests get the same answer.
//
// It is one package, of more lines than others, because a file's line, the option it sets and the
// problem that is reported of both share what is known of positions; a third of it is the table of
// options, with the text of the manual.
package conf

import (
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"gssproxyd/rpc/peer"
)

// Paths, those of the C daemon as distributions build it.
const (
	MainFile   = "/etc/gssproxy/gssproxy.conf"
	DropInDir  = "/etc/gssproxy"
	SocketPath = "/var/lib/gssproxy/default.sock"
	AdminPath  = "/run/gssproxyd/admin/admin.sock" // the C daemon has none
	FilesPath  = "/run/gssproxyd/fs"               // likewise, where the file system is mounted
)

// Config is a configuration that was loaded without errors. It is not changed after that and may be
// used from any goroutine.
type Config struct {
	Debug        int    // 0 off, 1 basic, 2 dumps of calls, 3 everything
	SyslogStatus bool   // log failures to get credentials to syslog
	RunAsUser    string // user to run as after start; "" keeps the user
	Workers      int    // size of the C daemon's thread pool

	Audit       string // the audit log's file; "" is none
	AuditRefuse bool   // what cannot be written to it is refused

	AdminSocket    string       // for root; see Admin
	Metrics        string       // address:port, or unix:/path; "": there are none
	DefaultSocket  string       // of services that name none; "" is any socket
	ProgramSockets []string     // names of those beside it, which count as it
	Access         SocketAccess // of these sockets
	Services       []*Service   // in matching order; never empty
	PodSocket      string       // where pods are registered; "" is nowhere
	KeyStores      []*KeyStore  // in the order of the files
	Ceiling        Permission   // of every service

	Files    []string // that were read, in order
	Warnings []string // "file:line: what is odd; ...", in the order of the files

	debug bool // the option of that name
	from  origins
}

// Service is one [service/NAME] section.
type Service struct {
	Name  string // what follows "service/"
	Where string // "file:line" of the section

	EUID                       uint32 // uid of the service itself
	AllowAnyUID                bool   // peers of any uid match
	AllowProtocolTransition    bool   // peers may ask for S4U2Self
	AllowConstrainedDelegation bool   // and use the result for any target
	AllowClientCcacheSync      bool   // changed credentials go back to the peer
	Trusted                    bool   // a peer with uid EUID may act for any uid
	KernelNFSD                 bool   // register with the kernel's NFS server
	Impersonate                bool   // get users' credentials by S4U with the keytab

	Mechs  []string
	Socket string       // "" is Config.DefaultSocket
	Access SocketAccess // of Socket

	// Whom the service is for, besides EUID; what is not set admits anybody.
	Program        string   // absolute path
	ProgramTrusted bool     // only programs of root's
	Groups         []uint32 // one of these
	Units          []string // in one of these of systemd, patterns as of path.Match
	Pods           []string // in one of these: NAMESPACE/SERVICEACCOUNT/POD, each of the three likewise
	Containers     []string // in one of these, likewise
	AppArmorLabel  string
	SELinuxContext string

	CredUsage    Usage
	FilterFlags  uint32 // GSS request flags taken away, after
	EnforceFlags uint32 // these were added
	MinLifetime  time.Duration

	Permission // what callers may do, within the ceiling

	Krb5Principal string
	CredStore     []KeyValue // as written; see Store

	PrincipalMap []PrincipalUser // what krb5.conf's rules do not say, for the kernel's NFS server
	UnmappedUser string          // NobodyUser, RefuseUser or the name of a user

	selinux seContext
	vague   bool // the file has errors in whom the service is for
	at      position
	from    origins
}

// SocketAccess is who may connect to a socket, by its file; what is not set is as if it were not
// there.
type SocketAccess struct {
	Owner, Group AccountID
	Mode         fs.FileMode
}

// AccountID is a uid or gid, if it is set.
type AccountID struct {
	Set bool
	ID  uint32
}

// PrincipalUser says which local user a principal is.
type PrincipalUser struct{ Principal, User string }

// String returns "principal:user".
func (m PrincipalUser) String() string { return m.Principal + ":" + m.User }

// Values of Service.UnmappedUser that are no names of users.
const (
	NobodyUser = "nobody" // no user at all, rather than the one of that name
	RefuseUser = "refuse"
)

// Usage is what credentials of a service may be used for.
type Usage uint8

// The values are those of gss_cred_usage_t.
const (
	UsageBoth Usage = iota
	UsageInitiate
	UsageAccept
)

// String returns the word used in the configuration.
func (u Usage) String() string {
	if int(u) < len(usages) {
		return usages[u]
	}
	return fmt.Sprintf("usage(%d)", uint8(u))
}

var usages = [...]string{"both", "initiate", "accept"}

// KeyValue is an element of a credential store, as gss_acquire_cred_from takes it: keytab,
// client_keytab, ccache, rcache. One with another key is there with compat only, has no effect, and
// comes without its value, which may be a secret.
type KeyValue struct{ Key, Value string }

// String returns "key:value".
func (kv KeyValue) String() string { return kv.Key + ":" + kv.Value }

// Varies reports whether the value differs from user to user, or with a % that stands for nothing
// fails for each.
func (kv KeyValue) Varies() bool {
	return strings.Contains(strings.ReplaceAll(kv.Value, "%%", ""), "%")
}

// Effective returns the flags of a request after EnforceFlags and FilterFlags. A flag in both is
// filtered.
func (s *Service) Effective(req uint32) uint32 { return (req | s.EnforceFlags) &^ s.FilterFlags }

// Problem returns a problem with the value of an option of [gssproxy] that is not repeated, at the
// line that gives it.
func (c *Config) Problem(key, what, expected, do string) Problem {
	var at position
	if from := c.from[key]; len(from) > 0 {
		at = from[0]
	}
	return problem(at, what, expected, do)
}

// Problem returns a problem with the nth value of an option of s, at the line that gives it, or at
// the section's where there is no such line.
func (s *Service) Problem(key string, n int, what, expected, do string) Problem {
	at := s.at
	if from := s.from[key]; n < len(from) {
		at = from[n]
	}
	return problem(at, what, expected, do)
}

// SocketOf returns the path on which s is reached.
func (c *Config) SocketOf(s *Service) string {
	if s.Socket == "" {
		return c.DefaultSocket
	}
	return s.Socket
}

// Admin returns the path of the admin socket: the one that is configured, else the usual
// one, else, where the default socket is not the usual one, one beside that.
func (c *Config) Admin() string {
	switch {
	case c.AdminSocket != "":
		return c.AdminSocket
	case c.DefaultSocket == SocketPath:
		return AdminPath
	}
	return c.DefaultSocket + "-admin"
}

// metricsUnix is before the path of a unix socket in Config.Metrics.
const metricsUnix = "unix:"

// MetricsSocket returns the path of the unix socket for the metrics, empty if there is none.
func (c *Config) MetricsSocket() string {
	path, unix := strings.CutPrefix(c.Metrics, metricsUnix)
	if !unix {
		return ""
	}
	return path
}

// programSocket returns the path of the socket for programs of a name.
func (c *Config) programSocket(name string) string { return c.DefaultSocket + "." + name }

// Sockets returns every path to listen on: the default socket, those for programs, then those of
// the services in order, each once.
func (c *Config) Sockets() []string {
	paths := []string{c.DefaultSocket}
	for _, name := range c.ProgramSockets {
		paths = append(paths, c.programSocket(name))
	}
	for _, s := range c.Services {
		if p := c.SocketOf(s); !slices.Contains(paths, p) {
			paths = append(paths, p)
		}
	}
	return paths
}

// AccessOf returns who may connect to a socket.
func (c *Config) AccessOf(path string) SocketAccess {
	for _, s := range c.Services {
		if s.Socket == path && path != c.DefaultSocket {
			return s.Access
		}
	}
	return c.Access
}

// serves reports whether a peer reaches s through socket. That of a pod is the default socket, for
// services that are for pods: what else the host has is not shown to one.
func (c *Config) serves(s *Service, p *peer.Info, socket string) bool {
	path := c.SocketOf(s)
	if _, ok := p.Registered.Get(); ok {
		return len(s.Pods) > 0 && path == c.DefaultSocket
	}
	return path == socket || path == "" || path == c.DefaultSocket && c.forProgram(socket)
}

// forProgram reports whether a socket is one of ProgramSockets.
func (c *Config) forProgram(socket string) bool {
	name, beside := strings.CutPrefix(socket, c.DefaultSocket)
	name, dot := strings.CutPrefix(name, ".")
	return beside && dot && slices.Contains(c.ProgramSockets, name)
}

// UserProxy returns the configuration of a per-user proxy, which reads no files: one service for
// euid, with the credentials of the process itself. It has no DefaultSocket: the service is reached
// through whatever socket there is.
func UserProxy(euid uint32) *Config {
	r := newReader(Source{})
	c := r.cfg
	r.defaults(target{cfg: c})
	s := &Service{Name: "user-proxy", Where: "user proxy"}
	r.defaults(target{cfg: c, svc: s})
	s.EUID, s.Mechs, s.AllowClientCcacheSync = euid, []string{"krb5"}, true
	c.Workers, c.DefaultSocket = 2, ""
	c.Services = []*Service{s}
	return c
}

// Print writes the effective configuration in the syntax of the files: what they set, or with all
// every option, with a comment that says where its value comes from. What is written loads again
// and means the same.
func (c *Config) Print(w io.Writer, all bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# Effective configuration; default socket %s\n", c.DefaultSocket)
	for _, f := range c.Files {
		fmt.Fprintf(&b, "# read %s\n", f)
	}
	if !all {
		b.WriteString("# everything else has its default, which gssproxyd check --all shows\n")
	}
	if all || len(c.from) > 0 {
		b.WriteString("\n[" + DaemonSection + "]\n")
		printOptions(&b, DaemonSection, target{cfg: c}, c.from, all)
	}
	for _, s := range c.KeyStores {
		fmt.Fprintf(&b, "\n# %s\n[%s%s]\n", s.Where, storePrefix, s.Name)
		printOptions(&b, StoreSection, target{cfg: c, store: s}, s.from, all)
	}
	for _, s := range c.Services {
		fmt.Fprintf(&b, "\n# %s\n[%s%s]\n", s.Where, servicePrefix, s.Name)
		printOptions(&b, ServiceSection, target{cfg: c, svc: s}, s.from, all)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func printOptions(b *strings.Builder, section string, t target, from origins, all bool) {
	for i := range Options {
		o := &Options[i]
		if o.Section != section || o.Instead != "" {
			continue
		}
		values, at := o.get(t), from[o.Key]
		switch {
		case !all && len(at) == 0:
			continue
		case all && len(values) == 0:
			fmt.Fprintf(b, "# %s is not set\n", o.Key)
		}
		for j, v := range values {
			if all {
				where := "default"
				if j < len(at) {
					where = at[j].String()
				}
				fmt.Fprintf(b, "# %s\n", where)
			}
			fmt.Fprintf(b, "%s = %s\n", o.Key, v)
		}
	}
}
