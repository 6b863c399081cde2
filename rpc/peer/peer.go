// Package peer says who is at the other end of a unix socket. It is the only reader of peer
// identity in this program, and everything it says comes from the kernel:
//
//	SO_PEERCRED    uid, gid and pid of the process that called connect(2)
//	SO_PEERGROUPS  its supplementary groups at that moment
//	SO_PEERSEC     its security label at that moment
//	SO_PEERPIDFD   a descriptor for that very process (Linux 6.5)
//	/proc/PID/...  program, mount namespace, AppArmor profile and control group, read while the
//	               descriptor proves that PID still is that process
//
// Or who makes a request of a file system that this program serves (see [FromThread]).
//
// The first is asked when the connection is accepted, the others when somebody wants to know: most
// rules are about the uid alone. Each is asked once, and the answer kept for the connection, but for
// more groups than a few.
//
// The first three were fixed by connect(2) and stay true when the process changes its uid, ends, or
// leaves the socket to a child; SO_PEERPIDFD stays true to the process. What /proc says is a
// snapshot taken by the first who wants to know: a process can execute another program before or
// after it, and it can hand the socket to another process of its own. So the program separates
// programs run under one uid from each other by mistake, not by force; the uid is the boundary. In
// which unit or container a process is, is root's to change, but for what is below a place that was
// handed to a user (see [Place]).
//
// What the kernel does not tell is reported as unknown and never as an error: the process is gone,
// it is a kernel thread, it lives in a pid namespace we cannot see, or /proc is closed to us. A
// rule that asks for an unknown value must not match.
package peer

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Maybe is an optional value. The zero Maybe is unknown.
type Maybe[T any] struct{ get func() (T, bool) }

// Get returns the value and reports whether it is known. It may have to ask the kernel, the first
// time.
func (m Maybe[T]) Get() (v T, known bool) {
	if m.get == nil {
		return v, false
	}
	return m.get()
}

// Known returns v as a known value.
func Known[T any](v T) Maybe[T] { return Maybe[T]{func() (T, bool) { return v, true }} }

// Info is what is known about a peer. Decisions are made on it, and tests and dry runs may make it
// up.
type Info struct {
	UID, GID uint32 // effective, at connect(2)
	PID      int32  // in our pid namespace; 0 if it is not visible there

	// Groups are the supplementary groups at connect(2), GID not among them unless it is one. Nobody
	// may change them.
	Groups Maybe[[]uint32]

	// Program is the path of the executable file. It is known only if that path, as this process
	// sees the file system, is the file the peer runs: a peer of another mount namespace cannot
	// make up a path. A program that is replaced or removed while it runs keeps the path it had: an
	// upgrade must not cut running services off.
	Program Maybe[string]

	// Trusted is whether the file that Program names is root's, and nobody else may write to it; the
	// file of a file system that a user's process serves (FUSE) is never. Where it is known, Program
	// is of the same moment.
	Trusted Maybe[bool]

	// Place is where the service manager or a container runtime has put the process.
	Place Maybe[Place]

	// Registered is the pod whose socket the peer has come through. It is not of the kernel: whoever
	// listens there says it, by what the kubelet has named, and it counts for a peer whose Place is in
	// that pod.
	Registered Maybe[Pod]

	// AppArmor is the AppArmor label: the name of a profile and, behind it, [Enforced] or another mode.
	AppArmor Maybe[string]

	// SELinux is the security label, without a terminating NUL. On a system with another security
	// module it is that module's label.
	SELinux Maybe[string]

	// MountNS is whether the peer's mount namespace is ours.
	MountNS Maybe[bool]

	process *process // nil if the Info is made up
}

// Enforced is what the kernel appends to the name of an AppArmor profile that it holds a process to.
const Enforced = " (enforce)"

// Credentials returns only the UID, GID and PID (SO_PEERCRED) of the process at the other end: the
// one that called connect(2) when c was accepted, the one that called listen(2) when c was dialled.
func Credentials(c *net.UnixConn) (Info, error) {
	var info Info
	err := control(c, func(fd int) error {
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil {
			info.UID, info.GID, info.PID = cred.Uid, cred.Gid, cred.Pid
		}
		return err
	})
	if err != nil {
		return Info{}, fmt.Errorf("peer: SO_PEERCRED: %w", err)
	}
	return info, nil
}

