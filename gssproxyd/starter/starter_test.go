package starter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"gssproxyd/gssproxyd/nss"
	"gssproxyd/gssproxyd/pods"
	"gssproxyd/gssproxyd/scrape"
	"gssproxyd/gssproxyd/stores"
	"gssproxyd/rpc"
	"gssproxyd/tests/lab"
)

// The program that the tests start is this one again.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		var err error
		switch args := os.Args[1:]; args[0] {
		case Arg:
			err = Serve(os.Stdin, func(path string) (Named, error) {
				if args[1] == "broken" {
					return Named{}, errors.New("gssproxy.conf:1: it is broken")
				}
				mode := rpc.ForEverybody
				if _, err := os.Stat(path + ".private"); err == nil {
					mode = 0o600
				}
				if filepath.Base(path) == "private" {
					mode = 0o660
				}
				return Named{Socket: slices.Contains(args[1:], path), Access: rpc.Access{Mode: mode, Owner: -1, Group: -1}, Pod: pods.IsSocket(args[1], path)}, nil
			})
		case daemonArg:
			err = daemon()
		case scrape.HelperArg:
			err = scrape.Help(os.Stdin, os.Stdout)
		case nss.HelperArg:
			err = nss.Help(os.Stdin, os.Stdout, args[1:]...)
		case nss.StoreHelperArg:
			err = stores.Help(os.Stdin)
		default:
			goleak.VerifyTestMain(m)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// daemonArg has the test program be a daemon that gives its end of the conversation to another process.
const daemonArg = "daemon"

// daemon says which processes the starter and the other one are.
func daemon() error {
	c, err := Start([]string{"/nowhere"}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	c.Listen("/anything") // it has begun when it has answered
	end, err := c.conn.File()
	if err != nil {
		return err
	}
	other := exec.Command("sleep", "600")
	other.ExtraFiles = []*os.File{end}
	if err := other.Start(); err != nil {
		return err
	}
	fmt.Println(c.process.Process.Pid, other.Process.Pid)
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func start(t *testing.T, args ...string) (*Client, *lab.LogBuffer) {
	t.Helper()
	log := new(lab.LogBuffer)
	c, err := Start(args, slog.New(slog.NewTextHandler(log, nil)))
	check(t, err)
	t.Cleanup(c.Close)
	return c, log
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// It listens where the configuration says, with the permissions of a socket for everybody, and
// nowhere else.
func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sock")
	c, _ := start(t, path)
	l, err := c.Listen(path)
	check(t, err)
	defer l.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o666 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	client, err := net.Dial("unix", path)
	check(t, err)
	defer client.Close()
	server, err := l.Accept()
	check(t, err)
	defer server.Close()
	raw, err := client.(*net.UnixConn).SyscallConn()
	check(t, err)
	check(t, raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil || int(cred.Pid) != c.process.Process.Pid {
			t.Errorf("%+v, %v: the starter, %d, is to listen", cred, err, c.process.Process.Pid)
		}
	}))

	if _, err := c.Listen(path); err == nil || !strings.Contains(err.Error(), "is listening there already") {
		t.Errorf("a socket that is answered: %v", err)
	}
	other := filepath.Join(dir, "other")
	if _, err := c.Listen(other); err == nil || err.Error() != "socket "+other+": the configuration does not name it" {
		t.Errorf("a socket of the daemon's own choice: %v", err)
	}
	if _, err := os.Stat(other); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	check(t, os.WriteFile(path+".private", nil, 0o600))
	check(t, c.Permit(path))
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if err := c.Permit(other); err == nil || err.Error() != "socket "+other+": the configuration does not name it" {
		t.Errorf("permissions of the daemon's own choice: %v", err)
	}
	if c, _ := start(t, "broken"); true {
		if err := c.Permit(path); err == nil || !strings.Contains(err.Error(), "cannot read the configuration: gssproxy.conf:1: it is broken") {
			t.Error(err)
		}
		if _, err := c.Listen(path); err == nil || !strings.Contains(err.Error(), "cannot read the configuration: gssproxy.conf:1: it is broken") {
			t.Error(err)
		}
	}
}

// It makes and removes pods' sockets, in the one directory for them.
func TestPods(t *testing.T) {
	dir := t.TempDir()
	check(t, os.Chmod(dir, 0o755))
	c, _ := start(t, filepath.Join(dir, "csi", "register.sock"))
	path := filepath.Join(dir, "pods", strings.Repeat("0a", 16), pods.SocketName)
	l, err := c.Listen(path)
	check(t, err)
	l.Close()
	for path, mode := range map[string]os.FileMode{filepath.Join(dir, "pods"): 0o755, filepath.Dir(path): 0o755, path: 0o666} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, st, err)
		}
	}
	check(t, c.Remove(path))
	check(t, c.Remove(path))
	if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	other := filepath.Join(dir, "other")
	check(t, os.Mkdir(other, 0o755))
	for _, path := range []string{
		filepath.Join(other, pods.SocketName), filepath.Join(dir, "pods", "x", pods.SocketName),
		dir + "/pods/../other/" + pods.SocketName, dir + "/pods/" + strings.Repeat("0a", 16) + "/../" + pods.SocketName,
		filepath.Join(dir, "pods", strings.Repeat("0A", 16), pods.SocketName), filepath.Join(dir, "pods", strings.Repeat("0a", 16), "x"),
	} {
		if _, err := c.Listen(path); err == nil || !strings.Contains(err.Error(), "the configuration does not name it") {
			t.Errorf("%s: %v", path, err)
		}
		if err := c.Remove(path); err == nil || !strings.Contains(err.Error(), "the configuration does not name it") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// pipes returns the ends of a helper and those of who asks it.
func pipes(t *testing.T) (in, out, inOurs, outOurs *os.File) {
	t.Helper()
	in, inOurs, err := os.Pipe()
	check(t, err)
	outOurs, out, err = os.Pipe()
	check(t, err)
	t.Cleanup(func() {
		for _, f := range []*os.File{in, out, inOurs, outOurs} {
			f.Close()
		}
	})
	return in, out, inOurs, outOurs
}

// It starts the helper that serves the metrics, on a socket that not everybody may connect to.
func TestScrape(t *testing.T) {
	path := filepath.Join(t.TempDir(), "private")
	c, _ := start(t, path)
	l, err := c.Listen(path)
	check(t, err)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	f, err := l.File()
	check(t, err)
	l.Close()
	defer f.Close()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	var helper nss.Process
	go func() {
		defer close(done)
		scrape.Serve(ctx, scrape.Options{
			Listener: f, Log: slog.New(slog.DiscardHandler), Text: func(bool) ([]byte, error) { return []byte("the text"), nil },
			Start: func(conversation, listener *os.File) (p nss.Process, err error) {
				helper, err = c.Scrape(conversation, listener)
				return helper, err
			},
		})
	}()
	client, err := net.Dial("unix", path)
	check(t, err)
	defer client.Close()
	_, err = io.WriteString(client, "GET /metrics HTTP/1.0\r\n\r\n")
	check(t, err)
	answer, err := io.ReadAll(client)
	check(t, err)
	if !strings.HasSuffix(string(answer), "\r\n\r\nthe text") {
		t.Errorf("%q", answer)
	}
	stop()
	<-done
	if how, ended := helper.End(); ended || how == nil || !strings.Contains(how.Error(), "is no helper of this starter") {
		t.Errorf("%v, ended %t", how, ended)
	}
}

// The helper that asks key stores is a user that nobody else is, and ends with its conversation.
func TestStore(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not run: it takes root to become another user")
	}
	c, _ := start(t, "/nowhere")
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	helper, err := c.Store(theirs)
	theirs.Close()
	check(t, err)
	lab.Await(t, "the helper is root", func() bool {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", helper.PID()))
		return err == nil && !strings.Contains(string(status), "\nUid:\t0\t")
	})
	ours.Close()
	if how, ended := helper.End(); !ended {
		t.Errorf("%v", how)
	}
}

