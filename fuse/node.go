package fuse

import (
	"context"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"gssproxyd/rpc/peer"
)

// Directories and files, as the kernel asks about them. What there is of them is in tree.go.

// node is a directory or a file.
type node interface {
	fs.InodeEmbedder
	attr() *attributes
}

// attributes are what the kernel is told of a directory or a file.
type attributes struct {
	mode  uint32 // with its kind
	size  uint64
	grows func() uint64 // to which size; nil: it does not

	// What is below a directory has these of it.
	uid  uint32
	made time.Time
	gone func() bool // whether it was removed; nil: it is always there
}

func (a *attributes) attr() *attributes { return a }

// always is for how long the kernel may believe that what is always there is there.
const always = time.Hour

func (a *attributes) timeout() time.Duration {
	if a.gone != nil || a.grows != nil {
		return 0
	}
	return always
}

func (a *attributes) fill(out *gofuse.Attr) {
	*out = gofuse.Attr{Mode: a.mode, Size: a.size, Owner: gofuse.Owner{Uid: a.uid}, Nlink: 1}
	out.SetTimes(&a.made, &a.made, &a.made)
	if a.grows != nil {
		out.Size = a.grows()
	}
}

// Getattr implements [fs.NodeGetattrer].
func (a *attributes) Getattr(_ context.Context, _ fs.FileHandle, out *gofuse.AttrOut) syscall.Errno {
	a.fill(&out.Attr)
	out.SetTimeout(a.timeout())
	return 0
}

// dir is a directory.
type dir struct {
	fs.Inode
	attributes
	server  *Server
	born    sync.Once       // its inode, where it is not there from the start
	unborn  bool            // it was dropped before the kernel could know it; to be read after born
	entries map[string]node // that are always there

	find   func(uid uint32, name string) *dir                            // others; nil: there are none
	list   func(context.Context, *peer.Opener) ([]string, syscall.Errno) // what is shown; nil: all entries
	add    func(who *peer.Opener, name string) (*dir, syscall.Errno)     // nil: nobody may
	remove func(uid uint32, name string) syscall.Errno                   // likewise

	forgotten func() // is called once the kernel does not know the directory any more; nil: nothing is to be done
	forgets   sync.Once
}

// OnForget implements [fs.NodeOnForgetter].
func (d *dir) OnForget() {
	if d.forgotten != nil {
		d.forgets.Do(d.forgotten)
	}
}

// OnAdd implements [fs.NodeOnAdder].
func (d *dir) OnAdd(ctx context.Context) {
	for name, n := range d.entries {
		a := n.attr()
		a.uid, a.made, a.gone = d.uid, d.made, d.gone
		if f, ok := n.(*file); ok && f.anew {
			continue
		}
		d.AddChild(name, d.NewPersistentInode(ctx, n, fs.StableAttr{Mode: a.mode & syscall.S_IFMT}), true)
	}
}

// Lookup implements [fs.NodeLookuper].
func (d *dir) Lookup(ctx context.Context, name string, out *gofuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if d.gone != nil && d.gone() {
		return nil, syscall.ENOENT
	}
	if n, ok := d.entries[name]; ok {
		if f, ok := n.(*file); ok && f.anew {
			return d.another(ctx, f, out)
		}
		fill(n.attr(), out)
		return n.EmbeddedInode(), 0
	}
	if from, ok := gofuse.FromContext(ctx); ok && d.find != nil {
		if found := d.find(from.Uid, name); found != nil {
			return d.child(ctx, found, out)
		}
	}
	return nil, syscall.ENOENT
}

// another returns a new inode of a file, which who looks it up pays for until the kernel has forgotten
// it.
func (d *dir) another(ctx context.Context, f *file, out *gofuse.EntryOut) (*fs.Inode, syscall.Errno) {
	paid, errno := d.server.pays(ctx, 0)
	if errno != 0 {
		return nil, errno
	}
	c := &file{server: f.server, attributes: f.attributes, open: f.open, forgotten: paid.closed}
	fill(&c.attributes, out)
	out.SetEntryTimeout(0)
	return d.NewInode(ctx, c, fs.StableAttr{Mode: syscall.S_IFREG}), 0
}

// fill fills in what the kernel is told of an entry.
func fill(a *attributes, out *gofuse.EntryOut) {
	a.fill(&out.Attr)
	out.SetEntryTimeout(a.timeout())
	out.SetAttrTimeout(a.timeout())
}

// child returns the inode of a directory that is not there from the start.
func (d *dir) child(ctx context.Context, c *dir, out *gofuse.EntryOut) (*fs.Inode, syscall.Errno) {
	c.born.Do(func() { d.NewInode(ctx, c, fs.StableAttr{Mode: syscall.S_IFDIR}) })
	if c.unborn {
		return nil, syscall.ENOENT
	}
	fill(&c.attributes, out)
	return c.EmbeddedInode(), 0
}

// forget lets go of a directory that is not there any more. It returns the one above, if the kernel may
// know of it, and reports whether it has never known it.
func (d *dir) forget() (above *fs.Inode, unborn bool) {
	d.born.Do(func() { d.unborn = true })
	if d.unborn {
		return nil, true
	}
	for _, c := range d.Children() {
		c.ForgetPersistent()
	}
	name, above := d.Parent()
	if above != nil {
		above.RmChild(name)
	}
	return above, false
}

// leave has the kernel forget the files of a directory that is not there any more: it remembers those
// that were open when the directory went. It is not for a handler of a request, for which the kernel
// may hold the directory.
func (d *dir) leave() {
	for name := range d.entries {
		d.NotifyEntry(name)
	}
}

