// Package booted runs the tests of a package where systemd is process 1: in namespaces of their own,
// in which /etc, /usr and /var can be written to and nothing of that reaches the machine. The tests
// see the machine's files, network, /tmp and home directories, and start units as an administrator
// does, with systemctl.
//
// Four processes of the test program take part, and the first three of them test nothing:
//
//	outer    what go test started; it has the standard input and outputs and the exit status
//	keeper   outside the process namespace: it ends systemd, and takes away what it left, when the
//	         outer process ends, however that ends
//	init     process 1; it mounts what is private and becomes systemd
//	service  what systemd starts; it runs the tests, the program with the outer one's arguments,
//	         directory, environment and descriptors
package booted

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/tests/lab"
)

// Which of the processes this is, and the directory by which they know each other.
const (
	stageVar = "GSSPROXYD_BOOTED"
	dirVar   = "GSSPROXYD_BOOTED_DIR"
)

// Run returns what tests returns, which is run where systemd is process 1 if that is wanted. Without
// root it is run where we are, and its tests are to skip themselves.
func Run(wanted bool, tests func() int) int {
	dir := os.Getenv(dirVar)
	var err error
	switch stage := os.Getenv(stageVar); stage {
	case "":
		if !wanted || os.Geteuid() != 0 {
			return tests()
		}
		status, err := outer()
		if err != nil {
			fmt.Fprintln(os.Stderr, "the tests could not be run where systemd is process 1:", err)
			return 1
		}
		return status
	case "keeper":
		err = keeper(dir)
	case "init":
		err = initProcess(dir)
	case "service":
		err = service(dir)
	case "tests":
		os.Unsetenv(stageVar)
		os.Unsetenv(dirVar)
		return tests()
	default:
		err = fmt.Errorf("%s: no stage %q", stageVar, stage)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// again is this program at another stage.
func again(stage, dir string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), stageVar+"="+stage, dirVar+"="+dir)
	return cmd
}

// command is what the service is to run.
type command struct {
	Program   string
	Args, Env []string
	Dir       string
}

// outer starts the keeper, gives the service our descriptors and returns the exit status of the
// tests.
func outer() (int, error) {
	dir, err := os.MkdirTemp("", "gssbooted-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir) // the keeper does, if it comes so far
	c := command{Args: os.Args[1:], Env: os.Environ()}
	c.Program, err = os.Executable()
	if err != nil {
		return 0, err
	}
	if c.Dir, err = os.Getwd(); err != nil {
		return 0, err
	}
	b, err := json.Marshal(c)
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(dir, "command"), b, 0o600); err != nil {
		return 0, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "socket"), Net: "unix"})
	if err != nil {
		return 0, err
	}
	defer l.Close()

	// It sees the end of this process by the end of its input, and has a session of its own: what a
	// terminal sends is for us.
	cmd := again("keeper", dir)
	life, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("no mount namespace of our own: %w", err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		l.Close()
	}()
	status, err := serveOne(l)
	if err != nil {
		life.Write([]byte{'?'}) // the keeper has ended already, or tells what systemd says
	}
	life.Close()
	return status, errors.Join(err, <-ended)
}

// serveOne waits for the service, gives it our standard descriptors and waits for the exit status.
func serveOne(l *net.UnixListener) (int, error) {
	l.SetDeadline(time.Now().Add(lab.Patience))
	c, err := l.AcceptUnix()
	switch {
	case errors.Is(err, net.ErrClosed):
		return 0, errors.New("systemd ended before it started a service")
	case err != nil:
		return 0, fmt.Errorf("systemd has not started a service: %w", err)
	}
	defer c.Close()
	if _, _, err := c.WriteMsgUnix([]byte{0}, unix.UnixRights(0, 1, 2), nil); err != nil {
		return 0, err
	}
	var status [1]byte
	if _, err := io.ReadFull(c, status[:]); err != nil {
		return 0, fmt.Errorf("systemd ended before the tests did: %w", err)
	}
	return int(status[0]), nil
}

