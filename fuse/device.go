package fuse

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// device is the /dev/fuse of a mount: what the kernel asks is read from it, and the answers are
// written to it (Linux, include/uapi/linux/fuse.h).
//
// Go's poller waits for requests, as for what comes over sockets. go-fuse has a server that waits in
// read(2), and to Go's runtime each thread there is one that runs, until it looks again: meanwhile who
// calls over a socket would wait for a processor.
type device struct {
	file     *os.File
	conn     syscall.RawConn // of file, for writing, which does not wait for other writing: see notices
	protocol *gofuse.ProtocolServer
	log      *slog.Logger

	handlers sync.WaitGroup
	inFlight chan struct{} // has one for each request that may wait
	long     chan struct{} // likewise, for each that is long
	buffers  sync.Pool     // of *buffer
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
	shortRequest = 4 << 10
	shortAnswer  = 256

	// maxInFlight is how many requests that may wait are dealt with at a time, and maxLong how many of
	// them may be long; others wait in the kernel. Steps, which wait longest, are fewer than either.
	maxInFlight = 1024
	maxLong     = 128
)

// Numbers of requests (enum fuse_opcode).
const (
	opSetattr   = 4
	opMkdir     = 9
	opRmdir     = 11
	opOpen      = 14
	opWrite     = 16
	opOpendir   = 27
	opInterrupt = 36
)

// mayWait reports whether the handler of a request may wait or take long, as all do that find out who
// asks. All others are answered by who reads them.
func mayWait(request []byte) bool {
	switch opcode(request) {
	case opSetattr, opMkdir, opRmdir, opOpen, opWrite, opOpendir:
		return true
	}
	return false
}

// newDevice returns the device of a file descriptor, which it owns from now on. Its protocol is for the caller to set.
func newDevice(fd int, log *slog.Logger) (*device, error) {
	if err := unix.SetNonblock(fd, true); err != nil { // for the poller
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	d := &device{file: os.NewFile(uintptr(fd), "/dev/fuse"), log: log, inFlight: make(chan struct{}, maxInFlight), long: make(chan struct{}, maxLong)}
	d.buffers.New = func() any { return new(buffer) }
	var err error
	if d.conn, err = d.file.SyscallConn(); err != nil {
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
	return d.handle(request, out[:])
}

// serve answers requests until the file system is unmounted or [device.stop] is called; then the handlers have ended.
func (d *device) serve() error {
	defer d.handlers.Wait()
	in, out := new(buffer), new(buffer)
	for {
		request, err := d.read(in)
		switch {
		case errors.Is(err, unix.ENOENT): // who asked does not wait any more
			continue
		case errors.Is(err, unix.ENODEV), errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return err
		}
		if !mayWait(request) {
			d.handle(request, out[:])
			continue
		}
		var handed *buffer
		if len(request) <= shortRequest {
			request = slices.Clone(request)
			clear(in[:len(request)])
		} else {
			d.long <- struct{}{}
			handed, in = in, d.buffers.Get().(*buffer)
		}
		d.inFlight <- struct{}{}
		d.handlers.Go(func() {
			d.handle(request, make([]byte, shortAnswer))
			if handed != nil {
				d.buffers.Put(handed)
				<-d.long
			}
			<-d.inFlight
		})
	}
}

// stop has serve end.
func (d *device) stop() { d.file.SetReadDeadline(time.Unix(1, 0)) }

func (d *device) close() { d.file.Close() }

// read returns the next request, which is in the buffer.
func (d *device) read(in *buffer) ([]byte, error) {
	n, err := d.file.Read(in[:])
	if err == nil && n < inHeader {
		err = fmt.Errorf("a request of %d bytes", n)
	}
	return in[:n], err
}

// handle answers one request; the error is what was answered. What the buffers had is cleared.
func (d *device) handle(request, answer []byte) error {
	defer clear(request)
	n, status := 0, gofuse.Status(unix.ENOSYS)
	// No handler ends for an interrupt, which the kernel need not send again: each has its deadline, and of a signal it is
	// not known whether it ends who asked.
	if opcode(request) != opInterrupt {
		n, status = d.protocol.HandleRequest([][]byte{request}, [][]byte{answer})
	}
	if !status.Ok() { // as where the answer might be longer than there is room for
		n = copy(answer, header(0, -int32(status), unique(request)))
	}
	if n == 0 { // none is expected
		return nil
	}
	answer = answer[:n]
	defer clear(answer)
	err := d.write(answer)
	if err != nil && err != unix.ENOENT && err != unix.ENODEV { // then nobody waits for it any more
		d.log.Error("the kernel does not take an answer of the file system, and who has asked goes on waiting", "request", opcode(request), "error", err)
	}
	return cmp.Or(err, errorIn(answer))
}

// write writes an answer or a notice, which is one write(2).
func (d *device) write(b []byte) error {
	err := error(unix.ENODEV)
	d.conn.Control(func(fd uintptr) { _, err = unix.Write(int(fd), b) })
	return err
}

// The numbers are in the byte order of the machine: in fuse_in_header
//
//	uint32 len, opcode; uint64 unique, nodeid; …
//
// and in fuse_out_header, which a notice has too,
//
//	uint32 len; int32 error; uint64 unique
func opcode(request []byte) uint32 { return binary.NativeEndian.Uint32(request[4:]) }
func unique(request []byte) uint64 { return binary.NativeEndian.Uint64(request[8:]) }

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
	return gofuse.ToStatus(f.write(append(append(b, name...), 0)))
}
