package proc

import (
	"fmt"
	"os"
	"strings"
	"sync"

	"gssproxyd/mech/krb5"
)

// openTrace opens the file that KRB5_TRACE names, and makes it if it is not there: the steps of
// each call are written to it, as libkrb5 does, to look into a problem with. Lines name principals,
// key versions, encryption types, servers and reasons, never keys, tickets or tokens. A file that
// cannot be opened or written is an error in the log, once: it is no reason not to serve.
//
// The packages that take the steps have a Trace field of the same type. It is nil where nothing is
// traced, and who is on the way of every request looks at that first.
func (p *Procedures) openTrace(name string) {
	if name == "" {
		return
	}
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		p.log.Error("KRB5_TRACE: nothing is traced", "error", err)
		return
	}
	var once sync.Once
	p.traceFile = file
	p.log.Trace = func(format string, args ...any) {
		now := p.log.Now()
		line := fmt.Sprintf("[%d] %d.%06d: %s\n", os.Getpid(), now.Unix(), now.Nanosecond()/1000, oneLine(fmt.Sprintf(format, args...)))
		if _, err := file.WriteString(line); err != nil { // in one piece, whoever else appends to the file
			once.Do(func() { p.log.Error("KRB5_TRACE: the trace has gaps", "error", err) })
		}
	}
}

// oneLine keeps what a peer chose from looking like lines of ours.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}

// traceContext tells that a context is established, and with which keys.
func (p *Procedures) traceContext(c *krb5.Context) {
	verb, acceptorSubkey := "Accepted", "none"
	if c.Initiator {
		verb = "Initiated"
	}
	if c.AcceptorSubkey != nil {
		acceptorSubkey = c.AcceptorSubkey.Enctype().String()
	}
	p.log.Trace("%s a context as %s, the peer is %s; session key %v, subkey %v, acceptor's subkey %s, flags %#x",
		verb, c.Here, c.There, c.SessionKey.Enctype(), c.Subkey.Enctype(), acceptorSubkey, c.Flags)
}