// FromConn returns the process that [Credentials] are of, and what else can be known about it. That
// is one system call now. Program and MountNS are eleven when the first of them is wanted, with a
// descriptor open meanwhile, two for a moment; Trusted is as many, and reads the list of mounts;
// Place and AppArmor are six each; Groups and SELinux are one. What is wanted after c was closed is
// unknown, and [Info.Err] says why. An error means that the connection has no credentials.
func FromConn(c *net.UnixConn) (*Info, error) {
	info, err := Credentials(c)
	if err != nil {
		return nil, err
	}
	p := &process{conn: c, pid: info.PID}
	info.asks(p)
	info.SELinux = Maybe[string]{sync.OnceValues(p.label)}
	info.Groups = Maybe[[]uint32]{p.groups}
	return &info, nil
}

// asks has the evidence read when it is wanted.
func (i *Info) asks(p *process) {
	i.process = p
	i.Program = Maybe[string]{func() (string, bool) { return p.program(p.open).program.Get() }}
	i.MountNS = Maybe[bool]{func() (bool, bool) { return p.program(p.open).ourNS.Get() }}
	i.Trusted = Maybe[bool]{func() (bool, bool) { return p.trusted(p.open) }}
	i.Place = Maybe[Place]{func() (Place, bool) { return p.place(p.open) }}
	i.AppArmor = Maybe[string]{func() (string, bool) { return p.appArmor(p.open) }}
}

// Evidence is what of a process /proc is read for.
type Evidence uint8

// Parts of the evidence: the fields of [Info] with these names.
const (
	EvidenceProgram Evidence = 1 << iota // and MountNS
	EvidenceTrusted
	EvidencePlace
	EvidenceAppArmor
)

// ReadNow has that read at once which may be wanted later, if the kernel has no SO_PEERPIDFD. There
// it is unknown otherwise: the process can only be found by its number, which may be another one's
// later. On other kernels it does nothing.
//
// Of an [Opener] it is read at once with any kernel.
func (i *Info) ReadNow(wanted Evidence) {
	p := i.process
	if p != nil && p.kept != nil {
		p.readNow(wanted, p.kept)
		return
	}
	if p == nil || wanted == 0 || hasPeerPIDFD.Load() {
		return
	}
	pidfd, err := p.open()
	switch {
	case err == nil:
		unix.Close(pidfd)
		hasPeerPIDFD.Store(true)
		return
	case !errors.Is(err, unix.ENOPROTOOPT):
		return
	}
	p.readNow(wanted, p.openByPID)
}

func (p *process) readNow(wanted Evidence, open opener) {
	if wanted&EvidenceTrusted != 0 {
		p.trusted(open)
	}
	if wanted&EvidenceProgram != 0 {
		p.program(open)
	}
	if wanted&EvidencePlace != 0 {
		p.place(open)
	}
	if wanted&EvidenceAppArmor != 0 {
		p.appArmor(open)
	}
}

// Read returns what of the evidence was asked for until now, which therefore costs nothing any more. Of
// an Info that is made up it is all.
func (i *Info) Read() Evidence {
	if i.process == nil {
		return EvidenceProgram | EvidenceTrusted | EvidencePlace | EvidenceAppArmor
	}
	return Evidence(i.process.read.Load())
}

// hasPeerPIDFD is whether the kernel has been seen to have SO_PEERPIDFD.
var hasPeerPIDFD atomic.Bool

// Err returns why what somebody wanted to know could not be asked, if that was for want of
// descriptors or memory, or because this side has closed the connection. Then what is unknown means
// nothing, and nothing may be decided by it.
func (i *Info) Err() error {
	if i.process != nil {
		if err := i.process.err.Load(); err != nil {
			return *err
		}
	}
	return nil
}

func control(c *net.UnixConn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return Control(raw, f)
}

