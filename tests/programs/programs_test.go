package programs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gssproxyd/tests/lab"
)

// What is said of Debian's plugin is that of 0.9.1, which Debian 12 has.
var programs = []program{
	{name: "dovecot", user: "dovecot", service: "imap", start: dovecot, debians: map[string]string{
		"":         "User not authorized to log in as " + alice, // its names are not those that dovecot compares
		notAllowed: "While acquiring service credentials: (null)",
	}},
	{name: "squid", user: "proxy", service: "HTTP", start: squid, debians: map[string]string{
		"":           "BH gss_acquire_cred() failed: An invalid name was supplied", // a name without a type
		onlyInitiate: "BH gss_acquire_cred() failed: An invalid name was supplied",
		notAllowed:   "BH gss_acquire_cred() failed: An invalid name was supplied",
	}},
	{name: "java", user: "nobody", service: "java", start: java, debians: map[string]string{
		notAllowed: "Failure unspecified at GSS-API level (Mechanism level: )",
	}},
	{name: "gunicorn", user: "www-data", service: "web", start: gunicorn, debians: map[string]string{
		notAllowed: "gss_display_status call returned failure",
	}},
}

const flags = lab.Usual | lab.Mutual

// alice is who the programs are to find.
const alice = "alice@" + lab.Name

// established is the end of an exchange: the name that the server heard, and its token.
func established(client *lab.Tool, id int, name, token string) error {
	if name != alice {
		return fmt.Errorf("it takes her for %q", name)
	}
	b, err := base64.StdEncoding.DecodeString(token)
	if err != nil {
		return err
	}
	if complete, _, err := client.Step(id, b); err != nil || !complete {
		return fmt.Errorf("the context is not complete: %w", err)
	}
	return nil
}

// heard is established, and a message that the server has wrapped.
func heard(client *lab.Tool, id int, name, token, message string) error {
	if err := established(client, id, name, token); err != nil {
		return err
	}
	b, err := base64.StdEncoding.DecodeString(message)
	if err != nil {
		return err
	}
	got, sealed, _, err := client.Unwrap(id, b)
	if err != nil || string(got) != "hello" || !sealed {
		return fmt.Errorf("unwrapped %q, confidentiality %v: %w", got, sealed, err)
	}
	return nil
}

const dovecotConf = `base_dir = %[1]s/run
state_dir = %[1]s/state
log_path = /dev/stderr
auth_verbose = yes
auth_failure_delay = 0
protocols = imap
listen = 127.0.0.1
ssl = no
auth_mechanisms = gssapi
auth_username_format = %%u
auth_gssapi_hostname = ` + lab.Host + `
import_environment = %[3]s
passdb {
  driver = static
  args = nopassword=yes
}
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
userdb {
  driver = static
  args = uid=%[4]d gid=%[5]d home=%[1]s/mail allow_all_users=yes
}
mail_location = maildir:~/
service imap-login {
  inet_listener imap {
    port = %[2]d
  }
  inet_listener imaps {
    port = 0
  }
}
`

// dovecot is the IMAP server: its process auth, of a user of its own, is what accepts.
func dovecot(t *testing.T, r *lab.Realm, u lab.User, _ string, env []string) server {
	dir, err := r.MkdirFor(lab.Root, "dovecot")
	check(t, err)
	check(t, os.Mkdir(filepath.Join(dir, "mail"), 0o700))
	check(t, os.Chown(filepath.Join(dir, "mail"), int(lab.Nobody.UID), int(lab.Nobody.GID)))
	port, err := lab.FreePort()
	check(t, err)
	cmd := r.Command(lab.Root, env, "/usr/sbin/dovecot", "-F", "-c", filepath.Join(dir, "conf"))
	check(t, os.WriteFile(filepath.Join(dir, "conf"), fmt.Appendf(nil, dovecotConf, dir, port, strings.Join(cmd.Env, " "), lab.Nobody.UID, lab.Nobody.GID), 0o600))
	p, err := r.Start(cmd, filepath.Join(dir, "log"))
	check(t, err)
	t.Cleanup(func() { p.Stop() })
	await(t, p, "listen", func() bool { return lab.Listening(port) })
	return func(alice *lab.Tool) error {
		before := len(p.Output())
		if err := login(alice, port); err != nil {
			return fmt.Errorf("%w; its log: %s", err, p.Output()[before:])
		}
		return nil
	}
}

