package files

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/interposer"
	"gssproxyd/mech"
	"gssproxyd/rpc"
	"gssproxyd/tests/lab"
)

// asks has this program, run as somebody else, ask once over the socket and once through a file.
const asks = "GSSPROXYD_TEST_ASKS"

func init() {
	if os.Getenv(asks) != "" {
		fmt.Println(asked(os.Args[1], os.Args[2], os.Args[3], os.Args[4]))
		os.Exit(0)
	}
}

// noService is what is answered to who has no service.
const noService = "no service"

// asked asks for an operation and returns the answer's reason.
func asked(way, where, operation, argument string) string {
	if way == "socket" {
		return overSocket(where, operation, argument)
	}
	return throughFile(where, operation, argument)
}

func overSocket(socket, operation, argument string) string {
	ctx, cancel := context.WithTimeout(context.Background(), lab.Patience)
	defer cancel()
	c := interposer.New(socket, interposer.Options{})
	defer c.Close()
	var err error
	switch operation {
	case "init":
		_, _, err = c.InitSecContext(ctx, interposer.InitRequest{Cred: interposer.ServiceCred, Target: interposer.HostbasedName(argument, ""), Mech: mech.KRB5,
			Flags: mech.FlagMutual | mech.FlagReplay | mech.FlagSequence | mech.FlagConf | mech.FlagInteg})
	case "accept":
		_, _, err = c.AcceptSecContext(ctx, interposer.AcceptRequest{Token: []byte(argument)})
	case "names":
		_, err = c.ImportName(ctx, interposer.Principal(argument), mech.KRB5)
	}
	m, known := errors.AsType[*mech.Error](err)
	switch {
	case err == nil:
		return "done"
	case errors.Is(err, rpc.ErrNoAnswer):
		return noService
	case known:
		return string(m.Reason)
	}
	return err.Error()
}

func throughFile(dir, operation, argument string) string {
	f, err := os.OpenFile(filepath.Join(dir, "modules/krb5/operations", operation, "transact"), os.O_RDWR, 0)
	if errors.Is(err, syscall.EACCES) {
		return noService
	} else if err != nil {
		return err.Error()
	}
	defer f.Close()
	question := map[string]any{"init": map[string]string{"target": argument}, "accept": map[string][]byte{"token": []byte(argument)}, "names": map[string]string{"name": argument}}[operation]
	b, err := json.Marshal(question)
	if err != nil {
		return err.Error()
	}
	_, refused := f.Write(b)
	buf := make([]byte, 1<<20)
	n, err := f.Read(buf)
	if err != nil {
		return err.Error()
	}
	var answer struct{ Reason string }
	if err := json.Unmarshal(buf[:n], &answer); err != nil {
		return err.Error()
	}
	switch {
	case (refused == nil) != (answer.Reason == ""):
		return fmt.Sprintf("write: %v, and %s", refused, buf[:n])
	case refused == nil:
		return "done"
	}
	return answer.Reason
}

// program copies this program to where everybody can run it.
func (m *mount) program(t testing.TB, name string) string {
	t.Helper()
	self, err := os.Executable()
	check(t, err)
	b, err := os.ReadFile(self)
	check(t, err)
	path := m.Path(name)
	check(t, os.WriteFile(path, b, 0o755))
	return path
}

// TestOneAnswer: over the socket and through files one caller has one answer, reason for reason.
func TestOneAnswer(t *testing.T) {
	const more = `
[service/group]
  mechs = krb5
  euid = 0
  allow_any_uid = yes
  group = 2900
  cred_store = client_keytab:ALICE
  cred_store = ccache:MEMORY:group
  cred_usage = initiate
  targets = host/*@*
[service/program]
  mechs = krb5
  euid = 2005
  program = PROGRAM
  cred_store = keytab:SERVICES
  cred_usage = accept
  operations = accept
`
	r := realm(t)
	path := r.Path("askone")
	m := newMount(t, strings.ReplaceAll(more, "PROGRAM", path))
	one, other := m.program(t, filepath.Base(path)), m.program(t, "askother")
	if one != path {
		check(t, os.Rename(one, path))
	}
	ours, unknown := "HTTP@"+lab.Host, "nobody@"+lab.Host
	type caller struct {
		name    string
		user    lab.User
		groups  []uint32
		program string
	}
	seen := map[string]bool{}
	for _, c := range []caller{
		{"both", both, nil, path}, {"client", client, nil, path}, {"stranger", stranger, nil, path},
		{"a member of the group", lab.User{UID: 2004, GID: 2004}, []uint32{2900}, path},
		{"no member", lab.User{UID: 2004, GID: 2004}, []uint32{2901}, path},
		{"the program", lab.User{UID: 2005, GID: 2005}, nil, path},
		{"another program", lab.User{UID: 2005, GID: 2005}, nil, other},
		{"root", lab.User{}, nil, path},
	} {
		for _, q := range [][2]string{{"init", ours}, {"init", unknown}, {"accept", "no token"}, {"names", "alice@" + lab.Name}} {
			var answers [2]string
			for i, way := range []string{"socket", "file"} {
				where := map[string]string{"socket": m.Socket, "file": m.dir}[way]
				cmd := exec.CommandContext(t.Context(), c.program, way, where, q[0], q[1])
				cmd.Env = []string{asks + "=1", "KRB5_CONFIG=" + m.Conf, "GORACE=atexit_sleep_ms=0"}
				cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: c.user.UID, Gid: c.user.GID, Groups: c.groups}}
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				answers[i] = strings.TrimSpace(string(out))
			}
			if answers[0] != answers[1] {
				t.Errorf("%s, %s %s: over the socket %q, through a file %q", c.name, q[0], q[1], answers[0], answers[1])
			}
			seen[answers[0]] = true
		}
	}
	for _, want := range []string{"done", noService, "usage-not-allowed", "target-not-allowed", "operation-not-allowed"} {
		if !seen[want] {
			t.Errorf("nobody is told %s: %v", want, seen)
		}
	}
}

