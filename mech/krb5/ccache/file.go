package ccache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/mech/krb5"
	"gssproxyd/openat"
)

const (
	// maxFile bounds the file that is read; a ticket has some thousand bytes.
	maxFile = 16 << 20
	// maxUseless is how many bytes of what nobody will use there are at most in a file that is
	// written here, or else as many as of the rest: all of it is read again whenever it has changed.
	maxUseless = 16 << 10
	// lockWait is the longest wait for another process's lock, whatever the context allows.
	lockWait = 10 * time.Second
	// birth is how long a file may be empty: MIT's library makes it and then locks it to write.
	birth = 250 * time.Millisecond
)

// file is a FILE cache: a header, the principal, credentials to the end. Nothing is kept open
// between operations. A shared record lock over the whole file is held while reading, an exclusive
// one while writing, as MIT's library and Heimdal do. Credentials are appended; removed ones are
// overwritten in their place with the times of no ticket, as any other change would disturb those
// who read one entry after another.
//
// Each operation walks to the file once, and decides and acts on what it has opened on the way
// (package openat). The file has to be root's, of the user this program runs as, or of the user it
// is used for. As this program writes caches for everybody, each that it makes says in a setting, its
// first entry, for which uid it is (recordUID), also for the user it runs as: one of its own or root's
// does not count for another uid. One that does not say, as kinit makes them, counts for another user
// than its owner only in a directory where nobody else can have put it.
type file struct {
	name string // full name
	path string
	r    Resolver

	// ours is set once a file of root's or this program's user was found or made here: nothing is
	// added to another user's file then, who may have put it in its place meanwhile to get what was
	// not his.
	ours atomic.Bool
}

func (r *Resolver) file(name, path string) *file { return &file{name: name, path: path, r: *r} }

var errNotRegular = errors.New("not a regular file")

// own reports whether a file of that user is root's or this program's.
func own(uid uint32) bool { return uid == 0 || uid == uint32(os.Geteuid()) }

// met takes note of whose file was found or made, and reports whether it may be added to.
func (f *file) met(uid uint32) bool {
	if own(uid) {
		f.ours.Store(true)
		return true
	}
	return !f.ours.Load()
}

func (f *file) Name() string { return f.name }

func (f *file) fail(code Code, err error, format string, args ...any) error {
	return &Error{Name: f.name, Code: code, Text: fmt.Sprintf(format, args...), Err: err}
}

// system turns a system error into one of this package, with MIT's choice of code.
func (f *file) system(err error) error {
	if _, known := errors.AsType[*Error](err); known || err == nil {
		return err
	}
	code, text := ErrIO, ""
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENAMETOOLONG):
		code = ErrNoCache
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ELOOP):
		code = ErrAccess
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		text = "no room to write; what was there before is still there; make room"
	}
	return &Error{Name: f.name, Code: code, Text: text, Err: err}
}

// parser reads a file entry by entry. It is to be closed.
type parser struct {
	f         *file
	r         reader
	charged   int
	principal krb5.Principal
	entries   int
	end       int   // of the last whole entry
	damage    error // why there is more than end
	short     bool  // the damage is an entry not written to its end
	window    *[window]byte
}

// windows are kept: a cache is read for most calls of an initiator whose tickets come and go.
var windows = sync.Pool{New: func() any { return new([window]byte) }}