// Control calls f with the descriptor of a socket, which it must not close.
func Control(raw syscall.RawConn, f func(fd int) error) error {
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// process is the process of a peer, of which /proc is read once for each kind of fact.
type process struct {
	conn *net.UnixConn
	pid  int32
	kept opener // of an Opener's pidfd; nil for a connection

	running  once[facts]
	trust    once[bool]
	placed   once[Place]
	profiled once[string]
	listed   atomic.Pointer[[]uint32] // groups, unless there are many
	err      atomic.Pointer[error]    // see [Info.Err]
	read     atomic.Uint32            // see [Info.Read]
}

// opener returns a pidfd of a process.
type opener func() (pidfd int, err error)

// once is a fact of a process that is read once.
type once[T any] struct {
	sync.Once
	value T
	known bool
}

// facts is what /proc says of the program that a process runs.
type facts struct {
	program Maybe[string]
	ourNS   Maybe[bool]
	trusted bool
}

// program reads the program and its mount namespace.
func (p *process) program(open opener) *facts {
	p.running.Do(func() {
		p.running.value, _ = pinned(p, open, func(dir string) (facts, error) { return readFacts(dir, false) })
		p.read.Or(uint32(EvidenceProgram))
	})
	return &p.running.value
}

// trusted reads the program and whether its file is trusted, at one moment. Where the program was
// read before it must be the same.
func (p *process) trusted(open opener) (trusted, known bool) {
	p.trust.Do(func() {
		f, ok := pinned(p, open, func(dir string) (facts, error) { return readFacts(dir, true) })
		p.running.Do(func() { p.running.value = f })
		p.read.Or(uint32(EvidenceProgram | EvidenceTrusted))
		now, known := f.program.Get()
		before, knew := p.running.value.program.Get()
		p.trust.value, p.trust.known = f.trusted, ok && known && knew && now == before
	})
	return p.trust.value, p.trust.known
}

// place reads in which control group the process is.
func (p *process) place(open opener) (Place, bool) {
	p.placed.Do(func() {
		path, ok := pinned(p, open, readCgroup)
		if ok && path != "" {
			p.placed.value, p.placed.known = PlaceOf(path), true
		}
		p.read.Or(uint32(EvidencePlace))
	})
	return p.placed.value, p.placed.known
}

// appArmor reads the label of the AppArmor security module, where that is in use.
func (p *process) appArmor(open opener) (string, bool) {
	p.profiled.Do(func() {
		label, ok := pinned(p, open, func(dir string) (string, error) {
			b, err := readFile(dir + "/attr/apparmor/current")
			return strings.TrimSuffix(string(b), "\n"), err
		})
		p.profiled.value, p.profiled.known = label, ok && label != ""
		p.read.Or(uint32(EvidenceAppArmor))
	})
	return p.profiled.value, p.profiled.known
}

// pinned reads something below /proc/PID. Everything is looked up by number; if the pidfd says
// afterwards that the process still runs, then the number was this process's all the time.
func pinned[T any](p *process, open opener, read func(dir string) (T, error)) (value T, known bool) {
	if p.pid <= 0 {
		return value, false
	}
	pidfd, err := open()
	if err == nil {
		var v T
		if isRunning(pidfd) {
			if v, err = read(proc(p.pid)); isRunning(pidfd) {
				value, known = v, err == nil
			}
		}
		unix.Close(pidfd)
	}
	p.failed(err)
	return value, known
}

// fewGroups is how many groups are kept. A process may have 65,536, and its user many connections.
const fewGroups = 256

// groups returns the supplementary groups. Many are asked for each time: they cannot change.
func (p *process) groups() (groups []uint32, known bool) {
	if kept := p.listed.Load(); kept != nil {
		return *kept, true
	}
	groups, known = p.askGroups()
	if known && len(groups) <= fewGroups {
		kept := slices.Clone(groups)
		p.listed.Store(&kept)
	}
	return groups, known
}

func (p *process) askGroups() (groups []uint32, known bool) {
	p.failed(control(p.conn, func(fd int) error {
		for n := uint32(64); ; {
			b := make([]uint32, n)
			size := 4 * n
			_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
				uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(unsafe.Pointer(&size)), 0)
			switch {
			case e == 0:
				groups, known = b[:size/4], true
				return nil
			case e == unix.ERANGE && size/4 > n: // it says how many there are
				n = size / 4
			default:
				return e
			}
		}
	}))
	return groups, known
}

// label returns the peer's security label.
func (p *process) label() (label string, known bool) {
	p.failed(control(p.conn, func(fd int) (err error) {
		label, err = unix.GetsockoptString(fd, unix.SOL_SOCKET, unix.SO_PEERSEC)
		return err
	}))
	label = strings.TrimRight(label, "\x00")
	return label, label != ""
}

// failed notes an error that says nothing of the peer.
func (p *process) failed(err error) {
	if IsShortage(err) || errors.Is(err, net.ErrClosed) {
		err = fmt.Errorf("peer: pid %d: %w", p.pid, err)
		p.err.Store(&err)
	}
}

