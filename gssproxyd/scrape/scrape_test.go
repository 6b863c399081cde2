package scrape

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"gssproxyd/gssproxyd/nss"
	"gssproxyd/tests/lab"
)

// The program that the tests start is this one again.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == HelperArg {
		if err := Help(os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// served is a helper at work.
type served struct {
	network, address string
	log              lab.LogBuffer
	texts            atomic.Int64                // that were made
	fails            atomic.Pointer[error]       // instead
	process          atomic.Pointer[nss.Process] // the last one
	stop             func()
}

func serve(t *testing.T, network string) *served {
	t.Helper()
	s := &served{network: network, address: "127.0.0.1:0"}
	if network == "unix" {
		s.address = filepath.Join(t.TempDir(), "sock")
	}
	l, err := net.Listen(network, s.address)
	check(t, err)
	defer l.Close()
	s.address = l.Addr().String()
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	f, err := l.(interface{ File() (*os.File, error) }).File()
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		Serve(ctx, Options{
			Listener: f,
			Start: func(conversation, listener *os.File) (nss.Process, error) {
				p, err := StartChild(conversation, listener)
				if err == nil {
					s.process.Store(&p)
				}
				return p, err
			},
			Text: func(openMetrics bool) ([]byte, error) {
				if err := s.fails.Load(); err != nil {
					return nil, *err
				}
				return fmt.Appendf(nil, "%t %d", openMetrics, s.texts.Add(1)), nil
			},
			Log: slog.New(slog.NewTextHandler(&s.log, nil)),
		})
		f.Close()
	})
	s.stop = func() { cancel(); running.Wait() }
	t.Cleanup(s.stop)
	return s
}

// get makes one request.
func (s *served) get(t *testing.T, method, path, accept string) (status int, kind, body string) {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, s.network, s.address)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://host"+path, nil)
	check(t, err)
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	res, err := transport.RoundTrip(req)
	check(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	check(t, err)
	return res.StatusCode, res.Header.Get("Content-Type"), string(b)
}

// It answers GET /metrics in both formats, and nothing else.
func TestServe(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		s := serve(t, network)
		if status, kind, body := s.get(t, "GET", "/metrics", ""); status != 200 || kind != "text/plain; version=0.0.4; charset=utf-8" || body != "false 1" {
			t.Errorf("%d, %q, %q", status, kind, body)
		}
		const prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
		if status, kind, body := s.get(t, "GET", "/metrics?x=y", prometheus); status != 200 || kind != "application/openmetrics-text; version=1.0.0; charset=utf-8" || body != "true 2" {
			t.Errorf("%d, %q, %q", status, kind, body)
		}
		if status, _, body := s.get(t, "HEAD", "/metrics", "application/openmetrics-text;version=0.0.1"); status != 200 || body != "" {
			t.Errorf("%d, %q", status, body)
		}
		for _, test := range []struct {
			method, path string
			status       int
		}{{"GET", "/", 404}, {"GET", "/metrics/", 404}, {"GET", "/debug/pprof/", 404}, {"POST", "/metrics", 405}, {"DELETE", "/metrics", 405}} {
			if status, _, body := s.get(t, test.method, test.path, ""); status != test.status || strings.Contains(body, "false") {
				t.Errorf("%s %s: %d, %q", test.method, test.path, status, body)
			}
		}
		failed := errors.New("the daemon has no text")
		s.fails.Store(&failed)
		lab.Await(t, "the error is not said", func() bool {
			status, _, body := s.get(t, "GET", "/metrics", "")
			return status == 503 && strings.Contains(body, failed.Error())
		})
	}
}

// The helper is nobody else's user, without capabilities, and has the sockets that it was given.
func TestHelperHasNothing(t *testing.T) {
	s := serve(t, "tcp")
	s.get(t, "GET", "/metrics", "")
	proc := fmt.Sprintf("/proc/%d/", (*s.process.Load()).PID())
	if os.Geteuid() == 0 {
		status, err := os.ReadFile(proc + "status")
		check(t, err)
		for _, want := range []string{"CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Groups:\t \n"} {
			if !strings.Contains(string(status), want) {
				t.Errorf("there is no %q in\n%s", want, status)
			}
		}
		if st, err := os.Stat(proc); err != nil || st.Sys().(*syscall.Stat_t).Uid < 0x78000000 {
			t.Errorf("%+v, %v", st, err)
		}
	} else if !strings.Contains(s.log.String(), "runs as this daemon's user") {
		t.Error("nobody says whose user it is")
	}
	fds, err := os.ReadDir(proc + "fd")
	check(t, err)
	sockets := 0
	for _, fd := range fds { // files of the cgroup are Go's own, and what who started the test has left open is not ours
		if to, _ := os.Readlink(proc + "fd/" + fd.Name()); strings.HasPrefix(to, "socket:") {
			sockets++
		}
	}
	if sockets > 3 { // the conversation, the listening one, and perhaps a client's
		t.Errorf("it has %d sockets", sockets)
	}
}

