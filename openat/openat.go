// Package openat finds files by going to them one directory at a time, so that what is decided
// about a file and what is then done with it are about the same one.
//
// Its rule is the daemon's: every decision about a file is made on a descriptor. A name that is
// looked up twice may mean two files, and whoever may write in a directory on the way chooses when.
// So a path is walked once; each directory is opened, and looked at when it is open; and what is
// done then is done to a name in a directory that is held open, by [Dir], or to the open file. What
// somebody else may have put on the way is not followed: a symbolic link counts only if it and the
// directory it is in belong to root or to the user this program runs as ("ours" below), and only
// they may write there.
//
// A directory in which others may write but not take away what is ours, such as /tmp with its
// sticky bit, is one where a name of ours stays ours, and not one where a name says anything about
// who put it there.
package openat

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links one path may lead through, as for the kernel.
const maxLinks = 40

// Dir is an open directory, with what the way to it said. It is to be closed.
type Dir struct {
	fd     int
	path   string // for errors
	st     unix.Stat_t
	steady bool // no other user can put something else in the place of what led here
}

// ours reports whether a file is root's or the user's that this program runs as.
func ours(st *unix.Stat_t) bool { return st.Uid == 0 || st.Uid == uint32(os.Geteuid()) }

// closed reports whether others cannot write in the directory itself.
func (d *Dir) closed() bool { return ours(&d.st) && d.st.Mode&0o022 == 0 }

// Closed reports whether only root and the user this program runs as can decide what is in the
// directory, and which directory its path means: none of those that led here can be written by
// others, or it is sticky and not the last.
func (d *Dir) Closed() bool { return d.steady && d.closed() }

// CheckKeeps returns why others could take what is made in the directory away and put something
// else there, nil if they cannot: the directory is closed, or sticky and ours.
func (d *Dir) CheckKeeps() error {
	switch {
	case !d.steady:
		return errors.New("another user can replace a directory on the way; each has to belong to root or the user who runs this program, and be writable by no one else (chmod go-w)")
	case !ours(&d.st):
		return fmt.Errorf("the directory belongs to uid %d, who could replace what is made there; expected root or the user who runs this program", d.st.Uid)
	case d.st.Mode&0o022 != 0 && d.st.Mode&unix.S_ISVTX == 0:
		return fmt.Errorf("the directory has mode %04o, so others could replace what is made there; chmod go-w", d.st.Mode&0o7777)
	}
	return nil
}

