package ccache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/mech/krb5"
)

const (
	// maxFile bounds the file read into memory; a ticket has some thousand bytes.
	maxFile = 16 << 20
	// lockWait is the longest wait for another process's lock, whatever the context allows.
	lockWait = 10 * time.Second
	// birth is how long a file may be empty: MIT's library makes it and then locks it to write.
	birth = 250 * time.Millisecond
)

// file is a FILE cache: a header, the principal, credentials to the end. Nothing is kept open between
// operations. A shared record lock over the whole file is held while reading, an exclusive one while writing,
// as MIT's library and Heimdal do. Credentials are appended; removed ones are overwritten in their place with
// the times of no ticket, as any other change would disturb those who read one entry after another.
type file struct {
	name string // full name
	path string
	r    Resolver

	// ours is set once a file of root's or this program's user was found or made here: nothing is added to another
	// user's file then, who may have put it in its place meanwhile to get what was not his.
	ours atomic.Bool
}

func (r *Resolver) file(name, path string) *file { return &file{name: name, path: path, r: *r} }

// met takes note of whose file was found or made, and reports whether it may be added to.
func (f *file) met(uid uint32) bool {
	if uid == 0 || uid == uint32(os.Geteuid()) {
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
	var known *Error
	code, text := ErrIO, ""
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENAMETOOLONG):
		code = ErrNoCache
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ELOOP):
		code = ErrAccess
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		text = "no room to write; what was there before is still there; make room"
	}
	return &Error{Name: f.name, Code: code, Text: text, Err: err}
}

// layout is what a file is made of. Credentials and spans go together; entries marked removed are not in them.
type layout struct {
	version   int
	principal krb5.Principal
	creds     []*krb5.Credential
	spans     [][2]int // where each credential begins and ends
	end       int      // of the last whole entry
	damage    error    // why there is more than end
	short     bool     // the damage is an entry not written to its end
}

// parse reads a whole file. The error is for a file without a principal; damage further on is in the layout.
func (f *file) parse(b []byte) (*layout, error) {
	if len(b) < 2 {
		return nil, f.fail(ErrFormat, nil, "%d bytes, expected 05 04 first; the file is cut short", len(b))
	}
	l := &layout{version: int(b[1])}
	if b[0] != 5 || l.version < 1 || l.version > 4 {
		return nil, f.fail(ErrVersion, nil, "begins with %02x %02x, expected 05 04; is this a credential cache?", b[0], b[1])
	}
	r := reader{b: b, pos: 2, version: l.version}
	if l.version == 4 {
		header(&r)
		if r.err == nil && r.left() == 0 {
			return nil, f.fail(ErrNoCache, nil, "the file is reserved but not initialized")
		}
	}
	l.principal = r.principal()
	if r.err != nil {
		return nil, f.fail(ErrFormat, r.err, "cut short or damaged; get new credentials")
	}
	for l.end = r.pos; r.left() > 0; l.end = r.pos {
		c := r.credential()
		if r.err != nil {
			l.damage, l.short = f.fail(ErrFormat, r.err, "cut short or damaged after %d entries; get new credentials", len(l.creds)), r.short
			break
		}
		// What has no end time, as settings and sealed handles, has no other time either.
		if c.EndTime == 0 && c.AuthTime != 0 {
			c.Destroy()
			continue
		}
		l.creds = append(l.creds, c)
		l.spans = append(l.spans, [2]int{l.end, r.pos})
	}
	return l, nil
}

// header skips the tagged fields of version 4. The only tag there is, 1, is the KDC's clock relative to ours;
// tickets are judged by our clock alone.
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