// It starts helpers, which answer, and ends its own and nobody else's.
func TestHelper(t *testing.T) {
	c, _ := start(t, "/nowhere")
	users, err := nss.Start(nss.Options{Start: c.Helper, Urgent: true, Timeout: time.Minute})
	check(t, err)
	defer users.Close()
	if uid, err := users.UID("root"); err != nil || uid != 0 {
		t.Errorf("uid %d, %v", uid, err)
	}

	in, out, _, outOurs := pipes(t)
	h, err := c.Helper(false, in, out)
	check(t, err)
	in.Close()
	out.Close()
	if os.Getuid() == 0 {
		lab.Await(t, "the helper stays root", func() bool {
			st, err := os.Stat(fmt.Sprintf("/proc/%d", h.PID()))
			check(t, err)
			return st.Sys().(*syscall.Stat_t).Uid != 0
		})
	}
	check(t, syscall.Kill(h.PID(), syscall.SIGSTOP))
	if how, ended := h.End(); !ended || how == nil || how.Error() != "signal: killed" {
		t.Errorf("%v, ended %t", how, ended)
	}
	if _, err := bufio.NewReader(outOurs).ReadByte(); err != io.EOF {
		t.Errorf("its output: %v", err)
	}
	if how, ended := h.End(); ended || how == nil || !strings.Contains(how.Error(), "is no helper of this starter") {
		t.Errorf("ended twice: %v, %t", how, ended)
	}
	bystander := exec.Command("sleep", "600")
	check(t, bystander.Start())
	defer bystander.Wait()
	defer bystander.Process.Kill()
	if how, ended := (&helper{c, bystander.Process.Pid}).End(); ended || how == nil {
		t.Errorf("%v, ended %t", how, ended)
	}
	if err := syscall.Kill(bystander.Process.Pid, 0); err != nil {
		t.Errorf("somebody else's process: %v", err)
	}
}