const inInit = "/modules/krb5/operations/init/"

// TestSomebodyElses: a program that has more rights and is made to write to a path does nothing, a
// descriptor that is handed on asks as who opened it, and who acts with ids of others is nobody.
func TestSomebodyElses(t *testing.T) {
	audit := realm(t).Path("audit.log")
	m := newMount(t, "", func(o *lab.Options) {
		o.Config = strings.Replace(o.Config, "[gssproxy]\n", "[gssproxy]\n  audit = "+audit+"\n", 1)
	})
	ask := `{"target":"HTTP@` + lab.Host + `"}`
	user := m.session(t, both)
	dir := user.execution("init", "x")
	user.must("write", dir+"/inputs", ask)
	user.must("cd", dir)
	// Of an execution root finds nothing by its path, but by one that leads to where a process of the user's is.
	his := fmt.Sprintf("/proc/%d/cwd/", user.pid)
	for _, c := range []struct {
		path, text string
		want       error
	}{
		{m.dir + inInit + "transact", ask, unix.EACCES},
		{his + "inputs", ask, unix.EACCES}, {his + "control", "execute", unix.EACCES},
		{m.dir + "/" + dir + "/inputs", ask, unix.ENOENT}, {m.dir + "/" + dir + "/control", "execute", unix.ENOENT},
	} {
		// as programs open that write where they are told to: a log, a core, a copy
		for _, flags := range []int{os.O_WRONLY, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_CREATE, os.O_WRONLY | os.O_APPEND} {
			f, err := os.OpenFile(c.path, flags, 0o600)
			if err == nil {
				_, err = f.WriteString(c.text)
				f.Close()
			}
			if !errors.Is(err, c.want) {
				t.Errorf("root writes to %s of a user, with flags %#x: %v, want %v", c.path, flags, err, c.want)
			}
		}
	}
	for file, want := range map[string]string{"inputs": ask, "outputs": "", "error": ""} {
		if text := user.must("read", dir+"/"+file); text != want {
			t.Errorf("after root was made to write, %s has %q, want %q", file, text, want)
		}
	}
	if a := user.step(dir, fields{"target": "HTTP@" + lab.Host}); len(a.Token) == 0 {
		t.Errorf("the execution that root was made to write to: %+v", a)
	}

	out, err := m.sh(t, lab.User{}, `python3 - <<'END'
import os, json
def become(uid):
    os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
import socket
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
if os.fork() == 0:
    become(2002)
    fd = os.open("`+m.dir+inInit+`transact", os.O_RDWR)
    socket.send_fds(a, [b"x"], [fd])
    os._exit(0)
os.wait()
become(2003)
_, fds, _, _ = socket.recv_fds(b, 1, 1)
os.write(fds[0], b'`+ask+`')
print(json.loads(os.read(fds[0], 1 << 20))["established"])
try:
    os.open("`+m.dir+inInit+`transact", os.O_RDWR)
except OSError as e:
    print(e.errno)
END`)
	if err != nil || out != "False\n13\n" {
		t.Errorf("a descriptor that was handed on: %v: %s", err, out)
	}
	lab.Await(t, "an event that names the opener", func() bool {
		b, _ := os.ReadFile(audit)
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, `"uid":2002`) && strings.Contains(line, "HTTP/"+lab.Host) {
				return true
			}
		}
		return false
	})

	// setfsuid: root acts as a user for files only, as an NFS server does.
	out, err = m.sh(t, lab.User{}, `python3 - <<'END'
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.setfsgid(2001); libc.setfsuid(2001)
for name in ("modules/krb5/status", "modules/krb5/operations/init/transact"):
    try:
        os.open("`+m.dir+`/" + name, os.O_RDWR if name.endswith("transact") else os.O_RDONLY)
        print("opened")
    except OSError as e:
        print(e.errno)
for f, name in (os.mkdir, "y"), (os.rmdir, "x"):
    try:
        f("`+m.dir+inInit+`execution/" + name)
        print("done")
    except OSError as e:
        print(e.errno)
END`)
	if err != nil || out != "13\n13\n13\n13\n" {
		t.Errorf("setfsuid: %v: %s", err, out)
	}
	if text := user.must("read", dir+"/inputs"); text != ask {
		t.Errorf("after that the user's execution has the inputs %q", text)
	}
}

