// Package files tests the file system of gssproxyd whole: shells and programs of others as its
// clients, and a real KDC.
package files

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"gssproxyd/interposer"
	"gssproxyd/interposer/negotiate"
	"gssproxyd/tests/lab"
)

var shared struct {
	once  sync.Once
	realm *lab.Realm
	err   error
}

func TestMain(m *testing.M) {
	unix.Umask(0o022)
	code := m.Run()
	if r := shared.realm; r != nil {
		if err := r.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mount is a daemon, and its file system mounted.
type mount struct {
	*lab.Realm
	*lab.Daemon
	dir   string
	heard []*output // all that was read and said there
}

// users of the configuration below: one who accepts and initiates, one who initiates, one who has no
// service.
var (
	both     = lab.User{UID: 2001, GID: 2001}
	client   = lab.User{UID: 2002, GID: 2002}
	stranger = lab.User{UID: 2003, GID: 2003}
)

// realm returns the realm that the tests share.
func realm(t testing.TB) *lab.Realm {
	t.Helper()
	lab.Require(t)
	shared.once.Do(func() {
		if shared.realm, shared.err = lab.Up(context.Background()); shared.err == nil {
			shared.err = shared.realm.RandKey("HTTP/" + lab.Host)
		}
	})
	check(t, shared.err)
	return shared.realm
}

// newMount starts a daemon and has it serve a mount, until the test ends. Its configuration has more
// after it; change changes how it is started.
func newMount(t testing.TB, more string, change ...func(*lab.Options)) *mount {
	t.Helper()
	r := realm(t)
	services, err := r.Keytab("services.keytab", "HTTP/"+lab.Host)
	check(t, err)
	alice, err := r.Keytab("alice.keytab", "alice")
	check(t, err)
	config := "[gssproxy]\n  debug_level = 1\n"
	for _, s := range []struct {
		name  string
		uid   uint32
		usage string
	}{{"both", both.UID, "both"}, {"client", client.UID, "initiate"}, {"root", 0, "accept"}} {
		config += fmt.Sprintf("[service/%s]\n  mechs = krb5\n  euid = %d\n  cred_store = keytab:%s\n  cred_store = client_keytab:%s\n  cred_store = ccache:MEMORY:%s\n  cred_usage = %s\n",
			s.name, s.uid, services, alice, s.name, s.usage)
	}
	o := lab.Options{Keytab: services, Config: config + strings.NewReplacer("SERVICES", services, "ALICE", alice).Replace(more)}
	for _, f := range change {
		f(&o)
	}
	d, err := r.Ours(o)
	check(t, err)
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(d.Output())
		}
	})
	m := &mount{Realm: r, Daemon: d, dir: r.Path("fs")}
	check(t, os.Mkdir(m.dir, 0o755))
	check(t, m.command("mount"))
	t.Cleanup(func() {
		if err := m.command("umount"); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		if !t.Failed() { // or nothing may be there to be read
			m.scan(t)
		}
	})
	return m
}

// command runs gssproxyd mount or umount.
func (m *mount) command(name string) error {
	cmd := exec.Command(cmp.Or(m.Options.Binary, m.Gssproxyd), name, "-c", filepath.Join(m.Options.Dir, "gssproxy.conf"), "-s", m.Socket, m.dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("gssproxyd %s: %w: %s", name, err, out)
	}
	return nil
}

// output is what a program has printed so far, or was read.
type output struct {
	what string
	mu   sync.Mutex
	b    strings.Builder
}

// hears returns where something goes that is looked at for keys in the end.
func (m *mount) hears(what string) *output {
	o := &output{what: what}
	m.heard = append(m.heard, o)
	return o
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// as returns a program of a user's, in a session of its own, in a directory that is the user's.
func (m *mount) as(t testing.TB, u lab.User, home string, argv ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*lab.Patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = home
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + home, "CURL_HOME=" + home}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: u.UID, Gid: u.GID}}
	return cmd
}