// IsShortage reports whether there is a lack of descriptors or memory, which may end if one waits.
func IsShortage(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM)
}

// open gets the pidfd from the socket, or the one that is kept.
func (p *process) open() (pidfd int, err error) {
	if p.kept != nil {
		return p.kept()
	}
	err = control(p.conn, func(fd int) (err error) {
		pidfd, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		return err
	})
	return pidfd, err
}

// openByPID opens a pidfd by number. Between connect(2) and now the process may have ended and the
// number may have been given away; the equal start time on both sides at least excludes that it
// changed hands while we looked.
func (p *process) openByPID() (pidfd int, err error) {
	before, err := startTime(p.pid)
	if err != nil {
		return -1, err
	}
	fd, err := unix.PidfdOpen(int(p.pid), 0)
	if err != nil {
		return -1, err
	}
	if after, err := startTime(p.pid); err != nil || after != before {
		unix.Close(fd)
		return -1, unix.ESRCH
	}
	return fd, nil
}

// startTime returns when a process was started, in clock ticks since boot, as the text it is.
func startTime(pid int32) (string, error) {
	stat, err := readStat(pid)
	return stat.started, err
}

// status is what is read of a thread's stat: fields 3, 6, 9 and 22. Field 2 is the command in
// parentheses and may hold anything, so fields are counted from the last parenthesis, which ends
// field 2. It is that of a thread, for a process of its first: for that of the process the kernel adds
// up all threads.
type status struct{ state, session, flags, started string }

func readStat(tid int32) (status, error) {
	stat, err := readFile(proc(tid) + "/task/" + strconv.Itoa(int(tid)) + "/stat")
	if err != nil {
		return status{}, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return status{}, unix.ESRCH
	}
	return status{fields[0], fields[6-3], fields[9-3], fields[22-3]}, nil
}

// isRunning polls a pidfd: it becomes readable when the process ends.
func isRunning(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return err == nil && n == 0
		}
	}
}

// readFacts reads the program, and whether its file is trusted if that is wanted.
func readFacts(dir string, trust bool) (f facts, err error) {
	f.ourNS = mountNS(dir)
	ourNS, _ := f.ourNS.Get()
	var exe file
	f.program, exe, err = programOf(dir, ourNS)
	if _, known := f.program.Get(); known && trust && exe.rootsOnly() {
		f.trusted, err = heldByKernel(exe.mount)
	}
	return f, err
}

func proc(pid int32) string { return "/proc/" + strconv.Itoa(int(pid)) }

// mountNS compares the namespace files, which are equal in device and inode if and only if the
// namespaces are the same.
func mountNS(dir string) (ours Maybe[bool]) {
	theirs, err := stat(unix.AT_FDCWD, dir+"/ns/mnt")
	own, err2 := stat(unix.AT_FDCWD, "/proc/thread-self/ns/mnt")
	if err == nil && err2 == nil {
		ours = Known(theirs.same(own))
	}
	return ours
}

// deleted is what the kernel appends to the path of a file whose directory entry is gone, as a
// package update leaves it.
const deleted = " (deleted)"

// programOf reads the exe link. Its text alone proves nothing: the file may lie in a mount namespace
// of the peer's own making, and even a peer of our namespace can execute a file that was opened in
// another one. So the path must name the same file here. A deleted file cannot be looked up; its
// path is good if the file is on the very mount, in our namespace, that its directory is on.
func programOf(dir string, ourNS bool) (path Maybe[string], exe file, err error) {
	link, err := readOnce(func(buf []byte) (int, error) { return unix.Readlink(dir+"/exe", buf) })
	if err != nil || !bytes.HasPrefix(link, []byte("/")) {
		return path, exe, err
	}
	name := string(link)
	exe, err = stat(unix.AT_FDCWD, dir+"/exe")
	if err != nil {
		return path, exe, err
	}
	here, err := statCached(name, ourNS)
	if err == nil && here.same(exe) {
		exe.mount = here.mount // as we see it, who may be in another mount namespace
		return Known(name), exe, nil
	}
	if name, gone := strings.CutSuffix(name, deleted); gone && exe.links == 0 && !IsShortage(err) {
		here, err = statCached(filepath.Dir(name), ourNS)
		if err == nil && exe.mount.known && here.mount == exe.mount {
			return Known(name), exe, nil
		}
	}
	return path, exe, err
}

