package fuse

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/interposer"
	"gssproxyd/limits"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// fake are calls that no daemon answers, but the first one.
type fake struct{}

func (fake) Call(_ context.Context, proc uint32, _ []byte) ([]byte, error) {
	if proc == uint32(xdr.ProcNull) {
		return nil, nil
	}
	return nil, errors.New("there is no daemon")
}

func (fake) Close() error { return nil }

// mounted mounts the file system for a test. What callers may do is what may says.
func mounted(t *testing.T, may func(*peer.Info) []string) (string, *Server) {
	t.Helper()
	return mountedFor(t, may, func(*peer.Info) (interposer.Caller, error) { return fake{}, nil })
}

// mountedFor is mounted for callers whose calls are made otherwise, or with other options.
func mountedFor(t *testing.T, may func(*peer.Info) []string, calls func(*peer.Info) (interposer.Caller, error), with ...func(*Options)) (string, *Server) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root mounts")
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	how := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,%s", device.Fd(), Mounted)
	if err := unix.Mount("test", dir, "fuse.test", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, how); err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	o := Options{
		Caller: calls,
		Explain: func(_ context.Context, p *peer.Info) Explanation {
			return Explanation{May: may(p), Text: fmt.Sprintln("uid", p.UID)}
		},
		Keys:    func(context.Context) (string, error) { return "no keys\n", nil },
		Control: func(_ context.Context, words []string) (string, error) { return strings.Join(words, ","), nil },
		Limits:  limits.ForProcess(), Log: slog.New(slog.DiscardHandler),
	}
	for _, change := range with {
		change(&o)
	}
	s, err := Serve(device, o)
	if err != nil {
		unix.Unmount(dir, unix.MNT_DETACH)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		select {
		case <-s.done:
		case <-time.After(time.Minute):
			t.Error("it is served after the end of the mount")
		}
	})
	return dir, s
}

func everything(*peer.Info) []string { return []string{"accept", "initiate", "names"} }

// sh runs a script as a user in a mount.
func sh(t *testing.T, dir string, uid uint32, script string) (string, error) {
	t.Helper()
	out, err := command(t, dir, uid, script).CombinedOutput()
	return string(out), err
}

// command is a user's shell in a session of its own.
func command(t *testing.T, dir string, uid uint32, script string) *exec.Cmd {
	// The directory is not the new process's from the start: this process, which serves it, cannot do
	// much while it waits for an exec.
	cmd := exec.CommandContext(t.Context(), "/bin/bash", "-c", "cd "+dir+"; "+script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Setsid: true}
	return cmd
}

// begin starts a command, and returns what it reads and what it prints.
func begin(t *testing.T, cmd *exec.Cmd) (io.WriteCloser, io.Reader) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return in, out
}

// script is what a user's shell does, and all that it prints.
type script struct {
	name   string
	uid    uint32
	do     string
	prints string
}

func run(t *testing.T, dir string, scripts []script) {
	t.Helper()
	for _, c := range scripts {
		if out, _ := sh(t, dir, c.uid, c.do); out != c.prints {
			t.Errorf("%s:\n%s\nprints\n%s\nwant\n%s", c.name, c.do, out, c.prints)
		}
	}
}

const inNames = "cd modules/krb5/operations/names; "

const noName = `{"reason":"bad-argument","text":"name is missing: such as alice@EXAMPLE.COM or HTTP@www.example.com","hint":"correct the client"}` + "\n"