// The kernel waits for one that is urgent.
func TestUrgent(t *testing.T) {
	if on, err := cap.GetProc().GetFlag(cap.Permitted, cap.SYS_NICE); err != nil || !on {
		t.Skip("needs CAP_SYS_NICE, to go before others")
	}
	c, _ := start(t, "/nowhere")
	in, out, _, _ := pipes(t)
	h, err := c.Helper(true, in, out)
	check(t, err)
	lab.Await(t, "it does not go before others", func() bool {
		nice, err := unix.Getpriority(unix.PRIO_PROCESS, h.PID())
		check(t, err)
		return 20-nice == -10
	})
}

// There is an end to how many there are.
func TestHelpers(t *testing.T) {
	c, _ := start(t, "/nowhere")
	for range maxHelpers {
		in, out, _, _ := pipes(t)
		_, err := c.Helper(false, in, out)
		check(t, err)
	}
	in, out, _, _ := pipes(t)
	if _, err := c.Helper(false, in, out); err == nil || !strings.Contains(err.Error(), "restart the daemon") {
		t.Errorf("one more: %v", err)
	}
}

// late is a helper that does not end in time.
type late struct {
	pid   int
	asked bool
}

func (l *late) PID() int { return l.pid }

func (l *late) End() (how error, ended bool) {
	ended = l.asked
	l.asked = true
	return errors.New("it does not end"), ended
}

// One that ends later than it should makes room all the same.
func TestLateEnd(t *testing.T) {
	s := &starter{helpers: make(map[int]nss.Process), staying: make(map[int]bool)}
	for pid := range maxHelpers {
		s.helpers[pid] = &late{pid: pid}
		if answer := s.end(strconv.Itoa(pid)); answer.kind != stays {
			t.Fatalf("%+v", answer)
		}
	}
	in, out, _, _ := pipes(t)
	pid, err := s.start(startHelper, []*os.File{in, out})
	check(t, err)
	if answer := s.end(strconv.Itoa(pid)); answer.kind != done || len(s.helpers) != 0 || len(s.staying) != 0 {
		t.Errorf("%+v; left are %v, %v", answer, s.helpers, s.staying)
	}
}

// It has nothing of the daemon's but its socket, and of root's power what it needs.
func TestConfined(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, whose power it is about")
	}
	secret, err := os.Create(filepath.Join(t.TempDir(), "secret"))
	check(t, err)
	defer secret.Close()
	t.Setenv("KRB5_KTNAME", "secret")
	c, _ := start(t, "/nowhere")
	c.Listen("/anything") // it has begun when it has answered
	proc := fmt.Sprintf("/proc/%d/", c.process.Process.Pid)
	status, err := os.ReadFile(proc + "status")
	check(t, err)
	has, all := cap.GetProc(), 0
	for _, v := range []cap.Value{cap.CHOWN, cap.KILL, cap.SETGID, cap.SETUID, cap.SYS_NICE} {
		if on, _ := has.GetFlag(cap.Permitted, v); on {
			all |= 1 << v
		}
	}
	caps := fmt.Sprintf("%016x", all)
	for _, want := range []string{"CapInh:\t0000000000000000\n", "CapPrm:\t" + caps + "\n", "CapEff:\t" + caps + "\n", "CapAmb:\t0000000000000000\n", "NoNewPrivs:\t1\n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("%q expected in\n%s", want, status)
		}
	}
	fds, err := filepath.Glob(proc + "fd/*")
	check(t, err)
	for _, fd := range fds {
		if to, _ := os.Readlink(fd); to == secret.Name() {
			t.Errorf("%s is %s", fd, to)
		}
	}
	if env, err := os.ReadFile(proc + "environ"); err != nil || strings.Contains(string(env), "KRB5") {
		t.Errorf("%q, %v", env, err)
	}
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		check(t, c.process.Process.Signal(s))
	}
	if _, err := c.Listen("/anything"); err == nil || !strings.Contains(err.Error(), "does not name it") {
		t.Errorf("after a service manager's signals: %v", err)
	}
}