// login is an IMAP client (RFC 9051, RFC 4752) that logs in and out.
func login(client *lab.Tool, port int) error {
	c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(lab.Patience))
	in := bufio.NewReader(c)
	expect := func(prefix string) (string, error) {
		for {
			line, err := in.ReadString('\n')
			line = strings.TrimRight(line, "\r\n")
			if err != nil {
				return "", err
			}
			if rest, ok := strings.CutPrefix(line, prefix); ok {
				return rest, nil
			}
			if !strings.HasPrefix(line, "* ") {
				return "", fmt.Errorf("the server says %q", line)
			}
		}
	}
	// say sends a line, base64 if it is bytes, and returns the bytes that the server answers.
	say := func(line any) ([]byte, error) {
		if b, ok := line.([]byte); ok {
			line = base64.StdEncoding.EncodeToString(b)
		}
		fmt.Fprintf(c, "%s\r\n", line)
		answer, err := expect("+ ")
		if err != nil {
			return nil, err
		}
		return base64.StdEncoding.DecodeString(answer)
	}
	id, token, err := client.Init("imap@"+lab.Host, flags, nil)
	if err != nil {
		return err
	}
	if _, err := expect("* OK"); err != nil {
		return err
	}
	if _, err := say("a AUTHENTICATE GSSAPI"); err != nil {
		return err
	}
	if token, err = say(token); err != nil {
		return err
	}
	complete, _, err := client.Step(id, token)
	if err != nil || !complete {
		return fmt.Errorf("the context is not complete: %w", err)
	}
	layers, err := say("")
	if err != nil {
		return err
	}
	if layers, _, _, err = client.Unwrap(id, layers); err != nil || len(layers) != 4 || layers[0]&1 == 0 {
		return fmt.Errorf("layers %x: %w", layers, err)
	}
	answer, err := client.Wrap(id, false, append([]byte{1, 0, 0, 0}, alice...))
	if err != nil {
		return err
	}
	fmt.Fprintf(c, "%s\r\n", base64.StdEncoding.EncodeToString(answer))
	if _, err := expect("a OK"); err != nil {
		return err
	}
	fmt.Fprint(c, "b LOGOUT\r\n")
	_, err = expect("b OK")
	return err
}

// lines is a program that answers each line with one.
type lines struct {
	*lab.Process
	in  io.Writer
	out *bufio.Reader
}

// startLines starts one as user u.
func startLines(t *testing.T, r *lab.Realm, u lab.User, env []string, path string, args ...string) *lines {
	t.Helper()
	var ends [4]*os.File
	for i := 0; i < 4; i += 2 {
		var err error
		ends[i], ends[i+1], err = os.Pipe()
		check(t, err)
	}
	stdin, in, out, stdout := ends[0], ends[1], ends[2], ends[3]
	cmd := r.Command(u, env, "/bin/sh", append([]string{"-c", `exec "$0" "$@" >&3 3>&-`, path}, args...)...)
	cmd.Stdin, cmd.ExtraFiles = stdin, []*os.File{stdout}
	p, err := r.Start(cmd, r.Path("log"))
	check(t, err)
	stdin.Close()
	stdout.Close()
	t.Cleanup(func() {
		in.Close()
		p.Kill()
		out.Close()
	})
	return &lines{p, in, bufio.NewReader(out)}
}

// ask is one line and its answer.
func (l *lines) ask(line string) (string, error) {
	timer := time.AfterFunc(lab.Patience, func() { l.Cmd.Process.Kill() })
	defer timer.Stop()
	if _, err := fmt.Fprintln(l.in, line); err != nil {
		return "", fmt.Errorf("%w: %s", err, l.Output())
	}
	answer, err := l.out.ReadString('\n')
	if err != nil {
		<-l.Done()
		return "", fmt.Errorf("%w: %w: %s", err, l.Err(), l.Output())
	}
	return strings.TrimSuffix(answer, "\n"), nil
}

