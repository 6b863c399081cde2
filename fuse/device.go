package fuse

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fs"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"gssproxyd/limits"
)

// device is the /dev/fuse of a mount: what the kernel asks is read from it, and the answers are
// written to it (Linux, include/uapi/linux/fuse.h).
//
// Go's poller waits for requests, as for what comes over sockets. go-fuse has a server that waits in
// read(2), and to Go's runtime each thread there is one that runs, until it looks again: meanwhile who
// calls over a socket would wait for a processor. Neither reading nor answering waits in the kernel, so the
// runtime is not told of these system calls (RawSyscall): to look after each that comes when nothing else
// runs, it would wake a thread.
type device struct {
	file     *os.File
	conn     syscall.RawConn // of file
	protocol *gofuse.ProtocolServer
	log      *slog.Logger

	buffers sync.Pool // of *buffer
	limits  *limits.Limits
	queue   queue
}

// buffer has room for a request and for an answer of any length.
type buffer [headers + maxWrite]byte

const (
	// maxWrite is the longest write(2) that comes in one request, and the longest read(2); a longer one
	// comes in several.
	maxWrite = 128 << 10

	// headers is room for what comes before the data, and FUSE_MIN_READ_BUFFER.
	headers = 8 << 10

	// shortRequest is the length of most requests, at most, and shortAnswer that of all answers to those
	// that may wait.
	shortRequest = 16 << 10
	shortAnswer  = 256

	// requestSize is what a short request has the daemon hold while it waits, besides its bytes, about.
	requestSize = 256
)

// Numbers of requests (enum fuse_opcode).
const (
	opForget      = 2
	opSetattr     = 4
	opMkdir       = 9
	opRmdir       = 11
	opOpen        = 14
	opWrite       = 16
	opInit        = 26
	opOpendir     = 27
	opInterrupt   = 36
	opBatchForget = 42
)

// newDevice returns the device of a file descriptor, which it owns from now on. Its protocol is for the caller to set.
func newDevice(fd int, l *limits.Limits, log *slog.Logger) (*device, error) {
	err := unix.SetNonblock(fd, true) // for the poller
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	d := &device{file: os.NewFile(uintptr(fd), "/dev/fuse"), log: log, limits: l, queue: queue{running: l.Requests, within: turnWithin}}
	d.buffers.New = func() any { return new(buffer) }
	if err = d.file.SetReadDeadline(time.Time{}); err == nil { // which only what is polled may have
		d.conn, err = d.file.SyscallConn()
	}
	if err != nil {
		d.file.Close()
		return nil, err
	}
	return d, nil
}

// begin answers the kernel's first request, which is about the protocol.
func (d *device) begin() error {
	in, out := new(buffer), new(buffer)
	request, err := d.read(in)
	if err != nil {
		return err
	}
	if opcode(request) != opInit {
		return errors.New("its first request is not FUSE_INIT, so that somebody else has read from it")
	}
	answer := d.answer(request, out[:])
	err = errorIn(answer)
	d.send(answer)
	return err
}

// serve answers requests until the file system is unmounted; then the handlers have ended. One goroutine
// reads them, which waits for no handler: requests whose handlers may wait or take long, as all do that find
// out who asks, are paid for by the user who makes them, and handled in that user's turn, but for mkdir and rmdir.
func (d *device) serve() error {
	forgets := make(chan []byte, 64) // nobody waits for an answer to these: the kernel may keep more
	var others sync.WaitGroup
	others.Go(func() {
		for request := range forgets {
			d.answer(request, nil)
		}
	})
	defer others.Wait()
	defer close(forgets)
	defer d.queue.end()
	in, out, failures := new(buffer), new(buffer), 0
	for {
		request, err := d.read(in)
		switch {
		case err == nil:
			failures = 0
		case errors.Is(err, unix.ENOENT): // who asked does not wait any more
			continue
		case errors.Is(err, unix.ENODEV) || d.ended():
			return nil
		case failures < maxFailures: // of one request, which the kernel has answered
			failures++
			continue
		default:
			return err
		}
		switch op := opcode(request); {
		case op == opForget || op == opBatchForget: // for which go-fuse may collect garbage
			forgets <- slices.Clone(request)
		case mayWait(request):
			if in, err = d.enqueue(request, in); err != nil {
				d.send(refused(request, out[:], errnoOf(err)))
			}
		default:
			d.send(d.answer(request, out[:]))
		}
	}
}

// maxFailures is how many requests may fail to be read one after the other.
const maxFailures = 10

// mayWait reports whether the handler of a request may wait, or has to find out who asks.
func mayWait(request []byte) bool {
	switch opcode(request) {
	case opMkdir, opRmdir, opOpen, opWrite, opOpendir:
		return true
	case opSetattr: // a truncation: of all else the kernel may hold a directory that is everybody's
		return valid(request)&gofuse.FATTR_SIZE != 0
	}
	return false
}

// enqueue has a request handled in its user's turn, and returns the buffer for the next one. The error is
// that of a charge.
func (d *device) enqueue(request []byte, in *buffer) (*buffer, error) {
	long := len(request) > shortRequest
	cost, next := len(request)+requestSize, in
	if long {
		cost = len(in)
	}
	held := charge{buffers: d.limits.Buffers, uid: uid(request)}
	if err := held.more(cost); err != nil {
		return in, err
	}
	if long {
		next = d.buffers.Get().(*buffer)
	} else {
		request = slices.Clone(request)
		clear(in[:len(request)])
	}
	handle := func(late bool) {
		answer := make([]byte, shortAnswer)
		if late {
			answer = refused(request, answer, syscall.ETIMEDOUT)
			clear(request)
		} else {
			answer = d.answer(request, answer)
		}
		if long {
			d.buffers.Put(in)
		}
		held.none() // before who asked can ask again
		d.send(answer)
	}
	if op := opcode(request); op == opMkdir || op == opRmdir {
		// They wait for no turn: meanwhile the kernel holds the directory, and with it all who look for something there. So
		// it sends one at a time of each.
		d.queue.handlers.Go(func() { handle(false) })
	} else {
		d.queue.add(held.uid, handle)
	}
	return next, nil
}

