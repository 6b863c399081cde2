package files

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"gssproxyd/tests/lab"
)

// io_uring has the kernel open files for a process: at once, in the call that asks for it, or later in
// a thread of the process that runs no program of it, with ids that were the process's once or that it
// has registered. Whoever it is that the file system is asked for then is the process, or nobody.

// rings has this program act on files with io_uring, as the words in its arguments say.
const rings = "GSSPROXYD_TEST_RINGS"

func init() {
	if os.Getenv(rings) != "" {
		runtime.LockOSThread() // a ring's threads are those of the thread that asks
		u := &uring{dir: os.Args[1]}
		for i, word := range os.Args[2:] {
			if err := u.do(word, os.Args[i+3:]); err != nil {
				fmt.Printf("%s: %v\n", word, err)
				os.Exit(1)
			}
		}
		os.Exit(0)
	}
}

// Of linux/io_uring.h.
const (
	opNop, opOpenat, opRead, opWrite = 0, 18, 22, 23

	setupSQPoll         = 1 << 1
	enterGetEvents      = 1 << 0
	enterSQWakeup       = 1 << 1
	registerPersonality = 9
	sqeAsync            = 1 << 4
	offSQEs             = 0x10000000
)

type ringParams struct {
	sqEntries, cqEntries, flags, cpu, idle, features, wq uint32
	_                                                    [3]uint32
	sq                                                   struct{ head, tail, mask, entries, flags, dropped, array, _, _, _ uint32 }
	cq                                                   struct{ head, tail, mask, entries, overflow, cqes, flags, _, _, _ uint32 }
}

type sqe struct {
	op, flags   uint8
	_           uint16
	fd          int32
	off, addr   uint64
	length, how uint32
	_           uint64
	_           uint16
	personality uint16
	_           [5]uint32
}

type uring struct {
	dir         string
	fd          int
	flags       uint32
	params      ringParams
	ring, sqes  []byte
	area        []byte // what requests point to, at the same address in all processes
	personality uint16
}

// areaAt is where area is.
const areaAt = 0x10000000000

func (u *uring) setup(flags uint32) error {
	u.params = ringParams{flags: flags, idle: 10_000}
	fd, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&u.params)), 0)
	if e != 0 {
		return e
	}
	u.fd, u.flags = int(fd), flags
	return u.mapped()
}

func (u *uring) mapped() (err error) {
	const size = 4096
	if u.ring, err = unix.Mmap(u.fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return fmt.Errorf("mmap of a ring: %w", err)
	}
	if u.sqes, err = unix.Mmap(u.fd, offSQEs, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return fmt.Errorf("mmap of requests: %w", err)
	}
	at, err := unix.MmapPtr(-1, 0, unsafe.Add(nil, areaAt), 1<<16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_FIXED)
	if err == nil {
		u.area = unsafe.Slice((*byte)(at), 1<<16)
	}
	return err
}

func (u *uring) at(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&u.ring[off])) }

// ask has a request done and returns what its system call would have.
func (u *uring) ask(s sqe) (int, error) {
	p := &u.params
	*(*sqe)(unsafe.Pointer(&u.sqes[0])) = s
	tail := atomic.LoadUint32(u.at(p.sq.tail))
	*u.at(p.sq.array + 4*(tail&*u.at(p.sq.mask))) = 0
	atomic.StoreUint32(u.at(p.sq.tail), tail+1)
	head := atomic.LoadUint32(u.at(p.cq.head))
	for atomic.LoadUint32(u.at(p.cq.tail)) == head {
		how := uintptr(enterGetEvents)
		if u.flags&setupSQPoll != 0 {
			how |= enterSQWakeup
		}
		submit := uintptr(atomic.LoadUint32(u.at(p.sq.tail)) - atomic.LoadUint32(u.at(p.sq.head)))
		if _, _, e := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), submit, 1, how, 0, 0); e != 0 && e != unix.EINTR {
			return 0, e
		}
	}
	result := *(*int32)(unsafe.Pointer(&u.ring[p.cq.cqes+16*(head&*u.at(p.cq.mask))+8]))
	atomic.StoreUint32(u.at(p.cq.head), head+1)
	if result < 0 {
		return 0, syscall.Errno(-result)
	}
	return int(result), nil
}