// contained is a helper in a user namespace where root is the only user.
type contained struct{ *exec.Cmd }

func (c contained) PID() int { return c.Process.Pid }

func (c contained) End() (error, bool) { c.Process.Kill(); return c.Wait(), true }

// One that can become nobody but root does not serve, and it is said why.
func TestHelperStaysRoot(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	check(t, err)
	defer f.Close()
	var failed error
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var log lab.LogBuffer
	running := make(chan struct{})
	go func() {
		defer close(running)
		Serve(ctx, Options{
			Listener: f, Log: slog.New(slog.NewTextHandler(&log, nil)),
			Start: func(conversation, listener *os.File) (nss.Process, error) {
				cmd := exec.Command("/proc/self/exe", HelperArg)
				cmd.Stdin, cmd.Stdout = conversation, listener
				cmd.SysProcAttr = &syscall.SysProcAttr{
					Cloneflags:  syscall.CLONE_NEWUSER,
					UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
					GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
				}
				if failed = cmd.Start(); failed != nil {
					cancel()
				}
				return contained{cmd}, failed
			},
		})
	}()
	lab.Await(t, "it is not said", func() bool {
		return ctx.Err() != nil || strings.Contains(log.String(), "as root it does not serve")
	})
	cancel()
	<-running
	if failed != nil {
		t.Skip("not run: no user namespace: ", failed)
	}
}

// One that is killed gets a successor on the same socket, and whoever connects meanwhile is answered
// by that. With Serve it ends.
func TestHelperEnds(t *testing.T) {
	s := serve(t, "tcp")
	s.get(t, "GET", "/metrics", "")
	first := (*s.process.Load()).PID()
	check(t, syscall.Kill(first, syscall.SIGKILL))
	lab.Await(t, "nobody says that the helper has ended", func() bool { return strings.Contains(s.log.String(), "signal: killed") })
	if status, _, _ := s.get(t, "GET", "/metrics", ""); status != 200 {
		t.Error(status)
	}
	second := (*s.process.Load()).PID()
	if first == second {
		t.Error("the helper is the same")
	}
	s.stop()
	lab.Await(t, "the helper goes on", func() bool { return errors.Is(syscall.Kill(second, 0), syscall.ESRCH) })
}

// left is a helper that goes on although it was killed, with the socket that it was given.
type left struct{}

func (left) PID() int { return 1 }

func (left) End() (error, bool) { return errors.New("it does not end"), false }

// A helper that is killed and not gone keeps nobody from the address.
func TestHelperIsLeft(t *testing.T) {
	port, err := lab.FreePort() // which nobody gets while it is let go of
	check(t, err)
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	l, err := net.Listen("tcp", address)
	check(t, err)
	f, err := l.(*net.TCPListener).File()
	check(t, err)
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var kept *os.File
	Serve(ctx, Options{
		Listener: f, Log: slog.New(slog.DiscardHandler),
		Start: func(_, listener *os.File) (nss.Process, error) {
			fd, err := syscall.Dup(int(listener.Fd()))
			kept = os.NewFile(uintptr(fd), "kept")
			cancel()
			return left{}, err
		},
	})
	f.Close()
	defer kept.Close()
	if l, err = net.Listen("tcp", address); err != nil {
		t.Fatal(err)
	}
	l.Close()
}