// rootsOnly reports whether the file is root's and only root may write to it.
func (f file) rootsOnly() bool {
	return f.uid == 0 && f.mode&unix.S_IFMT == unix.S_IFREG && f.mode&0o022 == 0
}

// heldByKernel reports whether a mount of this namespace has a file system that no process serves:
// one that does says of owner and mode what it likes, and may be anybody's. statfs(2) says the same,
// but waits for that process, which need not answer.
func heldByKernel(m mount) (bool, error) {
	if !m.known {
		return false, nil
	}
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return false, err
	}
	defer f.Close()
	kind, err := fsType(f, strconv.FormatUint(m.id, 10))
	name, _, _ := strings.Cut(kind, ".") // fuse.sshfs
	return kind != "" && name != "fuse" && name != "fuseblk", err
}

// fsType finds the file system type of a mount in a mountinfo, "" if the mount is not there:
//
//	36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
func fsType(mountinfo io.Reader, id string) (string, error) {
	lines := bufio.NewReader(mountinfo)
	for {
		line, err := lines.ReadString('\n')
		if rest, ok := strings.CutPrefix(line, id+" "); ok {
			_, rest, _ = strings.Cut(rest, " - ")
			kind, _, _ := strings.Cut(rest, " ")
			return kind, nil
		}
		if err == io.EOF {
			return "", nil
		}
		if err != nil {
			return "", err
		}
	}
}

// stat takes what the kernel has in memory and asks no file server.
func stat(dir int, name string) (st file, err error) {
	var x unix.Statx_t
	err = unix.Statx(dir, name, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT|unix.AT_EMPTY_PATH,
		unix.STATX_INO|unix.STATX_NLINK|unix.STATX_MNT_ID|unix.STATX_TYPE|unix.STATX_MODE|unix.STATX_UID, &x)
	st = file{major: x.Dev_major, minor: x.Dev_minor, inode: x.Ino, links: x.Nlink, uid: x.Uid, mode: x.Mode}
	if x.Mask&unix.STATX_MNT_ID != 0 {
		st.mount = mount{x.Mnt_id, true}
	}
	return st, err
}

// file is which file a name leads to.
type file struct {
	major, minor uint32
	inode        uint64
	links        uint32
	uid          uint32
	mode         uint16
	mount        mount
}

// mount is the mount that a file is on; known since Linux 5.8.
type mount struct {
	id    uint64
	known bool
}

func (f file) same(g file) bool {
	return f.inode == g.inode && f.major == g.major && f.minor == g.minor
}

const resolveCached = 0x20 // RESOLVE_CACHED of linux/openat2.h

// statCached looks up a path that the peer may have chosen, so it must not mount, wait for a file
// server, or follow a link. The directories above a running program are always in the kernel's
// cache. Where the kernel cannot look there only (before Linux 5.12, or a network file system that
// wants to revalidate), a peer of our own mount namespace gets an ordinary look-up.
func statCached(path string, ourNS bool) (file, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: resolveCached | unix.RESOLVE_NO_SYMLINKS,
	}
	for range 3 { // EAGAIN also means that something was renamed meanwhile
		fd, err := unix.Openat2(unix.AT_FDCWD, path, &how)
		switch err {
		case nil:
			defer unix.Close(fd)
			return stat(fd, "")
		case unix.EAGAIN:
		case unix.ENOSYS, unix.EINVAL, unix.EPERM:
			return statOurs(path, ourNS)
		default:
			return file{}, err
		}
	}
	return statOurs(path, ourNS)
}

func statOurs(path string, ourNS bool) (file, error) {
	if !ourNS {
		return file{}, unix.EAGAIN
	}
	return stat(unix.AT_FDCWD, path)
}

// readFile reads a file of /proc, which is short.
func readFile(name string) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return readOnce(func(buf []byte) (int, error) { return unix.Pread(fd, buf, 0) })
}

// readOnce reads into a buffer that is large enough for all to come in one read, which is what
// makes it consistent. Most come in a small one.
func readOnce(read func([]byte) (int, error)) ([]byte, error) {
	for size := 512; size <= 4*unix.PathMax; size *= 4 {
		buf := make([]byte, size)
		n, err := read(buf)
		for err == unix.EINTR {
			n, err = read(buf)
		}
		if err != nil {
			return nil, err
		}
		if n < size {
			return buf[:n], nil
		}
	}
	return nil, unix.ENAMETOOLONG
}