// open opens one name in d without following it. The descriptor is the caller's.
func (d *Dir) open(name string, flags int, perm uint32) (int, error) {
	for {
		fd, err := unix.Openat(d.fd, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, perm)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func (d *Dir) fail(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: d.join(name), Err: err}
}

func (d *Dir) join(name string) string {
	if d.path == "" || strings.HasSuffix(d.path, "/") {
		return d.path + name
	}
	return d.path + "/" + name
}

// step opens the directory of that name in d. A name that is something else, a link for one, is
// [unix.ENOTDIR].
func (d *Dir) step(name string) (*Dir, error) {
	next := &Dir{path: d.join(name)}
	var err error
	// With O_DIRECTORY, so that an automounter mounts what is to be there.
	if next.fd, err = d.open(name, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return nil, d.fail("open", name, err)
	}
	if err := unix.Fstat(next.fd, &next.st); err != nil {
		next.Close()
		return nil, d.fail("fstat", name, err)
	}
	next.steady = d.steady && (d.closed() || ours(&d.st) && d.st.Mode&unix.S_ISVTX != 0 && ours(&next.st))
	return next, nil
}

// link returns where a symbolic link leads that may be followed; false if the name is something
// else, or nothing.
func (d *Dir) link(name string) (target string, ok bool, err error) {
	fd, err := d.open(name, unix.O_PATH, 0)
	if err != nil {
		return "", false, nil // what comes next says what is wrong
	}
	defer unix.Close(fd)
	// What is no link is not asked for its state: a mount whose server has ended has none.
	var b [unix.PathMax]byte
	n, err := unix.Readlinkat(fd, "", b[:])
	switch err {
	case nil:
	case unix.ENOENT, unix.EINVAL:
		return "", false, nil
	default:
		return "", false, d.fail("readlink", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", false, d.fail("fstat", name, err)
	}
	if !ours(&st) || !d.closed() {
		return "", false, d.fail("follow", name, &linkError{st.Uid})
	}
	return string(b[:n]), true, nil
}

// linkError says that a symbolic link is not followed. It is [unix.ELOOP], as an open that must
// follow none has it.
type linkError struct{ uid uint32 }

func (e *linkError) Error() string {
	return fmt.Sprintf("a symbolic link of uid %d is not followed where it or its directory is not root's or this program's user's alone to write; name the file itself", e.uid)
}

func (e *linkError) Unwrap() error { return unix.ELOOP }

// Parent opens the directory that path names a file in, and returns the file's name there. Whether
// there is one, and what it is, is not looked at; a symbolic link there is none of those that are
// followed.
func Parent(path string) (*Dir, string, error) { return walk(path, false, nil) }

// Find is Parent for what path means: a symbolic link at its end is followed as those before it.
// The name returned is not one's, unless it was put there since; nothing that a [Dir] does follows
// it then.
func Find(path string) (*Dir, string, error) { return walk(path, true, nil) }

// FindVia is Find, and calls each with every directory that the way leads through, those on the ways
// of links too, and its state as it was when it was opened.
func FindVia(path string, each func(dir string, st unix.Stat_t)) (*Dir, string, error) {
	return walk(path, true, each)
}

// FindKept is Find for a file whose place says who wrote it. It is an error if anybody but root, the
// user this program runs as and owners could put another one there: each directory that the way
// leads through has to be one of theirs and writable by nobody else, or sticky and not the last.
func FindKept(path string, owners ...uint32) (*Dir, string, error) {
	var wrong error
	dir, name, err := walk(path, true, func(dir string, st unix.Stat_t) {
		switch {
		case wrong != nil:
		case !ours(&st) && !slices.Contains(owners, st.Uid):
			wrong = fmt.Errorf("the directory %s belongs to uid %d, who could put another file there; root's is expected, or the user's who runs this program", dir, st.Uid)
		case st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0:
			wrong = writableError(dir, &st)
		}
	})
	if err == nil && wrong == nil && dir.st.Mode&0o022 != 0 {
		wrong = writableError(dir.path, &dir.st)
	}
	if err == nil && wrong != nil {
		dir.Close()
		return nil, "", wrong
	}
	return dir, name, err
}

func writableError(dir string, st *unix.Stat_t) error {
	return fmt.Errorf("the directory %s has mode %04o, so others could put another file there; chmod go-w %[1]s", dir, st.Mode&0o7777)
}

// OpenDir opens a directory.
func OpenDir(path string) (*Dir, error) {
	d, name, err := Find(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.step(name)
}

// root opens the directory that absolute paths begin in.
func root(steady bool) (*Dir, error) {
	d := &Dir{fd: unix.AT_FDCWD, steady: steady}
	return d.step("/")
}

func walk(whole string, follow bool, each func(string, unix.Stat_t)) (d *Dir, name string, err error) {
	if each == nil {
		each = func(string, unix.Stat_t) {}
	}
	if whole == "" {
		return nil, "", &fs.PathError{Op: "open", Path: whole, Err: unix.ENOENT}
	}
	rest := whole
	if rest[0] != '/' {
		wd, err := os.Getwd()
		if err != nil {
			return nil, "", err
		}
		rest = wd + "/" + rest // uncleaned: a link's ".." is not its name's
	}
	if d, err = root(true); err != nil {
		return nil, "", err
	}
	each(d.path, d.st)
	for links := 0; ; {
		rest = strings.TrimLeft(rest, "/")
		var more bool
		name, rest, more = strings.Cut(rest, "/")
		last := !more || strings.Trim(rest, "/") == ""
		if name == "" || name == "." {
			if last {
				return d, ".", nil
			}
			continue
		}
		if last && !follow {
			return d, name, nil
		}
		if !last {
			next, err := d.step(name)
			if err == nil {
				d.Close()
				d = next
				each(d.path, d.st)
				continue
			}
			if !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
				d.Close()
				return nil, "", err
			}
		}
		target, ok, err := d.link(name)
		if err == nil && !ok {
			if last {
				return d, name, nil
			}
			err = d.fail("open", name, unix.ENOTDIR)
		}
		if err == nil {
			if links++; links > maxLinks {
				err = d.fail("follow", name, unix.ELOOP)
			}
		}
		if err != nil {
			d.Close()
			return nil, "", err
		}
		if !last {
			target += "/" + rest
		}
		if strings.HasPrefix(target, "/") {
			d.Close()
			if d, err = root(d.steady); err != nil {
				return nil, "", err
			}
		}
		rest = target
	}
}

// Close closes the directory.
func (d *Dir) Close() error { return unix.Close(d.fd) }

// FD returns the descriptor, which is of O_PATH: other calls can name files relative to it.
func (d *Dir) FD() int { return d.fd }

// Stat returns the state of the directory as it was when it was opened.
func (d *Dir) Stat() unix.Stat_t { return d.st }

// Open opens the file of that name in the directory, or makes it with O_CREAT. A symbolic link is
// [unix.ELOOP].
func (d *Dir) Open(name string, flags int, perm uint32) (*os.File, error) {
	fd, err := d.open(name, flags, perm)
	if err != nil {
		return nil, d.fail("open", name, err)
	}
	return os.NewFile(uintptr(fd), d.join(name)), nil
}

// Means reports whether the name still means the file with that state.
func (d *Dir) Means(name string, file *unix.Stat_t) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return false, nil
	}
	return err == nil && st.Dev == file.Dev && st.Ino == file.Ino, d.fail("stat", name, err)
}