// do does what a word says, with what is behind its colons; rest are the words after it.
func (u *uring) do(word string, rest []string) error {
	parts := strings.Split(word, ":")
	how := parts[1:]
	switch parts[0] {
	case "ring":
		return u.setup(0)
	case "polled":
		return u.setup(setupSQPoll)
	case "worker": // has the kernel start a thread of its own, which stays
		fd, err := u.open("/dev/null", syscall.O_RDONLY, []string{"async"})
		if err == nil {
			err = syscall.Close(fd)
		}
		return err
	case "register":
		id, _, e := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(u.fd), registerPersonality, 0, 0, 0, 0)
		if e != 0 {
			return e
		}
		u.personality = uint16(id)
		return nil
	case "leave":
		return syscall.Setgroups(nil)
	case "become":
		id, err := strconv.Atoi(how[0])
		if err == nil {
			err = syscall.Setresgid(id, id, id)
		}
		if err == nil {
			err = syscall.Setresuid(id, id, id)
		}
		return err
	case "thread": // become, but the process's other threads do not
		id, err := strconv.Atoi(how[0])
		if err != nil {
			return err
		}
		for _, call := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
			if _, _, e := unix.RawSyscall(call, uintptr(id), uintptr(id), uintptr(id)); e != 0 {
				return e
			}
		}
		return nil
	case "exec": // goes on as another program, of a user that has the ring
		id, err := strconv.ParseUint(how[0], 10, 32)
		if err != nil {
			return err
		}
		cmd := exec.Command(os.Args[0], append([]string{u.dir, "inherited"}, rest...)...)
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%x", rings, (*[unsafe.Sizeof(u.params)]byte)(unsafe.Pointer(&u.params))[:]))
		cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(u.fd), "ring")}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: uint32(id), Gid: uint32(id)}}
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		copy(u.area, u.dir+"/keys\x00") // a thread that polls reads what it opens here, and not there
		if err := cmd.Run(); err != nil {
			return err
		}
		os.Exit(0)
	case "inherited":
		b, err := hex.DecodeString(os.Getenv(rings))
		if err != nil {
			return err
		}
		u.params = *(*ringParams)(unsafe.Pointer(&b[0]))
		u.fd, u.flags, u.personality = 3, u.params.flags, 1
		return u.mapped()
	case "who":
		fmt.Println(u.who(how))
		return nil
	case "keys":
		fd, err := u.open(u.dir+"/keys", syscall.O_RDONLY, how)
		if err == nil {
			syscall.Close(fd)
		}
		fmt.Println(said(err, "root"))
		return nil
	case "talk":
		return u.talk(how)
	}
	return errors.New("no such word")
}

// sent is a request as words say: async, it is for a thread of the kernel's, and registered, it is made
// with the ids that were registered.
func (u *uring) sent(s sqe, how []string) (int, error) {
	if slices.Contains(how, "async") {
		s.flags |= sqeAsync
	}
	if slices.Contains(how, "registered") {
		s.personality = u.personality
	}
	return u.ask(s)
}

func (u *uring) open(path string, flags int, how []string) (int, error) {
	copy(u.area, path+"\x00")
	return u.sent(sqe{op: opOpenat, fd: unix.AT_FDCWD, addr: areaAt, how: uint32(flags)}, how)
}

// said is what came of something, in one word.
func said(err error, done string) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return unix.ErrnoName(errno)
	}
	return done
}

// who opens the file status and returns whose service it tells of.
func (u *uring) who(how []string) string {
	fd, err := u.open(u.dir+"/modules/krb5/status", syscall.O_RDONLY, how)
	if err != nil {
		return said(err, "")
	}
	defer syscall.Close(fd)
	text := make([]byte, 1<<16)
	n, err := syscall.Read(fd, text)
	for line := range strings.Lines(string(text[:max(n, 0)])) {
		if service, found := strings.CutPrefix(line, "service/"); found && strings.HasSuffix(line, " matches\n") {
			service, _, _ = strings.Cut(service, " ")
			return service
		}
	}
	return said(err, "nobody")
}

