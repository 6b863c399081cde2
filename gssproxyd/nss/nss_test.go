package nss

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"gssproxyd/conf"
	"gssproxyd/limits"
	"gssproxyd/phase"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// The test program is its own helper, as the daemon is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == HelperArg {
		etc := os.Getenv("TEST_ETC")
		if etc == "" {
			etc = "/etc"
		}
		dropPrivileges(os.Stdout, os.Args[2:])
		if err := help(os.Stdin, os.Stdout, etc); err != nil {
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// late asks c, which gets no answer, with ever more time until that is what its question lacks, and
// not the time to put it.
func late(t *testing.T, c *Client, name string) {
	t.Helper()
	for c.o.Timeout = 200 * time.Millisecond; ; c.o.Timeout *= 4 {
		_, err := c.Account(t.Context(), name)
		if err != nil && strings.Contains(err.Error(), "no answer within") {
			return
		}
		if c.o.Timeout > time.Minute {
			t.Fatal(err)
		}
		c.Forget()
	}
}

// starts starts helpers with a command and an environment.
func starts(command []string, env ...string) StartFunc {
	return func(urgent bool, in, out *os.File) (Process, error) {
		if urgent {
			command = append(command, urgentArg)
		}
		return startChild(command, env, in, out)
	}
}

// command is what a helper was started with.
func command(h *helper) *exec.Cmd { return h.process.(*child).cmd }

// client returns a client whose helper finds the shell script in getent's place. It is called with
// a database and a key, and leaves a line in the file calls for each call.
func client(t *testing.T, script string, o Options) (c *Client, calls func() int) {
	t.Helper()
	return clientOf(t, script, o, "/proc/self/exe", HelperArg)
}

// clientOf is client with another command for the helper.
func clientOf(t *testing.T, script string, o Options, command ...string) (c *Client, calls func() int) {
	t.Helper()
	dir := t.TempDir()
	// The helper is nobody of this host.
	for d := dir; d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	log := filepath.Join(dir, "calls")
	if err := os.WriteFile(log, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(log, 0o666); err != nil {
		t.Fatal(err)
	}
	text := "#!/bin/sh\necho \"$@\" >> " + log + "\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, "getent"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	// Of the host's own users none is seen.
	if err := os.WriteFile(filepath.Join(dir, "nsswitch.conf"), []byte("passwd: files other\ngroup: files other\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"passwd", "group"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	o.Start = starts(command, "PATH="+dir+":"+os.Getenv("PATH"), "TEST_ETC="+dir)
	o.Timeout = cmp.Or(o.Timeout, time.Minute)
	c, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, func() int {
		b, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(b, []byte("\n"))
	}
}

const people = `case "$1 $2" in
"passwd alice"|"passwd 1000") echo "alice:x:1000:100:Alice:/home/alice:/bin/sh";;
"initgroups alice") echo "alice                 2000 100 2001";;
"passwd alias") echo "DOM\\long name:x:7:8::/:";;
"initgroups DOM\\long name") echo "DOM\\long name 9";;
"passwd lonely") echo "lonely:x:1001:1001::/:";;
"initgroups lonely") echo "lonely               ";;
"passwd 4711"|"passwd +4711"|"passwd  4711"|"passwd  -4711") echo "student:x:4711:1::/:";;
"passwd 4712") echo "4712:x:99:1::/:";;
"initgroups 4712") echo "4712 5";;
"passwd short") echo "short:x";;
"passwd noid") echo "noid:x:4294967295:0::/:";;
"passwd odd") echo "odd:x:5:5::/:";;
"initgroups odd") echo "somebody 1 2";;
"passwd bad") echo "bad:x:5:5::/:";;
"initgroups bad") echo "bad 1 x";;
"passwd many") echo "many:x:1500:1500::/:";;
"initgroups many") echo "many $(seq -s' ' 3000 4499)";;
"passwd broken") exit 1;;
"passwd slow") exec sleep 600;;
"group wheel") echo "wheel:x:10:alice,bob";;
"group broken") exit 1;;
"passwd half") echo "half:x:5:5::/:";;
"initgroups half") exec sleep 600;;
*) exit 2;;
esac`

func TestAccount(t *testing.T) {
	c, _ := client(t, people, Options{})
	for _, want := range []Account{
		{"alice", 1000, 100, []uint32{100, 2000, 2001}},
		{"lonely", 1001, 1001, []uint32{1001}},
		{"4712", 99, 1, []uint32{1, 5}},
	} {
		got, err := c.Account(t.Context(), want.Name)
		if err != nil || got.Name != want.Name || got.UID != want.UID || got.GID != want.GID || !slices.Equal(got.Groups, want.Groups) {
			t.Errorf("%s: %+v, %v", want.Name, got, err)
		}
	}
	a, err := c.Account(t.Context(), "alias")
	if err != nil || a.Name != `DOM\long name` || !slices.Equal(a.Groups, []uint32{8, 9}) {
		t.Errorf("alias: %+v, %v", a, err)
	}
	if a, err = c.Account(t.Context(), "many"); err != nil || len(a.Groups) != 1501 || a.Groups[1500] != 4499 {
		t.Errorf("many: %d groups, %v", len(a.Groups), err)
	}
	for name, want := range map[string]string{
		"nobody-of-us": "no such user", "": "no such user", "-n": "no such user", "a:b": "no such user", "a\nb": "no such user",
		"4711": "no such user", "+4711": "no such user", " 4711": "no such user", " -4711": "no such user", strings.Repeat("x", 2000): "no such user",
		"short": "no passwd entry", "noid": "no uid", "odd": "not about user odd", "bad": `"x" is no uid or gid`, "broken": "exit status 1",
	} {
		_, err := c.Account(t.Context(), name)
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, conf.ErrNoUser) != (want == "no such user") {
			t.Errorf("%.20q: %v", name, err)
		}
	}
}

func TestUsers(t *testing.T) {
	c, _ := client(t, people, Options{})
	var users conf.Users = c
	if uid, err := users.UID("alice"); uid != 1000 || err != nil {
		t.Error(uid, err)
	}
	if name, err := users.Name(1000); name != "alice" || err != nil {
		t.Error(name, err)
	}
	if uid, err := users.UID("alias"); err == nil {
		t.Error("an alias has uid", uid)
	}
	if _, err := users.UID("1000"); !errors.Is(err, conf.ErrNoUser) {
		t.Error(err)
	}
	if _, err := users.Name(4712); !errors.Is(err, conf.ErrNoUser) {
		t.Error(err) // the user is called so, and has another uid
	}
	if _, err := users.Name(5); !errors.Is(err, conf.ErrNoUser) {
		t.Error(err)
	}
}

func TestGroups(t *testing.T) {
	c, calls := client(t, fakeGroups, Options{})
	groupsOf(t, c, calls)
	c, calls = client(t, fakeGroups, Options{})
	groupsOf(t, c.For(t.Context()), calls)
}

// A group and a user of the same name are two questions.
func TestGroupIsNoUser(t *testing.T) {
	c, _ := client(t, `case "$1 $2" in
"passwd staff") echo "staff:x:7:8::/:";;
"group staff") echo "staff:x:50:";;
"passwd alice") echo "alice:x:1000:100::/:";;
"group wheel") echo "wheel:x:10:";;
*) exit 2;;
esac`, Options{})
	for range 2 { // asked, and remembered
		if gid, err := c.GID("staff"); gid != 50 || err != nil {
			t.Error(gid, err)
		}
		if uid, err := c.UID("staff"); uid != 7 || err != nil {
			t.Error(uid, err)
		}
		if gid, err := c.GID("alice"); !errors.Is(err, conf.ErrNoGroup) {
			t.Error(gid, err)
		}
		if uid, err := c.UID("wheel"); !errors.Is(err, conf.ErrNoUser) {
			t.Error(uid, err)
		}
	}
}

// The answers of the system itself.
func TestSystem(t *testing.T) {
	c, err := Start(Options{Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a, err := c.Account(t.Context(), "root")
	if err != nil || a.Name != "root" || a.UID != 0 || a.GID != 0 || len(a.Groups) == 0 || a.Groups[0] != 0 {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := c.Account(t.Context(), "no-such-user-here"); !errors.Is(err, conf.ErrNoUser) {
		t.Error(err)
	}
	if gid, err := c.GID("root"); gid != 0 || err != nil {
		t.Error(gid, err)
	}
	if _, err := c.GID("no-such-group-here"); !errors.Is(err, conf.ErrNoGroup) {
		t.Error(err)
	}
}

// Without getent the files are read.
func TestFiles(t *testing.T) {
	c, err := Start(Options{Start: starts([]string{"/proc/self/exe", HelperArg}, "PATH=/nowhere"), Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if a, err := c.Account(t.Context(), "root"); err != nil || a.UID != 0 || len(a.Groups) == 0 {
		t.Errorf("%+v, %v", a, err)
	}
	if name, err := c.Name(0); name != "root" || err != nil {
		t.Error(name, err)
	}
	if _, err := c.Account(t.Context(), "no-such-user-here"); !errors.Is(err, conf.ErrNoUser) {
		t.Error(err)
	}
	if gid, err := c.GID("root"); gid != 0 || err != nil {
		t.Error(gid, err)
	}
	if _, err := c.GID("no-such-group-here"); !errors.Is(err, conf.ErrNoGroup) {
		t.Error(err)
	}
}

// What the files answer for good takes no process.
func TestFilesFirst(t *testing.T) {
	c, calls := client(t, people, Options{})
	dir := strings.TrimPrefix(command(c.helper).Env[1], "TEST_ETC=")
	put := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("passwd", "bob:x:5:50::/:\n")
	put("group", "g:x:60:bob\n")
	put("nsswitch.conf", "passwd: files other\ngroup: files\n")
	if a, err := c.Account(t.Context(), "bob"); err != nil || a.UID != 5 || !slices.Equal(a.Groups, []uint32{50, 60}) || calls() != 0 {
		t.Errorf("bob: %+v, %v, after %d calls", a, err, calls())
	}
	if a, err := c.Account(t.Context(), "alice"); err != nil || a.UID != 1000 || len(a.Groups) != 1 || calls() != 1 {
		t.Errorf("alice: %+v, %v, after %d calls", a, err, calls())
	}
	put("nsswitch.conf", "passwd: files\ngroup: files\n")
	if _, err := c.Account(t.Context(), "lonely"); !errors.Is(err, conf.ErrNoUser) || calls() != 1 {
		t.Errorf("lonely: %v, after %d calls", err, calls())
	}
}

// So with groups, by the line for them.
func TestGroupFilesFirst(t *testing.T) {
	c, calls := client(t, fakeGroups, Options{})
	dir := strings.TrimPrefix(command(c.helper).Env[1], "TEST_ETC=")
	for _, step := range []struct {
		sources, name string
		gid           uint32 // 0: none
		calls         int
	}{
		{"files other", "here", 60, 0},
		{"files other", "wheel", 10, 1},
		{"files other", "absent", 0, 1},
		{"files", "here", 60, 0},
		{"files", "wheel", 0, 0},
		{"files [SUCCESS=continue] other", "here", 0, 1},
		{"other files", "here", 0, 1},
	} {
		for name, text := range map[string]string{"group": "here:x:60:bob\n", "nsswitch.conf": "passwd: files\ngroup: " + step.sources + "\ninitgroups: files\n"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		c.Forget()
		before := calls()
		gid, err := c.GID(step.name)
		if gid != step.gid || errors.Is(err, conf.ErrNoGroup) != (step.gid == 0) || (err == nil) != (step.gid != 0) || calls()-before != step.calls {
			t.Errorf("%+v: gid %d, %v, after %d calls", step, gid, err, calls()-before)
		}
	}
}

// What a helper does not have: root's privileges, descriptors, the daemon's environment.
func TestHelperHasNothing(t *testing.T) {
	open, err := os.Open("/etc/passwd") // and does not inherit
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	t.Setenv("KRB5_KTNAME", "secret")
	c, _ := client(t, people, Options{})
	if _, err := c.Account(t.Context(), "alice"); err != nil { // it is past its own start
		t.Fatal(err)
	}
	c.mu.Lock()
	pid := command(c.helper).Process.Pid
	c.mu.Unlock()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed since the list was read: the runtime's own look at its cgroup
		}
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(target, "pipe:") && target != "/dev/null" && !strings.HasPrefix(target, "anon_inode:") &&
			!strings.HasPrefix(target, "/sys/fs/cgroup/") { // where the runtime itself looks
			t.Errorf("descriptor %s of the helper is %s", fd.Name(), target)
		}
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || bytes.Contains(env, []byte("KRB5")) {
		t.Errorf("environment %q, %v", env, err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if strings.Contains(string(status), "Uid:\t0") || !strings.Contains(string(status), "CapEff:\t0000000000000000") || !strings.Contains(string(status), "Groups:\t \n") {
			t.Errorf("the helper has privileges:\n%s", status)
		}
		if nice, err := unix.Getpriority(unix.PRIO_PROCESS, pid); err != nil || 20-nice != usualNice { // as the system call has it
			t.Errorf("priority %d, %v, want %d", 20-nice, err, usualNice)
		}
	}
	session, err := unix.Getsid(pid)
	own, ownErr := unix.Getsid(0)
	if err != nil || ownErr != nil || session != own {
		t.Errorf("the helper is in session %d, %v, and this process in %d, %v: its priority says nothing here", session, err, own, ownErr)
	}
}

// A helper's start does not make the daemon's memory one that may be dumped, nor the other way
// round.
func TestStartLeavesDumpable(t *testing.T) {
	dumpable := func() int {
		n, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, want := range []int{0, 1} {
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(want), 0, 0, 0); err != nil {
			t.Fatal(err)
		}
		client(t, people, Options{})
		if got := dumpable(); got != want {
			t.Errorf("dumpable is %d, and was %d", got, want)
		}
	}
}

// A helper ends once: what has its number later is left alone.
func TestEndTwice(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	process, err := startChild([]string{"sleep", "600"}, nil, null, null)
	if err != nil {
		t.Fatal(err)
	}
	for !func() bool { _, ended := process.End(); return ended }() { // a busy machine
		time.Sleep(time.Millisecond)
	}
	for range 2 {
		if how, ended := process.End(); !ended || how == nil || how.Error() != "signal: killed" {
			t.Errorf("%v, %t", how, ended)
		}
	}
}

// A helper that cannot become another user says so, and has no capability all the same.
func TestHelperStaysDaemonsUser(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := []string{self, HelperArg}
	if os.Getuid() == 0 {
		program = append([]string{"setpriv", "--bounding-set", "-setuid,-setgid"}, program...)
	}
	var log lab.LogBuffer
	c, _ := clientOf(t, "grep -E '^Cap(Prm|Eff|Amb)' /proc/self/status > ${0%getent}caps\n"+people, Options{Log: slog.New(slog.NewTextHandler(&log, nil))}, program...)
	for _, name := range []string{"alice", "lonely"} {
		if _, err := c.Account(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "level=WARN msg=\"the name service helper runs as this daemon's user\"") {
		t.Errorf("log:\n%s", text)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", command(c.helper).Process.Pid))
	if err != nil || !strings.Contains(string(status), "CapEff:\t0000000000000000") {
		t.Errorf("%v\n%s", err, status)
	}
	caps, err := os.ReadFile(strings.TrimPrefix(command(c.helper).Env[1], "TEST_ETC=") + "/caps")
	if err != nil || strings.Count(string(caps), "\t0000000000000000\n") != 3 {
		t.Errorf("the program that it runs has capabilities: %v\n%s", err, caps)
	}
}

func TestRemembers(t *testing.T) {
	var mu sync.Mutex
	now := time.Unix(1e9, 0)
	advance := func(d time.Duration) { mu.Lock(); now = now.Add(d); mu.Unlock() }
	var phases phase.Clock
	var timed atomic.Int64
	phases.Tell(func(p phase.Phase, took time.Duration) {
		if p == phase.NSS && took > 0 {
			timed.Add(1)
		}
	})
	c, calls := client(t, people, Options{Phases: &phases, Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	asks := func(name string, want int, ask func()) {
		t.Helper()
		before, before2 := calls(), timed.Load()
		ask()
		if n := calls() - before; n != want {
			t.Errorf("%s: getent was called %d times, want %d", name, n, want)
		}
		if n := timed.Load() - before2; n != int64(min(want, 1)) { // a question may take two calls
			t.Errorf("%s: %d questions were timed, %d calls", name, n, want)
		}
	}
	ask := func(name string, want int) {
		t.Helper()
		asks(name, want, func() { c.Account(t.Context(), name) })
	}
	askGroup := func(name string, want int) {
		t.Helper()
		asks(name, want, func() { c.GID(name) })
	}
	ask("alice", 2)
	ask("alice", 0)
	advance(foundFor + 1)
	ask("alice", 2)
	ask("absent", 1)
	ask("absent", 0)
	advance(absentFor + 1)
	ask("absent", 1)
	ask("broken", 1)
	ask("broken", 0)
	advance(failedFor + 1)
	ask("broken", 1)
	askGroup("wheel", 1)
	askGroup("wheel", 0)
	askGroup("absent", 1)
	askGroup("broken", 1)
	advance(failedFor + 1)
	askGroup("broken", 1)
	askGroup("absent", 0)
	advance(absentFor - failedFor)
	askGroup("absent", 1)
	askGroup("wheel", 0)
	advance(foundFor)
	askGroup("wheel", 1)
	ask("alice", 2)
	// The cache is bounded, and those that nobody found make room before those that are somebody.
	for i := range 3 * maxCached {
		c.mu.Lock()
		c.keep(question{account, fmt.Sprint("x", i)}, &asking{until: now.Add(absentFor)})
		c.mu.Unlock()
	}
	c.mu.Lock()
	if len(c.cache) != maxCached {
		t.Errorf("%d cached", len(c.cache))
	}
	c.mu.Unlock()
	ask("alice", 0)
}

// However many questions a caller asks, and however slow their answers are, others get theirs:
// other callers from the same helper, the kernel from its own.
func TestCallersPay(t *testing.T) {
	kernel, _ := client(t, people, Options{Urgent: true})
	b := limits.NewBudget("questions", maxLookUps)
	b.Reserve(33)
	callers, calls := client(t, `case "$2" in slow*) exec sleep 600;; esac
`+people, Options{Gate: limits.NewGate(b, 10*maxLookUps, 1, time.Millisecond), Timeout: time.Minute})
	as := func(uid uint32) context.Context { return limits.WithPayer(t.Context(), uid) }
	gone, leave := context.WithCancel(as(1000))
	var waiting sync.WaitGroup
	refused := make(chan error, 2*maxLookUps)
	for i := range 2 * maxLookUps {
		waiting.Go(func() {
			if _, err := callers.Account(gone, fmt.Sprint("slow", i)); limits.Refused(err) {
				refused <- err
			}
		})
	}
	err := <-refused
	var e *limits.Error
	if !errors.As(err, &e) || e.UID != 1000 {
		t.Errorf("refused with %v", err)
	}
	for _, uid := range []uint32{0, 33, 1001} {
		if a, err := callers.Account(as(uid), "alice"); err != nil || a.UID != 1000 {
			t.Errorf("uid %d asks: %+v, %v", uid, a, err)
		}
		if name, err := callers.For(as(uid)).Name(1000); err != nil || name != "alice" {
			t.Errorf("uid %d asks for a name: %q, %v", uid, name, err)
		}
		if gid, err := callers.For(as(uid)).GID("wheel"); err != nil || gid != 10 {
			t.Errorf("uid %d asks for a group: %d, %v", uid, gid, err)
		}
	}
	if _, err := callers.For(gone).GID("more"); !errors.As(err, &e) || e.UID != 1000 {
		t.Errorf("uid 1000, which has its share under way, asks for a group: %v", err)
	}
	if a, err := callers.Account(gone, "alice"); err != nil || a.UID != 1000 {
		t.Errorf("what is known costs nothing: %+v, %v", a, err)
	}
	if a, err := kernel.Account(t.Context(), "alice"); err != nil || a.UID != 1000 {
		t.Errorf("the kernel asks: %+v, %v", a, err)
	}
	leave()
	waiting.Wait()
	if held := b.Held(1000); held == 0 || held > maxLookUps/2 || calls() > maxLookUps {
		t.Errorf("uid 1000 has %d questions under way, after %d calls", held, calls())
	}
	callers.Close()
	if held := b.Held(1000); held != 0 {
		t.Errorf("%d questions are under way still", held)
	}
	if os.Getuid() == 0 {
		if nice, err := unix.Getpriority(unix.PRIO_PROCESS, command(kernel.helper).Process.Pid); err != nil || 20-nice != urgentNice {
			t.Errorf("the kernel's helper has priority %d, %v, want %d", 20-nice, err, urgentNice)
		}
	}
}

// A look-up that hangs ends in time, takes the process it ran with it, and nobody else waits for
// it.
func TestSlow(t *testing.T) {
	c, calls := client(t, people, Options{})
	var waiting sync.WaitGroup
	for range 20 {
		waiting.Go(func() {
			if a, err := c.Account(t.Context(), "slow"); err == nil {
				t.Errorf("slow: %+v", a)
			}
		})
	}
	for calls() == 0 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Account(ctx, "slow"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("impatient: %v", err)
	}
	a, err := c.Account(t.Context(), "alice")
	c.mu.Lock()
	still := c.asked[question{account, "slow"}] != nil
	c.mu.Unlock()
	if err != nil || a.UID != 1000 || !still {
		t.Errorf("alice: %+v, %v; still looking for slow: %t", a, err, still)
	}
	if n := calls(); n != 3 { // slow; alice twice
		t.Errorf("getent was called %d times", n)
	}
	c.Close()
	waiting.Wait()

	// What has too little time ends in it, with two look-ups as with one; a machine that is too
	// slow for the first has more.
	for name, want := range map[string]string{"slow": "passwd gave no answer within", "half": "initgroups gave no answer within"} {
		for timeout := 500 * time.Millisecond; ; timeout *= 4 {
			c, _ := client(t, people, Options{Timeout: timeout})
			_, err := c.Account(t.Context(), name)
			if err != nil && strings.Contains(err.Error(), want) {
				break
			}
			if timeout > time.Minute {
				t.Errorf("%s: %v", name, err)
				break
			}
		}
	}
}

// Who is in a file does not wait for those who are not, however many they are.
func TestFilesDoNotWait(t *testing.T) {
	const slow = 3 * maxLookUps
	c, calls := client(t, "exec sleep 600", Options{})
	dir := strings.TrimPrefix(command(c.helper).Env[1], "TEST_ETC=")
	for name, text := range map[string]string{"passwd": "bob:x:5:50::/:\n", "group": "", "nsswitch.conf": "passwd: files other\ngroup: files\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var waiting sync.WaitGroup
	for i := range slow {
		waiting.Go(func() {
			if _, err := c.Account(t.Context(), fmt.Sprint("slow", i)); err == nil {
				t.Error("answered")
			}
		})
	}
	for calls() < maxLookUps {
		time.Sleep(time.Millisecond)
	}
	if a, err := c.Account(t.Context(), "bob"); err != nil || a.UID != 5 {
		t.Errorf("bob: %+v, %v", a, err)
	}
	c.mu.Lock()
	still := len(c.asked)
	c.mu.Unlock()
	if still != slow || calls() != maxLookUps {
		t.Errorf("when bob was answered, %d of %d were not, after %d calls", still, slow, calls())
	}
	c.Close()
	waiting.Wait()
}

// A helper that is killed is started again, and what was asked of it is asked again.
func TestHelperDies(t *testing.T) {
	c, _ := client(t, `[ -e "$0.go" ] || exec sleep 600
`+people, Options{})
	c.mu.Lock()
	first := c.helper
	c.started = c.started.Add(-time.Hour)
	c.mu.Unlock()
	done := make(chan error)
	go func() {
		_, err := c.Account(t.Context(), "alice")
		done <- err
	}()
	for { // until it was asked
		first.mu.Lock()
		n := len(first.waiting)
		first.mu.Unlock()
		if n > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	dir := strings.TrimPrefix(strings.SplitN(command(c.helper).Env[0], ":", 2)[0], "PATH=")
	if err := os.WriteFile(dir+"/getent.go", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := command(first).Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	c.mu.Lock()
	second := c.helper
	c.mu.Unlock()
	if second == first {
		t.Error("no new helper")
	}
	// One that dies at once is not started again and again.
	if err := command(second).Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-second.done
	c.mu.Lock()
	c.started = time.Now().Add(time.Minute) // however slow the machine is
	c.mu.Unlock()
	if _, err := c.Account(t.Context(), "lonely"); err == nil || !strings.Contains(err.Error(), "just died") {
		t.Error(err)
	}
}

// What a helper that is killed was running ends with it.
func TestHelperDiesWithLookUps(t *testing.T) {
	c, _ := client(t, "echo $$ >> ${0%getent}calls\nexec sleep 600", Options{})
	asked := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		defer close(asked)
		c.Account(ctx, "alice")
	}()
	getent := ""
	for deadline := time.Now().Add(time.Minute); getent == ""; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(strings.TrimPrefix(command(c.helper).Env[1], "TEST_ETC=") + "/calls")
		if lines := strings.Split(string(b), "\n"); len(lines) > 2 {
			getent = lines[1]
		} else if err != nil || time.Now().After(deadline) {
			t.Fatalf("nobody is asked: %v", err)
		}
	}
	c.helper.hangUp()
	cancel()
	<-asked
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile("/proc/" + getent + "/stat")
		if err != nil || strings.Contains(string(b), ") Z ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %s goes on: %s", getent, b)
		}
	}
}

// A helper that is stopped gives no answer, and is replaced.
func TestHelperHangs(t *testing.T) {
	c, _ := client(t, people, Options{})
	c.mu.Lock()
	h := c.helper
	c.mu.Unlock()
	if err := command(h).Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	late(t, c, "alice")
	<-h.done
}

// One that is late with one answer and gives others goes on.
func TestHelperLate(t *testing.T) {
	for timeout := 300 * time.Millisecond; timeout < time.Minute; timeout *= 4 {
		if testHelperLate(t, timeout) {
			return
		}
	}
	t.Error("the helper is replaced")
}

// testHelperLate reports whether the helper goes on; where it was too slow for another answer
// before the timeout, it does not.
func testHelperLate(t *testing.T, timeout time.Duration) bool {
	// It never answers questions for the name late, and all others at once: the id, and alice.
	c, err := Start(Options{Timeout: time.Minute, Start: starts([]string{"perl", "-e", `
		$| = 1;
		while (read(STDIN, $n, 4) == 4) {
			read(STDIN, $q, unpack("N", $n));
			my ($id, $kind, $patience, $len) = unpack("N4", $q);
			next if substr($q, 16, $len) eq "late";
			my $a = pack("N3 N A8 N3", $id, 0, 0, 5, "alice\0\0\0", 7, 8, 0);
			print pack("N", length $a), $a;
		}`})})
	if err != nil {
		t.Skip(err)
	}
	defer c.Close()
	if _, err := c.UID("alice"); err != nil { // it runs
		t.Fatal(err)
	}
	h := c.helper
	c.o.Timeout = timeout
	done := make(chan error, 1)
	go func() {
		_, err := c.Account(t.Context(), "late")
		done <- err
	}()
	for len(done) == 0 { // until it was asked
		h.mu.Lock()
		n := len(h.waiting)
		h.mu.Unlock()
		if n > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if a, err := c.Account(t.Context(), "alice"); err != nil || a.UID != 7 {
		t.Logf("with %v: %+v, %v", timeout, a, err)
		<-done
		return false
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "no answer within") {
		t.Logf("with %v: %v", timeout, err)
		return false
	}
	if len(h.waiting) != 0 {
		t.Errorf("%d questions are still under way", len(h.waiting))
	}
	return h.alive()
}

// Nor does it keep more questions waiting than it has room for: each ends in its time, or this does
// not.
func TestHelperHangsFull(t *testing.T) {
	c, _ := client(t, people, Options{Timeout: 500 * time.Millisecond})
	c.mu.Lock()
	h := c.helper
	c.mu.Unlock()
	if err := command(h).Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var waiting sync.WaitGroup
	for i := range 150 { // a pipe has room for 64 KiB
		waiting.Go(func() {
			if _, err := c.Account(t.Context(), strings.Repeat("x", 1000)+strconv.Itoa(i)); err == nil {
				t.Error("answered")
			}
		})
	}
	waiting.Wait()
}

// A helper that hangs and may not be killed, as under run_as_user, is left alone and replaced. The
// daemon's end does not wait for it, and it ends by itself once it can.
func TestHelperCannotBeKilled(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, whose helper is another user")
	}
	var log lab.LogBuffer
	c, _ := client(t, people, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	if _, err := c.Account(t.Context(), "alice"); err != nil { // it is another user by now
		t.Fatal(err)
	}
	h := c.helper
	if err := command(h).Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	was := cap.GetProc()
	less, err := was.Dup()
	if err == nil {
		err = errors.Join(less.SetFlag(cap.Effective, false, cap.KILL), less.SetProc())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer was.SetProc()
	c.mu.Lock()
	c.started = c.started.Add(-time.Hour)
	c.mu.Unlock()

	late(t, c, "lonely")
	<-h.done
	c.o.Timeout = time.Minute
	if _, err := c.Account(t.Context(), "many"); err != nil {
		t.Error(err)
	}
	second := c.helper
	if second == h || !strings.Contains(log.String(), "operation not permitted") {
		t.Errorf("the helper was not replaced:\n%s", &log)
	}

	if err := was.SetProc(); err != nil {
		t.Fatal(err)
	}
	if err := command(second).Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := less.SetProc(); err != nil {
		t.Fatal(err)
	}
	c.Close() // ends though neither helper does
	if err := was.SetProc(); err != nil {
		t.Fatal(err)
	}
	for _, h := range []*helper{h, second} {
		if err := command(h).Process.Signal(syscall.SIGCONT); err != nil {
			t.Error(err)
		}
		for deadline := time.Now().Add(time.Minute); !errors.Is(command(h).Process.Signal(syscall.Signal(0)), os.ErrProcessDone); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the helper does not end with its input")
			}
		}
	}
}

func TestNoHelper(t *testing.T) {
	c, err := Start(Options{Start: starts([]string{"/nowhere/at/all"})})
	if err == nil {
		t.Error("started")
	}
	defer c.Close()
	if _, err := c.Account(t.Context(), "alice"); err == nil || !strings.Contains(err.Error(), "cannot be started") {
		t.Error(err)
	}
	c, err = Start(Options{Start: starts([]string{"/bin/false"})})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Account(t.Context(), "alice"); err == nil || errors.Is(err, conf.ErrNoUser) {
		t.Error(err)
	}
	c.Close()
	if _, err := c.Account(t.Context(), "bob"); !errors.Is(err, errClosed) {
		t.Error(err)
	}
}

// The signals that a terminal or a service manager sends to all do not end a helper before the
// daemon.
func TestHelperOutlivesSignals(t *testing.T) {
	c, _ := client(t, people, Options{})
	if _, err := c.Account(t.Context(), "alice"); err != nil { // it runs
		t.Fatal(err)
	}
	c.mu.Lock()
	h := c.helper
	c.mu.Unlock()
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if err := command(h).Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Account(t.Context(), "lonely"); err != nil || !h.alive() {
		t.Error(err)
	}
}

// Whatever a helper says, the daemon reads within bounds; and the other way round.
func FuzzAnswer(f *testing.F) {
	f.Add(appendAnswer(nil, 1, Account{"alice", 1, 2, []uint32{2, 3}}, nil))
	f.Add(appendAnswer(nil, 1, Account{}, conf.ErrNoUser))
	f.Add(appendAnswer(nil, 1, Account{Name: "wheel", UID: noID, GID: 10}, nil))
	f.Add(appendAnswer(nil, 1, Account{}, conf.ErrNoGroup))
	f.Add(appendAnswer(nil, 1, Account{}, errors.New("text")))
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := readRecord(bufio.NewReader(bytes.NewReader(data)), maxAnswer)
		if err != nil {
			return
		}
		id, a, err := parseAnswer(b)
		if err != nil {
			return
		}
		again, err := readRecord(bufio.NewReader(bytes.NewReader(appendAnswer(nil, id, a.account, a.err))), maxAnswer)
		if err != nil {
			t.Fatal(err)
		}
		id2, a2, err := parseAnswer(again)
		if err != nil || id2 != id || fmt.Sprint(a2.account) != fmt.Sprint(a.account) || fmt.Sprint(a2.err) != fmt.Sprint(a.err) {
			t.Fatalf("%d %v, then %d %v, %v", id, a, id2, a2, err)
		}
	})
}

func FuzzHelp(f *testing.F) {
	ask := appendRecord(nil, func(b []byte) []byte {
		return xdr.AppendString(xdr.AppendUint32(xdr.AppendUint32(xdr.AppendUint32(b, 1), uint32(user)), 0), "x")
	})
	f.Add(ask[:7])
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{255, 255, 255, 255, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) >= len(ask) {
			return // a whole question starts programs
		}
		help(bytes.NewReader(data), io.Discard, "/etc")
	})
}

func FuzzEntries(f *testing.F) {
	f.Add("alice:x:1:2::/:", "alice 3 4")
	f.Add("a:::", "")
	f.Fuzz(func(t *testing.T, passwd, groups string) {
		a, err := parsePasswd(passwd)
		if err != nil {
			return
		}
		if list, err := parseGroups(groups, a); err == nil && list[0] != a.GID {
			t.Fatal(list)
		}
	})
}

func FuzzGroup(f *testing.F) {
	f.Add("wheel:x:10:alice,bob")
	f.Add("alone:x:12")
	f.Add("::0:")
	f.Add("none:x:4294967295:")
	f.Fuzz(func(t *testing.T, line string) {
		a, err := parseGroup(line)
		if err != nil {
			if a.Name != "" && a.UID != noID {
				t.Fatalf("%+v and %v", a, err)
			}
			return
		}
		if a.UID != noID || a.GID == noID || a.Name == "" || !strings.HasPrefix(line, a.Name+":") || a.Groups != nil {
			t.Fatalf("%+v", a)
		}
	})
}
