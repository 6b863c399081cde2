package starter

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"gssproxyd/gssproxyd/nss"
	"gssproxyd/gssproxyd/pods"
	"gssproxyd/gssproxyd/scrape"
	"gssproxyd/rpc"
)

// maxHelpers is how many helpers there may be at once: the daemon has four, and those that do not end
// are left alone.
const maxHelpers = 8

// Named is what a configuration says of a socket's path.
type Named struct {
	Socket bool       // it names it
	Access rpc.Access // of the socket that it names
	Pod    bool       // it is that of a pod's socket, in the directory for those
}

// Names reads in the configuration what it says of a path.
type Names func(path string) (Named, error)

// starter is what the process has.
type starter struct {
	conn    *net.UnixConn
	names   Names
	helpers map[int]nss.Process // by process id
	staying map[int]bool        // those of them that were to end and have not
}

// Serve is the starter: it answers requests on the socket that is its standard input until that
// ends, which is when the daemon does.
func Serve(stdin *os.File, names Names) error {
	conn, err := fromFile(stdin)
	if err != nil {
		return fmt.Errorf("%s is for the daemon to start: %w", Arg, err)
	}
	defer conn.Close()
	// The daemon decides when to go. A service manager's signals reach all of its processes.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	if err := confine(); err != nil {
		return err
	}
	closeAfter(os.Getppid(), conn)
	s := &starter{conn, names, make(map[int]nss.Process), make(map[int]bool)}
	defer s.endAll()
	for {
		m, err := receive(conn)
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		answer := s.answer(m)
		m.close()
		err = send(conn, answer)
		answer.close()
		if err != nil {
			return err
		}
	}
}

// closeAfter closes a connection when a process has ended, which has its other end. To wait for the
// end of the input is not enough: that process may have given its end to others, helpers among them.
func closeAfter(pid int, conn *net.UnixConn) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // before Linux 5.3
	}
	go func() { // ends with the starter
		for err := error(unix.EINTR); err == unix.EINTR; {
			_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		}
		conn.Close()
	}()
}

// confine gives up what the starter does not need: of root's capabilities it keeps those with which
// a helper becomes another user, goes before others if it is urgent, and is killed, and a socket gets
// another owner. What it starts gets no more.
func confine() error {
	keep := cap.NewSet()
	has := cap.GetProc()
	for _, v := range []cap.Value{cap.SETUID, cap.SETGID, cap.SYS_NICE, cap.KILL, cap.CHOWN} {
		if on, err := has.GetFlag(cap.Permitted, v); err != nil || !on {
			continue // a service manager's doing, who has LimitNICE= instead: the helper will say what it cannot do, and so does who opens sockets
		}
		if err := errors.Join(keep.SetFlag(cap.Permitted, true, v), keep.SetFlag(cap.Effective, true, v)); err != nil {
			return err
		}
	}
	_, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	if err = errors.Join(err, keep.SetProc()); err != nil {
		return fmt.Errorf("the starter cannot drop capabilities: %w", err)
	}
	return nil
}

// endAll ends the helpers that the daemon has left.
func (s *starter) endAll() {
	for _, h := range s.helpers {
		h.End()
	}
}

func (s *starter) answer(m message) message {
	switch m.kind {
	case openSocket:
		f, err := s.listen(m.text)
		if err != nil {
			return message{kind: failed, text: err.Error()}
		}
		return message{kind: done, files: []*os.File{f}}
	case permitUsers:
		if err := s.permit(m.text); err != nil {
			return message{kind: failed, text: err.Error()}
		}
		return message{kind: done}
	case startHelper, startUrgent, startScrape, startStore:
		pid, err := s.start(m.kind, m.files)
		if err != nil {
			return message{kind: failed, text: err.Error()}
		}
		return message{kind: done, text: strconv.Itoa(pid)}
	case endHelper:
		return s.end(m.text)
	case removePod:
		if err := s.remove(m.text); err != nil {
			return message{kind: failed, text: err.Error()}
		}
		return message{kind: done}
	}
	return message{kind: failed, text: fmt.Sprintf("the starter knows no request %q", m.kind)}
}

// named reads what the configuration says of a path. What it does not name at all is an error.
func (s *starter) named(path string) (Named, error) {
	n, err := s.names(path)
	switch {
	case err != nil:
		return n, fmt.Errorf("socket %s: the starter cannot read the configuration: %w", path, err)
	case !n.Socket && !n.Pod:
		return n, fmt.Errorf("socket %s: the configuration does not name it", path)
	}
	return n, nil
}

// listen opens a socket.
func (s *starter) listen(path string) (*os.File, error) {
	n, err := s.named(path)
	if err != nil {
		return nil, err
	}
	var l *net.UnixListener
	if n.Socket {
		l, err = rpc.ListenFor(path, n.Access)
	} else {
		l, err = pods.Listen(path)
	}
	if err != nil {
		return nil, err
	}
	defer l.Close() // the file has a descriptor of its own
	return l.File()
}

// permit gives a socket its access.
func (s *starter) permit(path string) error {
	n, err := s.named(path)
	switch {
	case err != nil:
		return err
	case !n.Socket:
		return fmt.Errorf("socket %s: it is a pod's, for all of that", path)
	}
	return rpc.SetAccess(path, n.Access)
}

// remove removes a pod's socket.
func (s *starter) remove(path string) error {
	n, err := s.named(path)
	switch {
	case err != nil:
		return err
	case !n.Pod:
		return fmt.Errorf("socket %s: it is none of a pod's", path)
	}
	return pods.Remove(path)
}

func (s *starter) start(kind byte, files []*os.File) (pid int, err error) {
	if len(files) != 2 {
		return 0, fmt.Errorf("a helper needs an input and an output, and there are %d files", len(files))
	}
	for pid := range s.staying { // late, perhaps, on a busy machine
		s.end(strconv.Itoa(pid))
	}
	if len(s.helpers) >= maxHelpers {
		return 0, fmt.Errorf("there are %d helpers that do not end; restart the daemon", len(s.helpers))
	}
	var h nss.Process
	switch kind {
	case startScrape:
		h, err = scrape.StartChild(files[0], files[1])
	case startStore:
		h, err = nss.StartProgram(nss.StoreHelperArg, files[0], files[1])
	default:
		h, err = nss.StartChild(kind == startUrgent, files[0], files[1])
	}
	if err != nil {
		return 0, err
	}
	s.helpers[h.PID()] = h
	return h.PID(), nil
}

func (s *starter) end(pid string) message {
	n, _ := strconv.Atoi(pid)
	h := s.helpers[n]
	if h == nil {
		return message{kind: failed, text: fmt.Sprintf("process %.20q is no helper of this starter", pid)}
	}
	how, ended := h.End()
	answer := message{kind: stays}
	if how != nil {
		answer.text = how.Error()
	}
	s.staying[n] = true
	if ended {
		answer.kind = done
		delete(s.helpers, n)
		delete(s.staying, n)
	}
	return answer
}
