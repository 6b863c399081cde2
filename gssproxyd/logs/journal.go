package logs

import (
	"context"
	"encoding/binary"
	"log/slog"
	"os"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// journalSocket is where journald takes entries, also within a log namespace.
const journalSocket = "/run/systemd/journal/socket"

// always is in each entry. What syslog calls the facility is what it is for the standard error of a
// unit: rules of a syslog daemon behind the journal go by it.
const always = "SYSLOG_IDENTIFIER=gssproxyd\nSYSLOG_FACILITY=3\n"

// journalHandler writes each record as an entry of the journal: its text, and each attribute as a
// field too.
//
// It never waits. An entry for which the journal has no room, or that finds no journal, is a line on
// the standard error, if that has room; else it is lost, and the next entry says how many were. That
// is why the sending is not left to go-systemd, which waits for room.
type journalHandler struct {
	*sink
	level     slog.Leveler
	otherwise slog.Handler
	group     string // prefix of keys
	common    entry  // what all records have
}

// sink is where entries go.
type sink struct {
	fd     int // for the life of the process
	socket *unix.SockaddrUnix
	lost   atomic.Int64
}

// newJournal returns a handler for the journald at a socket. The socket is looked up for each entry:
// journald may be another one by then.
func newJournal(socket string, stderr *os.File, level slog.Leveler) (*journalHandler, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s := &sink{fd: fd, socket: &unix.SockaddrUnix{Name: socket}}
	otherwise := slog.NewTextHandler(&readyFile{stderr, &s.lost}, &slog.HandlerOptions{Level: level})
	return &journalHandler{sink: s, level: level, otherwise: otherwise}, nil
}

// Enabled reports whether records of a level are written.
func (h *journalHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.level.Level()
}

// WithAttrs returns a handler whose records have attributes besides their own.
func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	other := *h
	other.otherwise = h.otherwise.WithAttrs(attrs)
	other.common = entry{} // memory of its own
	other.common.append(h.common)
	for _, a := range attrs {
		other.common.add(h.group, a)
	}
	return &other
}

// WithGroup returns a handler that puts a group's name before the keys of attributes to come.
func (h *journalHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	other := *h
	other.otherwise = h.otherwise.WithGroup(name)
	other.group = h.group + name + "."
	return &other
}

// Handle writes a record.
func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	e := entry{fields: make([]byte, 0, 2048), text: make([]byte, 0, 1024)}
	e.fields = append(e.fields, always...)
	e.field("PRIORITY", priority(r.Level))
	if e.text = append(e.text, r.Message...); !printable(r.Message) {
		e.text = strconv.AppendQuote(e.text[:0], r.Message)
	}
	e.append(h.common)
	r.Attrs(func(a slog.Attr) bool {
		e.add(h.group, a)
		return true
	})
	lost := h.lost.Swap(0)
	if lost > 0 {
		e.add("", slog.Int64("lost", lost))
	}
	e.field("MESSAGE", string(e.text))
	if h.send(e.fields) == nil {
		return nil
	}
	h.lost.Add(lost)
	return h.otherwise.Handle(ctx, r)
}

// priority is what syslog calls a level.
func priority(level slog.Level) string {
	switch {
	case level >= slog.LevelError:
		return "3"
	case level >= slog.LevelWarn:
		return "4"
	case level >= slog.LevelInfo:
		return "6"
	}
	return "7"
}

// entry is an entry of the journal in the making: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
type entry struct {
	fields []byte
	text   []byte // what is to be the field MESSAGE
}

func (e *entry) append(other entry) {
	e.fields = append(e.fields, other.fields...)
	e.text = append(e.text, other.text...)
}

// add adds an attribute, to the text as slog's text handler does, and as a field.
func (e *entry) add(group string, a slog.Attr) {
	v := a.Value.Resolve()
	switch {
	case v.Kind() == slog.KindGroup:
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, a := range v.Group() {
			e.add(group, a)
		}
		return
	case a.Equal(slog.Attr{}):
		return
	}
	key, value := group+a.Key, textOf(v)
	e.text = append(e.text, ' ')
	e.word(key)
	e.text = append(e.text, '=')
	e.word(value)
	e.fieldOf(key, value)
}

func (e *entry) word(s string) {
	if needsQuotes(s) {
		e.text = strconv.AppendQuote(e.text, s)
	} else {
		e.text = append(e.text, s...)
	}
}

// field adds a field.
func (e *entry) field(name, value string) {
	e.fields = append(e.fields, name...)
	e.value(value)
}

// maxFieldName is what journald takes.
const maxFieldName = 64

// fieldOf adds the field of a key. With the prefix it is none that journald or others have set a
// meaning for.
func (e *entry) fieldOf(key, value string) {
	begin := len(e.fields)
	e.fields = append(e.fields, "GSSPROXYD_"...)
	for _, r := range key {
		switch {
		case 'a' <= r && r <= 'z':
			r += 'A' - 'a'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
		default:
			r = '_'
		}
		e.fields = append(e.fields, byte(r))
	}
	e.fields = e.fields[:min(len(e.fields), begin+maxFieldName)]
	e.value(value)
}

// value adds the value of the field whose name was added. Its length goes before it: no byte in it
// means anything then.
func (e *entry) value(value string) {
	e.fields = append(e.fields, '\n')
	e.fields = binary.LittleEndian.AppendUint64(e.fields, uint64(len(value)))
	e.fields = append(append(e.fields, value...), '\n')
}

// send sends an entry, in a file if it is too long for a datagram.
func (s *sink) send(b []byte) error {
	err := unix.Sendto(s.fd, b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, s.socket)
	if err != unix.EMSGSIZE && err != unix.ENOBUFS {
		return err
	}
	fd, err := unix.MemfdCreate("gssproxyd-log", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "log entry")
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	// journald reads no file that somebody could still change.
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE); err != nil {
		return err
	}
	return unix.Sendmsg(s.fd, nil, unix.UnixRights(fd), s.socket, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

// readyFile is written to when it takes a line at once. Lines that it does not take are counted. Its
// mode is left as it is: it is shared with other processes.
type readyFile struct {
	*os.File
	lost *atomic.Int64
}

// maxLine is PIPE_BUF: as much goes into a pipe that is ready, and more into a socket.
const maxLine = 4096

// Write writes one line, or the beginning of a long one.
func (f *readyFile) Write(line []byte) (int, error) {
	n := len(line)
	if n > maxLine {
		line = append(line[:maxLine-1:maxLine-1], '\n')
	}
	poll := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLOUT}}
	_, err := unix.Poll(poll, 0)
	if err == nil && poll[0].Revents&unix.POLLOUT == 0 {
		err = unix.EAGAIN
	}
	if err == nil {
		_, err = f.File.Write(line)
	}
	if err != nil {
		f.lost.Add(1)
		return 0, err
	}
	return n, nil
}