// TestOverlay: an overlay reads what is below it as who has mounted it, which is root, whoever asks: nobody gets an answer there
// that depends on who asks.
func TestOverlay(t *testing.T) {
	m := newMount(t, "")
	above, below := m.Path("overlay"), m.Path("below")
	check(t, os.Mkdir(above, 0o755))
	check(t, os.Mkdir(below, 0o755))
	check(t, os.WriteFile(below+"/here", []byte("below\n"), 0o644))
	_, err := os.Stat(m.dir) // or the overlay's root has no mode: it asks nobody
	check(t, err)
	if err := unix.Mount("overlay", above, "overlay", 0, "lowerdir="+m.dir+":"+below); err != nil {
		lab.Lacking(t, "mount(2)", err)
	}
	defer unix.Unmount(above, unix.MNT_DETACH)
	for _, c := range []struct{ do, says string }{
		{"cat here; ls modules; ls modules/krb5", `^below\nkrb5\noperations\nstatus$`}, // it is an overlay, of both
		{"cat modules/krb5/status", `: Permission denied$`},
		{"ls modules/krb5/operations", `: Permission denied$`},
		{"cat modules/krb5/operations/init/transact", `: (Permission denied|Stale file handle)$`}, // each look-up finds another file
		{"exec 3<>modules/krb5/operations/init/transact", `: (Permission denied|Stale file handle)$`},
		{"mkdir modules/krb5/operations/init/execution/x", `: Read-only file system$`},
	} {
		if out, _ := m.sh(t, both, "cd "+above+" && { "+c.do+"; }"); !regexp.MustCompile(c.says).MatchString(strings.TrimSpace(out)) {
			t.Errorf("%s: %q, want %q", c.do, out, c.says)
		}
	}
	if out, err := m.sh(t, both, "cat "+m.dir+"/modules/krb5/status"); err != nil || !strings.Contains(out, "would be done") {
		t.Errorf("beside the overlay: %v: %s", err, out)
	}
}