func TestTransact(t *testing.T) {
	dir, _ := mounted(t, everything)
	invalid, denied := "/bin/bash: line 1: echo: write error: Invalid argument\n", "/bin/bash: line 1: transact: Permission denied\n"
	const one = `{"reason":"bad-argument","text":"one JSON object at a time is expected","hint":"correct the client"}` + "\n"
	run(t, dir, []script{
		{"a refusal is said at once, and in words", 1000, inNames + "exec 3<>transact; echo '{}' >&3; cat <&3", invalid + noName},
		{"in parts", 1000, inNames + "exec 3<>transact; echo '{' >&3; echo '}' >&3; cat <&3", invalid + noName},
		{"once more", 1000, inNames + "exec 3<>transact; echo '{}' >&3; echo '{}' >&3; cat <&3", invalid + invalid + noName},
		{"an answer is read once", 1000, inNames + "exec 3<>transact; echo '{}' >&3; cat <&3 >/dev/null; cat <&3", invalid},
		{"read only", 1000, inNames + "cat transact", "cat: transact: Permission denied\n"},
		{"write only", 1000, inNames + "echo '{}' >transact", denied},
		{"append only", 0, inNames + "echo '{}' >>transact", denied},
		{"read first", 1000, inNames + "exec 3<>transact; cat <&3", "cat: -: Invalid argument\n"},
		{"half of it", 1000, inNames + "exec 3<>transact; echo '{' >&3; cat <&3", "cat: -: Invalid argument\n"},
		{"no JSON", 1000, inNames + "exec 3<>transact; echo hello >&3; cat <&3", invalid + one},
		{"two objects", 1000, inNames + "exec 3<>transact; echo '{}{}' >&3; cat <&3", invalid + one},
		{"not what is expected", 1000, inNames + `exec 3<>transact; echo '{"name":7}' >&3; cat <&3`, invalid + `{"reason":"bad-argument","text":"name: a number is not what is expected","hint":"correct the client"}` + "\n"},
		{"unknown field", 1000, inNames + `exec 3<>transact; echo '{"nam":"x"}' >&3; cat <&3`, invalid + `{"reason":"bad-argument","text":"unknown field \"nam\"","hint":"correct the client"}` + "\n"},
		{"no base64, which may be a secret", 1000, `exec 3<>modules/krb5/operations/accept/transact; echo '{"token":"?secret?"}' >&3; cat <&3`,
			invalid + `{"reason":"bad-argument","text":"a field that is to be base64 is not","hint":"correct the client"}` + "\n"},
		{"another type", 1000, inNames + `exec 3<>transact; echo '{"name":"x","type":"y"}' >&3; cat <&3`,
			invalid + `{"reason":"bad-argument","text":"type: hostbased or principal is expected","hint":"correct the client"}` + "\n"},
		{"another type of the target", 1000, `exec 3<>modules/krb5/operations/init/transact; echo '{"target":"x","target_type":"y"}' >&3; cat <&3`,
			invalid + `{"reason":"bad-argument","text":"target_type: hostbased or principal is expected","hint":"correct the client"}` + "\n"},
		{"a refusal is told once, where it is appended", 1000, inNames + `exec python3 -c 'import errno, os
fd = os.open("transact", os.O_RDWR | os.O_APPEND)
for what in b"hello", b"{\"name\":\"alice\"}":
    try: os.write(fd, what)
    except OSError as e: print(errno.errorcode[e.errno])'`, "EINVAL\nEIO\n"},
		{"too much", 1000, inNames + "exec 3<>transact; head -c 1100000 /dev/zero | tr '\\0' ' ' >&3; echo ${PIPESTATUS[1]}", "tr: write error: Message too long\ntr: write error\n1\n"},
	})
}

