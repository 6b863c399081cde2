package peer

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is also every child process of these tests: the first argument after "child"
// names a function of this table. A child says one line when it is ready and ends when its standard
// input does.
var children = map[string]func(args []string) error{
	"connect": func(args []string) error {
		c, err := net.Dial("unix", args[0])
		if err != nil {
			return err
		}
		defer c.Close()
		return hold("connected")
	},
	"connect-and-exit": func(args []string) error {
		_, err := net.Dial("unix", args[0])
		return err
	},
	"connect-and-setuid": func(args []string) error {
		c, err := net.Dial("unix", args[0])
		if err != nil {
			return err
		}
		defer c.Close()
		if err := syscall.Setuid(65534); err != nil {
			return err
		}
		return hold("connected")
	},
	// The socket goes to a grandchild; this process ends when told to.
	"connect-and-bequeath": func(args []string) error {
		c, err := net.Dial("unix", args[0])
		if err != nil {
			return err
		}
		f, err := c.(*net.UnixConn).File()
		if err != nil {
			return err
		}
		heir := exec.Command("/proc/self/exe", "child", "echo")
		heir.ExtraFiles = []*os.File{f}
		if err := heir.Start(); err != nil {
			return err
		}
		c.Close()
		return hold("connected")
	},
	"echo": func([]string) error {
		sock := os.NewFile(3, "socket")
		_, err := io.Copy(sock, sock)
		return err
	},
	// In a mount namespace of its own, put a copy of the binary on a new file system over directory
	// args[1], and run that copy.
	"cover": func(args []string) error {
		sock, dir := args[0], args[1]
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		self, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return err
		}
		program := filepath.Join(dir, "program")
		if err := os.WriteFile(program, self, 0o755); err != nil {
			return err
		}
		return syscall.Exec(program, []string{program, "child", "connect", sock}, os.Environ())
	},
	"hold": func([]string) error { return hold("held") },
	// Start a process, of which file 3 is the standard input, and say its number.
	"lead": func([]string) error {
		follower := exec.Command("/proc/self/exe", "child", "hold")
		follower.Stdin = os.NewFile(3, "input")
		if err := follower.Start(); err != nil {
			return err
		}
		return hold(fmt.Sprint(follower.Process.Pid))
	},
	// Say what is seen from another pid namespace.
	"look": func([]string) error {
		_, err := FromThread(0, 0, 0)
		return hold(fmt.Sprint(err))
	},
	// Listen, and report the first caller.
	"report": func(args []string) error {
		l, err := net.Listen("unix", args[0])
		if err != nil {
			return err
		}
		fmt.Println("listening")
		c, err := l.Accept()
		if err != nil {
			return err
		}
		p, err := FromConn(c.(*net.UnixConn))
		if err != nil {
			return err
		}
		_, program := p.Program.Get()
		_, mountNS := p.MountNS.Get()
		return json.NewEncoder(os.Stdout).Encode(reported{p.PID, program, mountNS})
	},
}

// reported is what a child found out about who called it.
type reported struct {
	PID              int32
	Program, MountNS bool // whether they are known
}

