package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// ipa is a FreeIPA server: the three of its services that name one keytab, as it configures them.
type ipa struct {
	realm                         *lab.LDAPRealm
	httpKeys, otherKeys, ldapKeys string
	apache, api, other, thief     lab.User

	kind      string
	daemon    *lab.Daemon
	sweeping  string    // the sweeper's socket
	ccaches   string    // where the web server leaves users' credentials
	directory *lab.Tool // MIT's acceptor, with the directory's keys and another service's
}

// newIPA starts the realm.
func newIPA(t *testing.T) *ipa {
	lab.Require(t)
	lab.NeedPrograms(t, "/usr/sbin/slapd", "/usr/lib/x86_64-linux-gnu/krb5/plugins/kdb/kldap.so", "/usr/sbin/apache2",
		"/usr/lib/apache2/modules/mod_auth_gssapi.so", "/usr/bin/curl")
	r, err := lab.UpLDAP()
	check(t, err)
	t.Cleanup(func() { r.Close() })
	for _, s := range []string{"HTTP", "ldap", "other"} {
		check(t, r.RandKey(s+"/"+lab.Host))
	}
	check(t, r.AddPrincipal("bob", "bob"))
	check(t, r.Attribute("HTTP/"+lab.Host, "+ok_to_auth_as_delegate"))
	check(t, r.AllowDelegation("HTTP/"+lab.Host, "ldap/"+lab.Host))
	httpKeys, err := r.Keytab("http.keytab", "HTTP/"+lab.Host)
	check(t, err)
	otherKeys, err := r.Keytab("other.keytab", "other/"+lab.Host)
	check(t, err)
	ldapKeys, err := r.Keytab("ldap.keytab", "ldap/"+lab.Host, "other/"+lab.Host)
	check(t, err)

	apache, err := lab.LookupUser("www-data")
	check(t, err)
	return &ipa{
		realm: r, httpKeys: httpKeys, otherKeys: otherKeys, ldapKeys: ldapKeys, apache: apache,
		api: lab.User{UID: 4711, GID: 4711}, other: lab.User{UID: 4712, GID: 4712}, thief: lab.Nobody,
	}
}

// services is the configuration, with the API's cred_usage.
func (i *ipa) services(apiUsage string) string {
	store := func(keytab string) []string {
		return []string{"cred_store = keytab:" + keytab, "cred_store = client_keytab:" + keytab}
	}
	return config(
		svc{"ipa-httpd", i.apache.UID, append(store(i.httpKeys), "allow_protocol_transition = true", "allow_client_ccache_sync = true", "cred_usage = both")},
		svc{"ipa-api", i.api.UID, append(store(i.httpKeys), "allow_constrained_delegation = true", "allow_client_ccache_sync = true", "cred_usage = "+apiUsage)},
		svc{"ipa-sweeper", i.api.UID, []string{"cred_store = keytab:" + i.httpKeys, "socket = " + i.sweeping, "cred_usage = initiate"}},
		// And what they share nothing with: a service with keys of its own, and one that lets
		// everybody in.
		svc{"other", i.other.UID, append(store(i.otherKeys), "allow_constrained_delegation = true", "cred_usage = initiate")},
		svc{"users", lab.Root.UID, append(store(i.httpKeys), "allow_constrained_delegation = true", "allow_any_uid = true", "cred_usage = initiate")},
	)
}

// serve starts a daemon, and the directory.
func (i ipa) serve(t *testing.T, kind string) *ipa {
	i.kind = kind
	dir := i.realm.Path("ipa-" + kind)
	i.sweeping = filepath.Join(dir, "ipa_ccache_sweeper.sock")
	var err error
	i.daemon, err = i.realm.Daemon(kind, lab.Options{Dir: dir, Keytab: i.httpKeys, Config: i.services("initiate")})
	check(t, err)
	t.Cleanup(func() {
		if err := i.daemon.Stop(); err != nil {
			t.Errorf("the daemon ended badly: %v", err)
		}
		if t.Failed() {
			t.Logf("log of the %s daemon:\n%s\nof the KDC:\n%s", i.kind, tail(i.daemon.Output(), 8<<10), tail(i.realm.KDCLog(), 4<<10))
		}
	})
	i.ccaches, err = i.realm.MkdirFor(i.api, "ccaches-"+i.kind)
	check(t, err)
	i.share(t, i.ccaches)
	i.directory = i.start(t, lab.Root, "KRB5_KTNAME="+i.ldapKeys, "KRB5RCACHENAME=none:")
	check(t, i.directory.Acquire(""))
	return &i
}