func TestExecution(t *testing.T) {
	dir, s := mounted(t, everything)
	const make = inNames + "mkdir execution/x; cd execution/x; "
	run(t, dir, []script{
		{"steps", 1000, make + "echo '{}' >inputs; cat inputs; echo execute >control; cat error outputs; cd ../..; rmdir execution/x; ls execution",
			"{}\n/bin/bash: line 1: echo: write error: Invalid argument\nbad-argument: name is missing: such as alice@EXAMPLE.COM or HTTP@www.example.com\nhint: correct the client\n" + noName},
		{"inputs are what was written last", 1000, make + "echo one >inputs; echo two >inputs; echo three >>inputs; cat inputs; rmdir ../x", "two\nthree\n"},
		{"steps that are processes", 1000, make + "bash -c 'echo {} >inputs'; bash -c 'cat inputs'; rmdir ../x", "{}\n"},
		{"another session", 1000, make + "setsid cat inputs; setsid bash -c 'echo execute >control'; ls ..; setsid ls ..; rmdir ../x",
			"cat: inputs: Permission denied\nbash: line 1: control: Permission denied\nx\n"},
		{"another word", 1000, make + "echo run >control; cat error; rmdir ../x",
			"/bin/bash: line 1: echo: write error: Invalid argument\nbad-argument: control: execute or reset is expected\nhint: correct the client\n"},
		{"no object", 1000, make + "echo '[1]' >inputs; echo execute >control; cat error; rmdir ../x",
			"/bin/bash: line 1: echo: write error: Invalid argument\nbad-argument: it is no JSON object\nhint: correct the client\n"},
		{"reset", 1000, make + "echo '{}' >inputs; echo execute >control 2>/dev/null; echo reset >control; cat inputs outputs error; rmdir ../x", ""},
		{"twice", 1000, make + "mkdir ../x; rmdir ../x", "mkdir: cannot create directory ‘../x’: File exists\n"},
		{"removed", 1000, make + "exec 3<>inputs; rmdir ../x; echo a >&3; cat inputs", "/bin/bash: line 1: echo: write error: No such file or directory\ncat: inputs: No such file or directory\n"},
		{"what cannot be done", 1000, make + "touch new; rm inputs; mv inputs other; chmod 666 inputs; ln inputs l; ln -s inputs s; mkdir d; rmdir ../x", `touch: cannot touch 'new': Read-only file system
rm: cannot remove 'inputs': Operation not permitted
mv: cannot move 'inputs' to 'other': Operation not permitted
chmod: changing permissions of 'inputs': Operation not permitted
ln: failed to create hard link 'l' => 'inputs': Operation not supported
ln: failed to create symbolic link 's': Operation not supported
mkdir: cannot create directory ‘d’: Operation not permitted
`},
	})
	// It is another user's, and root's no more than anybody's.
	cmd := command(t, dir, 1000, "mkdir modules/krb5/operations/names/execution/y && cd / && echo made && read")
	in, out := begin(t, cmd)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(line, err)
	}
	for _, uid := range []uint32{1001, 0} {
		run(t, dir, []script{{fmt.Sprint("of uid 1000, asked for by ", uid), uid, inNames + "ls execution; cat execution/y/inputs; rmdir execution/y; mkdir execution/y",
			"cat: execution/y/inputs: No such file or directory\nrmdir: failed to remove 'execution/y': No such file or directory\nmkdir: cannot create directory ‘execution/y’: File exists\n"}})
	}
	in.Close()
	cmd.Wait()

	// It ends with the leader of its session.
	for len(s.executions[len(operations)-1].where(func(*kept) bool { return true })) > 0 {
		time.Sleep(10 * time.Millisecond)
	}
}

