package fuse

import (
	"context"
	"slices"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"golang.org/x/sys/unix"

	"gssproxyd/interposer"
	"gssproxyd/limits"
	"gssproxyd/rpc/peer"
)

// The tree: what there is by which name, who sees it, and what opening it means.

// opened is what opening a file returns.
type opened func(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno)

func (s *Server) directory(mode uint32, entries map[string]node) *dir {
	return &dir{server: s, attributes: attributes{mode: syscall.S_IFDIR | mode}, entries: entries}
}

func (s *Server) regular(mode uint32, open opened) *file {
	return &file{server: s, attributes: attributes{mode: syscall.S_IFREG | mode}, open: open}
}

// root returns the root of the tree.
func (s *Server) root() *dir {
	ops := s.directory(0o555, map[string]node{})
	ops.list = s.permitted
	for i, op := range operations {
		transact := s.regular(0o666, readWrite(s.transact(op)))
		transact.anew = true
		transact.size = maxInput // io_uring reads nothing of an empty file
		ops.entries[op.name] = s.directory(0o555, map[string]node{
			"help": s.regular(0o444, func(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
				return text(op.help), uncached, 0
			}),
			"transact":  transact,
			"execution": s.executionsDir(op, &s.executions[i]),
		})
	}
	contexts := s.directory(0o555, nil)
	contexts.list, contexts.find = s.contexts.names, s.contexts.dir
	log := s.regular(0o400, s.byRoot(uncached, func(context.Context) (fs.FileHandle, syscall.Errno) {
		s.events.readers.Add(1)
		return &s.events, 0
	}))
	log.grows = s.events.size
	root := s.directory(0o555, map[string]node{
		"modules": s.directory(0o555, map[string]node{
			"krb5": s.directory(0o555, map[string]node{
				"status":     s.regular(0o444, s.status),
				"operations": ops,
			}),
		}),
		"contexts": contexts,
		"keys":     s.regular(0o400, s.byRoot(uncached, s.keys)),
		"log":      log,
		"ctl":      s.regular(0o600, readWrite(s.byRoot(stream, func(context.Context) (fs.FileHandle, syscall.Errno) { return &ctl{s: s}, 0 }))),
	})
	root.made = s.o.Now()
	return root
}

// permitted lists the operations that a caller may ask for.
func (s *Server) permitted(ctx context.Context, who *peer.Opener) (names []string, errno syscall.Errno) {
	e, errno := s.explain(ctx, who)
	if errno != 0 {
		return nil, errno
	}
	for _, op := range operations {
		if slices.ContainsFunc(op.needs, func(need string) bool { return slices.Contains(e.May, need) }) {
			names = append(names, op.name)
		}
	}
	slices.Sort(names)
	return names, 0
}

func (s *Server) explain(ctx context.Context, who *peer.Opener) (e Explanation, errno syscall.Errno) {
	ctx, turn, err := s.o.Limits.Turn(limits.WithPayer(ctx, who.UID), who.UID, 0)
	if err != nil {
		return e, errnoOf(err)
	}
	defer turn.End()
	e = s.o.Explain(ctx, who.Info)
	if err := ctx.Err(); err != nil { // it may have been cut short
		return Explanation{}, errnoOf(err)
	}
	return e, 0
}

// status opens the file that says what a caller may do.
func (s *Server) status(ctx context.Context, _ uint32) (fs.FileHandle, uint32, syscall.Errno) {
	who, errno := s.identify(ctx)
	if errno != 0 {
		return nil, 0, errno
	}
	defer who.Close()
	e, errno := s.explain(ctx, who)
	return text(e.Text), uncached, errno
}

// readWrite has a file be opened to read and write, by who means it: a program of more rights that is made to write
// to a path does nothing there.
func readWrite(open opened) opened {
	return func(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
		if flags&unix.O_ACCMODE != unix.O_RDWR {
			return nil, 0, syscall.EACCES
		}
		return open(ctx, flags)
	}
}

// transact opens a conversation.
func (s *Server) transact(op *operation) opened {
	return func(ctx context.Context, _ uint32) (fs.FileHandle, uint32, syscall.Errno) {
		who, errno := s.identify(ctx)
		if errno != 0 {
			return nil, 0, errno
		}
		by, errno := s.calling(ctx, who)
		if errno != 0 {
			return nil, 0, errno
		}
		c := &conversation{op: op, by: by, x: s.exchange(ownerOf(who)), held: s.charge(who.UID)}
		s.open.add(c)
		return c, stream, 0
	}
}

