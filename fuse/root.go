package fuse

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// What root has: keys, log and ctl. The kernel looks at the mode, and that it is root who opens is
// seen again here.

// byRoot opens a file for root.
func (s *Server) byRoot(how uint32, open func(context.Context) (fs.FileHandle, syscall.Errno)) opened {
	return func(ctx context.Context, _ uint32) (fs.FileHandle, uint32, syscall.Errno) {
		who, errno := s.identify(ctx)
		if errno != 0 {
			return nil, 0, errno
		}
		defer who.Close()
		if who.UID != 0 {
			return nil, 0, syscall.EACCES
		}
		h, errno := open(ctx)
		return h, how, errno
	}
}

func (s *Server) keys(ctx context.Context) (fs.FileHandle, syscall.Errno) {
	content, err := s.o.Keys(ctx)
	if err != nil {
		return nil, errnoOf(err)
	}
	return text(content), 0
}

// lines is an open file to which words are written, a line each.
type lines func(line string) syscall.Errno

func (l lines) Write(_ context.Context, data []byte, _ int64) (uint32, syscall.Errno) {
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if errno := l(line); errno != 0 {
			return 0, errno
		}
	}
	return uint32(len(data)), 0
}

// ctl is the open file ctl. What is read is the answer to the last line that was written to it.
type ctl struct {
	s *Server

	mu     sync.Mutex
	answer []byte
}

// Write implements [fs.FileWriter].
func (c *ctl) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	within, cancel := context.WithTimeout(c.s.ctx, stepWithin) // for all lines
	defer cancel()
	return lines(func(line string) syscall.Errno {
		answer, err := c.s.control(within, strings.Fields(line))
		if err != nil {
			answer = err.Error()
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.answer = []byte(strings.TrimSuffix(answer, "\n") + "\n")
		if err != nil {
			return syscall.EINVAL
		}
		return 0
	}).Write(ctx, data, off)
}

// Read implements [fs.FileReader]: it returns the answer, once.
func (c *ctl) Read(_ context.Context, dest []byte, _ int64) (gofuse.ReadResult, syscall.Errno) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := copy(dest, c.answer)
	c.answer = c.answer[n:]
	return gofuse.ReadResultData(dest[:n]), 0
}

// control does a line of ctl: drop ID is this file system's own.
func (s *Server) control(ctx context.Context, words []string) (string, error) {
	if words[0] != "drop" {
		return s.o.Control(ctx, words)
	}
	if len(words) != 2 {
		return "", badInput("drop: the id of a context is expected")
	}
	for _, k := range s.contexts.where(func(k *kept) bool { return k.id == words[1] }) {
		s.lapse(&s.contexts, k)
		return "dropped", nil
	}
	return "", badInput("drop: there is no context %.40q", words[1])
}

// events is the file log: what was recorded since the mount, as far as it is kept. Who opens it is one
// of its readers until it is closed.
type events struct {
	readers atomic.Int32 // who have it open

	mu    sync.Mutex
	first uint64 // the offset of what is kept
	kept  []byte
}

// maxEvents is how many bytes of events are kept.
const maxEvents = 64 << 10

// Followed reports whether somebody has the file log open. When a mount ends, the kernel does not say that
// it was closed.
func (s *Server) Followed() bool { return s.events.readers.Load() > 0 && !s.Ended() }

// Record adds a line to the file log.
func (s *Server) Record(line []byte) {
	e := &s.events
	e.mu.Lock()
	defer e.mu.Unlock()
	e.kept = append(append(e.kept, line...), '\n')
	if over := len(e.kept) - maxEvents; over > 0 {
		if end := bytes.IndexByte(e.kept[over:], '\n'); end >= 0 { // whole lines go
			over += end + 1
		}
		e.first += uint64(over)
		e.kept = append(e.kept[:0], e.kept[over:]...)
	}
}

// size is the length of the file: of all lines that there were, so that who follows it sees it grow.
func (e *events) size() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.first + uint64(len(e.kept))
}

// Read implements [fs.FileReader]. Who reads from before what is kept gets what is kept.
func (e *events) Read(_ context.Context, dest []byte, off int64) (gofuse.ReadResult, syscall.Errno) {
	e.mu.Lock()
	defer e.mu.Unlock()
	from := min(max(uint64(off), e.first)-e.first, uint64(len(e.kept)))
	return gofuse.ReadResultData(dest[:copy(dest, e.kept[from:])]), 0
}

// Release implements [fs.FileReleaser].
func (e *events) Release(context.Context) syscall.Errno {
	e.readers.Add(-1)
	return 0
}