// Clients who say nothing, or too much, keep nobody from an answer.
func TestSlowClients(t *testing.T) {
	s := serve(t, "tcp")
	for range maxConns - 1 {
		c, err := net.Dial(s.network, s.address)
		check(t, err)
		defer c.Close()
		_, err = io.WriteString(c, "GET /metrics HTTP/1.1\r\n")
		check(t, err)
	}
	if status, _, _ := s.get(t, "GET", "/metrics", ""); status != 200 {
		t.Error(status)
	}
	// One more has all the room, until the others have used up their time.
	c, err := net.Dial(s.network, s.address)
	check(t, err)
	defer c.Close()
	if status, _, _ := s.get(t, "GET", "/metrics", ""); status != 200 {
		t.Error(status)
	}
	long, err := net.Dial(s.network, s.address)
	check(t, err)
	defer long.Close()
	go io.WriteString(long, "GET /metrics HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 1<<20)+"\r\n\r\n") // ends with the connection
	line, err := bufio.NewReader(long).ReadString('\n')
	if err == nil && !strings.Contains(line, " 431 ") {
		t.Errorf("a header of a megabyte: %q", line)
	}
}

// Who asks again and again costs the daemon a text now and then, and no lines in the log.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		made := 0
		var log lab.LogBuffer
		o := &Options{Text: func(bool) ([]byte, error) { made++; return []byte("text"), nil }, Log: slog.New(slog.NewTextHandler(&log, nil))}
		done := make(chan error)
		go func() { done <- o.answer(t.Context(), ours) }()
		theirs.Write([]byte{sayUser})
		start := time.Now()
		for range 9 {
			theirs.Write([]byte{askPlain})
			if text, err, dead := readAnswer(theirs); string(text) != "text" || err != nil || dead != nil {
				t.Fatal(string(text), err, dead)
			}
		}
		if took := time.Since(start); took != 8*pace || made != 9 {
			t.Errorf("%d in %v", made, took)
		}
		for _, b := range []byte{sayUser, 'x'} {
			theirs.Write([]byte{b})
			if err := <-done; err == nil || !strings.Contains(err.Error(), "nothing that there is") {
				t.Error(err)
			}
			go func() { done <- o.answer(t.Context(), ours) }()
			theirs.Write([]byte{askPlain})
			readAnswer(theirs)
		}
		theirs.Close()
		<-done
		if n := strings.Count(log.String(), "as this daemon's user"); n != 1 {
			t.Errorf("it is said %d times", n)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		d := newDaemon(ours)
		go d.read()
		asked := 0
		go func() {
			for b := make([]byte, 1); ; asked++ {
				if _, err := theirs.Read(b); err != nil {
					return
				}
				if asked == 2 {
					time.Sleep(time.Minute)
				}
				writeAnswer(theirs, []byte{b[0], byte('0' + asked)}, nil)
			}
		}()
		ask := func(what byte, want string) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), textTimeout)
			defer cancel()
			text, err := d.ask(ctx, what)
			if err != nil {
				text = []byte(err.Error())
			}
			if string(text) != want {
				t.Errorf("%q, want %q", text, want)
			}
		}
		ask(askPlain, "t0")
		ask(askPlain, "t0")
		ask(askOpen, "o1")
		time.Sleep(pace)
		// The daemon takes its time: who cannot wait goes, and the answer is not taken for another.
		ask(askPlain, "the daemon does not answer")
		ask(askOpen, "too many ask at once")
		time.Sleep(time.Minute)
		ask(askOpen, "o3")
		theirs.Close()
		<-d.gone
		time.Sleep(pace)
		ask(askPlain, errDead.Error())
	})
}

// A helper that cannot live is started later and later.
func TestPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var at []time.Duration
		start := time.Now()
		Serve(ctx, Options{
			Start: func(_, _ *os.File) (nss.Process, error) {
				if at = append(at, time.Since(start)); len(at) == 9 {
					cancel()
				}
				return nil, errors.New("no processes")
			},
			Log: slog.New(slog.DiscardHandler),
		})
		for i, want := range []time.Duration{0, 1, 3, 7, 15, 31, 63, 123, 183} {
			if at[i] != want*time.Second {
				t.Errorf("start %d after %v, want %ds", i, at[i], want)
			}
		}
	})
}

// An answer that is longer than it may be is none.
func TestLongAnswer(t *testing.T) {
	r, w := net.Pipe()
	go func() { writeAnswer(w, make([]byte, maxText+1), nil) }()
	if _, err, dead := readAnswer(r); err == nil || dead != nil || !strings.Contains(err.Error(), "more than 16777216") {
		t.Error(err, dead)
	}
	go w.Write([]byte{isText, 0xff, 0, 0, 0})
	if _, _, dead := readAnswer(r); dead == nil || !strings.Contains(dead.Error(), "at most") {
		t.Error(dead)
	}
	r.Close()
}
