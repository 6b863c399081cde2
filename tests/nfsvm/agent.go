// Package nfsvm tests the daemon with the Linux kernel as its client: nfsd, the NFS client,
// rpc.gssd and a KDC in one virtual machine (QEMU, no KVM), driven from Go tests on the host.
//
// The host sends requests to a small program in the guest, one JSON object a line over the second
// serial port, and gets a line back for each; the tests and all that is expected are on the host.
// The first serial port is the kernel's console. Requests run at the same time unless the host
// waits for an answer before it sends the next.
package nfsvm

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// User is who does something in the guest.
type User struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
}

// Request is one thing for the guest to do.
type Request struct {
	ID int `json:"id"`

	// Op is what:
	//
	//	run    Argv to its end as User; Out is what it wrote
	//	start  Argv as root under Name; what it writes is appended to the file /log/NAME. With Bounding it has these
	//	       capabilities at most, those in Ambient whoever it becomes, and none is to be had by executing another program
	//	signal what was started under Name, with Signal
	//	stop   the same, and wait for its end
	//	put    Text into the file Path with Mode, as root
	//	wait   until the file Path has Text
	//	write  Size bytes, always the same for a Path, into the file Path as User, down to the server
	//	read   the file Path as User
	//	stat   the file Path as User
	//	ls     the directory Path as User
	Op string `json:"op"`

	User User     `json:"user"`
	Argv []string `json:"argv,omitempty"`
	Env  []string `json:"env,omitempty"`
	Name string   `json:"name,omitempty"`

	Bounding []uintptr `json:"bounding,omitempty"`
	Ambient  []uintptr `json:"ambient,omitempty"`

	Signal int           `json:"signal,omitempty"`
	Path   string        `json:"path,omitempty"`
	Text   string        `json:"text,omitempty"`
	Mode   os.FileMode   `json:"mode,omitempty"`
	Size   int           `json:"size,omitempty"`
	Limit  time.Duration `json:"limit,omitempty"` // of run, wait and stop; 0: 30 seconds
}

// Response is what became of the request with the same ID.
type Response struct {
	ID   int           `json:"id"`
	Err  string        `json:"err,omitempty"` // empty: done. The name of an errno where there is one ("EACCES")
	Out  string        `json:"out,omitempty"`
	Sum  string        `json:"sum,omitempty"` // SHA-256 of what was written or read
	Size int64         `json:"size,omitempty"`
	UID  uint32        `json:"uid,omitempty"` // owner, of stat
	GID  uint32        `json:"gid,omitempty"`
	Took time.Duration `json:"took"`
}

// maxOut is how much of a program's output goes over the serial line: its end.
const maxOut = 16 << 10

// agent is the guest's side.
type agent struct {
	mu      sync.Mutex // guards the writer and started
	enc     *json.Encoder
	started map[string]*started
}

type started struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// Serve answers requests until the host closes the line, or says what is none: it never returns
// nil.
func Serve(rw io.ReadWriter) error {
	a := &agent{enc: json.NewEncoder(rw), started: make(map[string]*started)}
	a.reply(Response{Out: "ready"})
	r := bufio.NewReader(rw)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return err
		}
		var q Request
		if err := json.Unmarshal(line, &q); err != nil {
			return fmt.Errorf("request %q: %w", line, err)
		}
		if q.Limit == 0 {
			q.Limit = 30 * time.Second
		}
		go func() {
			begin := time.Now()
			p := a.do(q)
			p.ID, p.Took = q.ID, time.Since(begin)
			a.reply(p)
		}()
	}
}

func (a *agent) reply(p Response) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.enc.Encode(p); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
	}
}

func (a *agent) do(q Request) (p Response) {
	var err error
	switch q.Op {
	case "run":
		p.Out, err = run(q)
	case "start":
		err = a.start(q)
	case "signal":
		err = a.signal(q)
	case "stop":
		err = a.stop(q)
	case "put":
		err = errors.Join(os.MkdirAll(filepath.Dir(q.Path), 0o755), os.WriteFile(q.Path, []byte(q.Text), q.Mode), os.Chmod(q.Path, q.Mode))
	case "wait":
		err = wait(q)
	default:
		// Files are touched by a thread with the user's credentials: the kernel asks for a context
		// for the user who makes the system call. The thread is not used again.
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			runtime.LockOSThread()
			if err = become(q.User); err == nil {
				err = p.file(q)
			}
		}()
		<-ended
	}
	p.Err = describe(err)
	return p
}

