package scrape

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"mime"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/gssproxyd/nss"
)

// What a client of the helper's may take.
const (
	maxConns      = 64
	maxHeader     = 8 << 10
	headerTimeout = 5 * time.Second
	writeTimeout  = 10 * time.Second
	textTimeout   = 5 * time.Second // of the daemon's answer
)

// nice is the helper's priority: what strangers want comes after the daemon and whom it serves.
const nice = 10

// Path is where the text is.
const Path = "/metrics"

// Help is the helper: it gives up its privileges, and serves the text on a listening socket until its
// conversation with the daemon ends, which is when the daemon does. It closes both files.
func Help(conversation, listener *os.File) error {
	conn, err := fileConn(conversation)
	if err != nil {
		return fmt.Errorf("%s is for the daemon to start: %w", HelperArg, err)
	}
	defer conn.Close()
	l, err := net.FileListener(listener)
	listener.Close()
	if err != nil {
		return fmt.Errorf("%s is for the daemon to start: %w", HelperArg, err)
	}
	// The daemon decides when to go. The signals of a service manager reach all of its processes.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	unix.Setpriority(unix.PRIO_PGRP, 0, nice)
	if err := nss.BecomeNobody(); err != nil {
		say := byte(sayUser)
		if os.Geteuid() == 0 {
			say = sayRoot
		}
		if _, bad := conn.Write([]byte{say}); bad != nil || say == sayRoot {
			return cmp.Or(bad, err)
		}
	}
	d := newDaemon(conn)
	server := newServer(d)
	go func() { // ends with the process
		<-d.gone
		server.Close()
	}()
	go d.read() // likewise
	err = server.Serve(&bounded{Listener: l, room: make(chan struct{}, maxConns)})
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func newServer(d *daemon) *http.Server {
	s := &http.Server{
		Handler: http.HandlerFunc(d.serve), MaxHeaderBytes: maxHeader,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, WriteTimeout: writeTimeout,
		ErrorLog: log.New(io.Discard, "", 0), // of what strangers do
	}
	s.SetKeepAlivesEnabled(false) // who scrapes once in a while keeps no room meanwhile
	return s
}

// daemon is the daemon, as the helper sees it.
type daemon struct {
	conn    net.Conn
	turn    chan struct{} // taken while a question is not answered
	answers chan answer
	gone    chan struct{}   // closed when it answers no more
	last    map[byte]answer // by what was asked; whose turn it is may look
}

type answer struct {
	text []byte
	err  error
	came time.Time
}

func newDaemon(conn net.Conn) *daemon {
	return &daemon{conn, make(chan struct{}, 1), make(chan answer, 1), make(chan struct{}), make(map[byte]answer)}
}

// read takes answers until there are no more.
func (d *daemon) read() {
	defer close(d.gone)
	for {
		text, err, dead := readAnswer(d.conn)
		if dead != nil {
			return
		}
		select {
		case d.answers <- answer{text, err, time.Now()}:
		default:
			return // nobody has asked
		}
	}
}

// ask asks for the text, in its turn, or returns the one that came last if that is new. Who has no
// more time leaves the answer to those after him.
func (d *daemon) ask(ctx context.Context, what byte) ([]byte, error) {
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, errors.New("too many ask at once")
	}
	if a := d.last[what]; time.Since(a.came) < pace {
		<-d.turn
		return a.text, a.err
	}
	result := make(chan answer, 1)
	go func() { // ends with the answer, or with the daemon
		defer func() { <-d.turn }()
		if _, err := d.conn.Write([]byte{what}); err != nil {
			result <- answer{err: errDead}
			return
		}
		select {
		case a := <-d.answers:
			d.last[what] = a
			result <- a
		case <-d.gone:
			result <- answer{err: errDead}
		}
	}()
	select {
	case a := <-result:
		return a.text, a.err
	case <-ctx.Done():
		return nil, errors.New("the daemon does not answer")
	}
}

// serve answers a request of whoever wants the text.
func (d *daemon) serve(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path != Path:
		http.Error(w, "404: the metrics of gssproxyd are at "+Path, http.StatusNotFound)
		return
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "405: there is GET and HEAD", http.StatusMethodNotAllowed)
		return
	}
	what, kind := byte(askPlain), "text/plain; version=0.0.4; charset=utf-8"
	if wantsOpen(r.Header.Values("Accept")) {
		what, kind = askOpen, "application/openmetrics-text; version=1.0.0; charset=utf-8"
	}
	ctx, cancel := context.WithTimeout(r.Context(), textTimeout)
	defer cancel()
	text, err := d.ask(ctx, what)
	if err != nil {
		http.Error(w, "503: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Write(text)
}

// wantsOpen reports whether who asks takes OpenMetrics of the version that there is.
func wantsOpen(accept []string) bool {
	for _, list := range accept {
		for one := range strings.SplitSeq(list, ",") {
			kind, params, err := mime.ParseMediaType(one)
			if err == nil && kind == "application/openmetrics-text" && params["version"] == "1.0.0" {
				return true
			}
		}
	}
	return false
}

// bounded is a listener that accepts no more connections than there is room for; others wait in the
// backlog.
type bounded struct {
	net.Listener
	room chan struct{}
}

// Accept implements [net.Listener].
func (b *bounded) Accept() (net.Conn, error) {
	b.room <- struct{}{}
	c, err := b.Listener.Accept()
	if err != nil {
		<-b.room
		return nil, err
	}
	return &boundedConn{Conn: c, leave: sync.OnceFunc(func() { <-b.room })}, nil
}

type boundedConn struct {
	net.Conn
	leave func()
}

// Close implements [net.Conn].
func (c *boundedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
