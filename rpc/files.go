package rpc

import (
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"gssproxyd/rpc/peer"
)

// tryReceive is tryRead for a server that takes files. There is room for one: the kernel closes what
// else is sent with it.
func (s *stream) tryReceive(fd uintptr) bool {
	if s.buf == nil {
		s.buf = s.pool.Get().(*buffers)
	}
	const fileLen = 4
	control := make([]byte, unix.CmsgLen(fileLen)) // with that of CmsgSpace there are two
	n := 0
	for {
		s.n, n, _, _, s.err = syscall.Recvmsg(int(fd), s.buf.in[s.end:], control, unix.MSG_CMSG_CLOEXEC)
		if s.err != syscall.EINTR {
			break
		}
	}
	if s.err == nil && n > 0 {
		s.received(control[:n])
	}
	return s.tried()
}

// received takes the files of a control message, and closes all but the first of a record.
func (s *stream) received(control []byte) {
	messages, _ := unix.ParseSocketControlMessage(control)
	for _, m := range messages {
		files, _ := unix.ParseUnixRights(&m)
		for _, fd := range files {
			if s.file != nil {
				unix.Close(fd)
				continue
			}
			s.file = os.NewFile(uintptr(fd), "received")
		}
	}
}

// takeFile returns what the record has brought, which is the caller's then.
func (s *stream) takeFile() *os.File {
	f := s.file
	s.file = nil
	return f
}

// dropFile closes what the record has brought and nobody has taken.
func (s *stream) dropFile() {
	if f := s.takeFile(); f != nil {
		f.Close()
	}
}

// sendWith sends the beginning of b, with a file, and returns how much that was.
func sendWith(nc *net.UnixConn, b []byte, f *os.File) (n int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = peer.Control(raw, func(fd int) (err error) {
		n, _, err = nc.WriteMsgUnix(b, unix.UnixRights(fd), nil)
		return err
	})
	return n, err
}
