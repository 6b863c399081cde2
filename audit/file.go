package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/openat"
)

// file is what a log writes to, at its end.
type file interface {
	io.Writer
	io.ReaderAt
	io.Closer
	Truncate(size int64) error
	Size() (int64, error)
	Is(other os.FileInfo) bool
}

type diskFile struct{ *os.File }

func (f diskFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f diskFile) Is(other os.FileInfo) bool {
	st, err := f.Stat()
	return err == nil && os.SameFile(st, other)
}

// openFile opens a log's file, or makes it. Nobody but root and this program's user can have put it
// there, nor write to it.
func openFile(d *openat.Dir, name string) (*os.File, error) {
	if err := d.CheckKeeps(); err != nil {
		return nil, err
	}
	// Without O_NONBLOCK a FIFO would keep us.
	f, err := d.Open(name, os.O_RDWR|os.O_APPEND|os.O_CREATE|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	if err := checkFile(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// checkFile returns what is wrong with an open file that events are to be written to.
func checkFile(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.New("it is no regular file; name another one")
	case st.Uid != 0 && st.Uid != uint32(os.Geteuid()):
		return fmt.Errorf("it belongs to uid %d; root or the user who runs this program is expected (chown)", st.Uid)
	case st.Mode&0o022 != 0:
		return fmt.Errorf("others can write to it, with mode %04o; chmod go-w", st.Mode&0o7777)
	case st.Nlink > 1:
		return errors.New("it has another name too, perhaps a link that somebody else made; remove one of them")
	}
	return nil
}

// errWritten says that a file has its writer.
var errWritten = errors.New("another process writes to it; end that one, or name another file")

// lock makes this the file's only writer, until it is closed.
func lock(f *os.File) error {
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if err == unix.EAGAIN || err == unix.EACCES {
		return errWritten
	}
	return os.NewSyscallError("fcntl", err)
}

// written reports whether some process has locked the file.
func written(f *os.File) bool {
	l := unix.Flock_t{Type: unix.F_WRLCK}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l)
	return err == nil && l.Type != unix.F_UNLCK
}

// tail is what a file ends in.
type tail struct {
	whole   // the last line; its seq is 0 if there is none
	time    time.Time
	end     int64 // of that line; what is behind it is torn
	size    int64
	midline bool // the last byte is no newline
}

// maxTorn is how much a file may have behind its last line: somewhat more than one torn line.
const maxTorn = 1 << 20

// readTail looks for the last line of a file.
func readTail(f file) (t tail, err error) {
	if t.size, err = f.Size(); err != nil {
		return t, err
	}
	from := max(0, t.size-maxTorn-maxLine)
	b := make([]byte, t.size-from)
	if _, err := f.ReadAt(b, from); err != nil && err != io.EOF {
		return t, err
	}
	t.midline = len(b) > 0 && b[len(b)-1] != '\n'
	for end := len(b); end > 0; {
		start := bytes.LastIndexByte(b[:end-1], '\n') + 1
		if start == 0 && from > 0 {
			break // the middle of a line
		}
		line := bytes.TrimSuffix(b[start:end], []byte{'\n'})
		if w, ok := parseWhole(line); ok {
			t.whole, t.time, t.end = w, lineTime(line), from+int64(end)
			return t, nil
		}
		end = start
	}
	if from > 0 || !bytes.HasPrefix(b, []byte(lineStart)) && !strings.HasPrefix(lineStart, string(b)) {
		return t, errors.New("it does not end like an audit log; move it away, or name another file")
	}
	return t, nil
}

func lineTime(line []byte) time.Time {
	var has struct{ Time time.Time }
	if json.Unmarshal(line, &has) != nil {
		return time.Time{}
	}
	return has.Time
}

// former finds the file that was written before one that is new: it has the new one's name with a dot
// or a dash and digits behind it, as logrotate(8) makes them. It is the one with the latest line; what
// follows that line is torn. The chain starts anew where there is none.
func former(d *openat.Dir, name string) (last tail, torn []byte, err error) {
	dir, err := d.Self()
	if err != nil {
		return last, nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return last, nil, err
	}
	for _, n := range names {
		suffix, ok := strings.CutPrefix(n, name)
		if !ok || len(suffix) < 2 || suffix[0] != '.' && suffix[0] != '-' || strings.Trim(suffix[1:], "0123456789-") != "" {
			continue
		}
		t, rest, err := readFormer(d, n)
		switch {
		case err != nil:
			return last, nil, fmt.Errorf("%s: %w", n, err)
		case t.time.After(last.time) || t.time.Equal(last.time) && t.seq > last.seq:
			last, torn = t, rest
		}
	}
	return last, torn, nil
}

// readFormer reads the end of a file that may be a former one; what is none has no last line.
func readFormer(d *openat.Dir, name string) (tail, []byte, error) {
	f, err := d.Open(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return tail{}, nil, nil
	}
	defer f.Close()
	if checkFile(f) != nil {
		return tail{}, nil, nil
	}
	if written(f) {
		return tail{}, nil, errWritten
	}
	t, err := readTail(diskFile{f})
	if err != nil || t.seq == 0 {
		return tail{}, nil, nil
	}
	torn := make([]byte, t.size-t.end)
	_, err = f.ReadAt(torn, t.end)
	return t, torn, err
}