// squid is what asks for the proxy who a user is: a token a line.
func squid(t *testing.T, r *lab.Realm, u lab.User, service string, env []string) server {
	l := startLines(t, r, u, env, "/usr/lib/squid/negotiate_kerberos_auth", "-s", strings.Replace(service, "@", "/", 1))
	return func(client *lab.Tool) error {
		id, token, err := client.Init(service, flags, nil)
		if err != nil {
			return err
		}
		answer, err := l.ask("YR " + base64.StdEncoding.EncodeToString(token))
		if err != nil {
			return err
		}
		var reply, user string
		for _, word := range strings.Fields(answer) {
			if v, ok := strings.CutPrefix(word, "token="); ok {
				reply = v
			} else if v, ok := strings.CutPrefix(word, "user="); ok {
				user = v
			}
		}
		if !strings.HasPrefix(answer, "OK ") {
			return errors.New(answer)
		}
		return established(client, id, user, reply)
	}
}

// java is a program whose JGSS is the native one, which is to say libgssapi.
func java(t *testing.T, r *lab.Realm, u lab.User, service string, env []string) server {
	source := installed(t, r, lab.Root, "Acceptor.java")
	l := startLines(t, r, u, env, "/usr/lib/jvm/default-java/bin/java", "-Dsun.security.jgss.native=true",
		"-Djavax.security.auth.useSubjectCredsOnly=false", source, service)
	return func(client *lab.Tool) error {
		id, token, err := client.Init(service, flags, nil)
		if err != nil {
			return err
		}
		answer, err := l.ask(base64.StdEncoding.EncodeToString(token))
		if err != nil {
			return err
		}
		if f := strings.Fields(answer); len(f) == 4 && f[0] == "OK" {
			return heard(client, id, f[1], f[2], f[3])
		}
		return errors.New(answer)
	}
}

const workers = 3

// gunicorn is a web server whose processes are forked after the application has acquired its
// credential. Each of them has to serve alice.
func gunicorn(t *testing.T, r *lab.Realm, u lab.User, service string, env []string) server {
	dir := filepath.Dir(installed(t, r, u, "application.py"))
	socket := filepath.Join(dir, "socket")
	env = append(env, "SERVICE="+service, fmt.Sprintf("WORKERS=%d", workers), "PYTHONDONTWRITEBYTECODE=1")
	p, err := r.Start(r.Command(u, env, "/usr/bin/gunicorn", "--preload", "--workers", fmt.Sprint(workers), "--timeout", "120",
		"--bind", "unix:"+socket, "--chdir", dir, "application"), filepath.Join(dir, "log"))
	check(t, err)
	t.Cleanup(func() { p.Stop() })
	check(t, p.WaitOutput("Listening at", lab.Patience))
	web := &http.Client{Timeout: lab.Patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	get := func(client *lab.Tool) (pid string, err error) {
		id, token, err := client.Init(service, flags, nil)
		if err != nil {
			return "", err
		}
		q, err := http.NewRequest("GET", "http://"+lab.Host+"/", nil)
		if err != nil {
			return "", err
		}
		q.Header.Set("Authorization", "Negotiate "+base64.StdEncoding.EncodeToString(token))
		res, err := web.Do(q)
		if err != nil {
			return "", fmt.Errorf("%w\n%s", err, p.Output())
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			return "", err
		}
		f := bytes.Fields(b)
		if res.StatusCode != 200 || len(f) != 4 {
			return "", fmt.Errorf("%s: %s", res.Status, b)
		}
		return string(f[3]), heard(client, id, string(f[0]), string(f[1]), string(f[2]))
	}
	return func(client *lab.Tool) error {
		var (
			all  sync.WaitGroup
			pids [workers]string
			errs [workers]error
		)
		for i := range workers {
			all.Go(func() { pids[i], errs[i] = get(client) })
		}
		all.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			return err
		}
		seen := map[string]bool{}
		for _, pid := range pids {
			seen[pid] = true
		}
		if len(seen) != workers {
			return fmt.Errorf("answers of %v, not of %d processes", pids, workers)
		}
		return nil
	}
}

// installed is a copy of a file of testdata in a new directory of the user's.
func installed(t *testing.T, r *lab.Realm, u lab.User, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	check(t, err)
	dir, err := r.MkdirFor(u, "program")
	check(t, err)
	path := filepath.Join(dir, name)
	check(t, os.WriteFile(path, b, 0o644))
	return path
}
