package rpc

import (
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"gssproxyd/limits"
	"gssproxyd/mech/reason"
)

// Buffers start at bufferLen bytes and are lent to a connection from the first byte of a record to
// the end of the answer, so that an idle connection holds none. A long record gets longer ones,
// which are lent again as well: making new ones keeps the collector busy, at the expense of all. So
// is a longer buffer for replies, up to keepLen.
const (
	bufferLen = 8 << 10
	keepLen   = 64 << 10
)

// longer are pools of buffers, twice as long from one to the next, up to the longest record with
// its marks.
type longer [7]sync.Pool

// class returns which pool has buffers of at least n bytes, more than bufferLen, and how long they
// are.
func (l *longer) class(n int) (pool *sync.Pool, size int) {
	const marks = maxFragments * markLen
	i := max(1, bits.Len(uint((n-marks-1)/bufferLen)))
	return &l[i-1], bufferLen<<i + marks
}

func (l *longer) get(n int) []byte {
	pool, size := l.class(n)
	if b, ok := pool.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, size)
}

// put takes a buffer back that has been cleared.
func (l *longer) put(b []byte) {
	pool, _ := l.class(len(b))
	pool.Put(&b)
}

// buffers are lent together. in is first, or one of longer. out is made for the first reply: a
// record that never becomes complete needs none.
type buffers struct{ in, out, first []byte }

func newBuffers() any {
	b := &buffers{in: make([]byte, bufferLen)}
	b.first = b.in
	return b
}

// reply returns an empty buffer for a reply.
func (b *buffers) reply() []byte {
	if b.out == nil {
		b.out = make([]byte, 0, bufferLen)
	}
	return b.out
}

// stream reads records from, and writes replies to, one connection. It belongs to the connection's
// goroutine.
//
// Bytes received and not yet consumed are buf.in[start:end]. One read(2) takes whatever the socket
// has: mostly a whole call, sometimes several.
type stream struct {
	raw     syscall.RawConn
	nc      *net.UnixConn
	pool    *sync.Pool // of *buffers
	longer  *longer
	memory  *limits.Budget // what buffers beyond bufferLen and unread replies may take
	uid     uint32         // whom they are charged to
	timeout time.Duration  // for a record to become complete, and for a reply to be read

	buf        *buffers // nil while nothing is held
	start, end int
	charged    int
	unread     int       // of that, for replies that the peer is slow to read
	armed      bool      // the record being read has its deadline
	returnIdle bool      // errIdle instead of waiting for a record
	deadline   time.Time // the read deadline in force
	file       *os.File  // what the record being read has brought; nil if nothing, or if nobody wants it

	// One system call: its bounds, its closure, its result.
	out                 []byte
	readOnce, writeOnce func(fd uintptr) bool
	n                   int
	err                 error
}

func newStream(nc *net.UnixConn, raw syscall.RawConn, pool *sync.Pool, longer *longer, memory *limits.Budget, uid uint32, timeout time.Duration) *stream {
	s := &stream{raw: raw, nc: nc, pool: pool, longer: longer, memory: memory, uid: uid, timeout: timeout}
	s.readOnce, s.writeOnce = s.tryRead, s.tryWrite
	return s
}

// errIdle says that the next record has not begun to arrive, and that waiting for it is for another
// goroutine.
var errIdle = errors.New("no record yet")

// record returns the next record, which is valid until the next call of record. The error is io.EOF
// if the peer closed between two records.
func (s *stream) record() ([]byte, error) {
	s.armed = false
	size, pos := 0, 0 // of the record so far; of its bytes on the wire, marks included
	for range maxFragments {
		if err := s.need(pos + markLen); err != nil {
			return nil, err
		}
		mark := binary.BigEndian.Uint32(s.buf.in[s.start+pos:])
		n := int(mark &^ lastFragment)
		if n > MaxRecord-size {
			return nil, errTooLong
		}
		if err := s.need(pos + markLen + n); err != nil {
			return nil, err
		}
		in := s.buf.in[s.start:s.end]
		if pos > 0 { // close the gap that the mark leaves
			copy(in[markLen+size:], in[pos+markLen:pos+markLen+n])
		}
		size += n
		pos += markLen + n
		if mark&lastFragment != 0 {
			s.start += pos
			clear(in[markLen+size : pos]) // what the gaps left behind
			if s.start < s.end {
				s.dropFile() // it may be the next one's
			}
			return in[markLen : markLen+size : markLen+size], nil
		}
	}
	return nil, errFragments
}

// need makes n bytes available from start on.
func (s *stream) need(n int) error {
	for s.end-s.start < n {
		if err := s.fill(n); err != nil {
			return err
		}
	}
	return nil
}

