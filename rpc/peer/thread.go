package peer

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Opener is who makes a request of a file system that this program serves (FUSE). What it says of
// the caller's process stays true to that until Close.
type Opener struct {
	*Info
	Session Session
	pidfd   *os.File
}

// FromThread returns who makes a request of FUSE: tid, uid and gid are those in the request, a
// thread's number and its ids for file systems. It must be called while the request is held, which
// keeps the thread from ending and its number from another one. UID, GID, PID, Groups and SELinux are
// read now, the rest when it is wanted or by [Info.ReadNow]. That is nine system calls: three less for
// a session without a leader that is visible here, three more where processes have labels, and four more
// for a thread that is not its process's first.
//
// An error means that nobody can be held to be the caller: the kernel itself makes the request, for
// an export or another file system, or a thread of io_uring does; the thread acts with the ids of
// somebody else; it is not visible here, or has ended; or descriptors or memory are short, see [IsShortage].
func FromThread(tid int32, uid, gid uint32) (*Opener, error) {
	if tid <= 0 {
		return nil, errors.New("the caller is a process that is not visible here: it is in a pid namespace of others, or the kernel itself")
	}
	of, err := readStatus(proc(tid))
	if err != nil {
		return nil, fmt.Errorf("the caller, thread %d, has ended, or /proc is closed to this program: %w", tid, err)
	}
	if !of.hasMemory {
		return nil, fmt.Errorf("thread %d is of the kernel, and acts for somebody who is not known here, as with an exported file system; or it has just ended", tid)
	}
	if of.uids[effective] != uid || of.uids[fileSystem] != uid || of.gids[effective] != gid || of.gids[fileSystem] != gid {
		return nil, fmt.Errorf("thread %d asks as uid %d and gid %d, but runs with the uids %v and the gids %v (real, effective, saved, file system): it acts for somebody else, or another file system does",
			tid, uid, gid, of.uids, of.gids)
	}
	fd, err := unix.PidfdOpen(int(of.process), 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open of process %d: %w", of.process, err)
	}
	o := &Opener{Info: &Info{UID: uid, GID: gid, PID: of.process, Groups: Known(of.groups)}, pidfd: os.NewFile(uintptr(fd), "pidfd")}
	if tid != of.process {
		err = isOwn(of.process, tid)
	}
	if err == nil && !isRunning(fd) {
		err = unix.ESRCH
	}
	if err == nil {
		o.Session, err = sessionOf(of.session)
	}
	if err != nil {
		o.Close()
		return nil, fmt.Errorf("thread %d of process %d: %w", tid, of.process, err)
	}
	p := &process{pid: of.process, kept: o.open}
	o.asks(p)
	label, err := readLabel(proc(tid))
	p.failed(err)
	if label != "" {
		o.SELinux = Known(label)
	}
	return o, nil
}

// ioWorker is PF_IO_WORKER of linux/sched.h.
const ioWorker = 0x10

// isOwn returns an error where a thread is not one that a process runs. Those of io_uring are made by
// the kernel, and keep the ids and groups that the process had then, whatever it has given up since.
func isOwn(process, tid int32) error {
	if _, err := stat(unix.AT_FDCWD, proc(process)+"/task/"+strconv.Itoa(int(tid))); err != nil {
		return err
	}
	running, err := readStat(tid)
	if err != nil {
		return err
	}
	if flags, err := strconv.ParseUint(running.flags, 10, 32); err != nil || flags&ioWorker != 0 {
		return errors.Join(errors.New("it is one of io_uring, which may have the ids of somebody else"), err)
	}
	return nil
}

// open returns a duplicate of the pidfd.
func (o *Opener) open() (pidfd int, err error) {
	raw, err := o.pidfd.SyscallConn()
	if err != nil {
		return -1, net.ErrClosed
	}
	closed := raw.Control(func(fd uintptr) { pidfd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if closed != nil {
		return -1, net.ErrClosed
	}
	return pidfd, err
}

// Close ends what can be asked. What is wanted later is unknown, and [Info.Err] says why.
func (o *Opener) Close() error { return o.pidfd.Close() }

// Session is a session of processes (setsid(2)), as of a login. Sessions can be compared: one that
// has the number of an earlier one is another one, unless the leaders of both have ended before they
// were looked at.
type Session struct {
	ID      int32  // in our pid namespace; 0 if it is not visible there
	started string // when its leader was, empty if that had ended
}

func sessionOf(id int32) (Session, error) {
	started, err := leader(id)
	return Session{id, started}, err
}

// Over reports whether the session's leader has ended since. It is false where that is not known,
// and for a session that had no leader any more.
func (s Session) Over() bool {
	if s.started == "" {
		return false
	}
	started, err := leader(s.ID)
	return err == nil && started != s.started
}

// leader returns when the leader of a session was started, empty if it has ended.
func leader(session int32) (started string, err error) {
	if session == 0 {
		return "", nil
	}
	running, err := readStat(session)
	switch {
	case err == unix.ENOENT, err == unix.ESRCH: // there is none
		return "", nil
	case err != nil:
		return "", fmt.Errorf("%s/stat of the session's leader: %w", proc(session), err)
	case running.session != strconv.Itoa(int(session)): // a number is not used again before the session ends
		return "", nil
	case running.state != "Z" && running.state != "X":
		return running.started, nil
	}
	// Its first thread has ended, but others may go on.
	pidfd, err := unix.PidfdOpen(int(session), 0)
	switch err {
	case nil:
	case unix.ESRCH, unix.ENOENT, unix.EINVAL:
		return "", nil
	default:
		return "", fmt.Errorf("pidfd_open of the session's leader %d: %w", session, err)
	}
	defer unix.Close(pidfd)
	if !isRunning(pidfd) {
		return "", nil
	}
	return running.started, nil
}

// SamePIDNamespace reports whether the process at the other end is in our pid namespace, so that the
// numbers of processes mean the same to both. It is false where that is not known.
func (i *Info) SamePIDNamespace() bool {
	p := i.process
	if p == nil || p.conn == nil {
		return false
	}
	open := p.open
	if !hasPeerPIDFD.Load() {
		open = p.openByPID
	}
	theirs, known := pinned(p, open, func(dir string) (file, error) { return stat(unix.AT_FDCWD, dir+"/ns/pid") })
	own, err := stat(unix.AT_FDCWD, "/proc/self/ns/pid")
	return known && err == nil && theirs.same(own)
}