// TestNamespace: numbers of processes mean nothing to a daemon, or for a mount, in a pid namespace of
// its own, and both say so.
func TestNamespace(t *testing.T) {
	m := newMount(t, "")
	dir := m.Path("other")
	check(t, os.Mkdir(dir, 0o755))
	conf := filepath.Join(m.Options.Dir, "gssproxy.conf")
	out, err := exec.Command("unshare", "-p", "-f", "--mount-proc", m.Gssproxyd, "mount", "-c", conf, "-s", m.Socket, dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "pid namespace") {
		t.Errorf("mounted from a pid namespace: %v: %s", err, out)
	}
	// A daemon there, and a mount of the host's.
	wrapped := m.Path("wrapped")
	check(t, os.WriteFile(wrapped, fmt.Appendf(nil, "#!/bin/sh\nexec unshare -p -f --mount-proc --kill-child=KILL %s \"$@\"\n", m.Gssproxyd), 0o755))
	d, err := m.Ours(lab.Options{Keytab: m.Options.Keytab, Binary: wrapped})
	check(t, err)
	defer d.Kill()
	out, err = exec.Command(m.Gssproxyd, "mount", "-c", filepath.Join(d.Options.Dir, "gssproxy.conf"), "-s", d.Socket, dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "pid namespace") {
		t.Errorf("served from a pid namespace: %v: %s", err, out)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	check(t, err)
	if strings.Contains(string(mounts), dir) {
		t.Errorf("%s is left mounted", dir)
	}
}

// stuck returns the processes in state D of users of this test.
func stuck(t testing.TB) (list []string) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/task/*/status")
	check(t, err)
	for _, name := range dirs {
		b, err := os.ReadFile(name)
		if err == nil && bytes.Contains(b, []byte("\nState:\tD")) && bytes.Contains(b, []byte("\nUid:\t20")) {
			list = append(list, string(b[:bytes.IndexByte(b, '\n')]))
		}
	}
	return list
}

// newSilent is newMount with a KDC that does not answer before it is told to. It says when it is asked.
func newSilent(t testing.TB) (m *mount, asked <-chan struct{}, answer func()) {
	t.Helper()
	relay, err := realm(t).Relay()
	check(t, err)
	t.Cleanup(func() { relay.Close() })
	ask, told := make(chan struct{}, 100), make(chan struct{})
	relay.Set(func(ctx context.Context, answer func() []byte) []byte {
		select {
		case ask <- struct{}{}:
		default:
		}
		select {
		case <-told:
			return answer()
		case <-ctx.Done():
			return nil
		}
	})
	m = newMount(t, "", func(o *lab.Options) { o.Krb5Conf = relay.Conf })
	answer = sync.OnceFunc(func() { close(told) })
	t.Cleanup(func() { // before the tree is read
		answer()
		if t.Failed() {
			return
		}
		s := m.session(t, client)
		lab.Await(t, "the KDC is asked again", func() bool { return s.ask("", "init", fields{"target": "HTTP@" + lab.Host}).errno == "" })
	})
	return m, ask, answer
}

// TestKilled: who is killed while it waits for a KDC that does not answer is gone within the deadline.
func TestKilled(t *testing.T) {
	m, asked, _ := newSilent(t)
	cmd, _ := m.start(t, client, m.home(t, client), "/bin/bash", "-c", "exec 3<>"+m.dir+inInit+`transact; echo '{"target":"HTTP@`+lab.Host+`"}' >&3`)
	<-asked
	check(t, cmd.Process.Kill())
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	// Meanwhile others are served.
	if out, err := m.sh(t, both, "cat "+m.dir+"/modules/krb5/status && ls "+m.dir+"/modules/krb5/operations"); err != nil {
		t.Errorf("another user: %v: %s", err, out)
	}
	select {
	case <-gone:
	case <-time.After(lab.Patience):
		t.Fatal("who was killed is not gone")
	}
	lab.Await(t, "nothing is stuck", func() bool { return len(stuck(t)) == 0 })
}

// TestStopped: who is stopped, with everything open and a step under way, holds up nobody, and can be killed.
func TestStopped(t *testing.T) {
	m, asked, _ := newSilent(t)
	stopped, out := m.stopped(t, asked)
	m.goesOn(t)
	check(t, unix.Kill(-stopped.Process.Pid, unix.SIGKILL))
	stopped.Wait()
	lab.Await(t, "nothing is stuck", func() bool { return len(stuck(t)) == 0 })
	if out.String() != "open\n" {
		t.Errorf("who was stopped has said %q", out)
	}
}

// TestContinued: who is stopped within a step can go on.
func TestContinued(t *testing.T) {
	m, asked, answer := newSilent(t)
	stopped, out := m.stopped(t, asked)
	m.goesOn(t)
	continued(t, stopped, out, answer)
}

// TestNightlyStopped: a step that somebody was stopped in for a minute has ended meanwhile, others go on all the time, and he can
// go on too.
func TestNightlyStopped(t *testing.T) {
	lab.Nightly(t)
	m, asked, answer := newSilent(t)
	stopped, out := m.stopped(t, asked)
	for begun := time.Now(); time.Since(begun) < time.Minute; {
		m.goesOn(t)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", stopped.Process.Pid))
	if check(t, err); !bytes.Contains(stat, []byte(") T ")) || out.String() != "open\n" {
		t.Errorf("after a minute who was stopped is %s and has said %q", stat, out)
	}
	continued(t, stopped, out, answer)
}

// stopped starts a client's program with everything open, and stops it while it takes two steps. Before these have ended,
// another user is answered, and another process of the same one.
func (m *mount) stopped(t *testing.T, asked <-chan struct{}) (*exec.Cmd, *output) {
	t.Helper()
	others := []*session{m.session(t, both), m.session(t, client)}
	cmd, out := m.start(t, client, m.home(t, client), "/usr/bin/python3", "-u", "-c", calls+`
e = init + "execution/stopped"
os.mkdir(e)
os.chdir(e)
fd, control, inputs, here = transact(), os.open("control", os.O_WRONLY), os.open("inputs", os.O_RDWR), os.open(".", os.O_RDONLY)
os.write(inputs, ask)
print("open")
child = os.fork()
if child == 0:
    says("the step", lambda: os.write(control, b"execute"), 7, "ETIMEDOUT")
    os._exit(0)
says("the question", lambda: os.write(fd, ask), len(ask), "ETIMEDOUT")
os.waitpid(child, 0)
says("asked again", lambda: os.write(fd, ask), len(ask))
says("answered again", lambda: answer(fd)["established"], False)
says("the step again", lambda: os.write(control, b"execute"), 7)
says("its outputs", lambda: answer(os.open("outputs", os.O_RDONLY))["established"], False)
says("what is here", lambda: sorted(os.listdir(here)), ["control", "error", "inputs", "outputs"])
print("done")
`, m.dir, "HTTP@"+lab.Host)
	m.inSteps(t, asked, 2)
	check(t, unix.Kill(-cmd.Process.Pid, unix.SIGSTOP))
	for _, s := range others {
		if a := s.ask("", "names", fields{"name": "alice@" + lab.Name}); a.Name != "alice@"+lab.Name {
			t.Errorf("while another one is stopped: %+v", a)
		}
	}
	if strings.Contains(m.Output(), "reason=kdc-unreachable") {
		t.Error("others were not answered before the steps had ended of the one who is stopped")
	}
	return cmd, out
}

// inSteps waits until n calls of a client are under way, for which a KDC is asked.
func (m *mount) inSteps(t *testing.T, asked <-chan struct{}, n int) {
	t.Helper()
	call := regexp.MustCompile(fmt.Sprintf(`(?m)^.*msg=executing .*uid=%d .*procedure=INIT_SEC_CONTEXT .*$`, client.UID))
	lab.Await(t, "calls are under way", func() bool { return len(call.FindAllString(m.Output(), -1)) == n })
	<-asked
}

// goesOn has another user, and another process of the one who is stopped, do what can be done without a KDC.
func (m *mount) goesOn(t *testing.T) {
	t.Helper()
	for _, u := range []lab.User{both, client} {
		s := m.session(t, u)
		s.must("rmdir", s.execution("init", fmt.Sprint("beside ", u.UID)))
		s.must("walk")
		s.must("list", "contexts")
		s.must("list", operations+"init/execution")
		for range 2 {
			if a := s.ask("kept", "names", fields{"name": "alice@" + lab.Name}); a.Name != "alice@"+lab.Name {
				t.Errorf("uid %d, while another one is stopped: %+v", u.UID, a)
			}
		}
		s.end()
	}
}

// continued has who was stopped go on, and the KDC answer.
func continued(t *testing.T, stopped *exec.Cmd, out *output, answer func()) {
	t.Helper()
	answer()
	check(t, unix.Kill(-stopped.Process.Pid, unix.SIGCONT))
	if err := stopped.Wait(); err != nil || out.String() != "open\ndone\n" {
		t.Errorf("who was stopped and goes on: %v: %s", err, out)
	}
	lab.Await(t, "nothing is stuck", func() bool { return len(stuck(t)) == 0 })
}

// TestWalks: programs that read whatever there is come to an end, change nothing, copy no key and nothing
// that is another's, and leave nothing behind in the daemon.
func TestWalks(t *testing.T) {
	lab.NeedPrograms(t, "/usr/bin/rsync", "/usr/sbin/updatedb.plocate")
	m := newMount(t, "")
	keeper, kept := m.start(t, both, m.home(t, both), "/bin/bash", "-c", "cd "+m.dir+inInit+"execution; mkdir kept; echo hello >kept/inputs; echo kept; sleep 1000")
	defer func() { keeper.Process.Kill(); keeper.Wait() }()
	lab.Await(t, "an execution", func() bool { return kept.String() == "kept\n" })
	walk := func(u lab.User, do, succeeds string) {
		t.Helper()
		home := m.home(t, u)
		cmd, out := m.start(t, u, home, "/bin/bash", "-c", "cd "+m.dir+" && "+do)
		err := cmd.Wait()
		if !cmd.ProcessState.Exited() || succeeds != "" && (err != nil || !strings.Contains(out.String(), succeeds)) {
			t.Errorf("uid %d, %s: %v: %s", u.UID, do, err, out)
		}
		texts := map[string][]byte{"said": []byte(out.String())}
		check(t, filepath.WalkDir(home, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				texts[path], err = os.ReadFile(path)
			}
			return err
		}))
		for where, text := range texts {
			check(t, m.Scan(do+": "+where, text))
			if u == stranger && bytes.Contains(text, []byte("hello")) {
				t.Errorf("uid %d, %s: %s: what another one has written: %s", u.UID, do, where, text)
			}
		}
	}
	// A database of names, as an indexer makes it that is not told to leave the tree out.
	const index = "/usr/sbin/updatedb.plocate --prunefs '' --prunepaths '' --prunenames '' --prune-bind-mounts no --require-visibility no --database-root . --output $HOME/db"
	walk(lab.Root, index+" && /usr/bin/plocate --database $HOME/db modules/krb5/operations", m.dir+"/modules/krb5/operations/accept/transact\n")
	looked := func() string { // the kernel remembers who has looked for each transact last
		walk(both, "find . -ls", "transact") // for whom there are all
		return m.held(t)
	}
	held := looked()
	for _, u := range []lab.User{both, stranger, {}} {
		for _, do := range []string{
			"find . -ls", "find . -type f -exec head -c 100 {} +", "grep -r hello .", "ls -laR .", "du -a .", "wc -c $(find . -type f)",
			"cp -r . $HOME/copy; cp -a . $HOME/copy2", "tar cf $HOME/tar .", "rsync -a . $HOME/rsync", "rsync -aHAXc --inplace . $HOME/rsync2; rsync -a $HOME/rsync2/ .",
			index,
			"find . -type f -exec touch {} +", "find . -type f -exec truncate -s 0 {} +", "find . -type f -exec truncate -s 100 {} +", "find . -type f -exec chmod 777 {} +",
			"find . -exec mv {} {}.old ;", "chown -R 2001 .", "find . -type f -exec ln {} x ;", "rm -rf modules contexts keys",
		} {
			walk(u, strings.ReplaceAll(do, " ;", ` \;`), "")
		}
	}
	lab.Await(t, "nothing is left behind: "+held, func() bool { return looked() == held })
	if out, err := m.sh(t, both, "ls "+m.dir+" "+m.dir+"/modules/krb5/operations"); err != nil || !strings.Contains(out, "wrap") {
		t.Errorf("%v: %s", err, out)
	}
}

// held returns what the daemon says is in use, and how many processes it has a hold of.
func (m *mount) held(t testing.TB) string {
	t.Helper()
	status, err := m.Administer(lab.Root, "status")
	check(t, err)
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", m.PID()))
	check(t, err)
	callers := 0
	for _, f := range files {
		if what, _ := os.Readlink(f); what == "anon_inode:[pidfd]" {
			callers++
		}
	}
	return fmt.Sprint(status, callers)
}

// TestOdd: reads and writes in wrong order, parts, lengths, threads and forks at once, mmap.
func TestOdd(t *testing.T) {
	m := newMount(t, "")
	out, err := m.run(t, both, "/usr/bin/python3", "-c", `
import ctypes, errno, json, mmap, os, sys, threading
fs = sys.argv[1]
init = fs + "/modules/krb5/operations/init/"
target = json.dumps({"target": sys.argv[2]}).encode()
def says(what, f, *want):
    try:
        r = f()
    except OSError as e:
        r = errno.errorcode[e.errno]
    if r not in want:
        print(what, "is", r, "and not", want)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
def mapped(fd, how, prot):
    if libc.mmap(None, 4096, prot, how, fd, 0) == 2**64 - 1:
        raise OSError(ctypes.get_errno(), "mmap")
    return "mapped"
def transact(): return os.open(init + "transact", os.O_RDWR)
fd = transact()
says("read first", lambda: os.read(fd, 10), "EINVAL")
says("nothing", lambda: os.write(fd, b""), 0)
for c in target[:-1]: os.write(fd, bytes([c]))
says("half", lambda: os.read(fd, 10), "EINVAL")
os.write(fd, target[-1:])
answer = b""
while part := os.read(fd, 7): answer += part
says("in sevenths", lambda: json.loads(answer)["established"], False)
says("pread", lambda: os.pread(fd, 1, 0), "ESPIPE")
says("lseek", lambda: os.lseek(fd, 0, 0), "ESPIPE")
says("truncate", lambda: os.ftruncate(fd, 0), None)
says("truncate to more", lambda: os.ftruncate(fd, 1), "EINVAL")
says("fallocate", lambda: os.posix_fallocate(fd, 0, 10), "ENOTSUP", "ESPIPE", "EBADF")
says("mmap", lambda: mapped(fd, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE), "ENODEV")
# What is mapped privately is mapped, and reading it is a signal, or what a read of it is.
says("mmap private", lambda: mapped(fd, mmap.MAP_PRIVATE, mmap.PROT_READ), "ENODEV", "mapped")
says("copy_file_range", lambda: os.copy_file_range(fd, fd, 10), "ENOTSUP", "EINVAL", 0)
says("fsync", lambda: os.fsync(fd), None, "EINVAL", "ENOTSUP")
says("lock", lambda: os.lockf(fd, os.F_TLOCK, 0), None)
says("xattr", lambda: os.setxattr(init + "transact", "user.x", b"x"), "ENOTSUP")
says("rename", lambda: os.rename(init + "transact", init + "x"), "EACCES")
says("create", lambda: os.open(init + "new", os.O_CREAT | os.O_RDWR), "EROFS", "EPERM", "EACCES", "ENOSYS")
says("tmpfile", lambda: os.open(init, os.O_TMPFILE | os.O_RDWR), "ENOTSUP", "EROFS", "EACCES", "EPERM")
says("mknod", lambda: os.mkfifo(init + "execution/f"), "EROFS", "EPERM", "EACCES", "ENOTSUP")
def much(n):
    fd = transact()
    try:
        b = b" " * n
        while b: b = b[os.write(fd, b):]
    finally: os.close(fd)
says("a mebibyte", lambda: much(1 << 20), None)
says("more", lambda: much((1 << 20) + 1), "EMSGSIZE")
fd = transact()
full = b" " * (1 << 20)
while full: full = full[os.write(fd, full):]
says("a byte more", lambda: os.write(fd, b" "), "EMSGSIZE")
says("why", lambda: json.loads(os.read(fd, 1 << 16))["text"], "a step takes an object of 1048576 bytes at most")
# A refusal of what is long is the refusal, and not something about its end.
fd = transact()
def long():
    b = b" " * 700000 + json.dumps({"target": "x", "mech": "none"}).encode()
    while b: b = b[os.write(fd, b):]
says("long and refused", long, "EINVAL")
says("why", lambda: json.loads(os.read(fd, 1 << 16))["text"], "mech: krb5 or spnego is expected")
if os.fork() == 0:
    says("a descriptor that was inherited", lambda: os.write(fd, target), len(target))
    os._exit(0)
os.wait()
e = init + "execution/x"
os.mkdir(e)
says("a name with everything", lambda: os.mkdir(init + "execution/" + "n\xe4\n%s$(id)"), None)
says("too long a name", lambda: os.mkdir(init + "execution/" + "n" * 256), "ENAMETOOLONG")
says("read control", lambda: os.open(e + "/control", os.O_RDONLY), "EACCES")
says("write outputs", lambda: os.open(e + "/outputs", os.O_WRONLY), "EACCES")
i = os.open(e + "/inputs", os.O_RDWR)
says("far out", lambda: os.pwrite(i, b"x", 1 << 62), 1)
says("read far out", lambda: os.pread(i, 1, 1 << 62), b"")
says("mmap inputs", lambda: mapped(i, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE), "ENODEV")
# Inputs have room for as much as a step takes, and are what they were when there is more.
def fill(b):
    i = os.open(e + "/inputs", os.O_WRONLY | os.O_TRUNC)
    try:
        while b: b = b[os.write(i, b):]
    finally: os.close(i)
def content(name):
    with open(e + "/" + name, "rb") as f: return f.read()
def execute(): return os.write(os.open(e + "/control", os.O_WRONLY), b"execute")
full = b" " * ((1 << 20) - len(target)) + target
says("a mebibyte of inputs", lambda: fill(full), None)
says("and a byte", lambda: os.write(i, b" "), "EMSGSIZE")
says("why", lambda: content("error").decode().split("\n")[0], "bad-argument: a step takes an object of 1048576 bytes at most")
says("and another mebibyte", lambda: os.write(i, full), "EMSGSIZE")
says("what there is", lambda: content("inputs") == full, True)
says("executed", execute, 7)
says("its answer", lambda: json.loads(content("outputs"))["established"], False)
says("more than a mebibyte at once", lambda: fill(b" " + full), "EMSGSIZE")
says("and then", lambda: fill(target), None)
says("it is executed", execute, 7)
says("and answered", lambda: json.loads(content("outputs"))["established"], False)
print("done")
`, m.dir, "HTTP@"+lab.Host)
	if err != nil || out != "done\n" {
		t.Errorf("%v: %s", err, out)
	}
	if strings.Contains(m.Output(), "panic") || strings.Contains(m.Output(), "DATA RACE") {
		t.Error(m.Output())
	}
}

// TestAtOnce: threads and processes that ask at once get each the answer to its own question, from files of its own; from one that
// they share each answer is whole and to a question that was asked.
func TestAtOnce(t *testing.T) {
	m := newMount(t, "")
	out, err := m.run(t, both, "/usr/bin/python3", "-u", "-c", calls+`
import collections, re, threading
realm = sys.argv[3]
threads, children, rounds = 4, 2, 8
everybody = threads * (1 + children) * rounds
def at_once(f):
    read, write = os.pipe()
    def run(who):
        for i in range(rounds):
            name = "%s-%d@%s" % (who, i, realm)
            question = json.dumps({"name": name}).encode()
            try:
                b = f(who, question)
                got = "empty" if b == b"" else json.loads(b).get("name", "refused")
                got = "own" if got == name else "another's" if re.fullmatch(r"p\d+t\d+-\d+@" + realm, got) else got
            except OSError as e: got = errno.errorcode[e.errno]
            except Exception as e: got = repr(e)
            os.write(write, (got + "\n").encode())
    def process(p):
        list = [threading.Thread(target=run, args=("p%dt%d" % (p, t),)) for t in range(threads)]
        for t in list: t.start()
        for t in list: t.join()
    pids = []
    for p in range(children):
        pid = os.fork()
        if pid == 0:
            process(p)
            os._exit(0)
        pids.append(pid)
    process(children)
    for pid in pids: os.waitpid(pid, 0)
    os.close(write)
    return collections.Counter(open(read).read().splitlines())
def each(what, f):
    says(what, lambda: dict(at_once(f)), {"own": everybody})
def some(what, f, *more):
    got = at_once(f)
    if sum(got.values()) != everybody or set(got) - {"own", "another's", *more} or not got["own"] + got["another's"]:
        print(what, "is", dict(got))
def asked(fd, question):
    os.write(fd, question)
    return os.read(fd, 1 << 16)
def own(who, question):
    fd = os.open(names + "transact", os.O_RDWR)
    try: return asked(fd, question)
    finally: os.close(fd)
def executed(e, question):
    for name, flags, text in ("inputs", os.O_TRUNC, question), ("control", 0, b"execute"):
        fd = os.open(e + "/" + name, os.O_WRONLY | flags)
        try: os.write(fd, text)
        finally: os.close(fd)
    fd = os.open(e + "/outputs", os.O_RDONLY)
    try: return os.read(fd, 1 << 16)
    finally: os.close(fd)
def own_execution(who, question):
    e = names + "execution/" + who
    os.mkdir(e)
    try: return executed(e, question)
    finally: os.rmdir(e)
each("a transact of its own", own)
each("an execution of its own", own_execution)
shared, e = os.open(names + "transact", os.O_RDWR), names + "execution/shared"
os.mkdir(e)
# Who reads while another one writes is told so, as is who reads when nobody has written since the last answer.
some("a shared transact", lambda who, question: asked(shared, question), "EAGAIN", "EINVAL", "empty")
# Two that write to inputs at once write two objects, or find none: that is refused.
some("a shared execution", lambda who, question: executed(e, question), "EAGAIN", "EINVAL", "empty", "refused")
# And nothing of it is left.
says("a shared transact, alone", lambda: json.loads(asked(shared, b'{"name":"alone@' + realm.encode() + b'"}'))["name"], "alone@" + realm)
says("a shared execution, alone", lambda: json.loads(executed(e, b'{"name":"alone@' + realm.encode() + b'"}'))["name"], "alone@" + realm)
print("done")
`, m.dir, "HTTP@"+lab.Host, lab.Name)
	if err != nil || out != "done\n" {
		t.Errorf("%v: %s", err, out)
	}
}

// left has a user leave executions behind, and reports how many there were in the end.
func left(t *testing.T, n int) {
	m := newMount(t, "")
	before, _, err := m.RSS()
	check(t, err)
	cmd, out := m.start(t, both, m.home(t, both), "/usr/bin/python3", "-c", `
import os, sys
n = 0
for i in range(int(sys.argv[2])):
    try: os.mkdir(sys.argv[1] + "/modules/krb5/operations/names/execution/%d" % i); n += 1
    except BlockingIOError: pass
print(n, flush=True)
import time
time.sleep(1000)
`, m.dir, strconv.Itoa(n))
	lab.Await(t, "they are left behind", func() bool { return strings.HasSuffix(out.String(), "\n") })
	made, err := strconv.Atoi(strings.TrimSpace(out.String()))
	check(t, err)
	if made < 100 || made >= 8192/2 {
		t.Errorf("%d executions of one user", made)
	}
	if made < n {
		t.Logf("%d of %d, the rest is EAGAIN", made, n)
	}
	// Another user still has some.
	if out, err := m.sh(t, client, "mkdir "+m.dir+"/modules/krb5/operations/names/execution/another{1,2,3}"); err != nil {
		t.Errorf("another user: %v: %s", err, out)
	}
	after, _, err := m.RSS()
	check(t, err)
	t.Logf("%d executions are %d KiB", made, (after-before)>>10)
	if after-before > int64(made)*(64<<10)+(64<<20) { // the race detector's memory among it
		t.Errorf("%d executions are %d MiB", made, (after-before)>>20)
	}
	check(t, cmd.Process.Kill())
	cmd.Wait()
	lab.Await(t, "they are gone with the session", func() bool {
		out, err := m.sh(t, both, "mkdir "+m.dir+"/modules/krb5/operations/names/execution/0 && rmdir "+m.dir+"/modules/krb5/operations/names/execution/0; gone=$?; exit $gone")
		return err == nil && out == ""
	})
}

func TestLeft(t *testing.T) { left(t, 500) }

func TestNightlyLeft(t *testing.T) {
	lab.Nightly(t)
	left(t, 10000)
}

// TestDaemonKilled: of a daemon that is killed every open file says ENOTCONN, and a request that was under way has its number; nobody
// is stuck, also when it is back, and it can be mounted again.
func TestDaemonKilled(t *testing.T) {
	m, asked, answer := newSilent(t)
	home := m.home(t, both)
	holder, out := m.start(t, both, home, "/usr/bin/python3", "-u", "-c", calls+`
import time
fds = [os.open(names + "transact", os.O_RDWR) for i in range(60)]
for i in range(20):
    e = init + "execution/%d" % i
    os.mkdir(e)
    fds += [os.open(e + "/inputs", os.O_RDWR), os.open(e + "/outputs", os.O_RDONLY)]
print("open", len(fds))
while not os.path.exists("killed"): time.sleep(0.01)
said = {}
for fd in fds:
    for f in (lambda: os.read(fd, 10), lambda: os.write(fd, b"{}")):
        try: f(); said["done"] = 1
        except OSError as e: said[errno.errorcode[e.errno]] = said.get(errno.errorcode[e.errno], 0) + 1
print(said)
signal.pause()
`, m.dir, "HTTP@"+lab.Host)
	lab.Await(t, "files are open", func() bool { return strings.Contains(out.String(), "open 100\n") })
	asks, heard := m.start(t, client, m.home(t, client), "/usr/bin/python3", "-u", "-c", calls+`
e = init + "execution/asks"
os.mkdir(e)
open(e + "/inputs", "wb").write(ask)
fd, control = transact(), os.open(e + "/control", os.O_WRONLY)
for f in lambda: os.write(fd, ask), lambda: os.write(control, b"execute"):
    if os.fork() == 0:
        says("a request that was under way", f, "ECONNABORTED")
        os._exit(0)
print("asking")
os.wait(), os.wait()
print("told")
signal.pause()
`, m.dir, "HTTP@"+lab.Host)
	m.inSteps(t, asked, 2)
	check(t, m.Crash())
	check(t, os.WriteFile(filepath.Join(home, "killed"), nil, 0o644))
	lab.Await(t, "who was asking is told", func() bool { return strings.HasSuffix(heard.String(), "told\n") })
	if heard.String() != "asking\ntold\n" {
		t.Errorf("who was asking: %s", heard)
	}
	lab.Await(t, "files that were open are closed", func() bool { return strings.HasSuffix(out.String(), "}\n") })
	if !strings.HasSuffix(out.String(), "{'ENOTCONN': 180, 'EBADF': 20}\n") {
		t.Errorf("files that were open: %s", out)
	}
	check(t, m.command("mount"))
	answer()
	// Both have all of it open still.
	lab.Await(t, "nothing is stuck", func() bool { return len(stuck(t)) == 0 })
	if out, err := m.sh(t, both, "cat "+m.dir+"/modules/krb5/status"); err != nil || !strings.Contains(out, "would be done") {
		t.Errorf("mounted again: %v: %s", err, out)
	}
	if err := m.command("mount"); err == nil || !strings.Contains(err.Error(), "is mounted") {
		t.Errorf("mounted twice: %v", err)
	}
	for _, cmd := range []*exec.Cmd{holder, asks} {
		check(t, unix.Kill(-cmd.Process.Pid, unix.SIGKILL))
		cmd.Wait()
	}
	lab.Await(t, "nothing is stuck", func() bool { return len(stuck(t)) == 0 })
}
