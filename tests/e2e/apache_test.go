package e2e

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"gssproxyd/tests/lab"
)

const apacheConf = `ServerRoot %[1]s
ServerName ` + lab.Host + `
Listen 127.0.0.1:%[2]d
PidFile %[1]s/pid
Mutex file:%[1]s default
DefaultRuntimeDir %[1]s
ErrorLog %[1]s/error.log
LogLevel info auth_gssapi:debug
User www-data
Group www-data
DocumentRoot %[1]s/htdocs
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authn_core_module /usr/lib/apache2/modules/mod_authn_core.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule authz_user_module /usr/lib/apache2/modules/mod_authz_user.so
LoadModule headers_module /usr/lib/apache2/modules/mod_headers.so
LoadModule session_module /usr/lib/apache2/modules/mod_session.so
LoadModule session_cookie_module /usr/lib/apache2/modules/mod_session_cookie.so
LoadModule auth_gssapi_module /usr/lib/apache2/modules/mod_auth_gssapi.so
StartServers 2
<Directory %[1]s/htdocs>
  AuthType GSSAPI
  AuthName lab
  GssapiSSLonly Off
  Require valid-user
  Header always set X-User expr=%%{REMOTE_USER}
  %[3]s
</Directory>
`

// TestApache: apache2 with mod_auth_gssapi as www-data, which cannot read the keytab, and curl
// --negotiate.
func TestApache(t *testing.T) {
	r := realm(t)
	for _, p := range []string{"/usr/sbin/apache2", "/usr/lib/apache2/modules/mod_auth_gssapi.so", "/usr/bin/curl"} {
		if _, err := os.Stat(p); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	web, err := user.Lookup("www-data")
	check(t, err)
	uid, _ := strconv.Atoi(web.Uid)
	gid, _ := strconv.Atoi(web.Gid)
	www := lab.User{UID: uint32(uid), GID: uint32(gid)}

	overDaemons(t, func(t *testing.T, kind string) {
		d := daemon(t, kind, lab.Options{})
		if out, err := r.Run(www, nil, "/bin/cat", d.Options.Keytab); err == nil || !strings.Contains(out, "Permission denied") {
			t.Errorf("www-data can read the keytab: %v", err)
		}
		dir, port := startApache(t, www, d.PluginEnv())
		env, err := r.Kinit("alice", "alice")
		check(t, err)
		url := fmt.Sprintf("http://%s:%d/hello", lab.Host, port)
		curl := func(args ...string) string {
			t.Helper()
			args = append([]string{"-sS", "-i", "--max-time", "20", "--resolve", fmt.Sprintf("%s:%d:127.0.0.1", lab.Host, port)}, args...)
			out, err := r.Run(lab.Nobody, env, "/usr/bin/curl", append(args, url)...)
			check(t, err)
			return out
		}
		if out := curl(); !strings.Contains(out, "401 Unauthorized") {
			t.Errorf("without a ticket:\n%s", out)
		}
		for range 5 { // several, to meet several of Apache's processes
			out := curl("--negotiate", "-u", ":")
			if !strings.Contains(out, "200 OK") || !strings.Contains(out, "X-User: alice@"+lab.Name) || !strings.Contains(out, "hello, world") {
				log, _ := os.ReadFile(filepath.Join(dir, "error.log"))
				t.Fatalf("with a ticket:\n%s\nApache's log:\n%s", out, tail(string(log), 4<<10))
			}
			// The server's answer in the header is what mutual authentication needs.
			if !strings.Contains(out, "WWW-Authenticate: Negotiate ") {
				t.Errorf("no token from the server:\n%s", out)
			}
		}
		if kind == "ours" { // an accept that succeeds is nothing to warn of
			if line := regexp.MustCompile("level=(WARN|ERROR).*").FindString(d.Output()); line != "" {
				t.Errorf("the log has %s", line)
			}
		}
		check(t, d.Stop())
		if out := curl("--negotiate", "-u", ":"); !strings.Contains(out, "401 Unauthorized") {
			t.Errorf("without the daemon:\n%s", out)
		}
		check(t, d.Start())
		if out := curl("--negotiate", "-u", ":"); !strings.Contains(out, "200 OK") {
			t.Errorf("after the daemon came back:\n%s", out)
		}
	})
}

// startApache runs an Apache of the lab's own and returns its directory and port.
func startApache(t *testing.T, www lab.User, env []string) (dir string, port int) {
	t.Helper()
	return startApacheIn(t, realm(t), www, env)
}

// startApacheIn is startApache in any realm, with more lines for what is protected.
func startApacheIn(t *testing.T, r *lab.Realm, www lab.User, env []string, lines ...string) (dir string, port int) {
	t.Helper()
	dir, err := r.MkdirFor(www, "apache")
	check(t, err)
	check(t, os.Mkdir(filepath.Join(dir, "htdocs"), 0o755))
	check(t, os.WriteFile(filepath.Join(dir, "htdocs", "hello"), []byte("hello, world\n"), 0o644))
	conf := filepath.Join(dir, "apache.conf")
	for range 3 {
		port, err = lab.FreePort()
		check(t, err)
		check(t, os.WriteFile(conf, fmt.Appendf(nil, apacheConf, dir, port, strings.Join(lines, "\n  ")), 0o644))
		p, err := r.Start(r.Command(lab.Root, env, "/usr/sbin/apache2", "-f", conf, "-DFOREGROUND"), filepath.Join(dir, "out"))
		check(t, err)
		t.Cleanup(func() { p.Stop() })
		for range 6000 {
			if lab.Listening(port) {
				return dir, port
			}
			select {
			case <-p.Done():
			case <-time.After(10 * time.Millisecond):
				continue
			}
			break
		}
		if out := p.Output(); !strings.Contains(out, "Address already in use") {
			log, _ := os.ReadFile(filepath.Join(dir, "error.log"))
			t.Fatalf("Apache does not listen:\n%s%s", out, log)
		}
	}
	t.Fatal("no port for Apache")
	return "", 0
}