// It ends with the daemon, and takes helpers along that hang. When it ends before, that is said at
// once, and at each request what to do.
func TestEnds(t *testing.T) {
	c, log := start(t, "/nowhere")
	in, out, _, _ := pipes(t)
	h, err := c.Helper(false, in, out)
	check(t, err)
	check(t, syscall.Kill(h.PID(), syscall.SIGSTOP))
	c.Close()
	lab.Await(t, "the helper goes on", func() bool { return syscall.Kill(h.PID(), 0) == syscall.ESRCH })
	if log.String() != "" {
		t.Errorf("log: %s", log)
	}

	c, log = start(t, "/nowhere")
	check(t, c.process.Process.Kill())
	lab.Await(t, "nobody hears of its end", func() bool { return strings.Contains(log.String(), "the starter has ended") })
	for range 2 {
		if _, err := c.Listen("/anything"); err == nil || !strings.Contains(err.Error(), "restart the daemon") {
			t.Error(err)
		}
	}
}

// It ends with the daemon though somebody else has the other end of the conversation.
func TestEndsWithDaemon(t *testing.T) {
	if fd, err := unix.PidfdOpen(os.Getpid(), 0); err != nil {
		t.Skipf("needs pidfd_open: %v", err)
	} else {
		unix.Close(fd)
	}
	cmd := exec.Command("/proc/self/exe", daemonArg)
	stdin, err := cmd.StdinPipe()
	check(t, err)
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	var pid, other int
	_, err = fmt.Fscan(stdout, &pid, &other)
	check(t, errors.Join(err, cmd.Process.Kill()))
	cmd.Wait()
	defer syscall.Kill(other, syscall.SIGKILL)
	lab.Await(t, "the starter goes on", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ") // where no init reaps it
	})
}

// A starter that answered late, on a machine that stood still, answers again; and what it was asked
// for that nobody waits for any more is undone.
func TestLateAnswer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	c, log := start(t, path)
	stop := func(on bool) {
		t.Helper()
		check(t, c.process.Process.Signal(map[bool]os.Signal{true: syscall.SIGSTOP, false: syscall.SIGCONT}[on]))
		var info unix.Siginfo
		check(t, unix.Waitid(unix.P_PID, c.process.Process.Pid, &info, unix.WNOWAIT|map[bool]int{true: unix.WSTOPPED, false: unix.WCONTINUED}[on], nil))
	}
	in, out, _, outOurs := pipes(t)
	for _, request := range []func() error{
		func() error { _, err := c.Helper(false, in, out); return err },
		func() error { _, err := c.Listen(path); return err },
	} {
		lab.Await(t, "it does not answer at all", func() bool { // not before it has begun, and has answered those before
			_, err := c.Listen("/anything")
			return strings.Contains(err.Error(), "does not name it")
		})
		stop(true)
		c.timeout = time.Millisecond
		for range 2 { // which one of them waits for the other
			if err := request(); err == nil || !strings.Contains(err.Error(), "does not answer within") {
				t.Error(err)
			}
		}
		c.timeout = answerTimeout
		stop(false)
	}
	lab.Await(t, "no socket", func() bool {
		l, err := c.Listen(path)
		if err == nil {
			l.Close()
		}
		return err == nil
	})
	in.Close()
	out.Close()
	check(t, outOurs.SetReadDeadline(time.Now().Add(lab.Patience)))
	if _, err := bufio.NewReader(outOurs).ReadByte(); err != io.EOF {
		t.Errorf("its helper goes on: %v", err)
	}
	if log.String() != "" {
		t.Errorf("log: %s", log)
	}
}

// What is no request is refused, or ends it, and does no more.
func TestBadRequests(t *testing.T) {
	c, _ := start(t, "/nowhere")
	for _, m := range []message{{kind: 'x'}, {kind: startHelper}, {kind: startUrgent, files: []*os.File{os.Stdin}}, {kind: startScrape}, {kind: endHelper}, {kind: endHelper, text: "-1"}, {kind: endHelper, text: "1"}, {kind: openSocket}, {kind: permitUsers}} {
		answer, err := c.ask(m)
		check(t, err)
		if answer.kind != failed || answer.text == "" {
			t.Errorf("%q %q: %+v", m.kind, m.text, answer)
		}
	}
	_, err := c.conn.Write(make([]byte, maxMessage+1))
	check(t, err)
	if _, err := receive(c.conn); !errors.Is(err, io.EOF) {
		t.Errorf("a message that is too long: %v", err)
	}
}