// talk asks through transact: it is opened by open(2), and written and read by io_uring.
func (u *uring) talk(how []string) error {
	fd, err := open(u.dir, "names")
	if err != nil {
		return err
	}
	do := func(op uint8, off int64, what []byte) (string, error) {
		copy(u.area, what)
		n, err := u.sent(sqe{op: op, fd: int32(fd), off: uint64(off), addr: areaAt, length: uint32(len(what))}, how)
		return string(u.area[:max(n, 0)]), err
	}
	half := len(alice) / 2
	for _, off := range []int64{0, -1, 7} {
		_, err := do(opWrite, off, alice[:half])
		_, err2 := do(opWrite, off, alice[half:])
		os.Stat(u.dir + "/modules/krb5/operations/names/transact") // as anybody may meanwhile, and the kernel has its size from there
		answer, err3 := do(opRead, off, make([]byte, 8<<10))
		fmt.Println(errors.Join(err, err2, err3), strings.Contains(answer, `"alice@`))
		_, err = do(opWrite, off, []byte("no JSON"))
		answer, err3 = do(opRead, off, make([]byte, 8<<10))
		fmt.Println(said(err, "done"), err3, strings.Contains(answer, "bad-argument"))
	}
	return nil
}

// TestRings: who opens through io_uring is himself or refused, and not who he was, or who gave him a
// ring; and what is open is read and written as with read(2) and write(2).
func TestRings(t *testing.T) {
	if err := new(uring).setup(0); err != nil {
		lab.Lacking(t, "io_uring(7)", err)
	}
	m := newMount(t, `
[service/group]
  mechs = krb5
  euid = 0
  allow_any_uid = yes
  group = 2900
  cred_store = client_keytab:ALICE
  cred_store = ccache:MEMORY:group
  cred_usage = initiate
`)
	path := m.program(t, "rings")
	member := lab.User{UID: 2004, GID: 2004}
	const (
		asBoth  = "both|EACCES "
		nobody  = "EACCES "
		talking = "<nil> true EINVAL <nil> true "
	)
	for _, c := range []struct {
		user  lab.User
		words string
		says  string // a word for each of those that print one; of several, one
	}{
		{both, "ring who who:async worker who:async keys keys:async", asBoth + asBoth + asBoth + nobody + nobody},
		{both, "polled who who:async keys", asBoth + asBoth + nobody},
		{member, "ring who worker leave who who:async", "group|EACCES nobody|EACCES nobody|EACCES "},
		{member, "polled who leave who", "group|EACCES nobody|EACCES "},
		{lab.Root, "ring worker become:2001 who who:async keys keys:async", asBoth + asBoth + nobody + nobody},
		{lab.Root, "ring register become:2001 who:registered who:registered:async keys:registered keys:registered:async", asBoth + asBoth + nobody + nobody},
		{lab.Root, "ring register worker become:2001 who:registered who:registered:async keys:registered keys:registered:async", asBoth + asBoth + nobody + nobody},
		{lab.Root, "ring register worker thread:2001 who:registered who:registered:async keys:registered keys:registered:async", asBoth + asBoth + nobody + nobody},
		{lab.Root, "ring register worker exec:2001 who:registered who:registered:async keys:registered keys:registered:async", asBoth + asBoth + nobody + nobody},
		{lab.Root, "polled become:2001 who keys", asBoth + nobody},
		{lab.Root, "polled exec:2001 keys", nobody},
		{both, "ring talk", strings.Repeat(talking, 3)},
		{both, "ring talk:async", strings.Repeat(talking, 3)},
		{both, "polled talk", strings.Repeat(talking, 3)},
	} {
		cmd := exec.CommandContext(t.Context(), path, append([]string{m.dir}, strings.Fields(c.words)...)...)
		cmd.Env = []string{rings + "=1", "GORACE=atexit_sleep_ms=0"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: c.user.UID, Gid: c.user.GID}}
		if c.user == member {
			cmd.SysProcAttr.Credential.Groups, cmd.SysProcAttr.AmbientCaps = []uint32{2900}, []uintptr{unix.CAP_SETGID}
		}
		out, err := cmd.CombinedOutput()
		said, want := strings.Fields(string(out)), strings.Fields(c.says)
		if err != nil || !slices.EqualFunc(said, want, func(s, w string) bool { return slices.Contains(strings.Split(w, "|"), s) }) {
			t.Errorf("uid %d, %s: %v: %q, want %q", c.user.UID, c.words, err, said, want)
		}
	}
}