// share makes a directory what FreeIPA's /run/ipa/ccaches is: the API's, whose group what is made
// there belongs to, and the web server's group may write to it.
func (i *ipa) share(t *testing.T, dir string) {
	t.Helper()
	check(t, os.Chown(dir, int(i.api.UID), int(i.api.GID)))
	check(t, os.Chmod(dir, os.ModeSetuid|os.ModeSetgid|0o770))
	const userObj, groupObj, group, mask, other, all, nobody = 1, 4, 8, 16, 32, 7, 1<<32 - 1 // linux/posix_acl_xattr.h
	acl := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct{ tag, perm, id uint32 }{
		{userObj, all, nobody}, {groupObj, all, nobody}, {group, all, i.apache.GID}, {mask, all, nobody}, {other, 0, nobody},
	} {
		acl = binary.LittleEndian.AppendUint32(acl, e.perm<<16|e.tag)
		acl = binary.LittleEndian.AppendUint32(acl, e.id)
	}
	check(t, unix.Setxattr(dir, "system.posix_acl_access", acl, 0))
}

// start starts a gsstool that ends with the test.
func (i *ipa) start(t *testing.T, u lab.User, env ...string) *lab.Tool {
	t.Helper()
	g, err := i.realm.Tool(u, env...)
	check(t, err)
	t.Cleanup(func() { g.Close() })
	return g
}

// env is what FreeIPA sets, and no more: the plugin may look for tickets without the daemon,
// too.
func (i *ipa) env(socket, ccache string) []string {
	return append(i.realm.Load(i.realm.Plugin), "GSS_USE_PROXY=yes", "GSSPROXY_SOCKET="+socket, "KRB5CCNAME="+ccache)
}

// reach goes to a service, and says as whom it is heard.
func (i *ipa) reach(g *lab.Tool, target string) (as string, err error) {
	id, token, err := g.Init(target+"@"+lab.Host, lab.Usual|lab.Mutual, nil)
	if err != nil {
		return "", err
	}
	heard, err := i.directory.Accept(token, nil)
	if err != nil {
		return "", err
	}
	if complete, _, err := g.Step(id, heard.Token); err != nil || !complete {
		return "", fmt.Errorf("established: %v, %w", complete, err)
	}
	return heard.Client, lab.Converse(lab.End{Tool: g, ID: id}, lab.End{Tool: i.directory, ID: heard.ID})
}

// refused asserts that a program does not get there as the user. With C it may get there as
// somebody else.
func (i *ipa) refused(t *testing.T, what string, g *lab.Tool, target, user string) {
	t.Helper()
	as, err := i.reach(g, target)
	if err == nil && (i.kind == "ours" || as == user+"@"+lab.Name) {
		t.Errorf("%s reaches %s as %s", what, target, as)
	}
}

// accepts does the web server's part, as impersonates and serves do in other ways: it leaves a
// credential in a cache.
func (i *ipa) accepts(t *testing.T, ccache string, flags uint32, kinit ...string) error {
	env, err := i.realm.Kinit("alice", "alice", kinit...)
	check(t, err)
	_, token, err := i.start(t, lab.Nobody, env...).Init("HTTP@"+lab.Host, flags, nil)
	if err != nil {
		return err
	}
	httpd := i.start(t, i.apache, i.env(i.daemon.Socket, "MEMORY:httpd")...)
	if _, err := httpd.Credential("HTTP@"+lab.Host, "hostbased", 0); err != nil {
		return err
	}
	heard, err := httpd.Accept(token, nil)
	if err != nil {
		return err
	}
	if !heard.Delegated {
		return errors.New("no credential of the client's")
	}
	return errors.Join(httpd.StoreDelegated(heard.ID, "FILE:"+ccache), os.Chmod(ccache, 0o660))
}

