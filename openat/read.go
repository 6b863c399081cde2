package openat

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrChanging means that somebody writes to a file that is read.
var ErrChanging = errors.New("it changes while being read; let its writer finish")

// Read returns the content of an open file, which is to be at its beginning, and how the file is: it
// has to be a regular one, of at most so many bytes, that stands still meanwhile. The error does not
// repeat the name. Who asks for a secret clears it; on an error nothing of it is left.
func Read(f *os.File, most int64) ([]byte, unix.Stat_t, error) {
	var st, after unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, st, os.NewSyscallError("fstat", err)
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return nil, st, errors.New("it is a directory, not a regular file")
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, st, errors.New("it is not a regular file")
	case st.Size > most:
		return nil, st, fmt.Errorf("it has %d bytes; at most %d are read", st.Size, most)
	}
	b := make([]byte, st.Size)
	_, err := io.ReadFull(f, b)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF):
		err = ErrChanging
	case err == nil:
		err = os.NewSyscallError("fstat", unix.Fstat(int(f.Fd()), &after))
	}
	if err == nil && (after.Size != st.Size || after.Mtim != st.Mtim || after.Ctim != st.Ctim) {
		err = ErrChanging
	}
	if err != nil {
		clear(b)
		return nil, st, err
	}
	return b, st, nil
}

// ReadFile is [Read] for a file that an administrator has named. A FIFO there holds nobody up. The error
// is an [fs.PathError].
func ReadFile(path string, most int64) ([]byte, unix.Stat_t, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, unix.Stat_t{}, err
	}
	defer f.Close()
	b, st, err := Read(f, most)
	if err != nil {
		err = &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return b, st, err
}

// ReadFile is [Read] for the file of that name in the directory. A symbolic link is not followed.
func (d *Dir) ReadFile(name string, most int64) ([]byte, error) {
	f, err := d.Open(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, _, err := Read(f, most)
	return b, d.fail("read", name, err)
}