func hold(line string) error {
	fmt.Println(line)
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "child" {
		if err := children[os.Args[2]](os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, "child", os.Args[2]+":", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// child is a process that runs one function of the table.
type child struct {
	*exec.Cmd
	in  io.Closer
	out *bufio.Reader
}

func start(t *testing.T, program string, attr *syscall.SysProcAttr, args ...string) *child {
	t.Helper()
	return startFiles(t, program, attr, nil, args...)
}

func startFiles(t *testing.T, program string, attr *syscall.SysProcAttr, files []*os.File, args ...string) *child {
	t.Helper()
	cmd := exec.Command(program, append([]string{"child"}, args...)...)
	cmd.Stderr = os.Stderr
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = attr
	cmd.ExtraFiles = files
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
	c := &child{cmd, in, bufio.NewReader(out)}
	t.Cleanup(func() {
		c.in.Close()
		c.Wait()
	})
	return c
}

// ready waits for the child's line.
func (c *child) ready(t *testing.T) string {
	t.Helper()
	line, err := c.out.ReadString('\n')
	if err != nil {
		t.Fatalf("no line from the child: %v", err)
	}
	return strings.TrimSpace(line)
}

func (c *child) end(t *testing.T) {
	t.Helper()
	c.in.Close()
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
}

// listen returns a listener on a socket that every user may connect to.
func listen(t *testing.T) (*net.UnixListener, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "peer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	l.SetDeadline(time.Now().Add(time.Minute))
	return l, path
}

func accept(t *testing.T, l *net.UnixListener) (*net.UnixConn, *Info) {
	t.Helper()
	c, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	p, err := FromConn(c)
	if err != nil {
		t.Fatal(err)
	}
	return c, p
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// copySelf puts the test binary where every user may run it.
func copySelf(t *testing.T, to string) {
	t.Helper()
	text, err := os.ReadFile(self(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, text, 0o755); err != nil {
		t.Fatal(err)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to start a process of another user or mount namespace")
	}
}

func TestOwnProcess(t *testing.T) {
	l, path := listen(t)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, p := accept(t, l)

	if p.UID != uint32(os.Geteuid()) || p.GID != uint32(os.Getegid()) || p.PID != int32(os.Getpid()) {
		t.Errorf("uid %d gid %d pid %d; this is uid %d gid %d pid %d", p.UID, p.GID, p.PID, os.Geteuid(), os.Getegid(), os.Getpid())
	}
	if got, ok := p.Program.Get(); !ok || got != self(t) {
		t.Errorf("program %q, %v; want %q", got, ok, self(t))
	}
	if same, ok := p.MountNS.Get(); !ok || !same {
		t.Errorf("mount namespace same %v, known %v; want both", same, ok)
	}
}

// unknown checks that nothing is said that could only be read from a living process.
func unknown(t *testing.T, p *Info) {
	t.Helper()
	program, hasProgram := p.Program.Get()
	ours, hasNS := p.MountNS.Get()
	if hasProgram || hasNS {
		t.Errorf("known of a process that has ended: program %q, mount namespace %v", program, ours)
	}
}

func TestExitedBeforeAccept(t *testing.T) {
	for _, reaped := range []bool{true, false} {
		t.Run(fmt.Sprintf("reaped=%v", reaped), func(t *testing.T) {
			l, path := listen(t)
			ch := start(t, self(t), nil, "connect-and-exit", path)
			if _, err := ch.out.ReadString('\n'); err != io.EOF {
				t.Fatalf("child: %v, want EOF", err)
			}
			if reaped {
				ch.Wait()
			} else {
				var info unix.Siginfo
				if err := unix.Waitid(unix.P_PID, ch.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
					t.Fatal(err)
				}
			}
			_, p := accept(t, l)
			if p.PID != int32(ch.Process.Pid) || p.UID != uint32(os.Geteuid()) {
				t.Errorf("pid %d uid %d; the child was pid %d", p.PID, p.UID, ch.Process.Pid)
			}
			unknown(t, p)
		})
	}
}

// The process that connected is gone, its child has the socket: the connection works, and must not
// be taken for the one that connected.
func TestGrandchildKeepsTheSocket(t *testing.T) {
	l, path := listen(t)
	ch := start(t, self(t), nil, "connect-and-bequeath", path)
	ch.ready(t)
	c, before := accept(t, l)
	program, ok := before.Program.Get()
	if !ok || before.PID != int32(ch.Process.Pid) {
		t.Fatalf("pid %d, program %q", before.PID, program)
	}
	ch.end(t)
	after, err := FromConn(c)
	if err != nil {
		t.Fatal(err)
	}
	unknown(t, after)

	c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil || b[0] != 'x' {
		t.Errorf("the grandchild does not answer: %q, %v", b, err)
	}
}

// An upgrade does not cut off a program that runs.
func TestReplacedProgram(t *testing.T) {
	for name, replace := range map[string]func(path string) error{
		"removed": os.Remove,
		"updated": func(path string) error {
			if err := os.WriteFile(path+".new", []byte("#!/bin/false\n"), 0o755); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		},
		"upgraded": func(path string) error { // as dpkg does: the old one has a second name until all is there
			return errors.Join(
				os.WriteFile(path+".dpkg-new", []byte("#!/bin/false\n"), 0o755),
				os.Link(path, path+".dpkg-tmp"),
				os.Rename(path+".dpkg-new", path),
				os.Remove(path+".dpkg-tmp"),
			)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, path := listen(t)
			program := filepath.Join(filepath.Dir(path), "program")
			copySelf(t, program)
			ch := start(t, program, nil, "connect", path)
			ch.ready(t)
			if err := replace(program); err != nil {
				t.Fatal(err)
			}
			_, p := accept(t, l)
			if got, ok := p.Program.Get(); !ok || got != program {
				t.Errorf("program %q, %v; want %q", got, ok, program)
			}
		})
	}
}

// A file that really has this name is not a deleted one.
func TestProgramNamedDeleted(t *testing.T) {
	l, path := listen(t)
	program := filepath.Join(filepath.Dir(path), "program"+deleted)
	copySelf(t, program)
	ch := start(t, program, nil, "connect", path)
	ch.ready(t)
	_, p := accept(t, l)
	if got, ok := p.Program.Get(); !ok || got != program {
		t.Errorf("program %q, %v; want %q", got, ok, program)
	}
}

func TestOtherUser(t *testing.T) {
	needRoot(t)
	l, path := listen(t)
	program := filepath.Join(filepath.Dir(path), "program")
	copySelf(t, program)
	for _, groups := range [][]uint32{{}, {7, 100}} {
		ch := start(t, program, &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: 65534, Gid: 65533, Groups: groups},
		}, "connect", path)
		ch.ready(t)
		_, p := accept(t, l)
		if p.UID != 65534 || p.GID != 65533 {
			t.Errorf("uid %d gid %d", p.UID, p.GID)
		}
		if got, ok := p.Program.Get(); !ok || got != program {
			t.Errorf("program %q, %v; want %q", got, ok, program)
		}
	}
}

func TestSetuidAfterConnect(t *testing.T) {
	needRoot(t)
	l, path := listen(t)
	ch := start(t, self(t), nil, "connect-and-setuid", path)
	ch.ready(t)
	_, p := accept(t, l)
	if p.UID != 0 {
		t.Errorf("uid %d, want that of connect(2): 0", p.UID)
	}
}

// A service with a mount namespace of its own, but with our program files.
func TestMountNamespace(t *testing.T) {
	needRoot(t)
	l, path := listen(t)
	ch := start(t, self(t), &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}, "connect", path)
	ch.ready(t)
	_, p := accept(t, l)
	if same, ok := p.MountNS.Get(); !ok || same {
		t.Errorf("mount namespace same %v, known %v; want false, true", same, ok)
	}
	if got, ok := p.Program.Get(); !ok || got != self(t) {
		t.Errorf("program %q, %v; want %q: it is the same file", got, ok, self(t))
	}
	if trusted, ok := p.Trusted.Get(); !ok || !trusted {
		t.Errorf("trusted %t, known %t; it is a file of root's", trusted, ok)
	}
}

// A mount namespace with another file at the path of a program of ours.
func TestForgedPath(t *testing.T) {
	needRoot(t)
	l, path := listen(t)
	dir := filepath.Join(filepath.Dir(path), "bin")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "program")
	copySelf(t, program)
	ch := start(t, self(t), &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}, "cover", path, dir)
	ch.ready(t)
	if link, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", ch.Process.Pid)); err != nil || link != program {
		t.Fatalf("the exe link says %q, %v; this test wants it to say %q", link, err, program)
	}
	_, p := accept(t, l)
	if same, ok := p.MountNS.Get(); !ok || same {
		t.Errorf("mount namespace same %v, known %v; want false, true", same, ok)
	}
	if program, ok := p.Program.Get(); ok {
		t.Errorf("program %q is believed", program)
	}

	// The same file executed by a process of our own mount namespace.
	f, err := os.Open(fmt.Sprintf("/proc/%d/root%s", ch.Process.Pid, program))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, unlink := range []bool{false, true} {
		if unlink {
			if err := os.Remove(fmt.Sprintf("/proc/%d/root%s", ch.Process.Pid, program)); err != nil {
				t.Fatal(err)
			}
		}
		imported := startFiles(t, "/proc/self/fd/3", nil, []*os.File{f}, "connect", path)
		imported.ready(t)
		_, p := accept(t, l)
		if same, ok := p.MountNS.Get(); !ok || !same {
			t.Errorf("mount namespace same %v, known %v; want both", same, ok)
		}
		if program, ok := p.Program.Get(); ok {
			t.Errorf("unlink %v: program %q is believed", unlink, program)
		}
	}
}

