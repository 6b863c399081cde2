package peer

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// FromPID returns what [FromConn] and a look at everything would say of a connection that the process
// with this number makes now. All is read while a descriptor proves that the number is that
// process's.
func FromPID(pid int32) (*Info, error) {
	pidfd, err := unix.PidfdOpen(int(pid), 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil, fmt.Errorf("there is no process %d", pid)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("%d is no process, or the number of a thread: %w", pid, err)
	case err != nil:
		return nil, fmt.Errorf("peer: pidfd_open: %w", err)
	}
	defer unix.Close(pidfd)
	p := &process{pid: pid}
	open := func() (int, error) { return unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 0) }
	info, known := pinned(p, open, readIDs)
	if known {
		trusted, isKnown := p.trusted(open)
		info.Trusted = maybe(trusted, isKnown)
		running := p.program(open)
		info.Program, info.MountNS = running.program, running.ourNS
		info.Place = maybe(p.place(open))
		info.AppArmor = maybe(p.appArmor(open))
		label, isKnown := pinned(p, open, readLabel)
		info.SELinux = maybe(label, isKnown && label != "")
	}
	if err := p.err.Load(); err != nil {
		return nil, *err
	}
	if !known {
		return nil, fmt.Errorf("process %d has ended, or /proc is closed to this program", pid)
	}
	info.PID = pid
	return &info, nil
}

func maybe[T any](v T, known bool) Maybe[T] {
	if !known {
		return Maybe[T]{}
	}
	return Known(v)
}

// readIDs reads the effective ids, which SO_PEERCRED would be, and the groups.
func readIDs(dir string) (info Info, err error) {
	ids, err := readStatus(dir)
	if err != nil {
		return info, err
	}
	return Info{UID: ids.uids[effective], GID: ids.gids[effective], Groups: Known(ids.groups)}, nil
}

// readLabel reads the security label, empty where no security module gives any.
func readLabel(dir string) (string, error) {
	if !hasLabels() {
		return "", nil
	}
	b, err := readFile(dir + "/attr/current")
	return strings.TrimRight(string(b), "\x00\n"), err
}

// hasLabels reports whether a security module gives processes labels, or may: one that does not is
// not followed by another one before the next boot.
var hasLabels = sync.OnceValue(func() bool {
	_, err := readFile("/proc/thread-self/attr/current")
	return err != unix.EINVAL && err != unix.ENOENT
})

// ids are what /proc/PID/status says of a thread.
type ids struct {
	process    int32
	session    int32     // 0 if it is not visible in our pid namespace
	uids, gids [4]uint32 // see below
	groups     []uint32
	hasMemory  bool // as all have but threads of the kernel, and who has almost ended
}

// Which of the four ids is which.
const (
	effective  = 1
	fileSystem = 3
)

// readStatus reads /proc/PID/status: in one go, unless its groups are many.
func readStatus(dir string) (of ids, err error) {
	name := dir + "/status"
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ids{}, err
	}
	defer unix.Close(fd)
	var buf [4096]byte
	n, err := unix.Pread(fd, buf[:], 0)
	text := buf[:max(n, 0)]
	if n == len(buf) {
		text, err = os.ReadFile(name)
	}
	if err == nil {
		of, err = parseIDs(text)
	}
	if err != nil {
		return ids{}, fmt.Errorf("%s: %w", name, err)
	}
	return of, nil
}

func parseIDs(status []byte) (of ids, err error) {
	field := func(name string) (numbers []uint32) {
		_, rest, _ := bytes.Cut(status, []byte("\n"+name+":"))
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		for text := range strings.FieldsSeq(string(line)) {
			n, e := strconv.ParseUint(text, 10, 32)
			if e != nil {
				err = e
			}
			numbers = append(numbers, uint32(n))
		}
		return numbers
	}
	process, sessions, uids, gids := field("Tgid"), field("NSsid"), field("Uid"), field("Gid")
	of.groups = field("Groups")
	if len(process) != 1 || len(sessions) == 0 || len(uids) != len(of.uids) || len(gids) != len(of.gids) || err != nil {
		return ids{}, errors.Join(errors.New("no ids"), err)
	}
	of.process, of.uids, of.gids = int32(process[0]), [4]uint32(uids), [4]uint32(gids)
	of.session = int32(sessions[0]) // of the outermost namespace that is visible here: ours
	of.hasMemory = bytes.Contains(status, []byte("\nVmSize:"))
	return of, nil
}