// Temp makes a new file with a name that begins with prefix, for this program's user alone, and
// returns it and its name.
func (d *Dir) Temp(prefix string) (*os.File, string, error) {
	name := prefix + rand.Text()[:10]
	f, err := d.Open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	return f, name, err
}

// Write makes a complete file for this program's user alone, calls finish with it, and gives it
// name by place: [Dir.Link] leaves an existing file alone, [Dir.Rename] replaces it.
func (d *Dir) Write(name string, content []byte, finish func(*os.File) error, place func(from, to string) error) error {
	f, temp, err := d.Temp("." + name + ".")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = finish(f)
	}
	if err = cmp.Or(err, f.Close()); err == nil {
		err = place(temp, name)
	}
	d.Remove(temp) // gone already after a rename
	return err
}

// Mkdir makes a directory for this program's user alone.
func (d *Dir) Mkdir(name string) error { return d.fail("mkdir", name, unix.Mkdirat(d.fd, name, 0o700)) }

// Rename gives a file of the directory another name there, whatever had it before.
func (d *Dir) Rename(from, to string) error {
	return d.fail("rename", to, unix.Renameat(d.fd, from, d.fd, to))
}

// Link gives a file of the directory another name there, that nothing has.
func (d *Dir) Link(from, to string) error {
	return d.fail("link", to, unix.Linkat(d.fd, from, d.fd, to, 0))
}

// Remove removes the name of what is no directory.
func (d *Dir) Remove(name string) error { return d.fail("remove", name, unix.Unlinkat(d.fd, name, 0)) }

// RemoveDir removes the name of a directory that has nothing in it.
func (d *Dir) RemoveDir(name string) error {
	return d.fail("remove", name, unix.Unlinkat(d.fd, name, unix.AT_REMOVEDIR))
}

// Self opens the directory itself: to read it, to lock it, to sync it.
func (d *Dir) Self() (*os.File, error) { return d.Open(".", os.O_RDONLY|unix.O_DIRECTORY, 0) }

// Sync has what was done to names in the directory survive a crash of the system.
func (d *Dir) Sync() error {
	f, err := d.Self()
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Chmod sets the mode of an open file, which may be open with O_PATH only. It needs /proc:
// fchmodat2, which does not, is of Linux 6.6.
func Chmod(f *os.File, mode fs.FileMode) error {
	return os.Chmod("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), mode)
}

// clockTick is how far the times that the kernel gives files are behind its clock at most, with
// some room.
const clockTick = 20 * time.Millisecond

// ChangesShow reports whether every change of a file that comes after read, when it was read with
// the change time ctime, shows in its times. Two changes within one tick of the kernel's clock do
// not, nor do two within a second where the file system keeps whole ones. Of a change time in the
// future nothing is known: the clock was set back, or the file is another host's.
func ChangesShow(ctime unix.Timespec, read time.Time) bool {
	grain := clockTick
	if ctime.Nsec == 0 {
		grain = 2 * time.Second
	}
	return time.Unix(ctime.Unix()).Before(read.Add(-grain))
}
