package starter

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/gssproxyd/nss"
)

// Client is the daemon's side. Its methods may be called from any goroutine.
type Client struct {
	process *exec.Cmd
	stderr  *bytes.Buffer // of the process; read when that has ended
	log     *slog.Logger
	ended   chan struct{} // closed when the process has

	mu      sync.Mutex // held for one request and its answer
	conn    *net.UnixConn
	timeout time.Duration // of an answer
	owed    byte          // what was asked and not answered in time, or 0
	closing bool
}

// Start starts this program as the starter, with arguments that say which configuration is meant.
// What becomes of it is logged.
func Start(args []string, log *slog.Logger) (*Client, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "starter")
	defer theirs.Close()
	conn, err := fromFile(os.NewFile(uintptr(pair[0]), "starter"))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", append([]string{Arg}, args...)...)
	cmd.Args[0] = "gssproxyd"
	// The working directory stays the daemon's, which paths in args are relative to.
	cmd.Env = nss.Environment()
	cmd.Stdin = theirs
	stderr := new(bytes.Buffer)
	cmd.Stderr = stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's signals are the daemon's
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, err
	}
	c := &Client{process: cmd, stderr: stderr, log: log, ended: make(chan struct{}), conn: conn, timeout: answerTimeout}
	go c.watch()
	return c, nil
}

// watch waits for the end of the process.
func (c *Client) watch() {
	err := c.process.Wait()
	c.mu.Lock()
	closing := c.closing
	c.mu.Unlock()
	if !closing {
		c.log.Error("the starter has ended: no socket that a reload adds can be opened, and no helper replaced, until the daemon is restarted",
			"error", cmp.Or(err, errors.New("exit status 0")), "said", strings.TrimSpace(c.stderr.String()))
	}
	close(c.ended)
}

// Listen has the starter listen at a path that the configuration names, as [rpc.Listen] does.
//
// [rpc.Listen]: gssproxyd/rpc
func (c *Client) Listen(path string) (*net.UnixListener, error) {
	m, err := c.ask(message{kind: openSocket, text: path})
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	defer m.close()
	if m.kind != done || len(m.files) != 1 {
		return nil, errors.New(m.text) // it names the socket
	}
	l, err := net.FileListener(m.files[0])
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return l.(*net.UnixListener), nil
}

// Permit has the starter give a socket the access that the configuration says, as [rpc.SetAccess] does.
//
// [rpc.SetAccess]: gssproxyd/rpc
func (c *Client) Permit(path string) error {
	m, err := c.ask(message{kind: permitUsers, text: path})
	if err != nil {
		return fmt.Errorf("socket %s: %w", path, err)
	}
	m.close()
	if m.kind != done {
		return errors.New(m.text) // it names the socket
	}
	return nil
}

// Remove has the starter remove a pod's socket and its directory.
func (c *Client) Remove(path string) error {
	m, err := c.ask(message{kind: removePod, text: path})
	if err != nil {
		return fmt.Errorf("socket %s: %w", path, err)
	}
	defer m.close()
	if m.kind != done {
		return errors.New(m.text) // it names the socket
	}
	return nil
}

// Helper has the starter start a helper. It is an [nss.StartFunc].
func (c *Client) Helper(urgent bool, in, out *os.File) (nss.Process, error) {
	kind := byte(startHelper)
	if urgent {
		kind = startUrgent
	}
	return c.start(kind, in, out)
}

// Scrape has the starter start the helper that serves the metrics. It is a [scrape.StartFunc].
func (c *Client) Scrape(conversation, listener *os.File) (nss.Process, error) {
	return c.start(startScrape, conversation, listener)
}

// Store has the starter start the helper that asks key stores.
func (c *Client) Store(conversation *os.File) (nss.Process, error) {
	return c.start(startStore, conversation, conversation)
}

func (c *Client) start(kind byte, files ...*os.File) (nss.Process, error) {
	m, err := c.ask(message{kind: kind, files: files})
	if err != nil {
		return nil, err
	}
	defer m.close()
	pid, err := strconv.Atoi(m.text)
	if m.kind != done || err != nil {
		return nil, errors.New(m.text)
	}
	return &helper{c, pid}, nil
}

// helper is one that the starter has started.
type helper struct {
	starter *Client
	pid     int
}

func (h *helper) PID() int { return h.pid }

func (h *helper) End() (how error, ended bool) {
	m, err := h.starter.ask(message{kind: endHelper, text: strconv.Itoa(h.pid)})
	if err != nil {
		return err, false
	}
	m.close()
	if m.text != "" {
		how = errors.New(m.text)
	}
	return how, m.kind == done
}

// ask makes one request. If the answer to an earlier one is overdue that is taken first: the next
// message is that answer.
func (c *Client) ask(m message) (message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	if c.owed != 0 {
		err = c.settle()
	}
	if err == nil {
		m, err = c.exchange(m)
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return message{}, fmt.Errorf("the starter does not answer within %v and is asked again later; if that stays so, restart the daemon", c.timeout)
	case err != nil && !errors.Is(err, net.ErrClosed):
		c.conn.Close()
		fallthrough
	case err != nil:
		return message{}, fmt.Errorf("the starter does not answer: %w; restart the daemon", err)
	}
	return m, nil
}

// exchange sends a request and receives its answer. c.mu is held.
func (c *Client) exchange(m message) (message, error) {
	c.conn.SetDeadline(time.Now().Add(c.timeout))
	if err := send(c.conn, m); err != nil {
		return message{}, err
	}
	c.owed = m.kind
	answer, err := receive(c.conn)
	if err == nil {
		c.owed = 0
	}
	return answer, err
}

// settle takes an answer that came late, if it is there, and undoes what nobody waits for any more: a
// socket is closed, and a helper ended. c.mu is held.
func (c *Client) settle() error {
	c.conn.SetDeadline(time.Now().Add(lateTimeout))
	m, err := receive(c.conn)
	if err != nil {
		return err
	}
	m.close()
	asked := c.owed
	c.owed = 0
	if m.kind != done || !starts(asked) {
		return nil
	}
	m, err = c.exchange(message{kind: endHelper, text: m.text})
	m.close()
	return err
}

// starts reports whether a request starts a helper.
func starts(kind byte) bool {
	return kind == startHelper || kind == startUrgent || kind == startScrape || kind == startStore
}

// Close ends the starter, and waits for that a few seconds at most. Helpers that it has started are
// to be ended before.
func (c *Client) Close() {
	c.mu.Lock()
	c.closing = true
	c.conn.Close()
	c.mu.Unlock()
	timer := time.NewTimer(answerTimeout)
	defer timer.Stop()
	select {
	case <-c.ended:
	case <-timer.C: // it is root, and not ours to kill
		c.log.Error("the starter does not end, and is left alone", "pid", c.process.Process.Pid)
	}
}