// open opens the file, locked as how says (F_RDLCK or F_WRLCK), and makes sure that the name still means it.
func (f *file) open(ctx context.Context, how int16) (*os.File, error) {
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
		fd, err := f.openChecked(flags)
		if err != nil {
			return nil, f.system(err)
		}
		if err := wait(ctx, fd, how); err != nil {
			fd.Close()
			return nil, f.fail(ErrIO, err, "locking")
		}
		st, err := fd.Stat()
		if err == nil {
			var named fs.FileInfo
			named, err = os.Stat(f.path)
			if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(st, named) {
				fd.Close() // replaced meanwhile
				continue
			}
		}
		if err != nil {
			fd.Close()
			return nil, f.system(err)
		}
		if st.Size() > maxFile {
			fd.Close()
			return nil, f.fail(ErrFormat, nil, "%d bytes, expected at most %d", st.Size(), maxFile)
		}
		if st.Size() > 0 {
			return fd, nil
		}
		// Perhaps just made, and its maker wants the lock we have.
		fd.Close()
		if empty.IsZero() {
			empty = time.Now()
		}
		if time.Since(st.ModTime()) > time.Minute || time.Since(empty) > birth {
			return nil, f.fail(ErrFormat, nil, "the file is empty; get new credentials")
		}
		if err := pause(ctx, 2*time.Millisecond); err != nil {
			return nil, f.fail(ErrIO, err, "waiting for the file's first content")
		}
	}
}

// openChecked opens the file if it is a regular one of a user that may have it there. A symbolic link is
// followed if it is root's or ours, or leads to a file of the link's owner.
func (f *file) openChecked(flags int) (*os.File, error) {
	flags |= unix.O_NOCTTY | unix.O_NONBLOCK // a FIFO must not hold us up
	linkOwner := uint32(0)
	fd, err := os.OpenFile(f.path, flags|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ELOOP) {
		var st unix.Stat_t
		if err := unix.Lstat(f.path, &st); err != nil {
			return nil, &fs.PathError{Op: "lstat", Path: f.path, Err: err}
		}
		linkOwner = st.Uid
		fd, err = os.OpenFile(f.path, flags, 0)
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(fd.Fd()), &st); err == nil {
		switch {
		case st.Mode&unix.S_IFMT != unix.S_IFREG:
			err = f.fail(ErrAccess, nil, "not a regular file")
		case !f.r.mayUse(st.Uid):
			err = f.fail(ErrAccess, nil, "the file belongs to uid %d, who is neither root, the user running this program, nor the user the cache is for", st.Uid)
		case linkOwner != 0 && linkOwner != uint32(os.Geteuid()) && linkOwner != st.Uid:
			err = f.fail(ErrAccess, nil, "a symbolic link of uid %d to a file of uid %d is not followed", linkOwner, st.Uid)
		case !f.met(st.Uid) && flags&os.O_RDWR != 0:
			err = f.fail(ErrAccess, nil, "a file of uid %d has taken the place of one that was ours; nothing is written to it", st.Uid)
		}
	}
	if err != nil {
		fd.Close()
		return nil, err
	}
	return fd, nil
}

// wait takes the lock. It asks again and again instead of sleeping in the kernel, where nothing could end it.
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

// read opens and parses the file.
func (f *file) read(ctx context.Context) (*layout, error) {
	fd, err := f.open(ctx, unix.F_RDLCK)
	if err != nil {
		return nil, err
	}
	defer fd.Close() // and unlock
	return f.readFrom(fd)
}

func (f *file) readFrom(fd *os.File) (*layout, error) {
	st, err := fd.Stat()
	if err != nil {
		return nil, f.system(err)
	}
	b := make([]byte, min(st.Size(), maxFile)) // it is locked: nobody adds to it
	defer clear(b)
	n, err := io.ReadFull(fd, b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, f.system(err)
	}
	return f.parse(b[:n])
}

func (f *file) Principal(ctx context.Context) (krb5.Principal, error) {
	l, err := f.read(ctx)
	if err != nil {
		return krb5.Principal{}, err
	}
	destroy(l.creds)
	return l.principal, nil
}

func destroy(creds []*krb5.Credential) {
	for _, c := range creds {
		c.Destroy()
	}
}