// A caller that is not visible in the daemon's pid namespace.
func TestInvisiblePID(t *testing.T) {
	needRoot(t)
	_, path := listen(t)
	path += "2"
	ch := start(t, self(t), &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}, "report", path)
	ch.ready(t)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var got reported
	if err := json.NewDecoder(ch.out).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if got.PID != 0 || got.Program || got.MountNS {
		t.Errorf("known of an invisible process: %+v", got)
	}
}

func TestCredentialsOfListener(t *testing.T) {
	_, path := listen(t)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	info, err := Credentials(c.(*net.UnixConn))
	if err != nil {
		t.Fatal(err)
	}
	if info.UID != uint32(os.Geteuid()) || info.PID != int32(os.Getpid()) {
		t.Errorf("uid %d pid %d", info.UID, info.PID)
	}
}

// Kernels before 6.5 have no SO_PEERPIDFD.
func TestOpenByPID(t *testing.T) {
	l, path := listen(t)
	ch := start(t, self(t), nil, "connect", path)
	ch.ready(t)
	fd, err := (&process{pid: int32(ch.Process.Pid)}).openByPID()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	_, byNumber := accept(t, l)
	byNumber.process.program(byNumber.process.openByPID)
	if got, ok := byNumber.Program.Get(); !ok || got != self(t) {
		t.Errorf("program %q, %v; want %q", got, ok, self(t))
	}
	if !isRunning(fd) {
		t.Error("not running")
	}
	ch.end(t)
	if isRunning(fd) {
		t.Error("running after its end")
	}
	for _, pid := range []int32{int32(ch.Process.Pid), 0, -1} {
		if fd, err := (&process{pid: pid}).openByPID(); err == nil {
			unix.Close(fd)
			t.Errorf("pid %d: opened", pid)
		}
	}
}