// fill does one read for a record that is n bytes long as far as is known.
func (s *stream) fill(n int) error {
	if s.end > s.start {
		if err := s.room(n); err != nil {
			return err
		}
		s.arm()
	} else {
		s.start, s.end = 0, 0
	}
	err := s.raw.Read(s.readOnce)
	switch {
	case err == nil && s.err == syscall.EAGAIN:
		return errIdle
	case errors.Is(err, os.ErrDeadlineExceeded):
		if s.end > s.start {
			return errIncomplete
		}
		// Idle, and the deadline was that of an earlier record.
		s.deadline = time.Time{}
		return s.nc.SetReadDeadline(s.deadline)
	case err != nil:
		return err
	case s.err != nil:
		return os.NewSyscallError("read", s.err)
	case s.n == 0 && s.end > s.start:
		return errCutShort
	case s.n == 0:
		return io.EOF
	}
	s.end += s.n
	return nil
}

// room makes space for more of a record of n bytes. The buffer grows when what it has is full,
// eightfold at most: a claimed length alone buys nothing.
func (s *stream) room(n int) error {
	in := s.buf.in
	if s.start+n > len(in) && s.start > 0 {
		old := s.end
		s.end = copy(in, in[s.start:old])
		s.start = 0
		clear(in[s.end:old])
	}
	if s.end < len(in) {
		return nil
	}
	n = min(n, 8*len(in))
	_, size := s.longer.class(n)
	if err := s.charge(size - len(in)); err != nil {
		return err
	}
	s.buf.in = s.longer.get(n)
	copy(s.buf.in, in)
	clear(in)
	if len(in) > bufferLen {
		s.longer.put(in)
	}
	return nil
}

// hold takes a copy of what has not come through a socket: it is buf.in[:end], until release.
func (s *stream) hold(b []byte) error {
	s.buf = s.pool.Get().(*buffers)
	s.start, s.end = 0, 0
	for rest := b; len(rest) > 0; {
		if err := s.room(len(b)); err != nil {
			return err
		}
		n := copy(s.buf.in[s.end:], rest)
		s.end, rest = s.end+n, rest[n:]
	}
	return nil
}

func (s *stream) charge(n int) error {
	if err := s.memory.Take(s.uid, n); err != nil {
		return &Fault{reason.TooMuchBuffered, err.Error()}
	}
	s.charged += n
	return nil
}

// arm gives the record that has begun its timeout, and at most half as much again. So most records
// that come in pieces find a deadline that is good for them, and idle connections are woken once.
func (s *stream) arm() {
	if s.armed {
		return
	}
	s.armed = true
	if now := time.Now(); s.deadline.Sub(now) < s.timeout {
		s.deadline = now.Add(s.timeout + s.timeout/2)
		s.nc.SetReadDeadline(s.deadline)
	}
}

// release gives the buffers back. Nothing unread may be in them.
func (s *stream) release() {
	if s.buf == nil {
		return
	}
	b := s.buf
	s.buf = nil
	clear(b.in[s.start:s.end]) // of a record that was not complete
	if s.charged > 0 {
		s.memory.Give(s.uid, s.charged)
		s.charged, s.unread = 0, 0
	}
	if len(b.in) > bufferLen {
		s.longer.put(b.in)
		b.in = b.first
	}
	if cap(b.out) <= keepLen {
		s.pool.Put(b)
	}
}

// write sends one record, mark included.
func (s *stream) write(b []byte) error {
	s.out = b
	if err := s.raw.Write(s.writeOnce); err != nil {
		return err
	}
	if s.err != nil && s.err != syscall.EAGAIN {
		return os.NewSyscallError("write", s.err)
	}
	rest := b[max(s.n, 0):]
	if len(rest) == 0 {
		return nil
	}
	// The socket is full of replies that the peer has not read.
	if more := cap(b) - s.unread; more > 0 {
		if err := s.charge(more); err != nil {
			return err
		}
		s.unread += more
	}
	if err := s.nc.SetWriteDeadline(time.Now().Add(s.timeout)); err != nil {
		return err
	}
	if _, err := s.nc.Write(rest); errors.Is(err, os.ErrDeadlineExceeded) {
		return errUnread
	} else if err != nil {
		return err
	}
	return s.nc.SetWriteDeadline(time.Time{})
}

// tryRead and tryWrite are what the network poller calls when the socket is ready; they return
// false to wait for it. So waiting needs no buffer.
func (s *stream) tryRead(fd uintptr) bool {
	if s.buf == nil {
		s.buf = s.pool.Get().(*buffers)
	}
	for {
		s.n, s.err = syscall.Read(int(fd), s.buf.in[s.end:])
		if s.err != syscall.EINTR {
			break
		}
	}
	return s.tried()
}

// tried returns what the network poller wants to know of a read.
func (s *stream) tried() bool {
	if s.err != syscall.EAGAIN {
		return true
	}
	if s.end > s.start {
		return false
	}
	s.release()
	return s.returnIdle
}

// tryWrite never waits: a write that would is for write to deal with.
func (s *stream) tryWrite(fd uintptr) bool {
	for {
		s.n, s.err = syscall.Write(int(fd), s.out)
		if s.err != syscall.EINTR {
			return true
		}
	}
}