// OpendirHandle implements [fs.NodeOpendirHandler]: what is listed is for who opens the directory.
func (d *dir) OpendirHandle(ctx context.Context, _ uint32) (fs.FileHandle, uint32, syscall.Errno) {
	names := slices.Sorted(maps.Keys(d.entries))
	if d.list != nil {
		ctx, cancel := d.server.inTime(ctx)
		defer cancel()
		who, errno := d.server.identify(ctx)
		if errno != 0 {
			return nil, 0, errno
		}
		defer who.Close()
		if names, errno = d.list(ctx, who); errno != 0 {
			return nil, 0, errno
		}
	}
	l := &listing{}
	size := 0
	for _, name := range names {
		mode := uint32(syscall.S_IFDIR)
		if n, ok := d.entries[name]; ok {
			mode = n.attr().mode & syscall.S_IFMT
		}
		l.list = append(l.list, gofuse.DirEntry{Name: name, Mode: mode})
		size += entrySize + len(name)
	}
	var errno syscall.Errno
	l.paid, errno = d.server.pays(ctx, size)
	return l, 0, errno
}

// Mkdir implements [fs.NodeMkdirer].
func (d *dir) Mkdir(ctx context.Context, name string, _ uint32, out *gofuse.EntryOut) (*fs.Inode, syscall.Errno) {
	switch {
	case d.add == nil:
		return nil, syscall.EPERM
	case len(name) > unix.NAME_MAX: // the kernel lets through more
		return nil, syscall.ENAMETOOLONG
	}
	// Not in its turn: meanwhile the kernel lets nobody else make or remove something here, nor look up.
	who, errno := identifyNow(ctx)
	if errno != 0 {
		return nil, errno
	}
	defer who.Close()
	made, errno := d.add(who, name)
	if errno != 0 {
		return nil, errno
	}
	return d.child(ctx, made, out)
}

// Rmdir implements [fs.NodeRmdirer].
func (d *dir) Rmdir(ctx context.Context, name string) syscall.Errno {
	if d.remove == nil {
		return syscall.EPERM
	}
	who, errno := identifyNow(ctx) // as Mkdir
	if errno != 0 {
		return errno
	}
	defer who.Close()
	return d.remove(who.UID, name)
}

// Unlink implements [fs.NodeUnlinker]: files go with their directory.
func (d *dir) Unlink(context.Context, string) syscall.Errno { return syscall.EPERM }

// Rename implements [fs.NodeRenamer].
func (d *dir) Rename(context.Context, string, fs.InodeEmbedder, string, uint32) syscall.Errno {
	return syscall.EPERM
}

// Setattr implements [fs.NodeSetattrer]: modes and owners are what they are.
func (d *dir) Setattr(context.Context, fs.FileHandle, *gofuse.SetAttrIn, *gofuse.AttrOut) syscall.Errno {
	return syscall.EPERM
}

// file is a file.
type file struct {
	fs.Inode
	attributes
	server *Server
	open   func(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno)
	empty  func(ctx context.Context, h fs.FileHandle) syscall.Errno // what a truncation does; nil: nothing

	// anew is whether each look-up makes an inode of its own. While somebody writes to an inode the
	// kernel lets nobody else write to it, for as long as a step takes, and who waits cannot be killed.
	anew      bool
	forgotten func() // is called once the kernel does not know such an inode any more
}

// OnForget implements [fs.NodeOnForgetter].
func (f *file) OnForget() {
	if f.forgotten != nil {
		f.forgotten()
	}
}

// Open implements [fs.NodeOpener].
func (f *file) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if f.gone != nil && f.gone() {
		return nil, 0, syscall.ENOENT
	}
	ctx, cancel := f.server.inTime(ctx)
	defer cancel()
	h, how, errno := f.open(ctx, flags)
	if errno != 0 {
		return nil, 0, errno
	}
	size := 0
	switch h := h.(type) {
	case *conversation, *control: // a connection
		return h, how, 0
	case text:
		size = len(h)
	}
	paid, errno := f.server.pays(ctx, size)
	if errno != 0 {
		if r, ok := h.(fs.FileReleaser); ok {
			r.Release(ctx)
		}
		return nil, 0, errno
	}
	return open{h, paid}, how, 0
}

// Setattr implements [fs.NodeSetattrer]: a shell truncates what it is going to write to.
func (f *file) Setattr(ctx context.Context, h fs.FileHandle, in *gofuse.SetAttrIn, out *gofuse.AttrOut) syscall.Errno {
	const times = gofuse.FATTR_ATIME | gofuse.FATTR_ATIME_NOW | gofuse.FATTR_MTIME | gofuse.FATTR_MTIME_NOW | gofuse.FATTR_CTIME
	const harmless = gofuse.FATTR_SIZE | gofuse.FATTR_FH | gofuse.FATTR_LOCKOWNER | gofuse.FATTR_KILL_SUIDGID | times
	size, truncated := in.GetSize()
	switch {
	case in.Valid&^harmless != 0:
		return syscall.EPERM
	case truncated && size != 0:
		return syscall.EINVAL
	case truncated && f.empty != nil:
		ctx, cancel := f.server.inTime(ctx)
		defer cancel()
		if errno := f.empty(ctx, h); errno != 0 {
			return errno
		}
	}
	return f.Getattr(ctx, h, out)
}

// How files are opened: nothing is cached, and what close(2) says nobody looks at. A stream has no
// offsets.
const (
	uncached = gofuse.FOPEN_DIRECT_IO | gofuse.FOPEN_NOFLUSH
	stream   = uncached | gofuse.FOPEN_STREAM
)
