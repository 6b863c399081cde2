package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"gssproxyd/tests/lab"
)

// TestTools: programs that know nothing of the daemon on both sides of a connection, the initiators
// as nobody with alice's keys and the acceptors with the services', all of which only the daemon
// can read.
func TestTools(t *testing.T) {
	r := realm(t)
	lab.NeedPrograms(t, "/usr/sbin/apache2", "/usr/bin/curl", "/usr/sbin/sshd", "/usr/bin/ssh", "/usr/sbin/slapd", "/usr/bin/ldapsearch",
		"/usr/lib/x86_64-linux-gnu/sasl2/libgssapiv2.so")
	made(t, r.RandKey("host/"+lab.Host))
	made(t, r.RandKey("ldap/localhost"))
	www, err := lab.LookupUser("www-data")
	check(t, err)
	openldap, err := lab.LookupUser("openldap")
	check(t, err)

	overDaemons(t, func(t *testing.T, kind string) {
		alices, err := r.Keytab("alice.keytab", "alice")
		check(t, err)
		keys := func(principal string) string {
			path, err := r.Keytab("service.keytab", principal)
			check(t, err)
			return path
		}
		wwws, ldaps, hosts := keys("HTTP/"+lab.Host), keys("ldap/localhost"), keys("host/"+lab.Host)
		ccache := r.Path("alice-" + kind + ".cc")
		none := filepath.Join(r.Dir, "no-keytab")
		// Each side has a daemon of its own: one is stopped, and the other has nothing to do with
		// what then fails.
		d := daemon(t, kind, lab.Options{Keytab: none, Config: config(
			svc{"alice", lab.Nobody.UID, []string{
				"cred_store = client_keytab:" + alices, "cred_store = ccache:FILE:" + ccache,
				"filter_flags = -DELEGATE", "cred_usage = initiate"}},
			svc{"lab", 0, nil},
		)})
		servers := daemon(t, kind, lab.Options{Keytab: none, Config: config(
			svc{"www", www.UID, []string{"cred_store = keytab:" + wwws, "cred_usage = accept"}},
			svc{"root", 0, []string{"cred_store = keytab:" + hosts, "cred_usage = accept"}}, // the lab asks whether the daemon answers
			svc{"ldap", openldap.UID, []string{"cred_store = keytab:" + ldaps, "cred_usage = accept"}},
		)})
		unreadable(t, lab.Nobody, alices)
		env := d.PluginEnv()

		_, web := startApache(t, www, servers.PluginEnv())
		curl := func() error {
			out, err := r.Run(lab.Nobody, env, "/usr/bin/curl", "-sSiv", "--max-time", "20", "--negotiate", "-u", ":",
				"--resolve", fmt.Sprintf("%s:%d:127.0.0.1", lab.Host, web), fmt.Sprintf("http://%s:%d/hello", lab.Host, web))
			return said(out, err, "200 OK", "X-User: alice@"+lab.Name, "hello, world")
		}

		dir, err := r.Slapd(servers.PluginEnv()...)
		check(t, err)
		search := func() error {
			out, err := r.Run(lab.Nobody, append(env, "LDAPSASL_NOCANON=on"), "/usr/bin/ldapsearch", "-LLL", "-Y", "GSSAPI",
				"-H", fmt.Sprintf("ldap://localhost:%d", dir.Port), "-b", "dc=example,dc=test", "(cn=greeting)", "description")
			if err := said(out, err, "SASL username: alice@"+lab.Name, "description: hello from the directory"); err != nil {
				return err
			}
			out, err = r.Run(lab.Nobody, append(env, "LDAPSASL_NOCANON=on"), "/usr/bin/ldapwhoami", "-Q", "-Y", "GSSAPI", "-O", "minssf=56",
				"-H", fmt.Sprintf("ldap://localhost:%d", dir.Port))
			return said(out, err, "dn:uid=alice,cn=gssapi,cn=auth")
		}

		// sshd has a keytab of its own: behind Debian's plugin it lets nobody in (TestSSHD).
		server, err := r.SSHD("KRB5_KTNAME=" + hosts)
		check(t, err)
		ssh := func(options ...string) (string, error) {
			out, err := r.SSH(lab.Nobody, env, server, `/bin/echo hello; [ -z "$KRB5CCNAME" ] || /usr/bin/klist -f "$KRB5CCNAME"`, options...)
			if err != nil {
				err = fmt.Errorf("%w\nsshd's log:\n%s", err, tail(server.Output(), 4<<10))
			}
			return out, said(out, err, "hello")
		}

		gssClient := func() error {
			s, err := r.GSSServer(lab.User{UID: www.UID, GID: www.GID}, servers.PluginEnv(), "HTTP@"+lab.Host)
			if err != nil {
				return err
			}
			defer s.Kill()
			out, err := r.GSSClient(lab.Nobody, env, s, "HTTP@"+lab.Host, "greetings", "-mcount", "2")
			if err := said(out, err, "Signature verified."); err != nil {
				return err
			}
			heard, err := s.Wait()
			return said(heard, err, `Accepted connection: "alice@`+lab.Name+`"`, `Received message: "greetings"`)
		}

		t.Run("gss-client", func(t *testing.T) { check(t, gssClient()) })
		t.Run("curl", func(t *testing.T) { check(t, curl()) })
		t.Run("ldapsearch", func(t *testing.T) { check(t, search()) })
		t.Run("ssh", func(t *testing.T) {
			out, err := ssh()
			check(t, err)
			if strings.Contains(out, "Ticket cache") {
				t.Errorf("a delegated ticket nobody asked for:\n%s", out)
			}
		})
		t.Run("ssh delegates", func(t *testing.T) {
			out, err := ssh("-o", "GSSAPIDelegateCredentials=yes")
			check(t, err)
			check(t, said(out, nil, "Default principal: alice@"+lab.Name, "krbtgt/"+lab.Name+"@"+lab.Name, "Flags: Ff"))
		})
		t.Run("nobody's ccache", func(t *testing.T) {
			unreadable(t, lab.Nobody, ccache)
		})
		t.Run("without the daemon", func(t *testing.T) {
			check(t, d.Stop())
			// What each says it says as an initiator: nobody listens on the socket, and then SPNEGO
			// has no mechanism.
			refused := "Connection refused"
			if r.Plugin == lab.Ours {
				refused = "gssproxyd at " + d.Socket + ": Connection refused"
			}
			for _, c := range []struct {
				name string
				run  func() error
				says string
			}{
				{"gss-client", gssClient, "GSS-API error initializing context: " + refused},
				{"curl", curl, "gss_init_sec_context() failed: SPNEGO cannot find mechanisms to negotiate"},
				{"ldapsearch", search, "ldap_sasl_interactive_bind: Local error (-2)\n\tadditional info: SASL(-1): generic failure: " +
					"GSSAPI Error: Unspecified GSS failure.  Minor code may provide more information (" + refused},
				{"ssh", func() error { _, err := ssh("-v"); return err }, "debug1: Next authentication method: gssapi-with-mic\n" +
					"debug1: Unspecified GSS failure.  Minor code may provide more information\n" + refused},
			} {
				err := c.run()
				if err == nil {
					t.Errorf("%s works without the daemon", c.name)
				} else if !strings.Contains(strings.ReplaceAll(err.Error(), "\r\n", "\n"), c.says) {
					t.Errorf("%s without the daemon: %v, want %q", c.name, err, c.says)
				}
			}
			check(t, d.Start())
			check(t, curl())
			check(t, search())
		})
	})
}

// said is err, or what is missing from a program's output.
func said(out string, err error, want ...string) error {
	if err != nil {
		return err
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			return fmt.Errorf("%q is not in the output:\n%s", w, out)
		}
	}
	return nil
}