func (i *ipa) impersonates(t *testing.T, ccache string) error {
	httpd := i.start(t, i.apache, i.env(i.daemon.Socket, "MEMORY:httpd")...)
	if _, err := httpd.Credential("HTTP@"+lab.Host, "hostbased", 0); err != nil {
		return err
	}
	if _, err := httpd.Impersonate("bob", "user"); err != nil {
		return err
	}
	return errors.Join(httpd.Store("FILE:"+ccache), os.Chmod(ccache, 0o660))
}

// serves does so with the real web server, which calls the cache by the user's name.
func (i *ipa) serves(t *testing.T, ccache string, curl ...string) error {
	caches := ccache + ".d"
	check(t, os.Mkdir(caches, 0o700))
	i.share(t, caches)
	web, port := startApacheIn(t, i.realm.Realm, i.apache, i.env(i.daemon.Socket, "MEMORY:httpd"), "GssapiAllowedMech krb5",
		"GssapiDelegCcacheDir "+caches, "GssapiDelegCcachePerms mode:0660", "GssapiUseS4U2Proxy On")
	env, err := i.realm.Kinit("alice", "alice", "-f")
	check(t, err)
	curl = append(curl, "-sS", "-i", "--max-time", "60", "--negotiate", "-u", ":", "--resolve", fmt.Sprintf("%s:%d:127.0.0.1", lab.Host, port),
		fmt.Sprintf("http://%s:%d/hello", lab.Host, port))
	out, err := i.realm.Run(lab.Nobody, env, "/usr/bin/curl", curl...)
	if err == nil && !strings.Contains(out, "200 OK") {
		log, _ := os.ReadFile(filepath.Join(web, "error.log"))
		err = fmt.Errorf("%s\nApache's log:\n%s", out, tail(string(log), 4<<10))
	}
	return errors.Join(err, os.Rename(filepath.Join(caches, "alice@"+lab.Name), ccache))
}

// TestFreeIPA: the web server leaves the credential of a user in a cache; the API goes on with it
// under another uid, to the directory; the sweeper asks how long it lives. Nobody else gets
// anywhere with such a cache, not who reads it either.
func TestFreeIPA(t *testing.T) {
	server := newIPA(t)
	overDaemons(t, func(t *testing.T, kind string) {
		i := server.serve(t, kind)
		for _, c := range []ipaCase{
			{"forwarded", "alice", func(t *testing.T, cc string) error { return i.accepts(t, cc, lab.Usual|lab.Mutual|lab.Deleg, "-f") }, false},
			{"constrained", "alice", func(t *testing.T, cc string) error { return i.accepts(t, cc, lab.Usual|lab.Mutual, "-f") }, true},
			{"impersonated", "bob", i.impersonates, true},
			{"Apache, forwarded", "alice", func(t *testing.T, cc string) error { return i.serves(t, cc, "--delegation", "always") }, false},
			{"Apache, constrained", "alice", func(t *testing.T, cc string) error { return i.serves(t, cc) }, true},
		} {
			t.Run(strings.ReplaceAll(c.how, ", ", "-"), func(t *testing.T) { i.left(t, c) })
		}
		if kind == "ours" {
			t.Run("reloaded", i.reloaded)
		}
		t.Run("expired", i.expired)
	})
}

type ipaCase struct {
	how, user string
	leave     func(t *testing.T, ccache string) error
	s4u       bool // the credential reaches what HTTP may delegate to; else it is the user's own
}

