package fuse

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// open is an open file that is paid for. One that is a connection of its caller's is not one of these.
type open struct {
	fs.FileHandle
	paid *paid
}

// Read implements [fs.FileReader].
func (o open) Read(ctx context.Context, dest []byte, off int64) (gofuse.ReadResult, syscall.Errno) {
	if r, ok := o.FileHandle.(fs.FileReader); ok {
		return r.Read(ctx, dest, off)
	}
	return nil, syscall.EBADF
}

// Write implements [fs.FileWriter].
func (o open) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	if w, ok := o.FileHandle.(fs.FileWriter); ok {
		return w.Write(ctx, data, off)
	}
	return 0, syscall.EBADF
}

// Release implements [fs.FileReleaser].
func (o open) Release(ctx context.Context) syscall.Errno {
	o.paid.closed()
	if r, ok := o.FileHandle.(fs.FileReleaser); ok {
		return r.Release(ctx)
	}
	return 0
}

// listing is an open directory, of which is shown what there was when it was opened.
type listing struct {
	list []gofuse.DirEntry
	next int
	paid *paid
}

// Readdirent implements [fs.FileReaddirenter].
func (l *listing) Readdirent(context.Context) (*gofuse.DirEntry, syscall.Errno) {
	if l.next >= len(l.list) {
		return nil, 0
	}
	e := l.list[l.next]
	l.next++
	e.Off = uint64(l.next)
	return &e, 0
}

// Seekdir implements [fs.FileSeekdirer].
func (l *listing) Seekdir(_ context.Context, off uint64) syscall.Errno {
	if off > uint64(len(l.list)) {
		return syscall.EINVAL
	}
	l.next = int(off)
	return 0
}

// Releasedir implements [fs.FileReleasedirer].
func (l *listing) Releasedir(context.Context, uint32) { l.paid.closed() }

// text is an open file whose content is made when it is opened.
type text []byte

func (t text) Read(_ context.Context, dest []byte, off int64) (gofuse.ReadResult, syscall.Errno) {
	return gofuse.ReadResultData(t[min(off, int64(len(t))):][:min(int64(len(dest)), max(0, int64(len(t))-off))]), 0
}

// maxInput is how long what is written for one step may be, in bytes.
const maxInput = 1 << 20

var errTooLong = fmt.Errorf("a step takes an object of %d bytes at most", maxInput)

// conversation is an open file of which each part is written and then its answer read.
type conversation struct {
	op *operation
	by *caller

	// busy is held by who reads or writes. Who comes meanwhile, with a descriptor that was handed on, is
	// told so and does not wait.
	busy  sync.Mutex
	x     *exchange
	in    object
	out   []byte
	asked bool
	late  syscall.Errno // of a part that was not the first of a write(2), which has returned how much came before
	next  int64         // the offset of the next part, if there may be one
	held  charge
}

// Write takes a part of the JSON, or the whole. The end of the object is the end of what is written:
// it is done before this returns, since nobody looks at what close(2) says. The kernel divides what is
// long, and does not say what becomes of a part that is not the first: who goes on with the rest is told
// then.
func (c *conversation) Write(_ context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	if !c.busy.TryLock() {
		return 0, syscall.EAGAIN
	}
	defer c.busy.Unlock()
	if late := c.late; late != 0 {
		c.late = 0
		return 0, late
	}
	more := off > 0 && off == c.next // one to append has an offset too
	if c.next = 0; len(data) == maxWrite {
		c.next = off + maxWrite
	}
	n, errno := c.write(data)
	if more {
		c.late = errno
	}
	return n, errno
}

func (c *conversation) write(data []byte) (uint32, syscall.Errno) {
	if len(c.in.b)+len(data) > maxInput {
		return 0, c.refuse(errTooLong)
	}
	if err := c.held.more(len(data)); err != nil {
		return 0, c.refuse(err)
	}
	switch c.in.add(data) {
	case partial:
		return uint32(len(data)), 0
	case broken:
		return 0, c.refuse(badInput("one JSON object at a time is expected"))
	}
	answer, err := c.x.run(c.op, c.by, c.in.b)
	c.reset()
	if err == nil {
		err = c.held.more(len(answer)) // a context that has come of it is in contexts
	}
	if err != nil {
		clear(answer)
		return 0, c.refuse(err)
	}
	c.out, c.asked = answer, true
	return uint32(len(data)), 0
}

// refuse forgets what was written, and has an error be what is read next. It returns its number.
func (c *conversation) refuse(err error) syscall.Errno {
	c.reset()
	c.out, c.asked = refusalOf(err).answer(), true
	return errnoOf(err)
}

// reset forgets what was written, and what was not read.
func (c *conversation) reset() {
	clear(c.in.b)
	clear(c.out)
	c.in, c.out = object{}, nil
	c.held.none()
}

// Read returns the answer, once: offsets are the kernel's own business.
func (c *conversation) Read(_ context.Context, dest []byte, _ int64) (gofuse.ReadResult, syscall.Errno) {
	if !c.busy.TryLock() {
		return nil, syscall.EAGAIN
	}
	defer c.busy.Unlock()
	c.late = 0
	if !c.asked || len(c.in.b) > 0 {
		return nil, syscall.EINVAL
	}
	n := copy(dest, c.out)
	clear(c.out[:n])
	c.out = c.out[n:]
	return gofuse.ReadResultData(dest[:n]), 0
}

