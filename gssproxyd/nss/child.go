package nss

import (
	"cmp"
	"errors"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// HelperArg is the argument with which this program is started as a helper, urgentArg the next one
// of the urgent one's.
const (
	HelperArg = "nss-helper"
	urgentArg = "urgent"
)

// StoreHelperArg is the argument with which this program is started as the helper that asks key stores.
const StoreHelperArg = "store-helper"

// Process is a helper that runs.
type Process interface {
	PID() int

	// End ends it at once, and what it runs, and returns how it ended. It reports false if it does
	// not end within a second, or may not be killed: it is left alone then, and goes by itself when
	// it finds that its input has ended. Called again it says without waiting what has become of it.
	End() (how error, ended bool)
}

// StartFunc starts a helper that reads questions from in and answers on out. An urgent one goes before
// others where that is permitted. Both files stay the caller's to close.
type StartFunc func(urgent bool, in, out *os.File) (Process, error)

// StartChild starts a helper as a child of this process. Its descriptors are in, out and /dev/null;
// every other one is closed when it is executed. It changes its user itself: were that done before
// it is executed, in memory that is still the daemon's, the kernel would allow core dumps of the
// daemon from then on.
func StartChild(urgent bool, in, out *os.File) (Process, error) {
	command := selfAs(HelperArg)
	if urgent {
		command = append(command, urgentArg)
	}
	return startChild(command, Environment(), in, out)
}

// StartProgram starts this program as a helper of another kind, arg, in the same way: with two files
// as its standard input and output.
func StartProgram(arg string, in, out *os.File) (Process, error) {
	return startChild(selfAs(arg), Environment(), in, out)
}

// selfAs is the command of this program with an argument. Not by name: that may be another program by
// now, or where nobody may look.
func selfAs(arg string) []string { return []string{"/proc/self/exe", arg} }

// Environment is that of the programs which the daemon starts: PATH as it has it, the C locale, and
// nothing that says where keys are.
func Environment() []string {
	return []string{"PATH=" + cmp.Or(os.Getenv("PATH"), "/usr/sbin:/usr/bin:/sbin:/bin"), "LC_ALL=C"}
}

func startChild(command, env []string, in, out *os.File) (Process, error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Args[0] = "gssproxyd"
	cmd.Env, cmd.Dir = env, "/"
	// A group of its own, so that signals from a terminal do not reach it, and killing it ends what
	// it runs. But the daemon's session: where the kernel divides time among sessions first
	// (autogroup), a priority counts only within one.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stdin, cmd.Stdout = in, out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &child{cmd: cmd, gone: make(chan struct{})}, nil
}

type child struct {
	cmd *exec.Cmd

	kill  sync.Once
	err   error     // why it could not be killed
	until time.Time // when one that was is to be gone
	gone  chan struct{}
	how   error // it ended, when gone is closed
}

func (c *child) PID() int { return c.cmd.Process.Pid }

// killTimeout is how long a helper that was killed may take to be gone.
const killTimeout = time.Second

func (c *child) End() (how error, ended bool) {
	c.kill.Do(func() {
		c.err = c.cmd.Process.Kill()
		c.until = time.Now().Add(killTimeout)
		go func() { // ends with the process
			c.how = c.wait()
			close(c.gone)
		}()
	})
	timer := time.NewTimer(time.Until(c.until))
	defer timer.Stop()
	select {
	case <-c.gone:
		return c.how, true
	case <-timer.C:
	}
	select {
	case <-c.gone: // both were so
		return c.how, true
	default:
		return cmp.Or(c.err, errors.New("it does not end")), false
	}
}

// wait waits for the helper's end, and takes the look-ups along that it left behind. Until it is
// reaped, its number is that of its group and of no other; afterwards it may be anybody's, so this
// is done once.
func (c *child) wait() error {
	pid := c.PID()
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	unix.Kill(-pid, unix.SIGKILL) // those that may not be killed have a deadline
	return c.cmd.Wait()
}