func (d *device) close() { d.file.Close() }

// ended reports whether the file system is not mounted any more.
func (d *device) ended() bool {
	list := []unix.PollFd{{Events: unix.POLLIN}}
	d.conn.Control(func(fd uintptr) {
		list[0].Fd = int32(fd)
		unix.Poll(list, 0)
	})
	return list[0].Revents&unix.POLLERR != 0
}

// read returns the next request, which is in the buffer. It waits for it.
func (d *device) read(in *buffer) ([]byte, error) {
	var n uintptr
	var errno unix.Errno
	closed := d.conn.Read(func(fd uintptr) bool {
		n, _, errno = unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(in)), uintptr(len(in)))
		return errno != unix.EAGAIN
	})
	switch {
	case closed != nil:
		return nil, closed
	case errno != 0:
		return nil, errno
	case n < inHeader:
		return nil, fmt.Errorf("a request of %d bytes", n)
	}
	return in[:n], nil
}

// answer returns the answer to a request, which is cleared. It is in the buffer given, or empty where the
// kernel waits for none.
func (d *device) answer(request, buffer []byte) []byte {
	defer clear(request)
	if opcode(request) == opInterrupt {
		// No handler ends for it, and the kernel need not send more: each has its deadline, and of a signal it is not known
		// whether it ends who asked.
		return refused(request, buffer, unix.ENOSYS)
	}
	if nodeID(request) == gofuse.FUSE_ROOT_ID && bytes.Contains(request, ofGoFuse) {
		return refused(request, buffer, syscall.ENOENT)
	}
	n, status := d.protocol.HandleRequest([][]byte{request}, [][]byte{buffer})
	if !status.Ok() { // as where the answer might be longer than there is room for
		return refused(request, buffer, syscall.Errno(status))
	}
	return buffer[:n]
}

// ofGoFuse is the name of a file that go-fuse has in every file system, for programs that serve what they use.
var ofGoFuse = []byte(".go-fuse-epoll-hack")

// refused returns an answer with an error, in a buffer.
func refused(request, buffer []byte, errno syscall.Errno) []byte {
	return append(buffer[:0], header(0, -int32(errno), unique(request))...)
}

// send writes an answer, unless it is empty, and clears it.
func (d *device) send(answer []byte) {
	if len(answer) == 0 {
		return
	}
	defer clear(answer)
	errno := unix.ENODEV
	d.conn.Control(func(fd uintptr) {
		_, _, errno = unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&answer[0])), uintptr(len(answer)))
	})
	if errno != 0 && errno != unix.ENOENT && errno != unix.ENODEV { // then nobody waits for it any more
		d.log.Error("the kernel does not take an answer of the file system, and who has asked goes on waiting", "error", errno)
	}
}

// The numbers are in the byte order of the machine: in fuse_in_header
//
//	uint32 len, opcode; uint64 unique, nodeid; uint32 uid; …
//
// in fuse_setattr_in, which follows it,
//
//	uint32 valid; …
//
// and in fuse_out_header, which a notice has too,
//
//	uint32 len; int32 error; uint64 unique
func opcode(request []byte) uint32 { return binary.NativeEndian.Uint32(request[4:]) }
func unique(request []byte) uint64 { return binary.NativeEndian.Uint64(request[8:]) }
func nodeID(request []byte) uint64 { return binary.NativeEndian.Uint64(request[16:]) }
func uid(request []byte) uint32    { return binary.NativeEndian.Uint32(request[24:]) }
func valid(request []byte) uint32  { return binary.NativeEndian.Uint32(request[inHeader:]) }

// errorIn returns the error of an answer.
func errorIn(answer []byte) error {
	if code := int32(binary.NativeEndian.Uint32(answer[4:])); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// header is a fuse_out_header that so many bytes follow.
func header(n int, code int32, unique uint64) []byte {
	b := make([]byte, 0, outHeader+n)
	b = binary.NativeEndian.AppendUint32(b, uint32(outHeader+n))
	b = binary.NativeEndian.AppendUint32(b, uint32(code))
	return binary.NativeEndian.AppendUint64(b, unique)
}

const (
	inHeader  = 40
	outHeader = 16
)

// notifyInvalEntry is FUSE_NOTIFY_INVAL_ENTRY.
const notifyInvalEntry = 3

// forgetting is the device as what has the kernel forget entries of directories. Nothing else is asked of it.
type forgetting struct {
	fs.ServerCallbacks
	*device
}

// EntryNotify implements [fs.ServerCallbacks], with a fuse_notify_inval_entry_out:
//
//	uint64 parent; uint32 namelen, flags
//
// and the name, which a NUL ends.
func (f forgetting) EntryNotify(parent uint64, name string) gofuse.Status {
	b := header(16+len(name)+1, notifyInvalEntry, 0)
	b = binary.NativeEndian.AppendUint64(b, parent)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(name)))
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(append(b, name...), 0)
	err := error(unix.ENODEV)
	f.conn.Control(func(fd uintptr) { _, err = unix.Write(int(fd), b) }) // not Write, for which other notices would wait
	return gofuse.ToStatus(err)
}
