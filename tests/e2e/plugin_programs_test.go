package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gssproxyd/tests/lab"
)

// TestSSHD: OpenSSH's server without a keytab lets alice in, by authentication with a MIC and by key
// exchange. What she delegates stays with the daemon: there is no cache for her. With Debian's plugin
// it lets nobody in, because the name it exports there names the plugin's mechanism and not Kerberos.
func TestSSHD(t *testing.T) {
	r := realm(t)
	lab.NeedPrograms(t, "/usr/sbin/sshd", "/usr/bin/ssh")
	made(t, r.RandKey("host/"+lab.Host))
	env, err := r.Kinit("alice", "alice", "-f")
	check(t, err)
	made(t, r.AddPrincipal("bob", "bob"))
	bobs, err := r.Kinit("bob", "bob")
	check(t, err)
	overDaemons(t, func(t *testing.T, kind string) {
		hosts, err := r.Keytab("host.keytab", "host/"+lab.Host)
		check(t, err)
		d := daemon(t, kind, lab.Options{Keytab: hosts})
		const none = "KRB5_KTNAME=/nonexistent/keytab"
		server, err := r.SSHD(append(d.PluginEnvOf(lab.Ours), none)...)
		check(t, err)
		ssh := func(env []string, options ...string) error {
			out, err := r.SSH(lab.Nobody, env, server, `echo "hello, cache: $KRB5CCNAME."`, options...)
			return said(out, err, "hello, cache: .")
		}
		must := func(t *testing.T, err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("%v\nsshd's log:\n%s", err, tail(server.Output(), 4<<10))
			}
		}
		exchanging := []string{"-o", "GSSAPIKeyExchange=yes", "-o", "PreferredAuthentications=gssapi-keyex"}
		delegating := []string{"-o", "GSSAPIDelegateCredentials=yes"}
		t.Run("MIC", func(t *testing.T) { must(t, ssh(env)) })
		t.Run("MIC, delegating", func(t *testing.T) { must(t, ssh(env, delegating...)) })
		t.Run("key exchange", func(t *testing.T) { must(t, ssh(env, exchanging...)) })
		t.Run("key exchange, delegating", func(t *testing.T) { must(t, ssh(env, append(exchanging, delegating...)...)) })
		t.Run("somebody else", func(t *testing.T) {
			for _, options := range [][]string{nil, exchanging} {
				if err := ssh(bobs, append(options, "-o", "LogLevel=INFO")...); err == nil || !strings.Contains(err.Error(), "Permission denied") {
					t.Errorf("bob: %v", err)
				}
			}
		})
		t.Run("without the daemon", func(t *testing.T) {
			check(t, d.Stop())
			if err := ssh(env, "-o", "LogLevel=INFO"); err == nil || !strings.Contains(err.Error(), "Permission denied") {
				t.Errorf("without the daemon: %v", err)
			}
			check(t, d.Start())
			must(t, ssh(env))
		})
		t.Run("Debian's plugin", func(t *testing.T) {
			debians, err := r.SSHD(append(d.PluginEnvOf(lab.Debians), none)...)
			check(t, err)
			_, err = r.SSH(lab.Nobody, env, debians, "true")
			if log := debians.Output(); err == nil || !strings.Contains(log, "Couldn't convert client name") {
				t.Errorf("%v: this test shows nothing; sshd's log:\n%s", err, log)
			}
		})
	})
}

// TestApacheBasic: mod_auth_gssapi gets a user's ticket with the password that the browser sends, and
// accepts its own token with the daemon's key.
func TestApacheBasic(t *testing.T) {
	r := realm(t)
	lab.NeedPrograms(t, "/usr/sbin/apache2", "/usr/lib/apache2/modules/mod_auth_gssapi.so", "/usr/bin/curl")
	www, err := lab.LookupUser("www-data")
	check(t, err)
	overDaemons(t, func(t *testing.T, kind string) {
		web := func(t *testing.T, p lab.Plugin) func(user string) string {
			t.Helper()
			dir, port := startApacheIn(t, r, www, daemon(t, kind, lab.Options{}).PluginEnvOf(p), "GssapiBasicAuth On")
			return func(user string) string {
				t.Helper()
				out, err := r.Run(lab.Nobody, nil, "/usr/bin/curl", "-sSi", "--max-time", "60", "-u", user,
					"--resolve", fmt.Sprintf("%s:%d:127.0.0.1", lab.Host, port), fmt.Sprintf("http://%s:%d/hello", lab.Host, port))
				check(t, err)
				log, _ := os.ReadFile(filepath.Join(dir, "error.log"))
				return out + "\nApache's log:\n" + tail(string(log), 2<<10)
			}
		}
		t.Run("ours", func(t *testing.T) {
			curl := web(t, lab.Ours)
			for range 3 {
				check(t, said(curl("alice:alice"), nil, "200 OK", "X-User: alice@"+lab.Name, "hello, world"))
				check(t, said(curl("alice:wrong"), nil, "401 Unauthorized"))
			}
			check(t, said(curl("nobody-knows:alice"), nil, "401 Unauthorized"))
		})
		t.Run("debian", func(t *testing.T) {
			if err := said(web(t, lab.Debians)("alice:alice"), nil, "401 Unauthorized"); err != nil {
				t.Errorf("this test shows nothing: %v", err)
			}
		})
	})
}

// TestBothPlugins: where both are installed the one of the later line is in force, which is why our
// file sorts after Debian's.
func TestBothPlugins(t *testing.T) {
	r := realm(t)
	for _, last := range []lab.Plugin{lab.Ours, lab.Debians} {
		t.Run(string(last), func(t *testing.T) {
			first := lab.Ours
			if last == lab.Ours {
				first = lab.Debians
			}
			conf := r.Path("both.conf")
			check(t, os.WriteFile(conf, []byte(r.MechLine(first)+r.MechLine(last)), 0o644))
			d := daemon(t, "ours", lab.Options{})
			g := tool(t, lab.Nobody, append(d.PluginEnv(), "GSS_MECH_CONFIG="+conf)...)
			check(t, g.Acquire(service))
			_, err := g.Accept(aToken(t), nil)
			check(t, err)
			maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", g.PID()))
			check(t, err)
			if !strings.Contains(string(maps), r.PluginPath(last)) {
				err = errors.New("the later line's plugin is not loaded")
			}
			if strings.Contains(string(maps), r.PluginPath(first)) {
				err = errors.Join(err, errors.New("the earlier line's plugin is loaded"))
			}
			check(t, err)
		})
	}
}