func TestStartTime(t *testing.T) {
	mine, err := startTime(int32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	rest := string(text[strings.LastIndexByte(string(text), ')')+2:])
	if want := strings.Fields(rest)[19]; mine != want {
		t.Errorf("start time %s, want %s", mine, want)
	}
}

// A kernel thread has no program.
func TestKernelThread(t *testing.T) {
	if comm, err := readFile("/proc/2/comm"); err != nil || string(comm) != "kthreadd\n" {
		t.Skipf("process 2 is %q, not a kernel thread: %v", comm, err)
	}
	p, _, _ := programOf("/proc/2", true)
	if path, ok := p.Get(); ok {
		t.Errorf("program %q", path)
	}
}

// What was not asked in time is not known, and what was is kept.
func TestAskedOnce(t *testing.T) {
	l, path := listen(t)
	for _, asked := range []bool{true, false} {
		ch := start(t, self(t), nil, "connect", path)
		ch.ready(t)
		c, p := accept(t, l)
		if asked {
			p.Program.Get()
		}
		ch.end(t)
		program, known := p.Program.Get()
		ours, hasNS := p.MountNS.Get()
		if known != asked || known && program != self(t) || hasNS != asked || ours != asked {
			t.Errorf("asked %v: program %q, %v; mount namespace same %v, known %v", asked, program, known, ours, hasNS)
		}
		c.Close()
		if again, known := p.Program.Get(); known != asked || again != program {
			t.Errorf("asked %v: program %q, %v after the end of the connection", asked, again, known)
		}
	}
}

// A lack of descriptors is not that the program is unknown.
func TestNoDescriptors(t *testing.T) {
	l, path := listen(t)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, what := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ESRCH} {
		p := &Info{process: &process{pid: int32(os.Getpid())}}
		if err := p.Err(); err != nil {
			t.Errorf("before anything is asked: %v", err)
		}
		p.process.program(func() (int, error) { return -1, what })
		if err := p.Err(); errors.Is(err, what) != (what != unix.ESRCH) {
			t.Errorf("%v: %v", what, err)
		}
	}
	_, p := accept(t, l)
	if p.Program.Get(); p.Err() != nil {
		t.Error(p.Err())
	}
}

// That the connection is closed on this side says nothing of the peer.
func TestClosed(t *testing.T) {
	l, path := listen(t)
	for _, asked := range []func(*Info){
		func(p *Info) { p.Program.Get() },
		func(p *Info) { p.MountNS.Get() },
		func(p *Info) { p.Trusted.Get() },
		func(p *Info) { p.Place.Get() },
		func(p *Info) { p.AppArmor.Get() },
		func(p *Info) { p.Groups.Get() },
		func(p *Info) { p.SELinux.Get() },
	} {
		ours, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer ours.Close()
		c, p := accept(t, l)
		c.Close()
		if asked(p); !errors.Is(p.Err(), net.ErrClosed) {
			t.Errorf("unknown for no reason: %v", p.Err())
		}
	}
}

func TestNoDescriptorLeak(t *testing.T) {
	l, path := listen(t)
	count := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	once := func() {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, err := l.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		p, err := FromConn(s)
		if err != nil {
			t.Fatal(err)
		}
		p.ReadNow(EvidenceProgram)
		if _, ok := p.Program.Get(); !ok {
			t.Fatal("the program is unknown")
		}
	}
	once()
	before := count()
	for range 50 {
		once()
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func BenchmarkFromConn(b *testing.B) {
	path := filepath.Join(b.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	s, err := l.AcceptUnix()
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := FromConn(s); err != nil {
			b.Fatal(err)
		}
	}
}