// left has everybody try what the web server has left.
func (i *ipa) left(t *testing.T, c ipaCase) {
	ccache := filepath.Join(i.ccaches, strings.ReplaceAll(c.how, ", ", "-"))
	check(t, c.leave(t, ccache))
	stolen, err := os.ReadFile(ccache)
	check(t, err)
	steal := func(u lab.User) string {
		path := i.realm.Path("stolen")
		check(t, errors.Join(os.WriteFile(path, stolen, 0o600), os.Chown(path, int(u.UID), int(u.GID))))
		return "FILE:" + path
	}

	// Several of the API's processes: the first one's tickets go back to the cache.
	for range 2 {
		g := i.start(t, i.api, i.env(i.daemon.Socket, "FILE:"+ccache)...)
		as, err := i.reach(g, "ldap")
		check(t, err)
		if as != c.user+"@"+lab.Name {
			t.Errorf("the directory hears %s", as)
		}
		if c.s4u {
			i.refused(t, "the API", g, "other", c.user)
		} else if as, err := i.reach(g, "other"); err != nil || as != c.user+"@"+lab.Name {
			t.Errorf("another service hears %s, %v", as, err)
		}
	}

	sweeper := i.start(t, i.api, i.env(i.sweeping, "MEMORY:sweeper")...)
	got, err := sweeper.From("FILE:" + ccache)
	if err != nil || got.Name != c.user+"@"+lab.Name || got.Lifetime == 0 {
		t.Errorf("the sweeper is told %+v, %v", got, err)
	}
	if c.s4u {
		i.refused(t, "the sweeper", sweeper, "ldap", c.user)
	}

	i.refused(t, "a service with another keytab", i.start(t, i.other, i.env(i.daemon.Socket, steal(i.other))...), "ldap", c.user)
	i.refused(t, "a thief, through the sweeper's socket,", i.start(t, i.thief, i.env(i.sweeping, steal(i.thief))...), "ldap", c.user)
	if i.kind == "ours" { // in C whoever is let in by a service with that keytab can use it
		i.refused(t, "a thief", i.start(t, i.thief, i.env(i.daemon.Socket, steal(i.thief))...), "ldap", c.user)
	}
}

// reloaded: what a service may do is looked up when it does it.
func (i *ipa) reloaded(t *testing.T) {
	for _, how := range []string{"forwarded", "impersonated"} {
		g := i.start(t, i.api, i.env(i.daemon.Socket, "FILE:"+filepath.Join(i.ccaches, how))...)
		_, err := g.From("FILE:" + filepath.Join(i.ccaches, how))
		check(t, err)
		for _, usage := range []string{"accept", "initiate"} {
			check(t, i.daemon.Configure(i.services(usage)))
			check(t, i.daemon.Reload())
			if _, err := i.reach(g, "ldap"); (err == nil) != (usage == "initiate") {
				t.Errorf("%s, cred_usage = %s: %v", how, usage, err)
			}
		}
	}
}

// expired: the sweeper removes the cache when it is told GSS_S_CREDENTIALS_EXPIRED; nobody becomes
// the service by then.
func (i *ipa) expired(t *testing.T) {
	ccache := filepath.Join(i.ccaches, "expired")
	// The sweeper is told so before the end already, when less than min_lifetime (15 s) is left.
	for life := 18 * time.Second; ; life *= 2 { // until it is long enough for this machine
		err := i.accepts(t, ccache, lab.Usual|lab.Deleg, "-f", "-l", life.String())
		if err == nil {
			break
		}
		if life > time.Minute {
			t.Fatal(err)
		}
	}
	sweeper := i.start(t, i.api, i.env(i.sweeping, "MEMORY:sweeper")...)
	for range time.Tick(200 * time.Millisecond) {
		got, err := sweeper.From("FILE:" + ccache)
		var e *lab.GSSError
		if errors.As(err, &e) && (mech.Major(e.Major) == mech.CredentialsExpired || i.kind == "C" && mech.Major(e.Major) == mech.NoCred) {
			break // C looks for another one, and says that it has found none
		}
		if err != nil || got.Lifetime == 0 {
			t.Fatalf("the sweeper is told %+v, %v", got, err)
		}
	}
	// A plugin that asks for the credential again is refused; in the ticket's last seconds a context may still be begun.
	as, err := i.reach(i.start(t, i.api, i.env(i.daemon.Socket, "FILE:"+ccache)...), "ldap")
	if err == nil && as != "alice@"+lab.Name {
		t.Errorf("the API reaches ldap as %s", as)
	}
}