// service runs the tests and says how they ended.
func service(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "command"))
	if err != nil {
		return err
	}
	var what command
	if err := json.Unmarshal(b, &what); err != nil {
		return err
	}
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(dir, "socket"), Net: "unix"})
	if err != nil {
		return err
	}
	defer c.Close()
	files, err := receive(c)
	if err != nil {
		return err
	}
	runtime.LockOSThread() // a thread's death is what Pdeathsig is about
	cmd := exec.Command(what.Program, what.Args...)
	cmd.Dir, cmd.Env = what.Dir, append(what.Env, stageVar+"=tests", dirVar+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	status := 1
	if err = cmd.Run(); cmd.ProcessState != nil {
		if status = cmd.ProcessState.ExitCode(); status < 0 {
			fmt.Fprintln(files[2], "the tests:", err)
			status = 1
		}
		err = nil
	}
	_, err2 := c.Write([]byte{byte(status)})
	io.Copy(io.Discard, c) // until the outer process has it
	return errors.Join(err, err2)
}

// receive returns the three standard descriptors of the outer process.
func receive(c *net.UnixConn) ([]*os.File, error) {
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4*3))
	_, n, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, err
	}
	controls, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range controls {
		fds, err := unix.ParseUnixRights(&controls[i])
		if err != nil {
			return nil, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "standard"))
		}
	}
	if len(files) != 3 {
		return nil, fmt.Errorf("%d descriptors came with the message, not 3", len(files))
	}
	return files, nil
}

// keeper starts process 1 in a control group of its own, and ends both when its input does.
func keeper(dir string) (err error) {
	runtime.LockOSThread() // a thread's death is what Pdeathsig is about
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount(2): private", err)
	}
	groups := filepath.Join(dir, "groups")
	if err := os.Mkdir(groups, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("none", groups, "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("mount(2): the second version of control groups: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(groups, unix.MNT_DETACH)) }()
	group := filepath.Join(groups, filepath.Base(dir))
	if err := os.Mkdir(group, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeGroup(group)) }()
	g, err := os.Open(group)
	if err != nil {
		return err
	}
	defer g.Close()

	// systemd has no console, and writes to what it takes for the kernel's log until journald runs.
	said, err := kernelLog(dir)
	if err != nil {
		return err
	}
	cmd := again("init", dir)
	var stderr lab.LogBuffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS, UseCgroupFD: true, CgroupFD: int(g.Fd()),
		Pdeathsig: syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("process 1: %w", err)
	}
	ended, over := make(chan error, 1), make(chan []byte, 1)
	go func() { ended <- cmd.Wait() }()
	go func() {
		b, _ := io.ReadAll(os.Stdin)
		over <- b
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("process 1 ended: %v; it said:\n%s%s", err, &stderr, said)
	case question := <-over:
		cmd.Process.Kill() // and with it all that is in its namespace
		<-ended
		if len(question) > 0 {
			return fmt.Errorf("process 1 said:\n%s%s", &stderr, said)
		}
		return nil
	}
}

// kernelLog reads what is written to the pipe "log" of the directory.
func kernelLog(dir string) (*lab.LogBuffer, error) {
	name := filepath.Join(dir, "log")
	if err := unix.Mkfifo(name, 0o600); err != nil {
		return nil, os.NewSyscallError("mkfifo", err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0) // and so it never ends
	if err != nil {
		return nil, err
	}
	said := new(lab.LogBuffer)
	go io.Copy(said, f)
	return said, nil
}

// removeGroup removes a control group without processes, and those below.
func removeGroup(group string) error {
	below, err := os.ReadDir(group)
	if err != nil {
		return err
	}
	for _, e := range below {
		if e.IsDir() {
			if err := removeGroup(filepath.Join(group, e.Name())); err != nil {
				return err
			}
		}
	}
	for deadline := time.Now().Add(lab.Patience); ; time.Sleep(time.Millisecond) {
		// A process that has just ended is in it for a while.
		if err = os.Remove(group); !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}
