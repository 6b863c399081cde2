package fuse

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

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
// calls over a socket would wait for a processor. Neither reading nor answering waits in the kernel; notices may.
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
	request, _, err := d.read(in)
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

func (d *device) close() { d.file.Close() }

// read returns the next request, which is in the buffer, and reports whether it had to be waited for.
func (d *device) read(in *buffer) (request []byte, waited bool, err error) {
	var n int
	closed := d.conn.Read(func(fd uintptr) bool {
		n, err = readOnce(fd, in[:])
		waited = waited || err == unix.EAGAIN
		return err != unix.EAGAIN
	})
	switch {
	case closed != nil:
		err = closed
	case err == nil && n < inHeader:
		err = fmt.Errorf("a request of %d bytes", n)
	}
	return in[:n], waited, err
}

// poll says what there is: POLLIN is a request, POLLERR that the file system is not mounted any more.
func (d *device) poll() (there int16) {
	d.conn.Control(func(fd uintptr) { there = pollOnce(fd, unix.POLLIN) })
	return there
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
	err := error(unix.ENODEV)
	d.conn.Control(func(fd uintptr) { err = writeOnce(fd, answer) })
	if err != nil && err != unix.ENOENT && err != unix.ENODEV { // then nobody waits for it any more
		d.log.Error("the kernel does not take an answer of the file system, and who has asked goes on waiting", "error", err)
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