// TestStockServices: services as they are shipped for NFS and for sshd, which all name the host's
// keytab. What a user has through the one that lets everybody in opens for no other uid, the host's
// own services included.
func TestStockServices(t *testing.T) {
	needOurs(t)
	r := realm(t)
	keys, err := r.Keytab("stock.keytab", "svc/"+lab.Host)
	check(t, err)
	dir := daemonsDir(t, "stock") // as clients below /var/lib/gssproxy
	sockets := r.Path("stock-sockets")
	check(t, os.Mkdir(sockets, 0o755))
	made(t, r.AddPrincipal("bob", "bob"))
	user, neighbour := lab.Nobody, lab.User{UID: 12, GID: 12}
	check(t, r.Ktadd(filepath.Join(dir, fmt.Sprintf("%d.keytab", user.UID)), "alice"))
	check(t, r.Ktadd(filepath.Join(dir, fmt.Sprintf("%d.keytab", neighbour.UID)), "bob"))
	socket := func(service string) string { return filepath.Join(sockets, service) }
	clients := []string{"trusted = yes", "allow_any_uid = yes", "cred_usage = initiate", "cred_store = client_keytab:" + dir + "/%U.keytab"}
	services := []svc{
		{"nfs-server", 0, []string{"trusted = yes"}}, // kernel_nfsd says who uses it, not what it may do
		{"sshd", 0, nil},
		{"network-fs-clients", 0, append(clients, "cred_store = ccache:FILE:"+dir+"/krb5cc_%U")},
		{"in-memory-clients", 0, clients}, // such a handle has its tickets with it
	}
	for i := range services {
		s := &services[i]
		s.lines = append([]string{"cred_store = keytab:" + keys, "socket = " + socket(s.name)}, s.lines...)
	}
	d := daemon(t, "ours", lab.Options{Keytab: keys, Config: config(append(services, svc{"lab", 0, nil})...)})
	use := func(service string, u lab.User, c *xdr.Cred) (acquired, initiated error) {
		w, err := d.WireAs(u, socket(service))
		check(t, err)
		defer w.Close()
		var res xdr.ResAcquireCred
		check(t, w.Call(xdr.ProcAcquireCred, &xdr.ArgAcquireCred{CredUsage: initiate, InputCredHandle: xdr.Some(*c)}, &res))
		return lab.StatusError(res.Status), lab.StatusError(initContext(t, w, c, "svc@"+lab.Host, lab.Usual, nil).Status)
	}
	for _, from := range services[2:] {
		w, err := d.WireAs(user, socket(from.name))
		check(t, err)
		defer w.Close()
		var res xdr.ResAcquireCred
		check(t, w.Call(xdr.ProcAcquireCred, &xdr.ArgAcquireCred{CredUsage: initiate}, &res))
		check(t, lab.StatusError(res.Status))
		handle := &res.OutputCredHandle.V
		if got := string(handle.DesiredName.DisplayName); got != "alice@"+lab.Name {
			t.Fatalf("the user has a credential of %s", got)
		}
		for _, at := range services {
			for _, u := range []lab.User{lab.Root, user, neighbour} {
				if at.euid != u.UID && (at.name == "nfs-server" || at.name == "sshd") {
					continue // not let in
				}
				acquired, initiated := use(at.name, u, handle)
				what := fmt.Sprintf("a handle of uid %d of %s, at %s as uid %d", user.UID, from.name, at.name, u.UID)
				if u == user {
					// Its own keys say the same again, at the other one.
					if acquired != nil || initiated != nil {
						t.Errorf("%s: %v, %v", what, acquired, initiated)
					}
					continue
				}
				for _, err := range []error{acquired, initiated} {
					if err := tells("ours", err, reason.BadCredential, reason.NoCredential); err != nil {
						t.Errorf("%s: %v", what, err)
					}
				}
			}
		}
	}
}
