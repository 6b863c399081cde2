package keytab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"gssproxyd/openat"
)

// maxSize bounds the file read into memory; it has room for some hundred thousand entries.
const maxSize = 16 << 20

// A stamp tells one state of a file from another.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
	mode, uid    uint32
}

func newStamp(st *unix.Stat_t) stamp {
	return stamp{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim, st.Mode, st.Uid}
}

func statFile(path string) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return stamp{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return newStamp(&st), nil
}

// readFile returns the content of a regular file that stood still meanwhile. The caller clears the
// content. An error does not repeat the path.
func readFile(path string) ([]byte, stamp, error) {
	// A FIFO put there must not hold up the watcher.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, stamp{}, denied(path, withoutPath(path, err))
	}
	defer f.Close()
	return readOpen(f)
}

// withoutPath is an error about a file without its path.
func withoutPath(path string, err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok && pe.Path == path {
		return pe.Err
	}
	return err
}

// denied adds to EACCES who was denied what, which is what has to be put right.
func denied(path string, err error) error {
	var st unix.Stat_t
	switch uid := os.Geteuid(); {
	case !errors.Is(err, unix.EACCES):
		return err
	case unix.Stat(path, &st) != nil:
		return fmt.Errorf("%w: uid %d may not search a directory on the way to it", err, uid)
	case st.Uid == uint32(uid):
		return fmt.Errorf("%w: uid %d may not read it, whose it is, with mode %04o: chmod it to 0600, or have AppArmor or SELinux allow it", err, uid, st.Mode&0o7777)
	default:
		return fmt.Errorf("%w: uid %d may not read it; it is uid %d's, with mode %04o: chown it to uid %[2]d, or copy it to a file of that user's", err, uid, st.Uid, st.Mode&0o7777)
	}
}

// Read returns the content of a file that is open, if it is one that a keytab can be: a regular file
// of at most 16 MiB that stands still meanwhile. The caller clears it.
func Read(f *os.File) ([]byte, error) {
	content, _, err := readOpen(f)
	return content, err
}

// readOpen is readFile for a file that is open.
func readOpen(f *os.File) ([]byte, stamp, error) {
	b, st, err := openat.Read(f, maxSize)
	return b, newStamp(&st), err
}

// trail returns the directory entries that decide which file an absolute path names: every symbolic
// link on the way, and the file itself or else the first thing that is missing.
func trail(path string) []string {
	const maxLinks = 40 // as the kernel's
	var names []string
	at, rest := "/", strings.Split(path, "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			at = filepath.Dir(at)
			continue
		}
		at = filepath.Join(at, name)
		target, err := os.Readlink(at)
		if err == nil {
			names = append(names, at)
			if links++; links == maxLinks {
				return names
			}
			at = filepath.Dir(at)
			if filepath.IsAbs(target) {
				at = "/"
			}
			rest = append(strings.Split(target, "/"), rest...)
		} else if len(rest) == 0 || errors.Is(err, fs.ErrNotExist) {
			return append(names, at)
		}
	}
	return names
}
