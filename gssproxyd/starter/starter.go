// Package starter is what stays root when the daemon becomes another user: a process without keys
// that opens sockets which a reload or a pod adds, says who may connect to them, and starts and ends
// the helpers that ask the name service or key stores, or serve metrics. It does nothing else.
//
// Clients believe a socket on which root listens, and sockets are in directories of root's; a helper
// becomes a user that nobody else is. Neither is in the power of the user that the daemon becomes,
// and both are needed again and again. So the daemon, while it is root, starts this very program
// once more ([Start]), which has no descriptor of the daemon's but one end of a pair of sockets.
//
// The starter takes nothing on trust, since the daemon reads what strangers write: it opens the
// sockets that the configuration names, for those whom it names, and those of pods in the directory
// that is for them, and reads it itself; and has a few helpers at a time, of which it ends its own
// only. It ends with the daemon, and cannot be started again; the daemon goes
// on without it, and says what it lacks.
package starter

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Arg is the argument with which this program is started as the starter.
const Arg = "starter"

// The conversation over a pair of SOCK_SEQPACKET sockets: a request, then its answer.
//
//	request: what is asked, one byte; a path or a process id
//	answer:  whether it was done, one byte; a process id or an error
//
// Descriptors go along: to a helper its input and output (to that of the metrics its conversation and its socket, to that of key stores its conversation), from the starter a socket that listens.
const (
	openSocket  = 'o' // with a path
	permitUsers = 'p' // to connect to it; with a path
	startHelper = 'h'
	startUrgent = 'u' // a helper, too
	startScrape = 'm' // the helper that serves the metrics
	startStore  = 's' // the helper that asks key stores
	endHelper   = 'e' // with a process id
	removePod   = 'r' // a pod's socket, with a path

	done   = 'd'
	failed = 'f'
	stays  = 'n' // a helper that does not end
)

const (
	maxMessage   = 4096
	maxFilesSent = 2
)

// answerTimeout is how long the daemon waits for an answer. A name of a socket is tried for a second,
// and a helper that was killed is waited for as long.
const answerTimeout = 10 * time.Second

// lateTimeout is how long each request waits for an answer that did not come in time to the one before:
// one that hangs is not to delay all who ask.
const lateTimeout = 10 * time.Millisecond

// message is a request or an answer.
type message struct {
	kind  byte
	text  string
	files []*os.File
}

func (m message) close() {
	for _, f := range m.files {
		f.Close()
	}
}

func send(c *net.UnixConn, m message) error {
	var fds []int
	for _, f := range m.files {
		fds = append(fds, int(f.Fd()))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err := c.WriteMsgUnix(append([]byte{m.kind}, m.text[:min(len(m.text), maxMessage-1)]...), rights, nil)
	return err
}

// receive returns the next message, whose files are the caller's to close.
func receive(c *net.UnixConn) (m message, err error) {
	b, rights := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*maxFilesSent))
	n, rn, flags, _, err := c.ReadMsgUnix(b, rights) // close-on-exec is Go's to set
	if err != nil {
		return m, err
	}
	controls, err := unix.ParseSocketControlMessage(rights[:rn])
	if err != nil {
		return m, err
	}
	for i := range controls {
		fds, err := unix.ParseUnixRights(&controls[i])
		if err != nil {
			return m, err
		}
		for _, fd := range fds {
			m.files = append(m.files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	if n == 0 || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		m.close()
		return message{}, fmt.Errorf("a message of %d bytes is none of the starter's, or is cut", n)
	}
	m.kind, m.text = b[0], string(b[1:n])
	return m, nil
}

// fromFile makes a connection of a socket, and closes the file.
func fromFile(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("it is not a unix socket")
	}
	return u, nil
}