// start starts one.
func (m *mount) start(t testing.TB, u lab.User, home string, argv ...string) (*exec.Cmd, *output) {
	t.Helper()
	cmd := m.as(t, u, home, argv...)
	out := m.hears(fmt.Sprintf("what is said by a program of uid %d", u.UID))
	cmd.Stdout, cmd.Stderr = out, out
	check(t, cmd.Start())
	return cmd, out
}

// run runs a program to its end.
func (m *mount) run(t testing.TB, u lab.User, argv ...string) (string, error) {
	t.Helper()
	cmd, out := m.start(t, u, m.home(t, u), argv...)
	err := cmd.Wait()
	return out.String(), err
}

func (m *mount) sh(t testing.TB, u lab.User, script string) (string, error) {
	t.Helper()
	return m.run(t, u, "/bin/bash", "-c", script)
}

func (m *mount) home(t testing.TB, u lab.User) string {
	t.Helper()
	home, err := m.MkdirFor(u, "home")
	check(t, err)
	return home
}

// block is an example of a page.
var block = regexp.MustCompile("(?ms)^```(sh|python)\n(.*?)^```")

// TestPage: the examples of docs/files.md, as they stand there, by a user who owns nothing.
func TestPage(t *testing.T) {
	m := newMount(t, "")
	page, err := os.ReadFile("../../docs/files.md")
	check(t, err)
	port := webServer(t, m)
	adapt := strings.NewReplacer("/run/gssproxyd/fs", m.dir, "http://www.example.com/", fmt.Sprintf("http://%s:%d/", lab.Host, port), "www.example.com", lab.Host)
	var examples [][2]string
	for _, b := range block.FindAllStringSubmatch(string(page), -1) {
		examples = append(examples, [2]string{b[1], adapt.Replace(b[2])})
	}
	if len(examples) != 8 {
		t.Fatalf("docs/files.md has %d examples; this test knows 8", len(examples))
	}
	says := func(i int, words ...string) {
		t.Helper()
		argv := []string{"/bin/bash", "-e", "-c"}
		if examples[i][0] == "python" {
			argv = []string{"/usr/bin/python3", "-c"}
		}
		home := m.home(t, both)
		check(t, os.WriteFile(filepath.Join(home, ".curlrc"), fmt.Appendf(nil, "resolve = \"%s:%d:127.0.0.1\"\n", lab.Host, port), 0o644))
		cmd, out := m.start(t, both, home, append(argv, examples[i][1])...)
		err := cmd.Wait()
		for _, w := range words {
			if err != nil || !strings.Contains(out.String(), w) {
				t.Errorf("example %d: %v; %q is not in:\n%s", i, err, w, out)
			}
		}
	}
	examples[1][1] = examples[0][1] + examples[1][1] // it goes on
	says(1, "krb5\n", "accept\ngetmic\ninit\n", `"token":"`, `"established":false`, `"initiator":"alice@`+lab.Name, `"established":true,"context":"`)
	says(2, "alice@"+lab.Name+" is here\nhello\n")
	says(3, "hello alice@"+lab.Name)
	says(4, "alice@"+lab.Name+" is alice here", "'verified': True")

	// The one that listens is the service, and the one that talks the same user or another one.
	for _, talks := range []lab.User{both, client} {
		home := m.home(t, both)
		pipes, out := m.start(t, both, home, "/bin/bash", "-c", examples[5][1]+"chmod 666 here there\n")
		if err := pipes.Wait(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		listener, heard := m.start(t, both, home, "/bin/bash", "-e", "-c", examples[6][1])
		talker, said := m.start(t, talks, home, "/bin/bash", "-e", "-c", examples[7][1])
		if err := talker.Wait(); err != nil {
			t.Errorf("uid %d, who talks: %v\n%s", talks.UID, err, said)
			listener.Process.Kill()
		}
		if err := listener.Wait(); err != nil || heard.String() != "hello through a pipe\n" {
			t.Errorf("uid %d, who listens to uid %d: %v\n%s", both.UID, talks.UID, err, heard)
		}
	}
}

// webServer is a server behind Negotiate, with the daemon's socket.
func webServer(t testing.TB, m *mount) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	gss := interposer.New(m.Socket, interposer.Options{})
	t.Cleanup(func() { gss.Close() })
	srv := &http.Server{Handler: (&negotiate.Authenticator{Daemon: gss}).Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "hello", negotiate.ClientFrom(r.Context()).Name)
	}))}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

