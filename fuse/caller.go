package fuse

import (
	"context"
	"os"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"gssproxyd/interposer"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// A caller is who has opened a file, for as long as it is open.
type caller struct {
	*peer.Opener
	calls interposer.Caller // as over the default socket; nil: they are to be had again
	held  charge            // its groups
}

// owner is whose an execution or a context is: a user's, in one session, since the steps of a script
// are processes of their own and have no more in common.
type owner struct {
	uid     uint32
	session peer.Session
}

func ownerOf(who *peer.Opener) owner { return owner{who.UID, who.Session} }

// openWithin is how long all may take that is no step, such as to open a file: the caller cannot be killed for so long.
const openWithin = 5 * time.Second

// inTime returns the context of a request that is to be answered within openWithin, whatever it waits for. It ends with the
// server too.
func (s *Server) inTime(request context.Context) (context.Context, context.CancelFunc) {
	ctx := s.ctx
	if from, ok := gofuse.FromContext(request); ok {
		ctx = gofuse.NewContext(ctx, from)
	}
	return context.WithTimeout(ctx, openWithin)
}

// identify returns who makes the request that ctx is of, while it is held.
func (s *Server) identify(ctx context.Context) (*peer.Opener, syscall.Errno) {
	from, ok := gofuse.FromContext(ctx)
	if !ok {
		return nil, syscall.EACCES
	}
	_, turn, err := s.o.Limits.Turn(ctx, from.Uid, 0) // it is most of what an open costs
	if err != nil {
		return nil, errnoOf(err)
	}
	defer turn.End()
	return identifyNow(ctx)
}

// identifyNow is identify without waiting for a turn.
func identifyNow(ctx context.Context) (*peer.Opener, syscall.Errno) {
	from, ok := gofuse.FromContext(ctx)
	if !ok {
		return nil, syscall.EACCES
	}
	o, err := peer.FromThread(int32(from.Pid), from.Uid, from.Gid)
	switch {
	case err != nil && peer.IsShortage(err):
		return nil, syscall.EAGAIN
	case err != nil:
		return nil, syscall.EACCES
	case int(o.PID) == os.Getpid(): // it would wait for itself
		o.Close()
		return nil, syscall.EDEADLK
	}
	return o, 0
}

// calling returns who has opened a file as one who calls: he counts as a connection, and a service has
// to be for him. Of who may not, nothing is left open.
func (s *Server) calling(ctx context.Context, who *peer.Opener) (*caller, syscall.Errno) {
	c := &caller{Opener: who, held: s.charge(who.UID)}
	groups, _ := who.Groups.Get()
	err := c.held.more(4 * len(groups)) // a process may have 65,536
	if err == nil {
		c.calls, err = s.o.Caller(who.Info)
	}
	if err == nil {
		_, err = c.calls.Call(ctx, uint32(xdr.ProcNull), nil) // is there a service for him?
	}
	if err != nil {
		c.close()
		return nil, errnoOf(err)
	}
	return c, 0
}

func (c *caller) close() {
	if c.calls != nil {
		c.calls.Close()
	}
	c.held.none()
	c.Opener.Close()
}