// Release ends the conversation: nobody reads or writes any more.
func (c *conversation) Release(context.Context) syscall.Errno {
	if c.x.server.open.remove(c) {
		c.release()
	}
	return 0
}

func (c *conversation) release() {
	c.reset()
	c.x.drop()
	c.by.close()
}

// execution is the steps of one execution.
type execution struct {
	op   *operation
	x    *exchange
	used func() // whoever reads or writes a file of it uses it

	busy   sync.RWMutex // as of a conversation; who only reads what is there shares it
	ended  atomic.Bool
	in     []byte
	out    []byte
	words  []byte // of the error
	inHeld charge
	held   charge // out
}

// end forgets all. It does not wait for a step: while somebody removes a directory the kernel lets
// nobody else look a name up, make or remove one beside it.
func (e *execution) end() {
	e.ended.Store(true)
	e.settle()
}

// settle forgets all of an execution that has ended, unless somebody is at it, who does it then.
func (e *execution) settle() {
	if e.ended.Load() && e.busy.TryLock() {
		defer e.busy.Unlock()
		e.truncate()
		e.answer(nil)
		e.x.drop()
	}
}

func (e *execution) truncate() {
	clear(e.in)
	e.in = nil
	e.inHeld.none()
}

// answer has what is read be out, and no error, or returns that there is no room for it.
func (e *execution) answer(out []byte) error {
	clear(e.out)
	e.out, e.words = nil, nil
	e.held.none()
	if err := e.held.more(len(out)); err != nil {
		clear(out)
		return err
	}
	e.out = out
	return nil
}

// refuse has error say why, and returns the number. What was answered before stays.
func (e *execution) refuse(err error) syscall.Errno {
	e.words = []byte(refusalOf(err).String())
	return errnoOf(err)
}

// locked calls f while nobody else is at it.
func (e *execution) locked(f func() syscall.Errno) syscall.Errno {
	if !e.busy.TryLock() {
		return syscall.EAGAIN
	}
	defer e.settle()
	defer e.busy.Unlock()
	if e.ended.Load() {
		return syscall.ENOENT
	}
	e.used()
	return f()
}

// read copies from what there is of an execution, as read(2) does.
func (e *execution) read(content *[]byte, dest []byte, off int64) (gofuse.ReadResult, syscall.Errno) {
	if !e.busy.TryRLock() {
		return nil, syscall.EAGAIN
	}
	defer e.settle()
	defer e.busy.RUnlock()
	if e.ended.Load() {
		return nil, syscall.ENOENT
	}
	e.used()
	return gofuse.ReadResultData(dest[:copy(dest, (*content)[min(off, int64(len(*content))):])]), 0
}

// output is the open file outputs, or error.
type output struct {
	e       *execution
	content *[]byte
}

func (o output) Read(_ context.Context, dest []byte, off int64) (gofuse.ReadResult, syscall.Errno) {
	return o.e.read(o.content, dest, off)
}

// input is the open file inputs.
type input struct{ e *execution }

func (i input) Write(_ context.Context, data []byte, _ int64) (n uint32, errno syscall.Errno) {
	return uint32(len(data)), i.e.locked(func() syscall.Errno {
		if len(i.e.in)+len(data) > maxInput {
			return i.e.refuse(errTooLong)
		}
		if err := i.e.inHeld.more(len(data)); err != nil {
			return i.e.refuse(err)
		}
		i.e.in = append(i.e.in, data...)
		return 0
	})
}

func (i input) Read(_ context.Context, dest []byte, off int64) (gofuse.ReadResult, syscall.Errno) {
	return i.e.read(&i.e.in, dest, off)
}

// control is the open file control: execute does what inputs say, as who has opened control; reset
// forgets a context that is not established.
type control struct {
	e  *execution
	by *caller
}

func (c *control) Write(_ context.Context, data []byte, _ int64) (uint32, syscall.Errno) {
	return uint32(len(data)), c.e.locked(func() syscall.Errno {
		switch word := string(bytes.TrimSpace(data)); word {
		case "execute":
			answer, err := c.e.x.run(c.e.op, c.by, c.e.in)
			if err != nil {
				c.e.answer(refusalOf(err).answer())
				return c.e.refuse(err)
			}
			if err := c.e.answer(answer); err != nil { // a context that has come of it is in contexts
				return c.e.refuse(err)
			}
			return 0
		case "reset":
			c.e.truncate()
			c.e.answer(nil)
			if c.e.x.half != nil {
				c.e.x.half.Close()
				c.e.x.half = nil
			}
			return 0
		}
		return c.e.refuse(badInput("control: execute or reset is expected"))
	})
}

func (c *control) Release(context.Context) syscall.Errno {
	if c.e.x.server.open.remove(c) {
		c.release()
	}
	return 0
}

func (c *control) release() { c.by.close() }