func (f *file) Credentials(ctx context.Context) ([]*krb5.Credential, error) {
	l, err := f.read(ctx)
	if err != nil {
		return nil, err
	}
	return l.creds, l.damage
}

// Initialize writes another file and renames it, so that a reader finds the old or the new one whole. As MIT's
// library makes a new file too, writers are ready for that. Group and mode of the old file stay if it is our own: what
// goes into a file that somebody else has put there would be his.
func (f *file) Initialize(ctx context.Context, client krb5.Principal, creds ...*krb5.Credential) error {
	if err := ctx.Err(); err != nil {
		return f.fail(ErrIO, err, "not begun")
	}
	b := AppendContent(nil, client, creds)
	defer clear(b)
	var old unix.Stat_t
	keep := false
	if err := unix.Lstat(f.path, &old); err == nil {
		switch old.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			keep = old.Uid == uint32(os.Geteuid())
		case unix.S_IFLNK:
		default:
			return f.fail(ErrAccess, nil, "not a regular file")
		}
	}
	// Not a name that a DIR collection takes for a cache.
	fd, err := os.CreateTemp(filepath.Dir(f.path), "."+filepath.Base(f.path)+".*")
	if err != nil {
		return f.system(err)
	}
	temp := fd.Name()
	err = func() error {
		if keep {
			if err := keepMode(fd, &old); err != nil {
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
		err = os.Rename(temp, f.path)
	}
	if err != nil {
		os.Remove(temp)
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

func (f *file) Update(ctx context.Context, drop func(*krb5.Credential) bool, add ...*krb5.Credential) error {
	fd, err := f.open(ctx, unix.F_WRLCK)
	if err != nil {
		return err
	}
	defer fd.Close() // and unlock
	l, err := f.readFrom(fd)
	if err != nil {
		return err
	}
	defer destroy(l.creds)
	if l.damage != nil && !l.short {
		return l.damage // an entry appended would not be found
	}
	var b []byte
	for _, c := range add {
		b = appendCredential(b, l.version, c)
	}
	defer clear(b)
	if l.end+len(b) > maxFile {
		return f.fail(ErrQuota, nil, "the file would have %d bytes, more than %d; get new credentials", l.end+len(b), maxFile)
	}
	if len(b) > 0 {
		if l.short { // its writer had no room or was stopped
			if err := fd.Truncate(int64(l.end)); err != nil {
				return f.system(err)
			}
		}
		if _, err := fd.WriteAt(b, int64(l.end)); err != nil {
			return errors.Join(f.system(err), fd.Truncate(int64(l.end)))
		}
	}
	if drop == nil {
		return nil
	}
	for i, c := range l.creds {
		if !drop(c) {
			continue
		}
		c.EndTime, c.AuthTime = 0, 1<<32-1
		if c.Server.Realm == confRealm {
			c.Server.Realm = removedConf
		}
		gone := appendCredential(nil, l.version, c)
		at := l.spans[i]
		if len(gone) != at[1]-at[0] {
			clear(gone)
			return f.fail(ErrFormat, nil, "the entry at byte %d cannot be removed; get new credentials", at[0])
		}
		_, err := fd.WriteAt(gone, int64(at[0]))
		clear(gone)
		if err != nil {
			return f.system(err)
		}
	}
	return nil
}

// Destroy removes the name and then overwrites the content, for whoever holds the file open or has the disk.
func (f *file) Destroy(ctx context.Context) error {
	fd, err := f.openChecked(os.O_RDWR)
	if err != nil {
		return f.system(err)
	}
	defer fd.Close()
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	if err := wait(ctx, fd, unix.F_WRLCK); err != nil {
		return f.fail(ErrIO, err, "locking")
	}
	if err := os.Remove(f.path); err != nil {
		return f.system(err)
	}
	st, err := fd.Stat()
	if err == nil {
		_, err = io.Copy(io.NewOffsetWriter(fd, 0), io.LimitReader(zeros{}, st.Size()))
	}
	if err != nil {
		return f.system(err)
	}
	return nil
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
