// Package scrape serves a text over HTTP in a process without keys: this very program, started once
// more. That has the listening socket, a socket to the daemon, and nothing else; it is a user that
// nobody else is. Whoever wants the text asks it, and it asks the daemon, which reads one byte at a
// time and never a request of a stranger's.
//
// The daemon's side is [Serve], the other one [Help]. What the text is they do not know.
package scrape

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"gssproxyd/gssproxyd/nss"
)

// HelperArg is the argument with which this program is started as the helper.
const HelperArg = "metrics-helper"

// The conversation over a pair of sockets: a byte that says what is asked, and the answer to it: a
// byte, a length (32 bits, big-endian) and so many bytes of the text or of the error.
const (
	askPlain = 't' // the text format of Prometheus
	askOpen  = 'o' // that of OpenMetrics
	// That the helper could not become another user than who started it, before it asks anything: no
	// question, and not answered. As root it goes no further.
	sayUser = 'u'
	sayRoot = 'r'

	isText  = 't'
	isError = 'e'
)

// maxText bounds the text.
const maxText = 16 << 20

// errDead means that the other end of the conversation is gone.
var errDead = errors.New("the other end is gone")

func writeAnswer(w io.Writer, text []byte, err error) error {
	if err == nil && len(text) > maxText {
		err = fmt.Errorf("the text has %d bytes, more than %d", len(text), maxText)
	}
	kind := byte(isText)
	if err != nil {
		kind, text = isError, []byte(err.Error())
	}
	b := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(text)))
	_, err = w.Write(append(b, text...))
	return err
}

func readAnswer(r io.Reader) (text []byte, err error, dead error) {
	var head [5]byte
	if _, dead := io.ReadFull(r, head[:]); dead != nil {
		return nil, nil, dead
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxText {
		return nil, nil, fmt.Errorf("an answer has %d bytes, at most %d are possible", n, maxText)
	}
	text = make([]byte, n)
	if _, dead := io.ReadFull(r, text); dead != nil {
		return nil, nil, dead
	}
	if head[0] != isText {
		return nil, errors.New(string(text)), nil
	}
	return text, nil, nil
}

// StartFunc starts a helper with its end of the conversation and the listening socket, which stay the
// caller's to close.
type StartFunc func(conversation, listener *os.File) (nss.Process, error)

// StartChild starts a helper as a child of this process.
func StartChild(conversation, listener *os.File) (nss.Process, error) {
	return nss.StartProgram(HelperArg, conversation, listener)
}

// fileConn makes a connection of a file, which it closes.
func fileConn(f *os.File) (net.Conn, error) {
	defer f.Close()
	return net.FileConn(f)
}