// parse begins with a file of that size, which is read through a window of at most that many bytes,
// and those are no more than the constant. The error is for a file without a principal; damage
// further on is in the parser.
func (f *file) parse(src io.ReaderAt, size, most int) (*parser, error) {
	p := &parser{f: f}
	most = min(most, size)
	if err := p.grow(most); err != nil {
		return nil, err
	}
	p.window = windows.Get().(*[window]byte)
	p.r = reader{src: src, size: size, b: p.window[:0:most], grow: p.grow, version: version}
	if err := p.start(); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// grow charges for n bytes more of the window, and as much for the entry that is in it.
func (p *parser) grow(n int) error {
	if err := p.f.r.take(2 * n); err != nil {
		return p.f.fail(ErrQuota, err, "no memory to read it")
	}
	p.charged += 2 * n
	return nil
}

func (p *parser) close() {
	clear(p.r.b[:cap(p.r.b)])
	if p.window != nil {
		windows.Put(p.window) // cleared, too, where a wider one has taken its place
		p.window = nil
	}
	p.f.r.give(p.charged)
	p.charged = 0
}

// trouble says what ended the reading, if it was not what is in the file.
func (p *parser) trouble() error {
	_, known := errors.AsType[*Error](p.r.err)
	_, system := errors.AsType[*fs.PathError](p.r.err)
	if known || system {
		return p.f.system(p.r.err)
	}
	return nil
}

func (p *parser) start() error {
	f, r := p.f, &p.r
	if r.size < 2 {
		return f.fail(ErrFormat, nil, "%d bytes, expected 05 04 first; the file is cut short", r.size)
	}
	if b := r.take(2); b != nil {
		if r.version = int(b[1]); b[0] != 5 || r.version < 1 || r.version > 4 {
			return f.fail(ErrVersion, nil, "begins with %02x %02x, expected 05 04; is this a credential cache?", b[0], b[1])
		}
		if r.version == 4 {
			header(r)
			if r.err == nil && r.left() == 0 {
				return f.fail(ErrNoCache, nil, "the file is reserved but not initialized")
			}
		}
	}
	p.principal = r.principal()
	if err := p.trouble(); err != nil {
		return err
	}
	if r.err != nil {
		return f.fail(ErrFormat, r.err, "cut short or damaged; get new credentials")
	}
	p.end = r.pos
	return nil
}

// next returns the next entry, nil at the end or at damage. Those that are removed, or not for who
// uses the cache, are among them: see hidden. old is nil, or one that nobody uses any more: it is
// destroyed, and its memory may be taken.
func (p *parser) next(old *krb5.Credential) *krb5.Credential {
	if old != nil {
		old.Destroy()
	}
	if p.damage != nil || p.r.left() == 0 {
		return nil
	}
	p.r.entry = p.end
	c := p.r.credential(old)
	if p.r.err != nil {
		if p.damage = p.trouble(); p.damage == nil {
			p.damage, p.short = p.f.fail(ErrFormat, p.r.err, "cut short or damaged after %d entries; get new credentials", p.entries), p.r.short
		}
		return nil
	}
	p.entries++
	p.end = p.r.pos
	return c
}

// hidden reports whether an entry is none for who uses the cache: it was removed, or says for whom
// the cache is. What has no end time, as settings and sealed handles, has no other time either.
func hidden(c *krb5.Credential) bool { return c.EndTime == 0 && c.AuthTime != 0 || isRecord(c) }

// header skips the tagged fields of version 4. The only tag there is, 1, is the KDC's clock
// relative to ours; tickets are judged by our clock alone.
func header(r *reader) {
	h := reader{b: r.take(int(r.u16())), version: r.version}
	for h.left() > 0 && h.err == nil {
		tag, value := h.u16(), h.take(int(h.u16()))
		if tag == 1 && h.err == nil && len(value) != 8 {
			h.fail("clock offset of %d bytes, expected 8", len(value))
		}
	}
	if h.err != nil {
		r.fail("header field: %v", h.err)
	}
}

// opened is a file that was walked to, opened and looked at.
type opened struct {
	*os.File
	dir    *openat.Dir
	base   string // its name there
	st     unix.Stat_t
	record bool // it was admitted, and says for whom it is
}

func (o *opened) Close() {
	o.File.Close() // and unlock
	o.dir.Close()
}

// open opens the file, locked as how says (F_RDLCK or F_WRLCK), and makes sure that the name still
// means it and that it is a cache for who uses it.
func (f *file) open(ctx context.Context, how int16) (*opened, error) {
	flags := os.O_RDONLY
	if how == unix.F_WRLCK {
		flags = os.O_RDWR
	}
	ctx, cancel := context.WithTimeoutCause(ctx, lockWait, fmt.Errorf("another process has held the lock for %v", lockWait))
	defer cancel()
	var empty time.Time
	for {
		if ctx.Err() != nil {
			return nil, f.fail(ErrIO, context.Cause(ctx), "opening")
		}
		o, err := f.openChecked(flags)
		if err != nil {
			return nil, f.system(err)
		}
		if err := wait(ctx, o.File, how); err != nil {
			o.Close()
			return nil, f.fail(ErrIO, err, "locking")
		}
		same, err := o.current()
		if err == nil && !same { // replaced meanwhile
			o.Close()
			continue
		}
		if err == nil && o.st.Size > maxFile {
			err = f.fail(ErrFormat, nil, "%d bytes, expected at most %d", o.st.Size, maxFile)
		}
		if err == nil && o.st.Size > 0 {
			if err = f.admit(o); err == nil {
				return o, nil
			}
		}
		o.Close()
		if err != nil {
			return nil, f.system(err)
		}
		// Perhaps just made, and its maker wants the lock we have.
		if empty.IsZero() {
			empty = time.Now()
		}
		if time.Since(time.Unix(o.st.Mtim.Unix())) > time.Minute || time.Since(empty) > birth {
			return nil, f.fail(ErrFormat, nil, "the file is empty; get new credentials")
		}
		if err := pause(ctx, 2*time.Millisecond); err != nil {
			return nil, f.fail(ErrIO, err, "waiting for the file's first content")
		}
	}
}

// current looks at the file again, and reports whether its name still means it.
func (o *opened) current() (bool, error) {
	if err := unix.Fstat(int(o.Fd()), &o.st); err != nil {
		return false, os.NewSyscallError("fstat", err)
	}
	return o.dir.Means(o.base, &o.st)
}

// openChecked opens the file if it is a regular one of a user that may have it there.
func (f *file) openChecked(flags int) (*opened, error) {
	dir, base, err := openat.Find(f.path)
	if err != nil {
		return nil, err
	}
	o, err := f.openIn(dir, base, flags)
	if err != nil {
		dir.Close()
		return nil, err
	}
	if !f.met(o.st.Uid) && flags&os.O_RDWR != 0 {
		o.Close()
		return nil, f.fail(ErrAccess, nil, "a file of uid %d has taken the place of one that was ours; nothing is written to it", o.st.Uid)
	}
	return o, nil
}

// openIn is openChecked for a file in a directory that is open. The file that it returns closes the
// directory.
func (f *file) openIn(dir *openat.Dir, base string, flags int) (*opened, error) {
	fd, err := dir.Open(base, flags|unix.O_NOCTTY|unix.O_NONBLOCK, 0) // a FIFO must not hold us up
	if err != nil {
		return nil, err
	}
	o := &opened{File: fd, dir: dir, base: base}
	err = os.NewSyscallError("fstat", unix.Fstat(int(fd.Fd()), &o.st))
	switch {
	case err != nil:
	case o.st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = f.fail(ErrAccess, errNotRegular, "")
	case !own(o.st.Uid) && o.st.Uid != f.r.user():
		err = f.fail(ErrAccess, nil, "the file belongs to uid %d, who is neither root, the user running this program, nor the user the cache is for", o.st.Uid)
	}
	if err != nil {
		fd.Close()
		return nil, err
	}
	return o, nil
}

// admit returns why a file of a user that may have it there is not for the user it is used for.
func (f *file) admit(o *opened) error {
	user := f.r.user()
	if !own(o.st.Uid) {
		return nil // that user's
	}
	uid, ok, err := f.recorded(o)
	o.record = ok
	switch {
	case err != nil:
		return err // nobody has said that it is nobody's
	case ok && uid != user:
		return f.fail(ErrAccess, nil, "the cache was written for uid %d, and is not used for uid %d; put %%U into the name of a cache that several users are to have, or remove it", uid, user)
	case !ok && o.st.Uid != user && !o.dir.Closed():
		return f.fail(ErrAccess, nil, "the file belongs to uid %d and does not say that it is for uid %d, and others can write in a directory that leads to it: it may be somebody else's; remove it, or name a directory that only root can write", o.st.Uid, user)
	}
	return nil
}

// recorded returns for which uid a cache says it is, if it does. A damaged one does not; the error
// is for one that could not be read.
func (f *file) recorded(o *opened) (uid uint32, ok bool, err error) {
	p, err := f.parse(o, int(o.st.Size), 4<<10)
	if errors.Is(err, ErrQuota) || errors.Is(err, ErrIO) {
		return 0, false, err
	}
	if err != nil {
		return 0, false, nil
	}
	defer p.close()
	first := p.next(nil)
	if first == nil || !isRecord(first) {
		return 0, false, p.trouble()
	}
	n, err := strconv.ParseUint(string(first.Ticket), 10, 32)
	if err != nil {
		n = 1<<32 - 1 // nobody has it
	}
	return uint32(n), true, nil
}

// wait takes the lock. It asks again and again instead of sleeping in the kernel, where nothing
// could end it.
func wait(ctx context.Context, fd *os.File, how int16) error {
	for delay := 20 * time.Microsecond; ; delay = min(2*delay, 5*time.Millisecond) {
		err := unix.FcntlFlock(fd.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: how})
		switch err {
		case nil:
			return nil
		case unix.EINTR:
		case unix.EAGAIN, unix.EACCES:
			if err := pause(ctx, delay); err != nil {
				return err
			}
		default:
			return os.NewSyscallError("fcntl", err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

func (f *file) Principal(ctx context.Context) (krb5.Principal, error) {
	o, err := f.open(ctx, unix.F_RDLCK)
	if err != nil {
		return krb5.Principal{}, err
	}
	defer o.Close()
	p, err := f.parse(o, int(o.st.Size), 4<<10)
	if err != nil {
		return krb5.Principal{}, err
	}
	defer p.close()
	return p.principal, nil
}

func destroy(creds []*krb5.Credential) {
	for _, c := range creds {
		c.Destroy()
	}
}

func (f *file) Credentials(ctx context.Context) ([]*krb5.Credential, error) {
	h := f.r.hold()
	_, err := f.read(ctx, h)
	creds := h.credentials()
	h.forget()
	return creds, err
}

func (f *file) read(ctx context.Context, h *hold) (*Reading, error) {
	o, err := f.open(ctx, unix.F_RDLCK)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	// After the wait for the lock: whoever has that must not have others wait for their turns.
	end, err := f.r.turn(ctx, o.st.Size)
	if err != nil {
		return nil, f.fail(ErrIO, err, "no turn to read it")
	}
	defer end()
	p, err := f.parse(o, int(o.st.Size), window)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if err := p.into(h, nil); err != nil {
		return nil, err
	}
	got := &Reading{Client: p.principal}
	if stamp, counts := stampOfFile(&o.st); counts {
		got.Stamp = stamp
	}
	return got, p.damage
}

// into holds what is left of the file, but for what drop is true for.
func (p *parser) into(h *hold, drop func(*krb5.Credential) bool) error {
	for c := p.next(nil); c != nil; c = p.next(h.unused()) {
		if hidden(c) || drop != nil && drop(c) {
			h.gone(c)
			continue
		}
		if err := h.add(c); err != nil {
			h.drop()
			return p.f.fail(ErrQuota, err, "")
		}
	}
	return nil
}

// Initialize writes another file and renames it, so that a reader finds the old or the new one
// whole. As MIT's library makes a new file too, writers are ready for that. Group and mode of the
// old file stay if it was this cache and is of the user this program runs as: what goes into a file
// that somebody else has put there would be his.
func (f *file) Initialize(ctx context.Context, client krb5.Principal, creds ...*krb5.Credential) error {
	if err := ctx.Err(); err != nil {
		return f.fail(ErrIO, err, "not begun")
	}
	dir, base, err := openat.Parent(f.path)
	if err != nil {
		return f.system(err)
	}
	defer dir.Close()
	var mode *unix.Stat_t
	old, err := f.openIn(dir, base, os.O_RDONLY)
	switch {
	case err == nil:
		if old.st.Uid == uint32(os.Geteuid()) && f.admit(old) == nil {
			if p, err := f.parse(old, int(old.st.Size), 4<<10); err == nil {
				p.close()
				mode = &old.st
			}
		}
		old.File.Close()
	case errors.Is(err, errNotRegular), errors.Is(err, unix.ENXIO): // a socket
		return f.system(err)
	}
	creds, ok := fitting(creds, time.Now().Unix())
	if !ok {
		return f.fail(ErrQuota, errFull, "")
	}
	return f.replace(dir, base, mode, true, client, creds)
}

// replace puts another file in its place, which says for whom it is if record is set, with the mode
// of the one that it replaces if that is not nil.
func (f *file) replace(dir *openat.Dir, base string, mode *unix.Stat_t, record bool, client krb5.Principal, creds []*krb5.Credential) error {
	var content []*krb5.Credential
	if record {
		content = append(content, ConfigEntry(client, recordUID, nil, strconv.AppendUint(nil, uint64(f.r.user()), 10)))
	}
	for _, c := range creds {
		if !isRecord(c) {
			content = append(content, c)
		}
	}
	b := AppendContent(nil, client, content)
	defer clear(b)
	// Not a name that a DIR collection takes for a cache.
	fd, temp, err := dir.Temp("." + base + ".")
	if err != nil {
		return f.system(err)
	}
	err = func() error {
		if mode != nil {
			if err := keepMode(fd, mode); err != nil {
				return err
			}
		}
		_, err := fd.Write(b)
		return err
	}()
	if e := fd.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = dir.Rename(temp, base)
	}
	if err != nil {
		dir.Remove(temp)
		return f.system(err)
	}
	f.met(uint32(os.Geteuid()))
	return nil
}

// keepMode gives fd the group and the mode of a file that it replaces.
func keepMode(fd *os.File, old *unix.Stat_t) error {
	mode := fs.FileMode(old.Mode & 0o777)
	if fd.Chown(-1, int(old.Gid)) != nil {
		mode &^= 0o077 // the group is another one
	}
	return fd.Chmod(mode)
}

// Update appends, and replaces the file where that would make it larger than a cache of ours may
// be, or where most of it is superseded or removed.
func (f *file) Update(ctx context.Context, drop func(*krb5.Credential) bool, add ...*krb5.Credential) error {
	o, err := f.open(ctx, unix.F_WRLCK)
	if err != nil {
		return err
	}
	defer o.Close()
	end, err := f.r.turn(ctx, o.st.Size) // all of it is read
	if err != nil {
		return f.fail(ErrIO, err, "no turn to read it")
	}
	defer end()
	p, err := f.parse(o, int(o.st.Size), window)
	if err != nil {
		return err
	}
	useless, at := 0, p.end // bytes
	for c := p.next(nil); c != nil; c = p.next(c) {
		if hidden(c) && !isRecord(c) || slices.ContainsFunc(add, func(later *krb5.Credential) bool { return same(c, later) && later.EndTime >= c.EndTime }) {
			useless += p.end - at
		}
		at = p.end
	}
	p.close()
	if p.damage != nil && !p.short {
		return p.damage // an entry appended would not be found
	}
	var b []byte
	defer func() { clear(b) }()
	for _, c := range add {
		b = appendCredential(b, p.r.version, c)
	}
	full := p.end+len(b) > maxHeld
	if len(b) > 0 && full && !own(o.st.Uid) {
		return f.fail(ErrQuota, nil, "the file would have %d bytes, more than the %d up to which it is added to", p.end+len(b), maxHeld)
	}
	if len(b) > 0 && (full || useless > max(maxUseless, p.end/2) && own(o.st.Uid)) {
		return f.rewrite(o, p.end, drop, add)
	}
	if len(b) > 0 {
		if p.short { // its writer had no room or was stopped
			if err := o.Truncate(int64(p.end)); err != nil {
				return f.system(err)
			}
		}
		if _, err := o.WriteAt(b, int64(p.end)); err != nil {
			return errors.Join(f.system(err), o.Truncate(int64(p.end)))
		}
	}
	if drop == nil {
		return nil
	}
	return f.remove(o, p.end, drop)
}

// rewrite replaces the file by one with what of its first size bytes is not dropped and fits with
// what is added. One that does not say for whom it is begins to only where it counts for nobody else
// anyway.
func (f *file) rewrite(o *opened, size int, drop func(*krb5.Credential) bool, add []*krb5.Credential) error {
	p, err := f.parse(o, size, window)
	if err != nil {
		return err
	}
	defer p.close()
	h := f.r.hold()
	defer h.drop()
	if err := p.into(h, drop); err != nil {
		return err
	}
	if p.damage != nil {
		return p.damage
	}
	for _, c := range add {
		if err := h.add(c.Clone()); err != nil {
			return f.fail(ErrQuota, err, "")
		}
	}
	h.fit() // with room for more
	mode := &o.st
	if o.st.Uid != uint32(os.Geteuid()) {
		mode = nil
	}
	return f.replace(o.dir, o.base, mode, o.record || !o.dir.Closed(), p.principal, h.credentials())
}

// remove marks those of the file's first size bytes as removed that drop is true for.
func (f *file) remove(o *opened, size int, drop func(*krb5.Credential) bool) error {
	p, err := f.parse(o, size, window)
	if err != nil {
		return err
	}
	defer p.close()
	var c *krb5.Credential
	for at := p.end; ; at = p.end {
		if c = p.next(c); c == nil {
			return p.damage
		}
		if !hidden(c) && drop(c) {
			c.EndTime, c.AuthTime = 0, 1<<32-1
			if c.Server.Realm == confRealm {
				c.Server.Realm = removedConf
			}
			gone := appendCredential(nil, p.r.version, c)
			err := f.fail(ErrFormat, nil, "the entry at byte %d cannot be removed; get new credentials", at)
			if len(gone) == p.end-at {
				_, e := o.WriteAt(gone, int64(at))
				err = f.system(e)
			}
			clear(gone)
			if err != nil {
				return err
			}
		}
	}
}

// Destroy removes the name and then overwrites the content, for whoever holds the file open or has
// the disk.
func (f *file) Destroy(ctx context.Context) error {
	o, err := f.openChecked(os.O_RDWR)
	if err != nil {
		return f.system(err)
	}
	defer o.Close()
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	if err := wait(ctx, o.File, unix.F_WRLCK); err != nil {
		return f.fail(ErrIO, err, "locking")
	}
	same, err := o.current()
	if err == nil && !same {
		err = f.fail(ErrNoCache, nil, "removed or replaced meanwhile")
	}
	if err == nil {
		err = f.admit(o)
	}
	if err == nil {
		err = o.dir.Remove(o.base)
	}
	if err == nil {
		_, err = io.Copy(io.NewOffsetWriter(o, 0), io.LimitReader(zeros{}, o.st.Size))
	}
	return f.system(err)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