// describe is the name of the errno in err, or err's text.
func describe(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return ""
	case errors.As(err, &errno) && unix.ErrnoName(errno) != "":
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// become gives the calling thread, and no other, the user's credentials.
func become(u User) error {
	if u.UID == 0 {
		return nil
	}
	groups := append([]uint32{u.GID}, u.Groups...)
	if err := unix.Setgroups(asInts(groups)); err != nil {
		return err
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(u.GID), uintptr(u.GID), uintptr(u.GID)); e != 0 {
		return e
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(u.UID), uintptr(u.UID), uintptr(u.UID)); e != 0 {
		return e
	}
	return nil
}

func asInts(v []uint32) []int {
	ints := make([]int, len(v))
	for i := range v {
		ints[i] = int(v[i])
	}
	return ints
}

func (p *Response) file(q Request) error {
	switch q.Op {
	case "write":
		f, err := os.OpenFile(q.Path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
		if err != nil {
			return err
		}
		content := Content(q.Path, q.Size)
		_, err = f.Write(content)
		err = errors.Join(err, f.Sync(), f.Close())
		p.Sum, p.Size = Sum(content), int64(len(content))
		return err
	case "read":
		b, err := os.ReadFile(q.Path)
		p.Sum, p.Size = Sum(b), int64(len(b))
		return err
	case "stat":
		var st unix.Stat_t
		err := unix.Stat(q.Path, &st)
		p.UID, p.GID, p.Size = st.Uid, st.Gid, st.Size
		return err
	case "ls":
		entries, err := os.ReadDir(q.Path)
		for _, e := range entries {
			p.Out += e.Name() + "\n"
		}
		return err
	}
	return fmt.Errorf("no operation %q", q.Op)
}

// Content is what "write" writes.
func Content(path string, size int) []byte {
	line := path + ": the quick brown fox jumps over the lazy dog\n"
	return []byte(strings.Repeat(line, size/len(line)+1)[:size])
}

// Sum is how content is told from other content.
func Sum(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

func run(q Request) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), q.Limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, q.Argv[0], q.Argv[1:]...)
	cmd.Env = append(os.Environ(), q.Env...)
	cmd.WaitDelay = time.Second
	if q.User.UID != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: q.User.UID, Gid: q.User.GID, Groups: q.User.Groups}}
	}
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("not done within %v", q.Limit)
	}
	if n := len(out); n > maxOut {
		out = out[n-maxOut:]
	}
	return string(out), err
}

func (a *agent) start(q Request) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.started[q.Name] != nil {
		return fmt.Errorf("%s runs already", q.Name)
	}
	f, err := os.OpenFile("/log/"+q.Name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := exec.Command(q.Argv[0], q.Argv[1:]...)
	cmd.Env = append(os.Environ(), q.Env...)
	cmd.Stdout, cmd.Stderr = f, f
	if err := bounded(q.Bounding, q.Ambient, cmd.Start); err != nil {
		return err
	}
	s := &started{cmd: cmd, done: make(chan struct{})}
	a.started[q.Name] = s
	go func() {
		err := cmd.Wait()
		if f, e := os.OpenFile("/log/"+q.Name, os.O_APPEND|os.O_WRONLY, 0o600); e == nil {
			fmt.Fprintf(f, "(%s ended: %v)\n", q.Name, err)
			f.Close()
		}
		close(s.done)
	}()
	return nil
}

// bounded starts a process from a thread with no other capabilities in its bounding set than those
// given, and with the ambient ones, as a service manager does with CapabilityBoundingSet=,
// AmbientCapabilities= and NoNewPrivileges=. None given are all.
func bounded(capabilities, ambient []uintptr, start func() error) error {
	if len(capabilities) == 0 {
		return start()
	}
	err := make(chan error)
	go func() {
		runtime.LockOSThread() // and it ends with this function
		for c := uintptr(0); unix.Prctl(unix.PR_CAPBSET_READ, c, 0, 0, 0) == nil; c++ {
			if slices.Contains(capabilities, c) {
				continue
			}
			if e := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); e != nil {
				err <- fmt.Errorf("capability %d: %w", c, e)
				return
			}
		}
		if e := raise(ambient); e != nil {
			err <- e
			return
		}
		if e := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); e != nil {
			err <- e
			return
		}
		err <- start()
	}()
	return <-err
}

// raise makes capabilities of this thread's inheritable and ambient.
func raise(capabilities []uintptr) error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return err
	}
	for _, c := range capabilities {
		data[c/32].Inheritable |= 1 << (c % 32)
	}
	if err := unix.Capset(&head, &data[0]); err != nil {
		return err
	}
	for _, c := range capabilities {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0); err != nil {
			return fmt.Errorf("ambient capability %d: %w", c, err)
		}
	}
	return nil
}

func (a *agent) signal(q Request) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.started[q.Name]
	if s == nil {
		return fmt.Errorf("%s was not started", q.Name)
	}
	return s.cmd.Process.Signal(syscall.Signal(q.Signal))
}

func (a *agent) stop(q Request) error {
	a.mu.Lock()
	s := a.started[q.Name]
	delete(a.started, q.Name)
	a.mu.Unlock()
	if s == nil {
		return fmt.Errorf("%s was not started", q.Name)
	}
	s.cmd.Process.Signal(syscall.Signal(q.Signal))
	select {
	case <-s.done:
		return nil
	case <-time.After(q.Limit):
		s.cmd.Process.Kill()
		return fmt.Errorf("%s did not end on signal %d within %v", q.Name, q.Signal, q.Limit)
	}
}

func wait(q Request) error {
	deadline := time.Now().Add(q.Limit)
	for {
		b, err := os.ReadFile(q.Path)
		if err == nil && strings.Contains(string(b), q.Text) {
			return nil
		}
		if time.Now().After(deadline) {
			if n := len(b); n > 1000 {
				b = b[n-1000:]
			}
			return fmt.Errorf("%s has no %q after %v: %q, %v", q.Path, q.Text, q.Limit, b, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
