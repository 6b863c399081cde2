// Package fuse is files as another way in: a file system through which any language and any shell
// delegates credential operations, after Plan 9's factotum. It decides nothing about credentials:
// what is asked through a file is the same call, of the same caller, as over the default socket.
//
//	modules/krb5/status                      what this caller may do, and why not the rest
//	modules/krb5/operations/OPERATION/       init accept wrap unwrap getmic verifymic names
//	        help                             how to ask, with an example
//	        transact                         open, write JSON, read JSON
//	        execution/TOKEN/                 made with mkdir: the same in steps that processes of
//	                inputs control           their own may take
//	                outputs error
//	contexts/ID/                             contexts that are established, until they are dropped
//	        peer flags expires ctl
//	keys log ctl                             root's
//
// # Who is calling
//
// The kernel says it when a file is opened ([peer.FromThread]), and who opened it is who asks, for
// whatever is written to the file then and by whomever: a descriptor is handed on by its owner. The
// daemon holds the request meanwhile, so the caller can neither end nor become somebody else. Kernel
// threads, and callers whose file-system ids are not their own, are refused: an NFS server and an
// overlay act for others with these. Which names there are in a directory, and whose they are, the
// kernel asks with a user's number alone, and learns no more by it.
//
// # What must not happen
//
// A request that is not answered is a caller that cannot be killed. So no handler waits for a lock
// that another one holds while it calls, and every request has a deadline, as has the wait for its turn.
// For what is made and removed the kernel holds a directory that is everybody's: that waits for no
// turn. The daemon itself must never wait for this file system: what it opens here is refused.
package fuse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"golang.org/x/sys/unix"

	"gssproxyd/interposer"
	"gssproxyd/limits"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
)

// Options are what a [Server] has of the daemon. All are needed but Now.
type Options struct {
	// Caller returns the way in which a caller makes calls: as a connection to the default socket
	// would be. An error refuses the file.
	Caller func(*peer.Info) (interposer.Caller, error)

	// Explain says what a caller may do.
	Explain func(context.Context, *peer.Info) Explanation

	// Keys returns the text of the file keys: the keytabs in use, without their keys.
	Keys func(context.Context) (string, error)

	// Control does what is written to the file ctl, a line each, and returns what is read there then.
	Control func(ctx context.Context, words []string) (string, error)

	Limits *limits.Limits // who pays for what
	Log    *slog.Logger
	Now    func() time.Time
}

// Explanation is what a caller may do.
type Explanation struct {
	May  []string // operations: accept, initiate, names
	Text string   // the same in words, and why not the rest
}

// Server serves one mount.
type Server struct {
	o    Options
	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup
	done chan struct{}

	device *device

	contexts   table
	executions []table // of each operation
	events     events
	open       releases
	leaving    directories // dropped, and perhaps still known to the kernel
	notices    notices
}

// Mounted is how device is to be mounted by whoever hands it over: options of mount(2), beside fd, rootmode, user_id and
// group_id.
const Mounted = "default_permissions,allow_other,max_read=131072"

// Serve serves a mount whose /dev/fuse is device, of which it makes a copy, until it is unmounted. It
// returns when the kernel has been answered once. Who has mounted has to be in our pid namespace: the
// kernel names callers by the numbers that they have in that one.
func Serve(device *os.File, o Options) (*Server, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := begins(device); err != nil {
		return nil, err
	}
	fd, err := unix.FcntlInt(device.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	d, err := newDevice(fd, o.Limits, o.Log)
	if err != nil {
		return nil, err
	}
	s := &Server{o: o, device: d, executions: make([]table, len(operations)), done: make(chan struct{})}
	s.ctx, s.stop = context.WithCancel(context.Background())
	options := &fs.Options{NullPermissions: true, ServerCallbacks: forgetting{device: d}}
	options.MountOptions = gofuse.MountOptions{
		MaxWrite: maxWrite, DisableXAttrs: true,
		DisableReadDirPlus:   true,                 // which looks up what nobody has asked for
		DisabledCapabilities: gofuse.CAP_ASYNC_DIO, // with it the kernel waits for a caller's memory when it takes an answer
		PanicHandler: func(v any) gofuse.Status {
			o.Log.Error("panic in a request to the file system", "panic", rpc.Describe(v), "stack", rpc.Stack())
			return gofuse.EIO
		},
		Logger: log.New(io.Discard, "", 0), // it has no words of ours
	}
	d.protocol = gofuse.NewProtocolServer(uncachedFS{fs.NewNodeFS(s.root(), options)}, &options.MountOptions)
	if err := d.begin(); err != nil {
		d.close()
		return nil, fmt.Errorf("the descriptor is not that of a new mount, or the kernel's FUSE is not one that this program knows: %w", err)
	}
	s.work.Go(s.expire)
	go s.serve()
	return s, nil
}

// serve answers the kernel until the file system is unmounted, and then drops all that was kept.
func (s *Server) serve() {
	defer s.device.close() // which waits for notices that the kernel has not taken yet
	defer close(s.done)
	if err := s.device.serve(); err != nil {
		s.o.Log.Error("the file system ends: /dev/fuse cannot be read", "error", err)
	}
	s.stop()
	s.work.Wait()
	s.open.release()
}

// fuseDevice is the number of /dev/fuse (include/uapi/linux/major.h, miscdevice.h).
var fuseDevice = unix.Mkdev(10, 229)

// beginsWithin is for how long the first request of a mount is waited for. It is there once that is mounted.
const beginsWithin = 5000 // milliseconds

// begins waits for the first request of a mount, which tells one from all else that a descriptor can be.
func begins(device *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(device.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != fuseDevice {
		return errors.New("the descriptor is not of /dev/fuse")
	}
	list := []unix.PollFd{{Fd: int32(device.Fd()), Events: unix.POLLIN}}
	for {
		switch n, err := unix.Poll(list, beginsWithin); {
		case err == unix.EINTR:
			continue
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n == 0 || list[0].Revents&unix.POLLIN == 0:
			return errors.New("nothing comes from the descriptor of /dev/fuse: it is to be that of a new mount, which nobody has read from yet")
		}
		return nil
	}
}

// Ended reports whether the file system is not mounted any more, and all that was kept is dropped.
func (s *Server) Ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// Close ends calls in progress; later ones are refused. That the kernel asks no more is for who
// unmounts, or for the end of the process.
func (s *Server) Close() { s.stop() }

// uncachedFS is a file system of which nothing comes into the kernel's cache of pages, where others who have the same
// file open would find it: it is read by who calls read(2), and not by sendfile(2), splice(2) and mmap(2).
type uncachedFS struct{ gofuse.RawFileSystem }

// Read implements [gofuse.RawFileSystem].
func (f uncachedFS) Read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	if in.ReadFlags&gofuse.READ_LOCKOWNER == 0 { // which the kernel says where it reads for a caller, and not for its cache
		return nil, gofuse.ENODEV
	}
	return f.RawFileSystem.Read(cancel, in, buf)
}