// TestListing: what is listed is what the policy lets, and status says why not the rest.
func TestListing(t *testing.T) {
	m := newMount(t, "")
	for _, c := range []struct {
		user   lab.User
		list   string
		status string
	}{
		{both, "accept\ngetmic\ninit\nnames\nunwrap\nverifymic\nwrap\n", "accept: would be done"},
		{client, "getmic\ninit\nnames\nunwrap\nverifymic\nwrap\n", "usage-not-allowed"},
		{stranger, "", "no-service-for-uid"},
	} { // what the configuration has for others is root's to read
		out, err := m.sh(t, c.user, "ls "+m.dir+"/modules/krb5/operations")
		if err != nil || out != c.list {
			t.Errorf("uid %d: ls: %v\n%s", c.user.UID, err, out)
		}
		out, err = m.sh(t, c.user, "cat "+m.dir+"/modules/krb5/status")
		if err != nil || !strings.Contains(out, c.status) || strings.Count(out, "service/") > 1 || strings.Contains(out, fmt.Sprint("not ", c.user.UID)) {
			t.Errorf("uid %d: status: %v\n%s", c.user.UID, err, out)
		}
	}
}

// TestStatus: status says what gssproxyd explain --pid says of the same process, but to root alone what services there are for
// others.
func TestStatus(t *testing.T) {
	m := newMount(t, "[service/group]\n  mechs = krb5\n  euid = 0\n  allow_any_uid = yes\n  group = 2900\n  cred_store = keytab:SERVICES\n  cred_usage = accept\n  operations = names\n")
	for _, c := range []struct {
		user lab.User
		says []string
	}{
		{lab.Root, []string{"service/both ", "service/root ", "accept: would be done", "initiate: refused, usage-not-allowed", "names: would be done"}},
		{both, []string{"service/both ", "accept: would be done", "initiate: would be done", "names: would be done"}},
		{client, []string{"service/client ", "accept: refused, usage-not-allowed", "initiate: would be done"}},
		{stranger, []string{"refused, group-mismatch: service/group "}},
		{lab.User{UID: 2004, GID: 2900}, []string{"service/group ", "accept: refused, ", "names: would be done"}},
	} {
		s := m.session(t, c.user)
		status := s.must("read", "modules/krb5/status")
		out, err := m.Administer(lab.Root, "explain", "--pid", fmt.Sprint(s.pid), "--operation", "accept,initiate,names")
		if (err != nil) != (c.user == stranger) { // whom it refuses
			t.Errorf("explain: %v", err)
		}
		var want strings.Builder
		for line := range strings.Lines(out) {
			others := strings.HasPrefix(line, "service/") && !strings.HasSuffix(line, " matches\n") && c.user != lab.Root
			if !strings.HasPrefix(line, "caller: ") && !others {
				want.WriteString(line)
			}
		}
		if status != want.String() {
			t.Errorf("uid %d reads:\n%s\nexplain --pid says:\n%s", c.user.UID, status, out)
		}
		for _, words := range c.says {
			if !strings.Contains(status, words) {
				t.Errorf("uid %d does not read %q:\n%s", c.user.UID, words, status)
			}
		}
		if n := strings.Count(status, "service/"); n > 1 && c.user != lab.Root {
			t.Errorf("uid %d reads of %d services:\n%s", c.user.UID, n, status)
		}
	}
}