// TestNotAMount: what is no new mount is refused in words, and nobody waits for it.
func TestNotAMount(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer write.Close()
	for _, c := range []struct{ name, says string }{
		{"/dev/null", "not of /dev/fuse"},
		{fmt.Sprintf("/proc/self/fd/%d", read.Fd()), "not of /dev/fuse"},
		{"/proc/self/status", "not of /dev/fuse"},
		{"/dev/fuse", "nothing comes"},
	} {
		f, err := os.Open(c.name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Serve(f, Options{}); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
		f.Close()
	}
}

// TestUsed: an execution is used by who has its files open for long, and not only by who opens them.
func TestUsed(t *testing.T) {
	dir, s := mounted(t, everything)
	const uid = 1000
	cmd := command(t, dir, uid, inNames+`cd execution && mkdir one && exec 3>one/control 4<>one/inputs 5<one/outputs 6<one/error &&
		echo open; while read -r use; do eval "$use"; echo used; done`)
	in, out := begin(t, cmd)
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "open" {
		t.Fatalf("the shell says %q", lines.Text())
	}
	var k *kept
	for i := range s.executions {
		if found := s.executions[i].find(uid, "one"); found != nil {
			k = found
		}
	}
	for _, use := range []string{"echo reset >&3", "echo >&4", "cat <&4 >/dev/null", "cat <&5", "cat <&6"} {
		k.used.Store(0)
		fmt.Fprintln(in, use)
		if !lines.Scan() || lines.Text() != "used" {
			t.Fatalf("%s: the shell says %q", use, lines.Text())
		}
		if k.used.Load() == 0 {
			t.Errorf("%s is no use", use)
		}
	}
}

// TestIdle: an execution and a context end when they were not used for ten minutes, and use prolongs them. TestExecution
// has the session end, and with that sees that it is looked again and again.
func TestIdle(t *testing.T) {
	var now atomic.Int64
	now.Store(time.Now().Unix())
	dir, s := mountedFor(t, everything, func(*peer.Info) (interposer.Caller, error) { return fake{}, nil },
		func(o *Options) { o.Now = func() time.Time { return time.Unix(now.Load(), 0) } })
	const uid = 1000
	cmd := command(t, dir, uid, `e=modules/krb5/operations/names/execution/one; mkdir $e && echo made; while read -r use; do eval "$use"; echo used; done`)
	in, out := begin(t, cmd)
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	answers := bufio.NewScanner(out)
	says := func(want string) {
		t.Helper()
		if !answers.Scan() || answers.Text() != want {
			t.Fatalf("the shell says %q, want %q", answers.Text(), want)
		}
	}
	says("made")
	steps := s.executions[len(operations)-1].find(uid, "one")
	of, err := s.keep(steps.owner, new(interposer.SecContext))
	if err != nil {
		t.Fatal(err)
	}
	use := func(what string) {
		t.Helper()
		fmt.Fprintln(in, what)
		says("used")
	}
	after := func(minutes int64, execution, context bool) {
		t.Helper()
		now.Add(60 * minutes)
		s.sweep()
		if has := s.executions[len(operations)-1].find(uid, "one") != nil; has != execution {
			t.Fatalf("whether the execution is there: %v", has)
		}
		if has := s.contexts.find(uid, of.id) != nil; has != context {
			t.Fatalf("whether the context is there: %v", has)
		}
	}
	after(9, true, true)
	use("cat $e/inputs")
	use(": >contexts/" + of.id + "/ctl")
	after(9, true, true)
	use("cat $e/inputs")
	after(2, true, false)
	after(9, false, false)
}

// TestListed: what is listed differs between callers, and so does status.
func TestListed(t *testing.T) {
	dir, _ := mounted(t, func(p *peer.Info) []string {
		return map[uint32][]string{1000: {"accept"}, 1001: {"initiate", "names"}}[p.UID]
	})
	const list = "cat modules/krb5/status; ls modules/krb5/operations"
	run(t, dir, []script{
		{"acceptor", 1000, list, "uid 1000\naccept\ngetmic\nunwrap\nverifymic\nwrap\n"},
		{"initiator", 1001, list, "uid 1001\ngetmic\ninit\nnames\nunwrap\nverifymic\nwrap\n"},
		{"stranger", 1002, list, "uid 1002\n"},
		{"the tree", 1002, "ls; ls contexts modules", "contexts\nctl\nkeys\nlog\nmodules\ncontexts:\n\nmodules:\nkrb5\n"},
	})
}

// TestRoots: keys, log and ctl are root's.
func TestRoots(t *testing.T) {
	dir, s := mounted(t, everything)
	s.Record([]byte(`{"kind":"one"}`))
	run(t, dir, []script{
		{"keys", 0, "cat keys", "no keys\n"},
		{"ctl", 0, "exec 3<>ctl; cat <&3; echo debug http 2 >&3; cat <&3; echo drop x >&3; cat <&3; cat <&3; echo reload 1<>ctl", `debug,http,2
/bin/bash: line 1: echo: write error: Invalid argument
[bad-argument] drop: there is no context "x"
`},
		{"who only writes, or reads", 0, "echo reload >ctl; cat ctl; echo {} >modules/krb5/operations/names/transact", `/bin/bash: line 1: ctl: Permission denied
cat: ctl: Permission denied
/bin/bash: line 1: modules/krb5/operations/names/transact: Permission denied
`},
		{"log", 0, "cat log; stat -c %s log", "{\"kind\":\"one\"}\n15\n"},
		{"others", 1000, "cat keys log ctl; echo reload >ctl", "cat: keys: Permission denied\ncat: log: Permission denied\ncat: ctl: Permission denied\n/bin/bash: line 1: ctl: Permission denied\n"},
	})

	// Who follows it sees what comes.
	follow := exec.CommandContext(t.Context(), "tail", "-f", "-n", "+1", "-s", "0.05", filepath.Join(dir, "log"))
	out, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for i, want := range []string{"one", "two", "three"} {
		if !lines.Scan() || !strings.Contains(lines.Text(), want) {
			t.Fatalf("line %d: %q, want %s", i, lines.Text(), want)
		}
		s.Record(fmt.Appendf(nil, `{"kind":"%s"}`, []string{"two", "three", "last"}[i]))
	}
	follow.Process.Kill()
	follow.Wait()
}

// TestOwn: the daemon would wait for itself.
func TestOwn(t *testing.T) {
	dir, _ := mounted(t, everything)
	for _, name := range []string{"modules/krb5/status", "keys", "modules/krb5/operations/names/transact"} {
		if f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0); !errors.Is(err, syscall.EDEADLK) && !errors.Is(err, syscall.EACCES) || err == nil {
			f.Close()
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.ReadDir(filepath.Join(dir, "contexts")); !errors.Is(err, syscall.EDEADLK) {
		t.Error(err)
	}
}

// TestRemoved: nothing is left of what is removed.
func TestRemoved(t *testing.T) {
	dir, s := mounted(t, everything)
	if out, err := sh(t, dir, 1000, inNames+"for i in {1..500}; do mkdir execution/$i; : >execution/$i/inputs; rmdir execution/$i; done; mkdir execution/{1..50}; ls execution | wc -l"); err != nil || out != "50\n" {
		t.Fatal(out, err)
	}
	names := &s.executions[len(operations)-1]
	list := names.where(func(*kept) bool { return true })
	list[0].home.born.Do(func() {}) // so that it is seen
	above := list[0].home.Root()
	for _, k := range list {
		s.lapse(names, k)
	}
	until(t, "nothing is paid for any more", func() bool { return s.o.Limits.Kept.Held(1000) == 0 })
	if out, err := sh(t, dir, 1000, "ls "+"modules/krb5/operations/names/execution"); err != nil || out != "" {
		t.Error(out, err)
	}
	for _, name := range []string{"modules", "krb5", "operations", "names", "execution"} {
		above = above.GetChild(name)
	}
	if n := len(above.Children()); n != 0 {
		t.Errorf("%d directories are still there", n)
	}
}

// TestTooMany: who has used up its share is told so, and what is kept is kept.
func TestTooMany(t *testing.T) {
	dir, s := mounted(t, everything)
	fill := func(b *limits.Budget) {
		for b.Take(1000, 1) == nil {
		}
	}
	fill(s.o.Limits.Steps)
	out, _ := sh(t, dir, 1000, inNames+"exec 3<>transact; echo '{}' >&3; cat <&3")
	if !strings.Contains(out, "Resource temporarily unavailable") || !strings.Contains(out, `"reason":"too-many-executions"`) {
		t.Error(out)
	}
	if out, _ := sh(t, dir, 1001, inNames+"exec 3<>transact; echo '{}' >&3; cat <&3"); !strings.HasSuffix(out, noName) {
		t.Errorf("another user: %s", out)
	}
	fill(s.o.Limits.Kept)
	if out, _ := sh(t, dir, 1000, inNames+"mkdir execution/one"); !strings.Contains(out, "Resource temporarily unavailable") {
		t.Error(out)
	}
	if _, err := s.keep(owner{uid: 1000}, nil); !errors.Is(err, reason.TooManyExecutions) {
		t.Error(err)
	}
}