// executionsDir is the directory of the executions of an operation, which are t.
func (s *Server) executionsDir(op *operation, t *table) *dir {
	d := s.directory(0o1777, nil)
	d.list, d.find = t.names, t.dir
	d.add = func(who *peer.Opener, name string) (*dir, syscall.Errno) {
		of := ownerOf(who)
		k := &kept{id: name, owner: of, steps: &execution{op: op, x: s.exchange(of), inHeld: s.charge(of.uid), held: s.charge(of.uid)}}
		k.steps.used = func() { k.use(s.o.Now()) }
		k.home = s.executionDir(t, k)
		switch err := s.put(t, k); err {
		case nil:
			return k.home, 0
		case errTaken:
			return nil, syscall.EEXIST
		default:
			return nil, errnoOf(err)
		}
	}
	d.remove = func(uid uint32, name string) syscall.Errno {
		k := t.find(uid, name)
		if k == nil {
			return syscall.ENOENT
		}
		s.drop(t, k)
		return 0
	}
	return d
}

// ofOwner opens a file of an execution or a context, for its owner.
func (s *Server) ofOwner(k *kept, flags uint32, open func(context.Context, *peer.Opener) (fs.FileHandle, syscall.Errno)) opened {
	return func(ctx context.Context, _ uint32) (fs.FileHandle, uint32, syscall.Errno) {
		who, errno := s.asOwner(ctx, k)
		if errno != 0 {
			return nil, 0, errno
		}
		h, errno := open(ctx, who) // which closes who
		return h, flags, errno
	}
}

// asOwner returns who makes a request, if it is the owner of what is kept.
func (s *Server) asOwner(ctx context.Context, k *kept) (*peer.Opener, syscall.Errno) {
	who, errno := s.identify(ctx)
	if errno != 0 {
		return nil, errno
	}
	if ownerOf(who) != k.owner {
		who.Close()
		return nil, syscall.EACCES
	}
	k.use(s.o.Now())
	return who, 0
}

// executionDir is the directory of an execution.
func (s *Server) executionDir(t *table, k *kept) *dir {
	e := k.steps
	shown := func(content *[]byte) opened {
		return s.ofOwner(k, uncached, func(_ context.Context, who *peer.Opener) (fs.FileHandle, syscall.Errno) {
			who.Close()
			return output{e, content}, 0
		})
	}
	inputs := s.regular(0o600, s.ofOwner(k, uncached, func(_ context.Context, who *peer.Opener) (fs.FileHandle, syscall.Errno) {
		who.Close()
		return input{e}, 0
	}))
	inputs.empty = func(ctx context.Context, h fs.FileHandle) syscall.Errno {
		if h == nil { // open(2) or truncate(2): the kernel does not say which
			who, errno := s.asOwner(ctx, k)
			if errno != 0 {
				return errno
			}
			who.Close()
		}
		return e.locked(func() syscall.Errno { e.truncate(); return 0 })
	}
	return s.homeOf(t, k, 0o700, map[string]node{
		"inputs":  inputs,
		"outputs": s.regular(0o400, shown(&e.out)),
		"error":   s.regular(0o400, shown(&e.words)),
		"control": s.regular(0o200, s.ofOwner(k, stream, func(ctx context.Context, who *peer.Opener) (fs.FileHandle, syscall.Errno) {
			by, errno := s.calling(ctx, who)
			if errno != 0 {
				return nil, errno
			}
			c := &control{e, by}
			s.open.add(c)
			return c, 0
		})),
	})
}

// contextDir is the directory of a context.
func (s *Server) contextDir(k *kept) *dir {
	says := func(say func(*interposer.Peer) string) *file {
		return s.regular(0o400, s.ofOwner(k, uncached, func(_ context.Context, who *peer.Opener) (fs.FileHandle, syscall.Errno) {
			who.Close()
			p, err := k.context.Peer()
			if err != nil {
				return nil, syscall.ENOENT // it was dropped
			}
			return text(say(p) + "\n"), 0
		}))
	}
	return s.homeOf(&s.contexts, k, 0o500, map[string]node{
		"peer":    says(func(p *interposer.Peer) string { return p.Name.Display }),
		"flags":   says(func(p *interposer.Peer) string { return strings.Join(namesOf(p.Flags), " ") }),
		"expires": says(func(p *interposer.Peer) string { return ends(p.Expires) }),
		"ctl": s.regular(0o200, s.ofOwner(k, stream, func(_ context.Context, who *peer.Opener) (fs.FileHandle, syscall.Errno) {
			who.Close()
			return lines(func(word string) syscall.Errno {
				if word != "drop" {
					return syscall.EINVAL
				}
				s.lapse(&s.contexts, k)
				return 0
			}), 0
		})),
	})
}

// homeOf is the directory of what is kept in t.
func (s *Server) homeOf(t *table, k *kept, mode uint32, entries map[string]node) *dir {
	d := s.directory(mode, entries)
	d.uid, d.made = k.owner.uid, s.o.Now()
	d.forgotten = func() { s.leaving.remove(d); s.unused(k) }
	d.gone = func() bool { return t.find(k.owner.uid, k.id) != k }
	return d
}
